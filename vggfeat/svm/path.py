"""From an easy C to the ones that are wanted, each solution starting from the one before.

n = training rows, G = values of C, P = problems.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vggfeat.svm.arrays import Array, Arrays
from vggfeat.svm.newton import State, solve
from vggfeat.svm.products import Products

# C times weight times squared length of the rows from which on starting at 0 takes longer than going there in steps,
_EASY = 1.0
# each of this factor at most, with solutions of this tolerance between.
_STRIDE, _ON_THE_WAY = 8.0, 0.1


def solve_path(
    products: Products,
    signs: NDArray[np.int8],
    weights: NDArray[np.float64],
    costs: NDArray[np.float64],
    tolerance: float,
    max_steps: int,
    arrays: Arrays,
) -> Iterator[State]:
    """Solve P problems for G values of C each.

    Parameters
    ----------
    products : Products
    signs, weights : (P, n)
        Labels 1 or -1, and what each row counts: 0 where it takes no part.
    costs : (G, P)
        Values of C, ascending in each column.
    tolerance, max_steps, arrays
        As for `vggfeat.svm.newton.solve`.

    Yields
    ------
    State
        For one value of C after the other; each time the same object, changed.
    """
    weigh = arrays.asarray(weights)
    state = State.at_zero(arrays.asarray(signs), weigh, arrays)
    mean = weights.sum(axis=1) / (weights > 0).sum(axis=1)
    easy = _EASY / (mean * products.mean_square)
    # Rows so long that the square overflows have no easy C.
    here = np.where(easy > 0, np.minimum(costs[0], easy), costs[0])
    for target in costs:
        while (here < target).any():
            _solve_at(products, state, weigh, here, max(tolerance, _ON_THE_WAY), max_steps, arrays)
            here = np.minimum(target, _STRIDE * here)
        _solve_at(products, state, weigh, here, tolerance, max_steps, arrays)
        yield state


def _solve_at(
    products: Products,
    state: State,
    weigh: Array,
    costs: NDArray[np.float64],
    tolerance: float,
    max_steps: int,
    arrays: Arrays,
) -> None:
    state.bounds = 2 * arrays.asarray(costs)[:, None] * weigh
    solve(products, state, tolerance, max_steps, arrays)
