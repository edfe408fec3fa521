"""HDF5 files that others may have written: nothing is read before it was looked at.

HDF5 follows links, external storage and virtual data sets to other files without asking, and allocates what a
file declares. Here only plain data sets that lie within the file get through.

HDF5 data sets as we write them: contiguous, without time stamps, each with its checksum.

Strings have a fixed width, that of the longest: a variable-length one says its own length, and HDF5 believes it.
File names that are no UTF-8 keep their bytes (Python's "surrogateescape").
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5fd, h5g, h5p, h5s, h5t
from numpy.typing import NDArray

from vggfeat.errors import StoreError

TEXT = "UTF-8 text of fixed width"
_LARGEST_ATTRIBUTE = 1 << 22
_CHUNK_BYTES = 1 << 24


class UntrustedHDF5:
    """An open HDF5 file, for looking and then reading.

    Parameters
    ----------
    file : h5py.File
        Open for reading.
    where : str
        Its name, for messages.
    size : int
        Bytes that the file really has.
    """

    def __init__(self, file: h5py.File, where: str, size: int) -> None:
        self.file, self.where, self.size = file, where, size

    def refuse(self, what: str, expected: str, found: object) -> StoreError:
        """Make the error of one line for something unexpected."""
        return StoreError(f"{self.where}: {what}: expected {expected}, found {found}")

    def members(self, group: h5py.Group, expected: frozenset[str] | None = None) -> list[str]:
        """List the names in a group, after checking that all are hard links."""
        if len(group) > 1000:
            raise self.refuse(group.name, "a feature file's few members", f"{len(group)}")
        names = list(group)
        for name in names:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise self.refuse(name, "a data set in this file", f"a {type(link).__name__} to elsewhere")
        if expected is not None and set(names) != expected:
            missing, extra = sorted(expected - set(names)), sorted(set(names) - expected)
            raise self.refuse("members", f"{sorted(expected)}", f"{missing} missing and {extra} unexpected")
        return names

    def column(self, group: h5py.Group, name: str, dims: tuple[int | None, ...], dtype: str) -> h5py.Dataset:
        """Hand out a data set that is safe to read.

        Parameters
        ----------
        group : h5py.Group
            Its `members` were checked.
        name : str
            Name in `group`.
        dims : tuple of int or None
            Expected shape; None fits any length.
        dtype : str
            A numpy type name such as "<f4", or `TEXT`.

        Raises
        ------
        StoreError
            If it is of another shape or type, is not stored in this file alone, as plain bytes, or declares
            more bytes than the file has.
        """
        data = group.get(name)
        if not isinstance(data, h5py.Dataset):
            raise self.refuse(name, "a data set", type(data).__name__)
        _look_at_type(self, name, data.id.get_type(), dtype)
        shape = data.shape
        if not _fits(shape, dims):
            raise self.refuse(name, f"shape {dims}", shape)
        plan = data.id.get_create_plist()
        if plan.get_layout() != h5d.CONTIGUOUS or plan.get_nfilters() or plan.get_external_count():
            raise self.refuse(name, "plain contiguous bytes in this file", "chunks, filters or other files")
        self._look_at_extent(name, data)
        return data

    def _look_at_extent(self, name: str, data: h5py.Dataset) -> None:
        declared, offset = int(data.id.get_type().get_size()), data.id.get_offset()
        for length in data.shape:
            declared *= int(length)
        if declared == 0:
            return
        if offset is None or data.id.get_storage_size() != declared or offset + declared > self.size:
            raise self.refuse(name, f"at most the {self.size} bytes of the file", f"{declared} bytes declared")

    def text(self, name: str, owner: Any = None) -> str:
        """Read a text attribute of the root, or of `owner`."""
        kind, value = self._attribute(name, owner)
        _look_at_type(self, name, kind, TEXT)
        return bytes(value()).decode("utf-8", "surrogateescape")

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON object from a text attribute of the root."""
        value = json.loads(self.text(name))
        if not isinstance(value, dict):
            raise self.refuse(name, "a JSON object", type(value).__name__)
        return value

    def number(self, name: str) -> int:
        """Read an int64 attribute of the root."""
        kind, value = self._attribute(name, None)
        _look_at_type(self, name, kind, "<i8")
        return int(value())

    def _attribute(self, name: str, owner: Any) -> tuple[h5t.TypeID, Any]:
        owner = self.file if owner is None else owner
        if not h5a.exists(owner.id, name.encode()):
            raise self.refuse(name, "an attribute", "none")
        attribute = h5a.open(owner.id, name.encode())
        kind, size = attribute.get_type(), int(attribute.get_storage_size())
        if attribute.get_space().get_simple_extent_type() != h5s.SCALAR or size > _LARGEST_ATTRIBUTE:
            raise self.refuse(name, "one value", f"{size} bytes of shape {attribute.shape}")
        return kind, lambda: owner.attrs[name]


def read_texts(data: h5py.Dataset) -> tuple[str, ...]:
    """(n,) texts of a checked column."""
    texts: list[str] = []
    for start in range(0, len(data), TEXT_ROWS):
        rows = data[start : start + TEXT_ROWS]
        texts.extend(row.decode("utf-8", "surrogateescape") for row in rows.tolist())
    return tuple(texts)


def chunks(data: h5py.Dataset) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first row, rows) of a checked column, some 16 MiB at a time."""
    row_bytes = max(1, data.nbytes // max(1, len(data)))
    step = max(1, _CHUNK_BYTES // row_bytes)
    for start in range(0, len(data), step):
        yield start, data[start : start + step]


@contextmanager
def hdf5_errors(where: str) -> Iterator[None]:
    """Turn whatever HDF5 raises on a damaged or hostile file into a StoreError of one line."""
    try:
        yield
    except StoreError as error:
        if where in str(error):
            raise
        raise StoreError(f"{where}: {error}") from None
    except Exception as error:  # h5py lets OSError, RuntimeError, KeyError, ValueError and others out.
        raise StoreError(f"{where}: expected a feature file, found one that can't be read ({error})") from error


def _look_at_type(source: UntrustedHDF5, name: str, kind: h5t.TypeID, expected: str) -> None:
    if expected == TEXT:
        fits = isinstance(kind, h5t.TypeStringID) and not kind.is_variable_str() and kind.get_cset() == h5t.CSET_UTF8
    else:
        fits = kind.equal(h5t.py_create(np.dtype(expected)))
    if not fits:
        raise source.refuse(name, expected, f"another type (HDF5 class {kind.get_class()})")


def _fits(shape: tuple[int, ...] | None, dims: tuple[int | None, ...]) -> bool:
    if shape is None or len(shape) != len(dims):
        return False
    return all(wanted in (None, found) for wanted, found in zip(dims, shape, strict=True))


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


class ChecksummedDataset:
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
    column = ChecksummedDataset(group, name, rows.shape, rows.dtype.newbyteorder("<"))
    column.append(rows)
    return column.close()


def write_texts(group: h5py.Group, name: str, texts: Sequence[str]) -> str:
    """Write a list of texts as a `Column` and return its SHA-256."""
    width = text_width(texts, name)
    column = ChecksummedDataset(group, name, (len(texts),), text_type(width))
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


def canonical_json(value: object, what: str) -> str:
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
