"""What the streaming solver sums over the rows: some blocks at once, added up in the order of the blocks.

n = training rows, n' = those of a block, D = length of a row, P = problems of two classes, Q = tasks: pairs of a
problem and a value of C, of which a pass treats some.

A row is x' = (x, s), a weight vector v = (w, b / s), both of length D + 1. The sums over a block are computed by one
thread, with one thread of the BLAS, so that all bits depend on the blocks alone, not on how many threads there are.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.svm.arrays import Rows
from vggfeat.svm.blocks import Blocks, Part, in_order, parts_of

_WAITING = 4
"""A Hessian waits for rows of this part of its own memory, as adding the products of a few takes as long."""
Vectors = NDArray[np.float64]
"""(tasks, D + 1)"""


class Labels(NamedTuple):
    """Who takes part in P problems on n rows, and with what weight."""

    signs: NDArray[np.int8]
    """(n, P) y: 1, -1, or 0 where a row takes no part."""
    weigh: Callable[[slice], NDArray[np.float64]]
    """Weights (n', P) of consecutive rows: factors to C, 0 where a row takes no part."""


class Group(NamedTuple):
    """Some tasks, each with a vector."""

    tasks: NDArray[np.int64]
    vectors: Vectors


class Slacks(NamedTuple):
    """Sums over the rows at one point v a task, where rows have the slack s = max(0, 1 - y v x')."""

    square: NDArray[np.float64]
    """Sum of weight s^2, one a task."""
    active: NDArray[np.float64]
    """Sum of the weights of rows with slack."""
    pull: Vectors
    """Sum of weight s y x'."""


class Asked(NamedTuple):
    """What a pass is to compute; of the last three only for the rows that had slack at the last point of a task."""

    points: Group
    """`Slacks` at points v."""
    single: Group
    """Sum of weight (v x') x' for other vectors v, in float32."""
    double: Group
    """The same in float64."""
    hessians: NDArray[np.int64]
    """Tasks: sum of weight x' x'', (D + 1, D + 1), in float64."""


class Sums(NamedTuple):
    """What a pass has computed, in float64."""

    slacks: Slacks
    single: Vectors
    double: Vectors
    hessians: list[NDArray[np.float64]]


class Beginning(NamedTuple):
    """What the first pass computes, complete once `sample` is used up."""

    pull: Vectors
    """(P, D + 1) sum of weight y x'."""
    weight: NDArray[np.float64]
    """(P,) sum of weights."""
    sample: Iterator[NDArray[np.float32]]
    """Some rows of each block, (.., D + 1)."""


class _OfBlock(NamedTuple):
    """What one thread computes of one block."""

    sums: list[Any]
    """Of `Slacks`, then single and double."""
    rows: NDArray[Any]
    """(n', D + 1) x'."""
    active: NDArray[np.float64]
    """(n', tasks) weights of the rows that had slack, for Hessians."""


@dataclass(kw_only=True, eq=False)
class Passes:
    """Passes over the same rows for the same problems."""

    blocks: Blocks
    rows: Rows
    """(n,) ascending."""
    labels: Labels
    columns: NDArray[np.int64]
    """(Q,) the problem of each task."""
    scaling: float
    """s."""
    threads: int
    count: int = 0
    """Passes so far."""
    _parts: list[Part] = field(init=False)
    _bits: dict[int, NDArray[np.uint8]] = field(init=False, default_factory=dict)
    """Block -> (Q, n' / 8) which of its rows had slack at the last point of each task, a bit each."""

    def __post_init__(self) -> None:
        self._parts = parts_of(self.blocks, self.rows)

    @property
    def length(self) -> int:
        """D + 1."""
        return self.blocks.shape[1] + 1

    def begin(self, every: int) -> Beginning:
        """Read all rows once, and give every so many-th of them."""
        count = self.labels.signs.shape[1]
        pull, weight = np.zeros((count, self.length)), np.zeros(count)

        def first(part: Part) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
            weights = self.labels.weigh(part.places)
            signed = (weights * self.labels.signs[part.places]).astype(np.float32)
            with np.errstate(all="ignore"):
                rows = self._extend(part.read(self.blocks), np.float32)
                return rows[-part.places.start % every :: every].copy(), signed.T @ rows, weights.sum(axis=0)

        def sample() -> Iterator[NDArray[np.float32]]:
            self.count += 1
            for rows, pulled, weights in in_order(first, self._parts, self.threads):
                np.add(pull, pulled, out=pull)
                np.add(weight, weights, out=weight)
                yield rows

        return Beginning(pull, weight, sample())

    def run(self, asked: Asked) -> Sums:
        """Read all rows once."""
        self.count += 1
        few = len(asked.points.tasks)
        slacks = Slacks(np.zeros(few), np.zeros(few), np.zeros(asked.points.vectors.shape))
        hessians = [_Hessian(self.length) for _ in asked.hessians]
        single, double = (np.zeros(group.vectors.shape) for group in (asked.single, asked.double))
        sums = Sums(slacks, single, double, [hessian.total for hessian in hessians])
        with ThreadPoolExecutor(self.threads, "vggfeat-hessian") as pool:
            for found in in_order(lambda part: self._sums_of(part, asked), self._parts, self.threads):
                for total, one in zip([*slacks, single, double], found.sums, strict=True):
                    np.add(total, one, out=total)
                if hessians:  # One block after the other in each task.
                    list(pool.map(_Hessian.add, hessians, found.active.T, repeat(found.rows)))
            list(pool.map(_Hessian.finish, hessians))
        return sums

    def _sums_of(self, part: Part, asked: Asked) -> _OfBlock:
        x, weights = part.read(self.blocks), self.labels.weigh(part.places)
        few, single, double = asked.points, asked.single, asked.double
        with np.errstate(all="ignore"):  # A task beyond what floats hold is given up.
            rows = self._extend(x, np.float32)
            products = [self._products(part, rows, weights, single)] if len(single.tasks) else [single.vectors]
            if len(few.tasks) or len(double.tasks):
                rows = self._extend(x, np.float64)
            products += [self._products(part, rows, weights, double)] if len(double.tasks) else [double.vectors]
            active = self._active(part, weights, asked.hessians)
            slacks = self._slacks(part, rows, weights, few) if len(few.tasks) else [0.0, 0.0, few.vectors]
        return _OfBlock([*slacks, *products], rows, active)

    def _extend(self, x: NDArray[np.floating], kind: Any) -> NDArray[Any]:
        """Return rows x' (n', D + 1) in a precision."""
        rows = np.empty((len(x), self.length), dtype=kind)
        rows[:, :-1], rows[:, -1] = x, self.scaling
        return rows

    def _slacks(self, part: Part, rows: NDArray[Any], weights: NDArray[np.float64], points: Group) -> Slacks:
        columns = self.columns[points.tasks]
        signs, weights = self.labels.signs[part.places][:, columns], weights[:, columns]
        slack = np.maximum(0, 1 - signs * (rows @ points.vectors.T))  # (n', tasks)
        active = (slack > 0) & (weights > 0)
        if part.number not in self._bits:
            self._bits[part.number] = np.zeros((len(self.columns), -(-len(rows) // 8)), dtype=np.uint8)
        self._bits[part.number][points.tasks] = np.packbits(active.T, axis=1)
        pull = weights * slack
        square, weight = (pull * slack).sum(axis=0), (weights * active).sum(axis=0)
        pull *= signs
        return Slacks(square, weight, pull.T @ rows)

    def _active(self, part: Part, weights: NDArray[np.float64], tasks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of rows that had slack, 0 for the others, (n', tasks)."""
        if not len(tasks):
            return np.zeros((len(weights), 0))
        had = np.unpackbits(self._bits[part.number][tasks], axis=1, count=len(weights)).T
        return had * weights[:, self.columns[tasks]]

    def _products(self, part: Part, rows: NDArray[Any], weights: NDArray[np.float64], group: Group) -> NDArray[Any]:
        scores = rows @ group.vectors.T.astype(rows.dtype)
        scores *= self._active(part, weights, group.tasks)
        return scores.T @ rows


class _Hessian:
    """Sum of weight x' x'' of one task."""

    def __init__(self, length: int) -> None:
        self.total = np.zeros((length, length))
        self._waiting: list[NDArray[np.float64]] = []
        self._most = length // _WAITING

    def add(self, active: NDArray[np.float64], rows: NDArray[Any]) -> None:
        """Add rows (n', D + 1) with the weights active (n',)."""
        taken = np.flatnonzero(active)
        self._waiting.append(rows[taken] * np.sqrt(active[taken])[:, None])
        if sum(map(len, self._waiting)) > self._most:
            self.finish()

    def finish(self) -> None:
        """Add what waits."""
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self.total += rows.T @ rows
            self._waiting = []
