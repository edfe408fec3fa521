"""What a device can do at most: multiply-adds of large matrices, and bytes copied."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from vggfeat.benchmarks.measure import wait_for
from vggfeat.forward.runner import DTYPES

MATRIX_SIDE = {"cpu": 1920, "cuda": 8192}
"""On the CPU no power of two: the rows of such a matrix share few places in the caches."""
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Of one array: many times what the caches hold."""


def matrix_rate(device: torch.device, precision: str, seconds: float) -> float:
    """Return the multiply-adds per second of the product of two large square matrices: the best of several.

    On the CPU by the faster of PyTorch's two libraries for products.

    Parameters
    ----------
    device : torch.device
        A CPU or a CUDA device.
    precision : fp32, tf32, bf16 or fp16
        tf32 on a CUDA device only.
    seconds : float
        Time for it, apart from the first products, which set up the libraries.
    """
    side = MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
    products = _products(left, right)
    with torch.inference_mode(), _tf32(precision == "tf32"):
        return side**3 / min(_shortest(product, device, seconds / len(products)) for product in products)


def copy_rate(device: torch.device, seconds: float) -> float:
    """Return the bytes per second, read and written ones together, of copying a large array: the best of several."""
    size = COPY_BYTES[device.type]
    source, target = (torch.zeros(size // 4, device=device) for _ in range(2))
    return 2 * size / _shortest(lambda: target.copy_(source), device, seconds)


def _shortest(act: Callable[[], object], device: torch.device, seconds: float) -> float:
    act()
    wait_for(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        act()
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return best


def _products(left: Tensor, right: Tensor) -> list[Callable[[], Tensor]]:
    """Return the product of two (n, n) matrices by each library that PyTorch has for it; n divisible by 32."""
    product = torch.empty_like(left)
    found: list[Callable[[], Tensor]] = [lambda: torch.mm(left, right, out=product)]
    if left.device.type == "cpu":
        # MKL, behind mm, has half of the rate of oneDNN on some processors. Convolutions lead to the latter: one of 1x2
        # that goes by twos is the product of the very same numbers, a row of `left` being n / 2 channels of two pixels.
        side = len(left)
        maps = left.view(1, side // 32, 64, side // 2).permute(0, 3, 1, 2)
        kernel = right.T.reshape(side, 1, 2, side // 2).permute(0, 3, 1, 2)
        found.append(lambda: F.conv2d(maps, kernel, stride=(1, 2)).permute(0, 2, 3, 1).reshape(side, side))
    return found


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    if before == allowed:
        # Even setting it to what it is changes what PyTorch knows of it, and compiled nets are compiled again.
        yield
        return
    matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before
