"""A list of images of any length, in batches of rows: what a plan is made of. Nothing holds the whole of it.

Columns of a batch; all but the first two may be left out:

    id         text       unique name of the row
    file       text       path relative to the root, or an address of its own
    offset     int64      first byte of the image in the file; null: the whole file is the image
    length     int64      bytes of the image from there on; null as above
    size       int64      bytes of the image; -1 where there is no file; null: not known
    etag       text       what an object store calls the content of the file
    labels     list of int32    numbers of the classes that the row is positive for
    ignored, withheld, unlisted    list of int32    classes of these labels (`vggfeat.samples.Label`); all others are
                                                    negative
    box        4 float64  left, top, right, bottom, as in `vggfeat.samples.Box`; null: none
    group      text       what the image is of; null: not known
    splits     list of text    names of the splits that the row is in
    column_X   text       further column X of a list

N = samples, n = rows of a batch, K = classes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import DatasetError
from vggfeat.samples import DataSet, Label, Task

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 8192
"""Rows of a batch of `listing_of`."""
LABELS = {"labels": Label.POSITIVE, "ignored": Label.IGNORED, "withheld": Label.WITHHELD, "unlisted": Label.UNLISTED}
"""Columns of class numbers, and the label that each stands for."""
FURTHER = "column_"
"""What the name of a further column begins with."""
STATS, _STATS_AT_A_TIME = 16, 256
"""Files that are asked for their sizes side by side: on a disk of the network each takes a journey."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """What a plan is made of: as `vggfeat.samples.DataSet`, but the rows come in batches."""

    name: str
    task: Task
    classes: tuple[str, ...]
    """K class names; the class numbers of the rows point here."""
    root: str
    """Folder, or address, that `file` is relative to."""
    batches: Callable[[], Iterator["pa.RecordBatch"]]
    """Begins the list anew, and yields its rows in an order that is always the same."""
    splits: tuple[str, ...] = ()
    """Names of splits that are known before any row is; others come with their rows."""
    boxes_as_stored: bool = False
    """As `vggfeat.samples.DataSet.boxes_as_stored`."""
    notes: tuple[str, ...] = ()
    """What a user should know of this copy of the data, a sentence each."""
    marks: Mapping[str, Any] = field(default_factory=dict)
    """What the provenance says of the images besides; ready for JSON."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the user said of how the list is to be read, which counts for its extension too; ready for JSON."""


def row_schema(further: Iterable[str] = ()) -> "pa.Schema":
    """Return the types of all columns of a batch, `further` ones (named without their prefix) last."""
    import pyarrow as pa

    numbers = pa.list_(pa.int32())
    kinds = {
        "id": pa.string(), "file": pa.string(), "offset": pa.int64(), "length": pa.int64(), "size": pa.int64(),
        "etag": pa.string(), **dict.fromkeys(LABELS, numbers), "box": pa.list_(pa.float64(), 4),
        "group": pa.string(), "splits": pa.list_(pa.string()),
        **{f"{FURTHER}{name}": pa.string() for name in further},
    }  # fmt: skip
    return pa.schema(list(kinds.items()))


def complete_batch(batch: "pa.RecordBatch", where: str) -> "pa.Table":
    """Return a batch with all columns, in their order and types; what is not given is filled in.

    DatasetError if `id` or `file` is missing or has a row without a value, a column is of another type, or has a name
    that none has.
    """
    import pyarrow as pa

    further = [name.removeprefix(FURTHER) for name in batch.schema.names if name.startswith(FURTHER)]
    schema = row_schema(further)
    unknown = [name for name in batch.schema.names if name not in schema.names]
    missing = [name for name in ("id", "file") if name not in batch.schema.names or batch[name].null_count]
    if unknown or missing:
        found = f"the column {unknown[0]!a}" if unknown else f"no {missing[0]} in some row"
        raise DatasetError(f"{where}: expected rows with id and file, and columns that a list can have, found {found}")
    empty = {"etag": pa.scalar("")}
    empty |= {name: pa.scalar([], schema.field(name).type) for name in (*LABELS, "splits")}
    columns = [_column(batch, schema.field(name), empty.get(name), where) for name in schema.names]
    return pa.table(columns, schema=schema)


def _column(batch: "pa.RecordBatch", field: "pa.Field", empty: "pa.Scalar | None", where: str) -> "pa.Array":
    import pyarrow as pa

    if field.name not in batch.schema.names:
        return pa.nulls(len(batch), field.type) if empty is None or not len(batch) else pa.repeat(empty, len(batch))
    try:
        column = batch[field.name].cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        found = f"{batch[field.name].type} ({error})"
        raise DatasetError(f"{where}: column {field.name!a}: expected {field.type}, found {found}") from None
    return column.fill_null("") if field.name == "etag" else column


def listing_of(dataset: DataSet, marks: Mapping[str, Any] | None = None) -> Listing:
    """Return a data set as the listing that it is; the sizes of its files are asked for batch by batch.

    Parameters
    ----------
    dataset : DataSet
        With one file an image.
    marks : mapping, optional
        As in `Listing`.
    """
    return Listing(
        name=dataset.name,
        task=dataset.task,
        classes=dataset.classes,
        root=os.path.abspath(dataset.root),
        batches=lambda: _batches(dataset),
        splits=tuple(sorted(dataset.splits)),
        boxes_as_stored=dataset.boxes_as_stored,
        notes=dataset.notes,
        marks=marks or {},
    )


def _batches(dataset: DataSet) -> Iterator["pa.RecordBatch"]:
    members = {name: np.zeros(len(dataset), dtype=bool) for name in sorted(dataset.splits)}
    for name, chosen in dataset.splits.items():
        members[name][chosen] = True
    with ThreadPoolExecutor(STATS, "vggfeat-sizes") as pool:
        for start in range(0, len(dataset), BATCH_ROWS):
            rows = range(start, min(start + BATCH_ROWS, len(dataset)))
            sizes = sizes_of([dataset.place(row).file for row in rows], pool)
            yield _batch(dataset, rows, sizes, members)


def _batch(
    dataset: DataSet, rows: range, sizes: list[int], members: Mapping[str, NDArray[np.bool_]]
) -> "pa.RecordBatch":
    import pyarrow as pa

    part = slice(rows.start, rows.stop)
    schema = row_schema(dataset.columns)
    labels = dataset.labels[part]
    columns: dict[str, Any] = {
        "id": dataset.ids[part],
        "file": dataset.paths[part],
        "size": sizes,
        **{name: _class_lists(labels == label) for name, label in LABELS.items()},
        "splits": [[name for name, member in members.items() if member[row]] for row in rows],
        **{f"{FURTHER}{name}": texts[part] for name, texts in dataset.columns.items()},
    }
    if dataset.boxes is not None:
        columns["box"] = [None if np.isnan(box).any() else box.tolist() for box in dataset.boxes[part]]
    if dataset.groups is not None:
        columns["group"] = dataset.groups[part]
    try:
        arrays = {
            name: values if isinstance(values, pa.Array) else pa.array(values, schema.field(name).type)
            for name, values in columns.items()
        }
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"{dataset.name}: expected names in UTF-8, found {error.object[:80]!a}; rename it, or extract into one file"
        ) from None
    return pa.RecordBatch.from_pydict(arrays)


def _class_lists(chosen: NDArray[np.bool_]) -> "pa.ListArray":
    """Return the numbers of the chosen classes of each row of (n, K)."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.nonzero(chosen)[1].astype(np.int32)))


def sizes_of(files: Sequence[str], pool: ThreadPoolExecutor) -> list[int]:
    """Return the bytes of files of this machine, -1 where there is none."""
    # A thread has many at a time: handing one over takes longer than the disk does.
    parts = [files[start : start + _STATS_AT_A_TIME] for start in range(0, len(files), _STATS_AT_A_TIME)]
    return list(chain.from_iterable(pool.map(lambda part: [size_of(file) for file in part], parts)))


def size_of(file: str) -> int:
    """Return the bytes of a file of this machine, -1 if there is none."""
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):
        return -1
