"""What a device can do at most, and the least time that features of an image take on it, layer by layer: its roofline.

A layer takes at least as long as its multiply-adds at the rate of a large matrix product, and as moving its maps and
weights at the rate of a memory copy (Williams, Waterman and Patterson 2009). A multiply-add is one multiplication and
one addition; those of the direct convolution are counted. ReLU and pooling happen inside the convolution.
C = channels of a map, H, W = its sides.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vggfeat.benchmarks.measure import Column, Report, Say, machine, wait_for
from vggfeat.errors import ConfigError
from vggfeat.forward.features import ExtractionSettings
from vggfeat.forward.runner import DTYPES
from vggfeat.nets.backbone import Net, Pool
from vggfeat.nets.transforms import rescaled_size
from vggfeat.nets.vgg import NETS, VGG
from vggfeat.runtime.devices import checked_device

MATRIX_SIDE = {"cpu": 1920, "cuda": 8192}
"""On the CPU no power of two: the rows of such a matrix share few places in the caches."""
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Of one array: many times what the caches hold."""
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

    Raises ConfigError if a side of the image is below 1, or the scales do not go together.
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

    Raises ConfigError as `image_costs`, or if the device is not there or can't compute in that precision.
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


def matrix_rate(device: torch.device, precision: str, seconds: float, *, side: int | None = None) -> float:
    """Return the multiply-adds per second of the product of two large square matrices: the best of several.

    On the CPU by the faster of PyTorch's two libraries for products.

    `device`: a CPU or a CUDA device. `precision` fp32, tf32, bf16 or fp16: tf32 on a CUDA device only. `seconds`: time
    for it, apart from the first products, which set up the libraries. `side`: of the matrices, divisible by 32; by
    default that of the device in `MATRIX_SIDE`.
    """
    side = side or MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
    products = _products(left, right)
    with torch.inference_mode(), _tf32(precision == "tf32"):
        return side**3 / min(_shortest(product, device, seconds / len(products)) for product in products)


def copy_rate(device: torch.device, seconds: float, *, size: int | None = None) -> float:
    """Return the bytes per second, read and written ones together, of copying a large array: the best of several."""
    size = size or COPY_BYTES[device.type]
    source, target = (torch.zeros(size // 4, device=device) for _ in range(2))
    return 2 * size / _shortest(lambda: target.copy_(source), device, seconds)


def _shortest(act: Callable[[], object], device: torch.device, seconds: float) -> float:
    act()
    wait_for(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        act()
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return best


def _products(left: Tensor, right: Tensor) -> list[Callable[[], Tensor]]:
    """Return the product of two (n, n) matrices by each library that PyTorch has for it; n divisible by 32."""
    product = torch.empty_like(left)
    found: list[Callable[[], Tensor]] = [lambda: torch.mm(left, right, out=product)]
    if left.device.type == "cpu":
        # MKL, behind mm, has half of the rate of oneDNN on some processors. Convolutions lead to the latter: one of 1x2
        # that goes by twos is the product of the very same numbers, a row of `left` being n / 2 channels of two pixels.
        side = len(left)
        maps = left.view(1, side // 32, 64, side // 2).permute(0, 3, 1, 2)
        kernel = right.T.reshape(side, 1, 2, side // 2).permute(0, 3, 1, 2)
        found.append(lambda: F.conv2d(maps, kernel, stride=(1, 2)).permute(0, 2, 3, 1).reshape(side, side))
    return found


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    if before == allowed:
        # Even setting it to what it is changes what PyTorch knows of it, and compiled nets are compiled again.
        yield
        return
    matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before
