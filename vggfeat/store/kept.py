"""What a run keeps of the finished file that it replaces: the rows whose features are still those of their images.

N = rows of the run, n = rows of a shard.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import StoreError
from vggfeat.samples import DataSet
from vggfeat.store.layout import BLOCK_COLUMNS, FACTS, Block, join_rows, select
from vggfeat.store.reader import FeatureFile


class Kept:
    """The rows of a finished file that a run of N rows keeps, shard by shard; none until `rows` says so.

    A shard whose rows stand where they stood is kept or computed as a whole, because the other images of a batch change
    the last bits of an image: so it has the bytes that a new run gives it. In a shard whose rows have moved, as all
    behind an image that has come, every known row keeps its features, and the others are computed by themselves.

    The file may be of another list, but is of the same settings; it stays open until `close`. StoreError if it can't be
    read.
    """

    def __init__(self, out: Path, total: int, rows: Sequence[int] = ()) -> None:
        self.file = FeatureFile(out)
        self.rows = np.array(rows, np.int64) if len(rows) else np.full(total, -1)
        """(N,) row of the file that a row is, which is done; -1 for one that is computed."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def of_shard(self, rows: range) -> NDArray[np.int64]:
        """Return for the rows of a shard (n,) the rows of the file that they keep, -1 for those to compute."""
        found = self.rows[rows.start : rows.stop]
        known = found >= 0
        if known.all() or (found != np.array(rows))[known].any():
            return found
        return np.full_like(found, -1)

    def left(self, rows: range) -> list[int]:
        """Rows of a shard that are to be computed."""
        return [rows[place] for place in np.flatnonzero(self.of_shard(rows) < 0).tolist()]

    def joined(self, rows: range, computed: Block | None = None) -> Block:
        """Return all rows of a shard: those that are kept, and in their places those that were computed, if any.

        StoreError if others were computed, or the file can't be read.
        """
        if computed is not None and len(computed) == len(rows):
            return computed
        found = self.of_shard(rows)
        new, old = np.flatnonzero(found < 0), np.flatnonzero(found >= 0)
        facts = {name: select(getattr(self.file, name), found[old]) for name in FACTS}
        kept = Block(features=self.file.read(found[old]), **facts)
        if len(new) != (0 if computed is None else len(computed)):
            raise StoreError(f"{self.file.path}: expected {len(new)} rows beside those that are kept, found others")
        if computed is None:
            return kept
        order = np.argsort(np.concatenate([old, new]))
        columns = {one.name: (getattr(kept, one.name), getattr(computed, one.name)) for one in BLOCK_COLUMNS}
        return Block(**{name: select(join_rows(both), order) for name, both in columns.items()})


def same_rows(file: FeatureFile, dataset: DataSet) -> NDArray[np.int64]:
    """Find which row of a file each row of a data set is: that of its id, path and, where boxes have features, box.

    Returns (N,) int64, -1 where the file has none.
    """
    before, parts = file.dataset, 3 if "box" in file.regions else 2
    places = {name: row for row, name in enumerate(before.ids)}
    rows = np.array([places.get(name, -1) for name in dataset.ids], dtype=np.int64)
    for row in np.flatnonzero(rows >= 0).tolist():
        if before[int(rows[row])][:parts] != dataset[row][:parts]:
            rows[row] = -1
    return rows


def gone_from(file: FeatureFile, dataset: DataSet) -> list[str]:
    """Name the samples of a file that a data set no longer has, in the order of the file."""
    ids = set(dataset.ids)
    return [name for name in file.dataset.ids if name not in ids]
