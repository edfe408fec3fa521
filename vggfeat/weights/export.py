"""Nets for others: a state dict for torchvision's classes, ONNX, and a model on the Hugging Face Hub with its card."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from vggfeat.checks import check_choice
from vggfeat.errors import ConfigError, WeightsError
from vggfeat.nets.backbone import Backbone
from vggfeat.weights.load import WeightsFile, convert
from vggfeat.weights.pytorch import TORCHVISION_MEAN, TORCHVISION_STD, torchvision_names
from vggfeat.weights.sources import AUTHORS_LICENCE, HUB, TORCHVISION_LICENCE, hub_reason, import_hub
from vggfeat.weights.tensor_files import writing_weights
from vggfeat.wording import quoted

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
    with writing_weights(Path(path)) as file:
        torch.save(state, cast(BinaryIO, file))
    mean, std = (TORCHVISION_MEAN, TORCHVISION_STD) if fold else (backbone.mean, backbone.std)
    return {
        "model": TORCHVISION_CLASSES[model.config],
        "mean": [value / 255 for value in mean],
        "std": [value / 255 for value in std],
        "exact": not fold or tuple(backbone.mean) == TORCHVISION_MEAN,
    }


def export_onnx(backbone: Backbone, path: str | os.PathLike[str], *, layer: str | None = None) -> None:
    """Write a net of any family as ONNX, with the normalisation inside.

    Input `images` (N, 3, H, W), float32, RGB, 0 to 255, as they are; output named as `layer`, (N, C, h, w), float32.
    N, H and W are free, H and W at least `least_side` of the map. Classes and provenance are in the model's metadata,
    under `vggfeat`, as JSON.

    `path`: written under a temporary name, synced, and renamed. `layer`: the map to give out, one of the net's; by
    default that of the class scores, before the soft-max.
    Raises ConfigError if there is no such layer, the net does what the table of operations does not have, or the
    package onnx is not installed. Raises WeightsError if it would be larger than ONNX allows (2 GiB). Raises StoreError
    if the file can't be written.
    """
    layer = layer or backbone.model.scores
    backbone.check_layer(layer)
    path = Path(path)
    graph = _Graph(backbone)
    size = 4 * sum(tensor.numel() for tensor in backbone.model.parameters())
    if size > _LARGEST_ONNX:
        raise WeightsError(f"{path}: expected a net of at most 2 GiB, which ONNX can hold, found {size} bytes")
    content = graph.build(layer).SerializeToString()
    with writing_weights(path) as file:
        file.write(content)


class _Graph(TorchFunctionMode):
    """The nodes of a net, written down while it runs once: torch.onnx would need more packages, and guess free sides.

    What the net calls of PyTorch is looked up in `_OPERATIONS`. To read the sides of a map is not among them, so that
    those of the one image that it runs on don't get into the graph.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        try:
            import onnx
        except ImportError:
            raise ConfigError("export to ONNX: the package onnx is missing; pip install onnx") from None
        self.onnx, self.backbone = onnx, backbone
        shape = (1, 3, 1, 1)
        self.mean, self.std = torch.tensor(backbone.mean).reshape(shape), torch.tensor(backbone.std).reshape(shape)
        weights = backbone.model.layers.state_dict(keep_vars=True)
        self.constants: dict[str, Tensor] = {**weights, "mean": self.mean, "std": self.std}
        self.names = {id(tensor): name for name, tensor in self.constants.items()}
        """Names of all tensors of the run, by their identity."""
        self.held: list[Tensor] = []
        """What the run has made, so that nothing else gets the identity of it."""
        self.nodes: list[Any] = []
        self.used: dict[str, Any] = {}
        """The constants that a node takes, as ONNX has them."""

    def build(self, layer: str) -> Any:
        helper, model = self.onnx.helper, self.backbone.model
        self.add("Identity", [self.run(layer)], layer)
        kind = self.onnx.TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info("images", kind, ["N", 3, "H", "W"])]
        outputs = [helper.make_tensor_value_info(layer, kind, ["N", model.maps[layer].channels, "h", "w"])]
        graph = helper.make_graph(self.nodes, "vggfeat", inputs, outputs, [*self.used.values()])
        opset = [helper.make_opsetid("", ONNX_OPSET)]
        exported = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="vggfeat")
        exported.doc_string = f"images: RGB, 0 to 255, float32. {layer}: a map of overlapping windows."
        about = {**self.backbone.describe(), "classes": list(self.backbone.classes)}
        helper.set_model_props(exported, {"vggfeat": json.dumps(about, sort_keys=True)})
        self.onnx.checker.check_model(exported)
        return exported

    def run(self, layer: str) -> Tensor:
        """Run the net up to a map, on the smallest image that gives it a position."""
        side = self.backbone.model.least_side(layer)
        image = torch.zeros(1, 3, side, side)
        self.names[id(image)] = "images"
        with torch.no_grad(), self:  # Inference mode has ways of its own through a layer (`vggfeat.nets.inference`).
            found = self.backbone.model((image - self.mean) / self.std, (layer,))[layer]
        self.held.append(image)
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do what the net calls of PyTorch, and write it down."""
        kwargs = kwargs or {}
        called, result = str(getattr(func, "__name__", func)), func(*args, **kwargs)
        if called in _OPERATIONS:
            kind, tensors, attributes = _OPERATIONS[called](*args, **kwargs)
            self.held.append(result)
            self.names[id(result)] = self.add(kind, tensors, f"{len(self.nodes)}.{called}", **attributes)
        elif called in _UNCHANGED:
            self.held.append(result)
            self.names[id(result)] = self.names[id(args[0])]
        elif called == "size" or isinstance(result, Tensor | torch.Size):
            raise ConfigError(
                f"export to ONNX: expected a net made of {', '.join(_OPERATIONS)}, found "
                f"{resolve_name(func) or called} in {self.backbone.model.config}; it has no line in the table of "
                "vggfeat.weights.export"
            )
        return result

    def add(self, kind: str, tensors: Sequence[Tensor], output: str, **attributes: Any) -> str:
        names = [self.names.get(id(tensor), "") for tensor in tensors]
        if "" in names:
            raise ConfigError(f"export to ONNX: {kind}: expected maps and weights of the net, found another number")
        for name in names:
            if name in self.constants and name not in self.used:
                values = self.constants[name].detach().contiguous().numpy()
                self.used[name] = self.onnx.numpy_helper.from_array(values, name)
        self.nodes.append(self.onnx.helper.make_node(kind, names, [output], name=output, **attributes))
        return output


Node = tuple[str, Sequence[Tensor], dict[str, Any]]
"""Operation of ONNX, the tensors that it takes, and its attributes."""


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Node:
    sides = {"kernel_shape": weight.shape[2:], "strides": _pair(stride), "dilations": _pair(dilation)}
    return "Conv", [x, weight, *([] if bias is None else [bias])], sides | {"pads": _pair(padding) * 2, "group": groups}


def _max_pool(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Node:  # fmt: skip
    sides = {"strides": _pair(stride or kernel_size), "pads": _pair(padding) * 2, "dilations": _pair(dilation)}
    return "MaxPool", [x], {"kernel_shape": _pair(kernel_size), "ceil_mode": int(ceil_mode)} | sides


def _batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Node:  # fmt: skip
    return "BatchNormalization", [x, weight, bias, mean, var], {"epsilon": eps}


def _lrn(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Node:
    # ONNX divides alpha by the size, as PyTorch does.
    return "LRN", [x], {"size": size, "alpha": alpha, "beta": beta, "bias": k}


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value, value]


_OPERATIONS: dict[str, Callable[..., Node]] = {
    "conv2d": _conv,
    "max_pool2d": _max_pool,
    "batch_norm": _batch_norm,
    "local_response_norm": _lrn,
    "relu": lambda x, inplace=False: ("Relu", [x], {}),
    "add": lambda x, y: ("Add", [x, y], {}),
    "sub": lambda x, y: ("Sub", [x, y], {}),
    "div": lambda x, y: ("Div", [x, y], {}),
}
"""What PyTorch calls an operation, and its node in ONNX: a line for each that a net is made of."""
_UNCHANGED = ("dropout", "to", "float")
"""What changes no value: dropout after training, and another precision of the CPU."""


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


_REPOSITORY = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)", re.IGNORECASE)
_LICENCES = {AUTHORS_LICENCE: "cc-by-4.0", TORCHVISION_LICENCE: "bsd-3-clause"}
"""What the Hub calls the licences of published nets."""
_CARD = """\
---
{front}
---

# {name}

Net {net} of *Very Deep Convolutional Networks for Large-Scale Image Recognition* ({numbers:,} numbers, {dtype}), in the
form of vggfeat, which runs it densely over whole images.

    pip install 'PATH_OF_CLONE[hub]'
    vggfeat extract --dataset folder --root IMAGES --weights hf://{repository}

```python
import vggfeat

extractor = vggfeat.Extractor("hf://{repository}")
features = extractor.transform(["image.jpg"])
```

{table}

{details}
"""


class Pushed(NamedTuple):
    """What lies on the Hub now."""

    spec: str
    """hf://OWNER/NAME@COMMIT, as `--weights` takes it."""
    card: str
    """Text of its model card."""


def push(
    source: Path, repository: str, *, dtype: str = "float32", licence: str | None = None, private: bool = False
) -> Pushed:
    """Write a net and its card to the Hub, in one commit; the repository is made if there is none.

    `source`: a file of weights in any format.
    `repository`: OWNER/NAME, or hf://OWNER/NAME.
    `dtype` ("float32" or "float16"): how the numbers are stored.
    `licence`: as the Hub names licences, for instance mit. By default that of the published net, or none.
    `private`: of a repository that is made now: whether only its owner may read it.
    Raises ConfigError if `repository` is no name, or the library of the Hub is not installed. Raises WeightsError if
    the source can't be loaded, or the Hub refuses.
    """
    asked = _REPOSITORY.fullmatch(repository)
    if not asked:
        raise ConfigError(f"repository: expected OWNER/NAME, found {quoted(repository)}")
    hub = import_hub(f"{HUB}{asked[1]}")
    with TemporaryDirectory() as folder:
        target = Path(folder, "model.safetensors")
        text = card(convert(source, target, dtype=dtype), asked[1], dtype=dtype, licence=licence)
        api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="vggfeat")
        try:
            api.create_repo(asked[1], private=private, exist_ok=True)
            files = [hub.CommitOperationAdd(target.name, target), hub.CommitOperationAdd("README.md", text.encode())]
            commit = api.create_commit(asked[1], files, commit_message="Add a net of vggfeat")
        except Exception as error:  # as where a net is read: errors of many libraries, of no common class
            raise WeightsError(
                f"{HUB}{asked[1]}: expected the Hugging Face Hub to take the net, found {hub_reason(error)}; log in "
                "(hf auth login) with a token that may write there"
            ) from None
    return Pushed(f"{HUB}{asked[1]}@{commit.oid}", text)


def card(file: WeightsFile, repository: str, *, dtype: str, licence: str | None = None) -> str:
    """Make the model card of a net: the head that the Hub reads, how to use it, and a table of all that is known."""
    about = file.describe()
    known = _LICENCES.get(file.published.licence) if file.published else None
    front = {
        "library_name": "vggfeat",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["vgg", "transfer-learning"],
    }
    if licence or known:
        front["license"] = licence or known or ""
    return _CARD.format(
        front="\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items()), name=repository.split("/")[1],
        net=about["net"], numbers=about["numbers"], dtype=dtype, repository=repository, table=_table(about),
        details="".join(_details(about["facts"])),
    )  # fmt: skip


def _table(about: dict[str, Any]) -> str:
    rows: dict[str, Any] = {
        "width": f"{about['width']:g} of the paper's",
        "images": f"RGB, 0 to 255, less {_words(about['mean'])}, over {_words(about['std'])}",
        "poolings": f"round {'up' if about['pool_rounding'] == 'ceil' else 'down'}",
        "classes": about["num_classes"],
        **about["imported"],
    }
    lines = (f"| {name} | {_words(value)} |" for name, value in rows.items())
    return "\n".join(["| what | value |", "|---|---|", *lines])


def _words(value: Any) -> str:
    text = ", ".join(f"{one:g}" for one in value) if isinstance(value, list | tuple) else str(value)
    return text.replace("|", "\\|")


def _details(facts: Mapping[str, Any]) -> Iterator[str]:
    """Say what else the file says of itself, such as how the net was trained."""
    for name, value in facts.items():
        if name != "imported":
            yield f"## {name}\n\n```json\n{json.dumps(value, indent=1, sort_keys=True)}\n```\n"
