"""`vggfeat classify` end to end on rendered images: files, exit codes, fusion from files, interruption."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vggfeat.classification.evaluate import fuse
from vggfeat.cli import features, run
from vggfeat.datasets import ilsvrc
from vggfeat.forward.runner import BatchRunner
from vggfeat.nets.families import initialise
from vggfeat.nets.vgg import VGG
from vggfeat.store.reader import FeatureFile
from vggfeat.synthetic import Settings, write
from vggfeat.weights import save_weights

IMAGES = Settings(image_side=96, classes=6, train=2, val=7)
FEW = ("--device", "cpu", "--workers", "0", "--quiet")


def save_net(path, classes, *, net="A", seed=0, scale=None):
    model = VGG(net, len(classes), width=1 / 32)
    initialise(model, torch.Generator().manual_seed(seed))
    told = {} if scale is None else {"training": {"recipe": {"scale": scale}}}
    save_weights(path, model, mean=(120, 110, 100), classes=classes, **told)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Images, three nets, and a run of the first."""
    folder = tmp_path_factory.mktemp("classify")
    write("ilsvrc", folder / "data", seed=0, size=IMAGES)
    classes = ilsvrc.read(folder / "data").classes
    save_net(folder / "one.safetensors", classes[::-1])
    save_net(folder / "two.safetensors", classes, net="B", seed=1)
    save_net(folder / "other.safetensors", [*classes[:-1], "n00000000"])
    words = ["--weights", str(folder / "one.safetensors"), "--root", str(folder / "data"), "--scales", "224,240"]
    assert run(["classify", *words, "--out", str(folder / "one"), *FEW]) == 0
    return folder


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def posteriors_in(folder):
    return sorted(folder.glob("*.h5"))


def test_a_run_leaves_posteriors_and_results(made):
    folder = made / "one"
    (file,) = posteriors_in(folder)
    results = results_of(folder)
    names = {"results.json", "table.txt", "classes.csv", "confusions.csv", "run.sha256", file.name}
    assert {path.name for path in folder.iterdir()} == names
    assert (results["format"], results["version"]) == ("vggfeat-classification", 1)
    assert results["dataset"]["images"] == 7
    assert results["dataset"]["classes"] == 6
    assert not results["dataset"]["official"]
    assert results["paper"] == []
    assert results["chance"] == {"top1_error": pytest.approx(5 / 6), "top5_error": pytest.approx(1 / 6)}
    (part,) = results["posteriors"]
    assert (part["file"], part["net"], part["mode"], part["scales"]) == (file.name, "A", "dense", [224, 240])
    assert (part["softmax"], part["class_order"], part["share"]) == ("after", "by name", 0.5)
    (pace,) = results["throughput"]
    assert pace["images"] == 7
    assert pace["images_per_second"] == pytest.approx(7 / pace["seconds"])
    said = f"A dense at Q = 224, 240 (chance {100 * 5 / 6:.1f} % and {100 / 6:.1f} %)"
    assert said in results["headline"]
    assert results["headline"] in (folder / "table.txt").read_text()


def test_the_errors_are_those_of_the_posteriors(made):
    results, (file,) = results_of(made / "one"), posteriors_in(made / "one")
    with FeatureFile(file) as opened:
        values, data = opened.read()[:, :, 0].mean(axis=1), opened.dataset
    targets = np.argmax(data.labels, axis=1)
    ranks = (values > values[np.arange(7), targets][:, None]).sum(axis=1)
    assert results["top1_error"] == (ranks >= 1).mean()
    assert results["top5_error"] == (ranks >= 5).mean()
    with open(made / "one" / "classes.csv", newline="") as text:
        rows = list(csv.DictReader(text))
    assert [row["class"] for row in rows] == list(data.classes)
    for k, row in enumerate(rows):
        assert float(row["top1_error"]) == (ranks[targets == k] >= 1).mean()
        assert int(row["images"]) == (targets == k).sum()
        assert row["words"]
    with open(made / "one" / "confusions.csv", newline="") as text:
        pairs = list(csv.DictReader(text))
    assert sum(int(pair["images"]) for pair in pairs) == (ranks >= 1).sum()


def test_both_modes_are_repeated_by_their_results(made, tmp_path):
    words = ["--weights", str(made / "one.safetensors"), "--root", str(made / "data")]
    own = ["--mode", "both", "--scales", "224", "--softmax", "before"]
    assert run(["classify", *words, *own, "--out", str(tmp_path / "a"), *FEW]) == 0
    assert run(["classify", *words, "--config", str(tmp_path / "a"), "--out", str(tmp_path / "b"), *FEW]) == 0
    first, second = (results_of(tmp_path / name)["posteriors"] for name in "ab")
    assert first == second
    assert [part["softmax"] for part in second] == ["before", None]


def test_a_second_run_computes_nothing(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(BatchRunner, "launch", None)
    words = ["--weights", str(made / "one.safetensors"), "--root", str(made / "data"), "--scales", "224,240"]
    before = results_of(made / "one")
    assert run(["classify", *words, "--out", str(made / "one"), *FEW]) == 0
    assert "saved by an earlier run" in capsys.readouterr().out
    assert results_of(made / "one")["throughput"][0]["images_per_second"] is None
    assert results_of(made / "one")["top1_error"] == before["top1_error"]


def test_saved_posteriors_are_fused_without_a_net(made, tmp_path, capsys, monkeypatch):
    words = ["--weights", str(made / "two.safetensors"), "--root", str(made / "data"), "--scales", "224,240"]
    both = ["--weights", str(made / "one.safetensors"), *words]
    assert run(["classify", *words, "--out", str(tmp_path / "two"), *FEW]) == 0
    assert run(["classify", *both, "--out", str(tmp_path / "at-once"), *FEW]) == 0
    monkeypatch.setattr(BatchRunner, "__init__", None)
    files = [*posteriors_in(made / "one"), *posteriors_in(tmp_path / "two")]
    words = [word for file in files for word in ("--posteriors", str(file))]
    assert run(["classify", *words, "--out", str(tmp_path / "fused")]) == 0
    assert capsys.readouterr().out.endswith(f"as a page: vggfeat report {tmp_path / 'fused'}\n")
    assert run(["classify", *words, "--out", str(tmp_path / "fused"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == results_of(tmp_path / "fused")
    assert printed["throughput"] == []
    at_once = results_of(tmp_path / "at-once")
    for name in ("top1_error", "top5_error", "classes", "confusions", "headline", "posteriors"):
        assert printed[name] == at_once[name]
    assert "A dense at Q = 224, 240 + B dense at Q = 224, 240" in printed["headline"]


def test_one_scale_of_saved_posteriors_is_what_it_is_alone(made, tmp_path):
    (file,) = posteriors_in(made / "one")
    assert run(["classify", "--posteriors", str(file), "--scales", "240", "--out", str(tmp_path / "a"), *FEW]) == 0
    words = ["--weights", str(made / "one.safetensors"), "--root", str(made / "data"), "--scales", "240"]
    assert run(["classify", *words, "--out", str(tmp_path / "b"), *FEW]) == 0
    one, other = results_of(tmp_path / "a"), results_of(tmp_path / "b")
    assert one["posteriors"][0]["scales"] == other["posteriors"][0]["scales"] == [240]
    assert one["top1_error"] == other["top1_error"]
    (alone,) = posteriors_in(tmp_path / "b")
    np.testing.assert_allclose(fuse(file, scales=(240,)).posteriors, fuse(alone).posteriors, rtol=1e-3, atol=1e-6)


def test_both_is_the_average_of_dense_and_multi_crop(made, tmp_path):
    words = ["--weights", str(made / "one.safetensors"), "--root", str(made / "data"), "--scales", "224"]
    assert run(["classify", *words, "--mode", "both", "--out", str(tmp_path), *FEW]) == 0
    dense, crops = posteriors_in(tmp_path)
    assert (dense.name[-9:], crops.name[-14:]) == ("-dense.h5", "-multi-crop.h5")
    average = (fuse(dense).posteriors + fuse(crops).posteriors) / 2
    np.testing.assert_allclose(fuse([dense, crops]).posteriors, average, rtol=1e-6)
    assert "A dense & multi-crop at Q = 224" in results_of(tmp_path)["headline"]


def test_scales_come_from_the_weights(made, tmp_path):
    classes = ilsvrc.read(made / "data").classes
    save_net(tmp_path / "x.safetensors", classes, scale=[256, 512])
    words = ["--weights", str(tmp_path / "x.safetensors"), "--root", str(made / "data"), "--mode", "crop"]
    assert run(["classify", *words, "--out", str(tmp_path / "x"), *FEW]) == 0
    (part,) = results_of(tmp_path / "x")["posteriors"]
    assert (part["scales"], part["trained_scale"]) == ([384], [256, 512])
    assert "A (S = [256;512]) crop at Q = 384" in results_of(tmp_path / "x")["headline"]


def test_other_classes_end_the_run_before_it_begins(made, tmp_path, capsys):
    words = ["--weights", str(made / "one.safetensors"), "--weights", str(made / "other.safetensors")]
    assert run(["classify", *words, "--root", str(made / "data"), "--out", str(tmp_path), *FEW]) == 2
    err = capsys.readouterr().err
    assert "expected the 6 classes of the data, found 6: " in err
    assert "n00000000 only in the net" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--weights: expected a net with --root, or --posteriors, found neither"),
        (["--weights", "small"], "--weights: expected --weights and --root together"),
        (["--root", "x", "--posteriors", "y.h5"], "--root: expected --weights and --root together"),
        (["--posteriors", "y.h5", "--retry-failed"], "--retry-failed: expected where a net is run, found --posteriors"),
        (["--posteriors", "y.h5", "--mode", "crop"], "--mode: expected where a net is run, found --posteriors alone"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, said, capsys):
    assert run(["classify", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_same_net_twice_is_refused(made, tmp_path, capsys):
    words = ["--weights", str(made / "one.safetensors")] * 2
    assert run(["classify", *words, "--root", str(made / "data"), "--scales", "224", "--out", str(tmp_path), *FEW]) == 2
    assert "expected each net once" in capsys.readouterr().err


def test_failed_images_are_named_counted_and_decide_the_exit_code(made, tmp_path, capsys):
    write("ilsvrc", tmp_path / "data", seed=0, size=IMAGES)
    (bad,) = (tmp_path / "data").rglob("ILSVRC2012_val_00000003.JPEG")
    good = bad.read_bytes()
    bad.write_bytes(b"not an image")
    words = ["--weights", str(made / "one.safetensors"), "--root", str(tmp_path / "data"), "--scales", "224,240"]
    assert run(["classify", *words, "--out", str(tmp_path / "x"), *FEW]) == 3
    told = capsys.readouterr().out
    assert "failed: ILSVRC2012_val_00000003: unrecognised" in told
    assert "failed: to try them again, give the same command with --retry-failed\n" in told
    results = results_of(tmp_path / "x")
    assert [row["id"] for row in results["failed"]] == ["ILSVRC2012_val_00000003"]
    assert results["dataset"]["images"] == 7
    assert sum(row["failed"] for row in results["classes"]) == 1
    assert results["top5_error"] >= 1 / 7
    assert run(["classify", *words, "--out", str(tmp_path / "x"), "--allow-failed", "1", *FEW]) == 0
    bad.write_bytes(good)
    assert run(["classify", *words, "--out", str(tmp_path / "x"), "--retry-failed", *FEW]) == 0
    (found,), (expected,) = posteriors_in(tmp_path / "x"), posteriors_in(made / "one")
    assert found.read_bytes() == expected.read_bytes()
    assert not list((tmp_path / "x").glob("*.failures.jsonl"))


def test_inspect_cuts_long_values_short_and_says_so(made, capsys, monkeypatch):
    monkeypatch.setattr(features, "LONGEST", 30)
    (file,) = posteriors_in(made / "one")
    assert run(["inspect", str(file)]) == 0
    (words,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == "words"]
    assert len(words) < 100
    assert words.endswith("characters; --json has all)")


def test_fusing_loads_no_pytorch(made, tmp_path):
    (file,) = posteriors_in(made / "one")
    code = (
        "import sys; from vggfeat.cli import run; "
        f"code = run(['classify', '--posteriors', {str(file)!r}, '--out', {str(tmp_path)!r}]); "
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(made, tmp_path):
    words = ["--weights", str(made / "one.safetensors"), "--root", str(made / "data"), "--scales", "224,240"]
    words += ["--mode", "multi-crop", "--shard-rows", "2", *FEW]
    command = [sys.executable, "-m", "vggfeat", "classify", *words, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=300)
    process = subprocess.Popen([*command, str(tmp_path / "x")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "x").glob("*.parts/s*.h5")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not posteriors_in(tmp_path / "x")
    subprocess.run([*command, str(tmp_path / "x")], check=True, capture_output=True, timeout=300)
    (one,), (other,) = posteriors_in(tmp_path / "whole"), posteriors_in(tmp_path / "x")
    assert one.read_bytes() == other.read_bytes()
    assert results_of(tmp_path / "x")["throughput"][0]["images"] < 7
