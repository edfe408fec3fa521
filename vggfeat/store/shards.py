"""A shard: a block of rows as one small file, with a checksum over every byte; and the feature file made of all shards.

A shard is an HDF5 file behind 512 bytes of its own (an HDF5 user block), which hold the SHA-256 of the rest. So
damage is found before HDF5 sees any of it. n = rows of a block, N = rows of the file.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import h5py
import numpy as np

from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import (
    TEXT,
    ChecksummedDataset,
    UntrustedHDF5,
    canonical_json,
    encoded,
    hdf5_errors,
    new_data_set,
    new_file,
    new_group,
    read_values,
    text_width,
    write_column,
    write_text_attribute,
)
from vggfeat.runtime.durable import LatchedFile
from vggfeat.samples import DataSet
from vggfeat.store.layout import (
    BLOCK_COLUMNS,
    DATA_SET_COLUMNS,
    FOLDERS,
    FORMAT,
    VERSION,
    Block,
    Shape,
    Status,
    data_set_values,
    dims_of,
)

HEAD = 512
_SHARD_FORMAT = "vggfeat-shard 1"


def checked(block: Block, rows: int, shape: Shape, where: str) -> Block:
    """Check a block before it counts as done, and put NaN in its failed rows.

    Zeros there would pass for features; NaN stops whoever forgets the status.

    Raises
    ------
    StoreError
        If shapes or types differ, a row is neither done nor failed, a reason is missing, out of place or can't be
        stored, or a row that is done has a value that is not finite.
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


def encode(block: Block, *, index: int, token: str) -> bytes:
    """Turn a checked block into the bytes of a shard file; equal blocks give equal bytes.

    Parameters
    ----------
    block : Block
        As `checked` returns it.
    index : int
        Number of the shard.
    token : str
        Digest of the manifest that it belongs to.
    """
    # Not HDF5's own file in memory: in HDF5 1.14 the image that it gives out has a wrong checksum.
    memory = io.BytesIO()
    with new_file(memory) as file:
        write_text_attribute(file, "format", _SHARD_FORMAT)
        write_text_attribute(file, "manifest", token)
        file.attrs["index"] = np.int64(index)
        width = text_width(block.reasons, "reasons")
        for column in BLOCK_COLUMNS:
            values = encoded(getattr(block, column.name), column.dtype, width)
            new_data_set(file, column.name, values.shape, values.dtype)[...] = values
    image = memory.getvalue()
    return _head(image) + image


def decode(raw: bytes, *, rows: int, shape: Shape, index: int, token: str, where: str) -> Block:
    """Turn the bytes of a shard file into its block.

    Raises
    ------
    StoreError
        If a byte is damaged, it is the shard of other rows or of another manifest, or `checked` refuses it.
    """
    image = memoryview(raw)[HEAD:]
    if raw[:HEAD] != _head(image):
        raise StoreError(f"{where}: expected bytes that fit their checksum, found damage")
    lengths = shape.lengths(rows)
    with hdf5_errors(where), h5py.File(io.BytesIO(image), "r") as file:
        source = UntrustedHDF5(file, where, len(image))
        source.members(file, frozenset(column.name for column in BLOCK_COLUMNS))
        for name, expected in (("format", _SHARD_FORMAT), ("manifest", token)):
            if source.text(name) != expected:
                raise source.refuse(name, expected, source.text(name))
        if source.number("index") != index:
            raise source.refuse("index", str(index), source.number("index"))
        values: dict[str, Any] = {}
        for column in BLOCK_COLUMNS:
            data = source.column(file, column.name, dims_of(column, lengths), column.dtype)
            values[column.name] = read_values(data)
        return checked(Block(**values), rows, shape, where)


def _head(image: bytes | memoryview) -> bytes:
    line = f"vggfeat shard; the rest is HDF5 with SHA-256 {hashlib.sha256(image).hexdigest()}\n"
    return line.encode().ljust(HEAD - 1) + b"\n"


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
