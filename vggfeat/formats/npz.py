"""Zip archives that anybody may have written: a member, or arrays of an .npz file, within limits, and no pickle.

A few megabytes of zip can hold gigabytes of zeros, and the header of an array can claim any shape.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vggfeat.errors import WeightsError

LONGEST_TEXT = 1 << 12
"""Characters of an entry of an array of texts."""
UNREADABLE = (
    OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged file can raise."""
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FLAG_ENCRYPTED = 1


class Wanted(NamedTuple):
    """What an array should be."""

    kinds: str
    """Of NumPy's one-letter kinds of types, for instance "f"."""
    shape: tuple[int | None, ...]
    """None for a length that is not known."""


def read_arrays(file: BinaryIO, wanted: Mapping[str, Wanted], most: int) -> dict[str, NDArray[Any]]:
    """Read those of the wanted arrays, by name, that are there; nothing else of the file is unpacked.

    ValueError or another of `UNREADABLE` if one is another, compressed in a way that NumPy does not write, or damaged,
    or if all of them together have more than `most` bytes.
    """
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        entries = {name: entries[name] for name in wanted if name in entries}
        size = sum(entry.file_size for entry in entries.values())
        if size > most:
            raise ValueError(f"expected arrays of at most {most} bytes, found {size}")
        return {name: _read(archive, name, entry, wanted[name]) for name, entry in entries.items()}


def _read(archive: zipfile.ZipFile, name: str, entry: zipfile.ZipInfo, wanted: Wanted) -> NDArray[Any]:
    if entry.compress_type not in _METHODS or entry.flag_bits & _FLAG_ENCRYPTED:
        raise ValueError(f"{name}: expected an array as NumPy writes it, found it encrypted or compressed otherwise")
    with archive.open(entry) as member:
        version = npy.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{name}: expected an array of version 1.0 or 2.0, found {version}")
        shape, fortran, kind = _HEADERS[version](member)
        _check(name, shape, kind, wanted)
        size = math.prod(shape) * kind.itemsize
        if member.tell() + size != entry.file_size:
            raise ValueError(f"{name}: expected {size} bytes for its shape, found {entry.file_size - member.tell()}")
        return np.ndarray(shape, kind, buffer=member.read(size), order="F" if fortran else "C")


def _check(name: str, shape: tuple[int, ...], kind: np.dtype[Any], wanted: Wanted) -> None:
    fits = len(shape) == len(wanted.shape) and all(
        length >= 0 and expected in (None, length) for length, expected in zip(shape, wanted.shape, strict=False)
    )
    if not fits or kind.kind not in wanted.kinds or kind.hasobject:
        expected = ", ".join("any" if length is None else str(length) for length in wanted.shape)
        raise ValueError(f"{name}: expected {wanted.kinds} of shape ({expected}), found {kind.str} of {shape}")
    if kind.kind == "U" and kind.itemsize > 4 * LONGEST_TEXT:
        raise ValueError(f"{name}: expected texts of at most {LONGEST_TEXT} characters, found {kind.itemsize // 4}")


_MOST_DIRECTORY = 4 << 20
"""Bytes of an archive's directory: 40,000 members at least. It bounds the memory and the time that a list takes."""
MOST_INFLATED = 4
"""Times its compressed size: the weights of a trained net hardly shrink at all."""
_ALLOWANCE = 1 << 20
_DAMAGE = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError)


class _Bounded(io.FileIO):
    def read(self, size: int | None = -1) -> bytes:
        if size is None or size > _MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except _DAMAGE as error:
        raise WeightsError(f"{path}: expected a zip archive, found a damaged one: {error}; take it again") from None


def list_members(path: Path) -> list[zipfile.ZipInfo]:
    """List the members of an archive; WeightsError if it is damaged, or has too many."""
    with _archive(path) as archive:
        return archive.infolist()


def read_member(path: Path, name: str, most: int | None = None) -> bytes:
    """Read a member of an archive, of `most` bytes; by default what a trained net of the archive's size could have.

    WeightsError if there is none of that name, it is damaged, or it says that it has more bytes.
    """
    most = most or MOST_INFLATED * path.stat().st_size + _ALLOWANCE
    with _archive(path) as archive:
        try:
            member = archive.getinfo(name)
        except KeyError:
            raise WeightsError(f"{path}: expected {name} in the archive, found none; take it again") from None
        if member.file_size > most:
            raise WeightsError(
                f"{path}: {name}: expected at most {most} bytes, found {member.file_size}; it is damaged"
            )
        with archive.open(member) as stream:
            return stream.read(most)
