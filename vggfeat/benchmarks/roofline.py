"""The least time that features of an image can take on a machine, layer by layer: its roofline.

A layer takes at least as long as its multiply-adds at the rate of a large matrix product, and as moving its maps and
weights at the rate of a memory copy (Williams, Waterman and Patterson 2009). Multiply-adds are those of the direct
convolution.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from vggfeat.benchmarks.ceilings import copy_rate, device_name, matrix_rate
from vggfeat.benchmarks.operations import layer_costs
from vggfeat.errors import ConfigError
from vggfeat.forward.features import ExtractionSettings
from vggfeat.forward.runner import DTYPES
from vggfeat.nets.backbone import Pool
from vggfeat.nets.transforms import rescaled_size
from vggfeat.nets.vgg import VGG
from vggfeat.runtime.devices import checked_device


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
        """Return the multiply-adds a byte above which the matrix rate bounds a layer, and not the memory."""
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
        return tuple(_sum(costs[0].name, costs) for costs in zip(*self.each, strict=True))

    @property
    def scales(self) -> tuple[Cost, ...]:
        """Return every scale, all layers together."""
        return tuple(_sum(f"{h} x {w}", costs) for (h, w), costs in zip(self.sizes, self.each, strict=True))

    @property
    def total(self) -> Cost:
        """Return all layers at all scales."""
        return _sum("all", self.scales)

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
    model: VGG, settings: ExtractionSettings, shape: tuple[int, int], ceilings: Ceilings | None = None
) -> Roofline:
    """Count what the features of one image and its mirror take.

    Rescaling and the mean over space are not counted.

    Parameters
    ----------
    model : VGG
        Its weights are not read: it may be on the meta device.
    settings : ExtractionSettings
        Scales, layer, precision, and how many pixels go through the net in one pass.
    shape : (int, int)
        Height and width of the image as it is in its file.
    ceilings : Ceilings, optional
        Of the same precision; without them there are no times.

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
    model: VGG, settings: ExtractionSettings, size: tuple[int, int], ceilings: Ceilings | None
) -> tuple[Cost, ...]:
    number = DTYPES[settings.precision].itemsize
    together = max(1, settings.batch_pixels // (2 * size[0] * size[1]))
    found = []
    for layer in layer_costs(model, *size, settings.layer):
        weights = number * layer.weights / together
        cost = Cost(
            name=layer.name,
            multiply_adds=2 * layer.multiply_adds,
            bytes=2 * number * layer.fused + weights,
            separate_bytes=2 * number * layer.separate + weights,
        )
        found.append(cost if ceilings is None else _timed(cost, ceilings))
    return tuple(found)


def _timed(cost: Cost, ceilings: Ceilings) -> Cost:
    computing = cost.multiply_adds / ceilings.multiply_adds
    moving = cost.bytes / ceilings.bytes
    return Cost(
        name=cost.name,
        multiply_adds=cost.multiply_adds,
        bytes=cost.bytes,
        separate_bytes=cost.separate_bytes,
        matrix_seconds=computing if computing >= moving else 0.0,
        memory_seconds=moving if moving > computing else 0.0,
        separate_seconds=max(computing, cost.separate_bytes / ceilings.bytes),
    )


def _sum(name: str, costs: Iterable[Cost]) -> Cost:
    parts = tuple(costs)

    def over(value: Callable[[Cost], float]) -> Any:
        return sum(map(value, parts))

    return Cost(
        name=name,
        multiply_adds=over(lambda c: c.multiply_adds),
        bytes=over(lambda c: c.bytes),
        separate_bytes=over(lambda c: c.separate_bytes),
        matrix_seconds=over(lambda c: c.matrix_seconds),
        memory_seconds=over(lambda c: c.memory_seconds),
        separate_seconds=over(lambda c: c.separate_seconds),
    )
