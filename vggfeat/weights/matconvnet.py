"""MatConvNet's SimpleNN files, those of its last releases and those from before 1.0-beta17.

Source: vl_simplenn, vl_simplenn_tidy and vl_nnpool of MatConvNet. Kernels are (height, width, in, out), RGB.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vggfeat.errors import WeightsError
from vggfeat.formats.mat5 import Numbers, Other, read_mat
from vggfeat.nets.backbone import IMAGENET_MEAN, Pool
from vggfeat.weights.importing import ParsedNet, to_tensor
from vggfeat.weights.match_layers import Step, check_setting, match_steps, unknown_layer
from vggfeat.wording import named, quoted

_PASSED = {"dropout", "softmax", "softmaxloss", "loss"}
"""Types that change nothing in fc8 and before it, once a net is trained."""

_FROM_DAGNN = (
    "take the SimpleNN of the same net (vggfeat weights fetch vgg16-matconvnet), or put the DagNN's numbers into one "
    "in MATLAB: net.layers{i}.weights = {params(k).value, params(k + 1).value}"
)
_MOST_NUMBERS = 8
"""In a setting of a layer."""


@contextmanager
def open_matconvnet(path: Path) -> Iterator[ParsedNet]:
    """Open a .mat file of MatConvNet.

    A pooling whose padding is [0 1 0 1] rounds its output up, as in the nets that were converted from Caffe; one
    without padding rounds it down. A mean image becomes the mean of its pixels, since dense maps have no place
    for it.

    Raises WeightsError if it is damaged, of another version of MATLAB, or of another network.
    """
    net = _net(path)
    # The layers of a cell, or of an array of structs; one alone is no list.
    listed = net["layers"] if isinstance(net["layers"], list) else [net["layers"]]
    layers = [_layer(path, number, layer) for number, layer in enumerate(listed, start=1)]
    used = [layer for layer in layers if layer["type"] not in _PASSED]
    matched = match_steps(path, [_step(path, layer) for layer in used])
    numbers = {}
    for ours, index in matched.steps.items():
        numbers[f"{ours}.weight"], numbers[f"{ours}.bias"] = used[index]["weights"]
    biases = {name: (array.array().size,) for name, array in numbers.items() if name.endswith(".bias")}
    mean, mean_from = _mean(path, net)
    yield ParsedNet(
        model=matched.model,
        format="MatConvNet",
        shapes={**matched.shapes, **biases},
        # Each array leaves the memory once it is read.
        read=lambda name: _read(path, name, numbers.pop(name)),
        channel_order="RGB",
        mean=mean,
        mean_from=mean_from,
        assumed="file" not in mean_from,
        fc6_order="convolution",
        classes=_classes(net),
        notes={
            "matconvnet": "before 1.0-beta17" if "filters" in used[0] else "1.0-beta17 or later",
            "layer_names": {ours: used[index]["name"] for ours, index in matched.steps.items()},
            **matched.notes,
        },
    )


def _net(path: Path) -> Mapping[str, Any]:
    """Read the variables of a net, whether saved on their own or in a struct called net."""
    found = read_mat(path, ("layers", "meta", "normalization", "classes", "net", "params"))
    net = found.get("net", found)
    if isinstance(net, Other):
        raise WeightsError(
            f"{path}: net: expected the struct of a SimpleNN, found {net.kind}, as DagNN are saved; {_FROM_DAGNN}, "
            "and save it with save(..., '-struct', 'net')"
        )
    if not isinstance(net, dict) or "layers" not in net:
        variables = ", ".join(found) or "none of them"
        raise WeightsError(f"{path}: expected the variables layers and meta of a SimpleNN, found {variables}")
    if "params" in net:
        raise WeightsError(f"{path}: expected a SimpleNN, found a DagNN; {_FROM_DAGNN}")
    # Older files have normalization and classes next to the layers.
    about = net["meta"] if isinstance(net.get("meta"), dict) else net
    return {**about, "layers": net["layers"]}


def _layer(path: Path, number: int, layer: Any) -> dict[str, Any]:
    if isinstance(layer, list) and len(layer) == 1:
        layer = layer[0]
    if not isinstance(layer, dict) or not isinstance(layer.get("type"), str):
        raise WeightsError(f"{path}: layer {number}: expected a struct with a type, found another; it is no SimpleNN")
    # An array of structs has all fields in each, empty where they mean nothing.
    layer = {field: value for field, value in layer.items() if not isinstance(value, Numbers) or value.content}
    name = layer.get("name")
    layer |= {"name": name if isinstance(name, str) and name else f"layer {number}"}
    if layer["type"] == "conv":
        weights = layer.get("weights", [layer.get("filters"), layer.get("biases")])
        if not isinstance(weights, list) or len(weights) != 2 or not all(isinstance(w, Numbers) for w in weights):
            raise WeightsError(f"{path}: {named(layer['name'])}: expected weights and biases as numbers, found others")
        layer["weights"] = weights
    return layer


def _step(path: Path, layer: Mapping[str, Any]) -> Step:
    kind, name = layer["type"], layer["name"]
    if kind == "conv":
        _expect(path, layer, "dilate", 1)
        height, width, *channels = layer["weights"][0].shape
        inputs, outputs = (*channels, 1, 1)[:2] if len(channels) < 3 else (0, 0)
        shape = (outputs, inputs, height, width)
        stride = _numbers(path, layer, "stride", 1)
        return Step(kind="conv", name=name, shape=shape, pad=_pad(path, layer), stride=stride)
    if kind == "pool":
        if layer.get("method", "max") != "max":
            raise WeightsError(f"{path}: {named(name)}: expected method max, found {quoted(layer['method'])}")
        height, width = (_numbers(path, layer, "pool", 0) * 2)[:2]
        pad, stride = _pad(path, layer), _numbers(path, layer, "stride", 1)
        window = (int(height), int(width))
        # A row and a column more, of values that never are the greatest: the output is rounded up.
        up = pad == (0, 1, 0, 1)
        rounding: Pool = "ceil" if up else "floor"
        pad = (0, 0, 0, 0) if up else pad
        return Step(kind="pool", name=name, shape=window, pad=pad, stride=stride, rounding=rounding)
    if kind in ("normalize", "lrn"):
        return Step(kind="lrn", name=name, numbers=(*_numbers(path, layer, "param", 0), 0, 0, 0)[:4])
    if kind != "relu":
        raise unknown_layer(path, name, kind)
    _expect(path, layer, "leak", 0)
    return Step(kind="relu", name=name)


def _numbers(path: Path, layer: Mapping[str, Any], name: str, default: int) -> tuple[float, ...]:
    """Return a setting of a layer: one number, or one for each axis or side."""
    value = layer.get(name, default)
    if isinstance(value, Numbers) and 0 < value.array().size <= _MOST_NUMBERS:
        return tuple(int(v) if float(v).is_integer() else float(v) for v in value.array().ravel())
    if value is not default:
        raise WeightsError(f"{path}: {named(layer['name'])}: {name}: expected a number or a few, found none or others")
    return (default,)


def _pad(path: Path, layer: Mapping[str, Any]) -> tuple[float, float, float, float]:
    pad = _numbers(path, layer, "pad", 0)
    if len(pad) not in (1, 4):
        raise WeightsError(f"{path}: {named(layer['name'])}: pad: expected 1 or 4 numbers, found {len(pad)}")
    top, bottom, left, right = pad * (4 // len(pad))
    return top, bottom, left, right


def _expect(path: Path, layer: Mapping[str, Any], name: str, expected: int) -> None:
    check_setting(path, layer["name"], name, _numbers(path, layer, name, expected), expected)


def _read(path: Path, name: str, numbers: Numbers) -> Tensor:
    if numbers.kind not in ("single", "double"):
        raise WeightsError(f"{path}: {name}: expected floating-point numbers, found {numbers.kind}")
    array = numbers.array()
    if array.dtype.kind != "f":
        array = array.astype("<f8")
    if name.endswith(".bias"):
        return to_tensor(path, name, array.ravel())
    # (out, in, width, height) in memory, less the axes of length 1 at MATLAB's end.
    array = array.reshape((1,) * (4 - array.ndim) + array.shape).swapaxes(2, 3)
    # Copied at once, so that the bytes of the file can leave the memory before the next array is read.
    return to_tensor(path, name, array).contiguous()


def _mean(path: Path, net: Mapping[str, Any]) -> tuple[tuple[float, float, float], str]:
    """Find the mean pixel, from a pixel or the pixels of an image."""
    normalization = net.get("normalization")
    image = normalization.get("averageImage") if isinstance(normalization, dict) else None
    if image is None:
        return IMAGENET_MEAN, "published with the authors' nets"
    if not isinstance(image, Numbers) or not image.array().size or image.array().size % 3:
        raise WeightsError(f"{path}: averageImage: expected 3 numbers or an image of 3 channels, found others")
    # (channels, width, height) in memory; a column or a row of three comes to the same.
    pixels = image.array().reshape(3, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        red, green, blue = pixels.mean(axis=1, dtype="<f8").tolist()
    if not np.isfinite([red, green, blue]).all():
        raise WeightsError(f"{path}: averageImage: expected finite numbers, found NaN or infinity")
    return (red, green, blue), "the file" if pixels.shape[1] == 1 else "the mean image in the file, averaged"


def _classes(net: Mapping[str, Any]) -> tuple[str, ...]:
    classes = net.get("classes")
    names = classes.get("name") if isinstance(classes, dict) else None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
