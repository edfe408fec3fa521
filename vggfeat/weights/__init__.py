"""Weights: a file, or a seed, becomes a net together with all that one must know to use it."""

from typing import TYPE_CHECKING

from vggfeat.lazy import lazy_names
from vggfeat.weights.load import imagenet_classes, load_backbone, load_bundled, random_backbone
from vggfeat.weights.sources import weights_folder

if TYPE_CHECKING:
    from vggfeat.nets.backbone import IMAGENET_MEAN, Backbone
    from vggfeat.weights.pytorch import torchvision_names
    from vggfeat.weights.tensor_files import save_weights

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

# Imported when they are first used, so that what needs no PyTorch does not wait for it.
__getattr__ = lazy_names(
    __name__,
    {
        "vggfeat.nets.backbone": ("IMAGENET_MEAN", "Backbone"),
        "vggfeat.weights.pytorch": ("torchvision_names",),
        "vggfeat.weights.tensor_files": ("save_weights",),
    },
)
