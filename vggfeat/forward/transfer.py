"""Images on their way to the device, and values on their way back: on a GPU nothing waits for a copy."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.nets.backbone import Net


class DeviceCache:
    """Images that are brought to the device when they are first needed."""

    def __init__(self, images: Sequence[NDArray[np.uint8]], device: torch.device) -> None:
        self._images, self._device = images, device
        self._kept: dict[int, Tensor] = {}

    def __getitem__(self, number: int) -> Tensor:
        if number not in self._kept:
            self._kept[number] = upload(self._images[number], self._device)
        return self._kept[number]

    def drop(self) -> None:
        """Make room on the device."""
        self._kept.clear()


def wait_for(event: torch.cuda.Event | None) -> None:
    """Wait until an event of `BatchRunner.record_event` has come to pass."""
    if event is not None:
        event.synchronize()


def upload(image: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return an image (H, W, 3) on the device, channels first: (3, H, W)."""
    return to_device(torch.from_numpy(image), device).permute(2, 0, 1)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; of a GPU nothing waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_compute_layout(images: Tensor, model: Net) -> Tensor:
    """Bring images into the precision and the order in memory that the net runs best with."""
    return images.to(next(model.parameters()).dtype).contiguous(memory_format=torch.channels_last)
