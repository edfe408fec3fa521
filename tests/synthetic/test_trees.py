import csv
import re
from collections import Counter
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.io
from PIL import Image

from rendered_files import box, lines, objects
from vggfeat.synthetic import LAYOUTS
from vggfeat.synthetic.drawing import generator
from vggfeat.synthetic.scenes import people_at_work, several_objects
from vggfeat.synthetic.trees import FAMILIES, caltech101_classes, caltech256_classes, deal, published, synsets


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


# fmt: off
CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]
ACTIONS = [
    "jumping", "other", "phoning", "playinginstrument", "reading", "ridingbike", "ridinghorse", "running",
    "takingphoto", "usingcomputer", "walking",
]
# fmt: on


# --- objects


@pytest.mark.parametrize(("name", "year"), [("voc2007", 2007), ("voc2012", 2012)])
def test_voc_lists_name_images_and_never_overlap(tree, name, year):
    root = tree(name) / "VOCdevkit" / f"VOC{year}"
    main = root / "ImageSets" / "Main"
    sets = {part: lines(main / f"{part}.txt") for part in ("train", "val", "trainval", "test")}
    counts = LAYOUTS[name].tiny
    assert [len(sets[part]) for part in ("train", "val", "test")] == [counts.train, counts.val, counts.test]
    assert sets["trainval"] == sorted(sets["train"] + sets["val"])
    everything = sets["trainval"] + sets["test"]
    assert len(set(everything)) == len(everything)
    images = {path.stem for path in (root / "JPEGImages").iterdir()}
    assert len(images - set(everything)) == counts.unlisted
    assert set(everything) <= images
    pattern = r"\d{6}" if year == 2007 else r"20(08|09|10|11)_\d{6}"
    assert all(re.fullmatch(pattern, image) for image in images)
    # no set is a run of neighbours
    assert min(sets["test"]) < max(sets["train"])


def test_voc2012_keeps_its_test_labels_and_annotations_to_itself(tree):
    root = tree("voc2012") / "VOCdevkit" / "VOC2012"
    test = lines(root / "ImageSets" / "Main" / "test.txt")
    assert [path.name for path in (root / "ImageSets" / "Main").glob("*_test.txt")] == []
    assert not any((root / "Annotations" / f"{image}.xml").exists() for image in test)
    assert all((root / "JPEGImages" / f"{image}.jpg").exists() for image in test)


@pytest.mark.parametrize(
    ("name", "year", "sets"), [("voc2007", 2007, ("trainval", "test")), ("voc2012", 2012, ("trainval",))]
)
def test_voc_labels_follow_from_the_annotations(tree, name, year, sets):
    root = tree(name) / "VOCdevkit" / f"VOC{year}"
    seen = Counter()
    for part in sets:
        ids = lines(root / "ImageSets" / "Main" / f"{part}.txt")
        found = {
            image: [
                (o.findtext("name"), o.findtext("difficult")) for o in objects(root / "Annotations" / f"{image}.xml")
            ]
            for image in ids
        }
        for cls in CLASSES:
            rows = lines(root / "ImageSets" / "Main" / f"{cls}_{part}.txt")
            assert [row.split()[0] for row in rows] == ids
            for row in rows:
                image, label = row.split()
                # the label is right-aligned in two columns behind one space
                assert row == image + " " + label.rjust(2)
                hard = {difficult for cls_found, difficult in found[image] if cls_found == cls}
                assert label == ("-1" if not hard else "1" if "0" in hard else "0")
                seen[label] += 1
    assert seen["0"] >= 10
    assert set(seen) == {"1", "0", "-1"}


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_every_voc_class_has_positives_in_every_set(tree, part):
    main = tree("voc2007") / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    assert sorted(path.name for path in main.glob(f"*_{part}.txt")) == [f"{cls}_{part}.txt" for cls in CLASSES]
    for cls in CLASSES:
        labels = [row.split()[1] for row in lines(main / f"{cls}_{part}.txt")]
        assert 2 <= labels.count("1") <= len(labels) / 2


def test_voc_annotations_are_of_their_images(tree):
    root = tree("voc2007") / "VOCdevkit" / "VOC2007"
    shapes = Counter()
    several = 0
    for path in (root / "Annotations").iterdir():
        xml = ElementTree.parse(path).getroot()
        with Image.open(root / "JPEGImages" / f"{path.stem}.jpg") as image:
            assert image.format == "JPEG"
            assert image.mode == "RGB"
            size = image.size
        shapes[size] += 1
        assert xml.findtext("folder") == "VOC2007"
        assert xml.findtext("filename") == f"{path.stem}.jpg"
        assert (int(xml.findtext("size/width")), int(xml.findtext("size/height"))) == size
        for item in xml.findall("object"):
            xmin, ymin, xmax, ymax = box(item)
            assert 1 <= xmin <= xmax <= size[0]
            assert 1 <= ymin <= ymax <= size[1]
        several += len(xml.findall("object")) > 1
    assert shapes.most_common(2)[0][0] == (96, 72)
    assert (72, 96) in shapes
    assert len(shapes) >= 4
    assert several > sum(shapes.values()) / 3


# --- actions


@pytest.fixture(scope="session")
def actions(tree):
    return tree("voc2012-action") / "VOCdevkit" / "VOC2012"


def action_rows(actions, action, part):
    return [row.split() for row in lines(actions / "ImageSets" / "Action" / f"{action}_{part}.txt")]


def test_action_lists_are_complete(actions):
    folder = actions / "ImageSets" / "Action"
    sets = ("test", "train", "trainval", "val")
    wanted = {f"{part}.txt" for part in sets} | {f"{action}_{part}.txt" for action in ACTIONS for part in sets}
    assert {path.name for path in folder.iterdir()} == wanted
    assert lines(folder / "trainval.txt") == sorted(lines(folder / "train.txt") + lines(folder / "val.txt"))


@pytest.mark.parametrize("part", ["train", "val", "trainval"])
def test_action_labels_follow_from_the_annotations(actions, part):
    ids = lines(actions / "ImageSets" / "Action" / f"{part}.txt")
    found = {image: objects(actions / "Annotations" / f"{image}.xml") for image in ids}
    everybody = [
        (image, str(number))
        for image in ids
        for number, item in enumerate(found[image], start=1)
        if item.findtext("name") == "person"
    ]
    for action in ACTIONS:
        rows = action_rows(actions, action, part)
        if action != "jumping":
            assert [(image, number) for image, number, _ in rows] == everybody
        for image, number, label in rows:
            done = found[image][int(number) - 1].findtext(f"actions/{action}")
            assert label == {"1": "1", "0": "-1"}[done]
        assert [label for *_, label in rows].count("1") >= 2
    assert any(int(number) > 1 for _, number in everybody)
    # some first object is not a person, so the number is not a count of people
    assert any(items[0].findtext("name") != "person" for items in found.values())


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_the_jumping_list_starts_later(actions, part):
    jumping = [tuple(row[:2]) for row in action_rows(actions, "jumping", part)]
    walking = [tuple(row[:2]) for row in action_rows(actions, "walking", part)]
    assert 0 < len(jumping) < len(walking)
    assert jumping == walking[len(walking) - len(jumping) :]
    missing = {image for image, _ in walking[: len(walking) - len(jumping)]}
    assert all(image.startswith("2010_") for image in missing)
    if part != "test":
        items = [item for image in missing for item in objects(actions / "Annotations" / f"{image}.xml")]
        assert all(item.find("actions/jumping") is None for item in items)


def test_other_excludes_every_action_and_some_people_do_two(actions):
    done = [
        [mark.tag for mark in item.find("actions") if mark.text == "1"]
        for image in lines(actions / "ImageSets" / "Action" / "trainval.txt")
        for item in objects(actions / "Annotations" / f"{image}.xml")
        if item.findtext("name") == "person"
    ]
    assert all(found == ["other"] for found in done if "other" in found)
    assert {len(found) for found in done} == {1, 2}


def test_test_people_have_boxes_and_no_actions(actions):
    for image, number in action_rows(actions, "walking", "test"):
        item = objects(actions / "Annotations" / f"{image}.xml")[int(number) - 1]
        assert item.find("actions") is None
        assert len(box(item)) == 4


def test_action_boxes_and_points_lie_inside_in_the_official_tag_order(actions):
    decimal = 0
    for path in (actions / "Annotations").iterdir():
        with Image.open(actions / "JPEGImages" / f"{path.stem}.jpg") as image:
            width, height = image.size
        for item in objects(path):
            xmin, ymin, xmax, ymax = box(item)
            assert 1 <= xmin <= xmax <= width
            assert 1 <= ymin <= ymax <= height
            assert [tag.tag for tag in item.find("bndbox")] == ["xmax", "xmin", "ymax", "ymin"]
            assert xmin <= float(item.findtext("point/x")) <= xmax
            assert ymin <= float(item.findtext("point/y")) <= ymax
            assert item.findtext("difficult") == "0"
            decimal += "." in item.findtext("bndbox/xmax")
    assert decimal > 0


@pytest.mark.parametrize("name", ["voc2007", "voc2012", "voc2012-action"])
def test_the_development_kit_can_read_every_annotation(tree, name):
    needed = ("folder", "filename", "segmented", *(f"size/{tag}" for tag in ("width", "height", "depth")))
    (folder,) = (tree(name) / "VOCdevkit").glob("VOC*/Annotations")
    for path in folder.iterdir():
        xml = ElementTree.parse(path).getroot()
        assert [tag.tag for tag in xml.find("source")] == ["database", "annotation", "image"]
        assert all(xml.findtext(tag) for tag in (*needed, "source/database", "source/annotation", "source/image"))
        # its VOCreadrecxml.m makes one array of the objects, and reads the inner tags of each if any has them
        assert len({tuple(sorted(tag.tag for tag in item)) for item in xml.findall("object")}) == 1


def test_boxes_hold_what_is_seen_and_no_more(tree, actions):
    objects_of = partial(several_objects, side=96, classes=FAMILIES)
    extras = [(name, look) for name, look in FAMILIES if look is not None]
    people_of = partial(people_at_work, side=120, extras=extras)
    root = tree("voc2007") / "VOCdevkit" / "VOC2007"
    drawn = [(root, "voc2007", f"{k:06d}", partial(objects_of, first=k % 20)) for k in range(1, 121, 6)]
    for k in (3, 14, 26):
        # the official order of the eleven classes decides who is drawn first
        image = f"2011_{k:06d}"
        draw = partial(people_of, actions=published(image), first=ACTIONS[k % 11])
        drawn.append((actions, "voc2012-action", image, draw))
    for root, name, image, draw in drawn:
        scene = draw(generator(0, name, image))
        items = objects(root / "Annotations" / f"{image}.xml")
        assert len(items) == len(scene.things) == scene.owner.max()
        for mark, item in enumerate(items, start=1):
            rows, columns = np.nonzero(scene.owner == mark)
            assert box(item) == (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)


def test_deal_mixes_sets_and_gives_each_its_count():
    dealt = deal({"train": 40, "val": 25, "test": 60}, 20)
    assert {name: len(numbers) for name, numbers in dealt.items()} == {"train": 40, "val": 25, "test": 60}
    assert sorted(number for numbers in dealt.values() for number in numbers) == list(range(1, 126))
    assert dealt["train"][:20] == list(range(1, 21))
    assert dealt["train"][20] > min(dealt["val"])
