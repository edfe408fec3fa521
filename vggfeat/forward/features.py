"""Images become features: one dense pass per scale and region, averaged over space and mirror.

N = images of a batch, C = channels of the layer, H, W = image sides in pixels.
Appendix B of the VGG paper: rescale so that the smallest side is Q, run the net densely over the whole image and
over its mirror, average the penultimate layer over space, then over the two. Nothing is normalised or joined here.
The maps of one image can be had as they are, too: nothing is averaged then, and no mirror goes with it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.checks import check_choice, whole_number
from vggfeat.datasets.catalogue import record_or_own
from vggfeat.errors import ConfigError, ImageError, ResourceError, out_of_memory
from vggfeat.forward.batching import Batching, Size
from vggfeat.forward.runner import MAX_RESCALED_PIXELS, BatchRunner, to_compute_layout, upload
from vggfeat.forward.settings import ForwardSettings
from vggfeat.nets.backbone import MapInfo, Net
from vggfeat.nets.transforms import inside, mirror, mirror_padded, rescaled_size
from vggfeat.runtime.devices import default_batch_pixels
from vggfeat.samples import DataSet
from vggfeat.weights import Backbone

Region = Literal["image", "box"]


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings(ForwardSettings):
    """Everything that decides the value of a feature, apart from the weights and the images.

    The paper's scales are {256, 384, 512} on Caltech, and 640 and 768 as well on VOC (Appendix B); `for_dataset` takes
    what it took for a data set.
    """

    regions: tuple[Region, ...] = ("image",)
    """image: the whole image. box: the image inside the sample's box (VOC actions, Table 12)."""
    layer: str = "fc7"
    """One of the maps of the net, of a VGG net relu1_1, ..., pool1, ..., pool5, fc6, fc7 or fc8. fc7 is its penultimate
    layer, after its ReLU; the paper does not say whether before or after."""
    batching: Batching = "size"
    """size: images of equal size run together. padded: those of similar size too, with zeros next to the smaller ones
    that no position of theirs sees changed; fewer and larger batches for a GPU, the same features up to rounding."""

    @classmethod
    def for_dataset(cls, name: str, device: str = "cpu", **others: Any) -> Self:
        """Return what the command line takes: the paper's scales and regions for a data set, and the device's batches.

        Parameters
        ----------
        name : str
            Of the data set, see `vggfeat.open_dataset`; one that is not of the paper gets the paper's for Caltech, the
            whole image at three scales.
        device : str
            Where the net will run, by which `batch_pixels` is chosen: it decides the last bits of features.
        others
            Other fields of this class, and those of the above that are to differ; None stands for the default.

        Raises
        ------
        ConfigError
            If settings are not allowed, or do not go together.
        """
        record = record_or_own(name)
        chosen: dict[str, Any] = {"scales": record.scales, "regions": record.regions}
        chosen["batch_pixels"] = default_batch_pixels(device)
        return cls(**(chosen | {field: value for field, value in others.items() if value is not None}))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("batching", self.batching, get_args(Batching))
        if not self.regions or not set(self.regions) <= set(get_args(Region)):
            raise ConfigError(f"regions: expected image, box or both, found {self.regions}")
        if len(set(self.regions)) != len(self.regions):
            raise ConfigError(f"regions: expected each once, found {self.regions}")

    def least_side(self, model: Net) -> int:
        """Return the shortest image side that gives the layer a position.

        Raises
        ------
        ConfigError
            If the net has no such layer.
        """
        check_choice("layer", self.layer, model.maps)
        return model.least_side(self.layer)


def check_boxes(dataset: DataSet, regions: Sequence[Region]) -> None:
    """Check that every sample has a box if boxes are asked for.

    ConfigError if one has none; the first is named.
    """
    if "box" not in regions:
        return
    without = np.isnan(dataset.boxes).any(axis=1) if dataset.boxes is not None else np.ones(len(dataset), bool)
    if without.any():
        name = dataset.ids[int(np.argmax(without))]
        raise ConfigError(f"regions: expected a box for every sample of {dataset.name}, found none for {name}")


@dataclass(frozen=True)
class FeatureHead:
    """A map of the net, averaged over space and mirror: (N, C)."""

    layer: str
    channels: int
    copies = 2

    @property
    def name(self) -> str:
        """What the values are, for messages."""
        return f"{self.layer} map"

    def values(self, model: Net, images: Tensor, pixels: int, sides: Tensor | None = None) -> Tensor:
        """Return the features (N, C) of a batch, as `Head.values`."""
        if sides is not None:
            return self._of_padded(model, images, sides)
        means = [spatial_mean(model, half, self.layer, pixels) for half in with_mirrors(model, images, pixels)]
        return mean_over_mirrors(torch.cat(means))

    def _of_padded(self, model: Net, images: Tensor, sides: Tensor) -> Tensor:
        both = to_compute_layout(torch.cat([images, mirror_padded(images, sides[:, 1])]), model)  # (2N, 3, H, W)
        sides = torch.cat([sides, sides])  # (2N, 2)
        maps = model(both, (self.layer,), sides=sides)[self.layer]  # (2N, C, h, w)
        within = inside(maps, model.map_side(self.layer, sides))
        means = maps.masked_fill(~within, 0).sum((2, 3), dtype=torch.float32) / within.sum((2, 3))  # (2N, C)
        return mean_over_mirrors(means)

    def pass_range(self, model: Net, size: Size) -> tuple[int, int]:
        """Return the pixels of the narrowest strip of an image, and those of the image with its mirror."""
        return narrowest_strip(model, size, self.layer), 2 * size[0] * size[1]


def feature_runner(backbone: Backbone, settings: ExtractionSettings, device: str | None = None) -> BatchRunner:
    """Put a net on a device, a CUDA GPU if there is one by default, ready to turn images into features.

    ConfigError if the net has no such layer, or the device is not there or can't compute in that precision.
    """
    backbone.check_layer(settings.layer)
    head = FeatureHead(settings.layer, backbone.model.maps[settings.layer].channels)
    return BatchRunner(backbone, settings, head, device, regions=settings.regions, batching=settings.batching)


def with_mirrors(model: Net, images: Tensor, pixels: int) -> Iterator[Tensor]:
    """Yield images and their mirrors as the net takes them: (2N, 3, H, W) if they fit into one pass, else two of N."""
    images = to_compute_layout(images, model)
    halves: tuple[Tensor, ...] = (images, mirror(images))
    if 2 * images[:, 0].numel() <= pixels:
        halves = (torch.cat(halves),)
    yield from halves


def mean_over_mirrors(values: Tensor) -> Tensor:
    """Average the values of images and of their mirrors, (2N, C), to (N, C)."""
    count = len(values) // 2
    return (values[:count] + values[count:]) / 2


def spatial_mean(
    model: Net, images: Tensor, layer: str, pixels: int, each: Callable[[Tensor], Tensor] = lambda maps: maps
) -> Tensor:
    """Average a dense map over space, to (N, C) float32, in strips where the images are too large for one pass.

    The map (N, C, h, w) goes through `each`, position by position, before it is averaged.
    """
    sums, positions = [], 0
    for part in strips(model, images, (layer,), pixels):
        sums.append(each(part[layer]).sum((2, 3), dtype=torch.float32))
        positions += part[layer][0, 0].numel()
    return sum(sums[1:], sums[0]) / positions


def dense_map(model: Net, images: Tensor, layer: str, pixels: int) -> Tensor:
    """Return a dense map, (N, C, h, w), made in strips where the images are too large for one pass; see `strips`."""
    return dense_maps(model, images, (layer,), pixels)[layer]


def dense_maps(model: Net, images: Tensor, layers: Collection[str], pixels: int) -> dict[str, Tensor]:
    """Return several dense maps, (N, C, h, w) each, of the same passes; as `dense_map`."""
    parts = [*strips(model, images, layers, pixels)]
    return {layer: torch.cat([part[layer] for part in parts], dim=_long_axis(images)) for layer in layers}


def strips(model: Net, images: Tensor, layers: Collection[str], pixels: int) -> Iterator[dict[str, Tensor]]:
    """Yield dense maps whole, or in strips along the longer side where the images are too large for one pass.

    A strip is cut at multiples of the stride and carries along every pixel that its positions can see, so that it gives
    the same values as the whole; only the positions that are its own are handed out: part of each map (N, C, h, w), by
    name. Images are (N, 3, H, W); the strides of all layers divide that of the deepest. A pass has at most `pixels`,
    over all N images; the narrowest strip, of one position, may have more.
    """
    count, _, height, width = images.shape
    if count * height * width <= pixels:
        yield model(images, layers)
        return
    axis = _long_axis(images)
    deepest = [layer for layer in model.maps if layer in layers][-1]
    length, positions = images.shape[axis], model.map_side(deepest, images.shape[axis])
    stride, window, halo = model.maps[deepest].stride, model.maps[deepest].window, _halo(model.maps[deepest])
    cells = pixels // (count * min(height, width) * stride)
    step = max(1, cells - (window - 1) - 2 * halo)
    for start in range(0, positions, step):
        stop = min(start + step, positions)
        first = max(0, start - halo)
        end = min(length, stride * (stop + window - 1 + halo))
        maps = model(images.narrow(axis, stride * first, end - stride * first), layers)
        own = {}
        for layer in layers:
            finer = stride // model.maps[layer].stride  # positions of this map to one of the deepest
            last = finer * stop if stop < positions else model.map_side(layer, length)
            own[layer] = maps[layer].narrow(axis, finer * (start - first), last - finer * start)
        yield own


def _long_axis(images: Tensor) -> int:
    return 2 if images.shape[2] >= images.shape[3] else 3


def narrowest_strip(model: Net, size: Size, layer: str = "") -> int:
    """Return the pixels of the narrowest strip that an image can be cut into: of one position of a layer.

    By default it is the deepest layer.
    """
    deepest = model.maps[layer or model.last or model.scores]
    return min(size) * min(max(size), deepest.stride * (deepest.window + 2 * _halo(deepest)))


def _halo(info: MapInfo) -> int:
    """Return the cells, `stride` pixels wide, that a strip carries along on either side."""
    return -(-info.reach // info.stride)


def maps_of_image(
    runner: BatchRunner, pixels: NDArray[np.uint8], layers: Sequence[str], scale: int | None = None
) -> dict[str, NDArray[np.float32]]:
    """Run the net over an image, once for all layers.

    Parameters
    ----------
    runner : BatchRunner
        Gives net, device, preprocessing and precision.
    pixels : (H, W, 3) uint8
    layers : sequence of str
        Names of maps of the net.
    scale : int, optional
        Q, the smallest side in pixels that the image is rescaled to; by default it is not rescaled.

    Returns
    -------
    dict of str to (C, h, w) float32
        In the order of `layers`.

    Raises
    ------
    ConfigError
        If the net has no such layer, or the image is too small for it.
    ImageError
        If the image would be too large for the memory of any machine.
    ResourceError
        If the maps don't fit into memory.
    """
    layers = layers if isinstance(layers, str) else tuple(layers)
    if not layers or isinstance(layers, str):
        raise ConfigError(f"layers: expected a list of maps of the net, found {layers!r}")
    height, width = pixels.shape[:2]
    size = (height, width) if scale is None else rescaled_size(height, width, whole_number("scale", scale, 1))
    _check_layers(runner.model, layers, size)
    if size[0] * size[1] > MAX_RESCALED_PIXELS:
        raise ImageError(
            "elongated", f"expected at most {MAX_RESCALED_PIXELS} pixels to run, found {size[1]}x{size[0]}"
        )
    try:
        with runner.computing():
            images, _ = runner.prepare([(upload(pixels, runner.device), size)])  # (1, 3, H, W)
            found = dense_maps(
                runner.model, to_compute_layout(images, runner.model), layers, runner.settings.batch_pixels
            )
            return {layer: found[layer][0].float().contiguous().cpu().numpy() for layer in layers}
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    raise ResourceError(
        f"maps: expected memory of {runner.device} for {', '.join(layers)} of {size[1]}x{size[0]} pixels, found too "
        "little; give fewer layers at a time, or a smaller scale"
    )


def _check_layers(model: Net, layers: Sequence[str], size: tuple[int, int]) -> None:
    for layer in layers:
        check_choice("layer", layer, model.maps)
        if min(size) < model.least_side(layer):
            raise ConfigError(
                f"scale: expected sides of at least {model.least_side(layer)} pixels for {layer}, found "
                f"{size[1]}x{size[0]}; give a larger scale"
            )
