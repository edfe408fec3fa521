"""`vggfeat train` and `data pack` as a user meets them; the training itself is tested elsewhere."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vggfeat import synthetic
from vggfeat.cli import run
from vggfeat.cli.signals import signals_as_flag
from vggfeat.nets.vgg import VGG
from vggfeat.weights import load_backbone, save_weights

SMALL = ["--width", "0.03125", "--batch", "8", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ilsvrc")
    size = synthetic.Settings(image_side=64, classes=3, train=8, val=6, test=1)
    synthetic.write("ilsvrc", root, size=size)
    return root


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "A"
    assert run(train(images, out, "--steps", 2, "--quiet")) == 0
    return out


def train(root, out, *more, net="A"):
    return [str(word) for word in ("train", "--root", root, "--net", net, "--out", out, *SMALL, *more)]


def lines_of(text):
    return [line for line in text.splitlines() if not line.startswith(("note:", "train "))]


def test_a_run_ends_with_a_summary_that_leads_on(images, tmp_path, capsys):
    out = tmp_path / "with blank"
    assert run(train(images, out, "--steps", 2)) == 0
    captured = capsys.readouterr()
    assert "note: 24 images to train on, 6 to validate, 3 classes: " in captured.err
    assert "train A: 2 of 2 steps" in captured.err
    assert f"{out}: 2 steps, in " in captured.out
    assert re.search(
        r"^centre crops of 6 validation images, step 2: top-1 error [0-9.]+ %$", captured.out, re.MULTILINE
    )
    command = captured.out.splitlines()[-1]
    assert command.startswith("  vggfeat extract ")
    assert f"--weights '{out / 'weights.safetensors'}'" in command
    features = ["--dataset", "folder", "--root", images / "ILSVRC/Data/CLS-LOC/val", "--scales", 224, "--workers", 0]
    extract = ["extract", *features, "--weights", out / "weights.safetensors", "--out", tmp_path / "x.h5"]
    assert run([str(word) for word in extract]) == 0
    assert "6 of 6 images" in capsys.readouterr().out


def test_weights_say_where_they_come_from(trained, images):
    backbone = load_backbone(trained / "weights.safetensors")
    told = backbone.facts["training"]
    assert backbone.trained
    assert backbone.classes == tuple(sorted(path.name for path in (images / "ILSVRC/Data/CLS-LOC/train").iterdir()))
    assert told["recipe"]["net"] == "A"
    assert told["step"] == 2
    assert told["images"] == 24
    assert told["validation"]["images"] == 6
    assert backbone.mean != (123.68, 116.779, 103.939)


def test_the_summary_as_json(images, trained, capsys):
    assert run(train(images, trained, "--steps", 2, "--resume", "--json", "--quiet")) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert captured.err == ""
    assert (told["step"], told["resumed"]) == (2, 2)
    assert told["weights"] == str(trained / "weights.safetensors")
    assert 0 <= told["validation"]["top1_error"] <= 1
    assert told["validation"]["top5_error"] is None  # of three classes


def test_every_option_reaches_the_recipe(images, tmp_path):
    given = {
        "--batch": 7, "--lr": 0.02, "--initialisation": "normal", "--normal-std": 0.01, "--dropout": 0.25,
        "--momentum": 0.8, "--weight-decay": 1e-4, "--colour-shift": 0.2, "--drops": 1, "--patience": 2,
        "--validate-every": 9, "--seed": 5, "--pool": "ceil", "--scale": "230:300",
    }  # fmt: skip
    words = [word for pair in given.items() for word in pair]
    assert run(train(images, tmp_path / "x", "--steps", 1, "--full-decode", "--quiet", *words)) == 0
    recipe = json.loads((tmp_path / "x" / "run.json").read_text())["recipe"]
    names = {"--lr": "learning_rate"}
    for option, value in given.items():
        expected = [230, 300] if option == "--scale" else value
        assert recipe[names.get(option, option[2:].replace("-", "_"))] == expected, option
    assert recipe["reduced"] is False


def test_deeper_nets_start_from_net_a(images, trained, tmp_path):
    start = trained / "weights.safetensors"
    assert (
        run(train(images, tmp_path / "B", "--steps", 1, "--lr", 1e-30, "--init-from", start, "--quiet", net="B")) == 0
    )
    ours, theirs = load_backbone(tmp_path / "B" / "weights.safetensors"), load_backbone(start)
    same = {
        name
        for name, layer in ours.model.layers.items()
        if name in theirs.model.layers and torch.equal(layer.weight, theirs.model.layers[name].weight)
    }
    # Sect. 3.1, by block: four convolutions and the fully connected layers; at such a learning rate nothing moves.
    assert same == {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--steps", "1", "--out", "{trained}"], 8, "--resume goes on"),
        (
            ["--steps", "9", "--lr", "0.5", "--out", "{trained}", "--resume"],
            8,
            "learning_rate: expected 0.5, found 0.01",
        ),
        (["--scale", "200"], 2, "scale: expected 224"),
        (["--scale", "big"], 2, "expected a side in pixels, or lowest:highest, found 'big'"),
        (["--scale", "512:256"], 2, "scale"),
        (["--device", "tpu"], 2, "device: expected cpu or a CUDA device"),
        (["--init-from", "none"], 5, "none: found neither as a file"),
        (["--init-from", "{narrow}", "--width", "0.0625"], 2, "width: expected 0.0625"),
        (["--init-from", "{deep}"], 2, "expected weights of net A"),
        (["--root", "nowhere"], 4, "nowhere: expected a folder"),
        (["--root", "{empty}"], 4, "found none"),
        (["--root", "{single}"], 4, "expected at least 2 classes, found only one"),
        (["--root", "{lopsided}"], 4, "found only in train: b"),
        (["--out", "{file}/x", "--steps", "1"], 6, "File exists"),
    ],
)
def test_mistakes_give_one_line_and_a_code(words, code, said, images, trained, tmp_path, monkeypatch, capsys):
    places = {"{trained}": trained, "{narrow}": trained / "weights.safetensors"}
    for name in ("empty", "single/one", "lopsided/train/a", "lopsided/train/b", "lopsided/val/a"):
        (tmp_path / name).mkdir(parents=True)
        if "/" in name:
            for number in range(2):
                (tmp_path / name / f"{number}.jpg").write_bytes(b"never opened")
    places |= {f"{{{name}}}": tmp_path / name for name in ("empty", "single", "lopsided", "file")}
    (tmp_path / "file").write_bytes(b"")
    if "{deep}" in words:
        places["{deep}"] = tmp_path / "deep.safetensors"
        save_weights(places["{deep}"], VGG("D", 3, width=1 / 32), mean=(1, 2, 3))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    given = [str(places.get(word, word)).replace("{file}", str(tmp_path / "file")) for word in words]
    assert run([*train(images, tmp_path / "new", "--quiet"), *given]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(lines_of(captured.err)) <= (4 if captured.err.startswith("Usage") else 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_unreadable_images_are_left_out_and_named(images, tmp_path, capsys):
    root = tmp_path / "own"
    for number, image in enumerate(sorted(images.rglob("train/*/*.JPEG"))):
        target = root / ("ab"[number % 2]) / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes() if number else b"no image")
    assert run(train(root, tmp_path / "x", "--steps", 3)) == 0
    captured = capsys.readouterr()
    assert "left out: a/" in captured.out
    assert "unrecognised" in captured.out
    listed = [json.loads(line) for line in (tmp_path / "x" / "unreadable.jsonl").read_text().splitlines()]
    assert [line["path"].partition("/")[0] for line in listed] == ["a"]


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGTERM, 143)]
)
def test_signals_save_first_and_the_run_goes_on(images, tmp_path, number, code):
    words = train(images, tmp_path / "x", "--log-every", 1)
    running = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", *words, "--steps", "100000"], stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "x" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_bytes().count(b'"train"') >= 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(number)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == code
    newest = max((tmp_path / "x" / "checkpoints").glob("*.safetensors"))
    step = int(newest.stem.partition("-")[2])
    assert f"the checkpoint of step {step} is kept, and the same command with --resume resumes from there" in said
    assert "Traceback" not in said
    assert not (tmp_path / "x" / "weights.safetensors").exists()
    assert step >= 2
    assert run([*words, "--steps", str(step + 1), "--resume", "--quiet"]) == 0
    assert load_backbone(tmp_path / "x" / "weights.safetensors").facts["training"]["step"] == step + 1


def test_a_signal_before_the_first_checkpoint_does_not_speak_of_one(images, tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / "run.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("vggfeat.training.train.train", stopped)
    assert run(train(images, tmp_path / "x")) == 130
    said = capsys.readouterr().err
    assert "no checkpoint was made yet; the same command with --resume begins at step 0 again" in said
    assert "is kept" not in said


@pytest.mark.long
def test_under_torchrun_one_process_speaks(images, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = train(images, tmp_path / "x", "--steps", 2)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "-m", "vggfeat", *words], capture_output=True, text=True, timeout=120, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": 2 steps, in ") == 1
    assert done.stderr.count("images to train on") == 1
    told = load_backbone(tmp_path / "x" / "weights.safetensors").facts["training"]
    assert told["validation"]["images"] == 6


def test_a_packed_copy_is_trained_on_like_the_original(images, tmp_path, capsys):
    words = ["data", "pack", "--root", images, "--out", tmp_path / "pack", "--side", 48, "--workers", 0, "--quiet"]
    assert run([str(word) for word in words]) == 0
    assert f"{tmp_path / 'pack'}: 30 images, " in capsys.readouterr().out
    assert run(train(tmp_path / "pack", tmp_path / "x", "--steps", 1)) == 0
    assert (
        "24 images to train on, 6 to validate, 3 classes: packed, smallest side at most 48" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, ZeroDivisionError)]
)
def test_a_signal_becomes_a_flag_and_is_raised_again_at_the_end(number, raised):
    def terminate(number, frame):
        raise ZeroDivisionError

    before = signal.signal(signal.SIGTERM, terminate)
    reached = []
    try:
        with pytest.raises(raised), signals_as_flag() as stop:  # noqa: PT012
            assert not stop()
            signal.raise_signal(number)
            reached.append(stop())
        assert reached == [True]
        with pytest.raises(raised), signals_as_flag():  # noqa: PT012
            signal.raise_signal(number)
            signal.raise_signal(number)  # The second takes effect at once.
            reached.append("too late")
        assert reached == [True]
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_as_flag() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
