"""Nets for other libraries: a state dict for torchvision's classes, and ONNX."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from vggfeat.errors import ConfigError, WeightsError, check_choice
from vggfeat.nets.backbone import Backbone
from vggfeat.nets.vgg import VGG
from vggfeat.nets.vgg_bn import EPSILON
from vggfeat.runtime.durable import DISK, LatchedFile, atomic_write
from vggfeat.weights.pytorch import BATCH_NORM_TENSORS, TORCHVISION_MEAN, TORCHVISION_STD, torchvision_names
from vggfeat.weights.tensor_files import writing_weights

TORCHVISION_CLASSES = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}
TORCHVISION_CLASSES |= {f"{config}-BN": f"{name}_bn" for config, name in TORCHVISION_CLASSES.items()}
ONNX_OPSET = 17
"""Of 2022: every runtime in use reads it."""
_LARGEST_ONNX = 2**31 - 2**20


def export_torchvision(backbone: Backbone, path: str | os.PathLike[str], *, fold: bool = True) -> dict[str, Any]:
    """Write a net as a state dict for torchvision's vgg11, vgg13, vgg16 or vgg19, or the same with _bn.

    With `fold`, the net takes what torchvision's own weights take: RGB, 0 to 1, less (0.485, 0.456, 0.406), over
    (0.229, 0.224, 0.225). The scale goes into the kernels of conv1_1, which is exact; the difference of the means
    goes into its biases, which is exact but for the outermost pixel: the zeros that it is padded with are then
    torchvision's mean colour and no longer for the net's. For the authors' mean pixel these are half a grey level
    apart, which moved the maps of random nets by less than a thousandth of their largest value; for torchvision's
    own nets nothing changes. Without `fold` the numbers stay as they are, and the net takes RGB, 0 to 1, less the
    mean and over the deviation that are returned.

    torchvision averages pool5 to 7 x 7 and rounds poolings down: the outputs agree with ours where pool5 is 7 x 7
    and, for nets that round up, on sides that are multiples of 32. A 224 x 224 crop is both.

    Parameters
    ----------
    backbone : Backbone
        Net A, B, D or E, or one of these with batch normalisation.
    path : path
        Written under a temporary name, synced, and renamed.
    fold : bool

    Returns
    -------
    {"model": str, "mean": list of 3, "std": list of 3, "exact": bool}
        torchvision's function, what its Normalize must be given for images of 0 to 1, and whether nothing changed
        at the border.

    Raises
    ------
    ConfigError
        If torchvision has no such net.
    StoreError
        If the file can't be written.
    """
    model = backbone.model
    check_choice("export to torchvision: net", model.config, TORCHVISION_CLASSES)
    if model.last:
        raise ConfigError(f"export to torchvision: expected a complete net, found {backbone.source} up to {model.last}")
    tensors = model.layers.state_dict()
    if fold:
        tensors["conv1_1.weight"], tensors["conv1_1.bias"] = _fold(backbone)
    state = {}
    for ours, theirs in torchvision_names(model.config).items():
        tensor = tensors[ours]
        linear = ours.startswith("fc") and tensor.ndim > 1
        state[theirs] = (tensor.flatten(1) if linear else tensor).contiguous().clone()
        if ours.endswith(".running_var"):
            state[theirs.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    _write(Path(path), lambda file: torch.save(state, cast(BinaryIO, file)))
    mean, std = (TORCHVISION_MEAN, TORCHVISION_STD) if fold else (backbone.mean, backbone.std)
    return {
        "model": TORCHVISION_CLASSES[model.config],
        "mean": [value / 255 for value in mean],
        "std": [value / 255 for value in std],
        "exact": not fold or tuple(backbone.mean) == TORCHVISION_MEAN,
    }


def export_onnx(backbone: Backbone, path: str | os.PathLike[str], *, layer: str = "fc8") -> None:
    """Write a net as ONNX, with the normalisation inside.

    Input `images` (N, 3, H, W), float32, RGB, 0 to 255, as they are; output named as `layer`, (N, C, h, w), float32.
    N, H and W are free, H and W at least `min_side` of the net from fc6 on. Classes and provenance are in the
    model's metadata, under `vggfeat`, as JSON.

    Parameters
    ----------
    backbone : Backbone
    path : path
        Written under a temporary name, synced, and renamed.
    layer : relu1_1, ..., pool5, fc6, fc7 or fc8
        The map to give out, as `VGG.forward` names it. fc6 and fc7 come after their ReLU, fc8 before the soft-max.

    Raises
    ------
    ConfigError
        If it is no VGG net, there is no such layer, or the package onnx is not installed.
    WeightsError
        If it would be larger than ONNX allows (2 GiB).
    StoreError
        If the file can't be written.
    """
    if not isinstance(backbone.model, VGG):
        raise ConfigError(f"export to ONNX: expected a VGG net, found {backbone.model.config}")
    backbone.check_layer(layer)
    path = Path(path)
    graph = _Graph(backbone, backbone.model)
    size = 4 * sum(tensor.numel() for tensor in backbone.model.parameters())
    if size > _LARGEST_ONNX:
        raise WeightsError(f"{path}: expected a net of at most 2 GiB, which ONNX can hold, found {size} bytes")
    content = graph.build(layer).SerializeToString()
    _write(path, lambda file: file.write(content))


class _Graph:
    """The nodes of a net, written by hand: torch.onnx would need more packages, and guesses which sides are free."""

    def __init__(self, backbone: Backbone, model: VGG) -> None:
        try:
            import onnx
        except ImportError:
            raise ConfigError("export to ONNX: the package onnx is missing; pip install onnx") from None
        self.onnx, self.backbone, self.model = onnx, backbone, model
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def build(self, layer: str) -> Any:
        helper = self.onnx.helper
        self.add("Identity", self.maps(layer), layer)
        kind = self.onnx.TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info("images", kind, ["N", 3, "H", "W"])]
        channels = self.model.maps[layer].channels
        outputs = [helper.make_tensor_value_info(layer, kind, ["N", channels, "h", "w"])]
        graph = helper.make_graph(self.nodes, "vgg", inputs, outputs, self.tensors)
        opset = [helper.make_opsetid("", ONNX_OPSET)]
        exported = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="vggfeat")
        exported.doc_string = f"images: RGB, 0 to 255, float32. {layer}: a map of overlapping windows."
        about = {**self.backbone.describe(), "classes": list(self.backbone.classes)}
        helper.set_model_props(exported, {"vggfeat": json.dumps(about, sort_keys=True)})
        self.onnx.checker.check_model(exported)
        return exported

    def maps(self, layer: str) -> str:
        net = self.model.nets[self.model.config]
        x = self.add("Sub", "images", "centred", self.constant("mean", self.backbone.mean))
        x = self.add("Div", x, "normalised", self.constant("std", self.backbone.std))
        for number, kernels in enumerate(net.blocks, start=1):
            for index in range(1, len(kernels) + 1):
                x = self.convolution(x, f"conv{number}_{index}")
                if layer == f"relu{number}_{index}":
                    return x
                if number == index == 1 and net.lrn:
                    # ONNX divides alpha by the size, as PyTorch does.
                    x = self.add("LRN", x, "lrn", size=5, alpha=5e-4, beta=0.75, bias=2.0)
            if layer == "conv5" and number == 5:
                return x
            ceil = int(self.model.pool == "ceil")
            x = self.add("MaxPool", x, f"pool{number}_", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=ceil)
            if layer == f"pool{number}":
                return x
        for name in ("fc6", "fc7", "fc8")[: int(layer[2]) - 5]:
            x = self.convolution(x, name)
        return x

    def convolution(self, x: str, name: str) -> str:
        weight, bias = (self.model.get_parameter(f"layers.{name}.{kind}") for kind in ("weight", "bias"))
        side = weight.shape[-1]
        pads = [0 if name.startswith("fc") else side // 2] * 4
        numbers = [self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        x = self.add("Conv", x, f"{name}.sum", *numbers, kernel_shape=[side, side], pads=pads)
        norm = name.replace("conv", "bn")
        if norm != name and norm in self.model.layers:
            values = self.model.layers[norm].state_dict()
            numbers = [self.constant(f"{norm}.{kind}", values[kind]) for kind in BATCH_NORM_TENSORS]
            x = self.add("BatchNormalization", x, norm, *numbers, epsilon=EPSILON)
        return x if name == "fc8" else self.add("Relu", x, f"{name}.relu")

    def constant(self, name: str, values: Any) -> str:
        tensor = values.detach() if isinstance(values, Tensor) else torch.tensor(values).reshape(1, 3, 1, 1)
        self.tensors.append(self.onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name))
        return name

    def add(self, kind: str, x: str, output: str, *constants: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(kind, [x, *constants], [output], name=output, **attributes))
        return output


def _fold(backbone: Backbone) -> tuple[Tensor, Tensor]:
    weight, bias = (backbone.model.layers.state_dict()[f"conv1_1.{kind}"] for kind in ("weight", "bias"))
    # x_ours = (p - mean) / std and x_theirs = (p - m) / s for the same pixel p: x_ours = x_theirs * scale + shift.
    mean, std, m, s = (
        torch.tensor(v, dtype=torch.float64)[:, None, None]
        for v in (backbone.mean, backbone.std, TORCHVISION_MEAN, TORCHVISION_STD)
    )
    scale, shift = s / std, (m - mean) / std
    exact = weight.to(torch.float64)
    return (exact * scale).to(torch.float32), (bias + (exact * shift).sum((1, 2, 3))).to(torch.float32)


def _write(path: Path, write: Callable[[LatchedFile], Any]) -> None:
    with writing_weights(path), atomic_write(DISK, path) as file:
        write(file)
