"""Images become class posteriors: a net run densely over whole images, or over crops (VGG paper, Sect. 3.2).

N = images of a batch, K = classes, H, W = image sides in pixels, h, w = sides of the class score map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vggfeat.errors import check_choice
from vggfeat.forward import BatchRunner, ForwardSettings, Size
from vggfeat.forward.crops import CROP, centre, grid
from vggfeat.forward.features import narrowest_strip, spatial_mean
from vggfeat.nets.backbone import Net
from vggfeat.store.layout import POSTERIORS
from vggfeat.weights import Backbone

Mode = Literal["crop", "dense", "multi-crop"]
Softmax = Literal["after", "before"]


@dataclass(frozen=True, kw_only=True)
class PosteriorSettings(ForwardSettings):
    """Everything that decides the value of a posterior, apart from the weights and the images."""

    mode: Mode = "dense"
    """dense: the whole image and its mirror. multi-crop: 5 x 5 crops and their mirrors. crop: the one in the middle,
    not mirrored, as trainers validate."""
    softmax: Softmax = "after"
    """Where the soft-max of dense evaluation stands: after the spatial average of the class scores, or before it, at
    every position. Sect. 3.2 averages the "class score map" to a vector first, then speaks of soft-max posteriors of
    image and mirror; hence after. A crop has one position, so there it is the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("mode", self.mode, get_args(Mode))
        check_choice("softmax", self.softmax, get_args(Softmax))

    def least_side(self, model: Net) -> int:
        """Return the shortest image side that gives a value: of dense evaluation that of the net, else 224."""
        return model.min_side if self.mode == "dense" else CROP

    def describe(self) -> dict[str, Any]:
        """Return all settings that a value depends on, ready for JSON."""
        told = super().describe() | {"layer": POSTERIORS}
        return {name: value for name, value in told.items() if name != "softmax" or self.mode == "dense"}


class Posteriors(BatchRunner):
    """A net on a device, ready to turn images into class posteriors.

    `rows` gives (S, 1, K) for every image: S scales, one region, and classes in the order asked for.

    Parameters
    ----------
    backbone : Backbone
    settings : PosteriorSettings
    device : str
        cpu, cuda, cuda:1, ...
    order : (K,) array of int, optional
        Channel of fc8 for every class. By default the net's own order.

    Raises
    ------
    ConfigError
        If the device is not there or can't compute in that precision.
    """

    settings: PosteriorSettings
    what = "vector of posteriors"

    def __init__(
        self,
        backbone: Backbone,
        settings: PosteriorSettings,
        device: str = "cpu",
        order: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(backbone, settings, device)
        channels = np.arange(self.model.num_classes) if order is None else order
        self._order = torch.from_numpy(channels).to(self.device)

    @property
    def channels(self) -> int:
        """K."""
        return len(self._order)

    def read(self, images: Tensor, pixels: int) -> Tensor:
        """Return the posteriors, (N, K), of N images of one size; those of mirrors and crops are averaged."""
        if self.settings.mode == "dense":
            found = self.over_mirror(images, pixels, lambda half: self._dense(half, pixels))
        elif self.settings.mode == "crop":
            found = self._over_crops(cut(images, centre(*images.shape[2:])), pixels).mean(1)
        else:
            places = grid(*images.shape[2:])
            found = self._over_crops([*cut(images, places), *cut_mirrored(images, places)], pixels).mean(1)
        return found[:, self._order]

    def pass_range(self, size: Size) -> tuple[int, int]:
        """Return the pixels of the narrowest strip of an image and of two images, or of one crop and of all."""
        if self.settings.mode == "dense":
            return narrowest_strip(self.model, size), 2 * size[0] * size[1]
        return CROP**2, CROP**2 * (1 if self.settings.mode == "crop" else 2 * len(grid(*size)))

    def _dense(self, images: Tensor, pixels: int) -> Tensor:
        if self.settings.softmax == "before":
            return spatial_mean(self.model, images, self.model.scores, pixels, softmax)
        return softmax(spatial_mean(self.model, images, self.model.scores, pixels))

    def _over_crops(self, crops: Sequence[Tensor], pixels: int) -> Tensor:
        """Return the posteriors, (N, P, K), of P crops (N, 3, 224, 224) of N images.

        One pass may hold crops of several places and images, so that passes are full whatever N and P are.
        """
        flat = [image for crop in crops for image in crop]
        step = max(1, pixels // CROP**2)
        passes = [torch.stack(flat[start : start + step]) for start in range(0, len(flat), step)]
        scores = self.model.scores
        found = torch.cat([softmax(self.model(self.ready(part), (scores,))[scores]).mean((2, 3)) for part in passes])
        return found.reshape(len(crops), -1, found.shape[1]).transpose(0, 1)


def softmax(scores: Tensor) -> Tensor:
    """Turn class scores (N, K, ...) into posteriors that sum to 1 over K; float32."""
    return F.softmax(scores, dim=1, dtype=torch.float32)


def cut(images: Tensor, places: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Cut (N, 3, 224, 224) out of (N, 3, H, W) at every (top, left); views."""
    return [images[:, :, top : top + CROP, left : left + CROP] for top, left in places]


def cut_mirrored(images: Tensor, places: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Cut what `cut` does, each crop flipped left and right; views of the mirrored images."""
    width = images.shape[3]
    return cut(images.flip(-1), [(top, width - CROP - left) for top, left in places])
