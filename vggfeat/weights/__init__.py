"""Weights: a file, or a seed, becomes a net together with all that one must know to use it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vggfeat.weights.load import imagenet_classes, load_backbone, load_bundled, random_backbone
from vggfeat.weights.sources import weights_folder

if TYPE_CHECKING:
    from vggfeat.nets.backbone import IMAGENET_MEAN, Backbone
    from vggfeat.weights.pytorch import torchvision_names
    from vggfeat.weights.tensor_files import save_weights

# Imported when they are first used, so that what needs no PyTorch does not wait for it.
_HOMES = {
    "IMAGENET_MEAN": "nets.backbone",
    "Backbone": "nets.backbone",
    "save_weights": "weights.tensor_files",
    "torchvision_names": "weights.pytorch",
}

__all__ = [
    "IMAGENET_MEAN",
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
