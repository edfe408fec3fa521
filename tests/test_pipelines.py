"""The files in pipelines/: their promises against the paper's tables, and their small twins end to end."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from vggfeat.bundle import make_small_net
from vggfeat.report.writing import PAPER
from vggfeat.reproduce import reproduce
from vggfeat.retrain import retrain, starts_from
from vggfeat.weights import load_backbone

FOLDER = Path(__file__).parents[1] / "pipelines"
ALL = sorted(path.stem for path in FOLDER.glob("*.py"))
TRAINED = [stem for stem in ALL if stem.startswith("ilsvrc_")]
STEMS = [stem for stem in ALL if stem not in TRAINED and stem != "small_backbone"]
# Together these run every data set, fusion, and both regions.
SHORT = {"voc2007_de", "voc2012_d", "voc2012_action_image_box", "caltech101_de", "caltech256_d"}


def load(stem):
    spec = importlib.util.spec_from_file_location(stem, FOLDER / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_file_for_every_row_of_the_tables():
    rows = [load(stem).ROW for stem in STEMS]
    found = {(row.dataset, row.nets, tuple(row.regions.split(","))) for row in rows}
    assert found == {(name, *key) for name, numbers in PAPER.items() for key in numbers}
    assert len(rows) == len(found) == 14


@pytest.mark.parametrize("stem", STEMS)
def test_the_promise_at_the_head_is_what_the_row_says(stem):
    module = load(stem)
    row, promise = module.ROW, module.__doc__
    number = PAPER[row.dataset][(row.nets, tuple(row.regions.split(",")))]
    assert float(number.split()[0]) == row.expected
    if "+-" in number:
        assert float(number.split()[-1]) == row.spread
    assert f"Table {row.table} of the VGG paper" in promise
    assert f"{row.expected} %." in promise
    assert f"Expected: {row.expected} +- {row.spread};" in promise
    assert row.table == (12 if row.dataset == "voc2012-action" else 11)
    assert re.search(
        rf"python pipelines/{stem}\.py --root DATA( --weights [DE]\.safetensors){{{len(row.nets)}}}\n", promise
    )
    assert f"python pipelines/{stem}.py --twin" in promise


@pytest.mark.parametrize("stem", [pytest.param(s, marks=() if s in SHORT else pytest.mark.long) for s in STEMS])
def test_the_twin_runs(stem, tmp_path, capsys):
    row = load(stem).ROW
    ours = reproduce(row, ["--twin", "--out", str(tmp_path), "--device", "cpu"])
    (folder,) = [path.parent for path in tmp_path.rglob("results.json")]
    results = json.loads((folder / "results.json").read_text())
    assert ours == pytest.approx(100 * results["headline"])
    assert 0 < ours <= 100
    assert results["dataset"]["failed"] == 0
    nets = [file["provenance"]["net"] for file in results["settings"]["features"]["files"]]
    assert tuple(nets) == row.nets
    assert results["settings"]["features"]["files"][0]["regions"] == row.regions.split(",")
    expected = {"caltech101": "stack", "caltech256": "stack"}.get(row.dataset, "mean")
    assert results["settings"]["features"]["join"] == expected
    archives = [path.name for path in folder.glob("*.tar.gz")]
    assert archives == ([f"results-{row.dataset}-test.tar.gz"] if row.dataset.startswith("voc2012") else [])
    out = capsys.readouterr().out
    assert "$ vggfeat extract" in out
    assert "not to be compared" in out


def test_missing_weights_are_asked_for(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce(load("voc2007_de").ROW, ["--out", str(tmp_path), "--weights", "one.safetensors"])
    assert ended.value.code == 2
    assert "expected one for each of D, E, found 1" in capsys.readouterr().err


# VGG paper: net, S, then Q, top-1 and top-5 error of Table 3, and of Table 4.
TABLES_3_AND_4 = """
A      256      256 29.6 10.4
A-LRN  256      256 29.7 10.5
B      256      256 28.7 9.9   224,256,288 28.2 9.6
C      256      256 28.1 9.4   224,256,288 27.7 9.2
C      384      384 28.1 9.3   352,384,416 27.8 9.2
C      256:512  384 27.3 8.8   256,384,512 26.3 8.2
D      256      256 27.0 8.8   224,256,288 26.6 8.6
D      384      384 26.8 8.7   352,384,416 26.5 8.6
D      256:512  384 25.6 8.1   256,384,512 24.8 7.5
E      256      256 27.3 9.0   224,256,288 26.9 8.7
E      384      384 26.9 8.7   352,384,416 26.7 8.6
E      256:512  384 25.5 8.0   256,384,512 24.8 7.5
"""
LINES = [line.split() for line in TABLES_3_AND_4.strip().splitlines()]
CHAINS = {"256": ["ilsvrc_a_256"], "384": ["ilsvrc_a_256", "ilsvrc_{}_256"]}
CHAINS["256:512"] = [*CHAINS["384"], "ilsvrc_{}_384"]


def stem_of(net, scale):
    return f"ilsvrc_{net.lower().replace('-', '_')}_{scale.replace(':', '_')}"


def errors(fields):
    return (tuple(map(int, fields[0].split(","))), float(fields[1]), float(fields[2])) if fields else None


def test_there_is_a_file_for_every_trained_row():
    assert sorted(stem_of(*line[:2]) for line in LINES) == TRAINED
    assert set(ALL) - set(STEMS) - set(TRAINED) <= {"small_backbone"}


@pytest.mark.parametrize("line", LINES, ids=[stem_of(*line[:2]) for line in LINES])
def test_the_promise_of_a_trained_row_is_the_papers(line):
    net, scale, stem = *line[:2], stem_of(*line[:2])
    module = load(stem)
    row, promise = module.ROW, module.__doc__
    assert (row.net, row.scale, row.name) == (net, scale, stem)
    assert (row.single, row.multi) == (errors(line[2:5]), errors(line[5:]))
    named = "S in [256;512]" if ":" in scale else f"S = {scale}"
    assert (
        f"Table 3 of the VGG paper, net {net}, {named}: top-1 error {line[3]} %, top-5 error {line[4]} % at" in promise
    )
    assert f"at Q = {line[2]}.\n" in promise
    if line[5:]:
        sides = ", ".join(line[5].split(","))
        assert f"Table 4: top-1 error {line[6]} %, top-5 error {line[7]} % over Q = {sides}.\n" in promise
    for command in (f"python pipelines/{stem}.py --root ILSVRC", f"python pipelines/{stem}.py --twin"):
        assert f" {command}\n" in promise
    if net.startswith("A"):
        assert "Starts from random weights." in promise
    else:
        chain = ", ".join(f"{name.format(net.lower())}.py" for name in CHAINS[scale])
        assert f"Chain:    {chain}, this one.\n" in promise


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    return tmp_path_factory.mktemp("twins")


# Together these go through the whole chain, and have every scale.
CHAIN = {"ilsvrc_a_lrn_256", "ilsvrc_e_256_512"}


@pytest.mark.parametrize("line", [
    pytest.param(line, id=stem_of(*line[:2]), marks=() if stem_of(*line[:2]) in CHAIN else pytest.mark.long)
    for line in LINES
])  # fmt: skip
def test_the_twin_of_a_trained_row_runs(line, twins, capsys):
    net, scale = line[:2]
    told = retrain(load(stem_of(net, scale)).ROW, ["--twin", "--out", str(twins)])
    out = capsys.readouterr().out
    assert "not to be compared: rendered pictures" in out
    assert f"paper {line[3]} %, {line[4]} % (dense at Q = {line[2]}, Table 3)" in out
    folder, low_high = twins / stem_of(net, scale), [int(side) for side in scale.split(":")]
    backbone = load_backbone(folder / "weights.safetensors")
    assert backbone.model.config == net
    assert told["recipe"]["scale"] == [low_high[0], low_high[-1]]
    assert told["validation_scale"] == int(line[2])
    assert f"ours {100 * told['validation']['top1_error']:.1f} %" in out
    before = starts_from(net, scale)
    started_from = told["started_from"]
    if before is None:
        assert started_from is None
    else:
        assert started_from == load_backbone(twins / stem_of(*before) / "weights.safetensors").sha256
    # Sect. 3.1: 1e-2, and 1e-3 for what starts from the same net.
    assert told["recipe"]["learning_rate"] == (1e-3 if before and before[0] == net else 1e-2)


def test_a_trained_row_asks_for_what_stands_before_it(tmp_path, capsys):
    for words, said in (
        (["--out", str(tmp_path)], "--root: expected the place of ILSVRC-2012"),
        (["--out", str(tmp_path), "--root", "x"], "run pipelines/ilsvrc_d_384.py first, or name the weights with"),
    ):
        with pytest.raises(SystemExit) as ended:
            retrain(load("ilsvrc_d_256_512").ROW, words)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_the_twin_of_the_small_net_runs(tmp_path, capsys):
    net = load("small_backbone").NET
    weights = make_small_net(net, ["--twin", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    last = tmp_path / net.stages[-1].name / "weights.safetensors"
    backbone, trained = load_backbone(weights), load_backbone(last)
    before = load_backbone(tmp_path / net.stages[-2].name / "weights.safetensors")
    assert trained.facts["training"]["started_from"] == before.sha256
    assert backbone.classes == trained.classes
    assert backbone.mean == trained.mean
    assert backbone.facts["training"] == trained.facts["training"]
    assert backbone.facts["made_by"]["pipeline"] == "pipelines/small_backbone.py"
    assert [stage["name"] for stage in backbone.facts["made_by"]["stages"]] == [stage.name for stage in net.stages]
    assert weights.stat().st_size < 0.6 * last.stat().st_size
    assert re.search(rf"^{weights}: mean average precision, 11-point [0-9.]+ %$", out, re.MULTILINE)
    assert re.search(r"^random:A:0:0.03125: mean average precision, 11-point [0-9.]+ %$", out, re.MULTILINE)
    assert re.search(r"^chance: [0-9.]+ %$", out, re.MULTILINE)
