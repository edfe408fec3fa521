"""One rule for every output of every command: nothing is replaced that is not the command's own, and no input ever.

The commands are those of the command tree: a new one fails here until it says what it writes.
"""

import os
import shutil
import stat
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from feature_files import data_set, write_file
from vggfeat.cli import group, run
from vggfeat.datasets.catalogue import open_dataset
from vggfeat.extract_plan import ShardWorker, make_plan
from vggfeat.forward.features import ExtractionSettings
from vggfeat.listing import listing_of
from vggfeat.runtime.storage import open_storage
from vggfeat.weights import random_backbone, save_weights
from vggfeat.weights.sources import PUBLISHED

NET = "random:A:0:0.03125"
FETCHED = PUBLISHED["vgg16-caffe"].file

# Command -> its words, in which {out} is the output; what it writes into {out}, or "" where that is a file; its input.
WRITES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "extract": ("--dataset folder --root {images} --weights {net} --scales 224 --device cpu --workers 0 --out {out}",
                ("",), "net"),
    "plan": ("--dataset folder --root {images} --weights {net} --scales 224 --out {out}", ("plan.json",), "net"),
    "merge": ("{run} --out {out}", ("",), ""),
    "export": ("{features} --to npz --out {out}", ("",), "features"),
    "weights convert": ("{net} {out}", ("",), "net"),
    "weights export": ("{net} --to torchvision --out {out}", ("",), "net"),
    "report": ("{results} --out {out}", ("",), ""),
    "audit": ("{features} --out {out}", ("",), "features"),
    "explain": ("{images}/0.png --model {net} --weights {net} --out {out}", ("",), "net"),
    "map": ("{features} --out {out}", ("",), "features"),
    "similar": ("{features} --query a --out {out}", ("",), "features"),
    "svm": ("{features} --out {out}", ("results.json", "table.txt", "scores.npz", "results.png", "model.safetensors",
                                       "learning-curve.png",
                                       "model-split-1.safetensors", "results-voc2012-test.tar.gz"), "features"),
    "svm --apply": ("{features} --apply {net} --out {out}", ("predictions.csv", "predictions.json", "scores.npz"),
                    "features"),
    "predict": ("{images}/0.png --model {results} --out {out}", ("",), ""),
    "classify": ("--weights {net} --root {images} --posteriors {features} --out {out}",
                 ("results.json", "table.txt", "classes.csv", "confusions.csv"),
                 "features"),
    "localise evaluate": ("--root {images} --boxes {net} --posteriors {features} --out {out}",
                          ("results.json", "table.txt", "classes.csv", "submission.txt", "images.jsonl",
                           "images.jsonl.failures.jsonl"), "features"),
    "localise predict": ("{images}/0.png --boxes {net} --classifier {net} --out {out}",
                         ("predictions.json", "predictions.csv", "0.png.boxes.png"), "net"),
    "train": ("--root {images} --net A --init-from {net} --out {out}",
              ("run.json", "log.jsonl", "curves.png", "weights.safetensors", "statistics-0.json"), "net"),
    "localise train": ("--root {images} --weights {net} --out {out}", ("run.json", "weights.safetensors"), "net"),
    "weights fetch": ("vgg16-caffe --out {out}", (FETCHED, f"{FETCHED}.part", f"{FETCHED}.part.json"), ""),
    "data splits": ("manifest --root {list} --out {out}", ("train.txt", "test.txt"), "list"),
    "bench gpu": ("--device cpu --tiny --out {out}", ("gpu.begun", "gpu.json", "gpu.jsonl", "gpu.txt"), ""),
    "data synth": ("caltech101 --size tiny --root {out}", ("RENDERED.txt",), ""),
    "data pack": ("--root {images} --out {out}", ("index.json", "packing.json", "train.npz"), ""),
}  # fmt: skip
READS = {
    "inspect", "probe", "localise check", "weights list", "weights push", "weights show", "weights verify",
    "data list", "data check", "bench scale", "bench svm", "bench extract", "bench roofline", "bench train",
}  # fmt: skip
THROUGH_OTHERS = {
    "demo": "its steps are the commands data synth, extract, svm and report",
    "reproduce": "so are those of the pipelines",
}
JUDGED_BY_CONTENT = {"train", "localise train", "data synth", "data pack"}
"""What a file in their folder means, their own tests say."""
CASES = [(command, name) for command, (_, names, _) in WRITES.items() for name in names]


def commands(one: click.Command, words: tuple[str, ...] = ()) -> dict[str, click.Command]:
    if not isinstance(one, click.Group):
        return {" ".join(words): one}
    return {path: leaf for name, sub in one.commands.items() for path, leaf in commands(sub, (*words, name)).items()}


TREE = commands(group)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """What the commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    images = folder / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    for name in ("0.png", "1.png"):
        Image.fromarray(pixels).save(images / name)
    net = random_backbone(NET)
    save_weights(folder / "net.safetensors", net.model, mean=net.mean, std=net.std)
    (folder / "list.csv").write_text("path,labels,split\nimages/0.png,a,train\nimages/1.png,b,test\n")
    (folder / "x.svm").mkdir()
    listing = listing_of(open_dataset("folder", images))
    settings = ExtractionSettings(scales=(224,))
    plan = make_plan(listing, net, open_storage(folder / "run"), settings)
    list(ShardWorker(plan, net, workers=0).compute(range(plan.shards)))
    labels = np.array([[1, -1], [-1, 1], [1, -1], [-1, 1]], np.int8)
    splits = {"train": np.array([0, 1]), "test": np.array([2, 3])}
    write_file(folder / "x.h5", dataset=data_set(labels=labels, splits=splits))
    return folder


@pytest.fixture
def places(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    names = {"features": "x.h5", "net": "net.safetensors", "images": "images", "results": "x.svm", "list": "list.csv",
             "run": "run"}  # fmt: skip
    return {name: str(tmp_path / file) for name, file in names.items()}


def target_of(command: str, name: str, tmp_path: Path) -> tuple[Path, Path]:
    """Return what the command is given, and the file in question."""
    suffix = ".safetensors" if command == "weights convert" else ".out"
    given = tmp_path / f"given{suffix}"
    if not name:
        return given, given
    given.mkdir()
    return given, given / name


def words(command: str, given: Path, places: dict[str, str], *, overwrite: bool = False) -> list[str]:
    name = command.removesuffix(" --apply")
    able = any("--overwrite" in param.opts for param in TREE[name].params)
    text = WRITES[command][0].format(out=given, **places)
    return [*name.split(), *text.split(), *(["--overwrite"] if able and overwrite else [])]


def look(path: Path) -> tuple[object, ...]:
    state = os.lstat(path)
    content = path.read_bytes() if stat.S_ISREG(state.st_mode) else None
    return state.st_ino, state.st_mode, content, os.readlink(path) if path.is_symlink() else None


def test_every_command_says_what_it_writes():
    named = {command.removesuffix(" --apply") for command in WRITES}
    assert named | READS | THROUGH_OTHERS.keys() == set(TREE)
    assert not READS & named
    for command in READS:
        outputs = {"--out", "--root"} if command.startswith("data synth") else {"--out"}
        assert not any(outputs & set(param.opts) for param in TREE[command].params), command


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
@pytest.mark.parametrize(("command", "name"), CASES)
def test_no_folder_pipe_or_device_is_replaced(command, name, kind, overwrite, places, tmp_path, capsys):
    given, target = target_of(command, name, tmp_path)
    if kind == "device":
        target.symlink_to("/dev/null")
    else:
        {"folder": Path.mkdir, "pipe": os.mkfifo}[kind](target)
    before, null = look(target), os.stat("/dev/null").st_rdev
    assert run(words(command, given, places, overwrite=overwrite)) in (2, 6)
    assert str(target) in capsys.readouterr().err
    assert look(target) == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.stat("/dev/null").st_rdev == null


@pytest.mark.parametrize("way", ["name", "link", "hard link"])
@pytest.mark.parametrize(("command", "name"), [(command, name) for command, name in CASES if WRITES[command][2]])
def test_no_input_is_replaced_by_whatever_name(command, name, way, places, tmp_path, capsys):
    """Not even with --overwrite: it may be the only copy."""
    given, target = target_of(command, name, tmp_path)
    source = Path(places[WRITES[command][2]])
    if way == "name":
        if name:
            source.rename(target)
            places = places | {WRITES[command][2]: str(target)}
        else:
            given = target = source
    else:
        {"link": os.symlink, "hard link": os.link}[way](source, target)
    content = target.read_bytes()
    if (command, way) == ("data splits", "name"):
        target.write_bytes(content.replace(b"images", str(tmp_path / "images").encode()))
        return  # a manifest of the name of a list; its paths would lead elsewhere
    code = run(words(command, given, places, overwrite=True))
    assert code in (2, 6), capsys.readouterr().err
    assert target.read_bytes() == content
    assert Path(places[WRITES[command][2]]).read_bytes() == content


@pytest.mark.parametrize(("command", "name"), CASES)
def test_no_file_of_another_is_replaced_unasked(command, name, places, tmp_path, capsys):
    given, target = target_of(command, name, tmp_path)
    target.write_text("mine")
    code = run(words(command, given, places))
    said = capsys.readouterr().err
    assert code in ((4, 8) if command in JUDGED_BY_CONTENT else (5, 6)), said
    assert target.read_text() == "mine"
    assert command in JUDGED_BY_CONTENT or str(target) in said
    assert not list(tmp_path.rglob(".unfinished.json"))


@pytest.mark.parametrize("command", sorted(WRITES.keys() - {"plan"}))
def test_no_folder_is_made_that_is_called_as_a_store(command, places, tmp_path, capsys):
    """Of s3://bucket/x, which none but plan can write to, `Path` makes s3:/bucket/x, a place on this machine."""
    suffix = ".safetensors" if command == "weights convert" else ""
    before = sorted(os.listdir(tmp_path))
    assert run(words(command, f"memory://bucket/x{suffix}", places)) == 2
    assert "expected a place on this machine, found an address of a store" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("command", ["export", "data splits", "plan", "merge", "audit"])
def test_an_output_may_be_told_by_the_address_of_its_place_on_this_machine(command, places, tmp_path):
    before = set(os.listdir(tmp_path))
    assert run(words(command, f"file://{tmp_path}/given", places)) == 0
    assert set(os.listdir(tmp_path)) - before == {"given"}


@pytest.mark.parametrize("command", ["export", "weights convert", "weights export"])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_written_through_and_stays(command, there, places, tmp_path):
    given, target = target_of(command, "", tmp_path)
    (tmp_path / "disk").mkdir()
    real = tmp_path / "disk" / "file"
    target.symlink_to(real)
    if there:
        real.write_text("mine")
        assert run(words(command, given, places)) == 6
        assert real.read_text() == "mine"
    assert run(words(command, given, places, overwrite=there)) == 0
    assert os.readlink(target) == str(real)
    assert real.stat().st_size > 100
    assert [path.name for path in real.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "command",
    ["predict {images}/0.png --model {results}", "explain {images}/0.png --model {net}",
     "similar {features} --query nobody", "report {results}", "audit none.h5", "map none.h5"],
)  # fmt: skip
def test_a_folder_that_cannot_be_made_is_said_before_the_work(command, places, tmp_path, capsys):
    """The work of each could not be done either: whoever says so first has begun it."""
    (tmp_path / "file").write_text("mine")
    assert run([*command.format(**places).split(), "--out", str(tmp_path / "file" / "x.out")]) == 6
    assert f"{tmp_path / 'file'}: expected a folder to write into" in capsys.readouterr().err


def test_the_demo_replaces_no_features_but_those_of_a_demo(places, tmp_path, capsys):
    """Its files have the names that real ones have by default."""
    features = Path(places["features"]).rename(tmp_path / "voc2007.h5")
    before = features.read_bytes()
    assert run(["demo", "--out", str(tmp_path), "--size", "tiny", "--weights", NET, "--scales", "224"]) == 6
    assert f"{features}: expected one of a demo or no file" in capsys.readouterr().err
    assert features.read_bytes() == before
    assert not (tmp_path / "voc2007").exists()


def test_own_results_are_replaced_and_a_run_that_was_killed_is_known_again(places, tmp_path, monkeypatch, capsys):
    given = tmp_path / "given"
    svm = [*words("svm", given, places), "--grid", "1"]
    assert run(svm) == 0, capsys.readouterr().err
    assert not (given / ".unfinished.json").exists()
    assert run(svm) == 0, "its own results"
    (given / "results.json").write_text("[")
    assert run(svm) == 0, "damaged results, but the checksums of a run"
    assert run(words("classify", given, places)) == 6, "another command's"
    (given / "results.json").unlink()
    (given / "run.sha256").unlink()
    assert run(svm) == 6, "what is left is not known any more"
    (given / ".unfinished.json").write_text('{"format": "vggfeat-results"}\n')
    assert run(words("classify", given, places)) == 6, "another command's"
    assert run(svm) == 0, "a run that was killed before its results.json"
    assert not (given / ".unfinished.json").exists()
