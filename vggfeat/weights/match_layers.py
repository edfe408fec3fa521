"""The layers of a file in the order in which they are run, compared with those of the nets of the paper."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

from vggfeat.errors import WeightsError
from vggfeat.nets.backbone import Pool
from vggfeat.nets.vgg import NETS, WINDOW

_LRN = (5, 2, 1e-4, 0.75)


def _close(found: float, expected: float) -> bool:
    """Compare a setting that was stored as float32."""
    return math.isclose(found, expected, rel_tol=1e-6)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One layer of a file that changes what passes through it."""

    kind: Literal["conv", "full", "relu", "pool", "lrn"]
    """full: fully connected, where it isn't stored as a convolution."""
    name: str
    """In the file."""
    shape: tuple[int, ...] = ()
    """Of the weights of conv: (out, in, height, width), and of full: (out, in); of the window of pool."""
    pad: tuple[float, float, float, float] = (0, 0, 0, 0)
    """Top, bottom, left, right."""
    stride: tuple[float, ...] = (1,)
    numbers: tuple[float, ...] = ()
    """Of lrn: n, k, alpha and beta, as in the formula of Krizhevsky et al. 2012, Sect. 3.3."""
    rounding: Pool = "ceil"
    """Of pool."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Which layer of the file is which of ours."""

    config: str
    """A key of `NETS`."""
    steps: Mapping[str, int]
    """conv1_1 ... fc8: the number of the step."""
    pool: Pool
    """How the poolings of the file round their output."""
    shapes: Mapping[str, tuple[int, ...]]
    """conv1_1 ... fc8: the weights in our layout, those of fully connected layers as convolutions."""


def place(path: Path, steps: Sequence[Step]) -> Placed:
    """Find the net of the paper that runs these layers, and compare their padding and strides with its.

    Raises
    ------
    WeightsError
        If there is none: names the first layer that differs.
    """
    config = _nearest(path, steps)
    names = {}
    for number, (step, (kind, name, _)) in enumerate(zip(steps, _pattern(config), strict=True)):
        if kind in ("conv", "full"):
            names[name] = number
        _check(path, step)
    roundings = {step.rounding for step in steps if step.kind == "pool"}
    if len(roundings) > 1:
        raise WeightsError(
            f"{path}: expected one rounding of all poolings, found floor and ceil; it is of another network"
        )
    shapes = {name: _as_convolution(name, steps[number].shape) for name, number in names.items()}
    return Placed(config=config, steps=names, pool=roundings.pop(), shapes=shapes)


def _pattern(config: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for number, kernels in enumerate(NETS[config].blocks, start=1):
        for index, kernel in enumerate(kernels, start=1):
            yield "conv", f"conv{number}_{index}", (kernel, kernel)
            yield "relu", f"the ReLU after conv{number}_{index}", ()
            if number == index == 1 and NETS[config].lrn:
                yield "lrn", "the normalisation after conv1_1", ()
        yield "pool", f"pool{number}", (2, 2)
    for name, side in (("fc6", WINDOW), ("fc7", 1), ("fc8", 1)):
        yield "full", name, (side, side)
        if name != "fc8":
            yield "relu", f"the ReLU after {name}", ()


def _nearest(path: Path, steps: Sequence[Step]) -> str:
    patterns = {config: list(_pattern(config)) for config in NETS}
    agreed = {config: _agreement(steps, pattern) for config, pattern in patterns.items()}
    config = max(agreed, key=lambda config: agreed[config])
    number, pattern = agreed[config], patterns[config]
    if number == len(steps) == len(pattern):
        return config
    expected = f"{pattern[number][1]} of net {config}" if number < len(pattern) else f"the end of net {config}"
    raise WeightsError(
        f"{path}: expected the layers of a net of the VGG paper, for instance {expected} as layer {number + 1}, found "
        f"{_describe(steps[number]) if number < len(steps) else 'the end'}; it is of another network"
    )


def _agreement(steps: Sequence[Step], pattern: Sequence[tuple[str, str, tuple[int, ...]]]) -> int:
    pairs = zip(steps, pattern, strict=False)
    return sum(1 for _ in takewhile(lambda pair: _agrees(pair[0], *pair[1]), pairs))


def _agrees(step: Step, kind: str, name: str, window: tuple[int, ...]) -> bool:
    if kind == "full" and step.kind == "full":
        return len(step.shape) == 2
    if kind in ("conv", "full"):
        return step.kind == "conv" and len(step.shape) == 4 and step.shape[2:] == window
    return step.kind == kind and step.shape == window


def _check(path: Path, step: Step) -> None:
    """Refuse what has the kernels of the paper, but moves them otherwise: it would load and give other maps."""
    if step.kind == "lrn" and not all(map(_close, step.numbers, _LRN)):
        raise WeightsError(
            f"{path}: {step.name}: expected local response normalisation with n = 5, k = 2, alpha = 0.0001, "
            f"beta = 0.75, found {', '.join(format(v, 'g') for v in step.numbers)}"
        )
    side = step.shape[2] if step.kind == "conv" else 1
    # fc6 as a convolution is the one kernel without padding that is wider than 1.
    pad, stride = (0 if side == WINDOW else side // 2,) * 4, 2 if step.kind == "pool" else 1
    if set(step.stride) != {stride} or step.pad != pad:
        raise WeightsError(
            f"{path}: {step.name}: expected stride {stride} and padding {pad[0]}, found stride "
            f"{list(step.stride)} and padding {list(step.pad)}; it is of another network"
        )


def _as_convolution(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return shape
    outputs, inputs = shape
    if name != "fc6":
        return outputs, inputs, 1, 1
    return (outputs, inputs // WINDOW**2, WINDOW, WINDOW) if inputs % WINDOW**2 == 0 else shape


def _describe(step: Step) -> str:
    size = f" of shape {step.shape}" if step.shape else ""
    return f"{step.kind} {step.name!r}{size}"
