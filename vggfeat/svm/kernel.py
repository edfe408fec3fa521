"""Products with the rows of a table, by their inner products where these are cheaper.

N = rows of the table, n = rows that are meant, D = length of a descriptor, P = problems.

A weight vector is a combination of the rows (x, s), where s is the constant whose weight gives the intercept. The
Newton solver keeps its n coefficients beta; what it needs of the rows are products with the n x n matrix K of their
inner products.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from vggfeat.svm.arrays import NUMPY, Array, Arrays, Rows, combine, times

# Of the rows in float64 at a time, some of their columns, while inner products are computed.
_COLUMN_BYTES = 1 << 28
# Above, inner products that are not needed now are given up for others.
_KEPT_BYTES = 1 << 32
# With more rows than this times D, products with the rows cost less than products with their inner products, which
# have to be computed first.
_ROWS_FROM = 1.25
# Part of its mean that is added to a diagonal where rounding errors leave no solution.
_SHIFT = 1e-13


@np.errstate(over="ignore", invalid="ignore")
def duality_gaps(
    x: NDArray[np.floating],
    rows: Rows,
    signs: NDArray[np.int8],
    bounds: NDArray[np.float64],
    coef: NDArray[np.float64],
    intercept: NDArray[np.float64],
    scaling: float,
    arrays: Arrays = NUMPY,
    beta: NDArray[np.float64] | None = None,
    enough: float = 0.0,
) -> NDArray[np.float64]:
    """Compute the relative duality gap of P solutions from the rows, in float64.

    With v = (w, b / s) and v' = the sum of 2 C weight slack y (x, s) over the rows, which is the best v for these
    slacks, the dual objective at the slacks is the primal one at v less half of |v - v'|^2.

    Parameters
    ----------
    x : (N, D)
    rows : (n,)
    signs, bounds : (P, n)
        bounds = 2 C times the weight of the row.
    coef, intercept : (P, D), (P,)
    scaling : float
        s.
    beta : (P, n), optional
        Combinations of rows that gave the solutions. Near them is another point of the dual problem, which is better
        at large C, where the slacks are known with few digits; tried where the gap is above `enough`.

    Returns
    -------
    (P,) float64
    """
    slack = np.maximum(0, 1 - signs * (times(x, rows, coef, arrays) + intercept).T)  # (P, n)
    pull = bounds * slack * signs
    step = coef - combine(pull, x, rows, arrays)  # (P, D)
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


class Kernel(ABC):
    """The matrix K of n rows, in memory or not."""

    rows: int
    """n"""
    cost: float
    """Multiplications of one product with a vector."""
    squares: Array
    """(n,) squared lengths of the rows."""

    def __init__(self, held: Array, arrays: Arrays) -> None:
        self._held, self.arrays = held, arrays
        self._single: Array = None
        self.rows = len(held)

    def _in_precision_of(self, like: Array) -> Array:
        """Return what is in memory in the precision of another array, float64 or float32."""
        if like.dtype == self._held.dtype:
            return self._held
        if self._single is None:
            xp = self.arrays.xp
            self._single = xp.asarray(self._held, dtype=xp.float32)
        return self._single

    @abstractmethod
    def times(self, beta: Array) -> Array:
        """Multiply (P, n) by K, in the precision of beta, float64 or float32."""

    @abstractmethod
    def direct_cost(self, active: Array) -> Array:
        """Return about how many multiplications `newton_step` takes at so many active rows."""

    @abstractmethod
    def newton_step(self, active: Array, bounds: Array, step: Array, right: Array) -> Array | None:
        """Solve d + u K d = r for one problem, where u is `bounds` at the active rows and 0 elsewhere.

        Parameters
        ----------
        active : (k,) row numbers
        bounds : (k,)
            u of the active rows.
        step : (n,)
            r.
        right : (k,)
            r / u - K r', where r' is r without its active rows; the active rows of that.

        Returns
        -------
        (n,), or None
            None if rounding errors leave no positive definite matrix.
        """

    def _dual_step(self, block: Array, active: Array, bounds: Array, step: Array, right: Array) -> Array | None:
        """At the active rows, of inner products block (k, k), solve (1 / u + K) d = r / u - K r'; elsewhere d = r."""
        part = self._solve_shifted(block, 1 / bounds, right)
        if part is None:
            return None
        solution = step * 1.0
        solution[active] = part
        return solution

    def _solve_shifted(self, matrix: Array, diagonal: Array | float, right: Array) -> Array | None:
        """Solve with numbers added to the diagonal, in place; a little more where rounding errors leave no solution."""
        mean = self.arrays.xp.einsum("nn->", matrix) / max(1, len(matrix))
        places = self.arrays.index(np.arange(len(matrix)))
        for more in (diagonal, _SHIFT * mean):
            matrix[places, places] += more
            solution = self.arrays.solve_positive(matrix, right)
            if solution is not None:
                return solution
        return None


class HeldKernel(Kernel):
    """K in memory, and once more in float32 as soon as it is needed: 12 n n bytes."""

    def __init__(self, gram: Array, arrays: Arrays) -> None:
        super().__init__(gram, arrays)
        self.cost = float(self.rows) ** 2
        self.squares = arrays.xp.einsum("nn->n", gram)

    def times(self, beta: Array) -> Array:
        """Multiply (P, n) by K."""
        return self.arrays.product(beta, self._in_precision_of(beta))

    def direct_cost(self, active: Array) -> Array:
        """Return about how many multiplications `newton_step` takes."""
        return _cholesky_cost(active)

    def newton_step(self, active: Array, bounds: Array, step: Array, right: Array) -> Array | None:
        """Solve d + u K d = r for one problem."""
        return self._dual_step(self._held[active][:, active], active, bounds, step, right)


class RowKernel(Kernel):
    """Without K, for n larger than D: the rows with their constant, 12 n (D + 1) bytes, float32 included."""

    def __init__(self, x: Array, arrays: Arrays) -> None:
        super().__init__(x, arrays)
        self._length = x.shape[1]
        self.cost = 2.0 * self.rows * self._length
        self.squares = arrays.xp.einsum("nd,nd->n", x, x)

    def times(self, beta: Array) -> Array:
        """Multiply (P, n) by K."""
        rows = self._in_precision_of(beta)
        return self.arrays.product(self.arrays.product(beta, rows), rows.T)

    def direct_cost(self, active: Array) -> Array:
        """Return about how many multiplications `newton_step` takes."""
        small = active.clip(None, self._length)
        return _cholesky_cost(small) + 0.5 * active * small * self._length

    def newton_step(self, active: Array, bounds: Array, step: Array, right: Array) -> Array | None:
        """Solve d + u K d = r for one problem."""
        rows = self._held[active]
        if len(rows) <= self._length:
            return self._dual_step(rows @ rows.T, active, bounds, step, right)
        # The same system for the weight vector v = d x: (1 + x' u x) v = r x, of D + 1 numbers.
        weights = self._solve_shifted((rows * bounds[:, None]).T @ rows, 1.0, step @ self._held)
        if weights is None:
            return None
        solution = step * 1.0
        solution[active] -= bounds * (rows @ weights)
        return solution


def _cholesky_cost(size: Array) -> Array:
    # Twice what it takes, as LAPACK is slower than a product; the square is for copies.
    return size**3 / 3 + 30 * size**2


class Gram:
    """Inner products of rows (x, s) of a table (N, D); grows with the rows that are asked for."""

    def __init__(self, x: NDArray[np.floating], scaling: float, arrays: Arrays) -> None:
        self._x, self._scaling, self._arrays = x, scaling, arrays
        self._known = np.empty(0, dtype=np.int64)
        self._gram: Array = arrays.zeros(0, 0)

    def kernel(self, rows: Rows) -> Kernel:
        """Return the kernel of n rows, given by different numbers."""
        if len(rows) > _ROWS_FROM * self._x.shape[1]:
            own = self._arrays.zeros(len(rows), self._x.shape[1] + 1)
            own[:, :-1] = self._arrays.asarray(self._x[rows])
            own[:, -1] = self._scaling
            return RowKernel(own, self._arrays)
        new = np.setdiff1d(rows, self._known)
        if len(new):
            self._learn(new, rows)
        if np.array_equal(rows, self._known):
            return HeldKernel(self._gram, self._arrays)
        order = np.argsort(self._known)
        places = self._arrays.index(order[np.searchsorted(self._known, rows, sorter=order)])
        return HeldKernel(self._gram[places][:, places], self._arrays)

    def bytes_for(self, rows: Rows) -> int:
        """Return the memory that `kernel` takes for n rows, and products with it in float32.

        Counted are K in float64, once more while it is computed or of some of the known rows, and in float32; or the
        rows themselves, likewise.
        """
        count, length = len(rows), self._x.shape[1]
        if count > _ROWS_FROM * length:
            return 20 * count * (length + 1)
        if np.array_equal(rows, self._known):
            return 4 * count**2
        return (12 if np.isin(rows, self._known).all() else 20) * count**2

    def _learn(self, new: Rows, needed: Rows) -> None:
        total = len(self._known) + len(new)
        if not len(self._known) or 8 * total**2 > _KEPT_BYTES:
            self._gram = self._arrays.zeros(0, 0)
            self._gram, self._known = self._block(needed), needed
            return
        old, grown = len(self._known), self._arrays.zeros(total, total)
        grown[:old, :old] = self._gram
        grown[old:, :old] = self._block(new, self._known)
        grown[:old, old:] = grown[old:, :old].T
        grown[old:, old:] = self._block(new)
        self._gram, self._known = grown, np.concatenate([self._known, new])

    def _block(self, rows: Rows, others: Rows | None = None) -> Array:
        """Return the inner products of some rows with others, or with themselves, which takes half the time."""
        step = max(64, _COLUMN_BYTES // (8 * len(rows)))
        block: Array = None
        for start in range(0, self._x.shape[1], step):
            part = self._arrays.asarray(self._x[rows, start : start + step])
            if others is None:
                product = self._arrays.inner_products(part)
            else:
                other = self._arrays.asarray(self._x[others, start : start + step])
                product = self._arrays.product(part, other.T)
            if block is None:
                block = product
            else:
                block += product
        block += self._scaling**2
        return block
