"""What is to be learnt of a picture, given its crop.

N = pictures of a list, n = pictures of a batch.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vggfeat.training.augmentation import Crops

NO_TARGET = -100
"""Target of a picture that counts nowhere, because it can't be read."""


class Labels(Protocol):
    """What is to be learnt of pictures."""

    def unreadable(self, count: int) -> NDArray[Any]:
        """Return the targets, (count, ...), of as many pictures that can't be read."""

    def of(self, rows: NDArray[np.int64], sizes: NDArray[np.int64], crops: Crops) -> NDArray[Any]:
        """Return the targets, (n, ...), of crops of the pictures of n rows.

        Parameters
        ----------
        rows : ndarray (n,)
            Of the list.
        sizes : ndarray (n, 2)
            Height and width of the pictures before any reduction.
        crops : Crops
            Of the decoded pictures.
        """


class ClassLabels:
    """The class of each picture, whatever its crop.

    Parameters
    ----------
    targets : ndarray (N,), int64
        As in `LabelledPictures`.
    """

    def __init__(self, targets: NDArray[np.int64]) -> None:
        self._targets = targets

    def unreadable(self, count: int) -> NDArray[np.int64]:
        """Return (count,) times `NO_TARGET`."""
        return np.full(count, NO_TARGET)

    def of(self, rows: NDArray[np.int64], sizes: NDArray[np.int64], crops: Crops) -> NDArray[np.int64]:
        """Return (n,) numbers of classes."""
        return self._targets[rows]
