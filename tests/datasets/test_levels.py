"""Splits and classes of a tree are told apart, or a user is asked; extraction and training say the same."""

import os
import re
from pathlib import Path

import pytest

from image_files import put
from vggfeat.cli import run
from vggfeat.datasets import folder, ilsvrc
from vggfeat.datasets.catalogue import open_dataset
from vggfeat.datasets.levels import listed_split, split_name
from vggfeat.errors import ConfigError, DatasetError


def tree(root: Path, *tops: str, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Two images of each class in each folder."""
    return put(root, *(f"{top}/{cls}/{n}.jpg" for top in tops for cls in classes for n in (1, 2)))


def read_both(root: Path, layout=None) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Classes, and ids of each split, as extraction reads them; training must read the same classes."""
    data = folder.read(root, layout)
    assert ilsvrc.read(root, layout).classes == data.classes
    return data.classes, {name: [data.ids[row] for row in rows] for name, rows in data.splits.items()}


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "trn", "train_images", "Trainset", "train2017"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev", "VAL", "valset", "val2017"])
def test_names_of_splits_in_any_spelling(tmp_path, train, val):
    classes, splits = read_both(tree(tmp_path, train, val))
    assert classes == ("cat", "dog")
    assert list(splits) == ["train", "val"]
    assert splits["val"] == [f"{val}/{cls}/{n}.jpg" for cls in ("cat", "dog") for n in (1, 2)]
    data = ilsvrc.read(tmp_path)
    assert (len(data.train), len(data.val)) == (4, 4)


@pytest.mark.parametrize("test", ["test", "Test", "testing", "EVAL", "test_set"])
def test_a_folder_to_test_on_is_never_trained_on(tmp_path, test):
    _, splits = read_both(tree(tmp_path, "train", test))
    assert list(splits) == ["train", "test"]
    assert all(path.startswith("train/") for path in ilsvrc.read(tmp_path).train.paths)


@pytest.mark.parametrize("wrapper", ["photos", "photos/photos", "data/images", "holiday.zip"])
def test_folders_that_wrap_everything_are_passed_over(tmp_path, wrapper):
    tree(tmp_path, f"{wrapper}/train", f"{wrapper}/valid")
    classes, splits = read_both(tmp_path)
    assert (classes, list(splits)) == (("cat", "dog"), ["train", "val"])
    assert all(path.startswith(f"{wrapper}/train/cat/") for path in splits["train"][:2])


def test_a_wrapped_folder_of_classes_is_no_class(tmp_path):
    data = folder.read(tree(tmp_path, "photos"))
    assert data.classes == ("cat", "dog")
    assert "Read below photos, which holds everything." in data.notes
    assert ilsvrc.read(tmp_path).classes == ("cat", "dog")


def test_a_folder_that_repeats_its_own_name(tmp_path):
    classes, splits = read_both(tree(tmp_path, "seg_train/seg_train", "seg_test/seg_test"))
    assert (classes, list(splits)) == (("cat", "dog"), ["train", "test"])
    assert splits["test"][0] == "seg_test/seg_test/cat/1.jpg"


def test_folders_of_the_same_names_below_make_splits_whatever_they_are_called(tmp_path):
    data = folder.read(tree(tmp_path, "monday", "tuesday"))
    assert data.classes == ("cat", "dog")
    assert list(data.splits) == ["monday", "tuesday"]
    assert any("monday, tuesday; if they are classes, give --layout classes" in note for note in data.notes)
    assert folder.read(tmp_path, "classes").classes == ("monday", "tuesday")
    with pytest.raises(DatasetError, match="expected train next to monday, tuesday"):
        ilsvrc.read(tmp_path)
    assert ilsvrc.read(tmp_path, "classes").classes == ("monday", "tuesday")


@pytest.mark.parametrize("inner", [("images",), ("images", "masks"), ("photos",)])
def test_folders_for_kinds_of_files_are_no_classes(tmp_path, inner):
    data = folder.read(tree(tmp_path, "cat", "dog", classes=inner))
    assert (data.classes, dict(data.splits)) == (("cat", "dog"), {})


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.jpg", "test/2.jpg", "other/3.jpg"],
        ["cat/1.jpg", "dog/1.jpg", "test/1.jpg"],
        ["cat/1.jpg", "Valid/1.jpg"],
        ["train/cat/1.jpg", "train/dog/1.jpg", "other/1.jpg"],
        ["a/cat/1.jpg", "a/dog/1.jpg", "a/fox/1.jpg", "b/cat/1.jpg", "b/dog/1.jpg"],
        ["photos/cat/1.jpg", "photos/dog/1.jpg", "photos/dev/1.jpg"],
        ["train_cat/1.jpg", "train_dog/1.jpg", "test_cat/1.jpg", "test_dog/1.jpg"],
        ["monday/cat/1.jpg", "tuesday/cat/1.jpg"],
        ["a/cat/1.jpg", "a/dog/1.jpg", "b/cat/1.jpg", "b/dog/1.jpg", "c/cat/1.jpg"],
    ],
)
def test_what_can_not_be_told_is_refused_with_both_readings_and_the_option(tmp_path, names):
    put(tmp_path, *names)
    tops = sorted({name.removeprefix("photos/").split("/")[0] for name in names})
    for read in (folder.read, ilsvrc.read):
        with pytest.raises(DatasetError, match=r"either: splits .*--layout splits or --layout classes") as caught:
            read(tmp_path)
        assert f"the classes {', '.join(tops)}" in str(caught.value)
    assert folder.read(tmp_path, "classes").classes == tuple(tops)


def test_the_option_decides(tmp_path):
    tree(tmp_path, "train", "test")
    tree(tmp_path, "other", classes=("cat", "dog", "fox"))
    assert list(folder.read(tmp_path, "splits").splits) == ["train", "test", "other"]
    assert folder.read(tmp_path, "classes").classes == ("other", "test", "train")
    assert ilsvrc.read(tmp_path, "splits").classes == ("cat", "dog")
    assert ilsvrc.read(tmp_path, "classes").classes == ("other", "test", "train")
    assert open_dataset("folder", tmp_path, "classes").splits == {}


def test_the_option_is_one_of_two_and_for_folders_alone(tmp_path):
    with pytest.raises(ConfigError, match="layout: expected one of splits, classes, found 'flat'"):
        open_dataset("folder", tmp_path, "flat")
    with pytest.raises(ConfigError, match="folder alone, found 'splits' for voc2007"):
        open_dataset("voc2007", tmp_path, "splits")


def test_a_train_may_be_a_class_next_to_cars(tmp_path):
    data = folder.read(put(tmp_path, *(f"{name}/{n}.jpg" for name in ("bus", "car", "train") for n in (1, 2))))
    assert (data.classes, dict(data.splits)) == (("bus", "car", "train"), {})
    assert any("no splits: train; if it is a split, give --layout splits" in note for note in data.notes)
    assert ilsvrc.read(tmp_path).classes == ("bus", "car", "train")


def test_names_that_hold_the_name_of_a_split_are_still_classes(tmp_path):
    put(tmp_path, *(f"{name}/{n}.jpg" for name in ("train station", "test_tube", "bridge") for n in (1, 2)))
    assert read_both(tmp_path) == (("bridge", "test_tube", "train station"), {})


def test_two_folders_of_one_split_are_refused(tmp_path):
    tree(tmp_path, "Train", "train", "test")
    for read in (folder.read, ilsvrc.read):
        with pytest.raises(DatasetError, match="one folder for the split train, found Train and train"):
            read(tmp_path)


def test_splits_below_classes_are_refused(tmp_path):
    tree(tmp_path, "bottle", "cable", classes=("train", "test"))
    for read in (folder.read, ilsvrc.read):
        with pytest.raises(DatasetError, match="expected splits above classes, found test, train below bottle, cable"):
            read(tmp_path)
    assert read_both(tmp_path, "classes") == (("bottle", "cable"), {})


# Flat splits


@pytest.mark.parametrize("flat", ["val/images", "val", "val/val"])
def test_flat_splits_have_no_classes_whatever_their_only_folder_is_called(tmp_path, flat):
    put(tmp_path, "train/images/1.jpg", f"{flat}/2.jpg", "test/images/3.jpg")
    data = folder.read(tmp_path)
    assert data.classes == ()
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 1, "val": 1, "test": 1}


def test_a_flat_val_next_to_classes_is_no_class_of_its_own(tmp_path):
    tree(tmp_path, "train")
    put(tmp_path, "val/images/1.jpg", "test/images/2.jpg")
    with pytest.raises(DatasetError, match="in class folders or none") as caught:
        folder.read(tmp_path)
    assert "images/" in str(caught.value)
    with pytest.raises(DatasetError, match=r"val/images/1.jpg: expected labels .* put them into class folders"):
        ilsvrc.read(tmp_path)


def test_a_split_without_any_class_of_train_is_refused_until_the_option_says_that_it_has_others(tmp_path):
    tree(tmp_path, "train")
    put(tmp_path, "test/unknown/1.jpg")
    for read in (folder.read, ilsvrc.read):
        with pytest.raises(
            DatasetError, match=r"test: expected classes of the training images \(cat, dog\), .* unknown"
        ):
            read(tmp_path)
    assert folder.read(tmp_path, "splits").classes == ("cat", "dog", "unknown")


def test_a_class_that_is_in_one_split_alone_is_reported(tmp_path):
    tree(tmp_path, "train", "test")
    put(tmp_path, "train/fox/1.jpg", "test/cow/1.jpg")
    notes = folder.read(tmp_path).notes
    assert notes == ("Classes that occur in one split only: cow (test), fox (train).",)


# Names in lists


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("VAL", "val"), ("valid", "val"), ("Dev", "val"), ("TRAIN", "train"), ("trn", "train"), ("eval", "test"),
        ("train-1", "train-1"), ("Test_2", "test-2"), ("held_out-3", "held-out-3"), ("holdout", "holdout"),
        ("fold-1", "fold-1"), ("extra", "extra"), ("train2017", "train"),
    ],
)  # fmt: skip
def test_names_of_splits_in_a_list(text, name):
    assert listed_split(text) == name


@pytest.mark.parametrize("text", ["vall", "trian", "tests", "vaild", "trainn"])
def test_names_that_are_nearly_those_of_a_split_are_refused(text):
    with pytest.raises(ValueError, match=f"found {re.escape(repr(text))}; did you mean (train|val|test)"):
        listed_split(text)


@pytest.mark.parametrize("text", ["2012", "", "station", "train station", "train test"])
def test_names_that_say_more_or_nothing_are_no_splits(text):
    assert split_name(text) is None


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_training_follows_links_to_splits(tmp_path):
    tree(tmp_path / "far", "a", "b")
    (tmp_path / "root").mkdir()
    for name, place in (("train", "a"), ("val", "b")):
        (tmp_path / "root" / name).symlink_to(f"../far/{place}")
    assert len(ilsvrc.read(tmp_path / "root").val) == 4


# The option on the command line


@pytest.mark.parametrize(
    "words",
    [
        ["extract", "--dataset", "folder", "--weights", "nowhere.safetensors", "--out", "out.h5"],
        ["data", "check", "folder"],
        ["data", "splits", "folder"],
        ["data", "pack", "--out", "packed"],
        ["train", "--net", "A", "--out", "run", "--width", "0.1"],
        ["classify", "--weights", "small"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_every_command_that_reads_folders_names_the_option_and_has_it(tmp_path, monkeypatch, capsys, words):
    put(tmp_path / "photos", "cat/1.jpg", "dog/1.jpg", "test/1.jpg")
    monkeypatch.chdir(tmp_path)
    given = [*words, "--root", "photos"]
    assert run(given) == 4
    assert "say which with --layout splits or --layout classes" in "".join(capsys.readouterr())
    run([*given, "--layout", "splits"])
    assert "say which with" not in "".join(capsys.readouterr())


def test_check_counts_what_the_option_says(tmp_path, capsys):
    put(tmp_path, "cat/1.jpg", "dog/1.jpg", "test/1.jpg")
    assert run(["data", "check", "folder", "--root", str(tmp_path), "--layout", "classes"]) == 0
    assert re.search(r"all +classes +3 ", capsys.readouterr().out)
    assert run(["data", "check", "folder", "--root", str(tmp_path), "--layout", "splits"]) == 0
    assert re.search(r"test +images +1 ", capsys.readouterr().out)
