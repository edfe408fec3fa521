"""A preconditioner for the systems of the Newton solver, of a few approximate eigenvectors of K.

n = training rows, P = problems, k = vectors. K (n, n) = inner products of the rows, see `kernel`.

Descriptors have much in common: a few eigenvalues of K are large, and for these conjugate gradients need most of their
steps. The operator of a problem, on weight vectors, is H = 1 + sum over active rows of u x x'. In the span of k
orthonormal weight vectors q it is taken for its diagonal there, 1 + sum of u (x q)^2, and outside for its mean there.
With v (n,) such that v K v' = 0 for two of them and v K v = 1 for one, the weight vectors q = sum of v x are
orthonormal, eigenvectors or not, so that the preconditioner is symmetric and positive in any case.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from vggfeat.svm.arrays import Array
from vggfeat.svm.kernel import Kernel

# Vectors at most; for each solution that they serve, as they cost three products each; and for each row.
_MOST, _EACH, _A_ROW = 128, 2, 0.25
# Products with all of them before they are taken.
_POWER = 2
# Part of the largest eigenvalue that is seen in float32.
_SEEN = 1e-6


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
