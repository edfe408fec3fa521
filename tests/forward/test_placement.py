"""Every forward path on tensors that claim to be on a GPU: one that is left on the CPU raises.

PyTorch's fake tensors have shapes, types and devices, and no values, so this needs no GPU. It can't show what streams,
events, pinned memory and graphs do, nor a number: `test_gpu.py` does, where there is a GPU.
"""

import copy
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vggfeat.forward import posteriors, runner
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.forward.posteriors import PosteriorSettings, posterior_runner
from vggfeat.forward.runner import DTYPES, BatchRunner
from vggfeat.localisation.maps import MapSettings, crop_runner, map_runner
from vggfeat.weights import random_backbone

GPU = torch.device("cuda", 0)
IMAGES = [(np.zeros((*size, 3), dtype=np.uint8),) for size in ((70, 60), (60, 81), (70, 60))]
STRIPS = 70_000
"""Pixels in a pass, so that images at Q = 256 are cut into strips."""


def extraction(net, **options):
    return feature_runner(net, ExtractionSettings(scales=(256,), **options), "cuda")


def posterior(net, **options):
    return posterior_runner(net, PosteriorSettings(scales=(256,), **options), "cuda")


def maps(net, **options):
    return map_runner(net, MapSettings(scales=(256,), **options), "cuda", posteriors=True)


def crop(net, **options):
    return crop_runner(net, MapSettings(scales=(256,), **options), "cuda", 224)


PATHS = {
    "features": (extraction, {}),
    "features, padded": (extraction, {"batching": "padded"}),
    "features, strips": (extraction, {"batch_pixels": STRIPS}),
    "posteriors, dense": (posterior, {"mode": "dense"}),
    "posteriors, dense, strips": (posterior, {"mode": "dense", "softmax": "before", "batch_pixels": STRIPS}),
    "posteriors, crop": (posterior, {"mode": "crop"}),
    "posteriors, multi-crop": (posterior, {"mode": "multi-crop"}),
    "maps": (maps, {}),
    "maps, strips": (maps, {"batch_pixels": STRIPS}),
    "centre crop": (crop, {}),
}


def move(self, device, dtype, memory_format):
    """Do what `nn.Module.to` does, which fake tensors can't be swapped into."""
    for module in self.modules():
        for name, tensor in module._parameters.items():
            module._parameters[name] = nn.Parameter(tensor.to(device, dtype), requires_grad=False)
        for name, tensor in module._buffers.items():
            module._buffers[name] = tensor.to(device, dtype)
    return self


def copied(model):
    with unset_fake_temporarily():
        return copy.deepcopy(model)


@functools.cache
def backbone(name):
    with unset_fake_temporarily():
        return random_backbone(name)


@pytest.fixture
def gpu(monkeypatch):
    """Let fake tensors be those of a GPU."""
    for module in (runner, posteriors):
        monkeypatch.setattr(module, "checked_device", lambda *given: GPU)
    monkeypatch.setattr(runner, "copy", SimpleNamespace(deepcopy=copied))
    monkeypatch.setattr(nn.Module, "to", move)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class WithoutFloat64(TorchDispatchMode):
    """A GPU without numbers of 64 bits, as Apple's is."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, torch.Tensor) and one.device == GPU:
                assert one.dtype != torch.float64, function
        return found


def watched(made: BatchRunner, monkeypatch):
    """Run images, and return type and device of what the head is given and of what it returns."""
    seen, values = [], type(made.head).values

    def watching(self, model, batch, pixels, sides=None):
        found = values(self, model, batch, pixels, sides)
        seen.extend([batch, found])
        return found

    monkeypatch.setattr(type(made.head), "values", watching)
    with WithoutFloat64():
        batches = [value for batch in made.batches(IMAGES) for _, value in batch]
    assert len(batches) == len(IMAGES)
    assert {value.device.type for value in batches} == {"cpu"}
    return {(tensor.dtype, tensor.device) for tensor in seen}


@pytest.mark.parametrize("net", ["random:A-LRN:0:0.03125", "random:D-BN:0:0.03125"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_is_left_on_the_cpu(precision, path, net, gpu, monkeypatch):
    make, options = PATHS[path]
    made = make(backbone(net), precision=precision, **options)
    for tensor in made.model.state_dict().values():
        assert (tensor.device, tensor.dtype) == (GPU, DTYPES[precision])
    assert watched(made, monkeypatch) == {(torch.float32, GPU)}


@pytest.mark.parametrize("left", ["mean", "std"])
def test_a_tensor_that_is_left_on_the_cpu_is_seen(left, gpu):
    made = extraction(backbone("random:A:0:0.03125"))
    setattr(made, left, torch.ones(3))
    with pytest.raises(RuntimeError, match="cpu"):
        list(made.batches(IMAGES))
