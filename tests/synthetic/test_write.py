import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from rendered_files import contents
from vggfeat import synthetic
from vggfeat.cli import run
from vggfeat.errors import ConfigError, DatasetError, StoreError
from vggfeat.synthetic import LAYOUTS, MARKER, Settings

FEW = Settings(image_side=48, classes=2, per_class=4)


# --- the same again


@pytest.mark.parametrize(("name", "workers"), [("voc2012-action", 1), ("ilsvrc", 1), ("folder", 2), ("formulas", 1)])
def test_the_same_seed_gives_the_same_bytes(tree, tmp_path, name, workers):
    synthetic.write(name, tmp_path, size="tiny", workers=workers)
    assert contents(tmp_path) == contents(tree(name))


def test_another_seed_gives_other_images(tmp_path, tree):
    synthetic.write("folder", tmp_path, size="tiny", seed=1)
    mine, theirs = contents(tmp_path), contents(tree("folder"))
    assert set(mine) == set(theirs)
    assert [name for name in mine if mine[name] == theirs[name]] == ["spoked frame/notes.txt"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("voc2007", Settings(image_side=96, train=45, val=60, test=50)),
        ("ilsvrc", Settings(image_side=96, classes=6, train=14, val=30, test=7)),
        ("folder", Settings(image_side=96, classes=5, per_class=14)),
        ("formulas", Settings(image_side=96, classes=9, train=7, val=18)),
    ],
)
def test_more_images_change_no_other(tree, tmp_path, name, more):
    synthetic.write(name, tmp_path, size=more)
    endings = (".jpg", ".jpeg", ".png")
    old = {path: data for path, data in contents(tree(name)).items() if path.lower().endswith(endings)}
    new = {path: data for path, data in contents(tmp_path).items() if path.lower().endswith(endings)}
    assert len(new) > len(old)
    assert {path: new[path] for path in old} == old


# --- refusals and progress


def test_progress_counts_every_image(tmp_path):
    seen = []
    synthetic.write("folder", tmp_path, size=FEW, progress=lambda done, total: seen.append((done, total)))
    total = len([path for path in tmp_path.rglob("*.*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")])
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_the_marker_says_that_the_images_are_rendered(tree):
    text = (tree("voc2007") / MARKER).read_text(encoding="utf-8")
    assert "rendered by vggfeat" in text
    record = json.loads(text.splitlines()[-1])
    assert (record["set"], record["seed"], record["image_side"], record["images"]) == ("voc2007", 0, 96, 120)


def test_a_folder_of_others_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DatasetError, match="expected a new or empty folder"):
        synthetic.write("folder", tmp_path, size="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_set_of_other_settings_is_refused(tmp_path):
    synthetic.write("folder", tmp_path, size=FEW)
    before = contents(tmp_path)
    for name, seed, size in (("folder", 1, FEW), ("folder", 0, "tiny"), ("voc2007", 0, "tiny")):
        with pytest.raises(DatasetError, match="other settings"):
            synthetic.write(name, tmp_path, seed=seed, size=size)
    assert contents(tmp_path) == before


def test_a_whole_set_stays_and_a_broken_one_is_made_whole(tmp_path):
    calls = []
    assert synthetic.write("folder", tmp_path, size=FEW)
    before = contents(tmp_path)
    assert not synthetic.write("folder", tmp_path, size=FEW, progress=lambda *done: calls.append(done))
    assert calls == []
    image, notes = next(tmp_path.rglob("*.png")), next(tmp_path.rglob("notes.txt"))
    for broken in (image, notes):
        for damage in (broken.unlink, lambda file=broken: file.write_bytes(file.read_bytes()[:-1])):
            damage()
            assert synthetic.write("folder", tmp_path, size=FEW)
            assert contents(tmp_path) == before


def test_a_set_without_a_checksum_is_rendered_again(tmp_path):
    synthetic.write("folder", tmp_path, size=FEW)
    marker, before = tmp_path / MARKER, contents(tmp_path)
    *words, record = marker.read_text().splitlines()
    old = {name: value for name, value in json.loads(record).items() if name != "sha256"}
    marker.write_text("\n".join([*words, json.dumps(old)]))
    assert synthetic.write("folder", tmp_path, size=FEW)
    assert contents(tmp_path) == before


def test_files_of_others_in_a_set_are_left_alone(tmp_path):
    synthetic.write("folder", tmp_path, size=FEW)
    (tmp_path / "features.h5").write_bytes(b"mine")
    assert not synthetic.write("folder", tmp_path, size=FEW)


def test_a_run_that_was_cut_short_is_finished_by_the_next(tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write("folder", tmp_path / "a", size=FEW, progress=stop)
    assert synthetic.write("folder", tmp_path / "a", size=FEW)
    synthetic.write("folder", tmp_path / "b", size=FEW)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(DatasetError, match="x: expected"):
        synthetic.write("folder", tmp_path / "x", size="tiny")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("voc2013", {}, "expected one of voc2007"),
        ("voc2007", {"size": "huge"}, "expected one of tiny, demo"),
        ("voc2007", {"seed": -1}, "seed from 0"),
        ("voc2007", {"workers": 0}, "workers from 1"),
        ("voc2007", {"size": Settings(image_side=96, train=19, val=20, test=1)}, "train of at least 20, found 19"),
        ("caltech101", {"size": Settings(image_side=96, classes=3, per_class=30)}, "per_class of at least 31"),
        ("caltech256", {"size": Settings(image_side=96, classes=258, per_class=61)}, "at most 257 classes"),
        ("ilsvrc", {"size": Settings(image_side=96, classes=241, train=2, val=1)}, "at most 240 classes"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, name, arguments, words):
    with pytest.raises(ConfigError, match=words):
        synthetic.write(name, tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("counts", "words"),
    [({"image_side": 31}, "image_side: expected at least 32, found 31")]
    + [
        ({"image_side": 32, field: -1}, f"{field}: expected 0 or more, found -1")
        for field in ("train", "val", "test", "unlisted", "classes", "per_class")
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(counts, words):
    with pytest.raises(ConfigError, match=words):
        Settings(**counts)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_can_be_rendered_at_its_named_sizes(name):
    sides = [LAYOUTS[name].settings(name, size).image_side for size in synthetic.SIZES]
    assert sides[0] < sides[1] == sides[2]


def test_a_set_that_cannot_be_read_now_is_not_taken_for_other_files(tmp_path, monkeypatch):
    (tmp_path / MARKER).write_text("{}")

    def unreadable(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", unreadable)
    with pytest.raises(StoreError, match=rf"{MARKER}: .*Permission denied"):
        synthetic.write("voc2007", tmp_path, size="tiny")


def test_a_disk_that_takes_a_part_of_an_image_ends_the_command_and_keeps_no_such_image(tmp_path):
    """Pillow writes into a file without a look at how much of it was taken."""
    words = [
        "data",
        "synth",
        "caltech101",
        "--size",
        "tiny",
        "--workers",
        "1",
        "--quiet",
        "--root",
        str(tmp_path / "x"),
    ]
    script = f"""
import resource, sys
sys.dont_write_bytecode = True  # else Python would leave modules that are cut off
resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from vggfeat.cli import run
sys.exit(run({words!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n"), "File too large" in done.stderr) == (6, 1, True)
    assert run(words) == 0
    for path in (tmp_path / "x").rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
