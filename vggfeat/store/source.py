"""HDF5 files that others may have written: nothing is read before it was looked at.

HDF5 follows links, external storage and virtual data sets to other files without asking, and allocates what a
file declares. Here only plain data sets that lie within the file get through.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5s, h5t
from numpy.typing import NDArray

from vggfeat.errors import StoreError
from vggfeat.store.columns import TEXT_ROWS

TEXT = "UTF-8 text of fixed width"
_LARGEST_ATTRIBUTE = 1 << 22
_CHUNK_BYTES = 1 << 24


class Source:
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


def _look_at_type(source: Source, name: str, kind: h5t.TypeID, expected: str) -> None:
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
