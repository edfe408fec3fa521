"""What happens to an image between decoding and the net. Pure functions on tensors.

N = images, H, W = image sides in pixels. Images are RGB, channels first.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bilinear", "bicubic"]
"""How an image is resampled. The paper does not say; bilinear is what its toolkits used."""
_REACH = {"bilinear": 1, "bicubic": 2}
_FEW_TAPS = 5
"""Values that make one of the result. More of them PyTorch adds up in another order, which gives other last bits."""


def rescaled_size(height: int, width: int, smallest: int) -> tuple[int, int]:
    """Return the sides after isotropic rescaling to a smallest side of `smallest` (VGG paper, Sect. 3.1).

    The longer side is rounded to the nearest pixel, halves up.
    """
    if height <= width:
        return smallest, (2 * width * smallest + height) // (2 * height)
    return (2 * height * smallest + width) // (2 * width), smallest


def rescale(image: Tensor, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> Tensor:
    """Resample an image (3, H, W) from 0 to 255 with anti-aliasing, to (3, height, width) float32.

    The range is 0 to 255, up to the overshoot of bicubic resampling; it is never rounded to whole numbers.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image.to(torch.float32)
    most_taps = max(_tap_count(old, new, interpolation) for old, new in zip(image.shape[1:], size, strict=True))
    if image.device.type == "cpu" and most_taps <= _FEW_TAPS:
        return _rescale_on_cpu(image, size, interpolation)
    return _interpolate(image.to(torch.float32)[None], size, interpolation)[0]


def _interpolate(images: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    return F.interpolate(images, size, mode=interpolation, align_corners=False, antialias=True)


def _rescale_on_cpu(image: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Do what `_interpolate` does, across and then down, in down to half the time; (3, h, w), in memory (h, w, 3).

    On processors with fused multiply-adds it gives the same bits.
    """
    height, width = image.shape[1:]
    columns = image.permute(1, 2, 0).reshape(height, width * 3).T.contiguous().to(torch.float32)  # (W * 3, H)
    wide = _weighted_sums(columns.view(width, 3 * height), size[1], interpolation)  # (w, 3 * H)
    rows = wide.view(size[1] * 3, height).T.contiguous()  # (H, w * 3)
    return _weighted_sums(rows, size[0], interpolation).view(*size, 3).permute(2, 0, 1)


def _weighted_sums(rows: Tensor, count: int, interpolation: Interpolation) -> Tensor:
    """Resample rows (n, L) to `count` of them."""
    places, weights = _taps(len(rows), count, interpolation)
    return F.embedding_bag(places, rows, mode="sum", per_sample_weights=weights)


def _tap_count(length: int, count: int, interpolation: Interpolation) -> int:
    """Return K: one more than can have weight, for what is rounded at the edge."""
    return math.ceil(2 * _REACH[interpolation] * max(1.0, length / count)) + 1


@lru_cache(maxsize=512)
def _taps(length: int, count: int, interpolation: Interpolation) -> tuple[Tensor, Tensor]:
    """Return of which places (count, K), and by which weights (count, K), PyTorch makes each of `count` values.

    They are made from `length`. Combs are resampled: comb r of K has ones at r, r + K, r + 2 K, ... A value sees at
    most one tooth of each, and shows its weight. Places ascend; those outside are moved to the border, and have no
    weight.
    """
    taps = _tap_count(length, count, interpolation)
    with torch.inference_mode(mode=False):  # Kept for callers of any mode.
        numbers = torch.arange(max(length, taps), device="cpu")
        combs = numbers[:length] % taps == numbers[:taps, None]  # (K, length)
        seen = _interpolate(combs.to(torch.float32)[None, None], (taps, count), interpolation)[0, 0]  # (K, count)
        centres = (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) * (length / count)
        first = (centres - (taps + 1) / 2).ceil().to(torch.int64)
        places = first[:, None] + numbers[:taps]
        return places.clamp(0, length - 1), seen.T.gather(1, places % taps)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean pixel and divide by the deviation of each channel, (3,) each, of (N, 3, H, W) from 0 to 255.

    The paper only subtracts the mean (Sect. 2.1): its deviation is 1.
    """
    return (images - mean[:, None, None]) / std[:, None, None]


def pad(images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Lay N images (3, H_n, W_n) into one tensor (N, 3, H, W), top left, with zeros to the right and below."""
    padded = images[0].new_zeros(len(images), 3, *size)
    for place, image in zip(padded, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return padded


def normalised_batch(images: Sequence[Tensor], mean: Tensor, std: Tensor, size: tuple[int, int]) -> Tensor:
    """Normalise N images (3, H_n, W_n) as `normalise`, and lay them into one tensor (N, 3, H, W) as `pad`.

    On a CPU, it is channels last in memory.
    """
    same = all(tuple(image.shape[1:]) == size for image in images)
    if images[0].device.type != "cpu":
        if same:
            return normalise(torch.stack(list(images)), mean, std)
        return pad([normalise(one, mean, std) for one in images], size)
    height, width = size
    batch = (images[0].new_empty if same else images[0].new_zeros)(len(images), height, width * 3)
    # Row by row: loops over the three values of a pixel take ten times as long.
    means, deviations = mean.repeat(width), std.repeat(width)
    for place, image in zip(batch, images, strict=True):
        rows = image.permute(1, 2, 0).flatten(1)  # (H_n, W_n * 3)
        tall, wide = rows.shape
        torch.sub(rows, means[:wide], out=place[:tall, :wide]).div_(deviations[:wide])
    return batch.unflatten(2, (width, 3)).permute(0, 3, 1, 2)


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
