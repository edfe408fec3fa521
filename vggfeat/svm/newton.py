"""Newton's method for many linear SVMs at once.

n = training rows, P = problems. K (n, n) = inner products of the rows, see `products`.

A problem has labels y (n,), and bounds u (n,) = 2 C times the weight of each row, 0 for a row that takes no part. Its
weight vector is w = sum of beta x, so |w|^2 = beta K beta, and the rows score f = K beta. With slack
s = max(0, 1 - y f) the objective is

    primal = 0.5 beta f + 0.5 sum u s^2

The gradient, as a combination of rows, has the coefficients beta - u s y =: -r. The numbers u s are a point of the
dual problem too, and the dual objective there is primal - 0.5 r K r: each gradient is a certificate. So is every
a >= 0, near beta y for example: the dual objective is sum a - 0.5 |sum a y x|^2 - 0.5 sum a^2 / u.

Each step solves d + u K d = r with u = 0 at the rows without slack, which would end it all if these stayed the same
rows (see `directions`). Then it goes as far in that direction as the objective falls, which can be found exactly, as
it is quadratic in pieces. This is Newton's method for the primal problem [1]_, [2]_; it ends after finitely many steps.

.. [1] O. Chapelle: Training a support vector machine in the primal. Neural Computation 19, 2007.
.. [2] S. S. Keerthi, D. DeCoste: A modified finite Newton method for fast solution of large scale linear SVMs.
   JMLR 6, 2005.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from vggfeat.svm.arrays import Array, Arrays
from vggfeat.svm.directions import Point, directions
from vggfeat.svm.products import Products

# After so many steps in a row that don't halve the gap, conjugate gradients in float32 count as not enough.
_SLOW = 3
# After so many in a row that don't lower the objective by this part, although float64 is in use, nothing will.
_STILL, _VISIBLE = 2, 1e-13
# Turning points of the objective along a line that are looked at, and how flat it must be there.
_TURNS, _FLAT = 50, 1e-3
# Rounding errors grow with the length of a step; a Newton step that should be much longer is none.
_LONGEST = 8.0


@dataclass(kw_only=True)
class State:
    """P problems, and where they stand."""

    signs: Array
    """(P, n) y: 1 or -1; anything where bounds are 0."""
    bounds: Array
    """(P, n) u."""
    beta: Array
    """(P, n)"""
    scores: Array
    """(P, n) f, also of rows that take no part."""
    gap: Array
    """(P,) relative duality gap, (primal - dual) / primal."""
    primal: Array
    """(P,)"""
    hard: Array
    """(P,) bool: conjugate gradients in float32 are not enough."""
    slow: Array
    """(P,) steps in a row that did not halve the gap."""
    still: Array
    """(P,) steps in a row that did not lower the objective to be seen."""
    steps: Array
    """(P,) all Newton steps."""

    @classmethod
    def at_zero(cls, signs: Array, bounds: Array, arrays: Arrays) -> Self:
        """Return the state at beta = 0."""
        rows, numbers = (lambda: arrays.zeros(*signs.shape)), (lambda: arrays.zeros(len(signs)))
        return cls(
            signs=signs,
            bounds=bounds,
            beta=rows(),
            scores=rows(),
            gap=numbers() + np.inf,
            primal=numbers() + np.inf,
            hard=numbers() > 0,
            slow=numbers(),
            still=numbers(),
            steps=numbers(),
        )

    def some(self, chosen: Array) -> Self:
        """Return some of the problems, by number; a copy."""
        return type(self)(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def update(self, chosen: Array, part: "State") -> None:
        """Take over where some of the problems stand, by number."""
        for field in fields(self):
            if field.name not in ("signs", "bounds"):
                getattr(self, field.name)[chosen] = getattr(part, field.name)


# Where a problem is beyond float32, or float64, a direction is not finite, and not taken.
@np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")
def solve(products: Products, state: State, tolerance: float, max_steps: int, arrays: Arrays) -> None:
    """Solve problems from where they stand, in place.

    Parameters
    ----------
    products : Products
    state : State
        A problem that is not solved keeps the gap that it has.
    tolerance : float
        Relative duality gap at which a problem is solved.
    max_steps : int
        Newton steps, at most.
    arrays : Arrays
    """
    numbers = np.arange(len(state.signs))
    part = state.some(arrays.index(numbers))
    part.slow, part.still, part.primal = part.slow * 0, part.still * 0, part.primal + np.inf
    for step in range(max_steps + 1):
        point = _evaluate(products, part, tolerance, arrays)
        going = arrays.to_numpy((part.gap > tolerance) & (part.still < _STILL)) & (step < max_steps)
        if not going.all():
            over = np.flatnonzero(~going)
            state.update(arrays.index(numbers[over]), part.some(arrays.index(over)))
            numbers, left = numbers[going], arrays.index(np.flatnonzero(going))
            if not len(numbers):
                return
            part, point = part.some(left), point.some(left)
        direction, difficult = directions(products, point, part.hard, arrays)
        part.hard = part.hard | difficult
        reached = products.times(part.beta + direction)
        length = _line_search(part, direction, reached - part.scores, arrays)[:, None]
        part.beta = part.beta + length * direction
        # A full step ends exactly where it should, so that rounding errors don't add up over the steps.
        part.scores = arrays.xp.where(length == 1, reached, part.scores + length * (reached - part.scores))
        part.steps += 1


def _evaluate(products: Products, state: State, tolerance: float, arrays: Arrays) -> Point:
    """Compute gap and objective where the problems stand, and what a step needs."""
    xp = arrays.xp
    slack = (1 - state.signs * state.scores).clip(0, None) * (state.bounds > 0)
    pull = state.bounds * slack
    residual = pull * state.signs - state.beta
    scores = products.times(residual)
    primal = 0.5 * (_dots(xp, state.beta, state.scores) + _dots(xp, pull, slack))
    square = _dots(xp, residual, scores)
    gap = abs(0.5 * square / primal)
    lower = primal < state.primal * (1 - _VISIBLE)
    state.still = xp.where(lower, 0.0, state.still + state.hard)
    state.slow = xp.where(gap < 0.5 * state.gap, 0.0, state.slow + 1)
    state.hard = state.hard | ~lower | (state.slow >= _SLOW)
    state.gap, state.primal = gap, primal
    stuck = arrays.index(np.flatnonzero(arrays.to_numpy((state.still > 0) & (gap > tolerance))))
    if len(stuck):
        part = state.some(stuck)
        # A difference of large numbers: below 0 it is a rounding error, and never known to be less than one.
        other = abs(part.primal - _dual_at_beta(products, part, xp)) / part.primal
        state.gap[stuck] = xp.minimum(part.gap, other.clip(np.finfo(float).eps, None))
    return Point(
        slack=slack * state.signs,
        bounds=state.bounds * (slack > 0),
        beta=state.beta,
        residual=residual,
        scores=scores,
        square=square,
        target=2 * tolerance * primal,
    )


def _dual_at_beta(products: Products, state: State, xp: Any) -> Array:
    """Compute the dual objective at beta y, or 0 where that is below, (P,).

    At large C a rounding error of f is a large one of u s, but beta is solved for.
    """
    used = state.bounds > 0
    alpha = (state.beta * state.signs).clip(0, None) * used
    beta = alpha * state.signs
    square = _dots(xp, beta, products.times(beta)) + _dots(xp, alpha, alpha / xp.where(used, state.bounds, 1.0))
    return alpha.sum(-1) - 0.5 * square


def _line_search(state: State, direction: Array, scores: Array, arrays: Arrays) -> Array:
    """Find how far the objective falls along directions (P, n) with scores K d (P, n); (P,).

    Its derivative there is linear in pieces and grows; Newton's method for its zero, kept between bounds.
    """
    xp = arrays.xp
    slope, bend = _dots(xp, state.scores, direction), _dots(xp, direction, scores)
    margins, moves = 1 - state.signs * state.scores, state.signs * scores
    steep = abs(slope - _dots(xp, state.bounds * margins.clip(0, None), moves))
    length = arrays.zeros(len(slope)) + 1
    low, high = length * 0, length * _LONGEST
    for _ in range(_TURNS):
        slack = margins - length[:, None] * moves
        pull = state.bounds * (slack > 0) * moves
        derivative = slope + length * bend - _dots(xp, pull, slack)
        found = (abs(derivative) <= _FLAT * steep) & xp.isfinite(derivative)
        if found.all():
            break
        low, high = xp.where(derivative < 0, length, low), xp.where(derivative > 0, length, high)
        curvature = bend + _dots(xp, pull, moves)
        # Where there is no direction, there is no curvature.
        better = length - derivative / xp.where(curvature > 0, curvature, 1.0)
        better = xp.where((better > low) & (better < high), better, 0.5 * (low + high))
        length = xp.where(found, length, better)
    return xp.where(found, length, low)


def _dots(xp: Any, first: Array, second: Array) -> Array:
    """Return the inner products of (P, n) and (P, n), (P,)."""
    return xp.einsum("pn,pn->p", first, second)
