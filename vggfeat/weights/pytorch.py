"""PyTorch state dicts of VGG nets, read without running anything that they hold.

Three sets of names, by which a file is recognised: torchvision's, that of nets which were converted from Caffe for an
older torchvision (jcjohnson's), and timm's; the first and the last with batch normalisation or without.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vggfeat.errors import WeightsError
from vggfeat.nets.backbone import IMAGENET_MEAN, Backbone, Pool
from vggfeat.nets.vgg import NETS, NetConfig
from vggfeat.nets.vgg_bn import BATCH_NORM_NETS
from vggfeat.weights.importing import ParsedNet, Read, Shapes, finish
from vggfeat.weights.match_layers import as_convolution, match_kernels

TORCHVISION_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
TORCHVISION_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
BATCH_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What the names of the fully connected layers in a state dict give away."""

    fc: tuple[str, str, str]
    """fc6, fc7 and fc8."""
    nets: Mapping[str, NetConfig]
    """Nets that have been published with these names."""
    pool: Pool
    facts: Mapping[str, Any]
    """Fields of `ParsedNet` that follow."""


_TORCHVISION: dict[str, Any] = {
    "channel_order": "RGB",
    "mean": TORCHVISION_MEAN,
    "std": TORCHVISION_STD,
    "mean_from": "torchvision's documentation (0.485, 0.456, 0.406 of 1)",
}
NAMINGS = (
    Naming(
        fc=("classifier.0", "classifier.3", "classifier.6"),
        nets=NETS | BATCH_NORM_NETS,
        pool="floor",
        facts=_TORCHVISION | {"format": "torchvision", "fc6_order": "C,H,W"},
    ),
    Naming(
        fc=("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
        nets=NETS | BATCH_NORM_NETS,
        pool="floor",
        facts=_TORCHVISION | {"format": "timm", "fc6_order": "convolution"},
    ),
    Naming(  # Older torchvision put the dropout first; what is published with these names came from Caffe.
        fc=("classifier.1", "classifier.4", "classifier.6"),
        nets=NETS,
        pool="ceil",
        facts={
            "format": "PyTorch, converted from Caffe",
            "channel_order": "BGR",
            "mean": IMAGENET_MEAN[::-1],
            "mean_from": "published with the authors' nets",
            "fc6_order": "C,H,W",
        },
    ),
)


def load_pickled(path: Path) -> Backbone:
    """Load a state dict saved by `torch.save`: torchvision's, timm's, or one converted from Caffe (jcjohnson's).

    torchvision's and timm's take RGB, 0 to 1, less the mean and over the deviation that torchvision documents, and
    their poolings round down. Converted ones, with layers classifier.1, .4 and .6, are the authors' nets: BGR, 0 to
    255, less the mean pixel, and poolings that round up, as Caffe's do. fc6 has its inputs in the order C, H, W in
    both; in timm's files it is a convolution already.

    Raises
    ------
    WeightsError
        If it is damaged, not safe to load, of another network, or holds NaN, as IMAGENET1K_FEATURES does in fc6 to
        fc8.
    """
    state = _read_state(path)
    return _from_state(path, {name: tuple(tensor.shape) for name, tensor in state.items()}, state.__getitem__)


def load_safetensors(path: Path) -> Backbone:
    """Load a state dict in safetensors; the names settle the preprocessing, as in `load_pickled`.

    Raises
    ------
    WeightsError
        If it is damaged or of another network.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return _from_state(path, shapes, file.get_tensor)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: expected a safetensors file, found a damaged one: {error}") from error


def _from_state(path: Path, shapes: Shapes, read: Read) -> Backbone:
    # How many batches the statistics were taken from changes nothing.
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith(".num_batches_tracked")}
    for parse in STATE_DICTS:
        parsed = parse(path, shapes, read)
        if parsed is not None:
            return finish(path, parsed)
    raise WeightsError(
        f"{path}: expected the keys of torchvision's or timm's vgg11, vgg13, vgg16 or vgg19, with batch normalisation "
        f"or without, found {len(shapes)} others, for instance {min(shapes, default='none')!r}"
    )


def parse_vgg(path: Path, shapes: Shapes, read: Read) -> ParsedNet | None:
    """Return the VGG net of a state dict; None if the names are those of none."""
    for naming in NAMINGS:
        for config in naming.nets:  # C and D have the same names: the kernels tell them apart
            names = _names(naming.nets[config], config in BATCH_NORM_NETS, naming.fc)
            convolutions = {ours: theirs for ours, theirs in names.items() if not ours.startswith("fc")}
            for found in (names, convolutions):
                if set(found.values()) == shapes.keys():
                    nets = BATCH_NORM_NETS if config in BATCH_NORM_NETS else NETS
                    return _parsed(path, naming, nets, found, shapes, read)
    return None


STATE_DICTS: tuple[Callable[[Path, Shapes, Read], ParsedNet | None], ...] = (parse_vgg,)
"""Importers of state dicts: each returns None where the names are not its own."""


def _parsed(
    path: Path, naming: Naming, nets: Mapping[str, NetConfig], names: Mapping[str, str], shapes: Shapes, read: Read
) -> ParsedNet:
    # Linear (out, in) with in = C,H,W becomes a convolution (out, C, H, W) without moving a value.
    ours = {name: as_convolution(name.partition(".")[0], shapes[theirs]) for name, theirs in names.items()}
    return ParsedNet(
        model=match_kernels(path, ours, naming.pool, nets),
        shapes=ours,
        read=lambda name: _plain(path, name, read(names[name])).reshape(ours[name]),
        notes={"fc_layers": ", ".join(naming.fc)},
        **naming.facts,
    )


def torchvision_names(config: str) -> dict[str, str]:
    """Map the names of our tensors to torchvision's: features.N counts all the layers of the convolutional part."""
    return _names(NAMINGS[0].nets[config], config in BATCH_NORM_NETS, NAMINGS[0].fc)


def _names(net: NetConfig, batch_norm: bool, fc: tuple[str, str, str]) -> dict[str, str]:
    names: dict[str, str] = {}
    position = 0
    for number, kernels in enumerate(net.blocks, start=1):
        for index in range(1, len(kernels) + 1):
            names |= {f"conv{number}_{index}.{kind}": f"features.{position}.{kind}" for kind in ("weight", "bias")}
            if batch_norm:
                position += 1
                names |= {f"bn{number}_{index}.{kind}": f"features.{position}.{kind}" for kind in BATCH_NORM_TENSORS}
            position += 2  # behind the ReLU
        position += 1  # behind the pooling
    for ours, theirs in zip(("fc6", "fc7", "fc8"), fc, strict=True):
        names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return names


def _plain(path: Path, name: str, tensor: Tensor) -> Tensor:
    # Sparse, quantised and meta tensors, and subclasses, pass through weights_only and fail much later.
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and type(tensor) in (Tensor, nn.Parameter)
    if not plain or not tensor.dtype.is_floating_point:
        kind = str(tensor.dtype) if plain else f"{tensor.dtype} in another form"
        raise WeightsError(f"{path}: {name}: expected floating-point numbers, found {kind}")
    if name.startswith("fc") and tensor.isnan().all():
        raise WeightsError(
            f"{path}: {name}: expected finite numbers, found NaN alone; a file of convolutions, as torchvision's "
            "IMAGENET1K_FEATURES (vgg16_features-amdegroot-88682ab5.pth), can't give fc6 and fc7: take IMAGENET1K_V1 "
            "(vgg16-397923af.pth) or the authors' nets"
        )
    return tensor.detach()


def _read_state(path: Path) -> Mapping[str, Tensor]:
    _check_zip(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged file makes it raise
        other = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)
        reason = "other objects than tensors, which is not safe to load" if other else "a damaged file; take it again"
        raise WeightsError(
            f"{path}: expected safetensors or a state dict saved by torch.save, found {reason}"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        entries = f" with {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else ""
        raise WeightsError(
            f"{path}: expected a state dict of tensors, found {type(state).__name__}{entries}; "
            "save the net's state_dict() alone"
        )
    return {str(name): tensor for name, tensor in state.items()}


def _check_zip(path: Path) -> None:
    # Deflated members would unpack to any size before the first tensor is checked.
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path}: expected a PyTorch file, found a damaged archive: {error}") from None
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path}: expected a PyTorch file with uncompressed members, found compressed ones")
