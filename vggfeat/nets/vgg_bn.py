"""The VGG nets with batch normalisation that torchvision and timm offer: vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn.

They are not in the VGG paper: a normalisation with fixed statistics comes between each convolution and its ReLU.
It stays a layer of its own, so that files and exports hold the numbers that were trained.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggfeat.nets.backbone import Pool
from vggfeat.nets.vgg import NETS, VGG

BATCH_NORM_NETS = {f"{config}-BN": NETS[config] for config in ("A", "B", "D", "E")}
EPSILON = 1e-5
"""Added to the variance (PyTorch's default, with which these nets were trained)."""


class FixedBatchNorm(nn.Module):
    """Batch normalisation with the statistics of the training set, and never those of a batch.

    y = weight (x - running_mean) / sqrt(running_var + EPSILON) + bias, channel by channel (Ioffe and Szegedy 2015).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise maps (N, C, h, w)."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPSILON)


class BatchNormVGG(VGG):
    """A VGG net with batch normalisation, for features and scores; it can't be trained here.

    Parameters are those of `VGG`; `config` is A-BN, B-BN, D-BN or E-BN. The layers after conv1_1, conv1_2, ... are
    named bn1_1, bn1_2, ...
    """

    nets = BATCH_NORM_NETS

    def __init__(
        self, config: str, num_classes: int = 1000, *, width: float = 1.0, pool: Pool = "floor", last: str = ""
    ) -> None:
        super().__init__(config, num_classes, width=width, pool=pool, last=last)
        layers: dict[str, nn.Module] = {}
        for name, layer in self.layers.items():
            layers[name] = layer
            if isinstance(layer, nn.Conv2d) and name.startswith("conv"):
                layers[name.replace("conv", "bn")] = FixedBatchNorm(layer.out_channels)
        self.layers = nn.ModuleDict(layers)

    def convolve(self, name: str, x: Tensor) -> Tensor:
        """Return the normalised map behind a convolution, before its ReLU."""
        return self.layers[name.replace("conv", "bn")](self.layers[name](x))
