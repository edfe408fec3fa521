"""The same layers in the way that a CPU computes fastest, where no gradients are wanted.

N = images, C = channels, H, W = sides of a map, K = side of a kernel, h, w = sides of the next map.
Everything here is as it is everywhere but in inference mode on a CPU, with maps and weights whose channels come last.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_CHANNELS = 32
"""Up to as many, PyTorch's pooling is slower than ours in float32."""


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    """Run an `nn.Conv2d` without padding, of stride 1, on a map (N, C, H, W): layers 6 to 8.

    oneDNN, which convolves for PyTorch on a CPU, brings the weights into an order of its own at every call: 411 MB in
    fc6 of net D. But these are a matrix as they lie, and the windows of a map are the rows of another. Their product
    differs from the convolution by rounding alone.

    Returns
    -------
    Tensor (N, channels of the layer, h, w), h = H - K + 1 and w = W - K + 1
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
    """Return the maxima of a map (N, C, H, W) over squares of 2 x 2, the same bits in either way.

    PyTorch's own pooling works out where each maximum is as well, and is slow where channels are few.

    Returns
    -------
    Tensor (N, C, h, w)
        h and w are halves of H and W, rounded up with `ceil`, else down.
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
