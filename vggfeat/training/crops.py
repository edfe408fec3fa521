"""Decoded images become crops of the rescaled image, on the device: only the pixels that a crop needs are touched.

n = images, h, w = sides of the part of an image that its crop needs, C = side of the crop, K = taps: the most
source pixels that one pixel of a crop is a weighted mean of.

A crop here equals that of "rescale the whole image so that its smallest side is S, bilinear with anti-aliasing, then
crop, mirror" (VGG paper, Sect. 3.1), as `vggfeat.nets.transforms.rescale` rescales. The weights of that linear map
are made for the crop alone, with its place and its mirror in them, and applied along one axis after the other.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vggfeat.nets.transforms import rescaled_size
from vggfeat.training.sampling import Draws

GROUP_BYTES = 1 << 25
"""Decoded bytes, padding included, that are resampled in one go; about ten times as much memory is needed."""


class Crops(NamedTuple):
    """Where crops lie in rescaled images; the second axis is (vertical, horizontal)."""

    source: NDArray[np.int64]
    """(n, 2) sides of the decoded images, in pixels."""
    rescaled: NDArray[np.int64]
    """(n, 2) sides after rescaling."""
    offset: NDArray[np.int64]
    """(n, 2) first row and column of the crop in the rescaled image."""
    mirrored: NDArray[np.bool_]
    """(n,) whether columns run from right to left."""
    side: int
    """C in pixels."""


class Group(NamedTuple):
    """Images that are resampled together."""

    rows: Tensor
    """(n,) int64, their numbers in the batch."""
    pixels: Tensor
    """(n, h, w, 3) uint8 RGB: of each image the part that its crop needs, filled up with zeros."""
    geometry: Tensor
    """(n, 2, 5) float64 per axis: sides of source and rescaled image, offset of the crop, first source pixel in
    `pixels`, and whether it is mirrored."""
    side: int
    taps: int
    """K, enough for all of them."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Group":
        """Return the same with another copy of its tensors: on another device, or in pinned memory."""
        return Group(change(self.rows), change(self.pixels), change(self.geometry), self.side, self.taps)


def place_crops(draws: Draws, sizes: NDArray[np.int64], side: int) -> Crops:
    """Turn draws into places, uniform over all that the rescaled image allows.

    Parameters
    ----------
    draws : Draws
        Of n images; a place that is NaN is the centre.
    sizes : ndarray (n, 2)
        Height and width of the decoded images.
    side : int
        C.
    """
    rescaled = np.array(
        [rescaled_size(h, w, s) for (h, w), s in zip(sizes.tolist(), draws.scale.tolist(), strict=True)],
        dtype=np.int64,
    ).reshape(-1, 2)
    spare = rescaled - side
    offset = np.where(np.isnan(draws.place), spare // 2, np.floor(np.nan_to_num(draws.place) * (spare + 1)))
    return Crops(sizes, rescaled, offset.astype(np.int64), draws.mirrored, side)


def group(images: Sequence[NDArray[np.uint8]], crops: Crops, *, most: int = GROUP_BYTES) -> list[Group]:
    """Cut out what the crops need, and put images of like size together.

    Parameters
    ----------
    images : sequence of ndarray (H, W, 3), uint8
        n of any sizes.
    crops : Crops
        Of the same.
    most : int
        Bytes of `Group.pixels`; a single image may take more.
    """
    scale = crops.source / crops.rescaled
    reach = np.maximum(scale, 1)
    # One pixel more on each side than the filter reaches, so that rounding can't matter.
    first = np.clip(np.floor(scale * (crops.offset + 0.5) - reach) - 1, 0, None).astype(np.int64)
    last = np.ceil(scale * (crops.offset + crops.side - 0.5) + reach).astype(np.int64) + 1
    sides = np.minimum(last, crops.source) - first
    mirrored = np.stack([np.zeros_like(crops.mirrored), crops.mirrored], axis=1)
    geometry = np.stack([crops.source, crops.rescaled, crops.offset, first, mirrored], axis=2, dtype=np.float64)
    groups = []
    for rows in _alike(sides, most):
        pixels = np.zeros((len(rows), *sides[rows].max(axis=0), 3), np.uint8)
        for slot, row in zip(pixels, rows, strict=True):
            (top, left), (height, width) = first[row], sides[row]
            slot[:height, :width] = images[row][top : top + height, left : left + width]
        taps = int(np.ceil(2 * reach[rows].max())) + 1
        groups.append(
            Group(torch.from_numpy(rows), torch.from_numpy(pixels), torch.from_numpy(geometry[rows]), crops.side, taps)
        )
    return groups


def resample(group: Group) -> Tensor:
    """Resample what was cut out.

    Returns
    -------
    Tensor (n, 3, C, C), float32
        0 to 255, never rounded; on the device of the group, in channels-last order in memory. An image's values do
        not depend on the others of its group.
    """
    n, h, w, _ = group.pixels.shape
    side = group.side
    index, weight = _taps(group)
    table = group.pixels.reshape(n * h, w * 3).float()
    lines = _mix(table, index[:, 0] + _starts(n, h, table), weight[:, 0]).view(n, side, w, 3)
    table = lines.transpose(1, 2).reshape(n * w, side * 3)
    columns = _mix(table, index[:, 1] + _starts(n, w, table), weight[:, 1]).view(n, side, side, 3)
    return columns.transpose(1, 2).contiguous().permute(0, 3, 1, 2)


def colour_axes(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what one unit of each random factor adds to a pixel (Krizhevsky et al. 2012, Sect. 4.1).

    Parameters
    ----------
    covariance : ndarray (3, 3)
        Of RGB values, 0 to 255.

    Returns
    -------
    ndarray (3, 3), float64
        Columns are eigenvector times eigenvalue, the largest first, in values of 0 to 255. The eigenvalues are those
        of values from 0 to 1, as in all common implementations: in units of 0 to 255 they would be 255 times as
        large, and a shift would wipe the image out. Signs are set so that the sum of a vector is not negative.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64) / 255**2)
    vectors = vectors * np.where(vectors.sum(axis=0) < 0, -1, 1)
    return 255 * (vectors * values)[:, ::-1]


def _alike(sides: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    order = np.lexsort((sides[:, 1], sides[:, 0]))
    groups: list[list[int]] = []
    largest = np.zeros(2, np.int64)
    for row in order.tolist():
        wanted = np.maximum(largest, sides[row])
        if not groups or (len(groups[-1]) + 1) * 3 * wanted.prod() > most:
            groups.append([])
            wanted = sides[row]
        groups[-1].append(row)
        largest = wanted
    return [np.sort(np.array(rows, dtype=np.int64)) for rows in groups]


def _taps(group: Group) -> tuple[Tensor, Tensor]:
    """Index into the cut-out part and weight of each tap; (n, 2, C, K) int64, and float32 that sum to 1 over K."""
    source, rescaled, offset, first, mirrored = (part[..., None] for part in group.geometry.unbind(-1))
    at = torch.arange(group.side, device=group.pixels.device, dtype=torch.float64)
    at = offset + torch.where(mirrored > 0, group.side - 1 - at, at)
    scale = source / rescaled
    reach = scale.clamp(min=1)
    centre = scale * (at + 0.5)
    start = (centre - reach).floor()
    pixel = start[..., None] + torch.arange(group.taps, device=at.device)
    # A triangle over what lies inside the image, as wide as a target pixel is in the source (as Pillow does it).
    weight = (1 - (pixel + 0.5 - centre[..., None]).abs() / reach[..., None]).clamp(min=0)
    weight = weight * ((pixel >= 0) & (pixel < source[..., None]))
    weight = (weight / weight.sum(-1, keepdim=True)).float()
    lengths = torch.tensor(group.pixels.shape[1:3], device=at.device)[:, None, None]
    index = (pixel - first[..., None]).long().clamp(min=0)
    return torch.minimum(index, lengths - 1), weight


def _starts(n: int, length: int, table: Tensor) -> Tensor:
    return (torch.arange(n, device=table.device) * length)[:, None, None]


def _mix(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    # An "embedding bag" is a weighted sum of a few rows of a table: no larger intermediate result, on any device.
    taps = index.shape[-1]
    return F.embedding_bag(index.reshape(-1, taps), table, per_sample_weights=weight.reshape(-1, taps), mode="sum")
