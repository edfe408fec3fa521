"""Boxes as the four numbers that a net answers with, and back.

n = images, k = boxes of an image, K = classes. A box is (left, top, right, bottom) in edges, as `samples.Box`; its
numbers are (centre x, centre y, width, height), relative to a *frame*: the rectangle whose centre is (0, 0) and whose
sides are 1.
"""

import torch
from torch import Tensor

from vggfeat.training import labels

NO_TARGET = float(labels.NO_TARGET)
"""In the place of the class: the image counts nowhere."""


def encode(boxes: Tensor, frames: Tensor) -> Tensor:
    """Turn boxes into numbers.

    Parameters
    ----------
    boxes, frames : Tensor (..., 4)
        In edges, in the same pixels; shapes are broadcast. A frame is the net's window, or the whole image.

    Returns
    -------
    Tensor (..., 4)
        Centre x and width in widths of the frame, centre y and height in heights of it.
    """
    corner, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    frame_corner, frame_size = frames[..., :2], frames[..., 2:] - frames[..., :2]
    centre = (corner + size / 2 - (frame_corner + frame_size / 2)) / frame_size
    return torch.cat([centre, (size / frame_size).expand_as(centre)], dim=-1)


def decode(numbers: Tensor, frames: Tensor) -> Tensor:
    """Turn numbers into boxes: the inverse of `encode`.

    Returns
    -------
    Tensor (..., 4)
        Edges; they may lie outside of frame and image, and a box of negative width has its right edge on the left.
    """
    frame_corner, frame_size = frames[..., :2], frames[..., 2:] - frames[..., :2]
    centre = frame_corner + frame_size * (numbers[..., :2] + 0.5)
    half = frame_size * numbers[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union.

    Parameters
    ----------
    boxes, others : Tensor (..., 4)
        In edges, in the same pixels, or in any other units: the ratio is the same. Shapes are broadcast. In edges
        it is the official one of inclusive pixel numbers, whose widths are right - left + 1.

    Returns
    -------
    Tensor (...)
        From 0 to 1; 0 where a box has no area or is NaN.
    """
    corner = torch.maximum(boxes[..., :2], others[..., :2])
    inner = (torch.minimum(boxes[..., 2:], others[..., 2:]) - corner).clamp(min=0).prod(-1)
    first, second = ((b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (boxes, others))
    found = inner / (first + second - inner)
    return torch.where((first > 0) & (second > 0), found, torch.zeros_like(found))


def own_numbers(outputs: Tensor, classes: Tensor) -> Tensor:
    """Take the four outputs that belong to each image's class.

    Parameters
    ----------
    outputs : Tensor (n, 4) or (n, 4 K)
        Of fc8. With four outputs, they are those of every class.
    classes : Tensor (n,), int64
        From 0 to K - 1.

    Returns
    -------
    Tensor (n, 4)
    """
    if outputs.shape[1] == 4:
        return outputs
    return outputs.unflatten(1, (-1, 4))[torch.arange(len(outputs), device=outputs.device), classes]
