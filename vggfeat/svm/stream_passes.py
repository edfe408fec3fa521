"""Sums over the rows for the streaming solver: blocks side by side, added up in an order that is always the same.

n = training rows, n' = those of a block, D = length of a row, P = problems of two classes, Q = tasks: pairs of a
problem and a value of C, of which a pass treats some.

A row is x' = (x, s), a weight vector v = (w, b / s), both of length D + 1. The sums over a block are computed by one
thread, with one thread of the BLAS; those of a group of blocks are added in their order, and then those of the groups.
So all bits depend on the blocks alone, not on how many threads there are, nor on how many processes.

Of several processes each reads its groups, and the first adds up and decides what is computed next: in a pass it sends
the vectors of all tasks, and receives as many for each group. A Hessian would be many times that. It is added up by one
process, which for it reads the rows with slack of all blocks, and sent once.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.svm.arrays import Rows
from vggfeat.svm.blocks import Blocks, Part, Shared, SingleProcess, check_same, in_order, parts_of, share_parts

if TYPE_CHECKING:
    from vggfeat.runtime.distributed import World

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

    sums: list[Any] | None
    """Sums of `Slacks`, then single and double; None where another process computes them."""
    rows: NDArray[Any]
    """(n', D + 1) x', or those of them that had slack in one of the tasks."""
    active: NDArray[np.float64]
    """(n', tasks) weights of these rows where they had slack, for Hessians."""


@dataclass(kw_only=True, eq=False)
class Passes:
    """Passes over the same rows for the same problems; all processes of `Blocks.world` make the same ones."""

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
    _shared: list[Shared] = field(init=False)
    _bits: dict[int, NDArray[np.uint8]] = field(init=False, default_factory=dict)
    """Block -> (Q, n' / 8) which of its rows had slack at the last point of each task, a bit each."""

    def __post_init__(self) -> None:
        self._shared = share_parts(parts_of(self.blocks, self.rows), self.world.size)

    @property
    def world(self) -> "World | SingleProcess":
        """Who makes the passes."""
        return self.blocks.world

    @property
    def length(self) -> int:
        """D + 1."""
        return self.blocks.shape[1] + 1

    def check_same(self, costs: NDArray[np.float64]) -> None:
        """Check that all processes have the same rows and problems; ConfigError, in all of them, if not."""
        if self.world.size == 1:
            return
        digest = hashlib.sha256(f"{self.blocks.shape} {self.scaling} {self.labels.signs.shape}".encode())
        for values in (self.blocks.ends, self.rows, self.labels.signs, self.columns, costs):
            digest.update(np.ascontiguousarray(values).data)
        check_same(self.world, digest.hexdigest(), "svm: expected the same rows, labels and values of C")

    def begin(self, every: int) -> Beginning:
        """Read all rows once, and give every so many-th of them, to the first process those of all."""
        self.count += 1
        count = self.labels.signs.shape[1]
        sums = _GroupSums(self.world, self._shared, [(count, self.length), (count,)])
        pull, weight = sums.total
        beginning = Beginning(pull, weight, self._sample(every, sums))
        if not self.world.is_main:
            list(beginning.sample)
        return beginning

    def _sample(self, every: int, sums: "_GroupSums") -> Iterator[NDArray[np.float32]]:
        def first(one: Shared) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
            weights = self.labels.weigh(one.part.places)
            signed = (weights * self.labels.signs[one.part.places]).astype(np.float32)
            with np.errstate(all="ignore"):
                rows = self._extend(one.part.read(self.blocks), np.float32)
                return rows[-one.part.places.start % every :: every].copy(), signed.T @ rows, weights.sum(axis=0)

        world, kept = self.world, []
        own = [one for one in self._shared if one.rank == world.rank]
        for one, (rows, pulled, weights) in zip(own, in_order(first, own, self.threads), strict=True):
            sums.add(one.group, [pulled, weights])
            if world.is_main:
                yield rows
            else:
                kept.append(rows)
        world.barrier()
        for one in self._shared:
            if 0 < one.rank == world.rank:
                world.send_to_main(kept.pop(0), one.rank)
            elif world.is_main and one.rank > 0:
                places = one.part.places
                count = len(range(-places.start % every, places.stop - places.start, every))
                rows = np.empty((count, self.length), dtype=np.float32)
                world.send_to_main(rows, one.rank)
                yield rows
        sums.finish()

    def agree(self, asked: Asked | None) -> Asked | None:
        """Return in all processes what the first one asks for; None at the end."""
        if self.world.size == 1:
            return asked
        message = self.world.on_main(
            lambda: asked and [*(group.tasks.tolist() for group in asked[:3]), asked.hessians.tolist()]
        )
        if message is None:
            return None
        if asked is None:
            *groups, hessians = (np.array(tasks, dtype=np.int64) for tasks in message)
            points, single, double = (Group(tasks, np.empty((len(tasks), self.length))) for tasks in groups)
            asked = Asked(points, single, double, hessians)
        for group in asked[:3]:
            self.world.broadcast_array(group.vectors)
        return asked

    def run(self, asked: Asked) -> Sums:
        """Read all rows once; the first process gets the sums."""
        self.count += 1
        world, few = self.world, (len(asked.points.tasks),)
        vectors = [group.vectors.shape for group in asked[:3]]
        sums = _GroupSums(world, self._shared, [few, few, *vectors])
        mine = asked.hessians[world.rank :: world.size]
        hessians = [_Hessian(self.length) for _ in mine]
        self._share_bits(asked.hessians)
        read = [one for one in self._shared if one.rank == world.rank or hessians]
        found = in_order(lambda one: self._of_block(one, asked, mine), read, self.threads)
        with ThreadPoolExecutor(self.threads, "vggfeat-hessian") as pool:
            for one, block in zip(read, found, strict=True):
                if block.sums is not None:
                    sums.add(one.group, block.sums)
                if hessians:  # One block after the other in each task.
                    list(pool.map(_Hessian.add, hessians, block.active.T, repeat(block.rows)))
            list(pool.map(_Hessian.finish, hessians))
        sums.finish()
        *slacks, single, double = sums.total
        totals = self._collect([one.total for one in hessians], len(asked.hessians))
        return Sums(Slacks(*slacks), single, double, totals)

    def _share_bits(self, tasks: NDArray[np.int64]) -> None:
        """Tell all processes which rows had slack in some tasks."""
        if self.world.size == 1 or not len(tasks):
            return
        for rank in sorted({one.rank for one in self._shared}):
            parts = [one.part for one in self._shared if one.rank == rank]
            bits = np.concatenate([self._bits_of(part)[tasks] for part in parts], axis=1)
            self.world.broadcast_array(bits, rank)
            ends = np.cumsum([self._bits_of(part).shape[1] for part in parts])
            for part, some in zip(parts, np.split(bits, ends[:-1], axis=1), strict=True):
                self._bits_of(part)[tasks] = some

    def _collect(self, own: list[NDArray[np.float64]], count: int) -> list[NDArray[np.float64]]:
        """Return to the first process the Hessians of all, each of which has every so many-th of them."""
        world = self.world
        if not world.is_main:
            for one in own:
                world.send_to_main(one, world.rank)
            return own
        found = []
        for number in range(count):
            source = number % world.size
            found.append(np.empty((self.length, self.length)) if source else own[number // world.size])
            world.send_to_main(found[-1], source)
        return found

    def _of_block(self, one: Shared, asked: Asked, hessians: NDArray[np.int64]) -> _OfBlock:
        part, few, single, double = one.part, asked.points, asked.single, asked.double
        x, weights = part.read(self.blocks), self.labels.weigh(part.places)
        kind = np.float64 if len(few.tasks) or len(double.tasks) else np.float32
        with np.errstate(all="ignore"):  # A task beyond what floats hold is given up.
            active = self._active(part, weights, hessians)
            if one.rank != self.world.rank:
                had = active.any(axis=1)
                return _OfBlock(None, self._extend(x[had], kind), active[had])
            rows = self._extend(x, np.float32)
            products = [self._products(part, rows, weights, single)] if len(single.tasks) else [single.vectors]
            if kind is np.float64:
                rows = self._extend(x, np.float64)
            products += [self._products(part, rows, weights, double)] if len(double.tasks) else [double.vectors]
            slacks = self._slacks(part, rows, weights, few) if len(few.tasks) else [few.tasks, few.tasks, few.vectors]
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
        self._bits_of(part)[points.tasks] = np.packbits(active.T, axis=1)
        pull = weights * slack
        square, weight = (pull * slack).sum(axis=0), (weights * active).sum(axis=0)
        pull *= signs
        return Slacks(square, weight, pull.T @ rows)

    def _bits_of(self, part: Part) -> NDArray[np.uint8]:
        if part.number not in self._bits:
            length = -(-(part.places.stop - part.places.start) // 8)
            self._bits[part.number] = np.zeros((len(self.columns), length), dtype=np.uint8)
        return self._bits[part.number]

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


class _GroupSums:
    """Sums over blocks: of the blocks of each group in their order, then of the groups; complete after `finish`."""

    def __init__(self, world: "World | SingleProcess", shared: list[Shared], shapes: Sequence[tuple[int, ...]]) -> None:
        self.total = [np.zeros(shape) for shape in shapes]
        """In the first process."""
        self._world, self._ranks = world, {one.group: one.rank for one in shared}
        self._group, self._sums = -1, self.total
        self._waiting: list[list[NDArray[np.float64]]] = []

    def add(self, group: int, found: Sequence[NDArray[Any]]) -> None:
        """Add the sums over the next block, which is of this group."""
        if group != self._group:
            self._close()
            self._group, self._sums = group, [np.zeros(one.shape) for one in self.total]
        for total, one in zip(self._sums, found, strict=True):
            np.add(total, one, out=total)

    def finish(self) -> None:
        """Add the groups of all processes, once all are here."""
        self._close()
        self._world.barrier()
        for rank in filter(None, self._ranks.values()):
            if self._world.rank in (0, rank):
                sums = self._waiting.pop(0) if self._waiting else [np.empty(one.shape) for one in self.total]
                for one in sums:
                    self._world.send_to_main(one, rank)
                if self._world.is_main:
                    self._take(sums)

    def _close(self) -> None:
        if self._group >= 0:
            self._take(self._sums)

    def _take(self, sums: list[NDArray[np.float64]]) -> None:
        if not self._world.is_main:
            self._waiting.append(sums)
            return
        for total, one in zip(self.total, sums, strict=True):
            np.add(total, one, out=total)


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
