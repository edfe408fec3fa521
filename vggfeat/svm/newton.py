"""The Newton solver: all problems on the same rows at once, with products of matrices.

N = rows of the table, n = training rows, m = rows to score, D = length of a descriptor, K = classes, G = values of C,
P = problems (pairs of a split and a class).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import FitError, out_of_memory
from vggfeat.svm.arrays import Rows, arrays_of, combine, times
from vggfeat.svm.directions import Preconditioner
from vggfeat.svm.kernel import Gram, Kernel, bounded, duality_gaps
from vggfeat.svm.model import Sweep
from vggfeat.svm.newton_steps import State, solve
from vggfeat.svm.settings import SvmSettings
from vggfeat.svm.solve import Problems, Solutions, Solver, Split, row_weights
from vggfeat.svm.stream import StreamSolver

# Of all arrays (problems, n) in one batch: those of the solver, about 24 in float64, and one for each C.
_BATCH_BYTES, _SOLVER_ARRAYS = 1 << 31, 24
# Splits that have this much of all their rows in common are solved together.
_TOGETHER = 0.6
# C times weight times squared length of the rows from which on starting at 0 takes longer than going there in steps,
_EASY = 4.0
# each of this factor at most, with solutions of this tolerance between.
_STRIDE, _ON_THE_WAY = 8.0, 0.1
# Products are fast with this many problems at a time, these of so many values of C at most, each at most so many times
# the one before.
_WAVE, _WAVE_C, _NEAR = 240, 4, 4.0


class _Batch(NamedTuple):
    """P' solved problems in a row, for G values of C."""

    part: slice
    """Their numbers."""
    kept: NDArray[np.float64]
    """(G, P', n) beta, or (G, P', k) scores of chosen rows."""
    gap: NDArray[np.float64]
    """(G, P') relative duality gap."""


class NewtonSolver(Solver):
    """Solves together what is on the same rows, and computes the inner products of rows once for all solves.

    Notes
    -----
    Memory next to the descriptors, for n training rows in one solve: where n is at most 1.25 D, 12 n n bytes for their
    inner products, 8 n n more while these are computed, and at most 4 GiB for those of earlier solves; otherwise
    20 n (D + 1) bytes. Then 2 GiB, 2 kB for each row, 9 bytes for each pair of a row and a problem, and 8 for each
    score and each coefficient. So a table of 30,607 rows of 24,576 numbers in float32 takes 3.0 GB, and fits on 15,420
    rows of it at most another 11 GB.
    """

    def __init__(self, x: NDArray[np.floating], settings: SvmSettings) -> None:
        super().__init__(x, settings)
        self._arrays = arrays_of(settings.device)
        self._gram = Gram(x, settings.intercept_scaling, self._arrays)

    def solve(self, problems: Problems, report: Callable[[int], None]) -> Solutions:
        """Solve problems for their weights; gaps are computed from these and the rows."""
        found = self._solve_together(problems, report)
        left = np.flatnonzero(~found.converged.all(axis=1))
        if len(left) and (solver := self._for_weights(problems.rows)):
            part = problems.some(left)
            again = solver.solve(part, _unheard)
            problem, cost = np.nonzero(again.gap < found.gap[left])
            for old, new in zip(found, again, strict=True):
                old[left[problem], cost] = new[problem, cost]
        return found

    def _for_weights(self, rows: Rows) -> StreamSolver | None:
        """Return the solver for what was given up on more rows than a weight vector has numbers.

        Many sums of so many rows are the same weight vector. With a large C, and long rows, rounding errors of theirs
        are larger than what is left to be gained; those of the vector are not.
        """
        if len(rows) <= self.x.shape[1]:
            return None
        return StreamSolver(self.x, replace(self.settings, solver="stream", device=None))

    def _solve_together(self, problems: Problems, report: Callable[[int], None]) -> Solutions:
        count, values = problems.costs.shape
        coef, intercept = np.empty((count, values, self.x.shape[1])), np.empty((count, values))
        beta, gap = np.empty((values, *problems.signs.shape)), np.empty((count, values))
        with self._memory(problems.rows):
            for part, kept, _ in self._batches(problems, report, None):
                beta[:, part] = kept
                for g in range(values):
                    coef[part, g], intercept[part, g] = self._weights(problems.rows, kept[g])
            for g in range(values):
                gap[:, g] = duality_gaps(
                    self.x,
                    problems.rows,
                    problems.signs,
                    2 * problems.costs[:, g, None] * problems.weights,
                    coef[:, g],
                    intercept[:, g],
                    self.settings.intercept_scaling,
                    self._arrays,
                    beta=beta[g],
                    enough=self.settings.tolerance,
                )
        return Solutions(coef, intercept, gap <= self.settings.tolerance, gap)

    def sweep(self, splits: Sequence[Split], costs: NDArray[np.float64], report: Callable[[int], None]) -> list[Sweep]:
        """Solve all splits together if each has most rows of all, otherwise one after the other."""
        rows = np.unique(np.concatenate([split.rows for split in splits])) if splits else ()
        alike = all(len(split.rows) >= _TOGETHER * len(rows) for split in splits)
        sweeps = []
        for together in [splits] if alike and splits else [[split] for split in splits]:
            with self._memory(np.unique(np.concatenate([split.rows for split in together]))):
                sweeps += self._sweep_together(together, costs, report)
        for split, sweep in zip(splits, sweeps, strict=True):
            self._sweep_again(split, costs, sweep)
        return sweeps

    def _sweep_again(self, split: Split, costs: NDArray[np.float64], found: Sweep) -> None:
        """Solve for weights what was given up, and put in what is nearer to the optimum."""
        values, left = np.flatnonzero(~found.converged.all(axis=1)), np.flatnonzero(~found.converged.all(axis=0))
        if len(left) and (solver := self._for_weights(split.rows)):
            part = Split(rows=split.rows, labels=split.labels[:, left], held_out=split.held_out)
            (again,) = solver.sweep([part], costs[values], _unheard)
            value, k = np.nonzero(again.gap < found.gap[np.ix_(values, left)])
            for old, new in zip(found, again, strict=True):
                old[values[value], left[k]] = new[value, k]

    def _sweep_together(
        self, splits: Sequence[Split], costs: NDArray[np.float64], report: Callable[[int], None]
    ) -> list[Sweep]:
        order = np.argsort(costs, kind="stable")
        problems, owner = self._merge(splits, costs[order])
        held = np.concatenate([split.held_out for split in splits])
        places = np.searchsorted(problems.rows, held).clip(None, len(problems.rows) - 1)
        # In a cross-validation all held-out rows are training rows of other splits, and the solver knows their scores.
        known = bool((problems.rows[places] == held).all())
        ends = np.cumsum([0] + [len(split.held_out) for split in splits])
        firsts = np.cumsum([0] + [split.labels.shape[1] for split in splits])
        shapes = [(len(costs), split.labels.shape[1]) for split in splits]
        scores = [np.empty((*shape, len(split.held_out))) for shape, split in zip(shapes, splits, strict=True)]
        gaps = [np.empty(shape) for shape in shapes]
        for part, kept, gap in self._batches(problems, report, places if known else None):
            for number in np.unique(owner[part]).tolist():
                mine, mine_held = np.flatnonzero(owner[part] == number), slice(ends[number], ends[number + 1])
                where = np.ix_(order, mine + part.start - firsts[number])
                gaps[number][where] = gap[:, mine]
                if known:
                    scores[number][where] = kept[:, mine, mine_held]
                else:
                    scores[number][where] = self._scores(problems.rows, kept[:, mine], held[mine_held])
        solved = [gap <= self.settings.tolerance for gap in gaps]
        return [Sweep(*one) for one in zip(scores, solved, gaps, strict=True)]

    def _merge(self, splits: Sequence[Split], costs: NDArray[np.float64]) -> tuple[Problems, NDArray[np.int64]]:
        """Return the problems of splits on the rows of all, for ascending costs (G,), and the split of each, (P,)."""
        rows = np.unique(np.concatenate([split.rows for split in splits]))
        owner = np.repeat(np.arange(len(splits)), [split.labels.shape[1] for split in splits])
        signs, weights = np.zeros((len(owner), len(rows)), dtype=np.int8), np.zeros((len(owner), len(rows)))
        for number, split in enumerate(splits):
            place = np.ix_(owner == number, np.searchsorted(rows, split.rows))
            signs[place], weights[place] = split.labels.T, row_weights(split.labels, self.settings.class_weight).T
        each = np.repeat(costs[None], len(owner), axis=0)
        return Problems(rows=rows, signs=signs, weights=weights, costs=each), owner

    def _batches(
        self, problems: Problems, report: Callable[[int], None], places: NDArray[np.int64] | None
    ) -> Iterator[_Batch]:
        """Solve problems, as many at a time as memory allows; keep beta, or the scores of places among the n rows."""
        kernel = self._gram.kernel(problems.rows)
        (count, values), rows = problems.costs.shape, len(problems.rows)
        preconditioner = Preconditioner.of_kernel(kernel, count * values)
        step = max(1, _BATCH_BYTES // (8 * (_SOLVER_ARRAYS + values) * rows))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            kept = np.empty((values, part.stop - start, rows if places is None else len(places)))
            gap = np.empty(kept.shape[:2])
            together = int(np.clip(min(_WAVE, step) // (part.stop - part.start), 1, _WAVE_C))
            for g, state in enumerate(self._c_path(kernel, preconditioner, problems, part, together)):
                to_numpy = self._arrays.to_numpy
                kept[g] = to_numpy(state.beta) if places is None else to_numpy(state.scores)[:, places]
                gap[g] = bounded(to_numpy(state.gap))
                report(len(gap[g]))
            yield _Batch(part, kept, gap)

    def _c_path(
        self,
        kernel: Kernel,
        preconditioner: Preconditioner | None,
        problems: Problems,
        part: slice,
        together: int,
    ) -> Iterator[State]:
        """Solve some problems for one ascending value of C after the other, each from the solution before.

        Of values of C that are solved together, each begins at the first Newton step of the one before. Yields states
        that may change afterwards.
        """
        weights, costs = problems.weights[part], problems.costs[part].T  # (P', n), (G, P')
        weigh = self._arrays.asarray(weights)
        state = State.at_zero(self._arrays.asarray(problems.signs[part]), weigh, self._arrays)
        tolerance, max_steps, count = self.settings.tolerance, self.settings.max_iterations, len(weights)
        here = self._easy_costs(kernel, weights, costs[0]) / _STRIDE
        for wave_costs in _waves(costs, together):
            begun = list[State]()
            for target in wave_costs:
                while (_STRIDE * here < target).any():
                    here = np.minimum(target, _STRIDE * here)
                    state.bounds = 2 * self._arrays.asarray(here)[:, None] * weigh
                    solve(kernel, preconditioner, state, max(tolerance, _ON_THE_WAY), max_steps)
                here = target
                state.bounds = 2 * self._arrays.asarray(here)[:, None] * weigh
                if len(begun) + 1 < len(wave_costs):
                    solve(kernel, preconditioner, state, tolerance, 1)
                begun.append(State.joined([state], self._arrays))
            wave = State.joined(begun, self._arrays)
            begun.clear()
            solve(kernel, preconditioner, wave, tolerance, max_steps)
            for first in range(0, len(wave_costs) * count, count):
                state = wave.some(slice(first, first + count))
                yield state

    def _easy_costs(
        self, kernel: Kernel, weights: NDArray[np.float64], lowest: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the C (P,) to begin with at 0, at most the lowest that is asked for, for weights (P, n)."""
        mean = weights.sum(axis=1) / (weights > 0).sum(axis=1)
        easy = _EASY / (mean * float(kernel.squares.mean()))
        # Rows so long that the square overflows have no easy C.
        return np.where(easy > 0, np.minimum(lowest, easy), lowest)

    def _weights(
        self, rows: NDArray[np.int64], beta: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return coefficients (P, D) and intercepts (P,) of beta (P, n)."""
        return combine(beta, self.x, rows, self._arrays), self.settings.intercept_scaling**2 * beta.sum(axis=1)

    def _scores(
        self, rows: NDArray[np.int64], beta: NDArray[np.float64], held: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Score held-out rows, (G, P, m), by beta (G, P, n)."""
        coef, intercept = self._weights(rows, beta.reshape(-1, beta.shape[2]))
        scores = times(self.x, held, coef, self._arrays).T + intercept[:, None]
        return scores.reshape(*beta.shape[:2], len(held))

    @contextmanager
    def _memory(self, rows: Rows) -> Iterator[None]:
        """Say in one line that there is too little memory, before it is asked for where the system says how much."""
        needed, free = self._gram.bytes_for(rows), self._arrays.free_bytes()
        if free is not None and needed > free:
            raise self._too_little(len(rows), needed, f"{free / 2**30:.1f} GiB free")
        try:
            with self._arrays.threads():
                yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise self._too_little(len(rows), needed, "too little") from error

    def _too_little(self, rows: int, needed: int, found: str) -> FitError:
        return FitError(
            f"SVM: expected {needed / 2**30:.1f} GiB of memory and more on {self.settings.device or 'the CPU'} for "
            f"fits on {rows} rows of length {self.x.shape[1]}, found {found}; use another device, fewer rows, or the "
            f"solver stream"
        )


def _unheard(count: int) -> None:
    """Report nothing of what has been reported before."""


def _waves(costs: NDArray[np.float64], together: int) -> list[list[NDArray[np.float64]]]:
    """Divide ascending values of C (G, P) into those that are solved together."""
    waves = list[list[NDArray[np.float64]]]()
    for cost in costs:
        if not waves or len(waves[-1]) == together or (cost > _NEAR * waves[-1][-1]).any():
            waves.append([])
        waves[-1].append(cost)
    return waves
