"""Newton's method for many linear SVMs at once.

n = training rows, P = problems. K (n, n) = inner products of the rows, see `kernel`.

A problem has labels y (n,), and bounds u (n,) = 2 C times the weight of each row, 0 for a row that takes no part. Its
weight vector is w = sum of beta x, so |w|^2 = beta K beta, and the rows score f = K beta. With slack
s = max(0, 1 - y f) the objective is

    primal = 0.5 beta f + 0.5 sum u s^2

The gradient, as a combination of rows, has the coefficients beta - u s y =: -r. The numbers u s are a point of the
dual problem too, and the dual objective there is primal - 0.5 r K r: each gradient is a certificate. So is every
a >= 0, near beta y for example: the dual objective is sum a - 0.5 |sum a y x|^2 - 0.5 sum a^2 / u.

Each step solves d + u K d = r with u = 0 at the rows without slack, which would end it all if these stayed the same
rows; `directions` says how. Where a direction is in float32, scores are too, until the gap is small enough; what
float64 says of it counts. The step goes as far in that direction as the objective falls, which can be found exactly,
as it is quadratic in pieces. This is Newton's method for the primal problem [1]_, [2]_; it ends after finitely many
steps.

.. [1] O. Chapelle: Training a support vector machine in the primal. Neural Computation 19, 2007.
.. [2] S. S. Keerthi, D. DeCoste: A modified finite Newton method for fast solution of large scale linear SVMs.
   JMLR 6, 2005.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from vggfeat.svm.arrays import Array, Arrays
from vggfeat.svm.directions import OfProblems, Point, Preconditioner, dots, find_directions
from vggfeat.svm.kernel import Kernel

# After so many steps in a row that don't halve the gap, conjugate gradients in float32 count as not enough.
_SLOW = 3
# After so many in a row that don't lower the objective by this part, although float64 is in use, nothing will.
_STILL, _VISIBLE = 2, 1e-13
# Turning points of the objective along a line that are tried, and how flat it must be there.
_TURNS, _FLAT = 50, 1e-3
# Rounding errors grow with the length of a step; a Newton step that should be much longer is none.
_LONGEST = 8.0


@dataclass(kw_only=True)
class State(OfProblems):
    """P problems, and how far they are solved."""

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
    """(P,) bool: float32 is not enough."""
    rough: Array
    """(P,) bool: the scores have rounding errors of float32, or of several steps."""
    slow: Array
    """(P,) steps in a row that did not halve the gap."""
    still: Array
    """(P,) steps in a row that did not lower the objective to be seen."""

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
            rough=numbers() > 0,
            slow=numbers(),
            still=numbers(),
        )

    @classmethod
    def joined(cls, states: Sequence["State"], arrays: Arrays) -> Self:
        """Return the problems of several states, one after the other; a copy."""
        join = arrays.xp.concatenate
        return cls(**{field.name: join([getattr(one, field.name) for one in states]) for field in fields(cls)})


# Where a problem is beyond float32, or float64, a direction is not finite, and not taken.
@np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")
def solve(
    kernel: Kernel, preconditioner: Preconditioner | None, state: State, tolerance: float, max_steps: int
) -> None:
    """Solve problems from the state that they are in, in place.

    Parameters
    ----------
    kernel : Kernel
    preconditioner : Preconditioner, optional
        For conjugate gradients in float32.
    state : State
        A problem that is not solved keeps the gap that it has.
    tolerance : float
        Relative duality gap at which a problem is solved.
    max_steps : int
        Newton steps, at most.
    """
    arrays, numbers = kernel.arrays, kernel.arrays.index(np.arange(len(state.signs)))
    part = state.some(numbers)
    part.slow, part.still, part.primal = part.slow * 0, part.still * 0, part.primal + np.inf
    for step in range(max_steps + 1):
        point = _evaluate(kernel, part, tolerance)
        over, going = arrays.members((part.gap > tolerance) & (part.still < _STILL) & (step < max_steps))
        if len(over):
            state.update(numbers[over], part.some(over))
            if not len(going):
                return
            numbers, part, point = numbers[going], part.some(going), point.some(going)
        direction, difficult, single = find_directions(kernel, preconditioner, point, part.hard)
        part.hard = part.hard | difficult
        reached = _reached(kernel, part, direction, single)
        length = _line_search(kernel, part, direction, reached - part.scores)[:, None]
        part.beta = part.beta + length * direction
        # A full step ends exactly where it should, so that rounding errors don't add up over the steps.
        part.scores = arrays.xp.where(length == 1, reached, part.scores + length * (reached - part.scores))
        part.rough = part.rough | single


def _evaluate(kernel: Kernel, state: State, tolerance: float) -> Point:
    """Update gap and objective, in float64 where a problem may be solved, and compute what a step needs."""
    arrays, xp = kernel.arrays, kernel.arrays.xp
    point, primal = _measure(kernel, state, tolerance)
    _, unsure = arrays.members(state.rough & (state.hard | ~(abs(point.square) > point.target)))
    if len(unsure):
        exact = kernel.times(state.beta[unsure])
        state.scores[unsure] = xp.where(xp.isfinite(exact), exact, state.scores[unsure])
        state.rough[unsure] = False
        sure, primal[unsure] = _measure(kernel, state.some(unsure), tolerance)
        point.update(unsure, sure)
    gap = abs(0.5 * point.square / primal)
    lower = primal < state.primal * (1 - _VISIBLE)
    state.still = xp.where(lower, 0.0, state.still + state.hard)
    state.slow = xp.where(gap < 0.5 * state.gap, 0.0, state.slow + 1)
    state.hard = state.hard | ~lower | (state.slow >= _SLOW)
    state.gap, state.primal = gap, primal
    _, stuck = arrays.members((state.still > 0) & (gap > tolerance))
    if len(stuck):
        part = state.some(stuck)
        # A difference of large numbers: below 0 it is a rounding error, and never known to be less than one.
        other = abs(part.primal - _dual_at_beta(kernel, part, xp)) / part.primal
        state.gap[stuck] = xp.minimum(part.gap, other.clip(np.finfo(float).eps, None))
    return point


def _measure(kernel: Kernel, state: State, tolerance: float) -> tuple[Point, Array]:
    """Compute what a step needs, and the objective (P,); in float32 where the scores are rough."""
    xp = kernel.arrays.xp
    slack = (1 - state.signs * state.scores).clip(0, None) * (state.bounds > 0)
    pull = state.bounds * slack
    residual = pull * state.signs - state.beta
    scores = _product(kernel, residual, ~state.rough)
    primal = 0.5 * (dots(xp, state.beta, state.scores) + dots(xp, pull, slack))
    point = Point(
        slack=slack * state.signs,
        bounds=state.bounds * (slack > 0),
        beta=state.beta,
        residual=residual,
        scores=scores,
        square=dots(xp, residual, scores),
        target=2 * tolerance * primal,
    )
    return point, primal


def _reached(kernel: Kernel, state: State, direction: Array, single: Array) -> Array:
    """Return the scores at the end of directions (P, n), in float32 where `single` (P,) says so."""
    xp = kernel.arrays.xp
    moved = _product(kernel, xp.where(single[:, None], direction, state.beta + direction), ~single)
    return xp.where(single[:, None], state.scores + moved, moved)


def _product(kernel: Kernel, beta: Array, double: Array) -> Array:
    """Multiply (P, n) by K, in float64 where `double` (P,) says so, elsewhere in float32."""
    xp, product = kernel.arrays.xp, beta * 0
    rough, exact = kernel.arrays.members(double)
    if len(exact):
        product[exact] = kernel.times(beta[exact])
    if len(rough):
        product[rough] = xp.asarray(kernel.times(xp.asarray(beta[rough], dtype=xp.float32)), dtype=xp.float64)
    return product


def _dual_at_beta(kernel: Kernel, state: State, xp: Any) -> Array:
    """Compute the dual objective at beta y, or 0 where that is below, (P,).

    At large C a rounding error of f is a large one of u s, but beta is solved for.
    """
    used = state.bounds > 0
    alpha = (state.beta * state.signs).clip(0, None) * used
    beta = alpha * state.signs
    square = dots(xp, beta, kernel.times(beta)) + dots(xp, alpha, alpha / xp.where(used, state.bounds, 1.0))
    return alpha.sum(-1) - 0.5 * square


def _line_search(kernel: Kernel, state: State, direction: Array, scores: Array) -> Array:
    """Find how far the objective falls along directions (P, n) with scores K d (P, n); (P,).

    Its derivative there is linear in pieces and grows; Newton's method for its zero, kept between bounds.
    """
    xp = kernel.arrays.xp
    slope, bend = dots(xp, state.scores, direction), dots(xp, direction, scores)
    margins, moves = 1 - state.signs * state.scores, state.signs * scores
    steep = abs(slope - dots(xp, state.bounds * margins.clip(0, None), moves))
    length = kernel.arrays.zeros(len(slope)) + 1
    low, high = length * 0, length * _LONGEST
    for _ in range(_TURNS):
        slack = margins - length[:, None] * moves
        pull = state.bounds * (slack > 0) * moves
        derivative = slope + length * bend - dots(xp, pull, slack)
        found = (abs(derivative) <= _FLAT * steep) & xp.isfinite(derivative)
        if found.all():
            break
        low, high = xp.where(derivative < 0, length, low), xp.where(derivative > 0, length, high)
        curvature = bend + dots(xp, pull, moves)
        # Where there is no direction, there is no curvature.
        better = length - derivative / xp.where(curvature > 0, curvature, 1.0)
        better = xp.where((better > low) & (better < high), better, 0.5 * (low + high))
        length = xp.where(found, length, better)
    return xp.where(found, length, low)
