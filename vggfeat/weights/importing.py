"""From another library's file to a net of ours: what every importer says of its file, and what is done with it.

An importer brings names and axes into our order, in `Imported`; `finish` finds out which net it is, checks it, lets
it take RGB, and writes down how every question of preprocessing was settled.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vggfeat.errors import WeightsError
from vggfeat.nets.backbone import Backbone, Net, Pool
from vggfeat.nets.families import check_shapes, empty_model, fill, hash_file
from vggfeat.nets.vgg import BLOCK_CHANNELS, NETS


@dataclass(frozen=True, kw_only=True, eq=False)
class Imported:
    """What a file of another library says of its net: layers and axes already ours, colours still the file's."""

    format: str
    """Caffe, MatConvNet, Keras, torchvision, ...: as a reader of a report should see it."""
    shapes: Mapping[str, tuple[int, ...]]
    """conv1_1.weight, conv1_1.bias, ... fc8.bias: the shape that each will have in our layout. Weights are
    (out, in, height, width), those of fc6 (out, in, 7, 7), of fc7 and fc8 (out, in, 1, 1); biases (out,)."""
    read: Callable[[str], Tensor]
    """From a name in `shapes` to the numbers, in our layout. Only called after all the shapes were found right."""
    channel_order: Literal["RGB", "BGR"]
    """What the first layer takes in the file."""
    mean: tuple[float, float, float]
    """In `channel_order`, 0 to 255."""
    mean_from: str
    """The file, or who published it."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """In `channel_order`, 0 to 255."""
    pool: Pool
    """How the library that the file was made for rounds the output of a pooling."""
    fc6_order: str
    """In which order the file has the inputs of fc6: C,H,W in Caffe; H,W,C in Keras; or convolution."""
    lrn: bool = False
    """The file has a local response normalisation after the first layer."""
    classes: tuple[str, ...] = ()
    """Names of the channels of fc8: WNIDs for ILSVRC."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What else is worth knowing, ready for JSON."""


def finish(path: Path, imported: Imported) -> Backbone:
    """Make a net of what an importer found.

    The shapes are compared with those of the net before any number is read. A first layer that takes BGR is turned
    round, with the mean, which changes nothing but the order in which its inputs stand.

    Raises
    ------
    WeightsError
        If it is not a net of the VGG paper, or the numbers are not all finite floating-point numbers.
    """
    model = _recognise(path, imported)
    tensors = {name: imported.read(name) for name in imported.shapes}
    check_shapes(path, model.layers.state_dict(), {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    mean, std = imported.mean, imported.std
    if imported.channel_order == "BGR":
        tensors["conv1_1.weight"] = tensors["conv1_1.weight"].flip(1)
        mean, std = (mean[2], mean[1], mean[0]), (std[2], std[1], std[0])
    fill(path, model, tensors)
    sha256, classes = hash_file(path), tuple(imported.classes)
    settled = _settled(path, sha256, imported)
    return Backbone(model=model, source=path.name, sha256=sha256, mean=mean, std=std, classes=classes, imported=settled)


def layers_in_order(path: Path, kernels: Sequence[int]) -> tuple[str, ...]:
    """Name the convolutions of a file whose layers only have an order.

    Parameters
    ----------
    kernels : kernel sides of the convolutions, without fc6, fc7 and fc8

    Returns
    -------
    tuple of str
        conv1_1, ..., one for each.

    Raises
    ------
    WeightsError
        If no net of the VGG paper has these.
    """
    for net in NETS.values():
        if [kernel for block in net.blocks for kernel in block] == list(kernels):
            return tuple(f"conv{b}_{i}" for b, block in enumerate(net.blocks, 1) for i in range(1, len(block) + 1))
    raise WeightsError(
        f"{path}: expected the 8, 10, 13 or 16 convolutions of a net of the VGG paper, found {len(kernels)} "
        f"with kernel sides {', '.join(map(str, kernels)) or 'none'}; it is of another network"
    )


def _recognise(path: Path, imported: Imported) -> Net:
    shapes = imported.shapes
    missing = [name for name in ("fc6", "fc7", "fc8") if f"{name}.weight" not in shapes]
    if len(missing) == 3 and shapes:
        raise WeightsError(
            f"{path}: expected a whole net, found convolutions without {', '.join(missing)} (a file 'without top'); "
            "features come from these layers: take the whole file"
        )
    sides = _kernels(shapes)
    for config, net in NETS.items():
        if not missing and net.lrn == imported.lrn and sides == net.blocks:
            return _sized(path, config, imported)
    found = ", ".join(name.removesuffix(".weight") for name in shapes if name.endswith(".weight"))
    raise WeightsError(
        f"{path}: expected the layers of a net of the VGG paper (conv1_1 to conv5_4, fc6, fc7, fc8), found "
        f"{found or 'none'} with kernel sides {sides}; it is of another network or incomplete"
    )


def _kernels(shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    blocks = ([shapes.get(f"conv{number}_{index}.weight") for index in range(1, 5)] for number in range(1, 6))
    return tuple(tuple(s[2] if len(s) == 4 else 0 for s in block if s is not None) for block in blocks)


def _sized(path: Path, config: str, imported: Imported) -> Net:
    shapes = imported.shapes
    width, classes = shapes["conv1_1.weight"][0] / BLOCK_CHANNELS[0], (*shapes["fc8.weight"], 0)[0]
    model = empty_model(path, {"config": config, "num_classes": classes, "width": width, "pool": imported.pool})
    check_shapes(path, model.layers.state_dict(), shapes)
    numbers, size = sum(map(math.prod, shapes.values())), path.stat().st_size
    if numbers > size:
        raise WeightsError(f"{path}: expected at most a number per byte, found {numbers} numbers in {size} bytes")
    if len(imported.classes) not in (0, classes):
        raise WeightsError(
            f"{path}: expected a class name for each of the {classes} channels of fc8, found {len(imported.classes)}"
        )
    return model


def _settled(path: Path, sha256: str, imported: Imported) -> dict[str, Any]:
    turned = imported.channel_order == "BGR"
    return {
        "format": imported.format,
        "file": path.name,
        "file_sha256": sha256,
        "channel_order": "BGR, turned to RGB in conv1_1" if turned else "RGB",
        "mean_from": imported.mean_from,
        "fc6_order": imported.fc6_order,
        "pool_rounding": imported.pool,
        **imported.told,
    }


def to_tensor(path: Path, name: str, array: Any) -> Tensor:
    """Make a float32 tensor of a NumPy array of any byte order, float16 to float64.

    Raises
    ------
    WeightsError
        If it holds anything else than floating-point numbers.
    """
    if getattr(array.dtype, "kind", "") != "f" or array.dtype.itemsize > 8:
        raise WeightsError(f"{path}: {name}: expected floating-point numbers, found {array.dtype}")
    # PyTorch turns what is too large into infinity, which `fill` refuses, and says nothing meanwhile.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False)).to(torch.float32)
