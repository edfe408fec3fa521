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

from vggfeat.checks import check_choice
from vggfeat.forward.batching import Size
from vggfeat.forward.features import mean_over_mirrors, narrowest_strip, spatial_mean, with_mirrors
from vggfeat.forward.runner import BatchRunner, to_compute_layout, to_device
from vggfeat.forward.settings import ForwardSettings
from vggfeat.nets.backbone import Net
from vggfeat.runtime.devices import checked_device
from vggfeat.store.layout import POSTERIORS
from vggfeat.weights import Backbone

CROP = 224
"""Side of a crop in pixels, of the input that the nets were trained with (Sect. 2.1)."""
GRID = 5
"""Crops along either side of an image."""

Mode = Literal["crop", "dense", "multi-crop"]
Softmax = Literal["after", "before"]


@dataclass(frozen=True, kw_only=True)
class PosteriorSettings(ForwardSettings):
    """Everything that decides the value of a posterior, apart from the weights and the images."""

    mode: Mode = "dense"
    """dense: the whole image and its mirror. multi-crop: 5 x 5 crops and their mirrors. crop: the one in the middle,
    not mirrored, as trainers validate."""
    softmax: Softmax = "after"
    """Where the soft-max of dense evaluation is taken: after the spatial average of the class scores, or before it, at
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
        described = super().describe() | {"layer": POSTERIORS}
        return {name: value for name, value in described.items() if name != "softmax" or self.mode == "dense"}


@dataclass(frozen=True, eq=False)
class PosteriorHead:
    """Class scores become posteriors, averaged over mirrors or crops: (N, K)."""

    settings: PosteriorSettings
    order: Tensor
    """(K,) channel of fc8 for every class, on the device."""
    copies = 2
    name = "vector of posteriors"

    @property
    def channels(self) -> int:
        """K."""
        return len(self.order)

    def values(self, model: Net, images: Tensor, pixels: int, sides: Tensor | None = None) -> Tensor:
        """Return the posteriors (N, K) of images of one size, as `Head.values`."""
        if self.settings.mode == "dense":
            halves = [self._dense(model, half, pixels) for half in with_mirrors(model, images, pixels)]
            found = mean_over_mirrors(torch.cat(halves))
        elif self.settings.mode == "crop":
            found = over_crops(model, cut(images, centre(*images.shape[2:])), pixels).mean(1)
        else:
            places = grid(*images.shape[2:])
            found = over_crops(model, [*cut(images, places), *cut_mirrored(images, places)], pixels).mean(1)
        return found[:, self.order]

    def _dense(self, model: Net, images: Tensor, pixels: int) -> Tensor:
        if self.settings.softmax == "before":
            return spatial_mean(model, images, model.scores, pixels, softmax)
        return softmax(spatial_mean(model, images, model.scores, pixels))

    def pass_range(self, model: Net, size: Size) -> tuple[int, int]:
        """Return the pixels of the narrowest strip of an image and of two images, or of one crop and of all."""
        if self.settings.mode == "dense":
            return narrowest_strip(model, size), 2 * size[0] * size[1]
        return CROP**2, CROP**2 * (1 if self.settings.mode == "crop" else 2 * len(grid(*size)))


def posterior_runner(
    backbone: Backbone, settings: PosteriorSettings, device: str | None = None, order: NDArray[np.int64] | None = None
) -> BatchRunner:
    """Put a net on a device, ready to turn images into class posteriors, (S, 1, K) an image.

    `order` (K,) is the channel of fc8 for every class, by default the net's own order. ConfigError if the device is not
    there or can't compute in that precision.
    """
    channels = np.arange(backbone.model.num_classes) if order is None else order
    head = PosteriorHead(settings, to_device(torch.from_numpy(channels), checked_device(device, settings.precision)))
    return BatchRunner(backbone, settings, head, device)


def over_crops(model: Net, crops: Sequence[Tensor], pixels: int) -> Tensor:
    """Return the posteriors, (N, P, K), of P crops (N, 3, 224, 224) of N images.

    One pass may hold crops of several places and images, so that passes are full whatever N and P are.
    """
    flat = [image for crop in crops for image in crop]
    step = max(1, pixels // CROP**2)
    passes = [torch.stack(flat[start : start + step]) for start in range(0, len(flat), step)]
    found = torch.cat(
        [softmax(model(to_compute_layout(part, model), (model.scores,))[model.scores]).mean((2, 3)) for part in passes]
    )
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


def grid(height: int, width: int) -> list[tuple[int, int]]:
    """Place 25 crops of 224 x 224 on an image, from edge to edge: (top, left) each, row by row.

    Along a side of L pixels, from 224 on, they begin at floor(i (L - 224) / 4) for i = 0 to 4: the first touches one
    edge, the last the other. At 224 all five are one, and count five times. The paper says "regular", no more; rounding
    down gives the middle crop the place that `centre` has.
    """
    tops, lefts = ([i * (side - CROP) // (GRID - 1) for i in range(GRID)] for side in (height, width))
    return [(top, left) for top in tops for left in lefts]


def centre(height: int, width: int) -> list[tuple[int, int]]:
    """Place one crop in the middle; a spare odd pixel lies below or right, as in the validation of the trainer."""
    return [((height - CROP) // 2, (width - CROP) // 2)]
