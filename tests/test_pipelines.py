"""The files in pipelines/: their promises against the paper's tables, and their small twins end to end."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from vggfeat.bundle import make_small_net
from vggfeat.reclassify import compare, reclassify
from vggfeat.reproduce import reproduce
from vggfeat.results import paper_errors
from vggfeat.results.svm import PAPER
from vggfeat.retrain import retrain, starts_from
from vggfeat.weights import load_backbone

FOLDER = Path(__file__).parents[1] / "pipelines"
ALL = sorted(path.stem for path in FOLDER.glob("*.py"))
CLASSIFIED = [stem for stem in ALL if stem.startswith("ilsvrc_table")]
TRAINED = [stem for stem in ALL if stem.startswith("ilsvrc_") and stem not in CLASSIFIED]
STEMS = [stem for stem in ALL if stem not in (*TRAINED, *CLASSIFIED, "small_backbone")]
# One for each of the paper's two kinds of protocol, and fusion; the others take minutes together.
SHORT = {"voc2007_de", "caltech101_d"}


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
    assert set(ALL) - set(STEMS) - set(TRAINED) - set(CLASSIFIED) == {"small_backbone"}


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
    for words in ("--root ILSVRC", "--root ILSVRC --weights FILE (trains nothing)", "--twin"):
        assert f" python pipelines/{stem}.py {words}\n" in promise
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
    found = retrain(load(stem_of(net, scale)).ROW, ["--twin", "--out", str(twins)])
    out = capsys.readouterr().out
    assert list(found) == ([3, 4] if line[5:] else [3])
    for (table, results), numbers, sides in zip(
        found.items(), (line[3:5], line[6:]), ([224], [224, 240]), strict=False
    ):
        assert f"paper {numbers[0]} %, {numbers[1]} % (Table {table})" in out
        assert f"ours {100 * results['top1_error']:.1f} %" in out
        assert results["posteriors"][0]["scales"] == sides
        assert results["posteriors"][0]["mode"] == "dense"
    assert out.count("not to be compared: these are not the paper's images") == len(found)
    folder, low_high = twins / stem_of(net, scale), [int(side) for side in scale.split(":")]
    backbone = load_backbone(folder / "weights.safetensors")
    told = backbone.facts["training"]
    assert backbone.model.config == net
    assert told["recipe"]["scale"] == [low_high[0], low_high[-1]]
    assert told["validation_scale"] == int(line[2])
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


def test_a_trained_net_is_measured_without_training(twins, tmp_path, capsys):
    weights = twins / "ilsvrc_a_256" / "weights.safetensors"
    if not weights.is_file():
        retrain(load("ilsvrc_a_256").ROW, ["--twin", "--out", str(twins)])
    row = load("ilsvrc_a_256").ROW
    found = retrain(row, ["--twin", "--out", str(tmp_path), "--weights", str(weights)])
    out = capsys.readouterr().out
    assert "$ vggfeat train" not in out.split(f"{tmp_path}/data")[-1]
    assert found[3]["posteriors"][0]["weights_sha256"] == load_backbone(weights).sha256
    with pytest.raises(SystemExit) as ended:
        retrain(load("ilsvrc_d_256").ROW, ["--twin", "--out", str(tmp_path), "--weights", str(weights)])
    assert ended.value.code == 2
    assert "expected weights of net D, found net A" in capsys.readouterr().err


# VGG paper, Tables 5 and 6: nets as net/S/Q, mode, top-1 and top-5 error.
TABLES_5_AND_6 = """
table5_d_dense        5  D/256:512/256,384,512                        dense       24.8 7.5
table5_d_multi_crop   5  D/256:512/256,384,512                        multi-crop  24.6 7.5
table5_d_both         5  D/256:512/256,384,512                        both        24.4 7.2
table5_e_dense        5  E/256:512/256,384,512                        dense       24.8 7.5
table5_e_multi_crop   5  E/256:512/256,384,512                        multi-crop  24.6 7.4
table5_e_both         5  E/256:512/256,384,512                        both        24.4 7.1
table6_submission     6  D/256/224,256,288+D/384/352,384,416+D/256:512/256,384,512+C/256/224,256,288+C/384/352,384,416+E/256/224,256,288+E/384/352,384,416  dense  24.7 7.5
table6_de_dense       6  D/256:512/256,384,512+E/256:512/256,384,512  dense       24.0 7.1
table6_de_multi_crop  6  D/256:512/256,384,512+E/256:512/256,384,512  multi-crop  23.9 7.2
table6_de_both        6  D/256:512/256,384,512+E/256:512/256,384,512  both        23.7 6.8
"""  # noqa: E501
FUSED = [line.split() for line in TABLES_5_AND_6.strip().splitlines()]
# Together these have dense and multi-crop evaluation, both of them, and many nets.
SHORT_FUSED = {"table5_d_both", "table6_submission"}


def nets_of(text):
    fields = [net.split("/") for net in text.split("+")]
    return [(net, scale, tuple(map(int, sides.split(",")))) for net, scale, sides in fields]


def test_there_is_a_file_for_every_fused_row():
    assert sorted(f"ilsvrc_{line[0]}" for line in FUSED) == CLASSIFIED


def jittered(scale):
    return "[256;512]" if ":" in scale else scale


def test_the_rows_that_results_are_compared_with_are_those_of_the_pipelines():
    expected = []
    for line in LINES:
        for table, (sides, top1, top5) in {3: line[2:5], **({4: line[5:]} if line[5:] else {})}.items():
            nets = ((line[0], jittered(line[1]), tuple(map(int, sides.split(",")))),)
            expected.append((table, nets, "dense", float(top1), float(top5)))
    for _, table, nets, mode, top1, top5 in FUSED:
        nets = tuple((net, jittered(scale), sides) for net, scale, sides in nets_of(nets))
        expected.append((int(table), nets, mode, float(top1), float(top5)))
    assert sorted(expected) == sorted(paper_errors.PAPER)


@pytest.mark.parametrize("line", FUSED, ids=[line[0] for line in FUSED])
def test_the_promise_of_a_fused_row_is_the_papers(line):
    stem = f"ilsvrc_{line[0]}"
    module = load(stem)
    row, promise = module.ROW, module.__doc__
    assert (row.name, row.table, row.mode) == (stem, int(line[1]), line[3])
    assert [(net.net, net.scale, net.sides) for net in row.nets] == nets_of(line[2])
    assert (row.top1, row.top5) == (float(line[4]), float(line[5]))
    assert promise.startswith(f"Table {line[1]} of the VGG paper, ")
    assert f": top-1 error {line[4]} %, top-5 error {line[5]} %.\n" in promise
    for net in row.nets:
        assert net.name in TRAINED
        assert f"{net.name}.py" in promise
    for words in ("--root ILSVRC", "--twin"):
        assert f" python pipelines/{stem}.py {words}\n" in promise


@pytest.fixture(scope="module")
def fused_twins(tmp_path_factory):
    return tmp_path_factory.mktemp("fused")


@pytest.mark.parametrize("line", [
    pytest.param(line, id=line[0], marks=() if line[0] in SHORT_FUSED else pytest.mark.long) for line in FUSED
])  # fmt: skip
def test_the_twin_of_a_fused_row_runs(line, fused_twins, capsys):
    results = reclassify(load(f"ilsvrc_{line[0]}").ROW, ["--twin", "--out", str(fused_twins)])
    out = capsys.readouterr().out
    modes = ["dense", "multi-crop"] if line[3] == "both" else [line[3]]
    nets = nets_of(line[2])
    found = [(part["net"], part["trained_scale"], part["mode"]) for part in results["posteriors"]]
    wanted = [(net, [int(scale.split(":")[0]), int(scale.split(":")[-1])]) for net, scale, _ in nets]
    assert found == [(*net, mode) for net in wanted for mode in modes]
    assert sum(part["share"] * len(part["scales"]) for part in results["posteriors"]) == pytest.approx(1)
    assert not results["dataset"]["official"]
    assert f"not to be compared: these are not the paper's images, nets and scales; paper {line[4]} %" in out


def test_a_number_that_is_far_from_the_papers_is_said_aloud(capsys):
    official = {"paper": [{"table": 5}], "top1_error": 0.2529, "top5_error": 0.0752}
    assert compare(official, 5, 24.8, 7.5)
    assert "ours 25.3 %, 7.5 %, paper 24.8 %, 7.5 % (Table 5): within 0.5 points" in capsys.readouterr().out
    assert not compare(official | {"top5_error": 0.081}, 5, 24.8, 7.5)
    assert "OUTSIDE 0.5 points" in capsys.readouterr().out
    assert compare(official | {"paper": []}, 5, 24.8, 7.5)
    assert "not to be compared" in capsys.readouterr().out


def test_a_fused_row_asks_for_what_stands_before_it(tmp_path, capsys):
    row = load("ilsvrc_table6_de_both").ROW
    for words, said in (
        ([], "--root: expected the place of ILSVRC-2012"),
        (["--root", "x"], "run pipelines/ilsvrc_d_256_512.py first"),
        (
            ["--root", "x", "--weights", "D"],
            "--weights: expected one for each of D (256:512), E (256:512), or none, found 1",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            reclassify(row, ["--out", str(tmp_path), *words])
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
