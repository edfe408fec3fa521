"""What a user would write for the same features: torchvision's net and resampling, one image and scale at a time.

PyTorch's defaults everywhere: float32 (of which cuDNN makes TF32 in convolutions), maps channels first, no batches, the
mirror as a second pass, images decoded by the same process, every row appended to an HDF5 file. In bfloat16 either by
autocast or with the whole net in it. N = images, S = scales, C = channels.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as TF

from vggfeat.nets.backbone import Net
from vggfeat.nets.transforms import rescaled_size
from vggfeat.nets.vgg import NETS
from vggfeat.weights import Backbone

DENSE = ("fc6", "fc7", "fc8")
Way = Literal["float32", "autocast", "bfloat16"]
WAYS: dict[Way, str] = {
    "float32": "PyTorch's defaults",
    "autocast": "torch.autocast around the net in float32",
    "bfloat16": "net and images in bfloat16",
}


class PlainExtractor:
    """Computes the features of one file after the other, with a copy of the weights, at scales Q of `sides` (S,)."""

    def __init__(
        self, backbone: Backbone, sides: Sequence[int], layer: str, device: torch.device, way: Way = "float32"
    ) -> None:
        self.way, self.sides, self._device = way, tuple(sides), device
        self._dtype = torch.bfloat16 if way == "bfloat16" else torch.float32
        self.net = plain_net(backbone.model, layer).to(device, self._dtype)
        self.channels = backbone.model.maps[layer].channels
        self._mean, self._std = list(backbone.mean), list(backbone.std)

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

    def run(self, paths: Sequence[str | Path], out: Path) -> NDArray[np.float32]:
        """Append the features of all files to a new HDF5 file, and return what it holds, (N, S, C)."""
        shape = (len(self.sides), self.channels)
        with h5py.File(out, "w") as file:
            table = file.create_dataset("features", (0, *shape), maxshape=(None, *shape), dtype="float32")
            for path in paths:
                table.resize(len(table) + 1, axis=0)
                table[-1] = self.features(path)
        with h5py.File(out) as file:
            features: NDArray[np.float32] = file["features"][...]
        return features

    def _mean_of(self, x: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.way == "autocast"):
            maps: Tensor = self.net(x.to(self._dtype))
        return maps.mean((2, 3)).float()


def plain_precision(device: torch.device) -> str:
    """Return what PyTorch's defaults make of convolutions in float32."""
    return "tf32" if device.type == "cuda" else "fp32"


def plain_net(model: Net, layer: str) -> nn.Sequential:
    """Copy the net up to a layer, layer by layer as torchvision has it."""
    config, found = NETS[model.config], list[nn.Module]()
    for number, kernels in enumerate(config.blocks, start=1):
        for index in range(1, len(kernels) + 1):
            found += [model.layers[f"conv{number}_{index}"], nn.ReLU(inplace=True)]
            if config.lrn and number == index == 1:
                found.append(_Norm(5, alpha=5e-4, beta=0.75, k=2.0))
        found.append(nn.MaxPool2d(2, 2, ceil_mode=model.pool == "ceil"))
    for name in DENSE[: 1 + DENSE.index(layer)] if layer in DENSE else ():
        found += [model.layers[name], *([] if name == "fc8" else [nn.ReLU(inplace=True)])]
    return copy.deepcopy(nn.Sequential(*found)).eval().requires_grad_(False)


class _Norm(nn.LocalResponseNorm):
    """In float32, because PyTorch has none in half precision on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)
