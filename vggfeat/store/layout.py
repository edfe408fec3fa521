"""What a feature file holds: one table of its columns, by which blocks are checked, and files written and checked.

N = rows of the file, n = rows of a block, S = scales, R = regions, C = channels, K = classes.

Besides the columns below there are `FOLDERS` of columns: splits, with the M ascending rows of each, and columns, what
else a list says of its rows. Every data set has its SHA-256 as an attribute. The root's attributes: format, version,
dataset, task, fingerprint, key and provenance (JSON), features_sha256, done, failed.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import chain
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import (
    TEXT,
    ChecksummedDataset,
    UntrustedHDF5,
    canonical_json,
    new_file,
    new_group,
    text_width,
    write_column,
    write_text_attribute,
)
from vggfeat.runtime.durable import LatchedFile
from vggfeat.samples import DataSet

POSTERIORS = "posteriors"
"""Layer in the key of a file that holds class posteriors instead of features."""
FORMAT, VERSION = "vggfeat-features", 1


class Column(NamedTuple):
    """One data set of a feature file."""

    name: str
    dims: tuple[str | int, ...]
    """Its shape: letters as above, and numbers."""
    dtype: str
    """A numpy type name, or `TEXT`."""


# To add a column: see "A column of the feature file" in CONTRIBUTING.md.
BLOCK_COLUMNS = (
    Column("features", ("N", "S", "R", "C"), "<f4"),
    Column("status", ("N",), "|u1"),
    Column("sizes", ("N", 2), "<i4"),
    Column("sha256", ("N", 32), "|u1"),
    Column("reasons", ("N",), TEXT),
)
"""What a run computes, shard by shard: fields of `Block`, in the order in which they are stored."""
FACTS = tuple(column.name for column in BLOCK_COLUMNS if column.name != "features")
"""Those that are small enough to be in memory for all rows."""
DATA_SET_COLUMNS = (
    Column("ids", ("N",), TEXT),
    Column("paths", ("N",), TEXT),
    Column("classes", ("K",), TEXT),
    Column("regions", ("R",), TEXT),
    Column("scales", ("S",), "<i8"),
    Column("labels", ("N", "K"), "|i1"),
    Column("boxes", ("N", 4), "<f8"),  # NaN where there is none
    Column("groups", ("N",), TEXT),
)
"""What is known before a run, in the order in which it is stored."""
FOLDERS = (Column("splits", ("M",), "<i8"), Column("columns", ("N",), TEXT))
"""HDF5 groups of columns that are all alike, whatever their names; they stand behind those of `DATA_SET_COLUMNS`."""
OPTIONAL = frozenset({"groups", "columns"})
"""What is in a file only if its data set has it."""


class Status(IntEnum):
    """What became of a row."""

    PENDING = 0
    DONE = 1
    FAILED = 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one row of features holds; StoreError if a list is empty or repeats itself, or a number is below 1."""

    scales: tuple[int, ...]
    """S smallest image sides Q, in pixels."""
    regions: tuple[str, ...]
    """R names of the parts of an image that have features: image, box."""
    channels: int
    """C values per scale and region."""

    def __post_init__(self) -> None:
        for name in ("scales", "regions"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise StoreError(f"{name}: expected one or more, each once, found {values}")
        if min(*self.scales, self.channels) < 1:
            raise StoreError(f"expected scales and channels of at least 1, found {self.scales}, {self.channels}")

    @property
    def dims(self) -> tuple[int, int, int]:
        """(S, R, C)."""
        return len(self.scales), len(self.regions), self.channels

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of features."""
        return 4 * math.prod(self.dims)

    def lengths(self, rows: int) -> dict[str, int]:
        """Length of every letter in the dims of `BLOCK_COLUMNS`, for a block of so many rows."""
        return dict(zip("NSRC", (rows, *self.dims), strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Some consecutive rows, each done or failed."""

    features: NDArray[np.float32]
    """(n, S, R, C); finite where the row is done, NaN in the store where it failed."""
    status: NDArray[np.uint8]
    """(n,) values of `Status`, never pending."""
    reasons: tuple[str, ...]
    """n reasons, empty where the row is done."""
    sizes: NDArray[np.int32]
    """(n, 2) height and width of the image in pixels, 0 where it gave none."""
    sha256: NDArray[np.uint8]
    """(n, 32) digest of the image file's bytes."""

    def __len__(self) -> int:
        return len(self.status)


def select(values: Any, rows: NDArray[np.int64]) -> Any:
    """Return some rows of a column of a block, an array or a tuple of texts."""
    return tuple(values[row] for row in rows.tolist()) if isinstance(values, tuple) else values[rows]


def join_rows(parts: Sequence[Any]) -> Any:
    """Return the rows of several blocks in one column, as `select`; `parts` are those of at least one."""
    return tuple(chain.from_iterable(parts)) if isinstance(parts[0], tuple) else np.concatenate(parts)


def dims_of(column: Column, lengths: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of a column, whose letters stand for `lengths`."""
    return tuple(lengths[size] if isinstance(size, str) else size for size in column.dims)


def data_set_values(dataset: DataSet, shape: Shape) -> dict[str, Any]:
    """Return the values of `DATA_SET_COLUMNS` and `FOLDERS` by name, of the optional ones those that there are."""
    boxes = np.full((len(dataset), 4), np.nan) if dataset.boxes is None else dataset.boxes
    optional = {"groups": dataset.groups, "columns": dataset.columns}
    return {
        "ids": dataset.ids,
        "paths": dataset.paths,
        "classes": dataset.classes,
        "regions": shape.regions,
        "scales": np.array(shape.scales),
        "labels": dataset.labels,
        "boxes": boxes,
        "splits": dataset.splits,
        **{name: values for name, values in optional.items() if values},
    }


def file_bytes(dataset: DataSet, shape: Shape, reason_width: int = 16) -> int:
    """Bytes that a feature file will take, within 1 MiB or so, with reasons of at most `reason_width` bytes."""
    total = 1 << 20  # for what HDF5 says of the data sets
    for values in data_set_values(dataset, shape).values():
        for some in values.values() if isinstance(values, Mapping) else [values]:
            total += some.nbytes if isinstance(some, np.ndarray) else len(some) * text_width(some, "text")
    for column in BLOCK_COLUMNS:
        width = reason_width if column.dtype == TEXT else np.dtype(column.dtype).itemsize
        total += width * math.prod(dims_of(column, shape.lengths(len(dataset))))
    return total


def storable(dataset: DataSet) -> DataSet:
    """Check that a feature file can hold a data set, and return it in the one form in which it is stored.

    StoreError if it has no sample, or a name that a file can't hold.
    """
    if not len(dataset):
        raise StoreError(f"{dataset.name}: expected at least one sample, found none")
    for what in ("ids", "paths", "classes", "groups"):
        text_width(getattr(dataset, what) or (), f"{dataset.name}: {what}")
    for name, texts in dataset.columns.items():
        text_width(texts, f"{dataset.name}: {name!a}")
    for what, names in (("split", dataset.splits), ("column", dataset.columns)):
        for name in names:
            if not name.isprintable() or "/" in name or name in ("", ".", ".."):
                raise StoreError(f"{dataset.name}: expected a {what} name without / or odd signs, found {name!r}")
    if dataset.boxes is not None and np.isnan(dataset.boxes).all():
        return replace(dataset, boxes=None)
    return dataset


def checked(block: Block, rows: int, shape: Shape, where: str) -> Block:
    """Check a block before it counts as done, and put NaN in its failed rows.

    Zeros there would pass for features; NaN stops whoever forgets the status.

    StoreError if shapes or types differ, a row is neither done nor failed, a reason is missing, out of place or can't
    be stored, or a row that is done has a value that is not finite.
    """
    lengths = shape.lengths(rows)
    for column in BLOCK_COLUMNS:
        if column.dtype != TEXT:
            array, dims, dtype = getattr(block, column.name), dims_of(column, lengths), np.dtype(column.dtype)
            if array.shape != dims or array.dtype != dtype:
                found = f"{array.dtype} {array.shape}"
                raise StoreError(f"{where}: {column.name}: expected {dtype} {dims}, found {found}")
    done = block.status == Status.DONE
    if not (done | (block.status == Status.FAILED)).all():
        raise StoreError(f"{where}: expected every row done or failed, found others")
    if len(block.reasons) != rows or [not reason for reason in block.reasons] != done.tolist():
        raise StoreError(f"{where}: expected a reason for every failed row and for no other")
    text_width(block.reasons, f"{where}: reasons")
    finite = np.isfinite(block.features).reshape(rows, -1).all(axis=1)
    bad = np.flatnonzero(done & ~finite)
    if len(bad):
        raise StoreError(f"{where}: expected finite features in rows that are done, found others in row {bad[0]}")
    if done.all():
        return block
    features = block.features.copy()
    features[~done] = np.nan
    return replace(block, features=features)


def write_feature_file(
    sink: LatchedFile,
    dataset: DataSet,
    shape: Shape,
    blocks: Iterable[Block],
    *,
    key: dict[str, Any],
    provenance: dict[str, Any],
    reason_width: int,
) -> None:
    """Write a feature file block by block; equal input gives equal bytes.

    Parameters
    ----------
    sink : LatchedFile
        Empty file.
    dataset : DataSet
        The N samples, in the order of the rows.
    shape : Shape
        What one row holds.
    blocks : iterable of Block
        Together N rows, checked.
    key : dict
        All that decides the features, as JSON.
    provenance : dict
        All else that a reader may want to know, as JSON; no times, or equal runs give unequal files.
    reason_width : int
        Bytes of the longest reason in `blocks`.

    Raises
    ------
    OSError
        The first error of the disk.
    StoreError
        If the blocks hold another number of rows, or `key` or `provenance` is no JSON.
    """
    texts = {
        "format": FORMAT,
        "dataset": dataset.name,
        "task": str(dataset.task),
        "fingerprint": dataset.fingerprint(),
        "key": canonical_json(key, "key"),
        "provenance": canonical_json(provenance, "provenance"),
    }
    with new_file(sink) as file:
        for name, text in texts.items():
            write_text_attribute(file, name, text)
        file.attrs["version"] = np.int64(VERSION)
        values = data_set_values(dataset, shape)
        for column in DATA_SET_COLUMNS:
            if column.name in values:
                write_column(file, column.name, values[column.name], column.dtype)
        for folder in FOLDERS:
            if folder.name in values:
                group = new_group(file, folder.name)
                for name, some in sorted(values[folder.name].items()):
                    write_column(group, name, some, folder.dtype)
        lengths = shape.lengths(len(dataset))
        written = {
            column.name: ChecksummedDataset(file, column.name, dims_of(column, lengths), column.dtype, reason_width)
            for column in BLOCK_COLUMNS
        }
        counts: Counter[int] = Counter()
        for block in blocks:
            for name, data in written.items():
                data.append(getattr(block, name))
            counts.update(block.status.tolist())
            sink.raise_first_error()
        digests = {name: data.close() for name, data in written.items()}
        write_text_attribute(file, "features_sha256", digests["features"])
        file.attrs["done"], file.attrs["failed"] = np.int64(counts[Status.DONE]), np.int64(counts[Status.FAILED])


def check_layout(source: UntrustedHDF5) -> dict[str, h5py.Dataset]:
    """Check that a file holds exactly what the layout says, and return its data sets by name.

    StoreError at the first thing that is missing, unexpected, of another type or shape, or larger than the file.
    """
    if source.text("format") != FORMAT:
        raise source.refuse("format", FORMAT, ascii(source.text("format")))
    if source.number("version") != VERSION:
        raise source.refuse("version", f"{VERSION}", f"{source.number('version')}; update vggfeat")
    absent = OPTIONAL.difference(source.members(source.file))
    columns = [column for column in (*BLOCK_COLUMNS, *DATA_SET_COLUMNS) if column.name not in absent]
    folders = [column for column in FOLDERS if column.name not in absent]
    source.members(source.file, frozenset(column.name for column in (*columns, *folders)))
    found: dict[str, h5py.Dataset] = {}
    lengths: dict[str, int] = {}  # The first column that has a letter decides its length.
    for column in columns:
        dims = tuple(lengths.get(size) if isinstance(size, str) else size for size in column.dims)
        found[column.name] = source.column(source.file, column.name, dims, column.dtype)
        named = zip(column.dims, found[column.name].shape, strict=True)
        lengths |= {size: length for size, length in named if isinstance(size, str)}
    for folder in folders:
        group = source.file.get(folder.name)
        if not isinstance(group, h5py.Group):
            raise source.refuse(folder.name, "a group", type(group).__name__)
        for name in source.members(group):
            dims = (lengths.get(str(folder.dims[0])),)
            found[f"{folder.name}/{name}"] = source.column(group, name, dims, folder.dtype)
    declared = sum(data.nbytes for data in found.values())
    if declared > source.size:
        raise source.refuse("data sets", f"at most {source.size} bytes", f"{declared}")
    return found
