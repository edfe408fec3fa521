"""Which box a crop asks the net for.

n = images, k = boxes of an image at most. A *target* is (class, then the four numbers of each box); numbers of
boxes that an image does not have are NaN, and the class is `NO_TARGET` where there is nothing to be learnt.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.datasets.ilsvrc_boxes import Boxes
from vggfeat.localisation.boxes import NO_TARGET, encode
from vggfeat.localisation.settings import BoxRecipe
from vggfeat.samples import LabelledImages
from vggfeat.training.crops import Crops

LIKE = 0.02
"""How much the ratio of the sides may differ between an image and its annotation: shrunken copies are rounded."""


class BoxLabels:
    """The boxes of each image, in the frame of its crop.

    Parameters
    ----------
    images : LabelledImages
    boxes : Boxes
        Of the same rows.
    recipe : BoxRecipe
    training : bool
        Whether `cut`, `least_inside` and `several` of the recipe count. In validation all boxes are kept, whole.
    """

    def __init__(self, images: LabelledImages, boxes: Boxes, recipe: BoxRecipe, *, training: bool) -> None:
        self._images, self._boxes, self._recipe, self._training = images, boxes, recipe, training
        self._most = int(np.diff(boxes.first).max(initial=1))
        self._one = training and recipe.several == "largest"
        self.unlike: dict[str, str] = {}
        """Images so far that are of another shape than their annotation says, and what it says."""

    def unreadable(self, count: int) -> NDArray[np.float32]:
        """Return targets without a class."""
        return np.full((count, 1 + 4 * (1 if self._one else self._most)), NO_TARGET, np.float32)

    def of(self, rows: NDArray[np.int64], sizes: NDArray[np.int64], crops: Crops) -> NDArray[np.float32]:
        """Return targets, (n, 1 + 4 k), float32; k is 1 where one box is asked for."""
        boxes = self._rescaled(rows, crops)
        windows = _rectangles(crops.offset, np.full_like(crops.offset, crops.side))
        asked, areas = self._asked(boxes, windows)
        frames = windows if self._recipe.frame == "window" else _rectangles(np.zeros_like(crops.offset), crops.rescaled)
        numbers = encode(asked, frames)
        # Frames are mirrored about their own centre.
        numbers[..., 0] *= torch.from_numpy(np.where(crops.mirrored, -1.0, 1.0))[:, None]
        if self._one:
            best = areas.nan_to_num(-1.0).argmax(1)
            numbers = numbers[torch.arange(len(rows)), best][:, None]
        targets = self.unreadable(len(rows))
        good = self._alike(rows, sizes) & (~numbers[..., 0].isnan()).any(1).numpy()
        targets[good, 0] = self._images.targets[rows[good]]
        targets[good, 1:] = numbers[good].flatten(1)
        return targets

    def _rescaled(self, rows: NDArray[np.int64], crops: Crops) -> Tensor:
        """Return boxes in pixels of the rescaled images, (n, k, 4), NaN where there are no more."""
        found = np.full((len(rows), self._most, 4), np.nan)
        for slot, row in zip(found, rows.tolist(), strict=True):
            own = self._boxes.of(row)
            slot[: len(own)] = own
        factor = crops.rescaled / np.maximum(self._boxes.sizes[rows], 1)
        return torch.from_numpy(found * factor[:, None, [1, 0, 1, 0]])

    def _asked(self, boxes: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes that count, the others being NaN, and the areas that are inside the windows, (n, k)."""
        inside = torch.cat(
            [torch.maximum(boxes[..., :2], windows[..., :2]), torch.minimum(boxes[..., 2:], windows[..., 2:])], dim=-1
        )
        areas = _areas(inside)
        if not self._training:
            return boxes, areas
        asked = inside if self._recipe.cut == "clipped" else boxes
        enough = (areas > 0) & (areas >= self._recipe.least_inside * _areas(boxes))
        return asked.where(enough[..., None], torch.nan), areas.where(enough, torch.nan)

    def _alike(self, rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say whose boxes can be trusted: those of another shape may have been annotated lying on their side."""
        told = np.maximum(self._boxes.sizes[rows], 1)
        alike = np.abs(np.log(sizes[:, 0] * told[:, 1] / (sizes[:, 1] * told[:, 0]))) < LIKE
        for number in np.flatnonzero(~alike).tolist():
            (height, width), found = told[number].tolist(), sizes[number].tolist()
            self.unlike[self._images.paths[rows[number]]] = (
                f"annotation: it says {width} x {height} pixels, the image has {found[1]} x {found[0]}"
            )
        return alike


def _rectangles(corner: NDArray[np.int64], size: NDArray[np.int64]) -> Tensor:
    """Edges, (n, 1, 4), of rectangles whose corner and size are (vertical, horizontal)."""
    edges = np.concatenate([corner[:, ::-1], (corner + size)[:, ::-1]], axis=1)
    return torch.from_numpy(edges.astype(np.float64))[:, None]


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
