"""The linear systems of Newton's method: d + u K d = r, for many problems.

n = training rows, P = problems; u (P, n) is 0 at the rows that are not active.

Conjugate gradients take all problems together, in float32, as a direction needs few digits. With growing C the
systems become worse conditioned, but have fewer active rows: then Cholesky solves them one after the other.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vggfeat.svm.arrays import Array, Arrays
from vggfeat.svm.products import Products

# Cholesky at once where it costs less than this many products with K, as conjugate gradients seldom take fewer, and
# with so few active rows that it costs nothing.
_CHEAP, _FEW = 10, 256
# Cholesky never where it costs more; then conjugate gradients are in float64 where float32 is not enough.
_DEAR = 1000
# Conjugate gradients end when the gradient of the quadratic problem is this part of what it was,
_FORCING = 0.01
# or after as many products as Cholesky costs, these at least and at most; the problem then counts as hard.
_PATIENCE = (30, 300)
_PATIENCE_DOUBLE = 1000


@dataclass(kw_only=True)
class Point:
    """Where P problems stand, as far as a direction depends on it."""

    slack: Array
    """(P, n) s y."""
    bounds: Array
    """(P, n) u, 0 where a row has no slack."""
    beta: Array
    """(P, n)"""
    residual: Array
    """(P, n) r."""
    scores: Array
    """(P, n) K r."""
    square: Array
    """(P,) r K r."""
    target: Array
    """(P,) r K r at which a problem is solved."""

    def some(self, chosen: Array) -> Self:
        """Return some of the problems, by number; a copy."""
        return type(self)(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def directions(products: Products, point: Point, hard: Array, arrays: Arrays) -> tuple[Array, Array]:
    """Solve d + u K d = r, nearly or exactly.

    Parameters
    ----------
    products : Products
    point : Point
    hard : (P,) bool
        Problems for which conjugate gradients in float32 are not enough.

    Returns
    -------
    d : (P, n)
    difficult : (P,) bool
        Problems that proved to be hard.
    """
    active = arrays.to_numpy((point.bounds > 0).sum(-1)).astype(float)
    worth = products.direct_cost(active) / products.cost
    stiff = arrays.to_numpy(hard)
    direct = (active <= _FEW) | (worth <= _CHEAP) | (stiff & (worth <= _DEAR))
    result, difficult = arrays.zeros(*point.beta.shape), np.zeros(len(active), dtype=bool)
    patience = np.where(stiff, _PATIENCE_DOUBLE, np.clip(worth, *_PATIENCE))
    for chosen, double in ((~direct & ~stiff, False), (~direct & stiff, True)):
        numbers = np.flatnonzero(chosen)
        if len(numbers):
            index = arrays.index(numbers)
            result[index], difficult[numbers] = _conjugate_gradients(
                products, point.some(index), patience[numbers], double, arrays
            )
    numbers = np.flatnonzero(direct)
    if len(numbers):
        result[arrays.index(numbers)] = _cholesky(products, point.some(arrays.index(numbers)), arrays)
    return result, arrays.index(difficult)


def _cholesky(products: Products, point: Point, arrays: Arrays) -> Array:
    """Solve problem after problem; the gradient itself where rounding errors leave no solution."""
    xp = arrays.xp
    active = point.bounds > 0
    rest = xp.where(active, 0.0, point.residual)
    # Where beta is 0 at all rows that are not active, which is so after a full step, there is no rest.
    pushed = products.times(rest) if bool((rest != 0).any()) else rest
    result = point.residual * 1.0
    for number in range(len(result)):
        rows = xp.where(active[number])[0]
        bounds = point.bounds[number, rows]
        # r / u = s y - beta / u, without the rounding error of a large u.
        right = point.slack[number, rows] - point.beta[number, rows] / bounds - pushed[number, rows]
        solution = products.newton_step(rows, bounds, point.residual[number], right)
        if solution is not None:
            result[number] = solution
    return result


def _conjugate_gradients(
    products: Products, point: Point, patience: NDArray[np.float64], double: bool, arrays: Arrays
) -> tuple[Array, NDArray[np.bool_]]:
    """Solve all problems together, each until its residual is small or its patience (P,) is over.

    The operator 1 + u K is symmetric in the inner product v K v' of the weight vectors.
    """
    xp, cast = arrays.xp, arrays.double if double else arrays.single
    # With r K r = 1, so that float32 has no number that is too large for it.
    scale = xp.where(point.square > 0, point.square, 1.0)[:, None] ** 0.5
    bounds, residual, scores = cast(point.bounds), cast(point.residual / scale), cast(point.scores / scale)
    stop = xp.maximum(_FORCING**2 + 0 * point.square, 0.25 * point.target / scale[:, 0] ** 2)
    result, difficult = residual * 0, np.zeros(len(residual), dtype=bool)
    solution, numbers = residual * 0, np.arange(len(residual))
    search, search_scores = residual * 1, scores * 1
    square = arrays.double(xp.einsum("pn,pn->p", residual, scores))
    for step in range(1, int(patience.max()) + 1):
        image = search + bounds * search_scores
        length = cast(square / arrays.double(xp.einsum("pn,pn->p", search_scores, image)))[:, None]
        solution = solution + length * search
        residual = residual - length * image
        scores = products.times(residual)
        last, square = square, arrays.double(xp.einsum("pn,pn->p", residual, scores))
        going = arrays.to_numpy(square > stop) & (step < patience[numbers])
        if not going.all():
            over = np.flatnonzero(~going)
            result[arrays.index(numbers[over])] = solution[arrays.index(over)]
            difficult[numbers[over]] = ~arrays.to_numpy(square <= stop)[over]
            left = arrays.index(np.flatnonzero(going))
            numbers = numbers[going]
            if not len(numbers):
                break
            bounds, stop, last, square = bounds[left], stop[left], last[left], square[left]
            solution, residual, scores = solution[left], residual[left], scores[left]
            search, search_scores = search[left], search_scores[left]
        turn = cast(square / last)[:, None]
        search, search_scores = residual + turn * search, scores + turn * search_scores
    result = arrays.double(result) * scale
    usable = xp.isfinite(result).all(-1)[:, None]
    return xp.where(usable, result, point.residual), difficult
