"""The front door: names, roots, official numbers and the check of a copy against them."""

import dataclasses
import hashlib
import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest

from vggfeat.datasets import caltech, folder, manifest, voc
from vggfeat.datasets.catalogue import DATASETS, lookup, open_dataset, resolve_root
from vggfeat.datasets.check import DatasetReport, MissingImage, check_copy, write_splits
from vggfeat.datasets.record import Count
from vggfeat.errors import ConfigError, DatasetError, StoreError

PAGES = Path(__file__).parents[2] / "data"


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def make_voc(tree: Path, positives: dict[tuple[str, str], int], **sizes: int) -> Path:
    """Write a VOC tree whose sets have these sizes; the first images of a set are the positives of a class."""
    numbers = itertools.count(1)
    (tree / "JPEGImages").mkdir(parents=True)
    for name, size in sizes.items():
        ids = [f"{next(numbers):06d}" for _ in range(size)]
        put(tree / f"ImageSets/Main/{name}.txt", "".join(f"{image}\n" for image in ids))
        for cls in voc.CLASSES:
            count = positives.get((name, cls), 0)
            lines = [f"{image} {1 if row < count else -1:2d}\n" for row, image in enumerate(ids)]
            put(tree / f"ImageSets/Main/{cls}_{name}.txt", "".join(lines))
        for image in ids:
            (tree / f"JPEGImages/{image}.jpg").write_bytes(b"x")
    return tree


def make_actions(tree: Path) -> Path:
    for name, image in (("train", "2010_000001"), ("val", "2010_000002")):
        put(tree / f"ImageSets/Action/{name}.txt", f"{image}\n")
        for action in voc.ACTIONS:
            put(tree / f"ImageSets/Action/{action}_{name}.txt", f"{image} 1 1\n{image} 2 -1\n")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        people = f"<object><name>person</name>{box}</object>" * 2
        put(tree / f"Annotations/{image}.xml", f"<annotation>{people}</annotation>")
        put(tree / f"JPEGImages/{image}.jpg")
    return tree


def make_caltech(tree: Path, sizes: dict[str, int]) -> Path:
    for cls, size in sizes.items():
        (tree / cls).mkdir(parents=True)
        for number in range(size):
            (tree / cls / f"image_{number:04d}.jpg").write_bytes(b"x")
    return tree


def count_of(report: DatasetReport, split: str, what: str) -> Count:
    (count,) = [count for count in report.counts if (count.split, count.what) == (split, what)]
    return count


@pytest.fixture
def images(tmp_path: Path) -> Path:
    put(tmp_path / "images/cat/a.jpg")
    put(tmp_path / "images/dog/b.jpg")
    return tmp_path / "images"


def official(name: str, split: str, what: str) -> int | None:
    (count,) = [count for count in DATASETS[name].counts if (count.split, count.what) == (split, what)]
    return count.expected


class TestFacts:
    def test_the_order_is_that_of_the_papers_tables_and_your_own_come_last(self):
        names = list(DATASETS)
        assert names[:5] == ["voc2007", "voc2012", "voc2012-action", "caltech101", "caltech256"]
        assert names[-2:] == ["folder", "manifest"]

    @pytest.mark.parametrize(
        ("name", "unit"),
        [("voc2007", "images"), ("voc2012", "images"), ("voc2012-action", "images"), ("voc2012-action", "people")],
    )
    def test_train_and_val_add_up(self, name, unit):
        assert official(name, "train", unit) + official(name, "val", unit) == official(name, "trainval", unit)

    def test_known_sums_hold(self):
        # 9,963 images are the whole of VOC2007
        assert official("voc2007", "trainval", "images") + official("voc2007", "test", "images") == 9963
        # 8,677 images are Caltech-101 without its background
        assert official("caltech101", "all", "images") - official("caltech101", "all", "BACKGROUND_Google") == 8677
        assert official("caltech101", "train-2", "images") == 102 * 30
        assert official("caltech101", "held-out-3", "images") == 102 * 6
        assert official("caltech256", "train-1", "images") == 257 * 60
        assert official("caltech256", "test-1", "images") == 30607 - 257 * 60

    def test_numbers_by_class_name_classes_of_the_reader(self):
        for name, classes in (("voc2007", voc.CLASSES), ("voc2012", voc.CLASSES), ("voc2012-action", voc.ACTIONS)):
            found = [count.what for count in DATASETS[name].counts if count.split == "trainval"]
            assert [what for what in found if what not in ("images", "people")] == list(classes)

    def test_defaults_are_those_of_appendix_b(self):
        voc_like = [DATASETS[name] for name in ("voc2007", "voc2012", "voc2012-action")]
        assert all(record.scales == (256, 384, 512, 640, 768) and record.join == "mean" for record in voc_like)
        caltech_like = [DATASETS[name] for name in ("caltech101", "caltech256")]
        assert all(record.scales == (256, 384, 512) and record.join == "stack" for record in caltech_like)
        assert [name for name in DATASETS if DATASETS[name].regions == ("image", "box")] == ["voc2012-action"]

    @pytest.mark.parametrize("name", DATASETS)
    def test_the_page_of_a_set_says_the_same(self, name):
        text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        for archive in DATASETS[name].archives:
            assert archive.file in text
            assert archive.checksum in text
            assert f"<{archive.page}>" in text
        for count in DATASETS[name].counts:
            assert re.search(rf"\b{count.expected}\b", text), f"{count} is not on the page"
        assert f"({name}.md)" in (PAGES / "README.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("name", DATASETS)
    def test_checksums_have_the_length_of_their_kind(self, name):
        for archive in DATASETS[name].archives:
            assert len(bytes.fromhex(archive.checksum)) == hashlib.new(archive.algorithm).digest_size


class TestRoot:
    def test_the_given_root_wins_then_the_variable_then_data(self, monkeypatch):
        monkeypatch.setenv("VGGFEAT_DATA", "/sets")
        assert resolve_root("voc2007", "x/y") == Path("x/y")
        assert resolve_root("voc2007") == Path("/sets/voc2007")
        monkeypatch.setenv("VGGFEAT_DATA", "")
        assert resolve_root("voc2007") == Path("data/voc2007")
        monkeypatch.delenv("VGGFEAT_DATA")
        assert resolve_root("voc2007") == Path("data/voc2007")

    @pytest.mark.parametrize(("name", "near"), [("voc207", "voc2007"), ("caltech-101", "caltech101")])
    def test_an_unknown_name_is_answered_with_the_nearest_or_with_all(self, name, near):
        for function in (lookup, resolve_root, open_dataset, check_copy):
            with pytest.raises(ConfigError, match=f"did you mean {near}"):
                function(name)
        with pytest.raises(ConfigError, match=rf"{', '.join(DATASETS)}, found 'q'$"):
            lookup("q")


class TestOpen:
    def test_each_name_of_the_paper_and_your_own_opens_its_reader(self, tmp_path, images):
        make_voc(tmp_path / "VOC2007", {}, train=1, val=1, test=1)
        make_voc(tmp_path / "VOC2012", {}, train=1, val=1)
        make_actions(tmp_path / "VOC2012")
        make_caltech(tmp_path / "101_ObjectCategories", {"ant": 31})
        make_caltech(tmp_path / "256_ObjectCategories", {"056.dog": 61})
        put(tmp_path / "manifest.csv", "path\nimages/cat/a.jpg\n")
        roots = {name: tmp_path for name, record in DATASETS.items() if record.paper} | {"folder": images}
        opened = {name: open_dataset(name, root) for name, root in (roots | {"manifest": tmp_path}).items()}
        assert {name: data.name for name, data in opened.items()} == {name: name for name in opened}
        for name, data in opened.items():
            assert DATASETS[name].task in (None, data.task)
        assert opened["folder"].fingerprint() == folder.read(images).fingerprint()

    def test_the_root_is_found_in_the_environment(self, tmp_path, images, monkeypatch):
        monkeypatch.setenv("VGGFEAT_DATA", str(tmp_path))
        images.rename(tmp_path / "folder")
        assert len(open_dataset("folder")) == 2

    def test_a_manifest_may_be_named_itself_and_a_folder_without_one_is_no_copy_to_unpack(self, tmp_path):
        with pytest.raises(DatasetError, match=r"manifest.csv: expected the list of the images, found none"):
            open_dataset("manifest", tmp_path)
        path = put(tmp_path / "mine.csv", "path\na.jpg\n")
        assert open_dataset("manifest", path).ids == ("a.jpg",)

    def test_nothing_there_says_where_it_was_looked_for_and_what_to_do(self, tmp_path):
        with pytest.raises(DatasetError) as caught:
            open_dataset("voc2007", tmp_path / "nowhere")
        for part in (str(tmp_path / "nowhere"), "--root", "VGGFEAT_DATA", "vggfeat data check voc2007"):
            assert part in str(caught.value)

    @pytest.mark.parametrize("name", ["folder", "manifest"])
    def test_of_your_own_images_nobody_else_knows_a_place(self, tmp_path, name):
        (tmp_path / "photos").mkdir()
        for place, remedy in (("photso", f"did you mean {tmp_path / 'photos'}?"), ("xyz", "correct --root")):
            with pytest.raises(DatasetError) as caught:
                open_dataset(name, tmp_path / place)
            assert str(caught.value).endswith(remedy)
            assert "published" not in str(caught.value)


class TestCheck:
    def test_a_full_caltech101_is_complete_and_one_image_less_is_not(self, tmp_path):
        others = [f"category_{number:02d}" for number in range(99)]
        sizes = {"BACKGROUND_Google": 467, "airplanes": 800, "inline_skate": 31}
        # 9144 - 467 - 800 - 31 = 7846 = 99 * 79 + 25
        sizes |= {name: 80 if number < 25 else 79 for number, name in enumerate(others)}
        tree = make_caltech(tmp_path / "101_ObjectCategories", sizes)
        report = check_copy("caltech101", tmp_path)
        assert report.complete
        assert count_of(report, "all", "images") == Count("all", "images", 9144, 9144)
        assert count_of(report, "all", "classes") == Count("all", "classes", 102, 102)
        assert count_of(report, "test-1", "inline_skate") == Count("test-1", "inline_skate", 1, None)
        # at most 50 to test: 101 classes have more than 80 - 1 - 30 = 49 left, inline_skate has 1
        assert count_of(report, "test-2", "images").found == 2 * 50 + 25 * 50 + 74 * 49 + 1

        (tree / "airplanes" / "image_0000.jpg").unlink()
        report = check_copy("caltech101", tmp_path)
        assert not report.complete
        wrong = [(count.what, count.found) for count in report.counts if not count.agrees]
        assert wrong == [("images", 9143), ("airplanes", 799)]

    def test_a_full_voc2007_is_complete_and_without_its_test_archive_is_not(self, tmp_path):
        positives = {
            (split, count.what): count.expected
            for count in DATASETS["voc2007"].counts
            for split in ("train", "test")
            if count.what in voc.CLASSES and count.split in (split, f"{split}val")
        }
        tree = make_voc(tmp_path / "VOCdevkit/VOC2007", positives, train=2501, val=2510, test=4952)
        report = check_copy("voc2007", tmp_path)
        assert report.complete
        assert report.problem is None
        assert report.missing == ()
        assert report.notes == ()
        assert count_of(report, "trainval", "person") == Count("trainval", "person", 2008, 2008)
        (tree / "ImageSets/Main/test.txt").unlink()
        report = check_copy("voc2007", tmp_path)
        assert not report.complete
        assert count_of(report, "test", "images") == Count("test", "images", 0, 4952)
        assert "VOCtest_06-Nov-2007.tar" in report.notes[0]
        assert report.archives == DATASETS["voc2007"].archives

    def test_absent_empty_and_irregular_images_are_missing(self, tmp_path, images):
        (images / "cat/broken.jpg").symlink_to("nowhere")
        (images / "cat/empty.jpg").write_bytes(b"")
        os.mkfifo(images / "dog/pipe.jpg")
        report = check_copy("folder", images)
        assert report.missing == (
            MissingImage("cat/broken.jpg", "No such file or directory"),
            MissingImage("cat/empty.jpg", "empty"),
            MissingImage("dog/pipe.jpg", "not a regular file"),
        )
        assert not report.complete

    def test_your_own_images_are_complete_if_all_are_there(self, images):
        report = check_copy("folder", images)
        assert report.complete
        assert report.archives == ()
        found = {(count.split, count.what): count.found for count in report.counts}
        assert found == {("all", "classes"): 2, ("all", "images"): 2, ("all", "cat"): 1, ("all", "dog"): 1}

    def test_people_and_images_are_counted_apart(self, tmp_path):
        make_actions(tmp_path / "VOC2012")
        report = check_copy("voc2012-action", tmp_path)
        assert not report.complete
        assert count_of(report, "trainval", "people") == Count("trainval", "people", 4, 6278)
        assert count_of(report, "trainval", "images") == Count("trainval", "images", 2, 4588)
        assert count_of(report, "trainval", "reading") == Count("trainval", "reading", 2, 530)

    def test_numbers_that_were_not_verified_never_fail_a_copy(self, tmp_path, monkeypatch):
        make_voc(tmp_path / "VOC2012", {}, train=2, val=1, test=3)
        unverified = tuple(count for count in DATASETS["voc2012"].counts if not count.verified)
        assert [count.what for count in unverified] == ["images"]
        monkeypatch.setattr(
            "vggfeat.datasets.catalogue.DATASETS",
            {"voc2012": dataclasses.replace(DATASETS["voc2012"], counts=unverified)},
        )
        report = check_copy("voc2012", tmp_path)
        count = count_of(report, "test", "images")
        assert (count.found, count.expected, count.verified) == (3, 10991, False)
        assert report.complete

    def test_withheld_labels_are_not_counted(self, tmp_path):
        make_voc(tmp_path / "VOC2012", {("test", "cat"): 2, ("val", "cat"): 1}, train=2, val=1, test=3)
        report = check_copy("voc2012", tmp_path)
        assert count_of(report, "test", "cat").found is None
        assert count_of(report, "val", "cat").found == 1

    def test_a_copy_that_cannot_be_read_is_reported_with_its_archives(self, tmp_path):
        report = check_copy("caltech256", tmp_path)
        assert not report.complete
        assert "256_ObjectCategories" in report.problem
        assert report.archives[0].page == "https://data.caltech.edu/records/nyy15-4j048"
        assert [count.found for count in report.counts] == [None] * len(DATASETS["caltech256"].counts)


class TestWriteSplits:
    def test_one_file_per_split_one_id_per_line(self, tmp_path):
        make_caltech(tmp_path / "tree", {"ant": 4, "bee": 5})
        data = caltech.read(tmp_path / "tree", 101, rule=caltech.SplitRule(train=2, held_out=1, test=1), splits=2)
        written = write_splits(data, tmp_path / "new" / "folder")
        assert [path.name for path in written] == [f"{split}.txt" for split in data.splits]
        for split, path in zip(data.splits, written, strict=True):
            assert path.read_bytes() == b"".join(f"{data.ids[row]}\n".encode() for row in data.splits[split])
        assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {path.name for path in written}

    @pytest.mark.parametrize("name", ["new\nline.jpg", "end.jpg\n", "carriage\rreturn.jpg", "\u2028.jpg"])
    def test_an_id_with_a_line_break_is_refused_before_anything_is_written(self, tmp_path, name):
        data = manifest.read_manifest(put(tmp_path / "list.csv", "path,split\na.jpg,train\nb.jpg,test\n"))
        data = dataclasses.replace(data, ids=("a.jpg", name))
        with pytest.raises(DatasetError, match="expected ids of one line") as caught:
            write_splits(data, tmp_path / "out")
        assert repr(name) in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_what_cannot_be_written_is_refused_by_name(self, images, tmp_path):
        data = folder.read(images)
        with pytest.raises(DatasetError, match="expected splits"):
            write_splits(data, tmp_path / "out")
        with pytest.raises(DatasetError, match=r"'\.\./x'"):
            write_splits(dataclasses.replace(data, splits={"../x": np.array([0])}), tmp_path / "out")
        put(tmp_path / "out")
        with pytest.raises(StoreError, match=r"out/train\.txt: writing failed"):
            write_splits(dataclasses.replace(data, splits={"train": np.array([0])}), tmp_path / "out")
