"""ILSVRC trees and other class folders: layouts, label order, and what is wrong with a copy."""

import hashlib
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from vggfeat import synthetic
from vggfeat.datasets import ilsvrc
from vggfeat.errors import DatasetError
from vggfeat.samples import LabelledImages, Shards


def put(root: Path, *names: str) -> Path:
    """Links that lead nowhere: whoever opens an image, or only asks what it is, fails."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink("/nowhere", root / name)
    return root


def put_kit(folder: Path, classes: list[tuple[int, str, str]], truth: list[int], field: str = "ILSVRC2012_ID") -> None:
    """A kit of classes (its number, WNID, words)."""
    folder.mkdir(parents=True)
    table = np.zeros((len(classes), 1), dtype=[(name, object) for name in (field, "WNID", "words", "num_children")])
    for row, (number, wnid, words) in enumerate(classes):
        table[row, 0] = (float(number), wnid, words, 0.0)
    savemat(folder / "meta.mat", {"synsets": table})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in truth))


def labels(images: LabelledImages) -> dict[str, str]:
    return {path: images.classes[target] for path, target in zip(images.paths, images.targets, strict=True)}


KIT = [(1, "n02119789", "kit fox"), (2, "n01440764", "tench"), (3, "n01751748", "sea snake"), (4, "n0", "entity")]
TRAIN = ["train/n02119789/a.JPEG", "train/n01440764/b.JPEG", "train/n01751748/c.JPEG"]
VAL = [f"val/ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2, 3, 4)]


# Layouts


def test_class_folders_are_numbered_in_the_order_of_their_names(tmp_path):
    put(tmp_path, "train/dog/2.jpg", "train/dog/1.PNG", "train/Cat/deep/er/3.webp", "val/Cat/4.jpg", "val/dog/5.JPEG")
    put(
        tmp_path, "train/dog/notes.txt", "train/dog/.hidden.jpg", "train/.git/x.jpg", "train/empty/readme", "test/6.jpg"
    )
    data = ilsvrc.read(tmp_path)
    assert data.classes == data.train.classes == data.val.classes == ("Cat", "dog")
    assert data.train.paths == ("train/Cat/deep/er/3.webp", "train/dog/1.PNG", "train/dog/2.jpg")
    assert data.train.targets.tolist() == [0, 1, 1]
    assert (data.val.paths, data.val.targets.tolist()) == (("val/Cat/4.jpg", "val/dog/5.JPEG"), [0, 1])
    assert data.train.place(1) == (str(tmp_path / "train/dog/1.PNG"), None)
    assert data.words == {}
    assert data.layout == "train and val in class folders"


@pytest.mark.parametrize(
    "place", ["ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12", "../ILSVRC2012_devkit_t12/data"]
)
def test_a_flat_val_is_labelled_by_the_kit_whose_numbers_are_not_the_label_order(tmp_path, place):
    root = put(tmp_path / "imagenet", *TRAIN, *VAL)
    put_kit(root / place, KIT, [3, 1, 2, 1])
    data = ilsvrc.read(root)
    # Kit fox is the kit's first class, and the last by WNID.
    assert data.classes == ("n01440764", "n01751748", "n02119789")
    assert labels(data.val) == dict(zip(VAL, ["n01751748", "n02119789", "n01440764", "n02119789"], strict=True))
    assert data.words == {"n02119789": "kit fox", "n01440764": "tench", "n01751748": "sea snake"}
    assert data.layout == "train in class folders, flat val labelled by ILSVRC2012_validation_ground_truth.txt"


def test_folders_as_the_archives_are_called_and_a_kit_of_a_later_year(tmp_path):
    put(tmp_path, *(name.replace("train/", "ILSVRC2012_img_train/") for name in TRAIN))
    put(tmp_path, *(name.replace("val/", "ILSVRC2012_img_val/") for name in VAL))
    put_kit(tmp_path / "data", KIT, [3, 1, 2, 1], field="ILSVRC2014_ID")
    assert list(labels(ilsvrc.read(tmp_path).val).values()) == ["n01440764", "n01751748", "n02119789", "n02119789"]


@pytest.mark.parametrize("inner", ["", "ILSVRC"])
def test_the_kaggle_tree_is_labelled_by_its_list_in_any_order(tmp_path, inner):
    put(tmp_path / "ILSVRC/Data/CLS-LOC", *TRAIN, *VAL)
    stems = [Path(name).stem for name in VAL]
    rows = [f"{stems[3]},n02119789 1 2 3 4 n02119789 5 6 7 8 ", f"{stems[0]},n01751748 1 2 3 4 "]
    rows += [f"{stems[2]},n01440764 1 2 3 4 ", f"{stems[1]},n02119789 1 2 3 4 ", "of_another,n1 1 2 3 4"]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows, ""]))
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn02119789 kit fox\n")
    data = ilsvrc.read(tmp_path / inner)
    named = {Path(path).name: name for path, name in labels(data.val).items()}
    wanted = ["n01751748", "n02119789", "n01440764", "n02119789"]
    assert named == {f"{stem}.JPEG": name for stem, name in zip(stems, wanted, strict=True)}
    assert data.words == {"n01440764": "tench, Tinca tinca", "n02119789": "kit fox"}
    assert os.path.islink(data.train.place(0).file)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("rendered")
    synthetic.write("ilsvrc", root, size=synthetic.Settings(image_side=32, classes=5, train=3, val=12))
    return root


def test_the_rendered_set_has_the_labels_of_its_annotations(rendered):
    data = ilsvrc.read(rendered)
    assert (len(data.classes), len(data.train), len(data.val)) == (5, 15, 12)
    for path, name in labels(data.val).items():
        xml = rendered / path.replace("Data", "Annotations").replace(".JPEG", ".xml")
        assert {item.text for item in ElementTree.parse(xml).iterfind("object/name")} == {name}
    assert all(f"/{name}/" in path for path, name in labels(data.train).items())
    assert set(data.words) == set(data.classes)


def test_the_kit_and_the_list_of_the_rendered_set_agree(rendered, tmp_path):
    by_kit = ilsvrc.read(rendered)
    for name in ("ILSVRC", "LOC_val_solution.csv"):
        os.symlink(rendered / name, tmp_path / name)
    by_list = ilsvrc.read(tmp_path)
    assert by_kit.layout != by_list.layout
    assert by_kit.val.fingerprint() == by_list.val.fingerprint()


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_without_validation_images_a_tenth_of_each_class_is_held_out_by_hash(tmp_path, prefix):
    names = [f"{prefix}{cls}/{n}.jpg" for cls, count in (("cat", 20), ("dog", 2)) for n in range(count)]
    data = ilsvrc.read(put(tmp_path, *names))

    def rank(cls):
        paths = [name for name in names if f"{cls}/" in name]
        return sorted(paths, key=lambda path: hashlib.sha256(f"{cls}/{path}".encode()).hexdigest())

    assert data.val.paths == (*sorted(rank("cat")[:2]), rank("dog")[0])
    assert sorted(data.train.paths + data.val.paths) == sorted(names)
    assert "10% of each class held out" in data.layout


# Faults


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "expected images in class folders, found none"),
        (["a.jpg", "b.jpg"], "expected images in class folders, found none"),
        (["train/cat/1.jpg", "val/cat/2.jpg"], "at least 2 classes, found only cat"),
        (["train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/b/1.jpg"], "found only in train: a, c; add images"),
        (["train/a/1.jpg", "val/b/1.jpg", "val/a/1.jpg"], "found only in val: b"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/2.jpg"], "found both, for instance val/2.jpg"),
        (["val/a/1.jpg", "val/b/1.jpg"], "expected train next to val"),
        (["a/1.jpg", "a/2.jpg", "b/1.jpg"], "at least 2 images in each class, .* found 1 in b"),
        ([*TRAIN, *VAL], "expected labels of the flat validation images, found none; unpack ILSVRC2012_devkit_t12"),
        ([*TRAIN, "val/readme.txt"], "found only in train: n01440764, n01751748, n02119789"),
    ],
)
def test_a_copy_that_can_not_be_trained_on_is_refused_in_one_line(tmp_path, names, words):
    with pytest.raises(DatasetError, match=words) as caught:
        ilsvrc.read(put(tmp_path, *names))
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match="gone: expected a folder with train/CLASS/IMAGE"):
        ilsvrc.read(tmp_path / "gone")


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ([3, 1, 2], "expected 3 images there, one per line of .*ground_truth.txt, found 4"),
        ([3, 1, 2, 5], "line 4: expected the number of a class of the kit, found '5'"),
        ([3, 1, 2, 4], "found only in val: n0"),
        ([3, 1, 1, 1], "found only in train: n01440764"),
    ],
)
def test_a_kit_that_disagrees_with_val_is_refused(tmp_path, truth, words):
    put_kit(put(tmp_path, *TRAIN, *VAL) / "ILSVRC2012_devkit_t12/data", KIT, truth)
    with pytest.raises(DatasetError, match=words):
        ilsvrc.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file, cut off", b"\0" * 400])
def test_a_damaged_kit_is_named(tmp_path, content):
    put_kit(put(tmp_path, *TRAIN, *VAL) / "devkit/data", KIT, [3, 1, 2, 1])
    (tmp_path / "devkit/data/meta.mat").write_bytes(content)
    with pytest.raises(DatasetError, match=r"meta.mat: expected the classes of the development kit, .* unpack the kit"):
        ilsvrc.read(tmp_path)


def test_a_list_that_lacks_an_image_or_a_label_is_named(tmp_path):
    put(tmp_path, *TRAIN, *VAL)
    path = tmp_path / "LOC_val_solution.csv"
    path.write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4\n")
    with pytest.raises(DatasetError, match=r"found none for ILSVRC2012_val_00000002, .*03, .*04"):
        ilsvrc.read(tmp_path)
    path.write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,\n")
    with pytest.raises(DatasetError, match="line 2: expected a name and its label, found 'ILSVRC2012_val_00000001,'"):
        ilsvrc.read(tmp_path)


# The list itself


def listed(**changes):
    return LabelledImages(**{
        "root": Path("/a"), "paths": ("b", "c"), "targets": np.array([0, 1]), "classes": ("k", "l"), **changes,
    })  # fmt: skip


def test_the_fingerprint_tells_lists_apart_and_not_their_roots():
    shards = Shards(("s",), np.array([[0, 1, 2], [0, 3, 4]]))
    moved = Shards(("s",), np.array([[0, 1, 2], [0, 3, 5]]))
    lists = [
        listed(),
        listed(paths=("c", "b")),
        listed(targets=np.array([1, 0])),
        listed(classes=("k", "m")),
        listed(shards=shards),
        listed(shards=moved),
        listed(shards=shards._replace(files=("t",))),
    ]
    assert len({one.fingerprint() for one in lists}) == len(lists)
    assert listed(root=Path("/b")).fingerprint() == listed().fingerprint()
    assert listed(shards=moved).place(1) == ("/a/s", (3, 5))


@pytest.mark.parametrize(
    "changes", [{"targets": np.array([0])}, {"targets": np.array([0, 2])}, {"shards": Shards((), np.zeros((1, 3)))}]
)
def test_a_list_of_unequal_columns_is_refused(changes):
    with pytest.raises(DatasetError, match="/a: expected"):
        listed(**changes)


def test_a_name_that_is_not_utf8_is_kept(tmp_path):
    put(tmp_path, "train/a/caf\udce9.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg")
    data = ilsvrc.read(tmp_path)
    assert data.train.paths[0] == "train/a/caf\udce9.jpg"
    assert len(data.train.fingerprint()) == 64
    put(tmp_path, "train/\udce9/1.jpg")
    with pytest.raises(DatasetError, match=r"expected class names in UTF-8, found train/\\xe9"):
        ilsvrc.read(tmp_path)
