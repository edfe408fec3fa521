"""The networks of the VGG paper: one table, one class, fully convolutional.

N = images, H, W = image sides in pixels, h, w = sides of a dense map, C = channels.
Layers 6 to 8 are 7x7, 1x1 and 1x1 convolutions (Sect. 3.2), so one forward pass serves a 224 crop, where every
map is 1x1, and an image of any size, where it is a map of overlapping windows.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggfeat.checks import check_choice
from vggfeat.errors import ConfigError
from vggfeat.nets.backbone import MapInfo, Net, Pool, Sides
from vggfeat.nets.inference import dense, max_pool
from vggfeat.nets.transforms import clear, margin

STRIDE = 32
"""Pixels between neighbouring positions of the dense maps: five poolings by two."""
WINDOW = 7
"""Side of the fc6 kernel, in positions of pool5."""
BLOCK_CHANNELS = (64, 128, 256, 512, 512)
FC_CHANNELS = 4096
_ENDS = ("pool5", "fc6", "fc7", "fc8")


@dataclass(frozen=True)
class NetConfig:
    """One column of Table 1: the kernel sides of the convolutions in each of the five blocks."""

    blocks: tuple[tuple[int, ...], ...]
    lrn: bool = False
    """Local response normalisation after the first convolution."""


NETS: dict[str, NetConfig] = {
    "A": NetConfig(((3,), (3,), (3, 3), (3, 3), (3, 3))),
    "A-LRN": NetConfig(((3,), (3,), (3, 3), (3, 3), (3, 3)), lrn=True),
    "B": NetConfig(((3, 3), (3, 3), (3, 3), (3, 3), (3, 3))),
    "C": NetConfig(((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1))),
    "D": NetConfig(((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))),
    "E": NetConfig(((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3))),
}
"""Table 1 of the VGG paper."""


class VGG(Net):
    """A net of Table 1 of the VGG paper (Sect. 2).

    Parameters
    ----------
    config : str
        A key of `NETS`: A, A-LRN, B, C, D or E.
    num_classes : int
        Channels of fc8.
    width : float
        Factor on every channel count but the 3 of the input and the `num_classes` of fc8, for small nets.
    pool : "floor" or "ceil"
        Rounding of the pooling output. It belongs to the weights: floor for torchvision's, ceil for the authors'.
    last : "", "pool5", "fc6" or "fc7"
        The deepest map, where the weights behind it are missing: then there are no scores and no classes.
    dropout : float
        Probability of dropping an activation of fc6 and of fc7 in training (Sect. 3.1).

    Raises
    ------
    ConfigError
        If one of these is not allowed.
    """

    nets: ClassVar[Mapping[str, NetConfig]] = NETS
    first = "conv1_1"
    scores = "fc8"

    def __init__(
        self,
        config: str,
        num_classes: int = 1000,
        *,
        width: float = 1.0,
        pool: Pool = "floor",
        last: str = "",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("net", config, self.nets)
        if pool not in ("floor", "ceil"):
            raise ConfigError(f"pool: expected floor or ceil, found {pool!r}")
        if not (math.isfinite(width) and 0 < width <= 4):
            raise ConfigError(f"width: expected a number above 0 and at most 4, found {width}")
        check_choice("last", last, ("", *_ENDS))
        if not last and (not hasattr(num_classes, "__index__") or num_classes < 1):
            raise ConfigError(f"num_classes: expected a whole number from 1, found {num_classes!r}")
        if not 0 <= dropout <= 1:
            raise ConfigError(f"dropout: expected a probability from 0 to 1, found {dropout}")
        self.config, self.num_classes, self.width, self.last = config, 0 if last else num_classes, width, last
        self.pool: Pool = pool
        self.dropout = dropout
        missing = _ENDS[_ENDS.index(last) + 1 :] if last else ()
        layers = _layers(self.nets[config], max(1, num_classes), width)
        self.layers = nn.ModuleDict({name: layer for name, layer in layers.items() if name not in missing})
        # One 7x7 window of pool5: 224 with floor, 193 with ceil.
        self.min_side = STRIDE * WINDOW if pool == "floor" else STRIDE * (WINDOW - 1) + 1
        self.maps = _map_infos(self.nets[config], num_classes, width)
        for name in missing:
            del self.maps[name]

    def forward(
        self,
        images: Tensor,
        maps: Collection[str] = ("fc8",),
        masks: Mapping[str, Tensor] | None = None,
        sides: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run the net up to the deepest map asked for.

        Parameters
        ----------
        images : Tensor (N, 3, H, W), floating point
            RGB, already normalised as the weights ask for. H and W at least `min_side` for fc6 and beyond.
        maps : names out of relu1_1, ..., pool1, relu2_1, ..., conv5, pool5, fc6, fc7 and fc8
            relu1_1 is conv1_1 after its ReLU (and before the normalisation of A-LRN), conv5 the last of the relu5_n;
            fc6 and fc7 are taken after their ReLU.
        masks : {"fc6": Tensor (N, C), "fc7": Tensor (N, C)}, optional
            Factors on fc6 and fc7 for the layer behind them, in the place of dropout drawn in here: 0 where an
            activation is dropped, 1 / (1 - dropout) elsewhere.
        sides : Tensor (N, 2), int, optional
            Height and width of each image, where it is smaller than the tensor that it lies in: at its top left,
            with zeros to the right and below. Within its own `map_side`, its maps are what they are without them;
            outside they have values that mean nothing.

        Returns
        -------
        dict of str to Tensor
            relu1_1 (N, C, H, W), pool1 and relu2_1 (N, C, H/2, W/2), ..., conv5 (N, C, H/16, W/16), pool5
            (N, C, H/32, W/32), fc6 and fc7 (N, C, h, w) with h = `map_side("fc6", H)`, and fc8 (N, num_classes, h, w):
            class scores before the soft-max.
        """
        maps = tuple(maps)  # of a generator too, which can be looked through once
        unknown = set(maps) - set(self.maps)
        if unknown or not maps:
            raise ConfigError(f"maps: expected names out of {', '.join(self.maps)}, found {sorted(unknown)}")
        found: dict[str, Tensor] = {}
        for name, x in self._maps(images, masks, sides, maps):
            if name in maps:
                found[name] = x
            if len(found) == len(set(maps)):
                break
        return found

    def _maps(
        self, images: Tensor, masks: Mapping[str, Tensor] | None, sides: Tensor | None, wanted: Collection[str]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the maps one after the other; of those that a pooling reads only the ones that are wanted."""
        x, beyond = images, margin(images, sides)
        for number, kernels in enumerate(self.nets[self.config].blocks, start=1):
            block = [f"{number}_{index}" for index in range(1, len(kernels) + 1)]
            normalised = self.nets[self.config].lrn and number == 1
            # ReLU and max pooling commute: pooling first leaves the ReLU a quarter of the positions.
            pooled_first = not normalised and not {f"relu{block[-1]}", f"conv{number}"} & set(wanted)
            for name, kernel in zip(block, kernels, strict=True):
                if kernel > 1 and x is not images:  # Images have zeros there as they come.
                    x = clear(x, beyond)
                x = self.convolve(f"conv{name}", x)
                if not (pooled_first and name == block[-1]):
                    x = F.relu(x, inplace=True)
                    yield f"relu{name}", x
            if number == 5 and not pooled_first:
                yield "conv5", x
            if normalised:
                x = local_response_norm(x)
            if self.pool == "ceil":  # The last window of an odd side has a row or column of the margin.
                x = clear(x, beyond)
            x = max_pool(x, ceil=self.pool == "ceil")
            if pooled_first:
                x = F.relu(x, inplace=True)
            sides = None if sides is None else self._pooled(sides)
            beyond = margin(x, sides)
            yield f"pool{number}", x
        for name in ("fc6", "fc7"):
            x = F.relu(dense(self.layers[name], x), inplace=True)
            yield name, x
            if masks is None:
                x = F.dropout(x, self.dropout, self.training)
            else:
                x = x * masks[name][:, :, None, None].to(x.dtype)
        yield "fc8", dense(self.layers["fc8"], x)

    def convolve(self, name: str, x: Tensor) -> Tensor:
        """Return what a convolution makes of a map, before its ReLU."""
        return self.layers[name](x)

    def map_side(self, name: str, side: Sides) -> Sides:
        """Positions of a map along an image side in pixels, or along many in a tensor; 0 or less if it is too short."""
        for _ in range(_poolings(name)):
            side = self._pooled(side)
        return side - self.maps[name].window + 1

    def _pooled(self, side: Sides) -> Sides:
        return (side + 1) // 2 if self.pool == "ceil" else side // 2


def local_response_norm(x: Tensor) -> Tensor:
    """Local response normalisation across channels, n = 5, k = 2, alpha = 1e-4, beta = 0.75.

    b_i = a_i / (k + alpha * sum of a_j^2 over the n channels around i) ^ beta: the original formula
    (Krizhevsky et al. 2012, Sect. 3.3). PyTorch divides alpha by n, hence the factor.
    """
    # PyTorch has none in half precision on a CPU.
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return F.local_response_norm(wide, size=5, alpha=5 * 1e-4, beta=0.75, k=2.0).to(x.dtype)


def _layers(config: NetConfig, num_classes: int, width: float) -> dict[str, nn.Conv2d]:
    layers, inputs = {}, 3
    for number, (kernels, channels) in enumerate(zip(config.blocks, BLOCK_CHANNELS, strict=True), start=1):
        outputs = _scaled(channels, width)
        for index, kernel in enumerate(kernels, start=1):
            layers[f"conv{number}_{index}"] = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
            inputs = outputs
    hidden = _scaled(FC_CHANNELS, width)
    layers["fc6"] = nn.Conv2d(inputs, hidden, WINDOW)
    layers["fc7"] = nn.Conv2d(hidden, hidden, 1)
    layers["fc8"] = nn.Conv2d(hidden, num_classes, 1)
    return layers


def _map_infos(config: NetConfig, num_classes: int, width: float) -> dict[str, MapInfo]:
    """Describe every map, the shallowest first."""
    found, reach = {}, 0
    for number, (kernels, channels) in enumerate(zip(config.blocks, BLOCK_CHANNELS, strict=True), start=1):
        stride, outputs = 2 ** (number - 1), _scaled(channels, width)
        for index, kernel in enumerate(kernels, start=1):
            reach += stride * (kernel // 2)
            found[f"relu{number}_{index}"] = MapInfo(channels=outputs, stride=stride, reach=reach)
        if number == len(config.blocks):
            found["conv5"] = found[f"relu{number}_{len(kernels)}"]
        found[f"pool{number}"] = MapInfo(channels=outputs, stride=2 * stride, reach=reach)
    hidden = _scaled(FC_CHANNELS, width)
    for name, outputs in (("fc6", hidden), ("fc7", hidden), ("fc8", num_classes)):
        found[name] = MapInfo(channels=outputs, stride=STRIDE, window=WINDOW, reach=reach)
    return found


def _poolings(name: str) -> int:
    """Return how many poolings come before a map, its own included: 0 for relu1_1, 1 for pool1, 5 for fc6."""
    kind, block = name[:4], name[4:5]
    return {"relu": int(block or 1) - 1, "conv": int(block or 1) - 1, "pool": int(block or 1)}.get(kind, 5)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


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
    """A VGG net with batch normalisation, as torchvision and timm offer them; it can't be trained here.

    They are not in the VGG paper: a normalisation with fixed statistics comes between each convolution and its ReLU.
    It stays a layer of its own, so that files and exports hold the numbers that were trained.

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
