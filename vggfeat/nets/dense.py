"""Convolutions without padding as products of matrices, which is how a CPU runs layers 6 to 8 fastest.

N = images, C = channels, H, W = sides of a map, K = side of the kernel, h, w = H - K + 1, W - K + 1.
oneDNN, which convolves for PyTorch on a CPU, brings the weights into an order of its own at every call: 411 MB in fc6
of net D. With channels last, the weights are a matrix as they lie, and every window of a map is a row of another one.
"""

import torch
from torch import Tensor, nn


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    """Run an `nn.Conv2d` without padding, of stride 1, on a map (N, C, H, W).

    In inference mode on a CPU it is a product of matrices, if map and weights have their channels last. It then differs
    from the convolution by rounding alone.

    Returns
    -------
    Tensor (N, channels of the layer, h, w)
    """
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return layer(x)
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    if not (_suits_onednn(x) and _suits_onednn(weight)):
        return layer(x)
    side = weight.shape[-1]
    windows = x.permute(0, 2, 3, 1).unfold(1, side, 1).unfold(2, side, 1)  # (N, h, w, C, K, K)
    rows = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)  # (N, h, w, K * K * C), a copy unless K = 1
    matrix = weight.permute(0, 2, 3, 1).flatten(1)  # (channels of the layer, K * K * C), the same memory
    # As torch.compile calls it; `F.linear` takes a product of MKL in float32, which is slower on processors of others.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")
    return product.permute(0, 3, 1, 2)


def _suits_onednn(tensor: Tensor) -> bool:
    """Whether oneDNN is there and takes it without a copy: float32 or bfloat16 on the CPU, channels last."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous(memory_format=torch.channels_last):
        return False
    onednn = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if not hasattr(onednn, "_linear_pointwise"):
        return False
    return tensor.dtype == torch.float32 or (tensor.dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported())
