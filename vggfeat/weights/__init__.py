"""Weights: a file, or a seed, becomes a net together with all that one must know to use it.

The names below are loaded when they are first used, so that what needs no PyTorch does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggfeat.weights.backbone import IMAGENET_MEAN, Backbone
    from vggfeat.weights.classes import imagenet_classes
    from vggfeat.weights.finding import load_backbone, load_bundled
    from vggfeat.weights.own import METADATA_VERSION, save_weights
    from vggfeat.weights.places import SUFFIXES, weights_folder
    from vggfeat.weights.torchvision import TORCHVISION_MEAN, TORCHVISION_STD, torchvision_names
    from vggfeat.weights.untrained import random_backbone

_HOMES = {
    "IMAGENET_MEAN": "backbone",
    "METADATA_VERSION": "own",
    "SUFFIXES": "places",
    "TORCHVISION_MEAN": "torchvision",
    "TORCHVISION_STD": "torchvision",
    "Backbone": "backbone",
    "imagenet_classes": "classes",
    "load_backbone": "finding",
    "load_bundled": "finding",
    "random_backbone": "untrained",
    "save_weights": "own",
    "torchvision_names": "torchvision",
    "weights_folder": "places",
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
        return getattr(import_module(f"vggfeat.weights.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vggfeat.weights' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
