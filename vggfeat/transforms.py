"""What happens to a picture between decoding and the net. Pure functions on tensors.

N = images, H, W = picture sides in pixels. Pictures are RGB, channels first.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bilinear", "bicubic"]
"""How a picture is resampled. The paper does not say; bilinear is what its toolkits used."""


def rescaled_size(height: int, width: int, smallest: int) -> tuple[int, int]:
    """Return the sides after isotropic rescaling to a smallest side of `smallest` (VGG paper, Sect. 3.1).

    The longer side is rounded to the nearest pixel, halves up.
    """
    if height <= width:
        return smallest, (2 * width * smallest + height) // (2 * height)
    return (2 * height * smallest + width) // (2 * width), smallest


def rescale(picture: Tensor, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> Tensor:
    """Resample a picture with anti-aliasing.

    Parameters
    ----------
    picture : Tensor (3, H, W), uint8 or floating point, 0 to 255
    size : (height, width) in pixels

    Returns
    -------
    Tensor (3, height, width), float32
        Range 0 to 255, up to the overshoot of bicubic resampling; never rounded to whole numbers.
    """
    picture = picture.to(torch.float32)
    if tuple(picture.shape[1:]) == tuple(size):
        return picture
    return F.interpolate(picture[None], size, mode=interpolation, align_corners=False, antialias=True)[0]


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean pixel and divide by the deviation of each channel.

    Parameters
    ----------
    images : Tensor (N, 3, H, W), float32, 0 to 255
    mean, std : Tensor (3,), float32
        In the same units. The paper only subtracts the mean (Sect. 2.1): its deviation is 1.
    """
    return (images - mean[:, None, None]) / std[:, None, None]


def pad(pictures: Sequence[Tensor]) -> Tensor:
    """Lay N pictures (3, H_n, W_n) into one tensor (N, 3, H, W), top left, with zeros to the right and below."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    images = pictures[0].new_zeros(len(pictures), 3, height, width)
    for image, picture in zip(images, pictures, strict=True):
        image[:, : picture.shape[1], : picture.shape[2]] = picture
    return images


def mirror_padded(images: Tensor, widths: Tensor) -> Tensor:
    """Flip each of N pictures (N, 3, H, W) within its own width (N,); the zeros stay to the right."""
    columns = (widths[:, None] - 1 - torch.arange(images.shape[3], device=images.device)) % images.shape[3]
    return images.gather(3, columns[:, None, None].expand_as(images))


def mirror(images: Tensor) -> Tensor:
    """Flip left and right. images : Tensor (N, 3, H, W)."""
    return images.flip(-1)
