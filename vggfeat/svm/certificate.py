"""Products with the rows themselves, a few at a time, and the certificate of a solution from them.

N = rows of the table, n = rows that are meant, D = length of a descriptor, P = problems.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vggfeat.svm.arrays import Arrays, NumpyArrays

_CHUNK_BYTES = 1 << 24
_NUMPY = NumpyArrays()

Rows = NDArray[np.int64]


def times(
    x: NDArray[np.floating], rows: Rows, coef: NDArray[np.float64], arrays: Arrays = _NUMPY
) -> NDArray[np.float64]:
    """Multiply some rows of x (N, D) by the transpose of coef (P, D), in float64; (n, P)."""
    product, right = np.empty((len(rows), len(coef))), arrays.asarray(coef).T
    for part in _parts(x, rows):
        product[part] = arrays.to_numpy(arrays.asarray(x[rows[part]]) @ right)
    return product


def combine(
    beta: NDArray[np.float64], x: NDArray[np.floating], rows: Rows, arrays: Arrays = _NUMPY
) -> NDArray[np.float64]:
    """Multiply beta (P, n) by some rows of x (N, D), in float64; (P, D)."""
    product, left = arrays.zeros(len(beta), x.shape[1]), arrays.asarray(beta)
    for part in _parts(x, rows):
        product += left[:, part] @ arrays.asarray(x[rows[part]])
    return arrays.to_numpy(product)


@np.errstate(over="ignore", invalid="ignore")
def relative_gaps(
    x: NDArray[np.floating],
    rows: Rows,
    signs: NDArray[np.int8],
    bounds: NDArray[np.float64],
    coef: NDArray[np.float64],
    intercept: NDArray[np.float64],
    scaling: float,
    arrays: Arrays = _NUMPY,
    beta: NDArray[np.float64] | None = None,
    enough: float = 0.0,
) -> NDArray[np.float64]:
    """Compute the relative duality gap of P solutions from the rows, in float64.

    With v = (w, b / s) and v' = the sum of 2 C weight slack y (x, s) over the rows, which is the best v for these
    slacks, the dual objective at the slacks is the primal one at v less half of |v - v'|^2.

    Parameters
    ----------
    x : (N, D)
    rows : (n,) row numbers
    signs, bounds : (P, n)
        bounds = 2 C times the weight of the row.
    coef, intercept : (P, D), (P,)
    scaling : float
        s.
    beta : (P, n), optional
        Combinations of rows that gave the solutions. Near them is another point of the dual problem, which is better
        at large C, where the slacks are known with few digits; tried where the gap is above `enough`.
    enough : float

    Returns
    -------
    (P,) float64
    """
    slack = np.maximum(0, 1 - signs * (times(x, rows, coef, arrays) + intercept).T)
    pull = bounds * slack * signs
    step = coef - combine(pull, x, rows, arrays)
    primal = 0.5 * ((coef**2).sum(axis=1) + (intercept / scaling) ** 2 + (bounds * slack**2).sum(axis=1))
    gap = 0.5 * ((step**2).sum(axis=1) + (intercept / scaling - scaling * pull.sum(axis=1)) ** 2)
    unsure = np.flatnonzero(gap > enough * primal)
    if beta is not None and len(unsure):
        alpha = np.maximum(0, beta[unsure] * signs[unsure]) * (bounds[unsure] > 0)
        other = combine(alpha * signs[unsure], x, rows, arrays)
        square = (other**2).sum(axis=1) + (scaling * (alpha * signs[unsure]).sum(axis=1)) ** 2
        square += (alpha**2 / np.where(bounds[unsure] > 0, bounds[unsure], 1)).sum(axis=1)
        # A difference of large numbers: below 0 it is a rounding error, and never known to be less than one.
        other_gap = np.abs(primal[unsure] - alpha.sum(axis=1) + 0.5 * square)
        gap[unsure] = np.minimum(gap[unsure], np.maximum(other_gap, np.finfo(float).eps * primal[unsure]))
    return bounded(gap / primal)


def bounded(gap: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return relative gaps, at most 1: 0 is a dual objective too. Also where overflows leave no number."""
    return np.fmin(gap, 1.0)


def _parts(x: NDArray[np.floating], rows: Rows) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES // (8 * x.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)
