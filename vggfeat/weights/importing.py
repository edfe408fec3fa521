"""From another library's file to a net of ours: what every importer says of its file, and what is done with it.

An importer brings names and axes into our order, in `ParsedNet`; `finish` checks it, lets it take RGB, and writes
down how every question of preprocessing was settled. A new importer is one file with such a function and one line:
in `vggfeat.weights.sniff.FORMATS` for a file format, in `vggfeat.weights.pytorch.STATE_DICTS` for a state dict.

Which pixels a net takes, no file can tell by its weights: the same numbers serve for RGB from 0 to 255, BGR from 0 to
255 less a mean, or RGB from 0 to 1 less a mean and over a deviation. What is assumed is said, and can be stated.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vggfeat.errors import ConfigError, WeightsError
from vggfeat.nets.backbone import NOT_FINITE, Backbone, Net, Pool
from vggfeat.nets.families import build
from vggfeat.nets.vgg import VGG
from vggfeat.wording import listed, named, quoted

Read = Callable[[str], Tensor]
Shapes = Mapping[str, tuple[int, ...]]
ASSUMED = "assumed: "
"""How `imported["mean_from"]` begins where the format or the names of a file only suggest what it takes."""
_HIGHEST_UNIT = 1.5
"""No mean and no deviation of pixels from 0 to 1 is higher."""
_SHOWN = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class ParsedNet:
    """What a file of another library says of its net: layers and axes already ours, colours still the file's."""

    model: Net
    """The net, without memory for its weights."""
    format: str
    """Caffe, MatConvNet, Keras, torchvision, ...: as a reader of a report should see it."""
    shapes: Shapes
    """For every tensor of `model.layers`: its shape in our layout. Weights are (out, in, height, width), those of fc6
    of a VGG net (out, in, 7, 7), of fc7 and fc8 (out, in, 1, 1); biases (out,)."""
    read: Read
    """Function from a name in `shapes` to the numbers, in our layout. It is called only after all shapes
    were found right."""
    channel_order: Literal["RGB", "BGR"]
    """What the first layer takes in the file."""
    mean: tuple[float, float, float]
    """Per channel, in `channel_order`, 0 to 255."""
    mean_from: str
    """The file, or who published it."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Per channel, in `channel_order`, 0 to 255."""
    assumed: bool = False
    """Whether the file says nothing of all this, and its format or its names only suggest it."""
    pixel_range: Literal[1, 255] = 255
    """Highest value of a pixel for its makers: the units of `--mean` and `--std`, not of the fields here."""
    fc6_order: str = ""
    """In which order the file of a VGG net has the inputs of fc6: C,H,W in Caffe; H,W,C in Keras; or convolution."""
    classes: tuple[str, ...] = ()
    """Names of the class scores: WNIDs for ILSVRC."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else is worth knowing, ready for JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StateDict:
    """Tensors that a file has names for, in the layout of PyTorch; which net they are of, the names will say."""

    shapes: Shapes
    read: Read
    """Function from a name in `shapes` to the numbers."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What was passed over to get at them, ready for JSON."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a net takes, as stated; None means what the file says or its format suggests."""

    mean: tuple[float, ...] | None = None
    """3 numbers, in the order of `channels` and the units of `range`."""
    std: tuple[float, ...] | None = None
    """As `mean`."""
    channels: Literal["rgb", "bgr"] | None = None
    range: Literal[1, 255] | None = None
    """Highest value of a pixel."""
    pool_rounding: Pool | None = None

    def stated(self) -> dict[str, Any]:
        """Return what was stated, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def apply(self, path: Path, parsed: ParsedNet) -> ParsedNet:
        """Replace what was assumed of a file.

        Raises ConfigError if a number can't be meant in its units, or other channels or another range come without mean
        and std.
        """
        if not self.stated():
            return parsed
        order: Any = (self.channels or parsed.channel_order).upper()
        highest = self.range or parsed.pixel_range
        changed = (order, highest) != (parsed.channel_order, parsed.pixel_range)
        if changed and (self.mean is None or self.std is None):
            raise ConfigError(
                f"{path}: expected mean and std along with other channels or another range than {parsed.channel_order} "
                f"and {parsed.pixel_range}, found {', '.join(self.stated())}; state --mean and --std in these units"
            )
        changes: dict[str, Any] = {"channel_order": order, "pixel_range": highest}
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None:
                _check_units(name, values, highest)
                changes[name] = tuple(value * 255 / highest for value in values)
        if self.mean is not None:  # any other alone says nothing of the mean
            changes |= {"mean_from": "stated", "assumed": False}
        if self.pool_rounding is not None:
            about = {name: getattr(parsed.model, name) for name in ("config", "num_classes", "width", "last")}
            changes["model"] = empty_model(path, about | {"pool": self.pool_rounding})
        return replace(parsed, notes={**parsed.notes, "stated": self.stated()}, **changes)


def _check_units(name: str, values: tuple[float, ...], highest: int) -> None:
    least = 0.0 if name == "std" else -math.inf
    if len(values) != 3 or not all(math.isfinite(value) and value > least for value in values):
        raise ConfigError(f"{name}: expected 3 finite numbers{' above 0' if name == 'std' else ''}, found {values}")
    small, low = max(map(abs, values)) <= 1, any(values) and set(values) != {1.0}
    if highest == 1 and max(map(abs, values)) > _HIGHEST_UNIT:
        raise ConfigError(f"{name}: expected numbers for pixels up to 1, found {values}; or state --range 255")
    if highest == 255 and small and low:
        raise ConfigError(f"{name}: expected numbers for pixels up to 255, found {values}; or state --range 1")


def finish(path: Path, parsed: ParsedNet, *, sha256: str = "", published: str = "") -> Backbone:
    """Make a net of what an importer found; `published` is the name of the file, if its checksum is known.

    The shapes are compared with those of the net before any number is read. A first layer that takes BGR is flipped,
    with the mean, which changes nothing but the order of its inputs. Where not all numbers of fc6, fc7 or fc8 of a VGG
    net are finite, the net ends before.

    Raises WeightsError if the tensors are not those of the net, or the numbers are not all finite floating-point
    numbers.
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
    model, tensors, not_finite = _finite_part(path, model, tensors)
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
        **({"fc6_order": parsed.fc6_order} if parsed.fc6_order else {}),
        "pool_rounding": model.pool,
        **parsed.notes,
        **({NOT_FINITE: not_finite} if not_finite else {}),
        **({"published": published} if published else {}),
    }
    classes = () if model.last else parsed.classes
    return Backbone(
        model=model, source=path.name, sha256=sha256, mean=mean, std=std, classes=classes, imported=imported
    )


def notes(backbone: Backbone) -> list[str]:
    """Return what the user of a net should know of how its file was read, one line each."""
    about, lines = backbone.imported, []
    if str(about.get("mean_from")).startswith(ASSUMED):
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (backbone.mean, backbone.std))
        lines.append(
            f"{backbone.source}: which pixels the net takes is assumed from its format, not known: "
            f"{about['channel_order']}; 0 to 255, less {mean}, over {std} in RGB; to state it: vggfeat weights convert "
            "with --channels, --range, --mean and --std"
        )
    return lines + [f"{backbone.source}: {words} {about[name]}" for name, words in _WORDS.items() if name in about]


_WORDS = {
    "taken_from": "the weights of this checkpoint were taken from",
    "next_to": "what the checkpoint has next to them is not used:",
    "left_out": "what are no tensors is not used:",
    "names_less": "its keys were read without",
    "without": "the file is incomplete: it has no",
    NOT_FINITE: "serves for the layers before those with NaN or infinity:",
}


def _finite_part(path: Path, model: Net, tensors: dict[str, Tensor]) -> tuple[Net, dict[str, Tensor], str]:
    """Return the net up to the last map that all numbers are finite for, its tensors, and which ones are not."""
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    maps = list(model.maps)
    layers = {name.partition(".")[0] for name in broken}
    if not broken or not isinstance(model, VGG) or not layers <= set(maps):
        return model, tensors, ""  # `fill` refuses what is not finite
    first = min(maps.index(layer) for layer in layers)
    about = {"config": model.config, "num_classes": 0, "width": model.width, "pool": model.pool}
    part = empty_model(path, about | {"last": maps[first - 1]})
    kept = {name: tensor for name, tensor in tensors.items() if name in part.layers.state_dict()}
    return part, kept, listed(broken, _SHOWN)


def _is_finite(tensor: Tensor) -> bool:
    # float64 holds numbers that float32 does not.
    return bool(tensor.dtype.is_floating_point and torch.isfinite(tensor.to(torch.float32)).all())


def empty_model(path: Path, about: Mapping[str, Any]) -> Net:
    """Build the net that a file is about (config, num_classes, width, pool), without memory for its weights.

    Raises WeightsError if there is no such net.
    """
    try:
        with torch.device("meta"):
            named = {name: about.get(name, "") for name in ("pool", "last")}
            return build(about["config"], int(about["num_classes"]), width=float(about["width"]), **named)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, ConfigError) as error:
        raise WeightsError(f"{path}: its metadata describe no known net: {quoted(str(error))}") from None


def check_shapes(path: Path, expected: Mapping[str, Tensor], found: Shapes) -> None:
    """Check that a file has the tensors of a net, no more and no less, before any of them is read.

    Raises WeightsError for the first that is missing, unknown or of another shape.
    """
    sides = (("misses", expected.keys() - found.keys()), ("has an unexpected", found.keys() - expected.keys()))
    if differ := [f"{verb} tensor {_least_of(names)}" for verb, names in sides if names]:
        raise WeightsError(f"{path}: {' and '.join(differ)}; it is of another network or damaged")
    for name in found:
        if tuple(expected[name].shape) != found[name]:
            raise WeightsError(
                f"{path}: {name}: expected shape {tuple(expected[name].shape)}, found {found[name]}; "
                "it is of another network or damaged"
            )


def _least_of(names: Collection[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return named(min(names)) + more


def fill(path: Path, model: Net, tensors: Mapping[str, Tensor]) -> None:
    """Give a net its weights, in float32, and make it ready to be run.

    Raises WeightsError if a tensor holds anything else than finite floating-point numbers, or a variance is negative.
    """
    ready = {}
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point or tensor.layout is not torch.strided:
            raise WeightsError(f"{path}: {name}: expected floating-point numbers, found {tensor.dtype}")
        if not _is_finite(tensor):
            raise WeightsError(f"{path}: {name}: expected finite numbers, found NaN or infinity; take other weights")
        ready[name] = tensor.to(torch.float32).contiguous()
        if name.endswith(".running_var") and (ready[name] < 0).any():
            raise WeightsError(f"{path}: {name}: expected variances from 0 on, found a negative one; it is damaged")
    model.layers.load_state_dict(ready, strict=True, assign=True)
    model.eval().requires_grad_(False)


def to_tensor(path: Path, name: str, array: Any) -> Tensor:
    """Make a float32 tensor of a NumPy array of any byte order, float16 to float64.

    Raises WeightsError if it holds anything else than floating-point numbers.
    """
    if getattr(array.dtype, "kind", "") != "f" or array.dtype.itemsize > 8:
        raise WeightsError(f"{path}: {name}: expected floating-point numbers, found {array.dtype}")
    # PyTorch turns what is too large into infinity, which `fill` refuses, and says nothing meanwhile.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False)).to(torch.float32)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
