"""Rows that are read block by block in every pass, instead of being in memory.

N = rows, n = some of them, D = length of a row, B = blocks, T = threads.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError
from vggfeat.runtime.system import cores, processes_here
from vggfeat.svm.arrays import Rows, one_blas_thread
from vggfeat.svm.settings import check_jobs

if TYPE_CHECKING:
    from vggfeat.runtime.distributed import World

BLOCK_BYTES, MOST_ROWS = 1 << 25, 4096
"""Of the rows of one block in float32: a product is as fast as one of all rows, and a dozen blocks fit anywhere."""
_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""What each float16 is in float32: looking it up takes a third of the time of NumPy's conversion."""
GROUPS = 32
"""Of blocks, at most; a process reads some groups, so that no more processes than this have something to do."""
T = TypeVar("T")
Given = TypeVar("Given")


class SingleProcess:
    """The only process: what `vggfeat.runtime.distributed.World` is of several, without PyTorch."""

    rank, size, is_main = 0, 1, True

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something, and return its result."""
        return action()

    def gather(self, value: T) -> list[T]:
        """Return the value of each process."""
        return [value]

    def barrier(self) -> None:
        """Wait for nobody."""

    def broadcast_array(self, values: NDArray[Any], source: int = 0) -> None:
        """Leave an array as it is."""

    def send_to_main(self, values: NDArray[Any], source: int) -> None:
        """Leave an array as it is."""


def check_same(world: "World | SingleProcess", digest: str, what: str) -> None:
    """Check that all processes have the same digest; ConfigError, in all of them, if not; `what` begins its text."""
    said = world.gather(digest)
    other = [rank for rank, one in enumerate(said) if one != said[0]]
    if other:
        raise ConfigError(
            f"{what} in all processes, found others in process {other[0]}; give all the same command and files"
        )


class Blocks(ABC):
    """N rows of length D in B blocks, each of consecutive rows."""

    shape: tuple[int, int]
    """(N, D)"""
    ends: NDArray[np.int64]
    """(B,) first row behind each block, ascending; the last is N."""
    world: "World | SingleProcess" = SingleProcess()
    """The processes that go through the rows together, each of which has the same blocks and reads some of them."""

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
    world: "World | SingleProcess" = SingleProcess()  # noqa: RUF009  without fields

    def read(self, number: int) -> NDArray[np.floating]:
        """Return the rows of a block."""
        return self.reader(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))


def equal_blocks(
    shape: tuple[int, int], reader: Callable[[int, int], NDArray[np.floating]], world: "World | None" = None
) -> ReadBlocks:
    """Divide rows into blocks of `BLOCK_BYTES` in float32, at most `MOST_ROWS` in each."""
    step = max(1, min(MOST_ROWS, BLOCK_BYTES // (4 * shape[1])))
    ends = np.append(np.arange(step, shape[0], step), shape[0]).astype(np.int64)
    return ReadBlocks(shape=shape, ends=ends, reader=reader, world=world or SingleProcess())


def threads_for(jobs: int) -> int:
    """Return how many threads a number of jobs is: -1 is one a core, shared out among processes of torchrun."""
    check_jobs(jobs)
    return jobs if jobs > 0 else max(1, cores() // processes_here())


def blocks_of(x: NDArray[np.floating] | Blocks) -> Blocks:
    """Return the blocks of a table that is in memory, and others as they are."""
    return x if isinstance(x, Blocks) else equal_blocks((x.shape[0], x.shape[1]), lambda start, stop: x[start:stop])


class Part(NamedTuple):
    """Those of n ascending rows that lie in one block."""

    number: int
    """Number of the block."""
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


class Shared(NamedTuple):
    """A part, and whose it is."""

    part: Part
    group: int
    """Consecutive parts are a group, and the sums over all are those of the groups, in their order."""
    rank: int
    """Rank of the process that reads it."""


def share_parts(parts: Sequence[Part], processes: int) -> list[Shared]:
    """Divide parts into up to `GROUPS` groups, which do not depend on the number of processes, and share these out."""
    groups = min(GROUPS, len(parts))
    numbers = [place * groups // len(parts) for place in range(len(parts))]
    ranks = [number * processes // groups for number in numbers]
    return [Shared(*one) for one in zip(parts, numbers, ranks, strict=True)]


def in_order(function: Callable[[Given], T], parts: Iterable[Given], threads: int) -> Iterator[T]:
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
    blocks: Blocks, rows: Rows, coef: NDArray[np.float64], intercept: NDArray[np.float64], into: NDArray[np.float64],
    threads: int = 1, order: Rows | None = None,
) -> None:  # fmt: skip
    """Score ascending rows (n,) by P linear functions; BLAS is to be kept to one thread.

    Parameters
    ----------
    blocks : Blocks
    rows : (n,) int64
    coef : (P, D) float64
    intercept : (P,) float64
    into : (n, ...) float64
        Receives P scores of each row, in all processes.
    threads : int
    order : (n,) int64, optional
        For each row its place in `into`.
    """

    def score(part: Part) -> NDArray[np.float64]:
        return part.read(blocks).astype(np.float64) @ coef.T + intercept

    def where(part: Part) -> slice | Rows:
        return part.places if order is None else order[part.places]

    world = blocks.world
    shared = share_parts(parts_of(blocks, rows), world.size)
    own = [one.part for one in shared if one.rank == world.rank]
    for part, scores in zip(own, in_order(score, own, threads), strict=True):
        into[where(part)] = scores.reshape(-1, *into.shape[1:])
    world.barrier()
    for part, _, rank in shared if world.size > 1 else ():
        scores = np.ascontiguousarray(into[where(part)])
        world.broadcast_array(scores, rank)
        into[where(part)] = scores


def scores_of(
    blocks: Blocks, rows: Rows, coef: NDArray[np.float64], intercept: NDArray[np.float64], jobs: int = 1
) -> NDArray[np.float64]:
    """Return the scores (n, P) of ascending rows (n,), computed by some threads, -1 = one a core."""
    scores = np.empty((len(rows), len(intercept)))
    with one_blas_thread():
        score_rows(blocks, rows, coef, intercept, scores, threads_for(jobs))
    return scores
