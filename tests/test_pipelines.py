"""The pipelines: their rows against the paper's tables, and their small twins end to end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import run as pipelines
import small_net
import steps
import tables_3_4
import tables_5_6
import tables_11_12
from vggfeat.cli import run as run_command
from vggfeat.results.paper import TABLES_3_TO_6
from vggfeat.weights import load_backbone


def row(table, name):
    return next(row for row in table.ROWS if row.name == name)


ROOT = Path(__file__).parents[1]


def vggfeat(*words):
    return run_command(words)


def run(*words):
    return pipelines.main([str(word) for word in words])


# Table 11 and 12 of the VGG paper: data set, nets, number, deviation where it gives one; and regions.
TABLES_11_AND_12 = """
voc2007 D 89.3 - image      voc2007 E 89.3 - image      voc2007 DE 89.7 - image
voc2012 D 89.0 - image      voc2012 E 89.0 - image      voc2012 DE 89.3 - image
caltech101 D 91.8 1.0 image  caltech101 E 92.3 0.5 image  caltech101 DE 92.7 0.5 image
caltech256 D 85.0 0.2 image  caltech256 E 85.1 0.3 image  caltech256 DE 86.2 0.3 image
voc2012-action DE 79.2 - image   voc2012-action DE 84.0 - image,box
"""
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


def sides(text):
    return tuple(map(int, text.split(",")))


def lines(text):
    return [line.split() for line in text.strip().splitlines()]


def nets_of(text):
    return [(net, scale, sides(tested)) for net, scale, tested in (part.split("/") for part in text.split("+"))]


def test_the_rows_of_tables_11_and_12_are_the_papers():
    words = TABLES_11_AND_12.split()
    expected = [tuple(words[i : i + 5]) for i in range(0, len(words), 5)]
    found = [(row.dataset, row.nets, str(row.expected), row.regions) for row in tables_11_12.ROWS]
    assert sorted(found) == sorted((name, nets, number, regions) for name, nets, number, _, regions in expected)
    for one in tables_11_12.ROWS:
        assert one.table == (12 if one.dataset == "voc2012-action" else 11)
        deviation = next(line[3] for line in expected if line[:2] == (one.dataset, one.nets))
        assert deviation in ("-", str(one.spread))


def test_the_rows_of_tables_3_and_4_are_the_papers():
    expected = [
        (net, scale, (sides(q), float(top1), float(top5)), (sides(multi[0]), *map(float, multi[1:])) if multi else None)
        for net, scale, q, top1, top5, *multi in lines(TABLES_3_AND_4)
    ]
    assert [(row.net, row.scale, row.single, row.multi) for row in tables_3_4.ROWS] == expected


def test_the_rows_of_tables_5_and_6_are_the_papers():
    expected = [
        (f"ilsvrc_{name}", int(table), nets_of(nets), mode, float(top1), float(top5))
        for name, table, nets, mode, top1, top5 in lines(TABLES_5_AND_6)
    ]
    found = [
        (row.name, row.table, [(net.net, net.scale, net.sides) for net in row.nets], row.mode, row.top1, row.top5)
        for row in tables_5_6.ROWS
    ]
    assert found == expected
    assert {net.name for row in tables_5_6.ROWS for net in row.nets} <= {row.name for row in tables_3_4.ROWS}


def test_the_rows_that_results_are_compared_with_are_those_of_the_pipelines():
    def jittered(scale):
        return "[256;512]" if ":" in scale else scale

    expected = []
    for one in tables_3_4.ROWS:
        for table, errors in ((3, one.single), (4, one.multi)):
            if errors:
                nets = ((one.net, jittered(one.scale), errors.sides),)
                expected.append((table, nets, "dense", errors.top1, errors.top5))
    for one in tables_5_6.ROWS:
        nets = tuple((net.net, jittered(net.scale), net.sides) for net in one.nets)
        expected.append((one.table, nets, one.mode, one.top1, one.top5))
    assert sorted(expected) == sorted(TABLES_3_TO_6)


def test_the_command_line_finds_the_pipelines(capfd):
    assert vggfeat("reproduce", "--json") == 0
    assert list(json.loads(capfd.readouterr().out)) == list(pipelines.group.commands)
    assert vggfeat("reproduce", "--help") == 0
    assert "vggfeat reproduce voc2007_d --twin" in capfd.readouterr().out
    assert vggfeat("reproduce", "voc2007_d") == 2
    assert "--weights: expected one for each of D" in capfd.readouterr().err


def test_the_list_of_rows_does_not_wait_for_pytorch():
    code = "import sys, run; assert run.main(['--json']) == 0; assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "pipelines")))}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


@pytest.mark.long
def test_the_wheel_carries_the_pipelines(tmp_path):
    pytest.importorskip("hatchling")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), tmp_path / "installed", "zip")
    # Without the checkout on its way, which an installation that can be edited adds.
    alone = f"import sys; sys.path = [{str(tmp_path / 'installed')!r}, *(p for p in sys.path if p != {str(ROOT)!r})]\n"
    code = alone + "import vggfeat.cli as c; print(c.__file__); sys.exit(c.run(['reproduce', 'voc2007_d', '--help']))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    assert "Usage: vggfeat reproduce voc2007_d" in done.stdout


def test_every_row_is_listed_with_its_promise(capsys):
    assert run("--help") == 0
    listed = " ".join(capsys.readouterr().out.split())
    rows = [*tables_3_4.ROWS, *tables_5_6.ROWS, *tables_11_12.ROWS]
    assert len({row.name for row in rows}) == len(rows) == 36
    for one in rows:
        assert f"{one.name}: {one.promise}" in listed
    assert "voc2007_d: Table 11, voc2007, D, image: 89.3 +- 0.5 %" in listed


# One for each of the paper's two kinds of protocol, and fusion; the others take minutes together.
SHORT = {"voc2007_de", "caltech101_d"}


@pytest.mark.parametrize(
    "one", [pytest.param(r, id=r.name, marks=() if r.name in SHORT else pytest.mark.long) for r in tables_11_12.ROWS]
)
def test_the_twin_of_tables_11_and_12_runs(one, tmp_path, capsys):
    assert run(one.name, "--twin", "--out", tmp_path, "--device", "cpu") == 0
    folder = tmp_path / one.name
    results = json.loads((folder / "results.json").read_text())
    out = capsys.readouterr().out
    assert f"ours {100 * results['headline']:.1f} %, not to be compared" in out
    assert 0 < results["headline"] <= 1
    assert results["dataset"]["failed"] == 0
    files = results["settings"]["features"]["files"]
    assert "".join(file["provenance"]["net"] for file in files) == one.nets
    assert files[0]["regions"] == one.regions.split(",")
    assert results["settings"]["features"]["join"] == ("stack" if "caltech" in one.dataset else "mean")
    archives = [path.name for path in folder.glob("*.tar.gz")]
    assert archives == ([f"results-{one.dataset}-test.tar.gz"] if one.dataset.startswith("voc2012") else [])
    assert "$ vggfeat extract" in out


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    return tmp_path_factory.mktemp("twins")


# Together these go through the whole chain, and have every scale.
CHAIN = {"ilsvrc_a_lrn_256", "ilsvrc_e_256_512"}


@pytest.mark.parametrize(
    "one", [pytest.param(r, id=r.name, marks=() if r.name in CHAIN else pytest.mark.long) for r in tables_3_4.ROWS]
)
def test_the_twin_of_tables_3_and_4_runs(one, twins, capsys):
    assert run(one.name, "--twin", "--out", twins) == 0
    out = capsys.readouterr().out
    for table, errors, tested in ((3, one.single, [224]), (4, one.multi, [224, 240])):
        if errors:
            results = json.loads((twins / f"{one.name}-classified" / f"table-{table}" / "results.json").read_text())
            assert f"ours {100 * results['top1_error']:.1f} %" in out
            assert f"paper {errors.top1} %, {errors.top5} % (Table {table}, " in out
            assert results["posteriors"][0]["scales"] == tested
            assert results["posteriors"][0]["mode"] == "dense"
    assert out.count("not to be compared: these are not the paper's images") == (2 if one.multi else 1)
    backbone = load_backbone(twins / one.name / "weights.safetensors")
    facts, scale = backbone.facts["training"], [int(side) for side in one.scale.split(":")]
    assert facts["recipe"]["net"] == one.net
    assert facts["recipe"]["scale"] == [scale[0], scale[-1]]
    assert facts["validation_scale"] == one.single.sides[0]
    before = tables_3_4.starts_from(one.net, one.scale)
    if before is None:
        assert facts["started_from"] is None
    else:
        name = row(tables_3_4, f"ilsvrc_{before[0]}_{before[1]}".lower()).name
        assert facts["started_from"] == load_backbone(twins / name / "weights.safetensors").sha256
    # Sect. 3.1: 1e-2, and 1e-3 for what starts from the same net.
    assert facts["recipe"]["learning_rate"] == (1e-3 if before and before[0] == one.net else 1e-2)


def test_a_trained_net_is_measured_without_training(twins, tmp_path, capsys):
    weights = twins / "ilsvrc_a_256" / "weights.safetensors"
    if not weights.is_file():
        assert run("ilsvrc_a_256", "--twin", "--out", twins) == 0
    capsys.readouterr()
    assert run("ilsvrc_a_256", "--twin", "--out", tmp_path, "--weights", weights) == 0
    assert "$ vggfeat train" not in capsys.readouterr().out
    results = json.loads((tmp_path / "ilsvrc_a_256-classified" / "table-3" / "results.json").read_text())
    assert results["posteriors"][0]["weights_sha256"] == load_backbone(weights).sha256
    assert run("ilsvrc_d_256", "--twin", "--out", tmp_path, "--weights", weights) == 2
    assert "expected weights of net D, found net A" in capsys.readouterr().err


# Together these have dense and multi-crop evaluation, both of them, and many nets.
SHORT_FUSED = {"ilsvrc_table5_d_both", "ilsvrc_table6_submission"}


@pytest.mark.parametrize(
    "one",
    [pytest.param(r, id=r.name, marks=() if r.name in SHORT_FUSED else pytest.mark.long) for r in tables_5_6.ROWS],
)
def test_the_twin_of_tables_5_and_6_runs(one, tmp_path, capsys):
    assert run(one.name, "--twin", "--out", tmp_path) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / one.name / "results.json").read_text())
    modes = ["dense", "multi-crop"] if one.mode == "both" else [one.mode]
    found = [(part["net"], part["trained_scale"], part["mode"]) for part in results["posteriors"]]
    wanted = [(net.net, [int(net.scale.split(":")[0]), int(net.scale.split(":")[-1])]) for net in one.nets]
    assert found == [(*net, mode) for net in wanted for mode in modes]
    assert sum(part["share"] * len(part["scales"]) for part in results["posteriors"]) == pytest.approx(1)
    assert not results["dataset"]["official"]
    assert f"not to be compared: these are not the paper's images, nets and scales; paper {one.top1} %" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("voc2007_de --weights one.safetensors", "--weights: expected one for each of D, E, found 1; or try --twin"),
        ("ilsvrc_d_256_512", "--root: expected the place of ilsvrc, found none"),
        ("ilsvrc_d_256_512 --root x", "run ilsvrc_d_384 first, or give the weights with --init-from"),
        ("ilsvrc_table6_de_both", "--root: expected the place of ilsvrc, found none"),
        ("ilsvrc_table6_de_both --root x", "run ilsvrc_d_256_512 first, or give the weights with --weights"),
        (
            "ilsvrc_table6_de_both --root x --weights D",
            "--weights: expected one for each of D (256:512), E (256:512), or none, found 1",
        ),
        ("voc2008", "No such command 'voc2008'"),
    ],
)
def test_what_is_missing_is_asked_for(words, message, tmp_path, capsys):
    name, *more = words.split()
    assert run(name, *([] if name == "voc2008" else ["--out", tmp_path]), *more) == 2
    assert message in capsys.readouterr().err


def test_a_number_that_is_far_from_the_papers_ends_with_1(capsys):
    steps.report_row("25.3 %", "24.8 % (Table 5)", comparable=True, within=True, spread=0.5)
    assert capsys.readouterr().out == "ours 25.3 %, paper 24.8 % (Table 5): within 0.5 points\n"
    with pytest.raises(SystemExit, match="1"):
        steps.report_row("25.4 %", "24.8 % (Table 5)", comparable=True, within=False, spread=0.5)
    assert "OUTSIDE 0.5 points" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_pipeline_with_one_line(number):
    script = """
import time, run

def work(**_):
    print("working", flush=True)
    [time.sleep(0.05) for _ in range(1200)]

run.group.main = work
run.entry_point()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "pipelines"), str(ROOT)])}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout.readline() == "working\n"
        running.send_signal(number)
        said = running.communicate(timeout=20)[1]
    assert running.returncode == 128 + number
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert said == f"vggfeat: stopped by {name}; what was finished is kept, and the same command resumes from there\n"


# The others are trained in the same way, one from the other.
SHORT_STAGES = tuple(one for one in small_net.STAGES if one.name in ("settled", "more_formulas", "settled_formulas"))


@pytest.mark.parametrize("stages", [SHORT_STAGES, pytest.param(small_net.STAGES, marks=pytest.mark.long)])
def test_the_twin_of_the_small_net_runs(stages, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(small_net, "STAGES", stages)
    assert run("small_net", "--twin", "--out", tmp_path) == 0
    out = capsys.readouterr().out
    weights, last, before = (
        tmp_path / name
        for name in ("small.safetensors", "settled_formulas/weights.safetensors", "more_formulas/weights.safetensors")
    )
    backbone, trained = load_backbone(weights), load_backbone(last)
    assert trained.facts["training"]["started_from"] == load_backbone(before).sha256
    assert backbone.classes == trained.classes
    scenes = load_backbone(tmp_path / "settled" / "float16.safetensors")
    for name in ("conv3_1", "fc7"):  # Float16 has 11 digits.
        one, other, between = (net.model.get_parameter(f"layers.{name}.weight") for net in (scenes, trained, backbone))
        assert torch.allclose(between, 0.25 * one + 0.75 * other, rtol=1e-3, atol=1e-6)
    kept, own = (net.model.get_parameter("layers.fc8.weight") for net in (backbone, trained))
    assert torch.allclose(kept, own, rtol=1e-3, atol=1e-6)
    assert backbone.mean == pytest.approx(0.25 * np.array(scenes.mean) + 0.75 * np.array(trained.mean))
    assert backbone.facts["training"] == trained.facts["training"]
    assert [stage["name"] for stage in backbone.facts["made_by"]["stages"]] == [one.name for one in stages]
    assert weights.stat().st_size < 0.6 * last.stat().st_size
    assert re.search(rf"^{weights}: mean average precision, 11-point [0-9.]+ %$", out, re.MULTILINE)
    assert re.search(r"^random:A:0:0.03125: mean average precision, 11-point [0-9.]+ %$", out, re.MULTILINE)
    assert re.search(r"^chance: [0-9.]+ %$", out, re.MULTILINE)
