"""What happens to an image between decoding and the net. Pure functions on tensors.

N = images, H, W = image sides in pixels. Images are RGB, channels first.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bilinear", "bicubic"]
"""How an image is resampled. The paper does not say; bilinear is what its toolkits used."""


def rescaled_size(height: int, width: int, smallest: int) -> tuple[int, int]:
    """Return the sides after isotropic rescaling to a smallest side of `smallest` (VGG paper, Sect. 3.1).

    The longer side is rounded to the nearest pixel, halves up.
    """
    if height <= width:
        return smallest, (2 * width * smallest + height) // (2 * height)
    return (2 * height * smallest + width) // (2 * width), smallest


def rescale(image: Tensor, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> Tensor:
    """Resample an image with anti-aliasing.

    Parameters
    ----------
    image : Tensor (3, H, W), uint8 or floating point, 0 to 255
    size : (height, width) in pixels

    Returns
    -------
    Tensor (3, height, width), float32
        Range 0 to 255, up to the overshoot of bicubic resampling; never rounded to whole numbers.
    """
    image = image.to(torch.float32)
    if tuple(image.shape[1:]) == tuple(size):
        return image
    return F.interpolate(image[None], size, mode=interpolation, align_corners=False, antialias=True)[0]


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean pixel and divide by the deviation of each channel.

    Parameters
    ----------
    images : Tensor (N, 3, H, W), float32, 0 to 255
    mean, std : Tensor (3,), float32
        In the same units. The paper only subtracts the mean (Sect. 2.1): its deviation is 1.
    """
    return (images - mean[:, None, None]) / std[:, None, None]


def pad(images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Lay N images (3, H_n, W_n) into one tensor (N, 3, H, W), top left, with zeros to the right and below."""
    padded = images[0].new_zeros(len(images), 3, *size)
    for place, image in zip(padded, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return padded


def mirror_padded(images: Tensor, widths: Tensor) -> Tensor:
    """Flip each of N images (N, 3, H, W) within its own width (N,); the zeros stay to the right."""
    columns = (widths[:, None] - 1 - torch.arange(images.shape[3], device=images.device)) % images.shape[3]
    return images.gather(3, columns[:, None, None].expand_as(images))


def mirror(images: Tensor) -> Tensor:
    """Flip left and right. images : Tensor (N, 3, H, W)."""
    return images.flip(-1)


def inside(maps: Tensor, sides: Tensor) -> Tensor:
    """Say which positions of maps (N, C, h, w) lie within (N, 2) sides from the top left: (N, 1, h, w), bool."""
    rows, columns = (torch.arange(side, device=maps.device) for side in maps.shape[2:])
    return ((rows < sides[:, :1])[:, :, None] & (columns < sides[:, 1:])[:, None])[:, None]


class Margin(NamedTuple):
    """Positions of maps (N, C, h, w) just beyond the images in them: P an image, some more than once."""

    places: tuple[Tensor, Tensor, Tensor]
    """Number of the image (N, 1), row and column (N, P)."""
    beyond: Tensor
    """(N, P, 1), bool. False where a map ends with its image: that position is its own and keeps its value."""


def margin(maps: Tensor, sides: Tensor | None, reach: int = 1) -> Margin | None:
    """Find what convolutions would read beyond images of (N, 2) sides, at the top left of maps (N, C, h, w).

    Parameters
    ----------
    maps, sides
        Without sides there is no padding, and None is returned.
    reach : int
        Positions that the convolutions see on either side: 1 of 3x3. So many rows below the image and columns to its
        right are in the margin; nothing further out is read for a position of the image.
    """
    if sides is None:
        return None
    height, width = maps.shape[2:]
    numbers, rows, columns, steps = (
        torch.arange(count, device=maps.device) for count in (len(maps), height, width, reach)
    )
    below = (sides[:, :1] + steps).clamp(max=height - 1)[:, :, None].expand(-1, -1, width)  # (N, reach, w)
    right = (sides[:, 1:] + steps).clamp(max=width - 1)[:, None].expand(-1, height, -1)  # (N, h, reach)
    at_row = torch.cat([below.flatten(1), rows[:, None].expand_as(right).flatten(1)], dim=1)
    at_column = torch.cat([columns.expand_as(below).flatten(1), right.flatten(1)], dim=1)
    beyond = (at_row >= sides[:, :1]) | (at_column >= sides[:, 1:])
    return Margin((numbers[:, None], at_row, at_column), beyond[:, :, None])


def clear(maps: Tensor, margin: Margin | None) -> Tensor:
    """Set a margin of maps (N, C, h, w) to zero, in place; what lies further out stays as it is."""
    if margin is not None:
        last = maps.permute(0, 2, 3, 1)  # a view (N, h, w, C)
        last[margin.places] = last[margin.places].masked_fill(margin.beyond, 0)
    return maps
