"""Where images lie between the CPU and the device.

H, W = image sides in pixels.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class DeviceCache:
    """Images that are brought to the device when they are first needed.

    Parameters
    ----------
    upload : callable
        Makes a tensor on the device of an image.
    images : sequence of (H, W, 3) uint8
    """

    def __init__(self, upload: Callable[[NDArray[np.uint8]], Tensor], images: Sequence[NDArray[np.uint8]]) -> None:
        self._upload, self._images = upload, images
        self._kept: dict[int, Tensor] = {}

    def __getitem__(self, number: int) -> Tensor:
        if number not in self._kept:
            self._kept[number] = self._upload(self._images[number])
        return self._kept[number]

    def drop(self) -> None:
        """Make room on the device."""
        self._kept.clear()
