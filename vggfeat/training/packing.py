"""Make a packed copy of a training set: images shrunk to the largest S that training needs, many to a file.

A million small files cost more time to open than to read, and images larger than S cost time to decode. Each shard is
written to a temporary name, synced and renamed; beside it lies a record of what it holds, with its SHA-256. The same
call again goes on behind an interruption, mends what was damaged, and takes in what could not be read before.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from vggfeat.datasets.packed import BEGUN, FORMAT, INDEX, Columns, columns
from vggfeat.errors import ConfigError, TrainingError
from vggfeat.images.decode import DecodeSettings, Request
from vggfeat.images.pool import Answer, Decoder
from vggfeat.images.shrinking import shrink
from vggfeat.runtime.durable import disk_errors
from vggfeat.runtime.locks import Lock, holder
from vggfeat.samples import ClassificationSet
from vggfeat.training.batches import Unreadable, check_readable
from vggfeat.training.shards import Record, Shard, cut, load, save, stored, write_shard

_ADVICE = "see to the folder and its free space, then give the same command again, it goes on where it stopped"


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """What a packed copy is like.

    Raises
    ------
    ConfigError
        If a number is out of its range.
    """

    side: int = 512
    """Smallest side in pixels that images are shrunk to: the largest S that is to be trained at, of the paper's the
    upper end of [256;512] (Sect. 3.1). Smaller images keep their size."""
    quality: int = 92
    """Of JPEGs that are written anew, 1 to 95."""
    shard_images: int = 2048
    """Images in a file: about 60 MB at side 256, 200 MB at 512."""

    def __post_init__(self) -> None:
        if self.side < 1 or not 1 <= self.quality <= 95 or self.shard_images < 1:
            raise ConfigError(f"packing: expected side from 1, quality from 1 to 95, shards of 1 or more, found {self}")


class Packing(NamedTuple):
    """What was packed."""

    images: int
    """Of both lists, those that could be read."""
    bytes: int
    """Of all shards."""
    unreadable: list[Unreadable]
    """What was left out."""


def pack(
    data: ClassificationSet,
    out: Path,
    settings: PackSettings | None = None,
    *,
    workers: int = 1,
    limits: DecodeSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Packing:
    """Pack both lists of a training set; `vggfeat.datasets.ilsvrc.read` reads the result like any other layout.

    Parameters
    ----------
    data : ClassificationSet
    out : Path
        A folder that is new or empty, or that an earlier call with the same arguments has left.
    settings : PackSettings, optional
    workers : int
        Processes that decode and encode; 0 works in this one.
    limits : DecodeSettings, optional
        What may be spent on one image.
    progress : callable, optional
        Called with the numbers of images done and of all.

    Returns
    -------
    Packing

    Raises
    ------
    TrainingError
        If the folder holds anything else or another process packs into it, or more than 1 % of the images can't be
        read.
    StoreError
        If it can't be written.
    """
    packer = _Packer(data, Path(out), settings or PackSettings())
    with disk_errors(packer.out, "packing", _ADVICE), packer:
        packer.claim()
        packer.write(workers, limits or DecodeSettings(), progress)
        return packer.finish()


class _Packer:
    """The folder of a packed copy, locked for a `with` block."""

    def __init__(self, data: ClassificationSet, out: Path, settings: PackSettings) -> None:
        self.data, self.out, self.settings = data, out, settings
        self.lists = {"train": data.train, "val": data.val}
        self.shards = [
            shard for name in self.lists for shard in cut(name, len(self.lists[name]), settings.shard_images)
        ]
        self.records: dict[Shard, Record] = {}
        wanted = {name: images.fingerprint() for name, images in self.lists.items()}
        self.what = {"format": FORMAT, **wanted, **asdict(settings)}

    def __enter__(self) -> Self:
        self.out.mkdir(parents=True, exist_ok=True)
        self._check_owned()
        try:
            self.lock = Lock(self.out / "LOCK")
        except BlockingIOError:
            who = holder(self.out / "LOCK")
            raise TrainingError(f"{self.out}: expected to be its only writer, found {who} at it; wait for it") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            (self.out / "LOCK").unlink()
        self.lock.release()

    def claim(self) -> None:
        """Say whose folder this is, and sweep away what an interrupted run has left."""
        (self.out / "shards").mkdir(exist_ok=True)
        for left in (*self.out.glob("*.tmp"), *self.out.glob("shards/*.tmp")):
            left.unlink()
        save(self.out / BEGUN, json.dumps(self.what, indent=1).encode())

    def write(self, workers: int, limits: DecodeSettings, progress: Callable[[int, int], None] | None) -> None:
        """Write the shards that are not there, not as their records say, or not with all of their images."""
        found = {shard: stored(self.out, shard) for shard in self.shards}
        # What could not be read may have been mended.
        self.records = {shard: record for shard, record in found.items() if record and not record.unreadable}
        todo = [shard for shard in self.shards if shard not in self.records]
        total = sum(len(shard.rows) for shard in self.shards)
        done = total - sum(len(shard.rows) for shard in todo)
        if todo:
            (self.out / INDEX).unlink(missing_ok=True)
        work = partial(shrink, side=self.settings.side, quality=self.settings.quality)
        with Decoder(workers, limits, decode=work) as decoder:
            stream = decoder.stream(self._request(shard, row) for shard in todo for row in shard.rows)
            answers = _counted(stream, done, total, progress)
            for shard in todo:
                share = islice(answers, len(shard.rows))
                self.records[shard] = write_shard(self.out, shard, self.lists[shard.list].paths, share)

    def finish(self) -> Packing:
        """Write the lists and at last the index, after a look at what is left out."""
        records = [self.records[shard] for shard in self.shards]
        unreadable = [Unreadable(*pair) for record in records for pair in record.unreadable]
        self._check(unreadable)
        lines = (json.dumps(one._asdict()) + "\n" for one in unreadable)
        save(self.out / "unreadable.jsonl", "".join(lines).encode())
        for name in self.lists:
            names, targets, places = self._columns(name)
            file = io.BytesIO()
            np.savez(file, names=names, targets=targets, places=places)
            save(self.out / f"{name}.npz", file.getvalue())
        save(self.out / INDEX, json.dumps(self._index(), indent=1).encode())
        images = sum(len(record.places) for record in records)
        return Packing(images, sum(record.bytes for record in records), unreadable)

    def _request(self, shard: Shard, row: int) -> Request:
        file, span = self.lists[shard.list].place(row)
        return Request(file, (None,), span)

    def _columns(self, name: str) -> Columns:
        parts = [self.records[shard].places for shard in self.shards if shard.list == name]
        rows = [(row, number, *span) for number, part in enumerate(parts) for row, *span in part]
        table = np.array(rows, dtype=np.int64).reshape(-1, 4)
        paths, targets = self.lists[name].paths, self.lists[name].targets
        return columns(tuple(paths[row] for row in table[:, 0].tolist()), targets[table[:, 0]], table[:, 1:])

    def _index(self) -> dict[str, Any]:
        shards: dict[str, list[dict[str, Any]]] = {name: [] for name in self.lists}
        for shard in self.shards:
            record = self.records[shard]
            entry = {"file": shard.file, "images": len(record.places), "bytes": record.bytes, "sha256": record.sha256}
            shards[shard.list].append(entry)
        return {
            "format": FORMAT,
            **asdict(self.settings),
            "layout": self.data.layout,
            "classes": list(self.data.classes),
            "words": dict(self.data.words),
            "shards": shards,
        }

    def _check(self, unreadable: Sequence[Unreadable]) -> None:
        for name, images in self.lists.items():
            left = np.bincount(images.targets, minlength=len(self.data.classes))
            for shard in (one for one in self.shards if one.list == name):
                rows = set(shard.rows) - {place[0] for place in self.records[shard].places}
                left -= np.bincount(images.targets[sorted(rows)], minlength=len(left))
            if not left.all():
                raise TrainingError(
                    f"{self.out}: expected images of every class in {name}, found none that can be read of "
                    f"{self.data.classes[int(left.argmin())]}; mend them, or remove the class and pack elsewhere"
                )
        seen = sum(map(len, self.lists.values()))
        check_readable(str(self.out), seen, len(unreadable), next(iter(unreadable), None))

    def _check_owned(self) -> None:
        names = {path.name for path in self.out.iterdir()} - {"LOCK", "shards", BEGUN, f"{BEGUN}.tmp"}
        if (self.out / BEGUN).is_file():
            found = load(self.out / BEGUN)
            if found != self.what:
                differs = ", ".join(key for key, value in self.what.items() if found.get(key) != value)
                raise TrainingError(
                    f"{self.out}: expected a packed copy of the same images and settings, found another ({differs} "
                    "differ); choose another folder or delete it"
                )
        elif names:
            raise TrainingError(f"{self.out}: expected a new or empty folder, found {min(names)} in it; choose another")


def _counted(
    answers: Iterator[Answer], done: int, total: int, progress: Callable[[int, int], None] | None
) -> Iterator[Answer]:
    for number, answer in enumerate(answers, start=done + 1):
        if progress is not None:
            progress(number, total)
        yield answer
