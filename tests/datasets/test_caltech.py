"""The Caltech sets on imitations of their trees, and the rule of their splits against hashlib alone."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from vggfeat.datasets import caltech, files
from vggfeat.datasets.caltech import SplitRule
from vggfeat.errors import ConfigError, DatasetError
from vggfeat.samples import Task, rank_by_hash

DATA_PAGES = Path(__file__).parents[2] / "data"
SMALL = SplitRule(train=3, held_out=1, test=2)


def fill(folder: Path, count: int, pattern: str = "image_{:04d}.jpg") -> None:
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        (folder / pattern.format(number)).write_bytes(b"x")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three classes of 4, 5 and 9 images, so that SMALL leaves 1, 2 and 6 to test, of which 2 are taken."""
    tree = tmp_path / "101_ObjectCategories"
    for cls, count in (("wrench", 4), ("BACKGROUND_Google", 5), ("accordion", 9)):
        fill(tree / cls, count)
    return tree


def draw_by_hand(seed: int, cls: str, names: list[str], train: int, held_out: int, most: int) -> dict[str, set[str]]:
    keyed = sorted((hashlib.sha256(f"{seed}/{cls}/{name}".encode()).hexdigest(), name) for name in names)
    ids = [f"{cls}/{name}" for _, name in keyed]
    return {"train": set(ids[:train]), "held-out": set(ids[:held_out]), "test": set(ids[train : train + most])}


def ids_of(data: object, split: str) -> set[str]:
    return {data.ids[row] for row in data.splits[split]}


class TestRule:
    def test_the_worked_example_of_the_data_pages_holds(self):
        text = (DATA_PAGES / "README.md").read_text(encoding="utf-8")
        lines = re.findall(r"^    ([0-9a-f]{64})  (0/accordion/(image_\d{4}\.jpg))$", text, re.MULTILINE)
        assert len(lines) == 3
        for digest, key, _ in lines:
            assert hashlib.sha256(key.encode()).hexdigest() == digest
        said = re.search(r"their order is ((?:image_\d{4}\.jpg(?:, )?)+)", text)
        assert said is not None
        order = said[1].split(", ")
        assert order == [name for _, _, name in sorted(lines)]
        assert order == rank_by_hash("0/accordion", [name for _, _, name in lines])

    def test_ranks_go_to_training_then_to_test_in_the_numbers_of_the_paper(self):
        # 20 % of 30 and of 60 training images
        assert caltech.OFFICIAL[101] == SplitRule(train=30, held_out=6, test=50)
        assert caltech.OFFICIAL[256] == SplitRule(train=60, held_out=12, test=None)
        names = [f"image_{number:04d}.jpg" for number in range(1, 101)]
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"0/accordion/{name}".encode()).digest())
        for drawn in (caltech.OFFICIAL[101].draw(0, "accordion", given) for given in (names, names[::-1])):
            assert (drawn.train, drawn.held_out, drawn.test) == (ranked[:30], ranked[:6], ranked[30:80])

    def test_without_a_bound_all_the_rest_is_to_test(self):
        drawn = caltech.OFFICIAL[256].draw(0, "257.clutter", [str(number) for number in range(827)])
        assert (len(drawn.train), len(drawn.held_out), len(drawn.test)) == (60, 12, 767)

    def test_the_smallest_class_leaves_one_image_to_test(self):
        names = [str(number) for number in range(31)]
        assert len(caltech.OFFICIAL[101].draw(0, "inline_skate", names).test) == 1
        with pytest.raises(DatasetError, match=r"inline_skate: expected at least 31 images.*found 30"):
            caltech.OFFICIAL[101].draw(0, "inline_skate", names[:30])

    @pytest.mark.parametrize("numbers", [(0, 0, 1), (3, 3, 1), (3, -1, 1), (3, 1, 0)])
    def test_impossible_numbers_are_refused(self, numbers):
        with pytest.raises(ConfigError, match="split rule"):
            SplitRule(train=numbers[0], held_out=numbers[1], test=numbers[2])


class TestRead:
    def test_rows_and_labels_follow_the_folders(self, small):
        data = caltech.read(small, 101, rule=SMALL)
        assert (data.name, data.task) == ("caltech101", Task.SINGLE_LABEL)
        assert data.classes == ("BACKGROUND_Google", "accordion", "wrench")
        assert len(data) == 18
        assert data.ids[0] == data.paths[0] == "BACKGROUND_Google/image_0001.jpg"
        for row, name in enumerate(data.ids):
            positive = data.classes.index(name.split("/")[0])
            assert data.labels[row].tolist() == [1 if column == positive else -1 for column in range(3)]
        assert data.boxes is None
        assert data.notes == ()

    def test_splits_are_those_of_hashlib_in_ascending_rows(self, small):
        data = caltech.read(small, 101, seed=5, rule=SMALL)
        assert list(data.splits) == [f"{part}-{k}" for k in (1, 2, 3) for part in ("train", "held-out", "test")]
        for k in (1, 2, 3):
            wanted: dict[str, set[str]] = {"train": set(), "held-out": set(), "test": set()}
            for cls in data.classes:
                names = [path.name for path in (small / cls).iterdir()]
                for part, ids in draw_by_hand(5 + k - 1, cls, names, 3, 1, 2).items():
                    wanted[part] |= ids
            assert {part: ids_of(data, f"{part}-{k}") for part in wanted} == wanted
        assert all((np.diff(rows) > 0).all() for rows in data.splits.values())

    def test_held_out_is_a_part_of_train_and_test_is_not(self, small):
        data = caltech.read(small, 101, rule=SMALL)
        for k in (1, 2, 3):
            train, held_out, test = (ids_of(data, f"{part}-{k}") for part in ("train", "held-out", "test"))
            assert held_out < train
            assert not train & test
            assert (len(train), len(held_out), len(test)) == (9, 3, 1 + 2 + 2)

    def test_the_next_split_is_the_first_of_the_next_seed(self, small):
        data = caltech.read(small, 101, seed=0, splits=2, rule=SMALL)
        later = caltech.read(small, 101, seed=1, splits=1, rule=SMALL)
        assert ids_of(data, "train-2") == ids_of(later, "train-1")
        assert ids_of(data, "train-1") != ids_of(later, "train-1")
        assert "train-3" not in data.splits

    def test_official_sizes_on_full_classes(self, tmp_path):
        for cls, count in (("inline_skate", 31), ("airplanes", 800), ("ant", 42)):
            fill(tmp_path / "101_ObjectCategories" / cls, count)
        data = caltech.read(tmp_path, 101)
        test = [data.ids[row].split("/")[0] for row in data.splits["test-1"]]
        assert {cls: test.count(cls) for cls in data.classes} == {"airplanes": 50, "ant": 12, "inline_skate": 1}
        assert len(data.splits["train-3"]) == 3 * 30
        assert len(data.splits["held-out-2"]) == 3 * 6

    def test_caltech256_names_may_hold_dots_and_hyphens(self, tmp_path):
        tree = tmp_path / "256_ObjectCategories"
        for name in ("232.t-shirt", "056.dog", "257.clutter"):
            fill(tree / name, 80, name[:3] + "_{:04d}.jpg")
        (tree / "not-a-class").mkdir()
        data = caltech.read(tmp_path, 256)
        assert data.name == "caltech256"
        assert data.classes == ("056.dog", "232.t-shirt", "257.clutter")
        assert len(data.splits["test-1"]) == 3 * 20
        assert "not-a-class/" in data.notes[0]

    def test_strays_are_ignored_and_named(self, small):
        (small / "BACKGROUND_Google" / "tmp").write_bytes(b"x")
        fill(small / "accordion" / "greg", 4)
        (small / "accordion" / "greg" / "vision309").write_bytes(b"x")
        (small / "wrench" / "RENAME2").write_bytes(b"x")
        (small / "wrench" / "._image_0001.jpg").write_bytes(b"x")
        (small / "wrench" / "folder.jpg").mkdir()
        (small / ".DS_Store").write_bytes(b"x")
        fill(small / "__MACOSX", 40)
        data = caltech.read(small, 101, rule=SMALL)
        assert len(data) == 18
        assert len(data.classes) == 3
        (note,) = data.notes
        for name in (".DS_Store", "BACKGROUND_Google/tmp", "__MACOSX/", "accordion/greg/", "and 2 more"):
            assert name in note

    def test_names_that_are_not_utf8_are_strays(self, small):
        path = bytes(small / "wrench") + b"/image_\xff.jpg"
        try:
            Path(path.decode("utf-8", "surrogateescape")).write_bytes(b"x")
        except OSError:
            pytest.skip("this file system allows UTF-8 only")
        data = caltech.read(small, 101, rule=SMALL)
        assert len(data) == 18
        assert r"wrench/image_\xff.jpg" in data.notes[0]
        assert data.notes[0].encode()

    def test_capital_suffixes_count_and_broken_links_stay_in_the_list(self, small):
        (small / "wrench" / "image_0005.JPG").write_bytes(b"x")
        (small / "wrench" / "image_0006.jpg").symlink_to("nowhere")
        data = caltech.read(small, 101, rule=SMALL)
        assert {"wrench/image_0005.JPG", "wrench/image_0006.jpg"} < set(data.ids)

    @pytest.mark.parametrize("inside", ["", "caltech-101", "caltech-101/101_ObjectCategories", "my-copy"])
    def test_the_root_may_be_the_folder_or_one_of_its_holders(self, tmp_path, small, inside):
        target = tmp_path / "elsewhere" / ("my-copy" if inside == "my-copy" else "caltech-101/101_ObjectCategories")
        target.parent.mkdir(parents=True)
        small.rename(target)
        (tmp_path / "elsewhere" / "__MACOSX").mkdir()
        data = caltech.read(tmp_path / "elsewhere" / inside, 101, rule=SMALL)
        assert len(data) == 18
        assert Path(data.root) == target

    @pytest.mark.parametrize("variety", [101, 256])
    def test_a_missing_tree_says_what_to_unpack(self, tmp_path, small, variety):
        (tmp_path / "something").mkdir()
        with pytest.raises(DatasetError, match="256_ObjectCategories"):
            caltech.read(small, 256)  # which is of the other set
        small.rename(tmp_path / "another")
        with pytest.raises(DatasetError, match=rf"{variety}_ObjectCategories.*unpack caltech|256_Obj.*\.tar"):
            caltech.read(tmp_path, variety)

    def test_a_class_that_is_too_small_is_named_with_count_and_need(self, small):
        (small / "wrench" / "image_0001.jpg").unlink()
        with pytest.raises(DatasetError, match=r"wrench: expected at least 4 images .*found 3"):
            caltech.read(small, 101, rule=SMALL)

    def test_the_order_of_the_file_system_does_not_matter(self, small, monkeypatch):
        wanted = caltech.read(small, 101, rule=SMALL).fingerprint()
        honest = files.os.listdir
        monkeypatch.setattr(files.os, "listdir", lambda path: sorted(honest(path), reverse=True))
        assert caltech.read(small, 101, rule=SMALL).fingerprint() == wanted

    @pytest.mark.parametrize(("variety", "splits"), [(102, 3), (101, 0)])
    def test_settings_out_of_range_are_refused(self, small, variety, splits):
        with pytest.raises(ConfigError):
            caltech.read(small, variety, splits=splits)
