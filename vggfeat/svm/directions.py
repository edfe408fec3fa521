"""The directions of Newton's method for many linear SVMs at once: by conjugate gradients or Cholesky.

n = training rows, P = problems, k = vectors. K (n, n) = inner products of the rows, see `kernel`; the other letters are
those of `newton_steps`.

They solve d + u K d = r. Conjugate gradients take all problems together, preconditioned and in float32, as a direction
needs few digits. With growing C the systems become worse conditioned, but have fewer active rows: then Cholesky solves
them one after the other.

Descriptors have much in common: a few eigenvalues of K are large, and for these conjugate gradients need most of their
steps. The operator of a problem, on weight vectors, is H = 1 + sum over active rows of u x x'. In the span of k
orthonormal weight vectors q it is taken for its diagonal there, 1 + sum of u (x q)^2, and outside for its mean there.
With v (n,) such that v K v' = 0 for two of them and v K v = 1 for one, the weight vectors q = sum of v x are
orthonormal, eigenvectors or not, so that the preconditioner is symmetric and positive in any case.
"""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

import numpy as np

from vggfeat.svm.arrays import Array
from vggfeat.svm.kernel import Kernel

# Cholesky at once where it costs less than this many products with K, as conjugate gradients seldom take fewer, and
# with so few active rows that it costs nothing.
_CHEAP, _FEW = 5, 256
# Cholesky never where it costs more; then conjugate gradients are in float64 where float32 is not enough.
_DEAR = 1000
# Conjugate gradients end when the gradient of the quadratic problem is this part of what it was,
_FORCING = 0.01
# or after as many products as Cholesky costs, these at least and at most; the problem then counts as hard.
_PATIENCE = (30, 300)
_PATIENCE_DOUBLE = 1000

# Vectors at most; for each solution that they serve, as they cost three products each; and for each row.
_MOST, _EACH, _A_ROW = 128, 2, 0.25
# Products with all of them before they are taken.
_POWER = 2
# Part of the largest eigenvalue that is seen in float32.
_SEEN = 1e-6


@dataclass(kw_only=True)
class OfProblems:
    """Arrays with an entry for each of P problems."""

    def some(self, chosen: Array) -> Self:
        """Return some of the problems, by number; a copy."""
        return type(self)(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def update(self, chosen: Array, part: Self) -> None:
        """Take over what is known of some of the problems."""
        for field in fields(self):
            getattr(self, field.name)[chosen] = getattr(part, field.name)


@dataclass(kw_only=True)
class Point(OfProblems):
    """What the directions of P problems depend on."""

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Preconditioner:
    """Vectors of one K; all in float32."""

    xp: Any
    """numpy or torch."""
    vectors: Array
    """(k, n) v."""
    scores: Array
    """(k, n) K v = x q."""
    rest: Array
    """(n,) squared lengths of the rows outside the span."""

    @classmethod
    @np.errstate(all="ignore")  # What is not finite is found in the end.
    def of_kernel(cls, kernel: Kernel, solutions: int) -> Self | None:
        """Compute it for about so many solutions by subspace iteration; None where float32 can't hold the numbers."""
        arrays, xp = kernel.arrays, kernel.arrays.xp
        count = int(min(_MOST, _EACH * solutions, 1 + _A_ROW * kernel.rows))
        begin = arrays.asarray(np.random.default_rng(0).standard_normal((count, kernel.rows)))
        vectors = xp.asarray(begin, dtype=xp.float32)
        for _ in range(_POWER):
            vectors = xp.linalg.qr(kernel.times(vectors).T)[0].T
        scores = kernel.times(vectors)
        inner = scores @ vectors.T
        if not xp.isfinite(inner).all():
            return None
        values, turn = xp.linalg.eigh(inner)
        _, seen = arrays.members(values > _SEEN * values[-1])
        turn = (turn[:, seen] / values[seen] ** 0.5).T
        vectors, scores = turn @ vectors, turn @ scores
        rest = xp.asarray(kernel.squares, dtype=xp.float32) - (scores**2).sum(0)
        return cls(xp=xp, vectors=vectors, scores=scores, rest=rest.clip(0, None))

    def inverse(self, bounds: Array) -> "Inverse":
        """Return one over what H is taken for where u is `bounds`, (P, n) float32, 0 at rows that are not active."""
        others = self.xp.asarray((bounds > 0).sum(-1) - len(self.vectors), dtype=self.xp.float32).clip(1, None)
        outside = 1 / (1 + bounds @ self.rest / others)[:, None]
        inside = 1 / (1 + bounds @ (self.scores**2).T)
        return Inverse(vectors=self.vectors, scores=self.scores, outside=outside, inside=inside - outside)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverse:
    """One over what H is taken for in P problems."""

    vectors: Array
    """(k, n) v."""
    scores: Array
    """(k, n) K v."""
    outside: Array
    """(P, 1)"""
    inside: Array
    """(P, k) less that outside."""

    def some(self, chosen: Array) -> Self:
        """Return it for some of the problems."""
        return replace(self, outside=self.outside[chosen], inside=self.inside[chosen])

    def solve(self, residual: Array, scores: Array) -> tuple[Array, Array]:
        """Solve for a weight vector of coefficients r and scores K r, (P, n) each; return z and K z."""
        inside = self.inside * (scores @ self.vectors.T)
        return self.outside * residual + inside @ self.vectors, self.outside * scores + inside @ self.scores


def find_directions(
    kernel: Kernel, preconditioner: Preconditioner | None, point: Point, hard: Array
) -> tuple[Array, Array, Array]:
    """Solve d + u K d = r, nearly or exactly.

    `hard` (P,) bool: problems for which float32 is not enough. Returns d (P, n), and (P,) bool of the problems that
    proved to be hard, and of those that were solved in float32.
    """
    arrays, xp = kernel.arrays, kernel.arrays.xp
    active = xp.asarray((point.bounds > 0).sum(-1), dtype=xp.float64)  # (P,)
    worth = kernel.direct_cost(active) / kernel.cost
    direct = (active <= _FEW) | (worth <= _CHEAP) | (hard & (worth <= _DEAR))
    patience = xp.where(hard, float(_PATIENCE_DOUBLE), worth.clip(*_PATIENCE))
    result, difficult = arrays.zeros(*point.beta.shape), hard & ~hard
    rough, exact, solved = arrays.members(xp.where(direct, 2, xp.where(hard, 1, 0)), 3)
    for chosen, double in ((rough, False), (exact, True)):
        if len(chosen):
            helper = None if double else preconditioner
            found = _conjugate_gradients(kernel, helper, point.some(chosen), patience[chosen], double)
            result[chosen], difficult[chosen] = found
    if len(solved):
        result[solved] = _cholesky(kernel, point.some(solved))
    return result, difficult, ~direct & ~hard & ~difficult


def _cholesky(kernel: Kernel, point: Point) -> Array:
    """Solve problem by problem; the gradient itself where rounding errors leave no solution."""
    xp = kernel.arrays.xp
    active = point.bounds > 0
    rest = xp.where(active, 0.0, point.residual)
    # Where beta is 0 at all rows that are not active, which is so after a full step, there is no rest.
    pushed = kernel.times(rest) if bool((rest != 0).any()) else rest
    result, places = point.residual * 1.0, kernel.arrays.true_places(active)

    def step(number: int) -> None:
        rows = places[number]
        bounds = point.bounds[number, rows]
        # r / u = s y - beta / u, without the rounding error of a large u.
        right = point.slack[number, rows] - point.beta[number, rows] / bounds - pushed[number, rows]
        solution = kernel.newton_step(rows, bounds, point.residual[number], right)
        if solution is not None:
            result[number] = solution

    # Copies and a factor, each of the active rows squared, in float64.
    kernel.arrays.map(step, range(len(result)), size=32 * max(map(len, places)) ** 2)
    return result


def _conjugate_gradients(
    kernel: Kernel, preconditioner: Preconditioner | None, point: Point, patience: Array, double: bool
) -> tuple[Array, Array]:
    """Solve all problems together, each until its residual is small or its patience (P,) is over.

    The operator 1 + u K is symmetric in the inner product v K v' of the weight vectors.
    """
    arrays, xp = kernel.arrays, kernel.arrays.xp
    cast = partial(xp.asarray, dtype=xp.float64 if double else xp.float32)
    # With r K r = 1, so that float32 has no number that is too large for it.
    scale = xp.where(point.square > 0, point.square, 1.0)[:, None] ** 0.5
    bounds, residual, scores = cast(point.bounds), cast(point.residual / scale), cast(point.scores / scale)
    stop = xp.maximum(_FORCING**2 + 0 * point.square, 0.25 * point.target / scale[:, 0] ** 2)
    numbers = arrays.index(np.arange(len(residual)))
    result, difficult, solution = residual * 0, numbers < 0, residual * 0
    inverse = preconditioner.inverse(bounds) if preconditioner else None
    search, search_scores = inverse.solve(residual, scores) if inverse else (residual, scores)
    product = dots(xp, residual, search_scores)
    for step in range(1, int(patience.max()) + 1):
        image = search + bounds * search_scores
        length = cast(product / dots(xp, search_scores, image))[:, None]
        solution = solution + length * search
        residual = residual - length * image
        scores = kernel.times(residual)
        square = dots(xp, residual, scores)
        over, going = arrays.members((square > stop) & (step < patience))
        if len(over):
            result[numbers[over]], difficult[numbers[over]] = solution[over], ~(square <= stop)[over]
            if not len(going):
                break
            numbers, patience, stop, product = (one[going] for one in (numbers, patience, stop, product))
            bounds, solution, residual, scores = (one[going] for one in (bounds, solution, residual, scores))
            search, search_scores = search[going], search_scores[going]
            inverse = inverse.some(going) if inverse else None
        better, better_scores = inverse.solve(residual, scores) if inverse else (residual, scores)
        last, product = product, dots(xp, residual, better_scores)
        turn = cast(product / last)[:, None]
        search, search_scores = better + turn * search, better_scores + turn * search_scores
    result = xp.asarray(result, dtype=xp.float64) * scale
    usable = xp.isfinite(result).all(-1)[:, None]
    return xp.where(usable, result, point.residual), difficult


def dots(xp: Any, first: Array, second: Array) -> Array:
    """Return the inner products of (P, n) and (P, n), (P,) float64."""
    return xp.asarray(xp.einsum("pn,pn->p", first, second), dtype=xp.float64)
