"""What is to be learnt of an image, given its crop.

N = images of a list, n = images of a batch.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vggfeat.training.crops import Crops

NO_TARGET = -100
"""Target of an image that counts nowhere, because it can't be read."""


class Labels(Protocol):
    """What is to be learnt of images."""

    def unreadable(self, count: int) -> NDArray[Any]:
        """Return the targets, (count, ...), of as many images that can't be read."""

    def of(self, rows: NDArray[np.int64], sizes: NDArray[np.int64], crops: Crops) -> NDArray[Any]:
        """Return the targets, (n, ...), of crops of the images of n rows.

        Parameters
        ----------
        rows : ndarray (n,)
            Of the list.
        sizes : ndarray (n, 2)
            Height and width of the images before any reduction.
        crops : Crops
            Of the decoded images.
        """


class ClassLabels:
    """The class of each image, whatever its crop.

    Parameters
    ----------
    targets : ndarray (N,), int64
        As in `LabelledImages`.
    """

    def __init__(self, targets: NDArray[np.int64]) -> None:
        self._targets = targets

    def unreadable(self, count: int) -> NDArray[np.int64]:
        """Return (count,) times `NO_TARGET`."""
        return np.full(count, NO_TARGET)

    def of(self, rows: NDArray[np.int64], sizes: NDArray[np.int64], crops: Crops) -> NDArray[np.int64]:
        """Return (n,) numbers of classes."""
        return self._targets[rows]
