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
from vggfeat.runtime.distributed import World
from vggfeat.training.learner import Learner
from vggfeat.training.objective import Classification
from vggfeat.training.recipe import Recipe, TrainingSettings
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


def move(self, device, dtype=None, memory_format=None):
    """Do what `nn.Module.to` does, which fake tensors can't be swapped into."""
    for module in self.modules():
        for name, tensor in module._parameters.items():
            moved = tensor.detach().to(device, dtype or tensor.dtype)
            module._parameters[name] = nn.Parameter(moved, requires_grad=tensor.requires_grad)
        for name, tensor in module._buffers.items():
            module._buffers[name] = tensor.to(device, dtype or tensor.dtype)
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


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("net", "precision"),
    [  # A-LRN leaves half precision for a while.
        ("A-LRN", "fp16"),
        ("D-BN", "tf32"),
        pytest.param("A-LRN", "fp32", marks=pytest.mark.long),
        pytest.param("D-BN", "bf16", marks=pytest.mark.long),
    ],
)
def test_nothing_is_left_on_the_cpu(net, precision, path, gpu, monkeypatch):
    make, options = PATHS[path]
    net = f"random:{net}:0:0.03125"
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


@pytest.mark.parametrize("padded", [False, True])
def test_images_of_a_padded_batch_are_uploaded_and_nothing_is_waited_for(padded, gpu, monkeypatch):
    made = extraction(backbone("random:A:0:0.03125"), batching="padded" if padded else "size")
    waits = []
    monkeypatch.setattr(torch.Tensor, "item", lambda self: waits.append("item"))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: waits.append("tolist"))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: waits.append("bool"))
    to = torch.Tensor.to

    def watching(self, *given, **named):
        if self.device == GPU and "cpu" in map(str, given) and not named.get("non_blocking"):
            waits.append("to")
        return to(self, *given, **named)

    monkeypatch.setattr(torch.Tensor, "to", watching)
    list(made.batches(IMAGES))
    assert waits == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")
def test_a_step_of_training_leaves_nothing_on_the_cpu(precision, gpu, monkeypatch):
    """The backward pass apart, which PyTorch has none of for fake tensors."""
    recipe = Recipe(net="A", width=1 / 32, batch=4)
    with unset_fake_temporarily():
        objective = Classification(recipe, ("cat", "dog"))
        model, _ = objective.first_weights()
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    learner = Learner(model, objective, TrainingSettings(precision=precision), World(device=GPU), None, print)
    images = torch.zeros(4, 3, recipe.crop, recipe.crop, device=GPU)
    targets = objective.no_targets(4).to(GPU)
    outputs, part = [], objective.loss
    monkeypatch.setattr(Classification, "loss", lambda self, *given: outputs.append(given[0]) or part(*given))
    learner.step(0, images, targets, 0.01)
    outputs.append(learner.outputs(images))
    assert [(one.device, one.dtype, one.shape) for one in outputs] == 2 * [(GPU, torch.float32, (4, 2))]
    assert {tensor.device for tensor in (learner._sums, learner._first_bad, *model.parameters())} == {GPU}
