"""A net ready for use, and what every importer does on the way there: shapes, finite numbers, fingerprints."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vggfeat.errors import ConfigError, WeightsError
from vggfeat.nets.vgg import VGG

Net = TypeVar("Net", bound=nn.Module)

IMAGENET_MEAN = (123.68, 116.779, 103.939)
"""Mean RGB pixel of the ILSVRC training set, 0 to 255, as published with the authors' nets."""
BOX_FACTS = "localisation"
"""What a file of ours has among its facts if its last layer answers with boxes; see `vggfeat.localisation.nets`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A net and the preprocessing that its weights ask for."""

    model: VGG
    """In evaluation mode, on the CPU, float32."""
    source: str
    """What was asked for: a file name without its folder, small, or random:NET:SEED:WIDTH."""
    sha256: str
    """Of the file's bytes; of the tensors for random weights. 64 hex digits."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """RGB, 0 to 255, subtracted from every pixel (Sect. 2.1)."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB, 0 to 255, divided by after that: 1 in the paper."""
    classes: tuple[str, ...] = ()
    """Names of the fc8 channels, where the file holds them."""
    trained: bool = True
    """False for random weights."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else a file of ours says of its net, for instance the recipe and the accuracy; nothing depends on it."""
    imported: Mapping[str, Any] = field(default_factory=dict)
    """For a net of another library: its format, its file, and how each question of preprocessing was settled."""

    def describe(self) -> dict[str, Any]:
        """Return what belongs into the provenance of anything computed with the net, ready for JSON."""
        return {
            "weights": self.source,
            "weights_sha256": self.sha256,
            "net": self.model.config,
            "width": self.model.width,
            "num_classes": self.model.num_classes,
            "pool_rounding": self.model.pool,
            "channel_order": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "trained": self.trained,
            **({"imported": dict(self.imported)} if self.imported else {}),
        }


def empty_model(path: Path, about: Mapping[str, Any]) -> VGG:
    """Build the net that a file is about, without memory for its weights.

    Raises
    ------
    WeightsError
        If there is no such net.
    """
    try:
        with torch.device("meta"):
            return VGG(about["config"], int(about["num_classes"]), width=float(about["width"]), pool=about["pool"])
    except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise WeightsError(f"{path}: its metadata describe no net of the VGG paper: {error}") from None


def allocated(model: Net) -> Net:
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


def fill(path: Path, model: VGG, tensors: Mapping[str, Tensor]) -> None:
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
