"""HDF5 data sets as we write them: contiguous, without time stamps, each with its checksum.

Strings have a fixed width, that of the longest: a variable-length one says its own length, and HDF5 believes it.
File names that are no UTF-8 keep their bytes (Python's "surrogateescape").
"""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import h5py
import numpy as np
from h5py import h5d, h5f, h5fd, h5g, h5p
from numpy.typing import NDArray

from vggfeat.errors import StoreError

TEXT_ROWS = 65536
"""Texts that are encoded or decoded at a time."""


def new_file(stream: BinaryIO | io.RawIOBase) -> h5py.File:
    """Make an HDF5 file in an empty stream, in the oldest format whose metadata carries checksums (HDF5 1.8).

    Nothing in it carries a time, or a resumed run would differ from an unbroken one; `h5py.File` has no say in
    that for the root before its version 3.14.
    """
    plan, access = h5p.create(h5p.FILE_CREATE), h5p.create(h5p.FILE_ACCESS)
    plan.set_obj_track_times(False)
    access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V18)
    access.set_fileobj_driver(h5fd.fileobj_driver, stream)
    return h5py.File(h5f.create(b"stream", h5f.ACC_TRUNC, fapl=access, fcpl=plan))


def new_group(parent: h5py.Group, name: str) -> h5py.Group:
    """Make a group without a time."""
    plan = h5p.create(h5p.GROUP_CREATE)
    plan.set_obj_track_times(False)
    return h5py.Group(h5g.create(parent.id, name.encode(), gcpl=plan))


def new_data_set(group: h5py.Group, name: str, dims: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """Make a contiguous data set that has its place in the file at once, and no time."""
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    return group.create_dataset(name, dims, np.dtype(dtype), dcpl=plan)


class Column:
    """A data set that is filled from row 0 on, with the SHA-256 of its bytes.

    Parameters
    ----------
    group : h5py.Group
        Where to create it.
    name : str
        Its name.
    dims : tuple of int
        Final shape.
    dtype : dtype
        Little-endian, or from `text_type`.
    """

    def __init__(self, group: h5py.Group, name: str, dims: tuple[int, ...], dtype: Any) -> None:
        self._data = new_data_set(group, name, dims, dtype)
        self._digest = hashlib.sha256()
        self._next = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""
        rows = np.ascontiguousarray(rows, dtype=self._data.dtype)
        stop = self._next + len(rows)
        if rows.size:
            self._data[self._next : stop] = rows
        self._digest.update(rows.data)
        self._next = stop

    def close(self) -> str:
        """Record the SHA-256 as an attribute and return it as 64 hex digits."""
        if self._next != len(self._data):
            raise StoreError(f"{self._data.name}: expected {len(self._data)} rows, found {self._next}")
        write_text_attribute(self._data, "sha256", self._digest.hexdigest())
        return self._digest.hexdigest()


def write_column(group: h5py.Group, name: str, rows: NDArray[Any]) -> str:
    """Write a whole array as a `Column` and return its SHA-256."""
    column = Column(group, name, rows.shape, rows.dtype.newbyteorder("<"))
    column.append(rows)
    return column.close()


def write_texts(group: h5py.Group, name: str, texts: Sequence[str]) -> str:
    """Write a list of texts as a `Column` and return its SHA-256."""
    width = text_width(texts, name)
    column = Column(group, name, (len(texts),), text_type(width))
    for start in range(0, len(texts), TEXT_ROWS):
        column.append(encode_texts(texts[start : start + TEXT_ROWS], width))
    return column.close()


def write_text_attribute(owner: h5py.Group | h5py.Dataset, name: str, text: str) -> None:
    """Write one text as an attribute."""
    owner.attrs.create(name, encode_texts([text], text_width([text], name)).reshape(()))


def text_type(width: int) -> np.dtype[Any]:
    """UTF-8 text of `width` bytes, at least 1."""
    return h5py.string_dtype("utf-8", max(1, width))


def text_width(texts: Iterable[str], what: str) -> int:
    """Bytes of the longest of `texts`.

    Raises
    ------
    StoreError
        If one holds a NUL or half a UTF-16 pair, which no file name has.
    """
    return max((len(_bytes_of(text, what)) for text in texts), default=0)


def encode_texts(texts: Sequence[str], width: int) -> NDArray[np.bytes_]:
    """(n,) texts as bytes that fill `width`."""
    return np.array([text.encode("utf-8", "surrogateescape") for text in texts], dtype=text_type(width))


def canonical(value: object, what: str) -> str:
    """JSON in which equal things are equal texts: sorted keys, no spaces.

    Raises
    ------
    StoreError
        If `value` is no JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{what}: expected texts, finite numbers, lists and dictionaries: {error}") from None


def _bytes_of(text: str, what: str) -> bytes:
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise StoreError(f"{what}: expected a text that a file name can be, found {text!a}; rename it")
    return encoded
