"""The streaming solver: rows are read from the disk pass by pass, and all problems share a pass.

n = training rows, m = rows to score, D = length of a row, K = classes, G = values of C, P = problems (pairs of a split
and a class).
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.runtime.durable import disk_errors
from vggfeat.svm.arrays import Rows, one_blas_thread
from vggfeat.svm.blocks import MOST_ROWS, Blocks, blocks_of, score_rows, threads_for
from vggfeat.svm.kernel import bounded
from vggfeat.svm.model import Sweep
from vggfeat.svm.settings import SvmSettings
from vggfeat.svm.solve import Problems, Solutions, Solver, Split, count_labels, weigh_rows
from vggfeat.svm.stream_passes import Labels, Passes
from vggfeat.svm.stream_steps import minimise

# Of one batch: its tasks times the rows of a block, and all vectors of its tasks, about 12 in float64.
_BATCH_NUMBERS, _BATCH_BYTES, _VECTORS = 1 << 21, 1 << 30, 12
# Scores of held-out rows above this are kept in a file.
_SCORE_BYTES = 1 << 28


class _Batch(NamedTuple):
    """P' solved problems in a row, for G values of C."""

    part: slice
    """Their numbers."""
    coef: NDArray[np.float64]
    """(P', G, D)"""
    intercept: NDArray[np.float64]
    """(P', G)"""
    gap: NDArray[np.float64]
    """(P', G) relative duality gap, from the rows, in float64."""


class StreamSolver(Solver):
    """Solves on rows that are read block by block; the bits of what it finds do not depend on `SvmSettings.jobs`.

    `passes` counts how often rows were read to be trained on.

    Notes
    -----
    Memory: for each job about 200 MB; 12 D D bytes, or 400 MB where D is above 6143; at most 1 GiB for vectors; a byte
    for each pair of a row and a problem, a bit for each value of C of it, and 8 bytes more in a fit. Scores of held-out
    rows for all values of C are in a file without a name below `$TMPDIR` where they are more than 256 MiB.
    """

    def __init__(self, x: NDArray[np.floating] | Blocks, settings: SvmSettings) -> None:
        self.blocks, self.settings, self.passes = blocks_of(x), settings, 0
        self._threads = threads_for(settings.jobs)

    def solve(self, problems: Problems, report: Callable[[int], None]) -> Solutions:
        """Solve problems for their weights."""
        order = np.argsort(problems.rows, kind="stable")
        signs = np.ascontiguousarray(problems.signs[:, order].T)
        labels = Labels(signs, lambda part: problems.weights[:, order[part]].T)
        found = list(self._batches(problems.rows[order], labels, problems.costs, report))
        coef, intercept, gap = (np.concatenate([getattr(one, name) for one in found]) for name in _Batch._fields[1:])
        return Solutions(coef, intercept, gap <= self.settings.tolerance, gap)

    def sweep(self, splits: Sequence[Split], costs: NDArray[np.float64], report: Callable[[int], None]) -> list[Sweep]:
        """Solve all splits together, and score the held-out rows of each."""
        if not splits:
            return []
        rows, labels, owner = self._merge(splits)
        firsts = np.searchsorted(owner, np.arange(len(splits)))
        shapes = [(len(costs), split.labels.shape[1]) for split in splits]
        scores = [_room_for((*shape, len(split.held_out))) for shape, split in zip(shapes, splits, strict=True)]
        gaps = [np.empty(shape) for shape in shapes]
        for batch in self._batches(rows, labels, np.repeat(costs[None], len(owner), axis=0), report):
            for number in np.unique(owner[batch.part]).tolist():
                mine = np.flatnonzero(owner[batch.part] == number)
                classes = slice(*(mine[[0, -1]] + batch.part.start - firsts[number] + [0, 1]).tolist())
                gaps[number][:, classes] = batch.gap[mine].T
                coef, intercept = batch.coef[mine], batch.intercept[mine]
                self._score(splits[number].held_out, coef, intercept, scores[number][:, classes])
        solved = [gap <= self.settings.tolerance for gap in gaps]
        return [Sweep(*one) for one in zip(scores, solved, gaps, strict=True)]

    def _merge(self, splits: Sequence[Split]) -> tuple[Rows, Labels, NDArray[np.int64]]:
        """Return the rows of all splits, the labels of their problems on these, and the split of each problem."""
        rows = np.unique(np.concatenate([split.rows for split in splits]))
        owner = np.repeat(np.arange(len(splits)), [split.labels.shape[1] for split in splits])
        signs = np.zeros((len(rows), len(owner)), dtype=np.int8)
        for number, split in enumerate(splits):
            signs[np.ix_(np.searchsorted(rows, split.rows), owner == number)] = split.labels
        counts, kind = count_labels(signs), self.settings.class_weight
        return rows, Labels(signs, lambda part: weigh_rows(signs[part], kind, counts)), owner

    def _batches(
        self, rows: Rows, labels: Labels, costs: NDArray[np.float64], report: Callable[[int], None]
    ) -> Iterator[_Batch]:
        """Solve problems on ascending rows for costs (P, G), as many at a time as memory allows."""
        (count, values), length = costs.shape, self.blocks.shape[1] + 1
        tasks = min(_BATCH_NUMBERS // min(MOST_ROWS, len(rows)), _BATCH_BYTES // (8 * _VECTORS * length))
        step = max(1, tasks // values)
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            yield self._solve_batch(rows, labels, costs, part, report)

    def _solve_batch(
        self, rows: Rows, labels: Labels, costs: NDArray[np.float64], part: slice, report: Callable[[int], None]
    ) -> _Batch:
        settings, shape = self.settings, costs[part].shape
        passes = Passes(
            blocks=self.blocks,
            rows=rows,
            labels=Labels(labels.signs[:, part], lambda some: labels.weigh(some)[:, part]),
            columns=np.repeat(np.arange(shape[0]), shape[1]),
            scaling=settings.intercept_scaling,
            threads=self._threads,
        )
        with one_blas_thread():
            found = minimise(passes, costs[part].ravel(), settings.tolerance, settings.max_iterations, report)
        self.passes += passes.count
        point = found.point.reshape(*shape, -1)
        intercept = settings.intercept_scaling * point[..., -1]
        return _Batch(part, point[..., :-1], intercept, bounded(found.gap).reshape(shape))

    def _score(
        self, held: Rows, coef: NDArray[np.float64], intercept: NDArray[np.float64], into: NDArray[np.float64]
    ) -> None:
        """Score held-out rows (m,) by coef (P', G, D) and intercept (P', G), into an array (G, P', m)."""
        order, vectors = np.argsort(held, kind="stable"), coef.reshape(-1, coef.shape[2])
        with one_blas_thread():
            score_rows(self.blocks, held[order], vectors, intercept.ravel(), into.T, self._threads, order)


def _room_for(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return an array for scores: where they are many, one that the system may put on the disk."""
    size = 8 * int(np.prod(shape))
    if size <= _SCORE_BYTES:
        return np.empty(shape)
    place, has_room = Path(tempfile.gettempdir()), hasattr(os, "posix_fallocate")
    with (
        disk_errors(place, "scoring held-out rows", "make room, or set TMPDIR to another folder"),
        tempfile.TemporaryFile() as file,
    ):
        if has_room:  # Otherwise a full disk would end the process where a score is written.
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype=np.float64, shape=shape, mode="r+" if has_room else "w+")
