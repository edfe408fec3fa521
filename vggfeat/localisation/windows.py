"""Where the windows of a dense map lie, and what their four numbers say in pixels of the image.

K = classes, h, w = positions of a dense map, T = classes that are asked for.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.forward import Size
from vggfeat.localisation.boxes import decode
from vggfeat.nets.vgg import STRIDE


def window_frames(positions: tuple[int, int], offset: tuple[int, int] = (0, 0), side: int = 224) -> Tensor:
    """Return the part of the rescaled image that each position of a dense map sees.

    Parameters
    ----------
    positions : (h, w)
    offset : (row, column)
        Of the first window's corner, in pixels; for a centre crop, that of the crop.
    side : int
        Of a window, in pixels.

    Returns
    -------
    Tensor (h, w, 4), float64
        Edges: the window of row i and column j begins at 32 i and 32 j. With the pooling of Caffe, which rounds up,
        the last may reach beyond the image.
    """
    top = offset[0] + STRIDE * torch.arange(positions[0], dtype=torch.float64)[:, None]
    left = offset[1] + STRIDE * torch.arange(positions[1], dtype=torch.float64)[None, :]
    top, left = torch.broadcast_tensors(top, left)
    return torch.stack([left, top, left + side, top + side], dim=-1)


def boxes_of(
    numbers: Tensor, classes: NDArray[np.int64], frames: Tensor, rescaled: Size, image: Size
) -> NDArray[np.float64]:
    """Turn the outputs of a box net for one image into boxes.

    Parameters
    ----------
    numbers : Tensor (4, h, w) or (4 K, h, w)
        Of fc8; channels 4 c to 4 c + 3 are centre x, centre y, width and height for class c, and four channels are
        those of every class.
    classes : (T,) int64
        Classes asked for, by their place among the net's.
    frames : Tensor (h, w, 4) or (1, 1, 4)
        What the numbers are relative to, in edges, in pixels of the rescaled image.
    rescaled, image : (height, width)
        Sides of the image as the net saw it, and of the file.

    Returns
    -------
    (T, h w, 4) float64
        Edges in pixels of the file, within the image and at least one pixel wide and high.
    """
    table = numbers.double().unflatten(0, (-1, 4)).permute(0, 2, 3, 1)
    wanted = table.expand(len(classes), -1, -1, -1) if len(table) == 1 else table[torch.from_numpy(classes)]
    found = decode(wanted, frames.double()).flatten(1, 2).numpy()
    (height, width), (full_height, full_width) = rescaled, image
    factors = np.array([full_width / width, full_height / height] * 2)
    return within(found * factors, image)


def within(boxes: NDArray[np.float64], image: Size) -> NDArray[np.float64]:
    """Clip boxes to an image, and make what is left at least one pixel wide and high.

    Parameters
    ----------
    boxes : (..., 4) float64
        Edges; right may be left of left.
    image : (height, width)
    """
    sides = np.array([image[1], image[0]], dtype=np.float64)
    first = np.clip(boxes[..., :2], 0, sides - 1)
    last = np.clip(boxes[..., 2:], first + 1, sides)
    return np.concatenate([first, last], axis=-1)
