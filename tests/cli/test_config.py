"""The whole tree of commands: one name for one thing; and `--config`, which replays the settings of a result."""

import inspect
import json
from collections import defaultdict

import click
import numpy as np
import pytest
from PIL import Image

from vggfeat.cli import group, run
from vggfeat.cli.config import SVM
from vggfeat.runtime.checksums import sealed
from vggfeat.store.reader import FeatureFile

PLAIN = {
    "as_json": ("--json", "Print"),
    "quiet": ("--quiet", "Show no progress."),
    "overwrite": ("--overwrite", "Replace"),
}
TWO_MEANINGS = {
    "--channels": "those of an image are rgb or bgr, those of features a count",
    "--extend": "plan is given the run that it extends, extract has --out for its file",
    "--out": "that of plan may be an address",
    "--root": "that of plan, and of extract --plan, may be an address",
    "--scale": "train draws S from a range, nets for boxes have one",
}


def leaves(command=group, path=()):
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


COMMANDS = dict(leaves())


def options(command):
    return [param for param in command.params if isinstance(param, click.Option)]


def kind(option):
    """What a value of an option is: a flag, a path, a number, numbers or words."""
    if option.is_flag:
        return "flag"
    if isinstance(option.type, click.Path):
        return "path"
    if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType):
        return "number"
    return "numbers" if option.type.name.startswith("N") else "words"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_flags_are_called_alike(name):
    named = {option.name: option for option in options(COMMANDS[name])}
    assert "as_json" in named
    for param, (flag, words) in PLAIN.items():
        if param in named:
            assert named[param].opts == [flag]
            assert named[param].is_flag
            assert named[param].help.startswith(words)
    for option in named.values():
        assert option.help or isinstance(option.type, click.Choice) or name.startswith("bench"), option.opts


@pytest.mark.parametrize("name", COMMANDS)
def test_whoever_shows_progress_can_be_quiet(name):
    source = inspect.getsource(inspect.unwrap(COMMANDS[name].callback))
    if "Progress(" in source or "options.progress(" in source:
        assert "--quiet" in [flag for option in options(COMMANDS[name]) for flag in option.opts]


def test_an_option_takes_the_same_kind_of_value_in_every_command():
    found = defaultdict(lambda: defaultdict(list))
    for name, command in COMMANDS.items():
        for option in options(command):
            for flag in option.opts:
                found[flag][kind(option)].append(name)
    assert {flag: dict(kinds) for flag, kinds in found.items() if len(kinds) > 1 and flag not in TWO_MEANINGS} == {}


# --- --config


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("config")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "photos" / name).mkdir(parents=True)
        for k in range(6):
            pixels = rng.integers(0, 128, (40, 40, 3)) + 127 * (name == "cat")
            Image.fromarray(pixels.astype(np.uint8)).save(root / "photos" / name / f"{k}.png")
    words = ["--dataset", "folder", "--root", root / "photos", "--weights", "small", "--scales", "224,240"]
    words += ["--layer", "pool5", "--allow-truncated", "--device", "cpu", "--workers", "0", "--quiet"]
    assert run(list(map(str, ["extract", *words, "--out", root / "first.h5"]))) == 0
    return root


def extract(photos, out, *words):
    given = ["extract", "--root", photos / "photos", "--device", "cpu", "--workers", "0", "--quiet", "--out", out]
    return run([*map(str, given), *map(str, words)])


def test_an_extraction_is_repeated_by_its_file_and_options_win(photos, tmp_path):
    assert extract(photos, tmp_path / "again.h5", "--config", photos / "first.h5") == 0
    assert (tmp_path / "again.h5").read_bytes() == (photos / "first.h5").read_bytes()
    assert extract(photos, tmp_path / "other.h5", "--scales", "232", "--config", photos / "first.h5") == 0
    with FeatureFile(tmp_path / "other.h5") as other:
        assert other.scales == (232,)
        assert other.provenance["layer"] == "pool5"
        assert other.provenance["decode"]["allow_truncated"]


def test_an_svm_is_repeated_by_its_results(photos, tmp_path, capsys):
    words = ["svm", str(photos / "first.h5"), "--grid", "0.5,2", "--folds", "3", "--join", "stack", "--seed", "7"]
    words += ["--difficult-training", "negative", "--normalisation", "whole", "--quiet"]
    assert run([*words, "--out", str(tmp_path / "a")]) == 0
    for place in (tmp_path / "a", tmp_path / "a" / "results.json"):
        out = tmp_path / f"again-{place.name}"
        assert run(["svm", str(photos / "first.h5"), "--config", str(place), "--out", str(out), "--quiet"]) == 0
        first, second = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "a", out))
        assert second["settings"] == first["settings"]
        assert second["headline"] == first["headline"]
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    results["settings"]["protocol"]["svm"] |= {"jobs": 2, "device": "cuda:7"}
    (tmp_path / "elsewhere.json").write_text(json.dumps(results))
    found = SVM.options(tmp_path / "elsewhere.json", {param.name for param in COMMANDS["svm"].params})
    assert (found["seed"], found["folds"], found["solver"]) == (7, 3, "newton")
    assert not {"jobs", "device"} & found.keys()  # of the machine
    words = ["svm", str(photos / "first.h5"), "--config", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--quiet"]
    assert run([*words, "--seed", "8"]) == 0
    settings = json.loads((tmp_path / "b" / "results.json").read_text())["settings"]["protocol"]
    assert (settings["seed"], settings["folds"]) == (8, 3)


def test_an_svm_on_descriptors_of_another_program_is_repeated(photos, tmp_path):
    assert run(["export", str(photos / "first.h5"), "--to", "npz", "--out", str(tmp_path / "x.npz")]) == 0
    words = ["svm", "--descriptors", str(tmp_path / "x.npz"), "--dataset", "folder", "--root", str(photos / "photos")]
    assert run([*words, "--folds", "3", "--quiet", "--out", str(tmp_path / "a")]) == 0
    assert run([*words, "--config", str(tmp_path / "a"), "--quiet", "--out", str(tmp_path / "b")]) == 0
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert second["settings"] == first["settings"]


def test_a_setting_without_an_option_and_a_file_of_another_command_are_refused(photos, tmp_path, capsys):
    out = tmp_path / "a"
    words = ["svm", str(photos / "first.h5"), "--quiet", "--out", str(out), "--folds", "2"]
    assert run(words) == 0
    results = json.loads((out / "results.json").read_text())
    results["settings"]["protocol"]["held_out"] = 0.5
    (tmp_path / "changed.json").write_text(json.dumps(results))
    (tmp_path / "broken.json").write_text(json.dumps({"format": "vggfeat-results"}))
    capsys.readouterr()
    for file, said in (
        ("changed.json", "has options for, found protocol.held_out = 0.5"),
        ("broken.json", "expected settings as vggfeat writes them, found others"),
        ("none.json", "expected a result to take settings from"),
    ):
        assert run([*words, "--config", str(tmp_path / file)]) == 2
        assert said in capsys.readouterr().err
    assert run([*words, "--config", str(photos / "first.h5")]) == 2
    assert "expected a result of `vggfeat svm`, found features" in capsys.readouterr().err
    assert extract(photos, tmp_path / "x.h5", "--config", out) == 2
    assert "expected a result of `vggfeat extract`, found vggfeat-results" in capsys.readouterr().err


def test_settings_that_were_changed_and_texts_without_end_are_refused(photos, tmp_path, monkeypatch, capsys):
    words = ["train", "--root", str(photos / "photos"), "--device", "cpu", "--workers", "0", "--quiet", "--net", "A"]
    assert run([*words, "--width", "0.03125", "--batch", "4", "--steps", "1", "--out", str(tmp_path / "a")]) == 0
    settings = json.loads((tmp_path / "a" / "run.json").read_text())
    plain = {name: value for name, value in settings.items() if name != "checksum"}
    (tmp_path / "boxes.json").write_text(json.dumps(sealed({**plain, "localisation": {"kind": "pcr"}})))
    assert run([*words, "--config", str(tmp_path / "boxes.json"), "--out", str(tmp_path / "b")]) == 2
    assert "expected a result of `vggfeat train`, found vggfeat-box-training" in capsys.readouterr().err
    settings["recipe"]["momentum"] = 0.5
    (tmp_path / "changed.json").write_text(json.dumps(settings))
    capsys.readouterr()
    assert run([*words, "--config", str(tmp_path / "changed.json"), "--out", str(tmp_path / "b")]) == 6
    assert "changed.json: expected settings that fit their checksum, found others" in capsys.readouterr().err
    monkeypatch.setattr("vggfeat.cli.config.MOST_BYTES", 100)
    assert run([*words, "--config", str(tmp_path / "a"), "--out", str(tmp_path / "b")]) == 6
    assert "run.json: expected at most 100 bytes" in capsys.readouterr().err
    # Of a feature file, only its settings come into memory.
    assert extract(photos, tmp_path / "again.h5", "--config", photos / "first.h5") == 0


def test_random_weights_must_be_named_again(photos, tmp_path, capsys):
    net = "random:A:0:0.03125"
    words = ["--dataset", "folder", "--scales", "224", "--weights", net]
    assert extract(photos, tmp_path / "a.h5", *words) == 0
    assert extract(photos, tmp_path / "b.h5", "--config", tmp_path / "a.h5") == 5
    assert f"expected the weights that it was made with, {net}" in capsys.readouterr().err
    assert extract(photos, tmp_path / "b.h5", "--config", tmp_path / "a.h5", "--weights", net) == 0
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_training_is_repeated_by_its_run(photos, tmp_path):
    words = ["train", "--root", str(photos / "photos"), "--device", "cpu", "--workers", "0", "--quiet"]
    own = ["--net", "A", "--width", "0.03125", "--batch", "4", "--drops", "1", "--lr", "0.02", "--full-decode"]
    assert run([*words, *own, "--steps", "2", "--out", str(tmp_path / "a")]) == 0
    assert run([*words, "--config", str(tmp_path / "a"), "--steps", "2", "--out", str(tmp_path / "b")]) == 0
    first, second = (json.loads((tmp_path / name / "run.json").read_text()) for name in "ab")
    assert first["recipe"] == second["recipe"]
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()


def test_images_that_nobody_rendered_are_no_matter_for_the_net_of_the_package(photos, tmp_path, capsys):
    words = ["--dataset", "folder", "--weights", "small", "--scales", "224"]
    assert extract(photos, tmp_path / "a.h5", *words) == 0
    assert capsys.readouterr().err.count("vggfeat weights fetch vgg16-caffe") == 1
    (photos / "photos" / "RENDERED.txt").write_text("rendered")
    try:
        assert extract(photos, tmp_path / "b.h5", *words) == 0
    finally:
        (photos / "photos" / "RENDERED.txt").unlink()
    said = capsys.readouterr().err
    assert "fetch" not in said
    assert "note: The images are rendered, not photographed" in said
    with FeatureFile(tmp_path / "b.h5") as marked, FeatureFile(tmp_path / "a.h5") as plain:
        assert marked.provenance["images"] == "rendered"
        assert "images" not in plain.provenance
