import csv
import re
from collections import Counter
from xml.etree import ElementTree

import pytest
import scipy.io
from PIL import Image

from rendered_files import box, lines, objects
from vggfeat.synthetic.class_trees import caltech101_classes, caltech256_classes, synsets


def mode(path):
    with Image.open(path) as image:
        return image.mode


# --- Caltech and folders


def test_caltech101_has_its_odd_classes_and_its_stray_file(tree):
    root = tree("caltech101") / "101_ObjectCategories"
    counts = {folder.name: len(list(folder.glob("*.jpg"))) for folder in root.iterdir()}
    assert len(counts) == 6
    assert counts["inline_skate"] == 31
    assert counts["BACKGROUND_Google"] > 31
    assert all(count >= 31 for count in counts.values())
    assert len(set(counts.values())) > 1
    strays = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".jpg"]
    assert strays == [root / "BACKGROUND_Google" / "tmp"]
    modes = Counter(mode(path) for path in root.rglob("*.jpg"))
    assert modes["L"] >= 5
    assert set(modes) == {"L", "RGB"}


def test_caltech256_has_its_stray_file_and_folder(tree):
    root = tree("caltech256") / "256_ObjectCategories"
    classes = {folder.name: list(folder.glob("*.jpg")) for folder in root.iterdir()}
    assert {"056.dog", "198.spider", "257.clutter"} <= set(classes)
    assert len(classes) == 5
    for cls, paths in classes.items():
        assert re.fullmatch(r"\d{3}\..+", cls)
        assert len(paths) >= 64
        assert all(re.fullmatch(cls[:3] + r"_\d{4}\.jpg", path.name) for path in paths)
    strays = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.suffix != ".jpg")
    assert strays == ["056.dog/greg/vision309", "198.spider/RENAME2"]


def test_caltech_can_have_as_many_classes_as_the_original():
    assert len(set(caltech101_classes(102))) == 102
    assert sorted(int(cls[:3]) for cls in caltech256_classes(257)) == list(range(1, 258))


def test_the_folder_mixes_formats_and_transparency(tree):
    root = tree("folder")
    classes = [path for path in root.iterdir() if path.is_dir()]
    assert len(classes) == 4
    kinds = Counter()
    for path in root.rglob("*"):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            with Image.open(path) as image:
                kinds[image.format, image.mode] += 1
                if image.mode == "RGBA":
                    assert image.getchannel("A").getextrema() == (0, 255)
    assert set(kinds) == {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "RGBA")}
    assert all(count >= 4 for count in kinds.values())
    assert len(list(root.glob("*/notes.txt"))) == 1


# --- ILSVRC


@pytest.fixture(scope="session")
def ilsvrc(tree):
    return tree("ilsvrc")


def test_ilsvrc_lists_agree_with_the_files(ilsvrc):
    data, sets = ilsvrc / "ILSVRC/Data/CLS-LOC", ilsvrc / "ILSVRC/ImageSets/CLS-LOC"
    for name, part in (("train_cls", "train"), ("val", "val"), ("test", "test")):
        rows = [row.split() for row in lines(sets / f"{name}.txt")]
        assert [int(number) for _, number in rows] == list(range(1, len(rows) + 1))
        files = {path.relative_to(data / part).with_suffix("").as_posix() for path in (data / part).rglob("*.JPEG")}
        assert {path for path, _ in rows} == files
    wnids = [row.split(" ", 1)[0] for row in lines(ilsvrc / "LOC_synset_mapping.txt")]
    assert wnids == sorted(wnids)
    assert sorted(path.name for path in (data / "train").iterdir()) == wnids
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    numbers = [path.stem.split("_")[1] for path in (data / "train" / wnids[0]).iterdir()]
    assert len({len(number) for number in numbers}) > 1


def test_ilsvrc_numbers_of_the_kit_are_not_the_sorted_order(ilsvrc):
    kit = ilsvrc / "ILSVRC2012_devkit_t12" / "data"
    # read as torchvision.datasets.imagenet does
    rows = scipy.io.loadmat(kit / "meta.mat", squeeze_me=True)["synsets"]
    leaves = [row for row in rows if row["num_children"] == 0]
    wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    assert sorted(wnid_of) == list(range(1, 7))
    assert len(rows) == 7
    in_order = [wnid_of[number] for number in sorted(wnid_of)]
    assert in_order != sorted(in_order)
    assert sorted(in_order) == [row.split()[0] for row in lines(ilsvrc / "LOC_synset_mapping.txt")]
    truth = [wnid_of[int(number)] for number in lines(kit / "ILSVRC2012_validation_ground_truth.txt")]
    for number, wnid in enumerate(truth, start=1):
        path = ilsvrc / "ILSVRC/Annotations/CLS-LOC/val" / f"ILSVRC2012_val_{number:08d}.xml"
        assert {item.findtext("name") for item in objects(path)} == {wnid}
    assert set(Counter(truth).values()) == {4}


def test_ilsvrc_solution_holds_the_boxes_of_the_annotations(ilsvrc):
    with open(ilsvrc / "LOC_val_solution.csv", newline="", encoding="ascii") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["ImageId", "PredictionString"]
    assert sorted(image for image, _ in rows) != [image for image, _ in rows]
    for image, text in rows:
        words = text.split()
        found = [(words[k], *map(float, words[k + 1 : k + 5])) for k in range(0, len(words), 5)]
        items = objects(ilsvrc / "ILSVRC/Annotations/CLS-LOC/val" / f"{image}.xml")
        assert found == [(item.findtext("name"), *box(item)) for item in items]
    assert len(rows) == 24
    assert any(len(text.split()) > 5 for _, text in rows)


def test_ilsvrc_annotations_name_files_without_endings(ilsvrc):
    data = ilsvrc / "ILSVRC"
    train = list((data / "Annotations/CLS-LOC/train").rglob("*.xml"))
    images = list((data / "Data/CLS-LOC/train").rglob("*.JPEG"))
    assert len(images) / 2 < len(train) < len(images)  # not every training image has boxes
    for path in train:
        xml = ElementTree.parse(path).getroot()
        assert (xml.findtext("folder"), xml.findtext("filename")) == (path.parent.name, path.stem)
        assert {item.findtext("name") for item in xml.findall("object")} == {path.parent.name}
        file = data / "Data/CLS-LOC/train" / path.parent.name / f"{path.stem}.JPEG"
        with Image.open(file) as image:
            width, height = image.size
        assert all(1 <= b[0] <= b[2] <= width and 1 <= b[1] <= b[3] <= height for b in map(box, xml.findall("object")))


def test_ilsvrc_has_its_odd_files(ilsvrc):
    kinds = Counter()
    for path in (ilsvrc / "ILSVRC/Data").rglob("*.JPEG"):
        with Image.open(path) as image:
            image.load()
            kinds[image.format, image.mode] += 1
    assert kinds["PNG", "RGB"] == 1
    assert kinds["JPEG", "CMYK"] == 1
    assert kinds["JPEG", "L"] >= 6
    assert len(kinds) == 4


def test_more_classes_keep_the_old_names():
    few, many = synsets(20), synsets(240)
    assert [(s.wnid, s.look) for s in few] == [(s.wnid, s.look) for s in many[:20]]
    assert len({s.wnid for s in many}) == 240
    assert sorted(s.number for s in many) == list(range(1, 241))
