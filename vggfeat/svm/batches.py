"""Problems on the same rows, solved together.

n = training rows, m = rows to score, D = length of a descriptor, K = classes, G = values of C, P = problems.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.svm.arrays import Arrays
from vggfeat.svm.certificate import bounded
from vggfeat.svm.checks import row_weights
from vggfeat.svm.path import solve_path
from vggfeat.svm.products import Products
from vggfeat.svm.settings import SvmSettings

# Of all arrays (problems, n) in one batch: those of the solver, about 18 in float64, and one for each C.
_BATCH_BYTES, _SOLVER_ARRAYS = 1 << 31, 18
# FeatureWriter that have this much of all their rows in common are solved together.
_TOGETHER = 0.6


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Rows of a table to train on, and others to score."""

    rows: NDArray[np.integer[Any]]
    """(n,) row numbers, each once."""
    labels: NDArray[np.integer[Any]]
    """(n, K) of 1, -1 or 0; 0 = the row takes no part for this class."""
    held_out: NDArray[np.integer[Any]]
    """(m,) row numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problems:
    """P pairs of a part and a class, each to be solved for several values of C, on n rows of a table."""

    rows: NDArray[np.int64]
    """(n,) row numbers, ascending if of several parts."""
    signs: NDArray[np.int8]
    """(P, n) 1, -1 or 0."""
    weights: NDArray[np.float64]
    """(P, n) 0 where a row takes no part."""
    costs: NDArray[np.float64]
    """(G, P) values of C, ascending."""
    owner: NDArray[np.int64]
    """(P,) number of the part."""


class Batch(NamedTuple):
    """P' solved problems in a row, for G values of C."""

    start: int
    """Number of the first."""
    kept: NDArray[np.float64]
    """(G, P', k) what was to be kept."""
    gap: NDArray[np.float64]
    """(G, P') relative duality gap."""


def group(parts: Sequence[Split]) -> list[list[int]]:
    """Say which parts are solved together: all, if each has most rows of all, otherwise none with another."""
    if not parts:
        return []
    union = len(np.unique(np.concatenate([part.rows for part in parts])))
    numbers = list(range(len(parts)))
    return [numbers] if all(len(part.rows) >= _TOGETHER * union for part in parts) else [[i] for i in numbers]


def merge(
    parts: Sequence[Split], signs: Sequence[NDArray[np.int8]], costs: NDArray[np.float64], settings: SvmSettings
) -> Problems:
    """Return the problems of parts, with signs (n, K) of each, on the rows of all, for ascending costs (G,)."""
    rows = np.unique(np.concatenate([part.rows for part in parts])).astype(np.int64)
    owner = np.repeat(np.arange(len(parts)), [labels.shape[1] for labels in signs])
    merged, weights = np.zeros((len(owner), len(rows)), dtype=np.int8), np.zeros((len(owner), len(rows)))
    for number, (part, labels) in enumerate(zip(parts, signs, strict=True)):
        place = np.ix_(owner == number, np.searchsorted(rows, part.rows))
        merged[place], weights[place] = labels.T, row_weights(labels, settings.class_weight).T
    each = np.repeat(costs[:, None], len(owner), axis=1)
    return Problems(rows=rows, signs=merged, weights=weights, costs=each, owner=owner)


def solve_batches(
    products: Products,
    problems: Problems,
    settings: SvmSettings,
    arrays: Arrays,
    report: Callable[[int], None],
    places: NDArray[np.int64] | None,
) -> Iterator[Batch]:
    """Solve problems, as many at a time as memory allows.

    Parameters
    ----------
    products : Products
        Of the rows of the problems.
    report : callable
        Called with the number of solutions that are new.
    places : (k,) int64, optional
        Keep the scores of these among the n rows; if None, beta (k = n).
    """
    values, count, rows = *problems.costs.shape, len(problems.rows)
    step = max(1, _BATCH_BYTES // (8 * (_SOLVER_ARRAYS + values) * rows))
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        path = solve_path(
            products,
            problems.signs[part],
            problems.weights[part],
            problems.costs[:, part],
            settings.tolerance,
            settings.max_iterations,
            arrays,
        )
        kept = np.empty((values, part.stop - start, rows if places is None else len(places)))
        gap = np.empty(kept.shape[:2])
        for g, state in enumerate(path):
            kept[g] = arrays.to_numpy(state.beta) if places is None else arrays.to_numpy(state.scores)[:, places]
            gap[g] = bounded(arrays.to_numpy(state.gap))
            report(len(gap[g]))
        yield Batch(start, kept, gap)
