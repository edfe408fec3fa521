"""PASCAL VOC: the official lists of image classification and of action classification, as data sets.

The development kits of VOC2007 and VOC2012 describe the tree (Sect. 2, "Data"): `ImageSets` says which images
and people belong to a task, so the image folder, which several tasks share, is never listed.
"""

import re
from collections.abc import Iterator, Mapping
from os.path import isdir
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from vggfeat.datasets.files import object_box, object_name, read_annotation, read_text
from vggfeat.datasets.record import Archive
from vggfeat.errors import ConfigError, DatasetError
from vggfeat.samples import Box, DataSet, Label, Task
from vggfeat.wording import counted

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 object classes, in the order of the development kit."""

ACTIONS = (
    "jumping", "phoning", "playinginstrument", "reading", "ridingbike",
    "ridinghorse", "running", "takingphoto", "usingcomputer", "walking",
)  # fmt: skip
"""The 10 actions that are classified; people of the eleventh, "other", are negatives of all ten."""

_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/"
ARCHIVES = {
    2007: (
        Archive("VOCtrainval_06-Nov-2007.tar", "md5", "c52e279531787c972589f7e41ab4ae64", f"{_PAGE}voc2007/",
                splits=("train", "val")),
        Archive("VOCtest_06-Nov-2007.tar", "md5", "b6e924de25625d8de591ea690078ad9f", f"{_PAGE}voc2007/",
                splits=("test",)),
    ),
    2012: (
        Archive("VOCtrainval_11-May-2012.tar", "md5", "6cd6e144f989b92b3379bac3b3de84fd", f"{_PAGE}voc2012/",
                splits=("train", "val")),
        Archive("VOC2012test.tar", "md5", "9065beb292b6c291fad82b2725749fda", f"{_PAGE}voc2012/", splits=("test",)),
    ),
}  # fmt: skip
"""By year: first the archive of train and val, then that of test."""

_SETS = ("train", "val", "test")
_MOST_LIST_BYTES = 64 * 2**20
_ID = re.compile(r"[A-Za-z0-9_.-]+")
_INDEX = re.compile(r"[1-9][0-9]{0,4}")
_LABELS = {"1": Label.POSITIVE, "-1": Label.NEGATIVE, "0": Label.IGNORED}
_TEST_NOTES = {
    2007: "There is no {list}, on which this set is tested: unpack {archive} into the same folder.",
    2012: "There is no {list}: unpack {archive} into the same folder if you want results for the server.",
}


def read(root: Path, year: int) -> DataSet:
    """Read image classification: lists and labels of `ImageSets/Main`.

    Parameters
    ----------
    root : Path
        The folder that holds VOCdevkit, VOCdevkit itself, or VOC2007 or VOC2012 itself.
    year : int
        2007 or 2012. The labels of the 2012 test set are not published: they come out as `Label.WITHHELD`.

    Returns
    -------
    DataSet
        "voc2007" or "voc2012": rows in the order of the train, val and test lists, labels (N, 20). Label 0
        (`Label.IGNORED`) is the kit's "only difficult objects of this class". Without a test list there is no
        test split, and a note says what to unpack.

    Raises
    ------
    DatasetError
        If a list or a class file is missing, holds an unknown or doubled id or a label other than 1, -1, 0,
        or lacks an id of its set. The message names file and line.
    """
    tree = _find_tree(Path(root), year)
    folder = tree / "ImageSets" / "Main"
    sets = _read_sets(folder)
    ids = tuple(image for images in sets.values() for image in images)
    labels = np.full((len(ids), len(CLASSES)), Label.WITHHELD, dtype=np.int8)
    splits = _consecutive({name: len(images) for name, images in sets.items()})
    for name, images in sets.items():
        if name == "test" and year == 2012:
            continue
        for column, cls in enumerate(CLASSES):
            labels[splits[name], column] = _read_image_labels(folder / f"{cls}_{name}.txt", images)
    return DataSet(
        name=f"voc{year}",
        task=Task.MULTI_LABEL,
        classes=CLASSES,
        ids=ids,
        paths=tuple(f"JPEGImages/{image}.jpg" for image in ids),
        labels=labels,
        splits=splits,
        root=str(tree),
        notes=_test_note(sets, folder, year),
    )


def read_actions(root: Path) -> DataSet:
    """Read action classification of VOC2012: people of `ImageSets/Action`, with their boxes.

    `root`: the folder that holds VOCdevkit, VOCdevkit itself, or VOC2012 itself.
    Returns "voc2012-action": one row per person, id "image/object" with the kit's 1-based object number, ordered by the
    set's list and then by that number; labels (N, 10); boxes (N, 4) as edges. A person that a class file does not list
    while others do is `Label.UNLISTED` for this class (the kit's jumping lists are shorter than the rest). Test labels
    are always `Label.WITHHELD`. Where the test set has no class files, its people are the person objects of the
    annotations.
    Raises DatasetError as in `read`, and if an annotation is missing, is not plain XML of moderate size, lacks a listed
    object, or holds a box whose edges are out of order. The message names file and line or object.
    """
    tree = _find_tree(Path(root), 2012)
    folder = tree / "ImageSets" / "Action"
    sets = _read_sets(folder)
    people: list[tuple[str, int]] = []
    boxes: list[Box] = []
    labels: list[list[int]] = []
    sizes: dict[str, int] = {}
    for name, images in sets.items():
        tables = _read_action_files(folder, name, images)
        before = len(people)
        for image in images:
            listed = sorted({index for table in tables for index in table.get(image, ())})
            found = _read_people(tree / "Annotations" / f"{image}.xml", listed if tables else None)
            people += [(image, index) for index in found]
            boxes += found.values()
            labels += [_action_labels(tables, image, index) for index in found]
        sizes[name] = len(people) - before
    return DataSet(
        name="voc2012-action",
        task=Task.MULTI_LABEL,
        classes=ACTIONS,
        ids=tuple(f"{image}/{index}" for image, index in people),
        paths=tuple(f"JPEGImages/{image}.jpg" for image, _ in people),
        labels=np.array(labels, dtype=np.int8),
        boxes=np.array(boxes, dtype=np.float64),
        splits=_consecutive(sizes),
        root=str(tree),
        notes=_test_note(sets, folder, 2012),
    )


def _find_tree(root: Path, year: int) -> Path:
    if year not in ARCHIVES:
        raise ConfigError(f"year: expected 2007 or 2012, found {year}")
    name = f"VOC{year}"
    for tree in (root, root / name, root / "VOCdevkit" / name):
        if isdir(tree / "ImageSets"):
            real = tree.resolve().name
            if re.fullmatch(r"VOC\d{4}", real) and real != name:
                raise DatasetError(f"{tree}: expected {name}, found the folder of {real}")
            return tree
    raise DatasetError(
        f"{root}: expected ImageSets in it, in {name} or in VOCdevkit/{name}, found none; "
        f"unpack {ARCHIVES[year][0].file} there"
    )


def _read_sets(folder: Path) -> dict[str, list[str]]:
    seen: dict[str, str] = {}
    sets: dict[str, list[str]] = {}
    for name in _SETS:
        path = folder / f"{name}.txt"
        if name == "test" and not path.exists():
            continue
        sets[name] = []
        for number, (image,) in _read_rows(path, (1,)):
            where = f"{path}, line {number}"
            if image in seen:
                raise DatasetError(f"{where}: expected every image once, found {image} also in {seen[image]}")
            seen[image] = f"{path.name}, line {number}"
            sets[name].append(image)
        if not sets[name]:
            raise DatasetError(f"{path}: expected image ids, found none")
    return sets


def _read_image_labels(path: Path, images: list[str]) -> list[int]:
    known = set(images)
    labels: dict[str, int] = {}
    for number, (image, label) in _read_rows(path, (2,)):
        where = f"{path}, line {number}"
        _check_member(where, image, known, image in labels)
        labels[image] = _label(where, label)
    absent = next((image for image in images if image not in labels), None)
    if absent is not None:
        raise DatasetError(f"{path}: expected a line for {absent}, as its set lists it, found none")
    return [labels[image] for image in images]


def _read_action_files(folder: Path, name: str, images: list[str]) -> list[dict[str, dict[int, int]]]:
    paths = [folder / f"{action}_{name}.txt" for action in ACTIONS]
    if name == "test" and not any(path.exists() for path in paths):
        return []
    return [_read_action_file(path, set(images), withheld=name == "test") for path in paths]


def _read_action_file(path: Path, images: set[str], *, withheld: bool) -> dict[str, dict[int, int]]:
    labels: dict[str, dict[int, int]] = {}
    for number, (image, index, *label) in _read_rows(path, (2, 3) if withheld else (3,)):
        where = f"{path}, line {number}"
        if not _INDEX.fullmatch(index):
            raise DatasetError(f"{where}: expected an object number from 1, found {index[:40]!r}")
        people = labels.setdefault(image, {})
        _check_member(where, image, images, int(index) in people)
        people[int(index)] = Label.WITHHELD if withheld else _label(where, label[0])
    return labels


def _action_labels(tables: list[dict[str, dict[int, int]]], image: str, index: int) -> list[int]:
    if not tables:
        return [Label.WITHHELD] * len(ACTIONS)
    return [table.get(image, {}).get(index, Label.UNLISTED) for table in tables]


def _check_member(where: str, image: str, known: set[str], doubled: bool) -> None:
    if image not in known:
        raise DatasetError(f"{where}: expected an image of this set, found {image}, which its list lacks")
    if doubled:
        raise DatasetError(f"{where}: expected every entry once, found a second one of image {image}")


def _label(where: str, text: str) -> int:
    if text not in _LABELS:
        raise DatasetError(f"{where}: expected the label 1, -1 or 0, found {text[:40]!r}")
    return _LABELS[text]


def _read_rows(path: Path, widths: tuple[int, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields; the first field is an id that is safe as a part of a path."""
    for number, line in enumerate(read_text(path, _MOST_LIST_BYTES).split("\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) not in widths:
            wanted = " or ".join(map(str, widths))
            raise DatasetError(f"{path}, line {number}: expected {wanted} fields, found {len(fields)}")
        if not _ID.fullmatch(fields[0]):
            raise DatasetError(
                f"{path}, line {number}: expected an image id of letters, digits and _ . -, found {fields[0][:40]!r}"
            )
        yield number, fields


def _read_people(path: Path, listed: list[int] | None) -> dict[int, Box]:
    """Boxes by object number: of the listed objects, or of all people where there is no list."""
    objects = read_annotation(path).findall("object")
    if listed is None:
        listed = [index for index, item in enumerate(objects, start=1) if object_name(item) == "person"]
    if not listed:
        raise DatasetError(f"{path}: expected a listed person in this image, found none")
    return {index: _person_box(f"{path}, object {index}", index, objects) for index in listed}


def _person_box(where: str, index: int, objects: list[Element]) -> Box:
    if index > len(objects):
        raise DatasetError(
            f"{where}: expected it, because ImageSets/Action lists it, found {counted(len(objects), 'object{s}')}"
        )
    item = objects[index - 1]
    if object_name(item) != "person":
        raise DatasetError(f"{where}: expected a person, found {object_name(item)[:40]!r}")
    return object_box(item, where)


def _consecutive(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    ends = np.cumsum(list(sizes.values()))
    return {
        name: np.arange(end - size, end, dtype=np.int64) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def _test_note(sets: Mapping[str, list[str]], folder: Path, year: int) -> tuple[str, ...]:
    if "test" in sets:
        return ()
    return (_TEST_NOTES[year].format(list=f"ImageSets/{folder.name}/test.txt", archive=ARCHIVES[year][1].file),)
