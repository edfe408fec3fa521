"""What a user would write for the same features: torchvision's net and resampling, one image and scale at a time.

PyTorch's defaults everywhere: float32 (of which cuDNN makes TF32 in convolutions), maps channels first, no batches, the
mirror as a second pass, images decoded by the same process, every row appended to an HDF5 file. In bfloat16 either by
autocast or with the whole net in it. N = images, S = scales, C = channels.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import functional as TF

from vggfeat.nets.backbone import Net
from vggfeat.nets.transforms import rescaled_size
from vggfeat.nets.vgg import NETS
from vggfeat.weights import Backbone

TORCHVISION = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}
"""Its names of the nets that it has, at full width."""
DENSE = ("fc6", "fc7", "fc8")
Way = Literal["float32", "autocast", "bfloat16"]
BF16_WAYS: tuple[Way, ...] = ("autocast", "bfloat16")
"""torch.autocast around a net in float32, or the net and the images in bfloat16."""


class PlainExtractor:
    """Computes the features of one file after the other, with a copy of the weights, at scales Q of `sides` (S,)."""

    def __init__(
        self, backbone: Backbone, sides: Sequence[int], layer: str, device: torch.device, way: Way = "float32"
    ) -> None:
        self.way = way
        self._dtype = torch.bfloat16 if way == "bfloat16" else torch.float32
        self.net = plain_net(backbone.model, layer).to(device, self._dtype)
        self.channels = backbone.model.maps[layer].channels
        self.sides = tuple(sides)
        self._mean, self._std, self._device = list(backbone.mean), list(backbone.std), device

    @torch.inference_mode()
    def features(self, path: str | Path) -> NDArray[np.float32]:
        """Return (S, C)."""
        with Image.open(path) as image:
            pixels = TF.pil_to_tensor(image.convert("RGB")).to(self._device).float()
        rows = []
        for side in self.sides:
            size = list(rescaled_size(pixels.shape[1], pixels.shape[2], side))
            x = TF.normalize(TF.resize(pixels, size, antialias=True), self._mean, self._std)[None]
            rows.append((self._mean_of(x) + self._mean_of(TF.hflip(x))) / 2)
        return torch.cat(rows).cpu().numpy()

    def write(self, paths: Iterable[str | Path], out: Path) -> None:
        """Append the features of all files to a new HDF5 file."""
        shape = (len(self.sides), self.channels)
        with h5py.File(out, "w") as file:
            table = file.create_dataset("features", (0, *shape), maxshape=(None, *shape), dtype="float32")
            for path in paths:
                table.resize(len(table) + 1, axis=0)
                table[-1] = self.features(path)

    def _mean_of(self, x: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.way == "autocast"):
            maps: Tensor = self.net(x.to(self._dtype))
        return maps.mean((2, 3)).float()


def read_features(out: Path) -> NDArray[np.float32]:
    """Return what `PlainExtractor.write` has written, (N, S, C)."""
    with h5py.File(out) as file:
        features: NDArray[np.float32] = file["features"][...]
    return features


def plain_precision(device: torch.device) -> str:
    """Return what PyTorch's defaults make of convolutions in float32."""
    return "tf32" if device.type == "cuda" else "fp32"


def plain_net(model: Net, layer: str) -> nn.Sequential:
    """Build the net up to a layer: from torchvision's module where it has it, by hand in the same way elsewhere."""
    convolutions = list(_torchvision(model) if in_torchvision(model) else _by_hand(model))
    weights = dict(model.named_parameters())
    names = [name for name in model.layers if name not in DENSE]
    net = nn.Sequential(*convolutions)
    with torch.device("meta"):
        for name in DENSE[: 1 + DENSE.index(layer)] if layer in DENSE else ():
            outputs, inputs, side, _ = weights[f"layers.{name}.weight"].shape
            net.append(nn.Conv2d(inputs, outputs, side))
            names.append(name)
            if name != "fc8":
                net.append(nn.ReLU(inplace=True))
    layers = [module for module in net if isinstance(module, nn.Conv2d)]
    for module, name in zip(layers, names, strict=True):
        for kind in ("weight", "bias"):
            value = weights[f"layers.{name}.{kind}"].detach().clone()
            setattr(module, kind, nn.Parameter(value, requires_grad=False))
    return net.eval()


def in_torchvision(model: Net) -> bool:
    """Tell whether torchvision has this net."""
    return model.config in TORCHVISION and model.width == 1 and model.pool == "floor"


class _Norm(nn.LocalResponseNorm):
    """In float32, because PyTorch has none in half precision on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


def _torchvision(model: Net) -> nn.Sequential:
    with torch.device("meta"):
        features: nn.Sequential = models.get_model(TORCHVISION[model.config], weights=None).features
    return features


def _by_hand(model: Net) -> Iterable[nn.Module]:
    config = NETS[model.config]
    for number, kernels in enumerate(config.blocks, start=1):
        for index, kernel in enumerate(kernels, start=1):
            outputs, inputs = model.get_parameter(f"layers.conv{number}_{index}.weight").shape[:2]
            with torch.device("meta"):
                yield nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
            yield nn.ReLU(inplace=True)
            if config.lrn and number == index == 1:
                yield _Norm(5, alpha=5e-4, beta=0.75, k=2.0)
        yield nn.MaxPool2d(2, 2, ceil_mode=model.pool == "ceil")
