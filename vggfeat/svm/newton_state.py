"""How far the Newton solver is with many linear SVMs at once.

n = training rows, P = problems; the other letters are those of `newton_steps`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from vggfeat.svm.arrays import Array, Arrays


@dataclass(kw_only=True)
class _OfProblems:
    """Arrays with an entry for each of P problems."""

    def some(self, chosen: Array) -> Self:
        """Return some of the problems, by number; a copy."""
        return type(self)(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def update(self, chosen: Array, part: Self) -> None:
        """Take over what is known of some of the problems."""
        for field in fields(self):
            getattr(self, field.name)[chosen] = getattr(part, field.name)


@dataclass(kw_only=True)
class State(_OfProblems):
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
            rough=numbers() > 0,
            slow=numbers(),
            still=numbers(),
            steps=numbers(),
        )

    @classmethod
    def joined(cls, states: Sequence["State"], arrays: Arrays) -> Self:
        """Return the problems of several states, one after the other; a copy."""
        join = arrays.xp.concatenate
        return cls(**{field.name: join([getattr(one, field.name) for one in states]) for field in fields(cls)})


@dataclass(kw_only=True)
class Point(_OfProblems):
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
