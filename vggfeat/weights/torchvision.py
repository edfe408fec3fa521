"""torchvision's state dicts of vgg11, vgg13, vgg16 and vgg19, read without running anything that they hold."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vggfeat.errors import WeightsError
from vggfeat.models import BLOCK_CHANNELS, NETS, VGG
from vggfeat.weights.backbone import Backbone, check_shapes, empty_model, fill, hash_file

TORCHVISION_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
TORCHVISION_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def load_torchvision(path: Path) -> Backbone:
    """Load a state dict saved by `torch.save`.

    Raises
    ------
    WeightsError
        If it is damaged, not safe to load, or of another network.
    """
    state = _read_state(path)
    model, names = _recognise(path, state)
    expected = model.layers.state_dict()
    tensors = {ours: state[theirs] for ours, theirs in names.items()}
    for name in ("fc6.weight", "fc7.weight", "fc8.weight"):
        # Linear (out, in) with in = C,H,W becomes a convolution (out, C, H, W) without moving a value.
        if tensors[name].numel() == expected[name].numel():
            tensors[name] = tensors[name].reshape(expected[name].shape)
    check_shapes(path, expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    fill(path, model, tensors)
    sha256 = hash_file(path)
    return Backbone(model=model, source=path.name, sha256=sha256, mean=TORCHVISION_MEAN, std=TORCHVISION_STD)


def torchvision_names(config: str) -> dict[str, str]:
    """Map our layer names to torchvision's: features.N counts convolutions, ReLUs and poolings in a row."""
    names, position = {}, 0
    for number, kernels in enumerate(NETS[config].blocks, start=1):
        for index in range(1, len(kernels) + 1):
            names[f"conv{number}_{index}"] = f"features.{position}"
            position += 2
        position += 1
    return names | {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}


def _read_state(path: Path) -> Mapping[str, Tensor]:
    _check_zip(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged file makes it raise
        other = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)
        reason = "other objects than tensors, which is not safe to load" if other else "a damaged file"
        raise WeightsError(
            f"{path}: expected safetensors or a state dict saved by torch.save, found {reason}"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        entries = f" with {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else ""
        raise WeightsError(
            f"{path}: expected a state dict of tensors, found {type(state).__name__}{entries}; "
            "save the net's state_dict() alone"
        )
    return state


def _check_zip(path: Path) -> None:
    # Deflated members would unpack to any size before the first tensor is looked at.
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise WeightsError(f"{path}: expected a PyTorch file, found a damaged archive: {error}") from None
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path}: expected a PyTorch file with uncompressed members, found compressed ones")


def _recognise(path: Path, state: Mapping[str, Tensor]) -> tuple[VGG, dict[str, str]]:
    keys = {str(key) for key in state}
    if any(re.fullmatch(r"features\.\d+\.running_mean", key) for key in keys):
        raise WeightsError(f"{path}: expected a net of the VGG paper, found batch normalisation (a vgg*_bn net)")
    if "classifier.1.weight" in keys:
        raise WeightsError(
            f"{path}: found fully connected layers named classifier.1, .4 and .6, as in nets that were converted "
            "from Caffe and take BGR pixels; expected torchvision's classifier.0, .3 and .6, which take RGB"
        )
    for config in NETS:
        layers = torchvision_names(config)
        names = {f"{our}.{kind}": f"{their}.{kind}" for our, their in layers.items() for kind in ("weight", "bias")}
        if set(names.values()) == keys and config != "A-LRN" and _same_kernels(config, layers, state):
            width = state["features.0.weight"].shape[0] / BLOCK_CHANNELS[0]
            about = {"config": config, "num_classes": state["classifier.6.weight"].shape[0], "width": width}
            return empty_model(path, about | {"pool": "floor"}), names
    raise WeightsError(
        f"{path}: expected the keys of torchvision's vgg11, vgg13, vgg16 or vgg19, found {len(keys)} others, "
        f"for instance {min(keys, default='none')!r}"
    )


def _same_kernels(config: str, layers: Mapping[str, str], state: Mapping[str, Tensor]) -> bool:
    for number, kernels in enumerate(NETS[config].blocks, start=1):
        for index, kernel in enumerate(kernels, start=1):
            shape = state[f"{layers[f'conv{number}_{index}']}.weight"].shape
            if len(shape) != 4 or shape[-1] != kernel:
                return False
    return True
