"""Boxes of ILSVRC: annotations in all their places, by hand and against lists that were written separately."""

import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vggfeat.datasets import ilsvrc
from vggfeat.datasets.ilsvrc_boxes import read_boxes, select_images
from vggfeat.errors import DatasetError
from vggfeat.samples import ClassificationSet, Shards
from vggfeat.synthetic import write

CAT, DOG = "n02123045", "n02084071"


def annotation(*objects, size=(500, 375), filename="%s") -> str:
    """An XML as ILSVRC has them; some of the real ones say "%s" for their name."""
    boxes = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, *box in objects
    )
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><folder>val</folder><filename>{filename}</filename>{sides}{boxes}</annotation>"


TRAIN = {
    f"{CAT}/{CAT}_7": annotation((CAT, 1, 1, 100, 50), (DOG, 5, 5, 9, 9), (CAT, 11, 21, 30, 40)),
    f"{DOG}/{DOG}_12": annotation((DOG, 111, 108, 441, 193)),
    f"{DOG}/{DOG}_300": annotation((DOG, 0, 2, 501, 375)),
}
VAL = {
    "ILSVRC2012_val_00000001": annotation((CAT, 3, 4, 5, 6), size=(20, 10)),
    "ILSVRC2012_val_00000002": annotation((DOG, 1, 1, 1, 1)),
}


def put(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def put_all(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        put(folder / f"{name}.xml", text)


def images_in(root: Path, val: str = "val") -> ClassificationSet:
    for name in (f"{CAT}_7", f"{CAT}_8", f"{DOG}_12", f"{DOG}_300"):
        put(root / "train" / name.partition("_")[0] / f"{name}.JPEG")
    for number in (1, 2):
        put(root / val / f"ILSVRC2012_val_{number:08d}.JPEG")
    put(root / "LOC_val_solution.csv", f"ILSVRC2012_val_00000002,{DOG} 1\nILSVRC2012_val_00000001,{CAT} 1\n")
    return ilsvrc.read(root)


PLACES = [
    ("ILSVRC/Annotations/CLS-LOC/train", "ILSVRC/Annotations/CLS-LOC/val"),
    ("Annotations/CLS-LOC/train", "Annotations/CLS-LOC/val"),
    ("Annotations/train", "Annotations/val"),
    ("Annotation", "val"),
    ("ILSVRC2012_bbox_train_v2", "ILSVRC2012_bbox_val_v3/val"),
    ("train", "val"),
    ("../bbox/train", "../bbox"),
    ("../../Annotations/CLS-LOC/train", "../../Annotations/CLS-LOC/val"),
]


@pytest.mark.parametrize(("train", "val"), PLACES)
def test_boxes_are_found_wherever_the_archives_put_them(tmp_path, train, val):
    root = tmp_path / "one" / "two"
    data = images_in(root)
    put_all(root / train, TRAIN)
    put_all(root / val, VAL)
    found = read_boxes(root, data.train, "train")
    # Rows are sorted by class: the dog's WNID comes first. 1-based inclusive numbers become edges.
    assert [path.rpartition("/")[2] for path in data.train.paths] == [
        f"{DOG}_12.JPEG", f"{DOG}_300.JPEG", f"{CAT}_7.JPEG", f"{CAT}_8.JPEG",
    ]  # fmt: skip
    assert found.of(0).tolist() == [[110, 107, 441, 193]]
    assert found.of(2).tolist() == [[0, 0, 100, 50], [10, 20, 30, 40]]
    assert found.of(3).tolist() == []
    assert found.has.tolist() == [True, True, True, False]
    assert found.sizes.tolist() == [[375, 500], [375, 500], [375, 500], [0, 0]]
    assert found.notes[0] == "3 of 4 train images have boxes of their class, 4 in all"
    validation = read_boxes(root, data.val, "val")
    assert [validation.of(row).tolist() for row in range(2)] == [[[0, 0, 1, 1]], [[2, 3, 5, 6]]]
    assert validation.sizes.tolist() == [[375, 500], [10, 20]]
    assert not validation.excluded.any()


def test_boxes_beyond_the_image_are_kept_as_annotated_and_said(tmp_path):
    data = images_in(tmp_path)
    put_all(tmp_path / "Annotations" / "train", TRAIN)
    found = read_boxes(tmp_path, data.train, "train")
    # A pixel too many is how some count, and is not said.
    assert found.of(1).tolist() == [[-1, 1, 501, 375]]
    assert len(found.notes) == 1
    put_all(tmp_path / "Annotations" / "train", {f"{DOG}/{DOG}_300": annotation((DOG, -40, 2, 600, 375))})
    found = read_boxes(tmp_path, data.train, "train")
    assert found.of(1).tolist() == [[-41, 1, 600, 375]]
    assert found.notes[1] == f"boxes of 1 image reach beyond the image, the first is {DOG}_300.xml"


def test_annotations_may_lie_elsewhere(tmp_path):
    data = images_in(tmp_path / "images")
    put_all(tmp_path / "xml" / "train", TRAIN)
    with pytest.raises(DatasetError, match="expected annotations of the train images"):
        read_boxes(tmp_path / "images", data.train, "train")
    assert len(read_boxes(tmp_path / "images", data.train, "train", annotations=tmp_path / "xml").edges) == 4
    assert len(read_boxes("anywhere", data.train, "train", annotations=tmp_path / "xml" / "train").edges) == 4


def test_held_out_images_have_their_boxes_among_those_of_the_training_set(tmp_path):
    for name, number in ((CAT, 1), (CAT, 2), (DOG, 1), (DOG, 2)):
        put(tmp_path / name / f"{name}_{number}.JPEG")
        put_all(tmp_path / "Annotations" / "train", {f"{name}/{name}_{number}": annotation((name, number, 1, 9, 9))})
    data = ilsvrc.read(tmp_path)
    for part, images in (("train", data.train), ("val", data.val)):
        found = read_boxes(tmp_path, images, part)
        numbers = [float(path.rpartition("_")[2][0]) for path in images.paths]
        assert found.edges[:, 0].tolist() == [number - 1 for number in numbers]


@pytest.mark.parametrize("year", [2014, 2015])
def test_the_blacklist_goes_by_the_number_in_the_name(tmp_path, year):
    data = images_in(tmp_path)
    put_all(tmp_path / "Annotations" / "val", VAL)
    name = f"ILSVRC{year}_clsloc_validation_blacklist.txt"
    put(tmp_path / f"ILSVRC{year}_devkit" / "data" / name, "1\n36\n")
    found = read_boxes(tmp_path, data.val, "val")
    assert [(path[-6], bool(out)) for path, out in zip(data.val.paths, found.excluded, strict=True)] == [
        ("2", False), ("1", True),
    ]  # fmt: skip
    assert found.notes[1] == f"{name}: 1 image does not count"
    put(tmp_path / f"ILSVRC{year}_devkit" / "data" / name, "1\nn36\n")
    with pytest.raises(DatasetError, match=rf"{name}, line 2: expected the number of an image, found 'n36'"):
        read_boxes(tmp_path, data.val, "val")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<annotation>", "plain XML"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>" + VAL["ILSVRC2012_val_00000001"], "no DOCTYPE"),
        (annotation((CAT, 5, 5, 4, 9)), "object 1: expected xmin <= xmax"),
        (annotation((CAT, 5, "five", 6, 9)), "object 1: expected a number in bndbox/ymin"),
        (annotation((DOG, 5, 5, 6, 9), size=(0, 10)), "expected the height and the width"),
        (annotation((DOG, 5, 5, 6, 9), size=("", 10)), "expected the height and the width"),
        (annotation((DOG, 5, 5, 6, 9), size=("inf", 10)), "expected the height and the width"),
    ],
)
def test_files_that_are_no_annotations_are_named(tmp_path, text, told):
    data = images_in(tmp_path)
    put_all(tmp_path / "Annotations" / "val", {**VAL, "ILSVRC2012_val_00000001": text})
    with pytest.raises(DatasetError, match=rf"ILSVRC2012_val_00000001\.xml.*{told}"):
        read_boxes(tmp_path, data.val, "val")


def test_a_validation_set_that_lacks_an_annotation_is_refused(tmp_path):
    data = images_in(tmp_path)
    put_all(tmp_path / "Annotations" / "val", {"ILSVRC2012_val_00000002": VAL["ILSVRC2012_val_00000002"]})
    with pytest.raises(DatasetError, match=r"found none for val/\w+1\.JPEG; unpack ILSVRC2012_bbox_"):
        read_boxes(tmp_path, data.val, "val")


def test_annotations_of_other_classes_are_said_and_if_many_refused(tmp_path):
    data = images_in(tmp_path)
    strange = {**TRAIN, f"{DOG}/{DOG}_12": annotation(("fox", 1, 1, 2, 2))}
    put_all(tmp_path / "Annotations" / "train", strange)
    found = read_boxes(tmp_path, data.train, "train")
    assert found.has.tolist() == [False, True, True, False]
    assert found.notes[1].startswith("1 annotation has no object of the class of the image, the first is ")
    assert found.notes[1].endswith(f"{DOG}_12.xml, fox")
    put_all(tmp_path / "Annotations" / "train", {**strange, f"{DOG}/{DOG}_300": annotation()})
    with pytest.raises(DatasetError, match=r"found others in 2 of 3 annotations, the first is .*give images and"):
        read_boxes(tmp_path, data.train, "train")


def test_some_rows_of_all(tmp_path):
    data = images_in(tmp_path)
    put_all(tmp_path / "Annotations" / "train", TRAIN)
    found = read_boxes(tmp_path, data.train, "train")
    rows = np.array([0, 2])
    some, images = found.select(rows), select_images(data.train, rows)
    assert [some.of(row).tolist() for row in range(2)] == [found.of(0).tolist(), found.of(2).tolist()]
    assert [path[-8:] for path in images.paths] == ["_12.JPEG", "5_7.JPEG"]
    assert images.targets.tolist() == [0, 1]
    assert found.select(np.arange(4)).fingerprint() == found.fingerprint() != some.fingerprint()
    assert len(found.select(np.array([3])).edges) == 0
    places = np.arange(12).reshape(4, 3)
    packed = replace(data.train, shards=Shards(("a.tar",) * 10, places))
    assert select_images(packed, rows).shards.places.tolist() == places[rows].tolist()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("rendered")
    write("ilsvrc", root / "set", size="tiny")
    return root / "set"


def test_rendered_boxes_are_those_of_the_solution_and_progress_reaches_the_end(rendered):
    data = ilsvrc.read(rendered)
    told = []
    found = read_boxes(rendered, data.val, "val", progress=lambda *now: told.append(now))
    assert told == [(0, len(data.val)), (len(data.val), len(data.val))]
    with open(rendered / "LOC_val_solution.csv", newline="") as file:
        solution = {row[0]: row[1].split() for row in list(csv.reader(file))[1:]}
    assert len(data.val) == len(solution)
    for row, path in enumerate(data.val.paths):
        words = solution[Path(path).stem]
        boxes = np.array([words[k + 1 : k + 5] for k in range(0, len(words), 5)], float)
        assert (found.of(row) == boxes - np.array([1, 1, 0, 0])).all()
    train = read_boxes(rendered, data.train, "train")
    # Four of five training images have an annotation.
    assert train.has.sum() == len(list(rendered.glob("ILSVRC/Annotations/CLS-LOC/train/*/*.xml")))
    assert train.has.mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.long
def test_half_a_million_annotations_take_minutes_at_most(tmp_path):
    count = 20_000
    root = tmp_path / "set"
    for number in range(count):
        name = (CAT, DOG)[number % 2]
        put_all(root / "Annotations" / "train", {f"{name}/{name}_{number}": annotation((name, 1, 1, 9, 9))})
        put(root / name / f"{name}_{number}.JPEG")
    data = ilsvrc.read(root)
    begun = time.perf_counter()
    read_boxes(root, data.train, "train")
    assert len(data.train) / (time.perf_counter() - begun) > 1000
