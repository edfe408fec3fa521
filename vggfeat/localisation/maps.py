"""Dense maps of the last layer over whole images, kept as maps: what windows predict, and how sure of a class they are.

N = images of a batch, C = channels, h, w = positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.checks import convert_fields
from vggfeat.errors import ConfigError
from vggfeat.forward.batching import Size
from vggfeat.forward.features import dense_map, narrowest_strip
from vggfeat.forward.runner import BatchRunner, to_compute_layout, wait_for
from vggfeat.forward.settings import ForwardSettings
from vggfeat.localisation.boxes import MergeSettings
from vggfeat.nets.backbone import Net
from vggfeat.nets.transforms import Interpolation, rescaled_size
from vggfeat.runtime.devices import Precision
from vggfeat.weights import Backbone


@dataclass(frozen=True, kw_only=True)
class MapSettings(ForwardSettings):
    """How images come to a net whose maps are to be laid over those of others."""

    least: int = 1
    """No smallest side is below this, in pixels: that of the most demanding of the nets."""

    def least_side(self, model: Net) -> int:
        """Return the shortest image side for all nets."""
        return max(self.least, model.min_side)


@dataclass(frozen=True, kw_only=True)
class LocaliseSettings:
    """Everything that decides a guess, apart from the weights and the images."""

    scales: tuple[tuple[int, ...], ...]
    """Q of every box net, smallest image sides in pixels. Table 9 has 256 for S = 256, and 384 or {352, 384} for
    S = 384."""
    top: int = 5
    """Classes guessed for an image; the official rules allow five."""
    merging: MergeSettings = field(default_factory=MergeSettings)
    precision: Precision = "fp32"
    """Precision of the convolutions; all that follows is done in float32 or more."""
    interpolation: Interpolation = "bilinear"
    """How images are rescaled, always with anti-aliasing."""
    batch_pixels: int = 1 << 20
    """Pixels in one batch: bounds the memory. A larger image is run in exact overlapping strips."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if not 1 <= self.top <= 5:
            raise ConfigError(f"top: expected 1 to 5 guesses an image, found {self.top}")
        if not self.scales:
            raise ConfigError("scales: expected those of at least one box net, found none")

    def maps(self, scales: Sequence[int], least: int) -> MapSettings:
        """Return the settings of one net."""
        return MapSettings(
            scales=tuple(scales),
            least=least,
            precision=self.precision,
            interpolation=self.interpolation,
            batch_pixels=self.batch_pixels,
        )

    def describe(self) -> dict[str, Any]:
        """Return all settings, ready for JSON."""
        return asdict(self) | {"scales": [list(scales) for scales in self.scales]}


class MapValues(NamedTuple):
    """The map of one image at one scale."""

    image: int
    """Its number among those that were given."""
    scale: int
    """Number of the scale."""
    rescaled: Size
    """Sides at this scale, in pixels."""
    map: Tensor | None
    """(C, h, w) float32 on the CPU; None if it did not fit into memory."""


@dataclass(frozen=True)
class _MapHead:
    channels: int
    posteriors: bool
    """Whether the channels are classes, whose scores become log posteriors at every position."""
    name: str
    """What the values are, for messages."""
    copies = 1

    def values(self, model: Net, images: Tensor, pixels: int, sides: Tensor | None = None) -> Tensor:
        """Return the maps (N, C, h, w), float32, of images of one size."""
        maps = dense_map(model, to_compute_layout(images, model), model.scores, pixels).float()
        return torch.log_softmax(maps, dim=1) if self.posteriors else maps

    def pass_range(self, model: Net, size: Size) -> tuple[int, int]:
        """Return the pixels of the narrowest strip of an image, and those of the image."""
        return narrowest_strip(model, size), size[0] * size[1]


def map_runner(backbone: Backbone, settings: MapSettings, device: str, *, posteriors: bool = False) -> BatchRunner:
    """Make a net ready that gives its map of scores; with `posteriors` its channels are classes, see `_MapHead`."""
    model = backbone.model
    return BatchRunner(backbone, settings, _MapHead(model.num_classes, posteriors, f"{model.scores} map"), device)


def dense_maps(runner: BatchRunner, images: Sequence[NDArray[np.uint8]]) -> Iterator[MapValues]:
    """Yield the maps of some images, (H, W, 3) each, at every scale, by batches of equal size."""
    for batch in runner.batches([(image,) for image in images]):
        wait_for(runner.record_event())
        for task, values in batch:
            yield MapValues(task.image, task.scale, task.size, values)


@dataclass(frozen=True)
class _CropHead:
    channels: int
    side: int
    """Side of the crop, in pixels."""
    name: str
    """As in `_MapHead`."""
    copies = 2

    def values(self, model: Net, images: Tensor, pixels: int, sides: Tensor | None = None) -> Tensor:
        """Return the scores (N, C) of the centre crops."""
        top, left = (images.shape[2] - self.side) // 2, (images.shape[3] - self.side) // 2
        crops = images[:, :, top : top + self.side, left : left + self.side]
        return model(to_compute_layout(crops, model), (model.scores,))[model.scores][:, :, 0, 0].float()

    def pass_range(self, model: Net, size: Size) -> tuple[int, int]:
        """Return the pixels of a crop, which can't be cut, twice."""
        return self.side**2, self.side**2


def crop_runner(backbone: Backbone, settings: MapSettings, device: str, side: int) -> BatchRunner:
    """Make a net ready, at one scale, that gives the scores (C,) of the centre crop of `side` pixels alone."""
    return BatchRunner(backbone, settings, _CropHead(backbone.model.num_classes, side, backbone.model.scores), device)


def crop_place(runner: BatchRunner, size: Size, side: int) -> tuple[tuple[int, int], Size]:
    """Return the crop's first row and column, and the sides of the rescaled image, for a decoded image of a size."""
    height, width = rescaled_size(*size, runner.sides[0])
    return ((height - side) // 2, (width - side) // 2), (height, width)
