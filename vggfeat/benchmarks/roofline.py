"""The least time that features of an image can take on a machine, layer by layer: its roofline.

A layer takes at least as long as its multiply-adds at the rate of a large matrix product, and as moving its maps and
weights at the rate of a memory copy (Williams, Waterman and Patterson 2009). A multiply-add is one multiplication and
one addition; those of the direct convolution are counted. C = channels of a map, H, W = its sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch

from vggfeat.benchmarks.ceilings import copy_rate, device_name, matrix_rate
from vggfeat.errors import ConfigError
from vggfeat.forward.features import ExtractionSettings
from vggfeat.forward.runner import DTYPES
from vggfeat.nets.backbone import Net, Pool
from vggfeat.nets.transforms import rescaled_size
from vggfeat.nets.vgg import NETS, VGG, WINDOW
from vggfeat.runtime.devices import checked_device


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One convolution with its ReLU and, at the end of a block, the pooling behind it; for one image, no mirror."""

    name: str
    """conv1_1 to fc8."""
    outputs: tuple[int, int, int]
    """(C, H, W) of its map, before pooling."""
    multiply_adds: int
    """Direct ones: one for each weight and position, those on the padding included."""
    weights: int
    """Numbers, biases included."""
    fused: int
    """Activations that are read and written if ReLU, normalisation and pooling happen inside the convolution."""
    separate: int
    """Activations that are read and written if each of them is an operation of its own."""


def layer_costs(model: Net, height: int, width: int, last: str = "fc8") -> tuple[LayerCost, ...]:
    """Count all layers up to `last`, run densely over an image of height x width pixels, as the net sees it.

    The weights of the model are not read: it may be on the meta device.
    """
    found, sides, inputs = [], (height, width), 3 * height * width
    config = NETS[model.config]
    for number, kernels in enumerate(config.blocks, start=1):
        for index in range(1, len(kernels) + 1):
            pooled = _pooled(model, sides) if index == len(kernels) else None
            normalised = config.lrn and number == index == 1
            found.append(_cost(model, f"conv{number}_{index}", inputs, sides, pooled, normalised))
            inputs = _size(found[-1].outputs[0], pooled or sides)
        sides = _pooled(model, sides)
    dense = ("fc6", "fc7", "fc8")
    wanted = () if last == "pool5" else (*takewhile(lambda name: name != last, dense), last)
    sides = sides[0] - WINDOW + 1, sides[1] - WINDOW + 1
    for name in wanted:
        found.append(_cost(model, name, inputs, sides, None, False, activated=name != "fc8"))
        inputs = _size(found[-1].outputs[0], sides)
    return tuple(found)


def layer_multiply_adds(model: Net, height: int, width: int) -> dict[str, int]:
    """Return the multiply-adds of every layer for one image of height x width pixels, forward."""
    return {layer.name: layer.multiply_adds for layer in layer_costs(model, height, width)}


def _cost(
    model: Net, name: str, inputs: int, sides: tuple[int, int], pooled: tuple[int, int] | None, normalised: bool,
    activated: bool = True,
) -> LayerCost:  # fmt: skip
    weight, bias = (model.get_parameter(f"layers.{name}.{kind}") for kind in ("weight", "bias"))
    channels = weight.shape[0]
    written = _size(channels, sides)
    kept = written if pooled is None else _size(channels, pooled)
    # The convolution writes its map; ReLU and normalisation read and write it; pooling reads it.
    separate = inputs + written * (1 + 2 * activated + 2 * normalised) + (written + kept if pooled else 0)
    return LayerCost(
        name=name,
        outputs=(channels, *sides),
        multiply_adds=weight.numel() * sides[0] * sides[1],
        weights=weight.numel() + bias.numel(),
        fused=inputs + kept,
        separate=separate,
    )


def _pooled(model: Net, sides: tuple[int, int]) -> tuple[int, int]:
    up = model.pool == "ceil"
    return (sides[0] + up) // 2, (sides[1] + up) // 2


def _size(channels: int, sides: tuple[int, int]) -> int:
    return channels * sides[0] * sides[1]


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the machine was measured to do."""

    device: str
    multiply_adds: float
    """Per second, of large matrices in the precision of the net."""
    bytes: float
    """Per second, read and written ones together, of copying a large array."""

    @property
    def ridge(self) -> float:
        """The multiply-adds a byte above which the matrix rate bounds a layer, and not the memory."""
        return self.multiply_adds / self.bytes


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one layer, or several together, take for one image and its mirror."""

    name: str
    multiply_adds: int
    bytes: float
    """Moved if ReLU and pooling happen inside the convolution; weights once a pass, shared by the images in it."""
    separate_bytes: float
    """Moved if each of them is an operation of its own."""
    matrix_seconds: float = 0.0
    """Of it, what layers bound by the matrix rate take at least; 0 if no ceilings were measured."""
    memory_seconds: float = 0.0
    """The same of layers bound by the memory."""
    separate_seconds: float = 0.0
    """Least time with all operations separate."""

    @property
    def seconds(self) -> float:
        """Return the least time; 0 if no ceilings were measured."""
        return self.matrix_seconds + self.memory_seconds

    @property
    def intensity(self) -> float:
        """Return the multiply-adds for each byte."""
        return self.multiply_adds / self.bytes

    @property
    def bound(self) -> str:
        """Return matrix or memory: which takes the most of the least time; empty if no ceilings were measured."""
        if not self.seconds:
            return ""
        return "matrix" if self.matrix_seconds >= self.memory_seconds else "memory"

    def describe(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        counted = {
            "name": self.name,
            "multiply_adds": self.multiply_adds,
            "bytes": self.bytes,
            "separate_bytes": self.separate_bytes,
            "intensity": self.intensity,
        }
        if not self.seconds:
            return counted
        return counted | {"bound": self.bound, "seconds": self.seconds, "separate_seconds": self.separate_seconds}


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Operations, bytes and least times of the features of one image."""

    sizes: tuple[tuple[int, int], ...]
    """Height and width of the image at each scale, in pixels."""
    each: tuple[tuple[Cost, ...], ...]
    """Of every scale, the layers."""
    ceilings: Ceilings | None

    @property
    def layers(self) -> tuple[Cost, ...]:
        """Return every layer, all scales together."""
        return tuple(_total(costs[0].name, costs) for costs in zip(*self.each, strict=True))

    @property
    def scales(self) -> tuple[Cost, ...]:
        """Return every scale, all layers together."""
        return tuple(_total(f"{h} x {w}", costs) for (h, w), costs in zip(self.sizes, self.each, strict=True))

    @property
    def total(self) -> Cost:
        """Return all layers at all scales."""
        return _total("all", self.scales)

    def describe(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        scales = [
            total.describe() | {"size": list(size), "layers": [cost.describe() for cost in costs]}
            for size, total, costs in zip(self.sizes, self.scales, self.each, strict=True)
        ]
        found = {"scales": scales, "layers": [cost.describe() for cost in self.layers], "total": self.total.describe()}
        if self.ceilings is None:
            return found
        most = {"multiply_adds": self.ceilings.multiply_adds, "bytes": self.ceilings.bytes}
        rate = {"images_per_second": 1 / self.total.seconds}
        return {"device": self.ceilings.device, "ceilings": most, **found, **rate}


def roofline(
    model: Net, settings: ExtractionSettings, shape: tuple[int, int], ceilings: Ceilings | None = None
) -> Roofline:
    """Count what the features of one image, `shape` its height and width in the file, and of its mirror take.

    Rescaling and the mean over space are not counted. Without `ceilings`, of the same precision, there are no times.

    Raises
    ------
    ConfigError
        If a side of the image is below 1, or the scales do not go together.
    """
    if min(shape) < 1:
        raise ConfigError(f"shape: expected sides of at least 1 pixel, found {shape[0]}x{shape[1]}")
    sizes = tuple(rescaled_size(*shape, side) for side in settings.sides(model))
    return Roofline(
        sizes=sizes, each=tuple(_costs(model, settings, size, ceilings) for size in sizes), ceilings=ceilings
    )


def empty_net(net: str, width: float, pool: Pool) -> VGG:
    """Return a net without memory for its weights, for counting."""
    with torch.device("meta"):
        return VGG(net, width=width, pool=pool)


def measure_ceilings(device: str, precision: str, seconds: float) -> Ceilings:
    """Measure both ceilings of a device, each in so many seconds.

    Raises
    ------
    ConfigError
        If the device is not there or can't compute in that precision.
    """
    place = checked_device(device, precision)
    return Ceilings(
        device=device_name(place),
        multiply_adds=matrix_rate(place, precision, seconds),
        bytes=copy_rate(place, seconds),
    )


def _costs(
    model: Net, settings: ExtractionSettings, size: tuple[int, int], ceilings: Ceilings | None
) -> tuple[Cost, ...]:
    item = DTYPES[settings.precision].itemsize
    images = max(1, settings.batch_pixels // (2 * size[0] * size[1]))  # of a pass, which share the weights
    found = []
    for layer in layer_costs(model, *size, settings.layer):
        weights = item * layer.weights / images
        cost = Cost(
            name=layer.name,
            multiply_adds=2 * layer.multiply_adds,
            bytes=2 * item * layer.fused + weights,
            separate_bytes=2 * item * layer.separate + weights,
        )
        found.append(cost if ceilings is None else _timed(cost, ceilings))
    return tuple(found)


def _timed(cost: Cost, ceilings: Ceilings) -> Cost:
    computing = cost.multiply_adds / ceilings.multiply_adds
    moving = cost.bytes / ceilings.bytes
    return replace(
        cost,
        matrix_seconds=computing if computing >= moving else 0.0,
        memory_seconds=moving if moving > computing else 0.0,
        separate_seconds=max(computing, cost.separate_bytes / ceilings.bytes),
    )


def _total(name: str, costs: Sequence[Cost]) -> Cost:
    return Cost(
        name=name,
        multiply_adds=sum(cost.multiply_adds for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
        separate_bytes=sum(cost.separate_bytes for cost in costs),
        matrix_seconds=sum(cost.matrix_seconds for cost in costs),
        memory_seconds=sum(cost.memory_seconds for cost in costs),
        separate_seconds=sum(cost.separate_seconds for cost in costs),
    )
