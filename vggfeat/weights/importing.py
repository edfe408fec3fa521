"""From another library's file to a net of ours: what every importer says of its file, and what is done with it.

An importer brings names and axes into our order, in `ParsedNet`; `finish` checks it, lets it take RGB, and writes
down how every question of preprocessing was settled. A new importer is one file with such a function and one line:
in `vggfeat.weights.sniff.FORMATS` for a file format, in `vggfeat.weights.pytorch.STATE_DICTS` for a state dict.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vggfeat.errors import ConfigError, WeightsError, named, quoted
from vggfeat.nets.backbone import Backbone, Net
from vggfeat.nets.families import build
from vggfeat.weights.preprocessing import ASSUMED

Read = Callable[[str], Tensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ParsedNet:
    """What a file of another library says of its net: layers and axes already ours, colours still the file's."""

    model: Net
    """The net, without memory for its weights."""
    format: str
    """Caffe, MatConvNet, Keras, torchvision, ...: as a reader of a report should see it."""
    shapes: Shapes
    """For every tensor of `model.layers`: its shape in our layout. Weights are (out, in, height, width), those of fc6
    (out, in, 7, 7), of fc7 and fc8 (out, in, 1, 1); biases (out,)."""
    read: Read
    """From a name in `shapes` to the numbers, in our layout. Only called after all the shapes were found right."""
    channel_order: Literal["RGB", "BGR"]
    """What the first layer takes in the file."""
    mean: tuple[float, float, float]
    """In `channel_order`, 0 to 255."""
    mean_from: str
    """The file, or who published it."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """In `channel_order`, 0 to 255."""
    assumed: bool = False
    """Whether the file says nothing of all this, and its format or its names only suggest it."""
    pixel_range: Literal[1, 255] = 255
    """Highest value of a pixel for those who made the net; mean and std are stated in such units."""
    fc6_order: str
    """In which order the file has the inputs of fc6: C,H,W in Caffe; H,W,C in Keras; or convolution."""
    classes: tuple[str, ...] = ()
    """Names of the class scores: WNIDs for ILSVRC."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else is worth knowing, ready for JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StateDict:
    """Tensors that a file has names for, in the layout of PyTorch; which net they are of, the names will say."""

    shapes: Shapes
    read: Read
    """From a name in `shapes` to the numbers."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What was passed over to get at them, ready for JSON."""


def finish(path: Path, parsed: ParsedNet, *, sha256: str = "", published: str = "") -> Backbone:
    """Make a net of what an importer found; `published` is the name of the file, if its checksum is known.

    The shapes are compared with those of the net before any number is read. A first layer that takes BGR is flipped,
    with the mean, which changes nothing but the order of its inputs.

    Raises
    ------
    WeightsError
        If the tensors are not those of the net, or the numbers are not all finite floating-point numbers.
    """
    model = parsed.model
    check_shapes(path, model.layers.state_dict(), parsed.shapes)
    numbers, size = sum(map(math.prod, parsed.shapes.values())), path.stat().st_size
    if numbers > size:
        raise WeightsError(f"{path}: expected at most a number per byte, found {numbers} numbers in {size} bytes")
    if len(parsed.classes) not in (0, model.num_classes):
        raise WeightsError(
            f"{path}: expected a class name for each of the {model.num_classes} channels of {model.scores}, found "
            f"{len(parsed.classes)}"
        )
    tensors = {name: parsed.read(name) for name in parsed.shapes}
    check_shapes(path, model.layers.state_dict(), {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    mean, std, order = parsed.mean, parsed.std, "RGB"
    if parsed.channel_order == "BGR":
        first = f"{model.first}.weight"
        tensors[first] = tensors[first].flip(1)
        mean, std = (mean[2], mean[1], mean[0]), (std[2], std[1], std[0])
        order = f"BGR, turned to RGB in {model.first}"
    fill(path, model, tensors)
    sha256 = sha256 or hash_file(path)
    assumed = ASSUMED if parsed.assumed and not published else ""
    imported = {
        "format": parsed.format,
        "file": path.name,
        "file_sha256": sha256,
        "channel_order": order,
        "mean_from": f"{assumed}{parsed.mean_from}",
        "fc6_order": parsed.fc6_order,
        "pool_rounding": model.pool,
        **parsed.notes,
        **({"published": published} if published else {}),
    }
    return Backbone(
        model=model, source=path.name, sha256=sha256, mean=mean, std=std, classes=parsed.classes, imported=imported
    )


def empty_model(path: Path, about: Mapping[str, Any]) -> Net:
    """Build the net that a file is about (config, num_classes, width, pool), without memory for its weights.

    Raises
    ------
    WeightsError
        If there is no such net.
    """
    try:
        with torch.device("meta"):
            named = {name: about.get(name, "") for name in ("pool", "last")}
            return build(about["config"], int(about["num_classes"]), width=float(about["width"]), **named)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, ConfigError) as error:
        raise WeightsError(f"{path}: its metadata describe no net of the VGG paper: {quoted(str(error))}") from None


def check_shapes(path: Path, expected: Mapping[str, Tensor], found: Shapes) -> None:
    """Check that a file has the tensors of a net, no more and no less, before any of them is read.

    Raises
    ------
    WeightsError
        For the first that is missing, unknown or of another shape.
    """
    sides = (("misses", expected.keys() - found.keys()), ("has an unexpected", found.keys() - expected.keys()))
    if differ := [f"{verb} tensor {_listed(names)}" for verb, names in sides if names]:
        raise WeightsError(f"{path}: {' and '.join(differ)}; it is of another network or damaged")
    for name in found:
        if tuple(expected[name].shape) != found[name]:
            raise WeightsError(
                f"{path}: {name}: expected shape {tuple(expected[name].shape)}, found {found[name]}; "
                "it is of another network or damaged"
            )


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return named(min(names)) + more


def fill(path: Path, model: Net, tensors: Mapping[str, Tensor]) -> None:
    """Give a net its weights, in float32, and make it ready to be run.

    Raises
    ------
    WeightsError
        If a tensor holds anything else than finite floating-point numbers, or a variance is negative.
    """
    ready = {}
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point or tensor.layout is not torch.strided:
            raise WeightsError(f"{path}: {name}: expected floating-point numbers, found {tensor.dtype}")
        ready[name] = tensor.to(torch.float32).contiguous()
        if not torch.isfinite(ready[name]).all():  # after the conversion: float64 holds numbers that float32 does not
            raise WeightsError(f"{path}: {name}: expected finite numbers, found NaN or infinity; take other weights")
        if name.endswith(".running_var") and (ready[name] < 0).any():
            raise WeightsError(f"{path}: {name}: expected variances from 0 on, found a negative one; it is damaged")
    model.layers.load_state_dict(ready, strict=True, assign=True)
    model.eval().requires_grad_(False)


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


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
