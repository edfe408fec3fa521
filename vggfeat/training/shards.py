"""One tar file of a packed copy, and the record beside it: written whole or not at all.

Everything in it follows from the images and the settings, so that a shard which is made again has the same bytes.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from vggfeat.errors import ImageError
from vggfeat.images.decode import DecodedImage
from vggfeat.runtime.durable import DISK, atomic_write
from vggfeat.training.batches import named

_JPEG_NAMES = (".jpg", ".jpeg", ".jpe", ".jfif")


class Shard(NamedTuple):
    """A run of rows of one list."""

    list: str
    """train or val."""
    number: int
    """In its list, from 0."""
    rows: range

    @property
    def file(self) -> str:
        """Name of the tar file in the folder of the copy."""
        return f"shards/{self.list}-{self.number:05d}.tar"


class Record(NamedTuple):
    """What a shard holds."""

    bytes: int
    """Of the tar file."""
    sha256: str
    """Of the tar file, 64 hex digits."""
    places: list[tuple[int, int, int]]
    """Row in its list, first byte, bytes."""
    unreadable: list[tuple[str, str]]
    """Path and reason of what was left out."""


def cut(name: str, count: int, size: int) -> list[Shard]:
    """Cut a list into shards of `size` rows; the last may be smaller."""
    starts = range(0, count, size)
    return [Shard(name, number, range(start, min(start + size, count))) for number, start in enumerate(starts)]


def write_shard(out: Path, shard: Shard, names: Sequence[str], answers: Iterator[DecodedImage | ImageError]) -> Record:
    """Write a shard, and then its record.

    Parameters
    ----------
    out : Path
        Folder of the copy.
    shard : Shard
    names : sequence of str
        Of the whole list.
    answers : iterator of DecodedImage or ImageError
        JPEG files as `vggfeat.images.shrinking.shrink` makes them, one for each row of the shard.

    Raises
    ------
    OSError
        As the disk raised it; nothing is left then.
    """
    path = out / shard.file
    places, unreadable = [], []
    with atomic_write(DISK, path) as sink:
        with tarfile.open(fileobj=cast(Any, sink), mode="w", format=tarfile.PAX_FORMAT) as tar:
            for row, answer in zip(shard.rows, answers, strict=True):
                if isinstance(answer, ImageError):
                    one = named(names[row], answer)
                    unreadable.append((one.path, one.reason))
                    continue
                data = answer.regions[0].tobytes()
                places.append((row, _add(tar, names[row], data), len(data)))
        sink.seek(0)
        sha256 = hashlib.file_digest(cast(Any, sink), "sha256").hexdigest()
    record = Record(path.stat().st_size, sha256, places, unreadable)
    save(path.with_suffix(".json"), json.dumps(record._asdict()).encode())
    return record


def stored(out: Path, shard: Shard) -> Record | None:
    """Return the record of a shard that is there, whole; None if it is to be written."""
    path = out / shard.file
    try:
        record = Record(**load(path.with_suffix(".json")))
        return record if path.stat().st_size == record.bytes and _sha256(path) == record.sha256 else None
    except (FileNotFoundError, TypeError):
        return None


def load(path: Path) -> dict[str, Any]:
    """Read a JSON object; one that is damaged counts as empty. Raises OSError."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError):
        return {}


def save(path: Path, content: bytes) -> None:
    """Write a small file durably. Raises OSError."""
    with atomic_write(DISK, path) as sink:
        sink.write(content)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file and return the place of its first byte."""
    info = tarfile.TarInfo(name if name.lower().endswith(_JPEG_NAMES) else f"{name}.jpg")
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    blocks = -(-len(data) // tarfile.BLOCKSIZE)
    return tar.offset - blocks * tarfile.BLOCKSIZE


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
