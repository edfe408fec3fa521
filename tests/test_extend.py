"""A finished feature file whose images have come, gone or changed: what is known is kept, the rest computed."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from dying_disk import Dying, Killed
from feature_rows import memory_folder
from folder_world import FolderWorld
from image_files import draw
from launches import seen_by_the_net
from vggfeat.cli import run
from vggfeat.datasets.catalogue import open_dataset
from vggfeat.errors import StoreError
from vggfeat.extract import RunSettings, extract_features
from vggfeat.forward.features import ExtractionSettings
from vggfeat.store.failures import failures_path
from vggfeat.store.reader import FeatureFile
from vggfeat.store.writer import FeatureWriter
from vggfeat.weights import random_backbone

NET = "random:A:0:0.03125"
SETTINGS = ExtractionSettings(scales=(224,))
RUN = RunSettings(workers=0, shard_rows=4)
EXTEND = replace(RUN, extend=True)


@pytest.fixture(scope="module")
def backbone():
    return random_backbone(NET)


@pytest.fixture
def images(tmp_path):
    """Ten images, each of a shape of its own, so that each is alone in its batch, whatever is next to it."""
    for number in range(10):
        draw(tmp_path / "in" / "ab"[number % 2] / f"{number}.png", number, (60 + 7 * number, 60))
    return tmp_path / "in"


@pytest.fixture
def make(tmp_path, backbone):
    """Extract, and return the summary and the images that went through the net."""

    def extract(out="x.h5", run=RUN, dataset=None, settings=SETTINGS):
        with seen_by_the_net() as seen:
            data = dataset or open_dataset("folder", tmp_path / "in")
            return extract_features(data, backbone, tmp_path / out, settings, run=run), len(seen)

    return extract


def same(tmp_path, make):
    make("whole.h5")
    return (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_images_that_came_in_between_are_computed_alone_and_the_file_is_that_of_a_new_run(images, tmp_path, make):
    assert make()[1] == 10
    draw(images / "a" / "11.png", 11, (150, 60))
    draw(images / "c" / "12.png", 12, (160, 60))
    summary, computed = make(run=EXTEND)
    assert (computed, summary.resumed, summary.total) == (2, 10, 12)
    assert summary.notes[0] == "extended: the features of 10 images are kept, those of 2 are computed"
    assert same(tmp_path, make)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "whole.h5", "x.h5"]
    assert make(run=EXTEND)[1] == make()[1] == 0


def test_a_list_that_grew_at_its_end_keeps_the_bits_of_batches_of_many(tmp_path, make):
    for number in range(10):
        draw(tmp_path / "in" / f"{number:02d}.png", number)
    make()
    for number in range(10, 13):
        draw(tmp_path / "in" / f"{number:02d}.png", number)
    summary, computed = make(run=EXTEND)
    assert (computed, summary.resumed) == (5, 8)  # The shard that was not full is computed as a whole.
    assert same(tmp_path, make)


def test_a_row_that_has_moved_keeps_its_bits_and_they_are_those_of_a_new_run_up_to_rounding(tmp_path, make):
    for number in range(10):
        draw(tmp_path / "in" / f"{number:02d}.png", number)
    make()
    with FeatureFile(tmp_path / "x.h5") as file:
        before = file.read()
    draw(tmp_path / "in" / "001.png", 99)
    assert make(run=EXTEND)[1] == 1
    overwrite = replace(RUN, overwrite=True)
    assert make(run=overwrite)[1] == 0, "it is a file of these images and settings"
    shutil.copy(tmp_path / "x.h5", tmp_path / "old.h5")
    assert make("whole.h5")[1] == 11
    draw(tmp_path / "in" / "002.png", 98)
    assert make("old.h5", overwrite)[1] == 12, "in the place of extend"
    (tmp_path / "in" / "002.png").unlink()
    with FeatureFile(tmp_path / "x.h5") as file, FeatureFile(tmp_path / "whole.h5") as whole:
        assert file.dataset.ids[:2] == ("00.png", "001.png")
        np.testing.assert_array_equal(np.delete(file.read(), 1, axis=0), before)
        np.testing.assert_allclose(file.read(), whole.read(), rtol=1e-4, atol=1e-5 * np.abs(before).max())


def test_what_has_gone_is_dropped_by_name_and_what_has_changed_is_computed(images, tmp_path, make):
    make()
    (images / "a" / "2.png").unlink()
    (images / "b" / "5.png").unlink()
    draw(images / "b" / "9.png", 77, (131, 60))
    summary, computed = make(run=EXTEND)
    assert (computed, summary.total) == (1, 8)
    assert summary.notes[1] == "2 images have gone from the list, and are dropped: a/2.png, b/5.png"
    assert same(tmp_path, make)


def test_an_image_of_another_size_is_computed_though_the_list_is_the_same(images, tmp_path, make):
    make()
    draw(images / "b" / "9.png", 77, (131, 60))
    assert make(run=EXTEND)[1] == 2  # Nothing has moved, so that its shard, of two, is computed as a whole.
    assert same(tmp_path, make)


def test_images_that_failed_are_tried_again_when_others_have_come(images, tmp_path, make):
    sound = (images / "a" / "4.png").read_bytes()
    (images / "a" / "4.png").write_bytes(b"x" * len(sound))
    assert len(make()[0].failures) == 1
    (images / "a" / "4.png").write_bytes(sound)
    draw(images / "a" / "0a.png", 11, (150, 60))
    summary, computed = make(run=EXTEND)
    assert (computed, summary.failures) == (2, ())
    assert not failures_path(tmp_path / "x.h5").exists()
    assert same(tmp_path, make)


def manifest(folder, boxes, labels):
    lines = [f"in/{name},{label},{box}" for (name, box), label in zip(boxes.items(), labels, strict=True)]
    (folder / "list.csv").write_text("path,label,box\n" + "".join(f"{line}\n" for line in lines))
    return open_dataset("manifest", folder / "list.csv")


def test_other_labels_cost_nothing_and_another_box_its_row(images, tmp_path, make):
    settings = replace(SETTINGS, regions=("image", "box"))
    boxes = {f"{'ab'[number % 2]}/{number}.png": f"1 2 {30 + number} 40" for number in range(10)}
    make(dataset=manifest(tmp_path, boxes, "uvuvuvuvuv"), settings=settings)
    assert make(run=EXTEND, dataset=manifest(tmp_path, boxes, "uuuuuvvvvv"), settings=settings)[1] == 0
    first = next(iter(boxes))
    other = {"b/9.png": boxes.pop("b/9.png")} | boxes | {first: "3 2 30 40"}
    moved = manifest(tmp_path, other, "uuuuuvvvvv")
    assert make(run=EXTEND, dataset=moved, settings=settings)[1] == 1
    make("whole.h5", dataset=moved, settings=settings)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_without_the_option_the_refusal_names_it_and_other_settings_are_refused_with_it(images, make):
    make()
    draw(images / "a" / "11.png", 11, (150, 60))
    with pytest.raises(StoreError, match=r"found others: fingerprint.*compute only what is new \(extract --extend\)"):
        make()
    with pytest.raises(StoreError, match="scales") as raised:
        make(run=EXTEND, settings=replace(SETTINGS, scales=(240,)))
    assert "--extend" not in str(raised.value)


def test_processes_share_out_what_is_new(images, tmp_path, make, backbone):
    make()
    for number in range(11, 16):
        draw(images / "ab"[number % 2] / f"{number}.png", number, (60 + 7 * number, 60))
    dataset, folder = open_dataset("folder", images), tmp_path / "exchange"
    folder.mkdir()
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(
                extract_features, dataset, backbone, tmp_path / "x.h5", SETTINGS, run=EXTEND,
                world=FolderWorld(rank=rank, size=3, folder=folder),
            )
            for rank in range(3)
        ]  # fmt: skip
        summaries = [one.result() for one in runs]
    assert [summary.resumed for summary in summaries] == [10] * 3
    assert same(tmp_path, make)


def test_the_command_says_what_it_did_and_a_plan_has_decided_its_list(images, tmp_path, capsys):
    words = ["extract", "--dataset", "folder", "--root", str(images), "--weights", NET, "--scales", "224"]
    words += ["--device", "cpu", "--workers", "0", "--out", str(tmp_path / "x.h5")]
    assert run(words) == 0
    draw(images / "a" / "11.png", 11)
    assert run(words) == 6
    assert "extract --extend" in capsys.readouterr().err
    assert run([*words, "--extend", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["total"], told["notes"]) == (
        11, ["extended: the features of 10 images are kept, those of 1 are computed"]
    )  # fmt: skip
    assert run(["extract", "--plan", str(tmp_path), "--extend"]) == 2
    assert "--extend" in capsys.readouterr().err


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.long)])
def test_a_kill_at_any_call_leaves_the_old_file_or_the_new_one_and_loses_no_shard(stride, backbone, monkeypatch):
    with memory_folder() as folder:
        for number in range(6):
            draw(folder / "in" / f"{number}.png", number, (60 + 7 * number, 60))
        extract = lambda out, run: extract_features(  # noqa: E731
            open_dataset("folder", folder / "in"), backbone, folder / out, SETTINGS, run=replace(run, shard_rows=2)
        )
        extract("old.h5", RUN)
        (folder / "in" / "2.png").unlink()
        for name in ("0a", "4a"):
            draw(folder / "in" / f"{name}.png", ord(name[0]), (40, 60 + ord(name[0])))
        extract("new.h5", RUN)
        old, new = (folder / "old.h5").read_bytes(), (folder / "new.h5").read_bytes()
        opened, calls, died = FeatureWriter.open.__func__, 0, True
        while died:
            shutil.copyfile(folder / "old.h5", folder / "x.h5")
            disk = Dying(calls)
            monkeypatch.setattr(
                FeatureWriter, "open", classmethod(lambda *given, disk=disk, **more: opened(*given, files=disk, **more))
            )
            try:
                extract("x.h5", EXTEND)
                died = False
            except Killed:
                assert (folder / "x.h5").read_bytes() in (old, new)
            monkeypatch.undo()
            kept = len(list((folder / "x.h5.parts").glob("s*.h5")))
            assert extract("x.h5", EXTEND).resumed >= 2 * kept - 1  # The last shard has one row.
            assert (folder / "x.h5").read_bytes() == new
            assert sorted(path.name for path in folder.iterdir()) == ["in", "new.h5", "old.h5", "x.h5"]
            calls += stride
        assert calls > 40
