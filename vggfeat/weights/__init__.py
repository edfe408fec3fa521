"""Weights: a file, or a seed, becomes a net together with all that one must know to use it."""

from vggfeat.weights.backbone import IMAGENET_MEAN, Backbone
from vggfeat.weights.finding import SUFFIXES, load_backbone, load_bundled, weights_folder
from vggfeat.weights.own import METADATA_VERSION, save_weights
from vggfeat.weights.torchvision import TORCHVISION_MEAN, TORCHVISION_STD, torchvision_names
from vggfeat.weights.untrained import random_backbone

__all__ = [
    "IMAGENET_MEAN",
    "METADATA_VERSION",
    "SUFFIXES",
    "TORCHVISION_MEAN",
    "TORCHVISION_STD",
    "Backbone",
    "load_backbone",
    "load_bundled",
    "random_backbone",
    "save_weights",
    "torchvision_names",
    "weights_folder",
]
