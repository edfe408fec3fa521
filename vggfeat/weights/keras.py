"""Keras's VGG nets of any age: the published weights, complete models, .weights.h5 files, and .keras archives.

Keras stores kernels as (height, width, in, out) and flattens pool5 as H, W, C. Where a file puts a layer depends on
the version that wrote it; in all of them the two variables of a layer lie in one group, named after the layer.
"""

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from torch import Tensor

from vggfeat.errors import StoreError, WeightsError
from vggfeat.formats.archive import read_member
from vggfeat.formats.hdf5 import UntrustedHDF5, open_hdf5
from vggfeat.nets.backbone import IMAGENET_MEAN
from vggfeat.nets.vgg import WINDOW
from vggfeat.weights.importing import ParsedNet, to_tensor
from vggfeat.weights.match_layers import as_convolution, layers_in_order, match_kernels, usable_top
from vggfeat.wording import quoted

_ROOTS = ("model_weights", "layers", "_layer_checkpoint_dependencies")
"""Where the layers are: in a complete model, in .weights.h5, in .weights.h5 of Keras 2; else at the top."""
_DEPTH = 6
_MOST_CONFIG = 8 << 20
_FC = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
_MODELS = ("Model", "Functional", "Sequential")
_KINDS = ("InputLayer", "Conv2D", "Convolution2D", "ZeroPadding2D", "MaxPooling2D", "Flatten", "Dense", "Dropout")
_ACTIVATIONS = (None, "linear", "relu", "softmax")
_HARMLESS = frozenset((*_MODELS, *_KINDS, "Activation", "ReLU", "Softmax"))


@dataclass(frozen=True)
class _Layer:
    name: str
    kernel: h5py.Dataset
    bias: h5py.Dataset


@contextmanager
def open_keras(path: Path) -> Iterator[ParsedNet]:
    """Open a VGG net that Keras saved as HDF5.

    The files hold the authors' nets, so they take BGR, 0 to 255, less the mean pixel (Keras's preprocess_input of
    mode 'caffe'). Poolings round down in Keras, unlike in Caffe. fc6 has its inputs in the order H, W, C, which is
    undone here.

    Raises WeightsError if it is damaged, leads to other files, or is of another network.
    """
    with _damage(path), open_hdf5(path) as file:
        if "features" in file and "features_sha256" in file.attrs:
            raise WeightsError(f"{path}: expected a net, found a feature file; give it to `vggfeat svm --features`")
        config = file.attrs.get("model_config")
        yield _parse(path, file, path.stat().st_size, None if config is None else json.loads(config))


@contextmanager
def open_keras_archive(path: Path) -> Iterator[ParsedNet]:
    """Open a VGG net in a .keras archive, which has the layers in config.json and the weights in model.weights.h5.

    Raises WeightsError as for `open_keras`; and if the archive declares more than it can hold.
    """
    config = read_member(path, "config.json", _MOST_CONFIG)
    content = read_member(path, "model.weights.h5")
    with _damage(path), h5py.File(io.BytesIO(content), "r") as file:
        yield _parse(path, file, len(content), json.loads(config))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except StoreError as error:
        raise WeightsError(f"{error}; it is damaged, or not a file of Keras") from None
    except Exception as error:  # h5py lets OSError, RuntimeError, KeyError, ValueError and others out
        raise WeightsError(
            f"{path}: expected a file of Keras, found one that can't be read ({quoted(str(error))}); "
            "it is damaged or cut off: take it again"
        ) from error


def _parse(path: Path, file: h5py.File, size: int, config: Any) -> ParsedNet:
    if config is not None:
        _check_config(path, config)
    layers = list(_layers(path, UntrustedHDF5(file, str(path), size)))
    ours = _names(path, layers)
    top, notes = usable_top([f"{name}.weight" for name in ours])
    shapes, stored = {}, {}
    for name, layer in ours.items():
        if name.startswith("fc") and name not in top:
            continue
        shapes[f"{name}.weight"] = _our_shape(name, layer.kernel.shape)
        shapes[f"{name}.bias"] = layer.bias.shape
        stored[f"{name}.weight"], stored[f"{name}.bias"] = layer.kernel, layer.bias

    def read(name: str) -> Tensor:
        tensor = to_tensor(path, name, stored[name][()])
        if name.startswith("fc6.w"):  # (H*W*C, out)
            tensor = tensor.reshape(WINDOW, WINDOW, -1, tensor.shape[1])
        elif name.startswith("fc") and tensor.ndim == 2:
            tensor = tensor[None, None]
        return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor

    return ParsedNet(
        model=match_kernels(path, shapes, "floor"),
        format="Keras",
        shapes=shapes,
        read=read,
        channel_order="BGR",
        mean=IMAGENET_MEAN[::-1],
        mean_from="published with the authors' nets",
        assumed=True,
        fc6_order="H,W,C",
        notes={"first_kernel": str(layers[0].kernel.name), **notes},
    )


def _our_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return as_convolution(name, shape[::-1])


def _names(path: Path, layers: list[_Layer]) -> dict[str, _Layer]:
    """Find out which layer of ours each one is: by its name, or else by its number."""
    if not layers or len({layer.name for layer in layers}) != len(layers):
        names = ", ".join(sorted(layer.name for layer in layers)) or "none"
        raise WeightsError(f"{path}: expected the layers of one VGG net of Keras, found {names}")
    convolutions = [layer for layer in layers if len(layer.kernel.shape) == 4]
    dense = [layer for layer in layers if len(layer.kernel.shape) != 4]
    for layer in convolutions:
        if layer.kernel.shape[0] != layer.kernel.shape[1]:
            raise WeightsError(
                f"{path}: {layer.name}: expected a kernel (height, width, in, out), found shape {layer.kernel.shape}, "
                "Theano's order; take the file for TensorFlow ('tf_dim_ordering_tf_kernels')"
            )
    named = [(re.fullmatch(r"block(\d)_conv(\d)", layer.name), layer) for layer in convolutions]
    if all(match for match, _ in named):
        ours = {f"conv{match[1]}_{match[2]}": layer for match, layer in named if match}
    else:
        convolutions = _by_number(path, convolutions, "conv2d")
        order = layers_in_order(path, [layer.kernel.shape[0] for layer in convolutions])
        ours = dict(zip(order, convolutions, strict=True))
    if {layer.name for layer in dense} <= set(_FC):
        return ours | {_FC[layer.name]: layer for layer in dense}
    return ours | dict(zip(_FC.values(), _by_number(path, dense, "dense"), strict=False))


def _by_number(path: Path, layers: list[_Layer], kind: str) -> list[_Layer]:
    matches = [re.fullmatch(rf"{kind}(?:_(\d{{1,6}}))?", layer.name) for layer in layers]
    if not all(matches) or (kind == "dense" and len(layers) != len(_FC)):
        raise WeightsError(
            f"{path}: expected layers named block1_conv1 ... fc1, fc2, predictions, or 8 to 16 numbered {kind}, "
            f"found {', '.join(layer.name for layer in layers)}"
        )
    numbers = [int(match[1] or 0) for match in matches if match]
    return [layer for _, layer in sorted(zip(numbers, layers, strict=True), key=lambda pair: pair[0])]


def _layers(path: Path, source: UntrustedHDF5) -> Iterator[_Layer]:
    root = next((name for name in _ROOTS if name in source.members(source.file)), None)
    start = source.file if root is None else source.file[root]
    for group, found in _groups(source, start):
        kernels = [data for data in found if len(data.shape) > 1]
        biases = [data for data in found if len(data.shape) == 1]
        name = _layer_name(group)
        if len(kernels) != 1 or len(biases) != 1:
            raise WeightsError(
                f"{path}: {name}: expected a kernel and a bias, found {len(found)} variables; batch normalisation and "
                "other layers with weights are not of the VGG paper"
            )
        yield _Layer(name, kernels[0], biases[0])


def _groups(source: UntrustedHDF5, start: h5py.Group) -> Iterator[tuple[h5py.Group, list[h5py.Dataset]]]:
    """Walk over the groups that hold variables. Hard links may form a circle: none is entered twice."""
    waiting, seen = [(start, 0)], set()
    while waiting:
        group, depth = waiting.pop(0)
        address = h5py.h5o.get_info(group.id).addr
        if address in seen or depth > _DEPTH or not isinstance(group, h5py.Group):
            raise source.refuse(str(group.name), "groups within groups, a few deep", "a circle, or many")
        seen.add(address)
        found = []
        for name in source.members(group):
            if group.get(name, getclass=True) is h5py.Group:
                waiting.append((group[name], depth + 1))
            else:
                found.append(source.column(group, name, (None,) * len(group[name].shape or ()), "<f4"))
        if found:
            yield group, found


def _layer_name(group: h5py.Group) -> str:
    *_, parent, last = ("", *str(group.name).split("/"))
    if last != "vars":
        return last
    name = group.attrs.get("name")  # Keras 3 names the group after the kind of layer
    return name if isinstance(name, str) and name else parent


def _check_config(path: Path, model: Any) -> None:
    """Refuse what the weights of a complete model don't show: other layers, or the same ones with other settings."""
    for layer in _described(model):
        kind, config = layer.get("class_name"), layer.get("config")
        if kind not in _HARMLESS:
            raise WeightsError(
                f"{path}: expected the layers of a VGG net, found one of kind {quoted(kind)}, whose "
                "effect would be lost"
            )
        config = config if isinstance(config, dict) else {}
        activation, padding = config.get("activation"), config.get("padding", config.get("border_mode"))
        if activation not in _ACTIVATIONS or (kind == "MaxPooling2D" and padding not in (None, "valid")):
            raise WeightsError(
                f"{path}: expected the layers of a VGG net, with ReLU and poolings without padding, found a "
                f"{quoted(kind)} with activation {quoted(activation)} and padding {quoted(padding)}"
            )
        order = config.get("data_format", config.get("dim_ordering"))
        if order in ("channels_first", "th"):
            raise WeightsError(
                f"{path}: expected channels_last, found {order}, which orders the inputs of fc6 otherwise"
            )


def _described(model: Any) -> Iterator[dict[str, Any]]:
    layers = model["config"] if isinstance(model["config"], list) else model["config"].get("layers", [])
    for layer in layers:
        yield layer
        if layer.get("class_name") in _MODELS:
            yield from _described(layer)
