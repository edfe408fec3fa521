"""What comes out of a fit.

K = classes, D = length of a descriptor, G = values of C, m = rows to score.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import FitError
from vggfeat.svm.certificate import times
from vggfeat.svm.checks import check_descriptors


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModel:
    """K linear functions of a descriptor."""

    coef: NDArray[np.float64]
    """(K, D)"""
    intercept: NDArray[np.float64]
    """(K,)"""
    C: NDArray[np.float64]
    """(K,) the value that each class was fitted with."""
    converged: NDArray[np.bool_]
    """(K,) False where the solver gave up before its tolerance."""
    gap: NDArray[np.float64]
    """(K,) relative duality gap: at most this part of the objective is above the optimum. 0 = exact,
    1 = nothing is known."""

    def scores(self, descriptors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Score descriptors (m, D): signed, above 0 where the class is more likely than not; (m, K) float64.

        Raises
        ------
        FitError
            If descriptors have another length, or numbers that are not finite.
        """
        x = check_descriptors(descriptors, "to score")
        if x.shape[1] != self.coef.shape[1]:
            raise FitError(f"descriptors to score: expected length {self.coef.shape[1]}, found {x.shape[1]}")
        return times(x, np.arange(len(x)), self.coef) + self.intercept


class Sweep(NamedTuple):
    """Scores of held-out rows, for every value of C."""

    scores: NDArray[np.float64]
    """(G, K, m)"""
    converged: NDArray[np.bool_]
    """(G, K)"""
    gap: NDArray[np.float64]
    """(G, K) relative duality gap, see `LinearModel`."""
