"""Inner products of the training rows, by which the solver knows them.

n = training rows, D = length of a descriptor, P = problems.

A weight vector is a combination of the rows (x, s), where s is the constant that stands for the intercept. The solver
keeps the n coefficients; what it needs of the rows are products with the n x n matrix K of their inner products.
"""

from typing import Protocol

import numpy as np

from vggfeat.svm.arrays import Array, Arrays

_SHIFT = 1e-13


class Products(Protocol):
    """K, held or not."""

    rows: int
    """n"""
    cost: float
    """Multiplications of one product with a vector."""
    mean_square: float
    """Of the lengths of the rows."""

    def times(self, beta: Array) -> Array:
        """Multiply (P, n) by K, in the precision of beta, float64 or float32."""

    def direct_cost(self, active: Array) -> Array:
        """Return about how many multiplications `newton_step` takes at so many active rows."""

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


class GramProducts:
    """K in memory, and once more in float32 as soon as it is needed: 12 n n bytes."""

    def __init__(self, gram: Array, arrays: Arrays) -> None:
        self._gram, self._arrays = gram, arrays
        self._single: Array = None
        self.rows = len(gram)
        self.cost = float(self.rows) ** 2
        self.mean_square = float(arrays.xp.einsum("nn->", gram)) / self.rows

    def times(self, beta: Array) -> Array:
        """Multiply (P, n) by K, in the precision of beta."""
        if beta.dtype == self._gram.dtype:
            return beta @ self._gram
        if self._single is None:
            self._single = self._arrays.single(self._gram)
        return beta @ self._single

    def direct_cost(self, active: Array) -> Array:
        """Return about how many multiplications `newton_step` takes at so many active rows."""
        return _cholesky_cost(active)

    def newton_step(self, active: Array, bounds: Array, step: Array, right: Array) -> Array | None:
        """Solve d + u K d = r for one problem, see `Products`."""
        return _dual_step(self._gram[active][:, active], active, bounds, step, right, self._arrays)


class RowProducts:
    """Without K, for n larger than D: the rows with their constant, 12 n (D + 1) bytes, float32 included."""

    def __init__(self, x: Array, arrays: Arrays) -> None:
        self._x, self._arrays = x, arrays
        self._single: Array = None
        self.rows, self._length = x.shape
        self.cost = 2.0 * self.rows * self._length
        self.mean_square = float(arrays.xp.einsum("nd,nd->", x, x)) / self.rows

    def times(self, beta: Array) -> Array:
        """Multiply (P, n) by K, in the precision of beta."""
        if beta.dtype == self._x.dtype:
            return (beta @ self._x) @ self._x.T
        if self._single is None:
            self._single = self._arrays.single(self._x)
        return (beta @ self._single) @ self._single.T

    def direct_cost(self, active: Array) -> Array:
        """Return about how many multiplications `newton_step` takes at so many active rows."""
        small = active.clip(None, self._length)
        return _cholesky_cost(small) + 0.5 * active * small * self._length

    def newton_step(self, active: Array, bounds: Array, step: Array, right: Array) -> Array | None:
        """Solve d + u K d = r for one problem, see `Products`."""
        rows = self._x[active]
        if len(rows) <= self._length:
            return _dual_step(rows @ rows.T, active, bounds, step, right, self._arrays)
        # The same system for the weight vector v = d x: (1 + x' u x) v = r x, of D + 1 numbers.
        weights = _solve_shifted((rows * bounds[:, None]).T @ rows, 1.0, step @ self._x, self._arrays)
        if weights is None:
            return None
        solution = step * 1.0
        solution[active] -= bounds * (rows @ weights)
        return solution


def _dual_step(block: Array, active: Array, bounds: Array, step: Array, right: Array, arrays: Arrays) -> Array | None:
    """At the active rows solve (1 / u + K) d = r / u - K r'; elsewhere d = r."""
    part = _solve_shifted(block, 1 / bounds, right, arrays)
    if part is None:
        return None
    solution = step * 1.0
    solution[active] = part
    return solution


def _solve_shifted(matrix: Array, diagonal: Array | float, right: Array, arrays: Arrays) -> Array | None:
    """Solve with numbers added to the diagonal, in place; and a little more where rounding errors leave no solution."""
    mean = float(arrays.xp.einsum("nn->", matrix)) / max(1, len(matrix))
    places = arrays.index(np.arange(len(matrix)))
    for more in (diagonal, _SHIFT * mean):
        matrix[places, places] += more
        solution = arrays.solve_positive(matrix, right)
        if solution is not None:
            return solution
    return None


def _cholesky_cost(size: Array) -> Array:
    # Twice what it takes, as LAPACK is slower than a product; the square is for copies.
    return size**3 / 3 + 30 * size**2
