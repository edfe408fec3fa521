"""Checkpoints are whole, proven and recent, whatever happens while they are written."""

import errno
import io
import os
import random
from pathlib import Path

import pytest
import torch

from dying_disk import FailingFiles
from train_runs import run_script
from vggfeat.errors import StoreError, TrainingError
from vggfeat.runtime.durable import DISK, Files
from vggfeat.training.checkpoints import Checkpoints, read_checkpoint

ABOUT = {"run": {"recipe": {"net": "A"}}, "state": {"step": 3}}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in (("a", (3, 2)), ("b", (5,)), ("c", ()))}


def equal(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_read_is_what_was_written(tmp_path):
    path = Checkpoints(tmp_path / "new", DISK).save(3, tensors(), ABOUT)
    found = read_checkpoint(path)
    assert path.name == "step-00000003.safetensors"
    assert found.about == ABOUT
    assert equal(found.tensors, tensors())


def test_the_last_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, DISK)
    for step in (1, 9, 10, 100_000_000):
        checkpoints.save(step, tensors(step), {"step": step})
    assert [path.name for path in checkpoints.paths()] == ["step-00000010.safetensors", "step-100000000.safetensors"]
    found, notes = checkpoints.newest()
    assert found is not None
    assert (found.about["step"], notes) == (100_000_000, [])


def test_none_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "missing", DISK).newest() == (None, [])


def test_every_flipped_byte_is_found(tmp_path):
    path = Checkpoints(tmp_path, DISK).save(3, tensors(), ABOUT)
    whole = path.read_bytes()
    harmless = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= random.Random(place).randrange(1, 256)
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except TrainingError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            # Blanks between header and tensors mean nothing.
            assert whole[place : place + 1] == b" "
            assert (found.about, equal(found.tensors, tensors())) == (ABOUT, True)
            harmless += 1
    assert harmless < 50


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_short_file_is_found(tmp_path, length):
    path = Checkpoints(tmp_path, DISK).save(3, tensors(), ABOUT)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(TrainingError, match="damaged"):
        read_checkpoint(path)


def test_a_damaged_one_gives_way_to_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path, DISK)
    checkpoints.save(1, tensors(1), {"step": 1})
    newest = checkpoints.save(2, tensors(2), {"step": 2})
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found, notes = checkpoints.newest()
    assert found is not None
    assert found.about == {"step": 1}
    assert equal(found.tensors, tensors(1))
    assert len(notes) == 1
    assert notes[0].startswith(str(newest))
    assert "step-00000002.safetensors.bad" in notes[0]
    # The damaged one must not push a sound one out later.
    checkpoints.save(2, tensors(2), {"step": 2})
    assert [read_checkpoint(path).about["step"] for path in checkpoints.paths()] == [1, 2]


def test_with_all_damaged_nothing_is_renamed_or_begun(tmp_path):
    checkpoints = Checkpoints(tmp_path, DISK)
    for step in (1, 2):
        checkpoints.save(step, tensors(), {}).write_bytes(b"?")
    for _ in range(2):
        with pytest.raises(TrainingError, match="expected an undamaged checkpoint, found only damaged ones"):
            checkpoints.newest()
        assert len(checkpoints.paths()) == 2
    for path in checkpoints.paths():  # as earlier versions left them
        path.rename(f"{path}.bad")
    with pytest.raises(TrainingError, match=r"found only damaged ones \(step-00000001.safetensors.bad, step-0"):
        checkpoints.newest()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("fails", ["open", "read", "list"])
def test_what_can_not_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch, number, fails):
    checkpoints = Checkpoints(tmp_path / "checkpoints", DISK)
    for step in (1, 2):
        checkpoints.save(step, tensors(step), {"step": step})
    before = {path: path.read_bytes() for path in checkpoints.paths()}

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    class Failing(io.FileIO):
        readinto = readall = read = refuse

    def opened(path, mode="r", **_):
        return refuse() if fails == "open" else io.BufferedReader(Failing(str(path), "rb"))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "listdir", refuse) if fails == "list" else (Path, "open", opened)))
        with pytest.raises(StoreError, match=f"{os.strerror(number)}; nothing was changed: make it readable"):
            checkpoints.newest()
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before
    found, notes = checkpoints.newest()
    assert found is not None
    assert (found.about, notes) == ({"step": 2}, [])


def test_the_one_before_that_can_not_be_read_leaves_the_damaged_one_its_name(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, DISK)
    first, second = (checkpoints.save(step, tensors(step), {"step": step}) for step in (1, 2))
    second.write_bytes(b"?")
    whole = Path.open

    def opened(path, *arguments, **options):
        if path == first:
            raise OSError(errno.EIO, "Input/output error")
        return whole(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(StoreError, match=r"step-00000001.safetensors: reading a checkpoint failed: Input/output error"):
        checkpoints.newest()
    assert checkpoints.paths() == [first, second]


def test_a_new_folder_of_checkpoints_is_synced_in_its_parent(tmp_path):
    calls = []

    class Recording(Files):
        def make_folder(self, folder):
            calls.append(("make", folder))
            super().make_folder(folder)

        def sync_folder(self, folder):
            calls.append(("sync", folder))
            super().sync_folder(folder)

    Checkpoints(tmp_path / "run", Recording()).save(1, tensors(), {})
    assert calls == [("make", tmp_path / "run"), ("sync", tmp_path), ("sync", tmp_path / "run")]


@pytest.mark.parametrize("dead", [False, True])
def test_whichever_call_fails_a_sound_checkpoint_stays(tmp_path, dead):
    for number in range(1, 20):
        folder = tmp_path / str(number)
        Checkpoints(folder, DISK).save(1, tensors(1), {"step": 1})
        Checkpoints(folder, DISK).save(2, tensors(2), {"step": 2})
        files = FailingFiles(number, dead)
        try:
            Checkpoints(folder, files).save(3, tensors(3), {"step": 3})
        except StoreError as error:
            assert "writing a checkpoint failed: the disk is full" in str(error)  # noqa: PT017
        checkpoints = Checkpoints(folder, DISK)
        found, notes = checkpoints.newest()
        assert notes == []
        assert found is not None
        assert found.about["step"] in (2, 3)
        assert equal(found.tensors, tensors(found.about["step"]))
        checkpoints.save(4, tensors(4), {"step": 4})  # What is left over is in nobody's way.
        assert {path.name for path in folder.iterdir()} == {path.name for path in checkpoints.paths()}
        if files.left > 0:
            return
    pytest.fail("it never ran to its end")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_killed_runs_end_with_the_same_bits(tmp_path, kills):
    report = run_script("kill", tmp_path, kills, kills)
    assert (report["first"], report["last"], report["killed"]) == (0, 0, kills)
    assert any(0 < step < 10 for step in report["steps"])
    assert report["weights"][0] == report["weights"][1]
    assert report["logs"][0] == report["logs"][1]
    checkpoints = [f"checkpoints/step-{step:08d}.safetensors" for step in (9, 10)]
    assert report["left"] == [*checkpoints, "curves.png", "log.jsonl", "run.json", "weights.safetensors"]
