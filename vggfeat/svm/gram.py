"""The inner products of the rows of a table, computed once for all fits that need them.

N = rows of the table, n = rows that are meant, D = length of a descriptor.
"""

import numpy as np
from numpy.typing import NDArray

from vggfeat.svm.arrays import Array, Arrays
from vggfeat.svm.products import GramProducts, Products, RowProducts

# Above, inner products that are not needed now are given up for others.
_KEPT_BYTES = 1 << 32
# Of the rows in float64, a few columns at a time.
_CHUNK_BYTES = 1 << 28
# With more rows than this times D, products with the rows cost less than products with their inner products, which
# have to be computed first.
_ROWS_FROM = 1.25


class Gram:
    """Inner products of rows (x, s) of a table; grows with the rows that are asked for.

    Parameters
    ----------
    x : (N, D)
    scaling : float
        s.
    arrays : Arrays
    """

    def __init__(self, x: NDArray[np.floating], scaling: float, arrays: Arrays) -> None:
        self._x, self._scaling, self._arrays = x, scaling, arrays
        self._known = np.empty(0, dtype=np.int64)
        self._gram: Array = arrays.zeros(0, 0)

    def products(self, rows: NDArray[np.int64]) -> Products:
        """Return products with the inner products of n rows, given by different numbers."""
        if len(rows) > _ROWS_FROM * self._x.shape[1]:
            own = self._arrays.zeros(len(rows), self._x.shape[1] + 1)
            own[:, :-1] = self._arrays.asarray(self._x[rows])
            own[:, -1] = self._scaling
            return RowProducts(own, self._arrays)
        new = np.setdiff1d(rows, self._known)
        if len(new):
            self._learn(new, rows)
        if np.array_equal(rows, self._known):
            return GramProducts(self._gram, self._arrays)
        order = np.argsort(self._known)
        places = self._arrays.index(order[np.searchsorted(self._known, rows, sorter=order)])
        return GramProducts(self._gram[places][:, places], self._arrays)

    def _learn(self, new: NDArray[np.int64], needed: NDArray[np.int64]) -> None:
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

    def _block(self, rows: NDArray[np.int64], others: NDArray[np.int64] | None = None) -> Array:
        """Return the inner products of some rows with others, or with themselves, which takes half the time."""
        step = max(64, _CHUNK_BYTES // (8 * len(rows)))
        block: Array = None
        for start in range(0, self._x.shape[1], step):
            part = self._arrays.asarray(self._x[rows, start : start + step])
            other = part if others is None else self._arrays.asarray(self._x[others, start : start + step])
            product = part @ other.T
            if block is None:
                block = product
            else:
                block += product
        block += self._scaling**2
        return block
