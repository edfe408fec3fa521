"""Weights: a file, or a seed, becomes a net together with all that one must know to use it.

The names below are loaded when they are first used, so that what needs no PyTorch does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggfeat.nets.backbone import IMAGENET_MEAN, Backbone
    from vggfeat.weights.classes import imagenet_classes
    from vggfeat.weights.load import load_backbone, load_bundled
    from vggfeat.weights.native import METADATA_VERSION, save_weights
    from vggfeat.weights.paths import SUFFIXES, weights_folder
    from vggfeat.weights.pytorch import TORCHVISION_MEAN, TORCHVISION_STD, torchvision_names
    from vggfeat.weights.random_init import random_backbone

_HOMES = {
    "IMAGENET_MEAN": "nets.backbone",
    "METADATA_VERSION": "weights.native",
    "SUFFIXES": "weights.paths",
    "TORCHVISION_MEAN": "weights.pytorch",
    "TORCHVISION_STD": "weights.pytorch",
    "Backbone": "nets.backbone",
    "imagenet_classes": "weights.classes",
    "load_backbone": "weights.load",
    "load_bundled": "weights.load",
    "random_backbone": "weights.random_init",
    "save_weights": "weights.native",
    "torchvision_names": "weights.pytorch",
    "weights_folder": "weights.paths",
}

__all__ = [
    "IMAGENET_MEAN",
    "METADATA_VERSION",
    "SUFFIXES",
    "TORCHVISION_MEAN",
    "TORCHVISION_STD",
    "Backbone",
    "imagenet_classes",
    "load_backbone",
    "load_bundled",
    "random_backbone",
    "save_weights",
    "torchvision_names",
    "weights_folder",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"vggfeat.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vggfeat.weights' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
