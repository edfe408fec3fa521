"""The rows of a streamed set on their way to a listing.

Rows are kept on disk until the last is seen, for only then all classes are known. K = classes.
"""

import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vggfeat.datasets.levels import class_name_notes
from vggfeat.listing import LABELS, Listing, row_schema
from vggfeat.samples import Task

if TYPE_CHECKING:
    import pyarrow as pa


class StreamedRow(NamedTuple):
    """One image, as it is found."""

    id: str
    file: str
    offset: int | None = None
    length: int | None = None
    size: int | None = None
    etag: str = ""
    labels: tuple[str, ...] = ()
    """Names of classes."""
    ignored: tuple[str, ...] = ()
    box: tuple[float, ...] | None = None
    group: str | None = None
    splits: tuple[str, ...] = ()


class Spool:
    """Batches of rows on the disk; the file has no name and is gone with this object."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="vggfeat-list-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._writer: Any = None
        self.rows = 0

    def add(self, batch: "pa.RecordBatch") -> None:
        """Add some rows; all batches have the same columns."""
        import pyarrow as pa

        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._writer = pa.ipc.new_stream(self._file, batch.schema, options=options)
        self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def read(self) -> Iterator["pa.RecordBatch"]:
        """Yield all batches, from the first."""
        import pyarrow as pa

        if self._writer is None:
            return
        self._writer.close()
        self._file.flush()
        place = 0
        while True:
            # Another may be reading at the same time, so nobody relies on the position.
            self._file.seek(place)
            if place == 0:
                reader = pa.ipc.open_stream(self._file)
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            place = self._file.tell()
            yield batch


class ClassSpool:
    """Rows whose classes have names, which become numbers at the end."""

    def __init__(self) -> None:
        self._spool = Spool()
        self._numbers: dict[str, int] = {}
        self._one_label = self._no_label = True
        self.splits: set[str] = set()

    @property
    def rows(self) -> int:
        """Number of rows so far."""
        return self._spool.rows

    def add(self, rows: Sequence[StreamedRow], further: Sequence[tuple[str, "pa.Array"]] = ()) -> None:
        """Add some rows, with further columns of theirs by name."""
        import pyarrow as pa

        for row in rows:
            self._one_label &= len(row.labels) == 1 and not row.ignored
            self._no_label &= not (row.labels or row.ignored)
            self.splits.update(row.splits)
        columns: dict[str, Sequence[Any]] = dict.fromkeys(StreamedRow._fields, ())
        numbers = self._numbers
        if rows:
            columns = dict(zip(columns, zip(*rows, strict=True), strict=True))
        for name in ("labels", "ignored"):
            columns[name] = [[numbers.setdefault(cls, len(numbers)) for cls in some] for some in columns[name]]
        schema = row_schema()
        arrays = [pa.array(values, schema.field(name).type) for name, values in columns.items()]
        names = [*columns, *(name for name, _ in further)]
        self._spool.add(pa.RecordBatch.from_arrays([*arrays, *(column for _, column in further)], names))

    @property
    def classes(self) -> tuple[str, ...]:
        """K names: numbers in their order, texts by code point."""
        digits = all(name.isascii() and name.isdigit() for name in self._numbers)
        return tuple(sorted(self._numbers, key=(lambda name: (int(name), name)) if digits else None))

    @property
    def task(self) -> Task:
        """How labels are read."""
        return Task.UNLABELLED if self._no_label else Task.SINGLE_LABEL if self._one_label else Task.MULTI_LABEL

    def listing(self, name: str, root: str, notes: Sequence[str]) -> Listing:
        """Return the rows as a list of images below a root, with notes on the names of classes before others."""
        return Listing(
            name=name,
            task=self.task,
            classes=self.classes,
            root=root,
            batches=self.read,
            splits=tuple(sorted(self.splits)),
            notes=(*class_name_notes(self.classes), *notes),
        )

    def read(self) -> Iterator["pa.RecordBatch"]:
        """Yield all batches with the numbers of classes in their final order."""
        final = {name: number for number, name in enumerate(self.classes)}
        moved = np.array([final[name] for name in self._numbers], dtype=np.int32)  # (K,)
        for batch in self._spool.read():
            for name in LABELS.keys() & set(batch.schema.names):
                place = batch.schema.get_field_index(name)
                batch = batch.set_column(place, name, _renumbered(batch.column(place), moved))
            yield batch


def _renumbered(column: "pa.ListArray", moved: np.ndarray) -> "pa.ListArray":
    import pyarrow as pa

    values = moved[column.flatten().to_numpy()] if len(moved) else np.empty(0, np.int32)
    lengths = column.value_lengths().to_numpy()
    rows = np.repeat(np.arange(len(column)), lengths)
    values = values[np.lexsort((values, rows))]  # ascending in each row
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)), values)
