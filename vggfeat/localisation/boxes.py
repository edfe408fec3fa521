"""Boxes as the four outputs of a net, and back; and where the windows of a dense map lie.

n = images, k = boxes of an image, K = classes, h, w = positions of a dense map, T = classes that are asked for. A box
is (left, top, right, bottom) in edges, as `samples.Box`; its *coordinates* are (centre x, centre y, width, height),
relative to a *frame*: the rectangle whose centre is (0, 0) and whose sides are 1.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.forward.settings import Size


def encode(boxes: Tensor, frames: Tensor) -> Tensor:
    """Turn boxes (..., 4) into coordinates (..., 4) in frames (..., 4), the net's window or the complete image.

    Edges are in the same pixels, and shapes are broadcast. Centre x and width come in widths of the frame, centre y
    and height in heights of it.
    """
    corner, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    frame_corner, frame_size = frames[..., :2], frames[..., 2:] - frames[..., :2]
    centre = (corner + size / 2 - (frame_corner + frame_size / 2)) / frame_size
    return torch.cat([centre, (size / frame_size).expand_as(centre)], dim=-1)


def decode(coordinates: Tensor, frames: Tensor) -> Tensor:
    """Turn coordinates into edges of boxes (..., 4): the inverse of `encode`.

    They may lie outside of frame and image, and a box of negative width has its right edge on the left.
    """
    frame_corner, frame_size = frames[..., :2], frames[..., 2:] - frames[..., :2]
    centre = frame_corner + frame_size * (coordinates[..., :2] + 0.5)
    half = frame_size * coordinates[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def areas(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4); 0 where the right edge is left of the left one."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def intersect(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the common part (..., 4) of boxes; of area 0 where they have none."""
    corner = torch.maximum(boxes[..., :2], others[..., :2])
    return torch.cat([corner, torch.minimum(boxes[..., 2:], others[..., 2:])], dim=-1)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union (...) of boxes (..., 4), 0 to 1; 0 where a box has no area or is NaN.

    Edges are in the same pixels, or in any other units: the ratio is the same. Shapes are broadcast. In edges it is
    the official one of inclusive pixel numbers, whose widths are right - left + 1.
    """
    common, first, second = areas(intersect(boxes, others)), areas(boxes), areas(others)
    ratio = common / (first + second - common)
    return torch.where((first > 0) & (second > 0), ratio, torch.zeros_like(ratio))


def class_outputs(outputs: Tensor, classes: Tensor) -> Tensor:
    """Take the four outputs (n, 4) that belong to each image's class (n,), int64, 0 to K - 1.

    `outputs` are those of the last layer, (n, 4 K), or (n, 4), which are those of every class.
    """
    if outputs.shape[1] == 4:
        return outputs
    return outputs.unflatten(1, (-1, 4))[torch.arange(len(outputs), device=outputs.device), classes]


def window_frames(
    positions: tuple[int, int], offset: tuple[int, int] = (0, 0), *, side: int = 224, stride: int = 32
) -> Tensor:
    """Return the part of the rescaled image that each position (h, w) of a dense map sees: edges (h, w, 4), float64.

    The window of row i and column j begins at stride * i and stride * j, in pixels, behind `offset`, the row and column
    of the first window's corner; for a centre crop, that of the crop. With the pooling of Caffe, which rounds up, the
    last may reach beyond the image.
    """
    top = offset[0] + stride * torch.arange(positions[0], dtype=torch.float64, device="cpu")[:, None]
    left = offset[1] + stride * torch.arange(positions[1], dtype=torch.float64, device="cpu")[None, :]
    top, left = torch.broadcast_tensors(top, left)
    return torch.stack([left, top, left + side, top + side], dim=-1)


def boxes_from_map(
    outputs: Tensor, classes: NDArray[np.int64], frames: Tensor, rescaled: Size, image: Size
) -> NDArray[np.float64]:
    """Turn the outputs of a box net for one image into boxes.

    Returns (T, h w, 4) float64: edges in pixels of the file, within the image and at least one pixel wide and high.

    Parameters
    ----------
    outputs : Tensor (4, h, w) or (4 K, h, w)
        Of the last layer; channels 4 c to 4 c + 3 are the coordinates for class c, and four channels are those of every
        class.
    classes : (T,) int64
        Classes asked for, by their place among the net's.
    frames : Tensor (h, w, 4) or (1, 1, 4)
        What the outputs are relative to, in edges, in pixels of the rescaled image.
    rescaled, image : (height, width)
        Sides of the image as the net saw it, and of the file.
    """
    table = outputs.double().unflatten(0, (-1, 4)).permute(0, 2, 3, 1)  # (1 or K, h, w, 4)
    wanted = table.expand(len(classes), -1, -1, -1) if len(table) == 1 else table[torch.from_numpy(classes)]
    boxes = decode(wanted, frames.double()).flatten(1, 2).numpy()  # (T, h w, 4)
    (height, width), (full_height, full_width) = rescaled, image
    factors = np.array([full_width / width, full_height / height] * 2)
    return clip_to_image(boxes * factors, image)


def clip_to_image(boxes: NDArray[np.float64], image: Size) -> NDArray[np.float64]:
    """Clip boxes (..., 4) to an image, height and width, and make what is left at least one pixel wide and high.

    The right edge of a box may be left of its left one.
    """
    sides = np.array([image[1], image[0]], dtype=np.float64)
    first = np.clip(boxes[..., :2], 0, sides - 1)
    last = np.clip(boxes[..., 2:], first + 1, sides)
    return np.concatenate([first, last], axis=-1)
