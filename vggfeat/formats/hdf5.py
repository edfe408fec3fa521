"""HDF5 files that others may have written, read with care; and how we write our own.

Reading: HDF5 follows links, external storage and virtual data sets to other files without asking, and allocates what a
file declares. Here only plain data sets that lie within the file get through, and each is checked before it is read.

Writing: data sets are contiguous, without time stamps, each with its checksum. Texts have a fixed width, that of the
longest: a text of variable length says its own length, and HDF5 believes it. File names that are no UTF-8 keep their
bytes (Python's "surrogateescape").
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5fd, h5g, h5p, h5s, h5t
from numpy.typing import NDArray

from vggfeat.errors import StoreError
from vggfeat.runtime.durable import DiskFile

TEXT = "UTF-8 text of fixed width"
"""Type of a column of texts, where numbers have a numpy type name."""
_LARGEST_ATTRIBUTE = 1 << 22
_ROWS_AT_A_TIME = 65536


class UntrustedHDF5:
    """An open HDF5 file, `where` in messages, of really `size` bytes, whose parts are checked before they are read."""

    def __init__(self, file: h5py.File, where: str, size: int) -> None:
        self.file, self.where, self.size = file, where, size

    def refuse(self, what: str, expected: str, found: object) -> StoreError:
        """Make the error of one line for something unexpected."""
        return StoreError(f"{self.where}: {what}: expected {expected}, found {found}")

    def members(self, group: h5py.Group, expected: frozenset[str] | None = None) -> list[str]:
        """List the names in a group, after checking that all are hard links, and those that are `expected`."""
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
        """Return a data set that is safe to read.

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
        self._check_type(name, data.id.get_type(), dtype)
        shape = data.shape
        if (
            shape is None
            or len(shape) != len(dims)
            or any(n not in (None, m) for n, m in zip(dims, shape, strict=True))
        ):
            raise self.refuse(name, f"shape {dims}", shape)
        plan = data.id.get_create_plist()
        if plan.get_layout() != h5d.CONTIGUOUS or plan.get_nfilters() or plan.get_external_count():
            raise self.refuse(name, "plain contiguous bytes in this file", "chunks, filters or other files")
        declared, offset = int(data.id.get_type().get_size()), data.id.get_offset()
        for length in shape:
            declared *= int(length)
        stored = declared == 0 or (offset is not None and data.id.get_storage_size() == declared)
        if not stored or (declared and offset + declared > self.size):
            raise self.refuse(name, f"at most the {self.size} bytes of the file", f"{declared} bytes declared")
        return data

    def text(self, name: str, owner: Any = None) -> str:
        """Read a text attribute of the root, or of `owner`."""
        return bytes(self._attribute(name, TEXT, owner)()).decode("utf-8", "surrogateescape")

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON object from a text attribute of the root."""
        value = json.loads(self.text(name))
        if not isinstance(value, dict):
            raise self.refuse(name, "a JSON object", type(value).__name__)
        return value

    def number(self, name: str) -> int:
        """Read an int64 attribute of the root."""
        return int(self._attribute(name, "<i8")())

    def _attribute(self, name: str, dtype: str, owner: Any = None) -> Callable[[], Any]:
        owner = self.file if owner is None else owner
        if not h5a.exists(owner.id, name.encode()):
            raise self.refuse(name, "an attribute", "none")
        attribute = h5a.open(owner.id, name.encode())
        size = int(attribute.get_storage_size())
        if attribute.get_space().get_simple_extent_type() != h5s.SCALAR or size > _LARGEST_ATTRIBUTE:
            raise self.refuse(name, "one value", f"{size} bytes of shape {attribute.shape}")
        self._check_type(name, attribute.get_type(), dtype)
        return lambda: owner.attrs[name]

    def _check_type(self, name: str, kind: h5t.TypeID, expected: str) -> None:
        if expected == TEXT:
            is_text = isinstance(kind, h5t.TypeStringID) and not kind.is_variable_str()
            fits = is_text and kind.get_cset() == h5t.CSET_UTF8
        else:
            fits = kind.equal(h5t.py_create(np.dtype(expected)))
        if not fits:
            raise self.refuse(name, expected, f"another type (HDF5 class {kind.get_class()})")


def open_hdf5(path: str | os.PathLike[str]) -> h5py.File:
    """Open an HDF5 file for reading, whoever else has it open and how; OSError if it is none.

    HDF5 opens a file once a process: it refuses one that the program has open with other flags. It also locks it, which
    some disks refuse. A file that it reads through Python shares nothing with others; ours never change under their
    names.
    """
    return h5py.File(DiskFile(path), "r")


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
        kind = "a file that is no HDF5" if "signature not found" in str(error) else f"one that can't be read ({error})"
        raise StoreError(
            f"{where}: expected a feature file, found {kind}; correct its name, or make it again"
        ) from error


def read_values(data: h5py.Dataset, rows: slice = slice(None)) -> Any:
    """Read rows of a checked column: an array, or a tuple of texts."""
    if data.dtype.kind != "S":
        return data[rows]
    texts: list[str] = []
    first, stop, _ = rows.indices(len(data))
    for start in range(first, stop, _ROWS_AT_A_TIME):
        some = data[start : min(start + _ROWS_AT_A_TIME, stop)]
        texts.extend(row.decode("utf-8", "surrogateescape") for row in some.tolist())
    return tuple(texts)


def new_file(stream: BinaryIO | io.RawIOBase) -> h5py.File:
    """Make an HDF5 file in an empty stream, in the oldest format whose metadata carries checksums (HDF5 1.8).

    Nothing in it carries a time, or a resumed run would differ from an unbroken one; `h5py.File` can't say so
    for the root before its version 3.14.
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
    """A data set of a group that is filled from row 0 on, with the SHA-256 of its bytes.

    `dims` is its final shape; `dtype` a numpy type name, little-endian, or `TEXT`, of at most `width` bytes each.
    """

    def __init__(self, group: h5py.Group, name: str, dims: tuple[int, ...], dtype: str, width: int = 0) -> None:
        self._dtype, self._width = dtype, width
        self._data = new_data_set(group, name, dims, _stored_type(dtype, width))
        self._digest = hashlib.sha256()
        self._next = 0

    def append(self, values: Any) -> None:
        """Write the next rows: an array, or texts."""
        rows = encoded(values, self._dtype, self._width)
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


def write_column(group: h5py.Group, name: str, values: Any, dtype: str) -> None:
    """Write an array, or a sequence of texts, as a `ChecksummedDataset`."""
    width = text_width(values, name) if dtype == TEXT else 0
    dims = (len(values),) if dtype == TEXT else values.shape
    column = ChecksummedDataset(group, name, dims, dtype, width)
    for start in range(0, len(values), _ROWS_AT_A_TIME):
        column.append(values[start : start + _ROWS_AT_A_TIME])
    column.close()


def write_text_attribute(owner: h5py.Group | h5py.Dataset, name: str, text: str) -> None:
    """Write one text as an attribute."""
    owner.attrs.create(name, encoded([text], TEXT, text_width([text], name)).reshape(()))


def encoded(values: Any, dtype: str, width: int = 0) -> NDArray[Any]:
    """Return values as they are stored: numbers of type `dtype`, texts as bytes that fill `width`."""
    if dtype == TEXT:
        values = [text.encode("utf-8", "surrogateescape") for text in values]
    return np.ascontiguousarray(values, dtype=_stored_type(dtype, width))


def text_width(texts: Iterable[str], what: str) -> int:
    """Bytes of the longest of `texts`.

    StoreError if one holds a NUL or half a UTF-16 pair, which no file name has.
    """
    width = 0
    for text in texts:
        try:
            content = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            content = b"\0"
        if b"\0" in content:
            raise StoreError(f"{what}: expected a text that a file name can be, found {text!a}; rename it")
        width = max(width, len(content))
    return width


def canonical_json(value: object, what: str) -> str:
    """JSON in which equal things are equal texts: sorted keys, no spaces; StoreError if `value` is no JSON."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{what}: expected texts, finite numbers, lists and dictionaries: {error}") from None


def _stored_type(dtype: str, width: int) -> np.dtype[Any]:
    return h5py.string_dtype("utf-8", max(1, width)) if dtype == TEXT else np.dtype(dtype)
