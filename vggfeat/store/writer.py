"""Writes the feature file that `vggfeat.store.layout` lists and `vggfeat.store.reader` reads."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import h5py
import numpy as np

from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import (
    ChecksummedDataset,
    canonical_json,
    encode_texts,
    new_file,
    new_group,
    text_type,
    text_width,
    write_column,
    write_text_attribute,
    write_texts,
)
from vggfeat.runtime.durable import LatchedFile
from vggfeat.samples import DataSet
from vggfeat.store.layout import FORMAT, PER_ROW, VERSION
from vggfeat.store.shards import Block, Shape, Status


def write(
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
        _write_lists(file, dataset, shape)
        _write_blocks(file, len(dataset), shape, _until_error(blocks, sink), reason_width)


def _write_lists(file: h5py.File, dataset: DataSet, shape: Shape) -> None:
    for name in ("ids", "paths", "classes"):
        write_texts(file, name, getattr(dataset, name))
    write_texts(file, "regions", shape.regions)
    write_column(file, "scales", np.array(shape.scales, "<i8"))
    write_column(file, "labels", dataset.labels.astype("|i1", copy=False))
    boxes = np.full((len(dataset), 4), np.nan) if dataset.boxes is None else dataset.boxes
    write_column(file, "boxes", boxes.astype("<f8", copy=False))
    splits = new_group(file, "splits")
    for name, rows in sorted(dataset.splits.items()):
        write_column(splits, name, np.asarray(rows, "<i8"))


def _write_blocks(file: h5py.File, rows: int, shape: Shape, blocks: Iterable[Block], reason_width: int) -> None:
    columns = {"features": ChecksummedDataset(file, "features", (rows, *shape.dims), "<f4")}
    columns |= {name: ChecksummedDataset(file, name, (rows, *dims), dtype) for name, (dims, dtype) in PER_ROW.items()}
    reasons = ChecksummedDataset(file, "reasons", (rows,), text_type(reason_width))
    counts: Counter[int] = Counter()
    for block in blocks:
        for name, column in columns.items():
            column.append(getattr(block, name))
        reasons.append(encode_texts(block.reasons, reason_width))
        counts.update(block.status.tolist())
    reasons.close()
    digests = {name: column.close() for name, column in columns.items()}
    write_text_attribute(file, "features_sha256", digests["features"])
    file.attrs["done"], file.attrs["failed"] = np.int64(counts[Status.DONE]), np.int64(counts[Status.FAILED])


def _until_error(blocks: Iterable[Block], sink: LatchedFile) -> Iterator[Block]:
    for block in blocks:
        yield block
        sink.raise_first_error()


def size_of(dataset: DataSet, shape: Shape, reason_width: int = 16) -> int:
    """Bytes that a feature file will take, within 1 MiB or so."""
    widths = (text_width(dataset.ids, "ids"), text_width(dataset.paths, "paths"), reason_width)
    fixed = 1 + 8 + 32 + 32 + len(dataset.classes)  # status, sizes, sha256, boxes, labels
    splits = 8 * sum(len(rows) for rows in dataset.splits.values())
    return len(dataset) * (shape.row_bytes + sum(widths) + fixed) + splits + (1 << 20)


def plain(dataset: DataSet) -> DataSet:
    """Check that a feature file can hold a data set, and hand it out in the one form that it is stored in.

    Raises
    ------
    StoreError
        If it has no sample, or a name that a file can't hold.
    """
    if not len(dataset):
        raise StoreError(f"{dataset.name}: expected at least one sample, found none")
    for what in ("ids", "paths", "classes"):
        text_width(getattr(dataset, what), f"{dataset.name}: {what}")
    for split in dataset.splits:
        if not split.isprintable() or "/" in split or split in ("", ".", ".."):
            raise StoreError(f"{dataset.name}: expected a split name without / or odd signs, found {split!r}")
    if dataset.boxes is not None and np.isnan(dataset.boxes).all():
        return replace(dataset, boxes=None)
    return dataset
