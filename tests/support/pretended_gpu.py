"""Arrays of PyTorch that claim to be on a GPU, and compute on the CPU; together with others they raise, as there."""

import torch
from torch.utils._pytree import tree_leaves, tree_map

from vggfeat.svm.arrays import TorchArrays

ATEN = torch.ops.aten
WAITING = (ATEN._local_scalar_dense.default, ATEN.nonzero.default)
INDEXING = (ATEN.index.Tensor, ATEN.index_put_.default)


class OnGpu(torch.Tensor):
    """A tensor that goes with its like only."""

    waits = 0
    """How often the processor would have waited for the GPU: for numbers, or for how many there are."""
    masks = 0
    """How often because a mask was an index."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype)

    def __init__(self, held):
        self.held = held

    def cpu(self):
        OnGpu.waits += 1
        return self.held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if any(one.ndim and not isinstance(one, OnGpu) for one in given):
            raise RuntimeError(f"{function}: expected all tensors on the GPU, found one on the CPU")
        index = tree_leaves(args[1]) if function in INDEXING else []
        masked = any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in index)
        OnGpu.masks += masked
        OnGpu.waits += function in WAITING or masked
        found = function(*tree_map(_held, args), **tree_map(_held, kwargs or {}))
        return args[0] if function._schema.is_mutable else tree_map(_put, found)


def _put(one):
    return OnGpu(one) if isinstance(one, torch.Tensor) else one


def _held(one):
    return one.held if isinstance(one, OnGpu) else one


class PretendedGpu(TorchArrays):
    """What the solver uses, with such arrays."""

    def __init__(self, device):
        super().__init__("cpu")

    def asarray(self, array):
        return OnGpu(super().asarray(array))

    def index(self, array):
        return OnGpu(super().index(array))

    def zeros(self, *shape):
        return OnGpu(super().zeros(*shape))
