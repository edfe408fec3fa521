"""What a net has to compute and to move for one image, counted from its table of layers.

C = channels of a map, H, W = its sides. A multiply-add is one multiplication and one addition.
"""

from dataclasses import dataclass
from itertools import takewhile

from vggfeat.nets.backbone import Net
from vggfeat.nets.vgg import NETS, WINDOW


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
    """Count all layers up to one, run densely over an image.

    Parameters
    ----------
    model : Net
        Its weights are not read: it may be on the meta device.
    height, width : int
        Sides of the image in pixels, as the net sees it.
    last : str
        pool5, fc6, fc7 or fc8.
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
