"""Rows that several fits share, and the fits on them.

N = rows of the table, n = training rows, m = rows to score, D = length of a descriptor, K = classes, G = values of C,
P = problems.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.errors import ConfigError, FitError, out_of_memory
from vggfeat.svm.arrays import arrays_of
from vggfeat.svm.batches import Batch, Problems, Split, group, merge, solve_batches
from vggfeat.svm.certificate import combine, relative_gaps, times
from vggfeat.svm.checks import check_costs, check_descriptors, check_labels, check_rows, check_weights, row_weights
from vggfeat.svm.gram import Gram
from vggfeat.svm.liblinear import solve_each
from vggfeat.svm.model import LinearModel, Sweep
from vggfeat.svm.settings import Progress, SvmSettings


class SvmProblemSet:
    """A table of descriptors on which several fits are made.

    It is checked once, and what fits have in common is computed once: the inner products of the rows.

    Parameters
    ----------
    descriptors : (N, D) float32 or float64
        Not copied.
    settings : SvmSettings, optional

    Raises
    ------
    FitError
        If descriptors are of another kind, or a number is not finite.
    ConfigError
        If there is no such device.

    Notes
    -----
    Memory of the Newton solver beside the descriptors, for n training rows in one fit: where n is at most 1.25 D,
    12 n n bytes for their inner products, 8 n n more while these are computed, and at most 4 GiB for those of earlier
    fits; otherwise 20 n (D + 1) bytes. Then 2 GiB, and 9 bytes for each pair of a row and a problem, 8 for each score
    and each coefficient. So a table of 30,607 rows of 24,576 numbers in float32 takes 3.0 GB, and fits on 15,420 rows
    of it at most another 11 GB.
    """

    def __init__(self, descriptors: NDArray[np.floating], settings: SvmSettings | None = None) -> None:
        self._x = check_descriptors(descriptors, "to train on")
        self._settings = settings or SvmSettings()
        self._arrays = arrays_of(self._settings.device)
        self._gram = Gram(self._x, self._settings.intercept_scaling, self._arrays)

    def sweep(
        self,
        parts: Sequence[Split],
        grid: ArrayLike,
        *,
        classes: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> list[Sweep]:
        """Fit every class with every value of C on every part, and score its held-out rows.

        Parameters
        ----------
        parts : sequence of Split
            Their numbers of classes may differ.
        grid : (G,) array of float
            Values of C, above 0, in any order.
        classes, progress
            As for `fit_one_vs_rest`.

        Returns
        -------
        list of Sweep, one a part

        Raises
        ------
        FitError, ConfigError
            As `fit_one_vs_rest`.
        """
        costs, count = check_costs(grid).ravel(), len(self._x)
        for part in parts:
            check_rows(part.rows, count, "to train on", once=True)
            check_rows(part.held_out, count, "to score")
        signs = [check_labels(part.labels, len(part.rows), classes) for part in parts]
        report = _Count(len(costs) * sum(labels.shape[1] for labels in signs), progress)
        if self._settings.solver == "liblinear":
            return [self._sweep_each(part, y, costs, report) for part, y in zip(parts, signs, strict=True)]
        sweeps = []
        for numbers in group(parts):
            with self._memory(max(len(parts[i].rows) for i in numbers)):
                sweeps += self._sweep_together([parts[i] for i in numbers], [signs[i] for i in numbers], costs, report)
        return sweeps

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
        labels, C, classes, progress
            As for `fit_one_vs_rest`.
        weights : (n,) or (n, K) array of float, optional
            What each row counts, not negative; one of weight 0 takes no part. `SvmSettings.class_weight` comes on
            top.

        Returns
        -------
        LinearModel

        Raises
        ------
        FitError, ConfigError
            As `fit_one_vs_rest`.
        """
        settings, chosen = self._settings, check_rows(rows, len(self._x), "to train on", once=True)
        signs = check_labels(labels, len(chosen), classes)
        costs = check_costs(C)
        if costs.shape not in ((), (1,), signs.shape[1:]):
            raise ConfigError(f"C: expected one value or {signs.shape[1]}, found an array of shape {costs.shape}")
        costs = np.broadcast_to(costs, signs.shape[1:]).copy()
        scale = np.ones((1, 1)) if weights is None else check_weights(weights, signs.shape)
        signs = check_labels(signs * (scale > 0), len(chosen), classes)
        scale = scale * row_weights(signs, settings.class_weight)
        report = _Count(len(costs), progress)
        if settings.solver == "liblinear":
            each = solve_each(self._x[chosen], signs, scale, list(enumerate(costs.tolist())), settings, report.add)
            return LinearModel(C=costs, **each._asdict())
        with self._memory(len(chosen)):
            return self._fit_together(chosen, signs, scale, costs, report)

    def _fit_together(
        self,
        chosen: NDArray[np.int64],
        signs: NDArray[np.int8],
        scale: NDArray[np.float64],
        costs: NDArray[np.float64],
        report: "_Count",
    ) -> LinearModel:
        """Solve the problems of one fit at once, with signs and weights (n, K)."""
        settings, owner = self._settings, np.zeros(len(costs), dtype=np.int64)
        problems = Problems(rows=chosen, signs=signs.T, weights=scale.T, costs=costs[None], owner=owner)
        coef, intercept = np.empty((len(costs), self._x.shape[1])), np.empty(len(costs))
        beta = np.empty(signs.T.shape)
        for batch in self._solve(problems, report, None):
            part = slice(batch.start, batch.start + batch.gap.shape[1])
            beta[part] = batch.kept[0]
            coef[part], intercept[part] = self._functions(chosen, batch.kept[0])
        gap = relative_gaps(
            self._x,
            chosen,
            signs.T,
            (2 * costs * scale).T,
            coef,
            intercept,
            settings.intercept_scaling,
            self._arrays,
            beta=beta,
            enough=settings.tolerance,
        )
        return LinearModel(coef=coef, intercept=intercept, C=costs, converged=gap <= settings.tolerance, gap=gap)

    @contextmanager
    def _memory(self, rows: int) -> Iterator[None]:
        """Say in one line that there was too little memory."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            where = self._settings.device or "the CPU"
            raise FitError(
                f"SVM: expected memory on {where} for fits on {rows} rows of length {self._x.shape[1]}, found too "
                f"little; use another device, or fewer rows"
            ) from error

    def _sweep_together(
        self, parts: list[Split], signs: list[NDArray[np.int8]], costs: NDArray[np.float64], report: "_Count"
    ) -> list[Sweep]:
        """Solve the problems of some parts at once."""
        order = np.argsort(costs, kind="stable")
        problems = merge(parts, signs, costs[order], self._settings)
        held = np.concatenate([part.held_out for part in parts]).astype(np.int64)
        places = np.searchsorted(problems.rows, held).clip(None, len(problems.rows) - 1)
        # In a cross-validation all held-out rows are training rows of other parts, and the solver knows their scores.
        known = bool((problems.rows[places] == held).all())
        ends = np.cumsum([0] + [len(part.held_out) for part in parts])
        firsts = np.cumsum([0] + [labels.shape[1] for labels in signs])
        sweeps = [
            _empty_sweep(len(costs), labels.shape[1], len(part.held_out))
            for part, labels in zip(parts, signs, strict=True)
        ]
        for batch in self._solve(problems, report, places if known else None):
            owner = problems.owner[batch.start : batch.start + batch.gap.shape[1]]
            for number in np.unique(owner).tolist():
                mine, mine_held = np.flatnonzero(owner == number), slice(ends[number], ends[number + 1])
                where = np.ix_(order, mine + batch.start - firsts[number])
                sweeps[number].gap[where] = batch.gap[:, mine]
                sweeps[number].scores[where] = (
                    batch.kept[:, mine, mine_held]
                    if known
                    else self._scores(problems.rows, batch.kept[:, mine], held[mine_held])
                )
        return [sweep._replace(converged=sweep.gap <= self._settings.tolerance) for sweep in sweeps]

    def _solve(self, problems: Problems, report: "_Count", places: NDArray[np.int64] | None) -> Iterator[Batch]:
        products = self._gram.products(problems.rows)
        return solve_batches(products, problems, self._settings, self._arrays, report.add, places)

    def _functions(
        self, rows: NDArray[np.int64], beta: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return coefficients (P, D) and intercepts (P,) of beta (P, n)."""
        return combine(beta, self._x, rows, self._arrays), self._settings.intercept_scaling**2 * beta.sum(axis=1)

    def _scores(
        self, rows: NDArray[np.int64], beta: NDArray[np.float64], held: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Score held-out rows (G, P, m) by beta (G, P, n)."""
        coef, intercept = self._functions(rows, beta.reshape(-1, beta.shape[2]))
        scores = times(self._x, held, coef, self._arrays).T + intercept[:, None]
        return scores.reshape(*beta.shape[:2], len(held))

    def _sweep_each(self, part: Split, signs: NDArray[np.int8], costs: NDArray[np.float64], report: "_Count") -> Sweep:
        # Class by class, so that neighbouring problems cost about the same and the workers stay level.
        problems = [(k, float(cost)) for k in range(signs.shape[1]) for cost in costs]
        weights = row_weights(signs, self._settings.class_weight)
        each = solve_each(self._x[part.rows], signs, weights, problems, self._settings, report.add)
        shape, held = (signs.shape[1], len(costs)), np.asarray(part.held_out, dtype=np.int64)
        scores = times(self._x, held, each.coef).T + each.intercept[:, None]
        return Sweep(
            scores.reshape(*shape, len(held)).swapaxes(0, 1), each.converged.reshape(shape).T, each.gap.reshape(shape).T
        )


class _Count:
    """Counts solved problems for whoever wants to know."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _empty_sweep(values: int, classes: int, held: int) -> Sweep:
    scores, gap = np.empty((values, classes, held)), np.empty((values, classes))
    return Sweep(scores, np.zeros(gap.shape, dtype=bool), gap)
