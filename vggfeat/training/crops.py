"""Every random choice for a training image, and the crop of the rescaled image that is made from it.

N = images of the training list, n = images of a batch, h, w = sides of the part of an image that its crop needs,
C = side of the crop, K = taps: the most source pixels that one pixel of a crop is a weighted mean of.

A choice depends on (seed, epoch, row) alone, so that the same image is cropped in the same way whatever the number of
workers and processes, and wherever a run was interrupted. Numbers come from a mixing function of 64-bit words (the
finaliser of SplitMix64), which no version of a library can change.

A crop here equals that of "rescale the image so that its smallest side is S, bilinear with anti-aliasing, then crop,
mirror" (VGG paper, Sect. 3.1), as `vggfeat.nets.transforms.rescale` rescales. The weights of that linear map are made
for the crop alone, with its place and its mirror in them, and applied on the device along one axis after the other:
only the pixels that a crop needs are touched.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vggfeat.nets.transforms import rescaled_size
from vggfeat.training.recipe import Recipe

GROUP_BYTES = 1 << 25
"""Decoded bytes, padding included, that are resampled in one go; about ten times as much memory is needed."""
_GOLDEN = 0x9E3779B97F4A7C15
_ORDER, _CROP = 1, 2


class Draws(NamedTuple):
    """What was drawn for n images."""

    scale: NDArray[np.int64]
    """(n,) S in pixels."""
    place: NDArray[np.float64]
    """(n, 2) from 0 up to 1: where the crop lies between top and bottom, and between left and right."""
    mirrored: NDArray[np.bool_]
    """(n,) whether it is flipped."""
    alphas: NDArray[np.float64]
    """(n, 3) factors of the colour shift, one per principal component, the largest first."""

    def part(self, numbers: NDArray[np.int64]) -> "Draws":
        """Return what was drawn for some of the images."""
        return Draws(self.scale[numbers], self.place[numbers], self.mirrored[numbers], self.alphas[numbers])


def draw(recipe: Recipe, epochs: NDArray[np.int64], rows: NDArray[np.int64]) -> Draws:
    """Draw for n images: epochs (n,) of the list before, and rows (n,) of the list."""
    low, high = recipe.scale
    uniform = [_uniform(_words(recipe.seed, _CROP, epochs, rows, k)) for k in range(8)]
    return Draws(
        scale=low + np.floor(uniform[0] * (high - low + 1)).astype(np.int64),
        place=np.stack(uniform[1:3], axis=1),
        mirrored=uniform[3] < recipe.mirror,
        alphas=recipe.colour_shift * _normal(*uniform[4:8])[:, :3],
    )


def centred(scale: int, count: int) -> Draws:
    """Return the draws of plain centre crops: no mirror, no colour shift. A spare odd pixel lies below or right."""
    return Draws(
        scale=np.full(count, scale),
        place=np.full((count, 2), np.nan),
        mirrored=np.zeros(count, bool),
        alphas=np.zeros((count, 3)),
    )


class EpochOrder:
    """The order of N images: another permutation in each epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._rows = -1, np.empty(0, np.int64)

    def take(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return epochs and rows of the positions `start` to `stop` of the endless sequence; (stop - start,).

        A batch may hold the end of one epoch and the start of the next: none is cut short.
        """
        positions = np.arange(start, stop)
        epochs = positions // self.count
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._permutation(int(epoch))[positions[epochs == epoch] - epoch * self.count]
        return epochs, rows

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            keys = _words(self.seed, _ORDER, np.full(self.count, epoch), np.arange(self.count), 0)
            self._epoch, self._rows = epoch, np.argsort(keys, kind="stable")
        return self._rows


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


class CropGroup(NamedTuple):
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

    def pinned(self) -> "CropGroup":
        """Return a copy in pinned memory, from which a GPU can fetch it while it works."""
        return self._replace(
            rows=self.rows.pin_memory(), pixels=self.pixels.pin_memory(), geometry=self.geometry.pin_memory()
        )

    def to(self, device: torch.device | str) -> "CropGroup":
        """Return a copy on a device."""
        rows, pixels, geometry = (one.to(device, non_blocking=True) for one in (self.rows, self.pixels, self.geometry))
        return self._replace(rows=rows, pixels=pixels, geometry=geometry)


def place_crops(draws: Draws, sizes: NDArray[np.int64], side: int) -> Crops:
    """Turn draws for n decoded images of `sizes`, (n, 2) height and width, into places of crops of side C.

    Places are uniform over all that the rescaled image allows; one that is NaN is the centre.
    """
    rescaled = np.array(
        [rescaled_size(h, w, s) for (h, w), s in zip(sizes.tolist(), draws.scale.tolist(), strict=True)], dtype=np.int64
    ).reshape(-1, 2)
    spare = rescaled - side
    offset = np.where(np.isnan(draws.place), spare // 2, np.floor(np.nan_to_num(draws.place) * (spare + 1)))
    return Crops(sizes, rescaled, offset.astype(np.int64), draws.mirrored, side)


def group_crops(images: Sequence[NDArray[np.uint8]], crops: Crops, *, most: int = GROUP_BYTES) -> list[CropGroup]:
    """Cut out what the crops of n images, (H, W, 3) uint8 of any sizes, need, and put images of like size together.

    `most` bounds the bytes of `CropGroup.pixels`; a single image may take more.
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
    for rows in _rows_of_like_size(sides, most):
        pixels = np.zeros((len(rows), *sides[rows].max(axis=0), 3), np.uint8)
        for slot, row in zip(pixels, rows, strict=True):
            (top, left), (height, width) = first[row], sides[row]
            slot[:height, :width] = images[row][top : top + height, left : left + width]
        taps = int(np.ceil(2 * reach[rows].max())) + 1
        groups.append(
            CropGroup(
                torch.from_numpy(rows), torch.from_numpy(pixels), torch.from_numpy(geometry[rows]), crops.side, taps
            )
        )
    return groups


def resample(group: CropGroup) -> Tensor:
    """Resample what was cut out.

    Returns (n, 3, C, C) float32, 0 to 255, never rounded; on the device of the group, in channels-last order in memory.
    An image's values do not depend on the others of its group.
    """
    n, h, w, _ = group.pixels.shape
    side = group.side
    index, weight = _taps(group)  # (n, 2, C, K) both
    table = group.pixels.reshape(n * h, w * 3).float()
    lines = _weighted_sum(table, index[:, 0] + _first_rows(n, h, table), weight[:, 0]).view(n, side, w, 3)  # C lines
    table = lines.transpose(1, 2).reshape(n * w, side * 3)
    columns = _weighted_sum(table, index[:, 1] + _first_rows(n, w, table), weight[:, 1]).view(
        n, side, side, 3
    )  # C columns
    return columns.transpose(1, 2).contiguous().permute(0, 3, 1, 2)


def colour_axes(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what one unit of each random factor adds to a pixel (Krizhevsky et al. 2012, Sect. 4.1).

    `covariance` (3, 3): of RGB values, 0 to 255.
    Returns (3, 3) float64, whose columns are eigenvector times eigenvalue, the largest first, in values of 0 to 255.
    The eigenvalues are those of values from 0 to 1, as in all common implementations: in units of 0 to 255 they would
    be 255 times as large, and a shift would wipe the image out. Signs are set so that the sum of a vector is not
    negative.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64) / 255**2)
    vectors = vectors * np.where(vectors.sum(axis=0) < 0, -1, 1)
    return 255 * (vectors * values)[:, ::-1]


def _rows_of_like_size(sides: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
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


def _taps(group: CropGroup) -> tuple[Tensor, Tensor]:
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


def _first_rows(n: int, length: int, table: Tensor) -> Tensor:
    return (torch.arange(n, device=table.device) * length)[:, None, None]


def _weighted_sum(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    # An "embedding bag" is a weighted sum of a few rows of a table: no larger intermediate result, on any device.
    taps = index.shape[-1]
    return F.embedding_bag(index.reshape(-1, taps), table, per_sample_weights=weight.reshape(-1, taps), mode="sum")


def _words(seed: int, purpose: int, epochs: NDArray[np.int64], rows: NDArray[np.int64], k: int) -> NDArray[np.uint64]:
    mixed = np.zeros(1, np.uint64)
    for part in (seed, purpose, epochs, rows, k):
        mixed = _mix_word(mixed + np.asarray(part).astype(np.uint64))
    return mixed


def _mix_word(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = word + np.uint64(_GOLDEN)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def _uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _normal(*uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn uniform numbers into as many normal ones by the method of Box and Muller; (n, len(uniform))."""
    half = len(uniform) // 2
    radius = [np.sqrt(-2 * np.log1p(-u)) for u in uniform[:half]]
    angle = [2 * np.pi * u for u in uniform[half:]]
    pairs = [(r * np.cos(a), r * np.sin(a)) for r, a in zip(radius, angle, strict=True)]
    return np.stack([value for pair in pairs for value in pair], axis=1)
