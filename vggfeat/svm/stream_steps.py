"""Newton's method for many linear SVMs whose rows are read pass by pass.

Q = tasks: pairs of a problem of two classes and a value of C; D = length of a row, m = rows of a sample, r = some of
its eigenvectors. Of `stream_passes`: rows x', weight vectors v, slack s.

    objective(v) = 0.5 |v|^2 + C sum of weight s^2
    gradient(v)  = v - 2 C sum of weight s y x'
    Hessian(v)   = 1 + 2 C sum over rows with slack of weight x' x''

The numbers 2 C weight s are a point of the dual problem, whose objective there is objective(v) - 0.5 |gradient(v)|^2.
So each gradient is a certificate: the relative duality gap is at most 0.5 |gradient|^2 / objective.

What counts is how often the rows are read. All tasks share a pass, and each is where it is: some ask for objective and
gradient at a point, others for the product of their Hessian with a vector, one more step of conjugate gradients. These
are in float32, as a direction needs few digits, and preconditioned: the Hessian at some rows with slack is nearly
1 + c G, where G are the inner products of the columns of a sample of all rows, and c how much weight has slack. With
the eigenvectors of G, which are computed once, that is solved for every c. It also gives the start, the least squares
solution for the C of the task, without a further pass. Hessians themselves, solved by Cholesky, take D / 4 times the
multiplications of one such step if all rows have slack: they are for tasks with little slack, which are those with a
large C, and for those that conjugate gradients do not solve. It is Newton's method of Keerthi and DeCoste, as in
`newton_steps`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from vggfeat.svm.arrays import NUMPY
from vggfeat.svm.stream_passes import Asked, Beginning, Group, Passes, Slacks, Vectors

# Rows of the sample for each number of a row; columns up to which all eigenvectors are kept, else rows of the sample.
_SAMPLE, _WHOLE, _FEW = 8, 6144, 1024
# Length up to which eigenvectors are computed in float64, and part of the largest eigenvalue that is seen in float32.
_DOUBLE, _SEEN = 2048, 1e-6
# Conjugate gradients end when the residual in the norm of the preconditioner is this part of what it was,
_FORCING = 0.2
# or after so many steps in float32, float64.
_PATIENCE, _PATIENCE_DOUBLE = 50, 500
# A Hessian at once where it costs less than this many steps, each of 4 n D multiplications; how many may be in memory;
# and what part of its mean is added to its diagonal where rounding errors leave no solution.
_CHEAP, _HESSIAN_BYTES, _SHIFT = 16, 1 << 29, 1e-13
# Part of the decrease that the slope promises which a step must reach, and how often it is shortened at most.
_DECREASE, _SHORTER = 1e-4, 30
# Of the objective, what is no visible decrease; after so many steps in a row without one a task is given up.
_VISIBLE, _STILL = 1e-13, 2
# After so many steps in a row that don't halve the gap, products in float32 count as not enough.
_SLOW = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Preconditioner:
    """1 + c G solved for any c, by the eigenvectors of G, the inner products of the columns of a sample."""

    vectors: NDArray[np.float64]
    """(D + 1, r)"""
    values: NDArray[np.float64]
    """(r,) eigenvalues of G / m."""
    rest: float
    """What the other eigenvalues of G / m are taken for, the mean of them; infinite where there are none."""

    @classmethod
    def of_rows(cls, sample: Iterator[NDArray[np.float32]], length: int) -> "Preconditioner":
        """Compute it of rows x' that come block by block."""
        gram, kept, count = None, list[NDArray[np.float32]](), 0
        for rows in sample:
            count += len(rows)
            if gram is None:
                kept.append(rows)
            if gram is None and length <= _WHOLE and count > length:
                rows, gram, kept = np.concatenate(kept), np.zeros((length, length)), []
            if gram is not None:
                gram += rows.T @ rows
        if gram is not None:
            values, vectors = _eigenvectors(gram)
            # What is smaller is a rounding error.
            return cls(vectors=vectors, values=values.clip(_SEEN * values[-1], None) / count, rest=np.inf)
        columns = np.concatenate(kept).astype(np.float64).T
        values, vectors = _eigenvectors(columns.T @ columns)
        seen = values > _SEEN * values[-1]
        others = max(_SEEN * values[-1], values[~seen].sum() / (length - seen.sum()))
        vectors = columns @ (vectors[:, seen] / np.sqrt(values[seen]))
        return cls(vectors=vectors, values=values[seen] / count, rest=others / count)

    def solve(self, right: Vectors, factors: NDArray[np.float64]) -> Vectors:
        """Solve (1 + c G / m) z = right (tasks, D + 1) for a c a task."""
        plain = 1 / (1 + factors * self.rest)[:, None]
        turned = right @ self.vectors
        turned *= 1 / (1 + factors[:, None] * self.values) - plain
        return plain * right + turned @ self.vectors.T


def _eigenvectors(gram: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the eigenvalues, ascending, and their eigenvectors; float32 takes half the time of float64."""
    if not np.isfinite(gram).all():  # Rows beyond the square root of what floats hold.
        return np.ones(len(gram)), np.eye(len(gram))
    if len(gram) > _DOUBLE:
        gram = gram.astype(np.float32)
    values, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    return values.astype(np.float64), vectors.astype(np.float64)


def sample_every(rows: int, length: int) -> int:
    """Return that every so many-th row is in the sample for a `Preconditioner`."""
    return max(1, rows // (_SAMPLE * length if length <= _WHOLE else _FEW))


class Found(NamedTuple):
    """What is found for Q tasks."""

    point: Vectors
    """(Q, D + 1) v."""
    gap: NDArray[np.float64]
    """(Q,) relative duality gap."""


def minimise(
    passes: Passes, costs: NDArray[np.float64], tolerance: float, max_steps: int, report: Callable[[int], None]
) -> Found:
    """Solve Q tasks.

    Of several processes the first takes the steps, and the others compute their parts of its passes; all return what is
    found.

    Parameters
    ----------
    passes : Passes
    costs : (Q,)
        C of each task.
    tolerance : float
        Relative duality gap at which a task is solved.
    max_steps : int
        Newton steps, at most.
    report : callable
        Called with the number of tasks that are newly over, in the first process.

    Raises
    ------
    ConfigError
        If the processes have not the same rows and problems.
    """
    passes.check_same(costs)
    beginning = passes.begin(sample_every(len(passes.rows), passes.length))
    if passes.world.is_main:
        tasks = _lead(passes, beginning, costs, tolerance, max_steps, report)
        found = Found(tasks.point, tasks.gap)
    else:
        while (asked := passes.agree(None)) is not None:
            passes.run(asked)
        found = Found(np.empty((len(costs), passes.length)), np.empty(len(costs)))
    for values in found:
        passes.world.broadcast_array(values)
    return found


@np.errstate(all="ignore")  # What is not finite is not taken.
def _lead(
    passes: Passes, beginning: Beginning, costs: NDArray[np.float64], tolerance: float, max_steps: int,
    report: Callable[[int], None],
) -> "Tasks":  # fmt: skip
    preconditioner = Preconditioner.of_rows(beginning.sample, passes.length)
    pull, weight = (one[passes.columns] for one in (beginning.pull, beginning.weight))
    tasks = Tasks(costs, pull, weight, preconditioner, tolerance=tolerance, max_steps=max_steps)
    while (going := tasks.looking | tasks.solving).any():
        asked = tasks.ask(room=max(1, _HESSIAN_BYTES // (8 * passes.length**2)))
        passes.agree(asked)
        sums = passes.run(asked)
        tasks.arrive(asked.points.tasks, sums.slacks)
        tasks.multiplied(asked.single.tasks, sums.single)
        tasks.multiplied(asked.double.tasks, sums.double)
        tasks.solve(asked.hessians, sums.hessians)
        report(int((going & ~tasks.looking & ~tasks.solving).sum()))
    passes.agree(None)
    return tasks


class Tasks:
    """Q tasks, and how far they are.

    A task is `looking` at a point along a direction, or `solving` for the direction of the next step, or over. It
    solves by conjugate gradients, or, if it is direct, by its Hessian.
    """

    def __init__(
        self,
        costs: NDArray[np.float64],
        pull: Vectors,
        weight: NDArray[np.float64],
        preconditioner: Preconditioner,
        *,
        tolerance: float,
        max_steps: int,
    ) -> None:
        """Begin at v = 0, where all rows have the slack 1, and look at the solution with these slacks.

        costs (Q,) C; pull (Q, D + 1) sum of weight y x'; weight (Q,) sum of weights.
        """
        count, self._size = pull.shape
        self._costs, self._preconditioner = costs, preconditioner
        self._tolerance, self._max_steps = tolerance, max_steps
        self.point, self._gradient = np.zeros(pull.shape), -2 * costs[:, None] * pull
        self._objective, self._all = costs * weight, 2 * costs * weight
        self._factor = self._all.copy()
        self.gap = np.full(count, np.inf)
        """(Q,) relative duality gap."""
        self.looking = np.full(count, True)
        self.solving, self._direct, self._hard = np.full((3, count), False)
        self._direction = preconditioner.solve(-self._gradient, self._factor)
        self._reach, self._slope = np.ones(count), dots(self._gradient, self._direction)
        self._search, self._residual = np.zeros(pull.shape), np.zeros(pull.shape)
        self._norm, self._first_norm = np.zeros(count), np.zeros(count)
        self._slow, self._still, self._steps, self._shorter, self._turns = np.zeros((5, count), dtype=np.int64)

    def ask(self, room: int) -> Asked:
        """Return what is needed next, of at most so many Hessians; who has to wait for one asks for nothing."""
        looking, products = np.flatnonzero(self.looking), self.solving & ~self._direct
        single, double = (np.flatnonzero(products & kind) for kind in (~self._hard, self._hard))
        return Asked(
            Group(looking, self.trial(looking)),
            Group(single, self._search[single]),
            Group(double, self._search[double]),
            np.flatnonzero(self.solving & self._direct)[:room],
        )

    def trial(self, tasks: NDArray[np.int64]) -> Vectors:
        """Return the points that tasks look at."""
        return self.point[tasks] + self._reach[tasks, None] * self._direction[tasks]

    def arrive(self, tasks: NDArray[np.int64], slacks: Slacks) -> None:
        """Take the points that were looked at, or look nearer where the objective did not fall."""
        point, costs = self.trial(tasks), self._costs[tasks]
        objective = 0.5 * dots(point, point) + costs * slacks.square
        gradient = point - 2 * costs[:, None] * slacks.pull
        promised = _DECREASE * self._reach[tasks] * self._slope[tasks]
        before = self._objective[tasks]
        taken = (objective <= before + promised) | (objective <= before * (1 + _VISIBLE))
        self._look_nearer(tasks[~taken], dots(gradient, self._direction[tasks])[~taken])
        lower = (objective < before * (1 - _VISIBLE))[taken]
        arrived = tasks[taken]
        self.point[arrived], self._objective[arrived], self._gradient[arrived] = (
            one[taken] for one in (point, objective, gradient)
        )
        self._factor[arrived] = 2 * costs[taken] * slacks.active[taken]
        self._assess(arrived, lower)

    def _assess(self, tasks: NDArray[np.int64], lower: NDArray[np.bool_]) -> None:
        """End tasks that are solved, or given up, and begin to solve for the next step of the others."""
        gap = 0.5 * dots(self._gradient[tasks], self._gradient[tasks]) / self._objective[tasks]
        self._slow[tasks] = np.where(gap < 0.5 * self.gap[tasks], 0, self._slow[tasks] + 1)
        self._still[tasks] = np.where(lower, 0, self._still[tasks] + self._hard[tasks])
        self._hard[tasks] |= ~lower | (self._slow[tasks] >= _SLOW)
        self.gap[tasks] = gap
        self._steps[tasks] += 1
        self.looking[tasks] = False
        going = (gap > self._tolerance) & (self._still[tasks] < _STILL) & (self._steps[tasks] < self._max_steps)
        tasks = tasks[going]
        self._residual[tasks] = -self._gradient[tasks]
        self._search[tasks] = self._preconditioner.solve(self._residual[tasks], self._factor[tasks])
        self._norm[tasks] = self._first_norm[tasks] = dots(self._residual[tasks], self._search[tasks])
        self._direction[tasks] = 0
        self._turns[tasks] = 0
        self.solving[tasks] = True
        few = self._factor[tasks] * self._size < 4 * _CHEAP * self._all[tasks]
        self._direct[tasks] = (self._size <= _WHOLE) & (few | self._hard[tasks])

    def _look_nearer(self, tasks: NDArray[np.int64], slope: NDArray[np.float64]) -> None:
        """Shorten the step to where its slope would be 0 if it grew evenly; `slope` is that at its end."""
        part = self._slope[tasks] / (self._slope[tasks] - slope)
        self._reach[tasks] *= np.where(np.isfinite(part), part, 0.1).clip(0.1, 0.8)
        self._shorter[tasks] += 1
        self.looking[tasks[self._shorter[tasks] > _SHORTER]] = False

    def multiplied(self, tasks: NDArray[np.int64], products: Vectors) -> None:
        """Make one step of conjugate gradients with the sums of weight (p x') x' for the search directions p."""
        search = self._search[tasks]
        image = search + 2 * self._costs[tasks, None] * products
        length = self._norm[tasks] / dots(search, image)
        usable = np.isfinite(length) & (length > 0)
        # Not even one step: the preconditioned gradient itself is a direction too.
        length = np.where(usable, length, self._turns[tasks] == 0)[:, None]
        self._direction[tasks] += length * search
        self._residual[tasks] -= length * image
        self._turns[tasks] += 1
        residual = self._residual[tasks]
        solved = self._preconditioner.solve(residual, self._factor[tasks])
        norm, last = dots(residual, solved), self._norm[tasks]
        self._norm[tasks] = norm
        self._search[tasks] = solved + (norm / last)[:, None] * search
        exact = dots(residual, residual) <= 0.5 * self._tolerance * self._objective[tasks]
        found = exact | (norm <= _FORCING**2 * self._first_norm[tasks])
        patience = np.where(self._hard[tasks], _PATIENCE_DOUBLE, _PATIENCE)
        lost = ~found & (~usable | ~np.isfinite(norm) | (self._turns[tasks] >= patience))
        self._hard[tasks] |= lost
        self._turn(tasks[found | lost])

    def solve(self, tasks: NDArray[np.int64], hessians: Sequence[NDArray[np.float64]]) -> None:
        """Solve with the sums of weight x' x'' over the rows with slack, which are overwritten."""
        diagonal = np.arange(self._size)
        for task, hessian in zip(tasks.tolist(), hessians, strict=True):
            hessian *= 2 * self._costs[task]
            shift = _SHIFT * np.trace(hessian) / len(hessian)
            hessian[diagonal, diagonal] += 1.0
            solution = NUMPY.solve_positive(hessian, self._residual[task])
            if solution is None:
                hessian[diagonal, diagonal] += shift
                solution = NUMPY.solve_positive(hessian, self._residual[task])
            self._direction[task] = self._search[task] if solution is None else solution
        self._turn(tasks)

    def _turn(self, tasks: NDArray[np.int64]) -> None:
        """Look at the end of the step that was solved for."""
        self._reach[tasks], self._shorter[tasks] = 1, 0
        self._slope[tasks] = dots(self._gradient[tasks], self._direction[tasks])
        self.solving[tasks], self.looking[tasks] = False, True


def dots(first: Vectors, second: Vectors) -> NDArray[np.float64]:
    """Return the inner product of each task."""
    return np.einsum("td,td->t", first, second)
