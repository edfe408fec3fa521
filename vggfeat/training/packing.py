"""Make a packed copy of a training set: images shrunk to the largest S that training needs, many to a file.

A million small files cost more time to open than to read, and images larger than S cost time to decode. Each shard, a
tar file, is written to a temporary name, synced and renamed; next to it lies a record of what it holds, with its
SHA-256. The same call again resumes behind an interruption, mends what was damaged, and takes in what could not be read
before. Everything in a shard follows from the images and the settings, so that one made again has the same bytes.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np

from vggfeat.checks import convert_fields
from vggfeat.datasets.ilsvrc_packed import BEGUN, FORMAT, INDEX, columns
from vggfeat.errors import ConfigError, ImageError, TrainingError
from vggfeat.images.decode import DecodeSettings, Request, shrink
from vggfeat.images.pool import Answer, Decoder
from vggfeat.runtime.checksums import sealed, unsealed
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors, is_temporary, make_folders
from vggfeat.runtime.locks import Lock, holder
from vggfeat.samples import ClassificationSet
from vggfeat.training.statistics import SHOWN_CLASSES, Unreadable, check_readable, unreadable_image
from vggfeat.weights.importing import hash_file
from vggfeat.wording import listed

_ADVICE = "see to the folder and its free space, then give the same command again, it goes on where it stopped"
_JPEG_NAMES = (".jpg", ".jpeg", ".jpe", ".jfif")


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """What a packed copy is like.

    Raises ConfigError if a number is out of its range.
    """

    side: int = 512
    """Smallest side in pixels that images are shrunk to: the largest S that is to be trained at, of the paper's the
    upper end of [256;512] (Sect. 3.1). Smaller images keep their size."""
    quality: int = 92
    """Quality of JPEGs that are written again, 1 to 95."""
    shard_images: int = 2048
    """Images in a file: about 60 MB at side 256, 200 MB at 512."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.side < 1 or not 1 <= self.quality <= 95 or self.shard_images < 1:
            raise ConfigError(f"packing: expected side from 1, quality from 1 to 95, shards of 1 or more, found {self}")


class Packing(NamedTuple):
    """What was packed."""

    images: int
    """Images of both lists that could be read."""
    bytes: int
    """Bytes of all shards."""
    unreadable: list[Unreadable]
    """What was left out."""


class Shard(NamedTuple):
    """A run of rows of one list."""

    list: str
    """train or val."""
    number: int
    """Number of the image in its list, from 0."""
    rows: range

    @property
    def file(self) -> str:
        """Name of the tar file in the folder of the copy."""
        return f"shards/{self.list}-{self.number:05d}.tar"


class ShardRecord(NamedTuple):
    """What a shard holds."""

    bytes: int
    """Size of the tar file."""
    sha256: str
    """SHA-256 of the tar file, 64 hex digits."""
    places: list[tuple[int, int, int, int]]
    """Row in its list, first byte, bytes, and their CRC-32."""
    unreadable: list[tuple[str, str]]
    """Path and reason of what was left out."""


def pack(
    data: ClassificationSet,
    out: Path,
    settings: PackSettings = PackSettings(),
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Packing:
    """Pack both lists of a training set; `vggfeat.datasets.ilsvrc.read` reads the result like any other layout.

    `out`: a folder that is new or empty, or that an earlier call with the same arguments has left.
    `workers`: processes that decode and encode; 0 works in this one.
    `progress`: called with the numbers of images done and of all.
    Raises TrainingError if the folder holds anything else or another process packs into it, or more than 1 % of the
    images can't be read. Raises StoreError if it can't be written.
    """
    packer = _Packer(data, Path(out), settings)
    with disk_errors(packer.out, "packing", _ADVICE), packer:
        packer.claim()
        packer.write(workers, progress)
        return packer.finish()


class _Packer:
    """The folder of a packed copy, locked for a `with` block."""

    def __init__(self, data: ClassificationSet, out: Path, settings: PackSettings) -> None:
        self.data, self.out, self.settings = data, out, settings
        self.lists = {"train": data.train, "val": data.val}
        self.shards: list[Shard] = []
        for name, images in self.lists.items():
            for number, start in enumerate(range(0, len(images), settings.shard_images)):
                self.shards.append(Shard(name, number, range(start, min(start + settings.shard_images, len(images)))))
        self.records: dict[Shard, ShardRecord] = {}
        wanted = {name: images.fingerprint() for name, images in self.lists.items()}
        self.what = {"format": FORMAT, **wanted, **asdict(settings)}

    def __enter__(self) -> Self:
        make_folders(DISK, self.out)
        self._check_owner()
        try:
            self.lock = Lock(self.out / "LOCK")
        except BlockingIOError:
            who = holder(self.out / "LOCK")
            raise TrainingError(f"{self.out}: expected to be its only writer, found {who} at it; wait for it") from None
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self.lock.remove()
        self.lock.release()

    def claim(self) -> None:
        """Record what is packed here, and remove what an interrupted run has left."""
        make_folders(DISK, self.out / "shards")
        for left in (*self.out.iterdir(), *(self.out / "shards").iterdir()):
            if is_temporary(left.name):
                left.unlink()
        _save(self.out / BEGUN, json.dumps(sealed(self.what), indent=1).encode())

    def write(self, workers: int, progress: Callable[[int, int], None]) -> None:
        """Write the shards that are not there, not as their records say, or not with all of their images."""
        found = {shard: _complete_record(self.out, shard) for shard in self.shards}
        # What could not be read may have been mended.
        self.records = {shard: record for shard, record in found.items() if record and not record.unreadable}
        todo = [shard for shard in self.shards if shard not in self.records]
        total = sum(len(shard.rows) for shard in self.shards)
        done = total - sum(len(shard.rows) for shard in todo)
        if todo:
            (self.out / INDEX).unlink(missing_ok=True)
        work = partial(shrink, side=self.settings.side, quality=self.settings.quality)
        with Decoder(workers, DecodeSettings(), decode=work) as decoder:
            places = (self.lists[shard.list].place(row) for shard in todo for row in shard.rows)
            stream = decoder.stream(Request(file, (None,), span) for file, span in places)
            answers = _counted(stream, done, total, progress)
            for shard in todo:
                share = islice(answers, len(shard.rows))
                self.records[shard] = _write_shard(self.out, shard, self.lists[shard.list].paths, share)

    def finish(self) -> Packing:
        """Check what is left out, then write the lists and at last the index."""
        records = [self.records[shard] for shard in self.shards]
        unreadable = [Unreadable(*pair) for record in records for pair in record.unreadable]
        self._check_unreadable(unreadable)
        lines = (json.dumps(one._asdict()) + "\n" for one in unreadable)
        _save(self.out / "unreadable.jsonl", "".join(lines).encode())
        for name in self.lists:
            file = io.BytesIO()
            np.savez(file, **self._columns(name))
            _save(self.out / f"{name}.npz", file.getvalue())
        _save(self.out / INDEX, json.dumps(sealed(self._index()), indent=1).encode())
        images = sum(len(record.places) for record in records)
        return Packing(images, sum(record.bytes for record in records), unreadable)

    def _columns(self, name: str) -> dict[str, Any]:
        parts = [self.records[shard].places for shard in self.shards if shard.list == name]
        rows = [(row, number, *span) for number, part in enumerate(parts) for row, *span in part]
        table = np.array(rows, dtype=np.int64).reshape(-1, 5)
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

    def _check_unreadable(self, unreadable: Sequence[Unreadable]) -> None:
        for name, images in self.lists.items():
            left = np.bincount(images.targets, minlength=len(self.data.classes))
            for shard in (one for one in self.shards if one.list == name):
                rows = set(shard.rows) - {place[0] for place in self.records[shard].places}
                left -= np.bincount(images.targets[sorted(rows)], minlength=len(left))
            if not left.all():
                lost = [self.data.classes[k] for k in np.flatnonzero(left == 0)]
                raise TrainingError(
                    f"{self.out}: expected images of every class in {name}, found none that can be read of "
                    f"{listed(lost, SHOWN_CLASSES)}; mend them, or remove the class and pack elsewhere"
                )
        seen = sum(map(len, self.lists.values()))
        check_readable(str(self.out), seen, len(unreadable), next(iter(unreadable), None))

    def _check_owner(self) -> None:
        there = {path.name for path in self.out.iterdir() if not is_temporary(path.name)}
        names = there - {"LOCK", "shards", BEGUN}
        if (self.out / BEGUN).is_file():
            found = _load(self.out / BEGUN)
            if found != self.what:
                differs = ", ".join(key for key, value in self.what.items() if found.get(key) != value)
                raise TrainingError(
                    f"{self.out}: expected a packed copy of the same images and settings, found another ({differs} "
                    "differ); choose another folder or delete it"
                )
        elif names or not self._is_untouched():
            names = names or {"shards"}
            raise TrainingError(f"{self.out}: expected a new or empty folder, found {min(names)} in it; choose another")

    def _is_untouched(self) -> bool:
        """Say whether no shard can be there: a run claims the folder before it writes one."""
        shards = self.out / "shards"
        return not os.path.lexists(shards) or (
            shards.is_dir() and not shards.is_symlink() and all(is_temporary(path.name) for path in shards.iterdir())
        )


def _counted(
    answers: Iterator[Answer], done: int, total: int, progress: Callable[[int, int], None]
) -> Iterator[Answer]:
    for number, answer in enumerate(answers, start=done + 1):
        progress(number, total)
        yield answer


def _write_shard(out: Path, shard: Shard, names: Sequence[str], answers: Iterator[Answer]) -> ShardRecord:
    """Write a shard, and then its record.

    `names` are those of the whole list; `answers` are JPEG files as `vggfeat.images.decode.shrink` makes them, one
    for each row of the shard.
    """
    path = out / shard.file
    places: list[tuple[int, int, int, int]] = []
    unreadable: list[tuple[str, str]] = []
    with atomic_write(DISK, path) as sink:
        with tarfile.open(fileobj=cast(Any, sink), mode="w", format=tarfile.PAX_FORMAT) as tar:
            for row, answer in zip(shard.rows, answers, strict=True):
                if isinstance(answer, ImageError):
                    unreadable.append(unreadable_image(names[row], answer))
                    continue
                data = answer.regions[0].tobytes()
                places.append((row, _add_file(tar, names[row], data), len(data), zlib.crc32(data)))
        sink.seek(0)
        sha256 = hashlib.file_digest(cast(Any, sink), "sha256").hexdigest()
    record = ShardRecord(path.stat().st_size, sha256, places, unreadable)
    _save(path.with_suffix(".json"), json.dumps(sealed(record._asdict())).encode())
    return record


def _complete_record(out: Path, shard: Shard) -> ShardRecord | None:
    """Return the record of a shard that is there and undamaged; None if it is to be written."""
    path = out / shard.file
    try:
        record = ShardRecord(**_load(path.with_suffix(".json")))
        return record if path.stat().st_size == record.bytes and hash_file(path) == record.sha256 else None
    except (FileNotFoundError, TypeError):
        return None


def _load(path: Path) -> dict[str, Any]:
    """Read a JSON object; one that is damaged counts as empty. Raises OSError."""
    try:
        return unsealed(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError):
        return {}


def _save(path: Path, content: bytes) -> None:
    """Write a small file durably. Raises OSError."""
    with atomic_write(DISK, path) as sink:
        sink.write(content)


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file and return the position of its first byte."""
    info = tarfile.TarInfo(name if name.lower().endswith(_JPEG_NAMES) else f"{name}.jpg")
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    blocks = -(-len(data) // tarfile.BLOCKSIZE)
    return tar.offset - blocks * tarfile.BLOCKSIZE
