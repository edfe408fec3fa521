"""One flipped bit in any file that vggfeat writes and reads again: found, or without effect; never computed with.

The table names the files; docs/reliability.md says of each how damage is found.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from image_files import draw
from tests.proofs.readers import READERS
from vggfeat.datasets import ilsvrc
from vggfeat.errors import ImageError, VggfeatError
from vggfeat.images.decode import DecodeSettings, Request, decode
from vggfeat.nets.vgg import VGG
from vggfeat.results.reading import read_runs
from vggfeat.runtime.checksums import sealed, sealed_line, short_checksum, unsealed, unsealed_line
from vggfeat.runtime.durable import DISK
from vggfeat.runtime.journal import Journal
from vggfeat.training.packing import PackSettings, pack
from vggfeat.training.run_folder import Log, RunFolder, read_log
from vggfeat.training.statistics import read_statistics
from vggfeat.weights import load_backbone, save_weights

FLIPS = 12
"""Of each file, at even distances, and at its last byte."""


class Kept(NamedTuple):
    """Files of one kind."""

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    """What is computed with; None where it would be computed again."""


def journal(place, rows=None):
    with Journal(place / "x.jsonl", "vggfeat rows, 1", {"net": "D"}, 6, 2) as opened:
        opened.add(rows or [])
        return opened.records


ROWS = [{"row": row, "box": [row / 3, 2.5], "path": f"{row}.jpg"} for row in range(6)]


def undamaged_rows(place):
    """Return nothing if each row is as it was, or will be made again."""
    return [row for row in journal(place) if row not in ROWS]


def weights(place):
    torch.manual_seed(0)
    save_weights(place / "x.safetensors", VGG("A", 2, width=1 / 64), mean=(1, 2, 3), classes=("a", "b"))


def read_weights(place):
    net = load_backbone(place / "x.safetensors")
    tensors = {name: tensor.numpy().tobytes() for name, tensor in net.model.state_dict().items()}
    return tensors, net.mean, net.std, net.classes, net.model.config, net.model.pool


IDENTITY = {"recipe": {"net": "A", "width": 0.25}, "data": {"train": "0123"}}


def log(place):
    written = Log(place, short_checksum(IDENTITY), 0, DISK)
    for step in (1, 2):
        written.write("train", step, {"loss": 1 / step, "lr": 0.01})
        written.write("validation", step, {"top1_error": 0.25 / step})
    written.close()


def read_report(place):
    """A line may be missing only where it was not finished, which a flip of the last byte looks like."""
    (run,) = read_runs([place])
    return list(run.log)[:3]


def settings(place):
    folder = RunFolder(place, DISK)
    folder.begin(IDENTITY, resume=False)
    folder.close()
    log(place)


def read_settings(place):
    (run,) = read_runs([place])
    return {name: run.settings[name] for name in ("recipe", "data") if name in run.settings}


def tree(place):
    for number in range(6):
        part = "train" if number < 4 else "val"
        draw(place / part / "ab"[number % 2] / f"{number}.jpg", number, (20, 16))


def packed(place):
    tree(place / "in")
    pack(ilsvrc.read(place / "in"), place / "out", PackSettings(side=16, shard_images=3), workers=0)


def read_packed(place):
    data = ilsvrc.read(place / "out")
    found = [data.classes, data.layout, dict(data.words)]
    for images in (data.train, data.val):
        found += [images.paths, images.targets.tolist(), images.classes]
        for row in range(len(images)):
            file, span = images.place(row)
            found.append(decode(Request(file, (None,), span), DecodeSettings()).regions[0].tobytes())
    return found


def pack_again(place):
    """Return what the same command leaves: all that is damaged is made again."""
    pack(ilsvrc.read(place / "in"), place / "out", PackSettings(side=16, shard_images=3), workers=0)
    return {path.name: path.read_bytes() for path in sorted((place / "out").rglob("*")) if path.is_file()}


def statistics(place):
    return repr(read_statistics(place / "statistics.json"))


def of_proofs(name):
    return Kept(READERS[name].make, READERS[name].read)


KEPT = {
    "feature file": (of_proofs("features"), "x.h5"),
    "shard of unfinished parts": (of_proofs("parts"), "*/s00000.h5"),
    "manifest of unfinished parts": (of_proofs("parts"), "*/manifest.json"),
    "list of images of unfinished parts": (of_proofs("parts"), "*/inputs.jsonl"),
    "SVM model": (of_proofs("model"), "*.safetensors"),
    "checkpoint of training": (of_proofs("checkpoint"), "*.safetensors"),
    "settings of a training run": (of_proofs("run-folder"), "run.json"),
    "settings of a training run, by report": (Kept(settings, read_settings), "run.json"),
    "images left out of a training run": (of_proofs("run-folder"), "unreadable.jsonl"),
    "pixel statistics": (Kept(READERS["statistics"].make, statistics), "statistics.json"),
    "log of a training run, by report": (Kept(log, read_report), "log.jsonl"),
    "weights": (Kept(weights, read_weights), "x.safetensors"),
    "journal of localisation": (Kept(lambda place: journal(place, ROWS), undamaged_rows), "x.jsonl"),
    "index of a packed copy": (Kept(packed, read_packed), "out/index.json"),
    "list of a packed copy": (Kept(packed, read_packed), "out/train.npz"),
    "shard of a packed copy": (Kept(packed, read_packed), "out/shards/train-00000.tar"),
    "record of a shard": (Kept(packed, pack_again), "out/shards/train-00000.json"),
    "settings of a packed copy": (Kept(packed, pack_again), "out/packing.json"),
}  # fmt: skip
TOLD = {"pixel statistics": "None", "feature file": None}
"""What the reader returns where it has found damage."""
MADE_AGAIN = {"journal of localisation", "record of a shard", "shard of unfinished parts",
              "list of images of unfinished parts"}  # fmt: skip
"""Of these the same comes out, without an error: what is damaged is made again, or is for messages only."""


@pytest.mark.parametrize("kind", KEPT)
def test_a_flipped_bit_is_found_or_has_no_effect(kind, tmp_path):
    kept, pattern = KEPT[kind]
    place = tmp_path / "place"
    place.mkdir()
    kept.make(place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    (path,) = place.glob(pattern)
    wanted, content = kept.read(place), before[path]
    found = 0
    for at in sorted({*np.linspace(0, len(content) - 1, FLIPS).astype(int).tolist(), *range(40, 60, 2)}):
        if at >= len(content):
            continue
        shutil.rmtree(place)
        for file, sound in before.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sound)
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 7]) + content[at + 1 :])
        try:
            read = kept.read(place)
        except (VggfeatError, ImageError):
            found += 1
        else:
            assert read in (wanted, TOLD.get(kind, wanted)), f"byte {at} of {len(content)} was taken as it is"
            found += read != wanted
    assert found or kind in MADE_AGAIN, "no flip was found at all"


def test_a_damaged_line_of_a_log_is_left_out_where_a_run_resumes(tmp_path):
    log(tmp_path)
    lines = (tmp_path / "log.jsonl").read_bytes().replace(b'"loss": 0.5', b'"loss": 0.7')
    (tmp_path / "log.jsonl").write_bytes(lines)
    assert [(line["kind"], line["step"]) for line in read_log(tmp_path / "log.jsonl")] == [
        ("train", 1), ("validation", 1), ("validation", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("content", [{}, {"a": 1 / 3, "b": [None, True, "é"]}, {"z": 0, "a": {"c": -0.0}}])
def test_what_is_sealed_comes_back_in_any_order_and_nothing_else(content):
    text = json.dumps(sealed(content), indent=2, sort_keys=True)
    assert unsealed(json.loads(text)) == content
    assert unsealed_line(sealed_line(content)) == content
    for other in (content, {**sealed(content), "new": 1}, {**sealed(content), "checksum": "0" * 64}, [], None):
        with pytest.raises(ValueError, match="expected"):
            unsealed(other)
    for line in (b"", b"{", b"[" * 100_000, sealed_line(content)[:-9]):
        assert unsealed_line(line) is None
