"""The least time that features of an image can take on a machine, layer by layer: its roofline.

A layer takes at least as long as its multiply-adds at the rate of a large matrix product, and as moving its maps and
weights at the rate of a memory copy (Williams, Waterman and Patterson 2009). A multiply-add is one multiplication and
one addition; those of the direct convolution are counted. ReLU and pooling happen inside the convolution.
C = channels of a map, H, W = its sides.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from vggfeat.benchmarks.ceilings import copy_rate, matrix_rate
from vggfeat.benchmarks.measure import Column, Report, Say, machine
from vggfeat.errors import ConfigError
from vggfeat.forward.features import ExtractionSettings
from vggfeat.forward.runner import DTYPES
from vggfeat.nets.backbone import Net, Pool
from vggfeat.nets.transforms import rescaled_size
from vggfeat.nets.vgg import NETS, VGG
from vggfeat.runtime.devices import checked_device

COLUMNS = {
    "name": Column(""),
    "multiply_adds": Column("G multiply-adds", unit=1e9),
    "bytes": Column("MB", unit=1e6),
    "intensity": Column("multiply-adds/byte", ".3g"),
    "bound": Column("bound by"),
    "seconds": Column("least ms", unit=1e-3),
}


class LayerCost(NamedTuple):
    """One convolution with its ReLU and, at the end of a block, the pooling behind it; for one image, no mirror."""

    name: str
    """conv1_1 to fc8."""
    outputs: tuple[int, int, int]
    """(C, H, W) of its map, before pooling."""
    multiply_adds: int
    """Direct ones: one for each weight and position, those on the padding included."""
    weights: int
    """Numbers, biases included."""
    activations: int
    """Numbers that are read and written."""


class Cost(NamedTuple):
    """One layer at one scale, for an image and its mirror."""

    layer: str
    scale: str
    multiply_adds: int
    bytes: float
    """Weights are read once a pass, which the images in it share."""


def layer_costs(model: Net, height: int, width: int, last: str = "fc8") -> list[LayerCost]:
    """Count all layers up to `last`, run densely over an image of height x width pixels, as the net sees it.

    The weights of the model are not read: it may be on the meta device.
    """
    found: list[LayerCost] = []
    read = 3 * height * width
    for name, (rows, columns), pooled in _layers(model, height, width):
        if last == "pool5" and name == "fc6":
            break
        weight, bias = (model.get_parameter(f"layers.{name}.{kind}") for kind in ("weight", "bias"))
        written = weight.shape[0] * pooled[0] * pooled[1]
        multiply_adds, weights = weight.numel() * rows * columns, weight.numel() + bias.numel()
        found.append(LayerCost(name, (weight.shape[0], rows, columns), multiply_adds, weights, read + written))
        if name == last:
            break
        read = written
    return found


def _layers(model: Net, height: int, width: int) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Yield the name of every layer, (H, W) of its map, and these after pooling, where there is one."""
    sides, up = (height, width), model.pool == "ceil"
    for number, kernels in enumerate(NETS[model.config].blocks, start=1):
        pooled = (sides[0] + up) // 2, (sides[1] + up) // 2
        for index in range(1, len(kernels) + 1):
            yield f"conv{number}_{index}", sides, pooled if index == len(kernels) else sides
        sides = pooled
    for name in ("fc6", "fc7", "fc8"):
        sides = model.map_side(name, height), model.map_side(name, width)
        yield name, sides, sides


def empty_net(net: str, width: float, pool: Pool) -> VGG:
    """Return a net without memory for its weights, for counting."""
    with torch.device("meta"):
        return VGG(net, width=width, pool=pool)


def image_costs(model: Net, settings: ExtractionSettings, shape: tuple[int, int]) -> list[Cost]:
    """Count what the features of one image, `shape` its height and width in the file, and of its mirror take.

    Rescaling and the mean over space are not counted.

    Raises
    ------
    ConfigError
        If a side of the image is below 1, or the scales do not go together.
    """
    if min(shape) < 1:
        raise ConfigError(f"shape: expected sides of at least 1 pixel, found {shape[0]}x{shape[1]}")
    item = DTYPES[settings.precision].itemsize
    found = []
    for side in settings.sides(model):
        height, width = rescaled_size(*shape, side)
        images = max(1, settings.batch_pixels // (2 * height * width))  # of a pass
        for layer in layer_costs(model, height, width, settings.layer):
            moved = item * (2 * layer.activations + layer.weights / images)
            found.append(Cost(layer.name, f"{height} x {width}", 2 * layer.multiply_adds, moved))
    return found


def summarise(costs: Iterable[Cost], ceilings: Mapping[str, float]) -> dict[str, Any]:
    """Add up costs; with ceilings, of multiply-adds and of bytes a second, also the least time and what bounds it."""
    costs = list(costs)
    multiply_adds, moved = sum(cost.multiply_adds for cost in costs), sum(cost.bytes for cost in costs)
    found = {"multiply_adds": multiply_adds, "bytes": moved, "intensity": multiply_adds / moved}
    if not ceilings:
        return found
    times = [(cost.multiply_adds / ceilings["multiply_adds"], cost.bytes / ceilings["bytes"]) for cost in costs]
    seconds = sum(max(pair) for pair in times)
    memory = sum(moving for computing, moving in times if moving > computing)
    return found | {"bound": "memory" if 2 * memory > seconds else "matrix", "seconds": seconds}


def measure(
    model: Net,
    settings: ExtractionSettings,
    shape: tuple[int, int],
    *,
    device: str = "cpu",
    seconds: float | None = 2.0,
    say: Say = lambda name: None,
) -> Report:
    """Count the features of one image, and measure what the device does at most; None seconds: count only.

    Raises
    ------
    ConfigError
        As `image_costs`, or if the device is not there or can't compute in that precision.
    """
    costs, ceilings, notes, found = image_costs(model, settings, shape), {}, [], None
    if seconds is not None:
        place = checked_device(device, settings.precision)
        say("matrix product")
        ceilings["multiply_adds"] = matrix_rate(place, settings.precision, seconds)
        say("memory copy")
        ceilings["bytes"] = copy_rate(place, seconds)
        found = machine(place)
    total = summarise(costs, ceilings)
    if ceilings:
        notes = [
            f"matrix product {ceilings['multiply_adds'] / 1e9:.4g} G multiply-adds/s, memory copy "
            f"{ceilings['bytes'] / 1e9:.3g} GB/s",
            f"at most {1 / total['seconds']:.4g} images/s, bound by {total['bound']}",
        ]
    layers, scales = (dict.fromkeys(names) for names in zip(*((c.layer, c.scale) for c in costs), strict=True))
    return Report(
        name="roofline",
        settings={
            "net": model.config, "width": model.width, "pool": model.pool, "layer": settings.layer,
            "precision": settings.precision, "image": f"{shape[0]} x {shape[1]}, mirrored",
            "batch_pixels": settings.batch_pixels,
        },
        machine=found,
        columns=COLUMNS,
        rows=[
            *({"name": name} | summarise((c for c in costs if c.layer == name), ceilings) for name in layers),
            *({"name": name} | summarise((c for c in costs if c.scale == name), ceilings) for name in scales),
            {"name": "all", **total},
        ],
        figures={"ceilings": ceilings or None},
        notes=notes,
    )  # fmt: skip
