"""PyTorch state dicts of VGG nets, read without running anything that they hold.

One doorway for three sets of names: torchvision's, that of nets which were converted from Caffe for an older
torchvision (jcjohnson's), and timm's.
"""

import pickle
import re
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
from vggfeat.nets.vgg import NETS, WINDOW
from vggfeat.weights.importing import Imported, finish

TORCHVISION_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
TORCHVISION_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

Shapes = Mapping[str, tuple[int, ...]]
Read = Callable[[str], Tensor]


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What the names of the fully connected layers in a state dict give away."""

    fc: tuple[str, str, str]
    """fc6, fc7 and fc8."""
    facts: Mapping[str, Any]
    """The fields of `Imported` that follow."""


_TORCHVISION: dict[str, Any] = {
    "channel_order": "RGB",
    "mean": TORCHVISION_MEAN,
    "std": TORCHVISION_STD,
    "mean_from": "torchvision's documentation (0.485, 0.456, 0.406 of 1)",
    "pool": "floor",
}
_CAFFE_POOL: Pool = "ceil"
NAMINGS = (
    Naming(
        fc=("classifier.0", "classifier.3", "classifier.6"),
        facts=_TORCHVISION | {"format": "torchvision", "fc6_order": "C,H,W"},
    ),
    Naming(
        fc=("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
        facts=_TORCHVISION | {"format": "timm", "fc6_order": "convolution"},
    ),
    Naming(  # Older torchvision put the dropout first; what is published with these names came from Caffe.
        fc=("classifier.1", "classifier.4", "classifier.6"),
        facts={
            "format": "PyTorch, converted from Caffe",
            "channel_order": "BGR",
            "mean": IMAGENET_MEAN[::-1],
            "mean_from": "published with the authors' nets",
            "pool": _CAFFE_POOL,
            "fc6_order": "C,H,W",
        },
    ),
)


def load_torchvision(path: Path) -> Backbone:
    """Load a state dict saved by `torch.save`: torchvision's, timm's, or one converted from Caffe (jcjohnson's).

    torchvision's and timm's take RGB, 0 to 1, less the mean and over the deviation that torchvision documents, and
    their poolings round down. Converted ones, with layers classifier.1, .4 and .6, are the authors' nets: BGR, 0 to
    255, less the mean pixel, and poolings that round up, as Caffe's do. fc6 has its inputs in the order C, H, W in
    both.

    Raises
    ------
    WeightsError
        If it is damaged, not safe to load, of another network, or holds NaN, as IMAGENET1K_FEATURES does in fc6 to
        fc8.
    """
    state = _read_state(path)
    return _from_state(path, {name: tuple(tensor.shape) for name, tensor in state.items()}, state.__getitem__)


def load_timm(path: Path) -> Backbone:
    """Load a state dict in safetensors: timm's, or one with torchvision's names.

    The names settle the preprocessing, as in `load_torchvision`; in timm's, fc6 is a convolution already.

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
    naming, layers = _recognise(path, set(shapes))
    names = _keys(layers)
    ours = {name: _as_kernel(name, shapes[theirs]) for name, theirs in names.items()}

    def read_ours(name: str) -> Tensor:
        # Linear (out, in) with in = C,H,W becomes a convolution (out, C, H, W) without moving a value.
        return _plain(path, name, read(names[name])).reshape(ours[name])

    told = {"fc_layers": ", ".join(naming.fc)}
    return finish(path, Imported(shapes=ours, read=read_ours, told=told, **naming.facts))


def torchvision_names(config: str) -> dict[str, str]:
    """Map our layer names to torchvision's: features.N counts convolutions, ReLUs and poolings in a row."""
    return _layers(config, NAMINGS[0])


def _layers(config: str, naming: Naming) -> dict[str, str]:
    names, position = {}, 0
    for number, kernels in enumerate(NETS[config].blocks, start=1):
        for index in range(1, len(kernels) + 1):
            names[f"conv{number}_{index}"] = f"features.{position}"
            position += 2
        position += 1
    return names | dict(zip(("fc6", "fc7", "fc8"), naming.fc, strict=True))


def _recognise(path: Path, keys: set[str]) -> tuple[Naming, dict[str, str]]:
    if any(re.fullmatch(r"features\.\d+\.running_mean", key) for key in keys):
        raise WeightsError(f"{path}: expected a net of the VGG paper, found batch normalisation (a vgg*_bn net)")
    for naming in NAMINGS:
        for config in NETS:  # C and D have the same names: the kernels tell them apart later
            layers = _layers(config, naming)
            convolutions = {our: their for our, their in layers.items() if our.startswith("conv")}
            for found in (layers, convolutions):
                if set(_keys(found).values()) == keys:
                    return naming, found
    raise WeightsError(
        f"{path}: expected the keys of torchvision's or timm's vgg11, vgg13, vgg16 or vgg19, found {len(keys)} "
        f"others, for instance {min(keys, default='none')!r}"
    )


def _keys(layers: Mapping[str, str]) -> dict[str, str]:
    return {f"{our}.{kind}": f"{their}.{kind}" for our, their in layers.items() for kind in ("weight", "bias")}


def _as_kernel(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 2 or not name.startswith("fc"):
        return shape
    side = WINDOW if name.startswith("fc6") else 1
    return (shape[0], shape[1] // side**2, side, side) if shape[1] % side**2 == 0 else shape


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
        reason = "other objects than tensors, which is not safe to load" if other else "a damaged file; take it anew"
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
    # Deflated members would unpack to any size before the first tensor is looked at.
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
