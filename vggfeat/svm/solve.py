"""One-vs-rest problems on the rows of a table, and the interface of the solvers.

`SvmProblemSet` checks what it is given and hands problems to a `Solver`, a class in the table `SOLVERS`. A new solver
is one module with a class that has the method `solve`, and one line in that table.

N = rows of the table, n = training rows, m = rows to score, D = length of a descriptor, K = classes, G = values of C,
P = problems.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.checks import check_unmasked
from vggfeat.errors import ConfigError, FitError
from vggfeat.svm.arrays import times
from vggfeat.svm.blocks import Blocks
from vggfeat.svm.model import LinearModel, Sweep, check_descriptors
from vggfeat.svm.settings import SOLVERS, ClassWeight, Progress, SvmSettings

LARGEST_C = 1e100
"""So that squares of what is proportional to C are numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Rows of a table to train on, and others to score."""

    rows: NDArray[np.int64]
    """(n,) row numbers, each once."""
    labels: NDArray[np.int8]
    """(n, K) of 1, -1 or 0; 0 = the row takes no part for this class."""
    held_out: NDArray[np.int64]
    """(m,) row numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problems:
    """P problems of two classes on n rows of a table, each to be solved for G values of C."""

    rows: NDArray[np.int64]
    """(n,) row numbers, each once."""
    signs: NDArray[np.int8]
    """(P, n) 1, -1, or 0 where a row takes no part."""
    weights: NDArray[np.float64]
    """(P, n) factor to C of each row, 0 where it takes no part."""
    costs: NDArray[np.float64]
    """(P, G) values of C."""

    def some(self, chosen: NDArray[np.int64]) -> "Problems":
        """Return some of the problems, by number."""
        return replace(self, signs=self.signs[chosen], weights=self.weights[chosen], costs=self.costs[chosen])


class Solutions(NamedTuple):
    """Solutions of P problems for G values of C."""

    coef: NDArray[np.float64]
    """(P, G, D)"""
    intercept: NDArray[np.float64]
    """(P, G)"""
    converged: NDArray[np.bool_]
    """(P, G) False where the solver gave up."""
    gap: NDArray[np.float64]
    """(P, G) relative duality gap, at most 1; `vggfeat.svm.kernel.duality_gaps` computes it."""


class Solver(ABC):
    """Solves problems on the rows x (N, D) of one table, finite float32 or float64: the objective of `vggfeat.svm`."""

    def __init__(self, x: NDArray[np.floating], settings: SvmSettings) -> None:
        self.x, self.settings = x, settings

    @abstractmethod
    def solve(self, problems: Problems, report: Callable[[int], None]) -> Solutions:
        """Solve problems that have been checked; `report` is called with the number of solutions that are new."""

    def sweep(self, splits: Sequence[Split], costs: NDArray[np.float64], report: Callable[[int], None]) -> list[Sweep]:
        """Solve every class of every split for each value of C (G,), in any order, and score the held-out rows.

        A solver that can do without weight vectors, or solve several splits together, has its own.
        """
        sweeps = []
        for split in splits:
            count, held = split.labels.shape[1], split.held_out
            weights = row_weights(split.labels, self.settings.class_weight)
            each = np.repeat(costs[None], count, axis=0)
            problems = Problems(rows=split.rows, signs=split.labels.T, weights=weights.T, costs=each)
            found = self.solve(problems, report)
            coef = found.coef.reshape(-1, self.x.shape[1])  # (K * G, D)
            scores = times(self.x, held, coef).T + found.intercept.reshape(-1, 1)  # (K * G, m)
            scores = scores.reshape(count, len(costs), len(held)).swapaxes(0, 1)
            sweeps.append(Sweep(scores, found.converged.T, found.gap.T))
        return sweeps


class SvmProblemSet:
    """A table of descriptors on which several fits are made.

    It is checked once, and what fits have in common is computed once.

    Parameters
    ----------
    descriptors : (N, D) float32 or float64, or Blocks
        Not copied. Blocks are finite, and for a solver that streams.
    settings : SvmSettings, optional

    Raises
    ------
    FitError
        If descriptors are of another kind, or a number is not finite.
    ConfigError
        If there is no such device, or blocks are for another solver.
    """

    def __init__(self, descriptors: NDArray[np.floating] | Blocks, settings: SvmSettings | None = None) -> None:
        self._settings = settings or SvmSettings()
        entry = SOLVERS[self._settings.solver]
        self._x: NDArray[np.floating] | Blocks
        if isinstance(descriptors, Blocks):
            if not entry.streams:
                raise ConfigError(
                    f"solver: expected stream for rows that are read block by block, found {self._settings.solver}"
                )
            self._x = descriptors
        else:
            self._x = check_descriptors(descriptors, "to train on")
        module, _, name = entry.home.partition(":")
        self.solver: Solver = getattr(import_module(module), name)(self._x, self._settings)

    def sweep(
        self,
        splits: Sequence[Split],
        grid: ArrayLike,
        *,
        classes: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> list[Sweep]:
        """Fit every class with every value of C on every split, and score its held-out rows.

        Parameters
        ----------
        splits : sequence of Split
            Their numbers of classes may differ.
        grid : (G,) array of float
            Values of C, above 0, in any order.
        classes, progress
            As for `fit`.

        Returns
        -------
        list of Sweep, one a split

        Raises
        ------
        FitError, ConfigError
            As `fit`.
        """
        costs, count, checked = check_costs(grid).ravel(), len(self._x), []
        for split in splits:
            rows = _check_rows(split.rows, count, "to train on", once=True)
            held_out = _check_rows(split.held_out, count, "to score")
            signs = _check_labels(split.labels, len(rows), classes)
            checked.append(Split(rows=rows, labels=signs, held_out=held_out))
        total = len(costs) * sum(split.labels.shape[1] for split in checked)
        return self.solver.sweep(checked, costs, _counter(total, progress))

    def fit(
        self,
        rows: ArrayLike,
        labels: ArrayLike,
        C: float | ArrayLike,  # noqa: N803
        *,
        weights: ArrayLike | None = None,
        classes: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> LinearModel:
        """Fit one linear SVM a class on some of the rows.

        Parameters
        ----------
        rows : (n,) int64
            Row numbers, each once.
        labels : (n, K) array of 1, -1 or 0
            0 = the row takes no part for this class.
        C : float or (K,) array of float
            Cost of an error, above 0; for all classes or for each.
        weights : (n,) or (n, K) array of float, optional
            Factor to C of each row, not negative; one of weight 0 takes no part. `SvmSettings.class_weight` comes on
            top.
        classes : K names, optional
            For messages; numbers otherwise.
        progress : callable, optional
            See `Progress`.

        Returns
        -------
        LinearModel
            A class whose solver gave up is marked in `converged`; there is no warning.

        Raises
        ------
        FitError
            If shapes don't fit, or a class has no positive or no negative row.
        ConfigError
            If a C is not above 0.
        """
        chosen = _check_rows(rows, len(self._x), "to train on", once=True)
        signs = _check_labels(labels, len(chosen), classes)
        costs = check_costs(C)
        if costs.shape not in ((), (1,), signs.shape[1:]):
            raise ConfigError(f"C: expected one value or {signs.shape[1]}, found an array of shape {costs.shape}")
        costs = np.broadcast_to(costs, signs.shape[1:]).copy()
        scale = np.ones((1, 1)) if weights is None else _check_weights(weights, signs.shape)
        signs = _check_labels(signs * (scale > 0), len(chosen), classes)
        scale = scale * row_weights(signs, self._settings.class_weight)
        problems = Problems(rows=chosen, signs=signs.T, weights=scale.T, costs=costs[:, None])
        found = self.solver.solve(problems, _counter(len(costs), progress))
        return LinearModel(
            coef=found.coef[:, 0],
            intercept=found.intercept[:, 0],
            C=costs,
            converged=found.converged[:, 0],
            gap=found.gap[:, 0],
        )


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """Return what adds up solved problems for whoever wants to know, who first hears how many there are."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    add(0)
    return add


def fittable_classes(labels: ArrayLike) -> NDArray[np.bool_]:
    """Say for labels (n, K) of 1, -1, 0 which of the K classes have both a positive and a negative row."""
    signs = np.asarray(labels)
    return (signs == 1).any(axis=0) & (signs == -1).any(axis=0)


def check_costs(C: float | ArrayLike, name: str = "C") -> NDArray[np.float64]:  # noqa: N803
    """Return values of C as float64; ConfigError if there is none, or one is not above 0 and at most `LARGEST_C`."""
    costs = np.asarray(C, dtype=np.float64)
    if not costs.size or not ((costs > 0) & (costs <= LARGEST_C)).all():
        raise ConfigError(f"{name}: expected finite numbers above 0, at most {LARGEST_C:g}, found {costs.tolist()}")
    return costs


def _check_labels(labels: ArrayLike, rows: int, classes: Sequence[str] | None) -> NDArray[np.int8]:
    """Return labels (n, K) of 1, -1 or 0 as int8.

    Raises
    ------
    FitError
        If the shape is another, there are other labels, or a class has no positive or no negative row.
    """
    check_unmasked("labels", labels)
    signs = np.asarray(labels)
    if signs.ndim != 2 or len(signs) != rows or not signs.shape[1]:
        raise FitError(f"SVM: expected labels of shape ({rows}, classes), found {signs.shape}")
    if classes is not None and len(classes) != signs.shape[1]:
        raise FitError(f"SVM: expected {signs.shape[1]} class names, found {len(classes)}")
    if not ((signs == 1) | (signs == -1) | (signs == 0)).all():  # np.isin takes eight times the memory of the labels
        raise FitError(f"SVM: expected labels 1, -1 or 0, found {np.unique(signs)[:5].tolist()}")
    for k in np.flatnonzero(~fittable_classes(signs)).tolist():
        positives, negatives = int((signs[:, k] == 1).sum()), int((signs[:, k] == -1).sum())
        raise FitError(
            f"SVM of class {classes[k] if classes is not None else k}: expected positive and negative rows to "
            f"train on, found {positives} positive and {negatives} negative"
        )
    return signs.astype(np.int8)


def _check_rows(rows: ArrayLike, count: int, what: str, *, once: bool = False) -> NDArray[np.int64]:
    """Return numbers of rows of a table of `count`; FitError if they are of another kind, or one comes twice."""
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (numbers.size and not np.issubdtype(numbers.dtype, np.integer)):
        raise FitError(f"rows {what}: expected a list of row numbers, found {numbers.dtype} {numbers.shape}")
    for number in numbers[(numbers < 0) | (numbers >= count)][:1]:
        raise FitError(f"rows {what}: expected numbers from 0 to {count - 1}, found {number}")
    if once and len(np.unique(numbers)) < len(numbers):
        raise FitError(f"rows {what}: expected each once, found one twice; give it a weight instead")
    return numbers.astype(np.int64)


def _check_weights(weights: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return weights (n,) or (n, K) of rows as (n, 1) or (n, K); FitError if one is negative or not finite."""
    check_unmasked("weights", weights)
    given = np.asarray(weights, dtype=np.float64)
    if given.shape not in (shape, shape[:1]):
        raise FitError(f"weights: expected the shape {shape[:1]} or {shape}, found {given.shape}")
    if not (np.isfinite(given) & (given >= 0)).all():
        raise FitError("weights: expected finite numbers that are not negative, found others")
    return given[:, None] if given.ndim == 1 else given


def row_weights(signs: NDArray[np.int8], class_weight: ClassWeight) -> NDArray[np.float64]:
    """Return what each row counts in each class, (n, K) for signs (n, K): 0 where it takes no part."""
    return weigh_rows(signs, class_weight, count_labels(signs))


def count_labels(signs: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many rows of signs (n, K) are positive and negative, (K,) each."""
    return (signs == 1).sum(axis=0), (signs == -1).sum(axis=0)


def weigh_rows(
    signs: NDArray[np.int8], class_weight: ClassWeight, counts: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Return what each of some rows counts, as `row_weights`, where all have `counts` positives and negatives."""
    taking_part = np.abs(signs).astype(np.float64)
    if class_weight == "none":
        return taking_part
    positives, negatives = counts
    return taking_part * (positives + negatives) / (2 * np.where(signs == 1, positives, negatives))
