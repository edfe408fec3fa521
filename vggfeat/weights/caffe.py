"""Caffe's .caffemodel files, with layers of either of its two forms: V1 (`layers`) and V2 (`layer`).

Numbers of fields and defaults are those of caffe.proto. Only what says which net it is, and its weights, is read.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import WeightsError
from vggfeat.formats.protobuf import Message, ProtobufFile
from vggfeat.nets.backbone import IMAGENET_MEAN
from vggfeat.weights.importing import ParsedNet, to_tensor
from vggfeat.weights.match_layers import Step, check_setting, match_steps, unknown_layer
from vggfeat.wording import named

_V1 = {"name": 4, "type": 5, "blobs": 6, "convolution": 10, "full": 17, "lrn": 18, "pooling": 19, "relu": 30}
_V2 = {"name": 1, "type": 2, "blobs": 7, "convolution": 106, "full": 117, "lrn": 118, "pooling": 121, "relu": 123}
_V1_TYPES = {
    1: "Accuracy", 4: "Convolution", 5: "Data", 6: "Dropout", 9: "HDF5Data", 12: "ImageData", 14: "InnerProduct",
    15: "LRN", 17: "Pooling", 18: "ReLU", 20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split", 29: "MemoryData",
    32: "DummyData", 36: "Silence",
}  # fmt: skip
_WEIGHTED = {"Convolution", "InnerProduct"}
_DATA = {"Data", "DummyData", "HDF5Data", "ImageData", "Input", "MemoryData"}
_PASSED = _DATA | {"Accuracy", "Dropout", "Silence", "Softmax", "SoftmaxWithLoss", "Split"}
"""Types that change nothing in fc8 and before it, once a net is trained."""
_TRANSFORMS = {"V1": ((36, 1, 4, 5), (11, 2, 3, 0), (15, 2, 3, 0)), "V2": ((100, 1, 4, 5),)}
"""In data layers: the fields of messages on preprocessing, and in each those of scale, mean file and mean values."""
_MOST_AXES = 32
"""Of an array, as in Caffe's blob.hpp."""


@dataclass(frozen=True, kw_only=True)
class _Blob:
    """An array of the file, not read yet."""

    shape: tuple[int, ...]
    message: Message

    def numbers(self) -> NDArray[np.floating]:
        double = self.message.bytes_of(8) >= 8
        return self.message.floats(8, "<f8") if double else self.message.floats(5)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer of the file: its message, and the numbers that fields have in its form."""

    name: str
    type: str
    blobs: Sequence[_Blob]
    """Weights and biases; none for a type that has none in a net of the paper."""
    message: Message
    numbers: Mapping[str, int]

    def settings(self, field: str) -> Message:
        return self.message.last(self.numbers[field])


@contextmanager
def open_caffe(path: Path) -> Iterator[ParsedNet]:
    """Open a .caffemodel.

    Caffe's nets take BGR pixels from 0 to 255 less a mean, round the output of a pooling up unless the layer says
    otherwise, and have the inputs of fully connected layers in the order C, H, W (pooling_layer.cpp,
    inner_product_layer.cpp).

    Raises WeightsError if it is damaged, or of another network.
    """
    try:
        with path.open("rb") as file:
            yield _parse(path, ProtobufFile(path, file).message())
    except OSError as error:
        raise WeightsError(f"{path}: can't read: {error.strerror or error}") from error


def _parse(path: Path, net: Message) -> ParsedNet:
    form, layers = _layers(path, net)
    used = [layer for layer in layers if layer.type not in _PASSED]
    matched = match_steps(path, [_step(path, layer) for layer in used])
    shapes, blobs = dict(matched.shapes), {}
    for ours, number in matched.steps.items():
        blobs[f"{ours}.weight"], blobs[f"{ours}.bias"] = used[number].blobs
        shapes[f"{ours}.bias"] = (math.prod(blobs[f"{ours}.bias"].shape),)
    names = {ours: used[number].name for ours, number in matched.steps.items()}
    return ParsedNet(
        model=matched.model,
        format="Caffe",
        shapes=shapes,
        read=lambda name: to_tensor(path, name, blobs[name].numbers()).reshape(shapes[name]),
        channel_order="BGR",
        fc6_order="C,H,W",
        **_preprocessing(path, form, layers),
        notes={"caffe_layers": form, "name_in_file": net.text(1), "layer_names": names, **matched.notes},
    )


def _layers(path: Path, net: Message) -> tuple[str, list[_Layer]]:
    old, new = net.messages(2), net.messages(100)
    if bool(old) == bool(new):
        found = "both" if old else "none"
        raise WeightsError(f"{path}: expected a Caffe model with layers of one form, V1 or V2, found {found}")
    if any(message.bytes_of(1) for message in old):
        raise WeightsError(
            f"{path}: expected layers of Caffe's form V1 or V2, found the oldest, V0; "
            "write the file again with Caffe's upgrade_net_proto_binary"
        )
    numbers, layers = (_V1, old) if old else (_V2, new)
    return "V1" if old else "V2", [_layer(path, message, numbers) for message in layers]


def _layer(path: Path, message: Message, numbers: Mapping[str, int]) -> _Layer:
    if numbers is _V1:
        code = (*message.integers(numbers["type"]), 0)[0]
        kind = _V1_TYPES.get(code, f"number {code} of V1")
    else:
        kind = message.text(numbers["type"])
    name = message.text(numbers["name"])
    blobs = [] if kind not in _WEIGHTED else [_blob(path, name, blob) for blob in message.messages(numbers["blobs"])]
    if kind in _WEIGHTED and len(blobs) != 2:
        raise WeightsError(f"{path}: {named(name)}: expected weights and biases, found {len(blobs)} arrays")
    return _Layer(name=name, type=kind, blobs=blobs, message=message, numbers=numbers)


def _step(path: Path, layer: _Layer) -> Step:
    if layer.type == "Convolution":
        settings = layer.settings("convolution")
        check_setting(path, layer.name, "group", settings.integers(5), 1)
        check_setting(path, layer.name, "dilation", settings.integers(18), 1)
        pad, stride = _all_around(settings.integers(3, 9, 10)), settings.integers(6, 13, 14) or (1,)
        return Step(kind="conv", name=layer.name, shape=layer.blobs[0].shape, pad=pad, stride=stride)
    if layer.type == "InnerProduct":
        settings = layer.settings("full")
        check_setting(path, layer.name, "axis", settings.integers(5), 1)
        check_setting(path, layer.name, "transpose", settings.integers(6), 0)
        shape = layer.blobs[0].shape
        # The form with four axes is (1, 1, out, in).
        return Step(kind="full", name=layer.name, shape=shape[2:] if len(shape) == 4 and shape[:2] == (1, 1) else shape)
    if layer.type == "Pooling":
        settings = layer.settings("pooling")
        check_setting(path, layer.name, "pool", settings.integers(1), 0)
        check_setting(path, layer.name, "global_pooling", settings.integers(12), 0)
        return Step(
            kind="pool",
            name=layer.name,
            shape=(settings.integers(2, 5, 6) * 2)[:2],
            pad=_all_around(settings.integers(4, 9, 10)),
            stride=settings.integers(3, 7, 8) or (1,),
            rounding="floor" if settings.integers(13)[-1:] == (1,) else "ceil",
        )
    if layer.type == "LRN":
        settings = layer.settings("lrn")
        check_setting(path, layer.name, "norm_region", settings.integers(4), 0)
        size = (settings.integers(1) or (5,))[-1]
        alpha, beta, k = _float(settings, 2, 1.0), _float(settings, 3, 0.75), _float(settings, 5, 1.0)
        # Caffe divides alpha by the number of channels.
        return Step(kind="lrn", name=layer.name, numbers=(size, k, alpha / max(size, 1), beta))
    if layer.type != "ReLU":
        raise unknown_layer(path, layer.name, layer.type)
    check_setting(path, layer.name, "negative_slope", layer.settings("relu").floats(1).tolist(), 0)
    return Step(kind="relu", name=layer.name)


def _all_around(pad: tuple[int, ...]) -> tuple[int, int, int, int]:
    top, left = (pad * 2)[:2] if pad else (0, 0)
    return top, top, left, left


def _blob(path: Path, layer: str, message: Message) -> _Blob:
    # Before `shape` there were num, channels, height and width.
    shape = message.last(7).integers(1) or message.integers(1, 2, 3, 4)
    numbers = message.bytes_of(8) // 8 or message.bytes_of(5) // 4
    if len(shape) > _MOST_AXES or math.prod(shape) != numbers:
        raise WeightsError(
            f"{path}: {named(layer)}: expected as many numbers as its shape {list(shape)[:5]} says, found {numbers}; "
            "it is damaged or holds no weights"
        )
    return _Blob(shape=shape, message=message)


def _preprocessing(path: Path, form: str, layers: Sequence[_Layer]) -> dict[str, Any]:
    """Find mean and scale: those of the data layers, which a net saved in training has, else what was published."""
    data = [layer.message for layer in layers if layer.type in _DATA]
    said = {_transform(message.last(field), *rest) for message in data for field, *rest in _TRANSFORMS[form]}
    said -= {(1.0, (), "")}
    if len(said) > 1:
        raise WeightsError(f"{path}: expected one mean and scale in all data layers, found {len(said)}")
    scale, values, file = said.pop() if said else (1.0, (), "")
    if len(values) not in (0, 1, 3) or not all(map(math.isfinite, (*values, 1 / scale if scale > 0 else math.inf))):
        raise WeightsError(f"{path}: expected 3 mean values and a scale above 0, found {list(values)[:5]} and {scale}")
    published = "published with the authors' nets" + (f", in the place of {named(file)}" if file else "")
    mean = tuple(values * 3)[:3] or IMAGENET_MEAN[::-1]
    about = {"mean_from": "the file" if values else published, "assumed": not values}
    return {"mean": mean, "std": (1 / scale,) * 3, **about}


def _transform(settings: Message, scale: int, file: int, mean: int) -> tuple[float, tuple[float, ...], str]:
    return _float(settings, scale, 1.0), tuple(map(float, settings.floats(mean))), settings.text(file)


def _float(settings: Message, number: int, default: float) -> float:
    return float((default, *settings.floats(number))[-1])
