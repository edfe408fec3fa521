"""Rows that are read block by block, again and again, instead of being in memory.

N = rows, n = some of them, D = length of a row, B = blocks, T = threads.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vggfeat.runtime.system import cores
from vggfeat.svm.arrays import Rows, one_blas_thread

BLOCK_BYTES, MOST_ROWS = 1 << 25, 4096
"""Of the rows of one block in float32: a product is as fast as one of all rows, and a dozen blocks fit anywhere."""
_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""What each float16 is in float32: looking it up takes a third of the time of NumPy's conversion."""
T = TypeVar("T")


class Blocks(ABC):
    """N rows of length D in B blocks, each of consecutive rows; sums over them are in the order of their numbers."""

    shape: tuple[int, int]
    """(N, D)"""
    ends: NDArray[np.int64]
    """(B,) first row behind each block, ascending; the last is N."""

    @abstractmethod
    def read(self, number: int) -> NDArray[np.floating]:
        """Return the rows of a block, (n, D) finite float16, float32 or float64.

        Called from several threads; equal numbers give equal bytes.
        """

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadBlocks(Blocks):
    """Rows that a function reads."""

    shape: tuple[int, int]
    ends: NDArray[np.int64]
    reader: Callable[[int, int], NDArray[np.floating]]
    """Returns the rows from one number up to another."""

    def read(self, number: int) -> NDArray[np.floating]:
        """Return the rows of a block."""
        return self.reader(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))


def equal_blocks(shape: tuple[int, int], reader: Callable[[int, int], NDArray[np.floating]]) -> ReadBlocks:
    """Divide rows into blocks of `BLOCK_BYTES` in float32, at most `MOST_ROWS` in each."""
    step = max(1, min(MOST_ROWS, BLOCK_BYTES // (4 * shape[1])))
    ends = np.append(np.arange(step, shape[0], step), shape[0]).astype(np.int64)
    return ReadBlocks(shape=shape, ends=ends, reader=reader)


def threads_for(jobs: int) -> int:
    """Return how many threads a number of jobs is: -1 is one a core, -2 one less, and so on."""
    return jobs if jobs > 0 else max(1, cores() + 1 + jobs)


def blocks_of(x: NDArray[np.floating] | Blocks) -> Blocks:
    """Return the blocks of a table that is in memory, and others as they are."""
    return x if isinstance(x, Blocks) else equal_blocks((x.shape[0], x.shape[1]), lambda start, stop: x[start:stop])


class Part(NamedTuple):
    """Those of n ascending rows that lie in one block."""

    number: int
    """Of the block."""
    places: slice
    """Where they are among the n rows."""
    inside: NDArray[np.int64] | None
    """Where they are in the block; None if they are all of it."""

    def read(self, blocks: Blocks) -> NDArray[np.floating]:
        """Return the rows, (places, D) float32, or float64 if they are that."""
        x = blocks.read(self.number)
        if self.inside is not None:
            x = x[self.inside]
        return np.take(_HALVES, x.view(np.uint16)) if x.dtype == np.float16 else x


def parts_of(blocks: Blocks, rows: Rows) -> list[Part]:
    """Divide ascending rows (n,) by the blocks that they lie in; blocks without one are left out."""
    stops = np.searchsorted(rows, blocks.ends)
    starts, firsts = np.append(0, stops[:-1]), np.append(0, blocks.ends[:-1])
    parts = []
    for number in np.flatnonzero(stops > starts).tolist():
        places = slice(int(starts[number]), int(stops[number]))
        whole = places.stop - places.start == blocks.ends[number] - firsts[number]
        parts.append(Part(number, places, None if whole else rows[places] - firsts[number]))
    return parts


def in_order(function: Callable[[Part], T], parts: Iterable[Part], threads: int) -> Iterator[T]:
    """Yield what a function returns for each part, in their order, computed by some threads a few parts ahead."""
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, "vggfeat-stream")
    try:
        for part in parts:
            waiting.append(pool.submit(function, part))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def score_rows(
    blocks: Blocks, rows: Rows, coef: NDArray[np.float64], intercept: NDArray[np.float64], threads: int = 1
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Score ascending rows (n,) by P linear functions, coef (P, D) and intercept (P,).

    Yields where some of them are among the n, and their scores (n', P) float64. BLAS is to be kept to one thread.
    """

    def score(part: Part) -> tuple[slice, NDArray[np.float64]]:
        return part.places, part.read(blocks).astype(np.float64) @ coef.T + intercept

    return in_order(score, parts_of(blocks, rows), threads)


def scores_of(
    blocks: Blocks, rows: Rows, coef: NDArray[np.float64], intercept: NDArray[np.float64], jobs: int = 1
) -> NDArray[np.float64]:
    """Return the scores (n, P) of ascending rows (n,), computed by some threads, -1 = one a core."""
    scores = np.empty((len(rows), len(intercept)))
    with one_blas_thread():
        for places, found in score_rows(blocks, rows, coef, intercept, threads_for(jobs)):
            scores[places] = found
    return scores
