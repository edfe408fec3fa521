"""Parquet files of others below a root: their columns, what Hugging Face says of them, and images in their cells.

An image in a cell has an address of its own: the file, "#", the column, "=" and the number of the row from 0, for
instance data/train-00000-of-00002.parquet#image=17.
"""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from vggfeat.errors import DatasetError
from vggfeat.runtime.storage import RangeFile, Storage, joined

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

_CELL = re.compile(r"(?P<file>.+)#(?P<column>[^#]+)=(?P<row>\d{1,18})", re.DOTALL)
_CELLS_AT_A_TIME = 16
"""Images that are decoded at a time: one may have megabytes."""


class CellAddress(NamedTuple):
    """Where an image in a cell is."""

    file: str
    column: str
    row: int

    @property
    def text(self) -> str:
        """The address."""
        return f"{self.file}#{self.column}={self.row}"


def cell_address(text: str) -> CellAddress | None:
    """Return what an address of a cell says; None if it is none."""
    found = _CELL.fullmatch(text)
    return found and CellAddress(found["file"], found["column"], int(found["row"]))


def open_parquet(storage: Storage, path: str) -> "ParquetFile":
    """Open a Parquet file; of its content only what is asked for is read.

    DatasetError if it is none; StoreError if it can't be read.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(RangeFile(storage, path), pre_buffer=False, buffer_size=1 << 20)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(joined(storage.root, path), error) from None


def _no_parquet(where: str, error: Exception) -> DatasetError:
    return DatasetError(f"{where}: expected a whole Parquet file, found: {error}; copy it again")


def batches(file: "ParquetFile", where: str, columns: list[str], rows: int, **named: Any) -> Iterator["pa.RecordBatch"]:
    """Yield the rows of some columns; DatasetError if the file is damaged."""
    import pyarrow

    try:
        yield from file.iter_batches(batch_size=rows, columns=columns, use_threads=False, **named)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(where, error) from None


def hub_features(schema: "pa.Schema") -> dict[str, Any]:
    """Return what Hugging Face's library has written of the columns: name -> {"_type": "Image" and the like}."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: kind for name, kind in found.items() if isinstance(kind, dict)} if isinstance(found, dict) else {}


class ImageCells:
    """The images in a column, for readers that go forwards most of the time.

    The column is of bytes, or as Hugging Face keeps images: with the fields bytes and path.
    """

    def __init__(self, storage: Storage, path: str, column: str) -> None:
        self.where = joined(storage.root, path)
        self._file = open_parquet(storage, path)
        self._column = column
        self._next = -1
        self._cells: Iterator[Any] = iter(())
        ends = (self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups))
        self._starts = [0]
        for rows in ends:
            self._starts.append(self._starts[-1] + rows)

    def read(self, row: int) -> bytes | None:
        """Return the bytes in a row; None if its cell is empty.

        DatasetError if there is no such row or column, or the file is damaged.
        """
        if not 0 <= row < self._starts[-1]:
            raise DatasetError(f"{self.where}: expected more than {row} rows, found {self._starts[-1]}")
        group = next(number for number, end in enumerate(self._starts[1:]) if row < end)
        if not self._starts[group] <= self._next <= row:
            self._next, self._cells = self._starts[group], self._from(group)
        try:
            for _ in range(row - self._next):
                next(self._cells)
            cell = next(self._cells)
        except BaseException:
            self._next = -1  # The next one begins anew.
            raise
        self._next = row + 1
        return _bytes(cell)

    def _from(self, group: int) -> Iterator[Any]:
        """Yield all cells from the start of a row group on."""
        groups = list(range(group, self._file.num_row_groups))
        for batch in batches(self._file, self.where, [self._column], _CELLS_AT_A_TIME, row_groups=groups):
            if not batch.num_columns:
                raise DatasetError(f"{self.where}: expected the column {self._column!a}, found none")
            yield from batch.column(0)


def _bytes(cell: Any) -> bytes | None:
    value = cell.as_py()
    return value.get("bytes") if isinstance(value, dict) else value
