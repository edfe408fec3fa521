"""All the nets there are, and nets without weights or with room for them."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vggfeat.errors import ConfigError, WeightsError, check_choice
from vggfeat.nets.backbone import Net, Pool
from vggfeat.nets.vgg import NETS, VGG

AnyModule = TypeVar("AnyModule", bound=nn.Module)

FAMILIES: dict[str, type[VGG]] = dict.fromkeys(NETS, VGG)
"""The class that builds each net, by the name of the net."""


def build(config: str, num_classes: int = 1000, *, width: float = 1.0, pool: Pool = "floor") -> Net:
    """Build a net by its name.

    Raises
    ------
    ConfigError
        If there is no such net, or it can't be of that width.
    """
    check_choice("net", config, FAMILIES)
    return FAMILIES[config](config, num_classes, width=width, pool=pool)


def empty_model(path: Path, about: Mapping[str, Any]) -> Net:
    """Build the net that a file is about, without memory for its weights.

    Raises
    ------
    WeightsError
        If there is no such net.
    """
    try:
        with torch.device("meta"):
            return build(about["config"], int(about["num_classes"]), width=float(about["width"]), pool=about["pool"])
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise WeightsError(f"{path}: its metadata describe no net of the VGG paper: {error}") from None


def allocated(model: AnyModule) -> AnyModule:
    """Give a net without memory its tensors on the CPU, in float32, with any values.

    `to_empty` of PyTorch does the same, but imports a library for symbols first, which takes seconds.
    """
    blank = {name: torch.empty(tensor.shape, dtype=torch.float32) for name, tensor in model.state_dict().items()}
    model.load_state_dict(blank, assign=True)
    return model


def check_shapes(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a file has the tensors of a net, no more and no less, before any of them is read.

    Raises
    ------
    WeightsError
        For the first that is missing, unknown or of another shape.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected:
            verb = "misses" if name not in found else "has an unexpected"
            raise WeightsError(f"{path}: {verb} tensor {name}; it is of another network or damaged")
        if tuple(expected[name].shape) != found[name]:
            raise WeightsError(
                f"{path}: {name}: expected shape {tuple(expected[name].shape)}, found {found[name]}; "
                "it is of another network or damaged"
            )


def fill(path: Path, model: Net, tensors: Mapping[str, Tensor]) -> None:
    """Give a net its weights, in float32, and make it ready to be run.

    Raises
    ------
    WeightsError
        If a tensor holds anything else than finite floating-point numbers.
    """
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point or tensor.layout is not torch.strided:
            raise WeightsError(f"{path}: {name}: expected floating-point numbers, found {tensor.dtype}")
    ready = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    for name, tensor in ready.items():  # after the conversion: float64 holds numbers that float32 does not
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {name}: expected finite numbers, found NaN or infinity; take other weights")
    model.layers.load_state_dict(ready, strict=True, assign=True)
    model.eval().requires_grad_(False)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values in the order of the names, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def initialise(model: Net, generator: torch.Generator) -> None:
    """Draw random weights that keep the scale of activations through any depth; biases are zero.

    Normal with variance 2 / fan-in (He et al. 2015): the choice of `random:` nets. Training recipes bring their
    own initialisation.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, math.sqrt(2.0 / parameter[0].numel()), generator=generator)
