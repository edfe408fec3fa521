"""The same layers in the ways that a CPU computes fastest, where no gradients are wanted.

N = images, C = channels, H, W = sides of a map, K = side of a kernel, h, w = sides of the next map.
Everything here is as it is everywhere but in inference mode on a CPU, with maps and weights whose channels come last.

Convolutions of 3 x 3 can be had with a quarter of the multiplications, in float32: Winograd's F(4 x 4, 3 x 3) [1]_. A
tile is a square of 4 x 4 positions of the next map, which depends on 6 x 6 positions of the map before. Both the tile
and the kernel are turned into 36 numbers a channel, in which the convolution is a product of numbers; of all tiles and
channels that is 36 products of matrices. Their sums are turned back into the 16 values. So a value costs 36 / 16
multiplications a channel instead of 9, and its rounding error is some five times that of the sum itself. There, C and K
are channels before and after, h, w tiles along a map, T tiles of a block.

.. [1] A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural Networks. CVPR 2016, Sect. 4.3.
"""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_CHANNELS = 32
"""Up to as many, PyTorch's pooling is slower than ours in float32."""


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    """Run an `nn.Conv2d` without padding, of stride 1, on a map (N, C, H, W): layers 6 to 8.

    Returns (N, channels of the layer, h, w), with h = H - K + 1 and w = W - K + 1. oneDNN, which convolves for PyTorch
    on a CPU, brings the weights into an order of its own at every call: 411 MB in fc6 of net D. But these are a matrix
    as they lie, and the windows of a map are the rows of another. Their product differs from the convolution by
    rounding alone.
    """
    if not _in_inference():
        return layer(x)
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    if not (_suits_onednn(x) and _suits_onednn(weight)):
        return layer(x)
    side = weight.shape[-1]
    windows = x.permute(0, 2, 3, 1).unfold(1, side, 1).unfold(2, side, 1)  # (N, h, w, C, K, K)
    rows = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)  # (N, h, w, K * K * C), a copy unless K = 1
    matrix = weight.permute(0, 2, 3, 1).flatten(1)  # (channels of the layer, K * K * C), the same memory
    # As torch.compile calls it; `F.linear` takes MKL's product in float32, which is slower on processors of others.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")
    return product.permute(0, 3, 1, 2)


def max_pool(x: Tensor, *, ceil: bool) -> Tensor:
    """Return the maxima of a map (N, C, H, W) over squares of 2 x 2, (N, C, h, w), the same bits in either way.

    h and w are halves of H and W, rounded up with `ceil`, else down. PyTorch's own pooling works out where each maximum
    is as well, and is slow where channels are few.
    """
    if _in_inference() and _on_cpu_with_channels_last(x) and x.shape[1] <= FEW_CHANNELS and min(x.shape[2:]) > 1:
        return _halved(_halved(x, 2, ceil), 3, ceil)
    return F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=ceil)


def _halved(x: Tensor, dim: int, ceil: bool) -> Tensor:
    before = (slice(None),) * dim
    even, odd = x[(*before, slice(0, None, 2))], x[(*before, slice(1, None, 2))]
    pairs = odd.shape[dim]
    found = torch.maximum(even.narrow(dim, 0, pairs), odd)
    if ceil and even.shape[dim] > pairs:
        found = torch.cat([found, even.narrow(dim, pairs, 1)], dim)
    return found


def _in_inference() -> bool:
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _on_cpu_with_channels_last(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous(memory_format=torch.channels_last)


def _suits_onednn(tensor: Tensor) -> bool:
    """Whether oneDNN is there and takes it without a copy."""
    onednn = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if not hasattr(onednn, "_linear_pointwise") or not _on_cpu_with_channels_last(tensor):
        return False
    return tensor.dtype == torch.float32 or (tensor.dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported())


TILE, SEEN = 4, 6
"""Side of a tile, and of what it depends on."""
LEAST_CHANNELS = 128
"""Before and after; with fewer, turning tiles into numbers and back takes about as long as what it saves."""
# Of the largest array of a block: many tiles for each time that the weights are read, and little enough for the caches.
_BLOCK_BYTES = 1 << 24

# The letters of the paper. The points are 0, 1, -1, 2, -2 and infinity.
_B = (  # (6, 6), turns what a tile depends on, along one side
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (  # (6, 3), turns a kernel, in parts of 24
    (6, 0, 0),
    (-4, -4, -4),
    (-4, 4, -4),
    (1, 2, 4),
    (1, -2, 4),
    (0, 0, 24),
)
_A = (  # (4, 6), turns sums back
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
_ONES = 7
"""Of the 36, the one of point (1, 1): what is added there is added to each of the 16 values, as the bias is."""

Model = TypeVar("Model", bound=nn.Module)


def with_winograd(model: Model) -> Model:
    """Compute a net's convolutions of 3 x 3 in this way from now on, where that is faster; return the net.

    It is for inference in float32 on a CPU, with maps whose channels come last.
    """
    for part in model.modules():
        for name, layer in part.named_children():
            if isinstance(layer, nn.Conv2d) and _suits(layer):
                setattr(part, name, WinogradConv2d(layer))
    return model


def _suits(layer: nn.Conv2d) -> bool:
    plain = (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    square = layer.kernel_size == (3, 3) and layer.padding == (1, 1)
    return plain and square and min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS


class WinogradConv2d(nn.Module):
    """What an `nn.Conv2d`, 3 x 3, stride 1, a margin of zeros, computes, up to rounding; the layer is not changed."""

    weights: Tensor
    """(36, C, K) turned kernels."""
    bias: Tensor | None
    """(K,)"""
    turn: Tensor
    """(36, 36), for what tiles depend on."""
    turn_back: Tensor
    """(16, 36), for sums."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach()
        kernels, turn = weight.double(), weight.new_tensor(_G, dtype=torch.float64) / 24
        turned = torch.einsum("iy,jx,kcyx->ijck", turn, turn, kernels)  # (6, 6, C, K)
        self.register_buffer("weights", turned.flatten(0, 1).to(weight.dtype).contiguous())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        for name, matrix in (("turn", _B), ("turn_back", _A)):
            side = weight.new_tensor(matrix)
            self.register_buffer(name, torch.kron(side, side), persistent=False)  # (36, 36), (16, 36)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve maps (N, C, H, W); return (N, K, H, W), channels last, as part of a tensor of whole tiles."""
        count, channels, height, width = x.shape
        down, across = -(-height // TILE), -(-width // TILE)
        rows, last = x.permute(0, 2, 3, 1), self.weights.shape[2]
        found = x.new_empty(count, TILE * down, TILE * across, last)
        for images, tiles in self._blocks(count, down, across):
            seen = _with_margin(rows[images], tiles, across)  # (n, 4 r + 2, 4 w + 2, C), r rows of tiles
            size = (len(seen), tiles.stop - tiles.start, across)  # (n, r, w), T of them
            every = seen.unfold(1, SEEN, TILE).unfold(2, SEEN, TILE).permute(0, 1, 2, 4, 5, 3)  # (n, r, w, 6, 6, C)
            numbers = every.reshape(-1, SEEN**2, channels)  # (T, 36, C)
            turned = torch.bmm(self.turn.expand(len(numbers), -1, -1), numbers)  # (T, 36, C)
            sums = torch.bmm(turned.transpose(0, 1), self.weights)  # (36, T, K)
            if self.bias is not None:
                sums[_ONES] += self.bias
            values = torch.mm(self.turn_back, sums.view(SEEN**2, -1)).view(TILE, TILE, *size, last)
            part = found[images, TILE * tiles.start : TILE * tiles.stop]
            part.view(*size[:2], TILE, across, TILE, last).copy_(values.permute(2, 3, 0, 4, 1, 5))
        return found[:, :height, :width].permute(0, 3, 1, 2)

    def _blocks(self, count: int, down: int, across: int) -> Iterator[tuple[slice, slice]]:
        """Divide images with so many tiles into blocks: some whole images, or some rows of tiles of one."""
        row = SEEN**2 * across * max(self.weights.shape[1:]) * self.weights.element_size()
        images, rows = max(1, _BLOCK_BYTES // (row * down)), min(down, max(1, _BLOCK_BYTES // row))
        for first in range(0, count, images):
            for top in range(0, down, rows):
                yield slice(first, min(first + images, count)), slice(top, min(top + rows, down))


def _with_margin(maps: Tensor, tiles: slice, across: int) -> Tensor:
    """Return what r rows of tiles of maps (n, H, W, C) depend on, zeros beyond the maps; (n, 4 r + 2, 4 w + 2, C)."""
    height, width = maps.shape[1:3]
    top, bottom = TILE * tiles.start - 1, TILE * tiles.stop + 1
    margin = (0, 0, 1, TILE * across + 1 - width, max(0, -top), max(0, bottom - height))
    return F.pad(maps[:, max(0, top) : bottom], margin)
