"""Every row compared with every other by cosine, block by block: pairs that are nearly equal, and nearest neighbours.

N = rows, n = rows of a block, P = pairs, H = neighbours. Blocks of the product of the table with itself are all that
is in memory next to the table; each pair is computed once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptors import l2_normalise

BLOCK = 2048
"""Rows of a block: its cosines take 16 MiB, and the product runs at full speed."""

ROUNDING = 1e-6
"""How far the cosine of two equal rows may lie from 1."""

Progress = Callable[[int, int], None]
"""Called with the number of pairs compared and that of all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of rows, those across splits first, then by descending cosine."""

    rows: NDArray[np.int64]
    """(P, 2), the lower row first."""
    cosine: NDArray[np.float64]
    """(P,)"""
    across: NDArray[np.bool_]
    """(P,) whether each of the two is in a split that the other is not in."""
    total: int
    """All pairs; P may be less."""
    total_across: int
    """All pairs across splits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What came of comparing all rows."""

    pairs: Pairs
    distance: NDArray[np.float64]
    """(N,) 1 - the mean cosine with the nearest rows of other images; NaN where there is no other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """Part of the square of all pairs: rows from `top` on against rows from `left` on."""

    top: int
    left: int
    cosine: NDArray[np.float32]
    """(n, m), -inf for pairs of one image."""


def compare_rows(
    descriptors: NDArray[np.float32],
    *,
    threshold: float,
    image: NDArray[np.int64],
    side: NDArray[np.int64],
    apart: NDArray[np.bool_],
    neighbours: int = 5,
    most: int = 10000,
    block: int = BLOCK,
    progress: Progress | None = None,
) -> Comparison:
    """Compare all rows by the cosine of their descriptors.

    Parameters
    ----------
    descriptors : (N, D) float32
    threshold : float
        Least cosine of a pair that is handed out.
    image : (N,) int64
        Number of each row's image: rows of one image are no pair and no neighbours.
    side : (N,) int64
        Number of the row of `apart` that holds for each row.
    apart : (U, U) bool
        Whether two sides are different ones.
    neighbours : int
        H, nearest rows whose mean cosine counts.
    most : int
        Pairs that are kept, the first of the order of `Pairs`; all are counted.
    block : int
        Rows of a block.
    progress : callable, optional

    Notes
    -----
    Takes N N D multiplications and additions, next to the table 8 block (D + block) bytes and 24 bytes for each kept
    pair and each neighbour.
    """
    count = len(descriptors)
    best = np.full((count, neighbours), -np.inf, dtype=np.float32)
    kept = _Kept(most)
    for part in _blocks(descriptors, image, block, progress):
        kept.add(part, threshold, side, apart)
        _keep_best(best, part.top, part.cosine)
        if part.left > part.top:
            _keep_best(best, part.left, np.ascontiguousarray(part.cosine.T))
    known = np.isfinite(best)
    sums = np.where(known, best, 0).sum(axis=1, dtype=np.float64)
    some = np.maximum(1, known.sum(axis=1))
    return Comparison(pairs=kept.pairs(), distance=np.where(known.any(axis=1), 1 - sums / some, np.nan))


def _blocks(
    descriptors: NDArray[np.float32], image: NDArray[np.int64], block: int, progress: Progress | None
) -> Iterator[_Block]:
    count, done = len(descriptors), 0
    starts = range(0, count, block)
    for top in starts:
        first = l2_normalise(descriptors[top : top + block])
        for left in starts[top // block :]:
            second = first if left == top else l2_normalise(descriptors[left : left + block])
            cosine = first @ second.T
            np.copyto(cosine, -np.inf, where=image[top : top + block, None] == image[left : left + block])
            yield _Block(top=top, left=left, cosine=cosine)
            done += cosine.size if left > top else len(first) * (len(first) + 1) // 2
            if progress is not None:
                progress(done, count * (count + 1) // 2)


def _keep_best(best: NDArray[np.float32], start: int, cosine: NDArray[np.float32]) -> None:
    """Take into `best` (N, H) what is larger among the cosines (n, m) of the rows from `start` on."""
    rows, count = best[start : start + len(cosine)], best.shape[1]
    if cosine.shape[1] > count:
        cosine = np.partition(cosine, -count, axis=1)[:, -count:]
    rows[:] = np.sort(np.concatenate([rows, cosine], axis=1), axis=1)[:, -count:]


class _Kept:
    """Pairs as they are found, no more than can be used."""

    def __init__(self, most: int) -> None:
        self.most, self.total, self.total_across = most, 0, 0
        self.rows = np.empty((0, 2), dtype=np.int64)
        self.cosine = np.empty(0, dtype=np.float32)
        self.across = np.empty(0, dtype=np.bool_)
        self.least = np.float32(-np.inf), np.float32(-np.inf)
        """Cosines from which a pair across splits, and another, can still be among the first."""

    def add(self, part: _Block, threshold: float, side: NDArray[np.int64], apart: NDArray[np.bool_]) -> None:
        near = part.cosine >= threshold - ROUNDING  # (n, m)
        if part.top == part.left:
            near = np.triu(near, 1)
        if not near.any():
            return
        height, width = near.shape
        across = apart[np.ix_(side[part.top : part.top + height], side[part.left : part.left + width])]
        self.total += int(near.sum())
        self.total_across += int((near & across).sum())
        # Of features that are all alike every pair is near; those that come after the last kept one are not listed.
        first, second = np.nonzero(near & (part.cosine >= np.where(across, *self.least)))
        self.rows = np.concatenate([self.rows, np.stack([first + part.top, second + part.left], axis=1)])
        self.cosine = np.concatenate([self.cosine, part.cosine[first, second]])
        self.across = np.concatenate([self.across, across[first, second]])
        if len(self.rows) > 4 * self.most:
            self._sort()
            last = self.cosine[-1]
            self.least = (last, np.float32(np.inf)) if self.across[-1] else (np.float32(-np.inf), last)

    def _sort(self) -> None:
        order = np.lexsort((self.rows[:, 1], self.rows[:, 0], -self.cosine, ~self.across))[: self.most]
        self.rows, self.cosine, self.across = self.rows[order], self.cosine[order], self.across[order]

    def pairs(self) -> Pairs:
        self._sort()
        # Rounding alone leads beyond 1.
        cosine = np.clip(self.cosine.astype(np.float64), -1, 1)
        return Pairs(
            rows=self.rows,
            cosine=cosine,
            across=self.across,
            total=self.total,
            total_across=self.total_across,
        )
