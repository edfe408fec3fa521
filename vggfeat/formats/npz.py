"""Arrays of an .npz file that anybody may have written: their sizes are known before any is unpacked, and no pickle.

A few megabytes of zip can hold gigabytes of zeros, and the header of an array can claim any shape.
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

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
    """Allowed one-letter kinds of NumPy's types, for instance "f"."""
    shape: tuple[int | None, ...]
    """None for a length that is not known."""


def read_arrays(file: BinaryIO, wanted: Mapping[str, Wanted], most: int) -> dict[str, NDArray[Any]]:
    """Read those of the wanted arrays that are there; nothing else of the file is unpacked.

    Parameters
    ----------
    file : file object
    wanted : mapping
        Name -> what it should be.
    most : int
        Bytes that all of them together may have.

    Raises
    ------
    ValueError or another of `UNREADABLE`
        If one is another, compressed in a way that NumPy does not write, or damaged, or they are larger.
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
