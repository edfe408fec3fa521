"""The packed copy of a training set: what is in it, and that nothing can leave it half-made."""

import errno
import io
import json
import os
import subprocess
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odd_images import encode
from vggfeat.datasets import ilsvrc
from vggfeat.errors import ConfigError, DatasetError, StoreError, TrainingError
from vggfeat.images.decode import DecodeSettings, Request, decode
from vggfeat.images.pool import Decoder
from vggfeat.nets.transforms import rescale
from vggfeat.runtime import durable
from vggfeat.runtime.locks import Lock
from vggfeat.training.data import training_batches
from vggfeat.training.packing import PackSettings, pack
from vggfeat.training.recipe import Recipe, TrainingSettings
from vggfeat.training.train import train

SMALL = PackSettings(side=32, shard_images=4)


def smooth(height, width, tint=0):
    down, right = np.mgrid[:height, :width]
    return Image.fromarray(
        np.stack([down * 255 // height, right * 255 // width, down * 0 + tint], axis=2).astype(np.uint8)
    )


def put(root, name, data):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for part, count in (("train", 5), ("val", 2)):
        for cls in ("cat", "dog"):
            for n in range(count):
                put(root, f"{part}/{cls}/{n}.JPEG", encode(smooth(50 + n, 80, n * 9), "JPEG", quality=95))
    return root


def files(out):
    names = (path for path in out.rglob("*") if path.is_file())
    # Archives of NumPy hold the time of day.
    return {str(path.relative_to(out)): path.read_bytes() for path in names if path.suffix != ".npz"}


def pixels(images, row):
    file, span = images.place(row)
    return decode(Request(file, (None,), span), DecodeSettings()).regions[0]


def test_a_packed_copy_is_read_as_the_tree_was(tree, tmp_path):
    data, seen = ilsvrc.read(tree), []
    done = pack(data, tmp_path / "out", SMALL, workers=0, progress=lambda *numbers: seen.append(numbers))
    copy = ilsvrc.read(tmp_path / "out")
    assert (done.images, done.unreadable) == (14, [])
    assert seen == [(n, 14) for n in range(1, 15)]
    assert copy.layout == "packed, smallest side at most 32, JPEG quality 92, from: train and val in class folders"
    assert (copy.classes, copy.words) == (data.classes, data.words)
    for one, other in ((data.train, copy.train), (data.val, copy.val)):
        assert (one.paths, one.classes) == (other.paths, other.classes)
        assert one.targets.tolist() == other.targets.tolist()
        for row in range(len(one)):
            found = pixels(other, row)
            assert min(found.shape[:2]) == 32
            whole = torch.from_numpy(pixels(one, row)).permute(2, 0, 1)
            small = rescale(whole, found.shape[:2]).permute(1, 2, 0).numpy()
            # What rounding and the JPEG cost.
            assert abs(found - small).mean() < 2


def test_shards_are_tar_files_of_the_same_bytes(tree, tmp_path):
    pack(ilsvrc.read(tree), tmp_path / "out", SMALL, workers=0)
    copy = ilsvrc.read(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out/shards")) == sorted(
        f"{name}.{end}"
        for name in ("train-00000", "train-00001", "train-00002", "val-00000")
        for end in ("tar", "json")
    )
    found = {}
    for number in range(3):
        with tarfile.open(tmp_path / f"out/shards/train-{number:05d}.tar") as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    assert list(found) == list(copy.train.paths)
    for row, name in enumerate(copy.train.paths):
        file, (start, length, crc32) = copy.train.place(row)
        with open(file, "rb") as shard:
            shard.seek(start)
            assert shard.read(length) == found[name]
        assert crc32 == zlib.crc32(found[name])
    command = ["tar", "tf", str(tmp_path / "out/shards/val-00000.tar")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == list(copy.val.paths)


def test_small_clean_jpegs_are_kept_byte_for_byte_and_everything_else_becomes_one(tmp_path):
    root = tmp_path / "tree"
    exif = Image.Exif()
    exif[0x0112] = 6
    kept = {
        "train/a/small.jpg": encode(smooth(20, 31), "JPEG", quality=30),
        "train/a/same.jpg": encode(smooth(32, 90), "JPEG", progressive=True),
        "train/a/grey.jpg": encode(smooth(30, 30).convert("L"), "JPEG"),
    }
    changed = {
        "train/b/turned.jpg": (encode(smooth(20, 31), "JPEG", exif=exif), (31, 20)),
        "train/b/cmyk.jpg": (encode(smooth(20, 31).convert("CMYK"), "JPEG"), (20, 31)),
        "train/b/a.png": (encode(smooth(20, 31), "PNG"), (20, 31)),
        "train/b/large.webp": (encode(smooth(640, 961), "WEBP"), (32, 48)),
        "train/b/tall.jpg": (encode(smooth(401, 200), "JPEG"), (64, 32)),
        "train/b/caf\udce9.jpg": (encode(smooth(33, 40), "JPEG"), (32, 39)),
    }
    for name, data in [*kept.items(), *((name, data) for name, (data, _) in changed.items())]:
        put(root, name, data)
    for cls in "ab":
        put(root, f"val/{cls}/1.jpg", kept["train/a/small.jpg"])
    pack(ilsvrc.read(root), tmp_path / "out", PackSettings(side=32), workers=1)
    train = ilsvrc.read(tmp_path / "out").train
    assert set(train.paths) == set(kept) | set(changed)
    for row, name in enumerate(train.paths):
        file, (start, length, _) = train.place(row)
        with open(file, "rb") as shard:
            data = shard.read()[start : start + length]
        if name in kept:
            assert data == kept[name]
        else:
            assert data != changed[name][0]
            assert Image.open(io.BytesIO(data)).mode == "RGB"
            assert pixels(train, row).shape[:2] == changed[name][1]
    # Other programs go by the ending.
    with tarfile.open(tmp_path / "out/shards/train-00000.tar") as tar:
        assert "train/b/a.png.jpg" in tar.getnames()


def test_a_copy_can_be_trained_on(tree, tmp_path):
    pack(ilsvrc.read(tree), tmp_path / "out", PackSettings(side=64, shard_images=3), workers=0)
    recipe = Recipe(scale=(40, 48), crop=32, batch=20)
    found = []
    for root, workers in ((tree, 0), (tmp_path / "out", 0), (tmp_path / "out", 1)):
        with (
            Decoder(workers, DecodeSettings()) as decoder,
            training_batches(ilsvrc.read(root).train, recipe, mean=(1, 2, 3), colours=None, decoder=decoder) as stream,
        ):
            found.append(next(stream))
    # All images have smaller sides than 64, so they are copied.
    assert (found[0].images == found[1].images).all()
    assert (found[1].images == found[2].images).all()


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tree, tmp_path):
    data = ilsvrc.read(tree)
    pack(data, tmp_path / "whole", SMALL, workers=0)
    for last in (2, 6, 11, 14):

        def tell(done, total, last=last):
            if done == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pack(data, tmp_path / "out", SMALL, workers=0, progress=tell)
        assert not (tmp_path / "out/index.json").exists()
        assert not list((tmp_path / "out").rglob("*.tmp"))
        with pytest.raises(DatasetError):
            ilsvrc.read(tmp_path / "out")
    fresh = []
    pack(data, tmp_path / "out", SMALL, workers=0, progress=lambda done, total: fresh.append(done))
    assert fresh == [11, 12, 13, 14]
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert ilsvrc.read(tmp_path / "out").train.fingerprint() == ilsvrc.read(tmp_path / "whole").train.fingerprint()


@pytest.mark.parametrize("call", ["write", "sync", "rename"])
def test_a_full_disk_at_any_call_leaves_nothing_half_written(tree, tmp_path, monkeypatch, call):
    data = ilsvrc.read(tree)
    pack(data, tmp_path / "whole", SMALL, workers=0)
    whole, fails = files(tmp_path / "whole"), []
    original = getattr(durable.Files, call)
    for allowed in range(0, 400, 7):
        left = [allowed]

        def failing(self, *arguments, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return original(*arguments)

        monkeypatch.setattr(durable.Files, call, failing)
        try:
            pack(data, tmp_path / f"out{allowed}", SMALL, workers=0)
        except StoreError as error:
            fails.append(str(error))
            assert not list((tmp_path / f"out{allowed}").rglob("*.tmp"))
            assert not (tmp_path / f"out{allowed}/index.json").exists()
        else:
            break
        finally:
            monkeypatch.undo()
        pack(data, tmp_path / f"out{allowed}", SMALL, workers=0)
        assert files(tmp_path / f"out{allowed}") == whole
    assert len(fails) >= 2
    assert all("packing failed: the disk is full" in text for text in fails)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "record", "left"])
def test_the_same_call_mends_what_was_damaged_and_nothing_else(tree, tmp_path, damage):
    data, out = ilsvrc.read(tree), tmp_path / "out"
    pack(data, out, SMALL, workers=0)
    whole = files(out)
    shard, record = out / "shards/train-00001.tar", out / "shards/train-00001.json"
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[700] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-512])
        with pytest.raises(DatasetError, match=r"train-00001.tar: expected \d+ bytes, found \d+; give the same"):
            ilsvrc.read(out)
    elif damage == "gone":
        shard.unlink()
        with pytest.raises(DatasetError, match=r"train-00001.tar: expected \d+ bytes, found None"):
            ilsvrc.read(out)
    elif damage == "record":
        record.write_text(record.read_text()[:-5])
    else:
        durable.temporary_path(out / "shards/train-00001.tar").write_bytes(b"what kill -9 left")
    fresh = []
    pack(data, out, SMALL, workers=0, progress=lambda *numbers: fresh.append(numbers))
    assert fresh == ([] if damage == "left" else [(11, 14), (12, 14), (13, 14), (14, 14)])
    assert files(out) == whole


def test_while_damage_is_mended_nobody_reads_the_copy(tree, tmp_path):
    data, out = ilsvrc.read(tree), tmp_path / "out"
    pack(data, out, SMALL, workers=0)
    (out / "shards/val-00000.tar").unlink()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(data, out, SMALL, workers=0, progress=stop)
    assert not (out / "index.json").exists()


def test_unreadable_images_are_listed_and_left_out(tree, tmp_path):
    (tree / "train/cat/1.JPEG").write_bytes(b"no image")
    (tree / "val/dog/0.JPEG").write_bytes(b"")
    done = pack(ilsvrc.read(tree), tmp_path / "out", SMALL, workers=0)
    copy = ilsvrc.read(tmp_path / "out")
    assert (len(copy.train), len(copy.val), done.images) == (9, 3, 12)
    assert copy.train.targets.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert [(path, reason.split(":")[0]) for path, reason in done.unreadable] == [
        ("train/cat/1.JPEG", "unrecognised"),
        ("val/dog/0.JPEG", "empty"),
    ]
    lines = (tmp_path / "out/unreadable.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["train/cat/1.JPEG", "val/dog/0.JPEG"]


def test_images_that_were_mended_are_taken_in(tree, tmp_path):
    out, file = tmp_path / "out", tree / "train/cat/1.JPEG"
    whole = file.read_bytes()
    file.write_bytes(b"no image")
    (pair,) = pack(ilsvrc.read(tree), out, SMALL, workers=0).unreadable
    assert pair[1].startswith("unrecognised: expected an image")
    assert str(tmp_path) not in (out / "unreadable.jsonl").read_text()
    file.write_bytes(whole)
    done = pack(ilsvrc.read(tree), out, SMALL, workers=0)
    assert (done.images, done.unreadable) == (14, [])
    pack(ilsvrc.read(tree), tmp_path / "fresh", SMALL, workers=0)
    assert files(out) == files(tmp_path / "fresh")
    assert not (out / "LOCK").exists()


def test_many_unreadable_images_are_too_many_in_a_small_set_as_well(tree, tmp_path):
    for n in range(6):
        for cls in ("cat", "dog"):
            put(tree, f"train/{cls}/bad{n}.JPEG", b"")
    with pytest.raises(TrainingError, match="at most 1% of the images to be unreadable, found 12 of 26, the first"):
        pack(ilsvrc.read(tree), tmp_path / "out", SMALL, workers=0)
    assert not (tmp_path / "out/index.json").exists()


def test_an_interrupted_copy_is_not_taken_for_class_folders(tree, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(ilsvrc.read(tree), tmp_path / "out", SMALL, workers=0, progress=stop)
    with pytest.raises(DatasetError, match=r"expected a packed copy that is complete, .*the same `data pack` command"):
        ilsvrc.read(tmp_path / "out")


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "version"])
def test_damaged_lists_are_named(tree, tmp_path, damage):
    out = tmp_path / "out"
    pack(ilsvrc.read(tree), out, SMALL, workers=0)
    data = bytearray((out / "train.npz").read_bytes())
    later = bytearray(data)
    later[data.rindex(b"PK\1\2") + 6] = 200  # the version of zip that it needs
    data[200] ^= 1
    contents = {"empty": b"", "short": data[:300], "flipped": data, "version": later}
    (out / "train.npz").write_bytes(contents[damage])
    with pytest.raises(DatasetError, match=r"out.*give the same `data pack` command again"):
        ilsvrc.read(out)


def test_a_class_of_which_nothing_is_left_is_refused(tree, tmp_path):
    for n in range(2):
        (tree / f"val/dog/{n}.JPEG").write_bytes(b"")
    with pytest.raises(TrainingError, match="images of every class in val, found none that can be read of dog"):
        pack(ilsvrc.read(tree), tmp_path / "out", SMALL, workers=0)
    with pytest.raises(DatasetError):
        ilsvrc.read(tmp_path / "out")


def test_folders_of_others_are_left_alone(tree, tmp_path):
    data = ilsvrc.read(tree)
    with pytest.raises(TrainingError, match="expected a new or empty folder, found train in it"):
        pack(data, tree, SMALL)
    assert sorted(os.listdir(tree)) == ["train", "val"]
    pack(data, tmp_path / "out", SMALL, workers=0)
    with pytest.raises(TrainingError, match=r"found another \(side differ\)"):
        pack(data, tmp_path / "out", PackSettings(side=33, shard_images=4))
    (tmp_path / "tree/val/cat/9.JPEG").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"found another \(val differ\)"):
        pack(ilsvrc.read(tree), tmp_path / "out", SMALL)


def test_two_writers_do_not_meet(tree, tmp_path):
    data, out = ilsvrc.read(tree), tmp_path / "out"
    pack(data, out, SMALL, workers=0)
    lock = Lock(out / "LOCK")
    with pytest.raises(TrainingError, match=f"expected to be its only writer, found process {os.getpid()}"):
        pack(data, out, SMALL, workers=0)
    lock.release()
    pack(data, out, SMALL, workers=0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "of tomorrow"}', "[" * 5000])
def test_a_damaged_index_is_named(tree, tmp_path, text):
    out = tmp_path / "out"
    pack(ilsvrc.read(tree), out, SMALL, workers=0)
    (out / "index.json").write_text(text)
    with pytest.raises(DatasetError, match=r"index.json: expected the .*; give the same `data pack` command again"):
        ilsvrc.read(out)


@pytest.mark.parametrize("wrong", [{"side": 0}, {"quality": 0}, {"quality": 96}, {"shard_images": 0}])
def test_settings_out_of_their_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="packing: expected"):
        PackSettings(**wrong)


def test_a_run_that_was_killed_as_it_began_is_begun_again(tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    durable.temporary_path(out / "packing.json").write_bytes(b"half")
    pack(ilsvrc.read(tree), out, SMALL, workers=0)
    assert not [path for path in out.rglob("*") if durable.is_temporary(path.name)]


def test_shards_of_others_are_left_alone(tree, tmp_path):
    mine = tmp_path / "out" / "shards" / "train-00000.tar"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"the only copy")
    with pytest.raises(TrainingError, match="expected a new or empty folder, found shards in it"):
        pack(ilsvrc.read(tree), tmp_path / "out", SMALL, workers=0)
    assert mine.read_bytes() == b"the only copy"


def test_temporary_files_of_others_are_left_alone(tree, tmp_path):
    out = tmp_path / "out"
    pack(ilsvrc.read(tree), out, SMALL, workers=0)
    for name in ("notes.tmp", "shards/notes.tmp"):
        (out / name).write_text("mine")
    pack(ilsvrc.read(tree), out, SMALL, workers=0)
    assert [(out / name).read_text() for name in ("notes.tmp", "shards/notes.tmp")] == ["mine", "mine"]


def test_an_index_that_cannot_be_read_now_is_not_to_be_made_again(tree, tmp_path, monkeypatch):
    pack(ilsvrc.read(tree), tmp_path / "out", SMALL, workers=0)

    def unreadable(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", unreadable)
    with pytest.raises(DatasetError, match=r"index\.json: reading failed: Permission denied; make it readable"):
        ilsvrc.read(tmp_path / "out")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_cannot_be_read_now_stops_the_run(tree, tmp_path, workers):
    pack(ilsvrc.read(tree), tmp_path / "copy", SMALL)
    images = ilsvrc.read(tmp_path / "copy").train
    (tmp_path / "copy/shards").rename(tmp_path / "away")
    with Decoder(workers, DecodeSettings()) as decoder:
        file, span = images.place(0)
        with pytest.raises(StoreError, match=r"train-00000.tar: expected a file of packed images .*: No such file .*"):
            list(decoder.stream([Request(file, (None,), span)]))


def test_an_error_of_the_disk_in_a_shard_is_no_fault_of_an_image(tree, tmp_path, monkeypatch):
    pack(ilsvrc.read(tree), tmp_path / "copy", SMALL)
    recipe, run = Recipe(width=1 / 16, batch=2, scale=(256, 256)), TrainingSettings(workers=0)

    def broken(path, *rest, real=os.open, **named):
        if str(path).endswith(".tar"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *rest, **named)

    monkeypatch.setattr("vggfeat.images.image_bytes.os.open", broken)
    with pytest.raises(StoreError, match="Input/output error; make it readable, then give the same command again"):
        train(recipe, ilsvrc.read(tmp_path / "copy"), tmp_path / "run", run=run)
