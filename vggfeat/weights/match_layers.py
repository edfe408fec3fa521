"""Which VGG net a file holds: by the kernels of its layers, or by all its layers in the order in which they are run."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

import numpy as np

from vggfeat.errors import WeightsError
from vggfeat.nets.backbone import Net, Pool
from vggfeat.nets.vgg import BLOCK_CHANNELS, NETS, WINDOW, NetConfig
from vggfeat.weights.importing import Shapes, empty_model
from vggfeat.wording import named, quoted

TOP = ("fc6", "fc7", "fc8")
"""What may be missing, from the last one on."""
_LRN = (5, 2, 1e-4, 0.75)


def usable_top(names: Collection[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return which of fc6, fc7 and fc8 can be run: those that no layer is missing before; and what to note of it.

    `names` are conv1_1.weight, ..., those of tensors of ours that a file has.
    """
    there = [layer for layer in TOP if f"{layer}.weight" in names]
    top = tuple(layer for layer, ours in zip(there, TOP, strict=False) if layer == ours)
    if len(top) == len(TOP):
        return top, {}
    unused = f", and {', '.join(there[len(top) :])} of no use behind them" if len(there) > len(top) else ""
    return top, {"without": ", ".join(layer for layer in TOP if layer not in there) + unused}


def match_kernels(path: Path, shapes: Shapes, pool: Pool, nets: Mapping[str, NetConfig] = NETS) -> Net:
    """Find the net that has these weights, by the kernel sides of its convolutions; it has no memory for weights.

    `shapes` is {"conv1_1.weight": (out, in, height, width), ...}, `nets` are those that the file may hold.
    Raises WeightsError if there is none.
    """
    blocks = ([shapes.get(f"conv{number}_{index}.weight") for index in range(1, 5)] for number in range(1, 6))
    sides = tuple(tuple(s[2] if len(s) == 4 else 0 for s in block if s is not None) for block in blocks)
    for config, net in nets.items():
        if not net.lrn and sides == net.blocks:
            return sized_net(path, config, shapes, pool)
    found = ", ".join(name.removesuffix(".weight") for name in shapes if name.endswith(".weight"))
    raise WeightsError(
        f"{path}: expected the layers of a net of the VGG paper (conv1_1 to conv5_4, fc6, fc7, fc8), found "
        f"{found or 'none'} with kernel sides {sides}; it is of another network or incomplete"
    )


def sized_net(path: Path, config: str, shapes: Shapes, pool: Pool) -> Net:
    """Build a net as wide as the weights conv1_1 of a file, as deep, and with as many classes, without memory."""
    width, top = shapes["conv1_1.weight"][0] / BLOCK_CHANNELS[0], usable_top(shapes)[0]
    last = "" if len(top) == len(TOP) else ("pool5", *top)[-1]
    classes = 0 if last else (*shapes["fc8.weight"], 0)[0]
    return empty_model(path, {"config": config, "num_classes": classes, "width": width, "pool": pool, "last": last})


def layers_in_order(path: Path, kernels: Sequence[int]) -> tuple[str, ...]:
    """Name the convolutions, conv1_1 and so on, of a file whose layers only have an order, by their kernel sides.

    Raises WeightsError if no net of the VGG paper has these.
    """
    for net in NETS.values():
        if [kernel for block in net.blocks for kernel in block] == list(kernels):
            return tuple(f"conv{b}_{i}" for b, block in enumerate(net.blocks, 1) for i in range(1, len(block) + 1))
    raise WeightsError(
        f"{path}: expected the 8, 10, 13 or 16 convolutions of a net of the VGG paper, found {len(kernels)} "
        f"with kernel sides {', '.join(map(str, kernels)) or 'none'}; it is of another network"
    )


@dataclass(frozen=True, kw_only=True)
class Step:
    """One layer of a file that changes what passes through it."""

    kind: Literal["conv", "full", "relu", "pool", "lrn"]
    """full: fully connected, where it isn't stored as a convolution."""
    name: str
    """Name in the file."""
    shape: tuple[int, ...] = ()
    """Shape of the weights of conv: (out, in, height, width), and of full: (out, in); of the window of pool."""
    pad: tuple[float, float, float, float] = (0, 0, 0, 0)
    """Top, bottom, left, right."""
    stride: tuple[float, ...] = (1,)
    numbers: tuple[float, ...] = ()
    """Parameters of lrn: n, k, alpha and beta, as in the formula of Krizhevsky et al. 2012, Sect. 3.3."""
    rounding: Pool = "ceil"
    """How the size of a pooling's output is rounded."""


@dataclass(frozen=True, kw_only=True)
class MatchedNet:
    """Which layer of the file is which of ours."""

    model: Net
    """Without memory for its weights."""
    steps: Mapping[str, int]
    """conv1_1 ... fc8: the number of the step."""
    shapes: Shapes
    """conv1_1.weight ... fc8.weight, in our layout: those of fully connected layers as convolutions."""
    notes: Mapping[str, str]
    """That some of the last layers are missing."""


def match_steps(path: Path, steps: Sequence[Step]) -> MatchedNet:
    """Find the net of the paper that runs these layers, and compare their padding and strides with its.

    Raises WeightsError if there is none: names the first layer that differs.
    """
    config = _nearest(path, steps)
    names = {}
    for number, (step, (kind, name, _)) in enumerate(zip(steps, _pattern(NETS[config]), strict=False)):
        if kind in ("conv", "full"):
            names[name] = number
        _check(path, step)
    roundings = {step.rounding for step in steps if step.kind == "pool"}
    if len(roundings) > 1:
        raise WeightsError(
            f"{path}: expected one rounding of all poolings, found floor and ceil; it is of another network"
        )
    shapes = {f"{name}.weight": as_convolution(name, steps[number].shape) for name, number in names.items()}
    model = sized_net(path, config, shapes, roundings.pop())
    return MatchedNet(model=model, steps=names, shapes=shapes, notes=usable_top(shapes)[1])


def _pattern(net: NetConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for number, kernels in enumerate(net.blocks, start=1):
        for index, kernel in enumerate(kernels, start=1):
            yield "conv", f"conv{number}_{index}", (kernel, kernel)
            yield "relu", f"the ReLU after conv{number}_{index}", ()
            if number == index == 1 and net.lrn:
                yield "lrn", "the normalisation after conv1_1", ()
        yield "pool", f"pool{number}", (2, 2)
    for name, side in (("fc6", WINDOW), ("fc7", 1), ("fc8", 1)):
        yield "full", name, (side, side)
        if name != "fc8":
            yield "relu", f"the ReLU after {name}", ()


def _nearest(path: Path, steps: Sequence[Step]) -> str:
    patterns = {config: list(_pattern(net)) for config, net in NETS.items()}
    agreed = {
        config: sum(1 for _ in takewhile(lambda pair: _agrees(pair[0], *pair[1]), zip(steps, pattern, strict=False)))
        for config, pattern in patterns.items()
    }
    config = max(agreed, key=lambda config: agreed[config])
    number, pattern = agreed[config], patterns[config]
    if number == len(steps) and ("pool", "pool5", (2, 2)) in pattern[:number]:
        return config  # complete, or without some of fc6, fc7 and fc8
    expected = f"{pattern[number][1]} of net {config}" if number < len(pattern) else f"the end of net {config}"
    found = "the end"
    if number < len(steps):
        step = steps[number]
        found = f"{step.kind} {quoted(step.name)}{f' of shape {step.shape}' if step.shape else ''}"
    raise WeightsError(
        f"{path}: expected the layers of a net of the VGG paper, for instance {expected} as layer {number + 1}, found "
        f"{found}; it is of another network"
    )


def _agrees(step: Step, kind: str, name: str, window: tuple[int, ...]) -> bool:
    if kind == "full" and step.kind == "full":
        return len(step.shape) == 2
    if kind in ("conv", "full"):
        return step.kind == "conv" and len(step.shape) == 4 and step.shape[2:] == window
    return step.kind == kind and step.shape == window


def _check(path: Path, step: Step) -> None:
    """Refuse what has the kernels of the paper, but moves them otherwise: it would load and give other maps."""
    # The file has these settings in float32.
    if step.kind == "lrn" and not np.allclose(step.numbers, _LRN, rtol=1e-6, atol=0):
        raise WeightsError(
            f"{path}: {named(step.name)}: expected local response normalisation with n = 5, k = 2, alpha = 0.0001, "
            f"beta = 0.75, found {', '.join(format(v, 'g') for v in step.numbers)}"
        )
    side = step.shape[2] if step.kind == "conv" else 1
    # fc6 as a convolution is the one kernel without padding that is wider than 1.
    pad, stride = (0 if side == WINDOW else side // 2,) * 4, 2 if step.kind == "pool" else 1
    if set(step.stride) != {stride} or step.pad != pad:
        raise WeightsError(
            f"{path}: {named(step.name)}: expected stride {stride} and padding {pad[0]}, found stride "
            f"{list(step.stride)} and padding {list(step.pad)}; it is of another network"
        )


def check_setting(path: Path, layer: str, name: str, found: Sequence[float], expected: int) -> None:
    """Refuse a setting of a layer that no net of the paper has; nothing found is right."""
    if any(value != expected for value in found):
        raise WeightsError(
            f"{path}: {named(layer)}: expected {name} = {expected}, found {', '.join(map(str, found))}; "
            "it is of another network"
        )


def unknown_layer(path: Path, layer: str, kind: str) -> WeightsError:
    """Return the error for a layer that no net of the paper has."""
    return WeightsError(
        f"{path}: {named(layer)}: expected the layers of a net of the VGG paper, found one of type {named(kind)}; "
        "it is of another network"
    )


def as_convolution(layer: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that fully connected weights (out, in) have as a convolution; any other shape as it is."""
    if len(shape) != 2 or not layer.startswith("fc"):
        return shape
    side = WINDOW if layer == "fc6" else 1
    return (shape[0], shape[1] // side**2, side, side) if shape[1] % side**2 == 0 else shape
