"""vggfeat: dense multi-scale features of VGG nets, and linear SVMs on them by the published protocols.

Importing this package loads neither PyTorch nor any other heavy library; the names below do when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggfeat.caching import cache_features
    from vggfeat.datasets.front import open_dataset
    from vggfeat.descriptors import join_features
    from vggfeat.estimator import Extractor
    from vggfeat.extraction import ExtractionSettings
    from vggfeat.fusion.table import load_features, read_descriptors
    from vggfeat.metrics import average_precision, confusion, mean_class_recall, top_k_error
    from vggfeat.models import VGG
    from vggfeat.protocols.rules import run_protocol
    from vggfeat.store.reading import FeatureFile
    from vggfeat.weights import load_backbone, save_weights

_HOMES = {
    "ExtractionSettings": "extraction",
    "Extractor": "estimator",
    "FeatureFile": "store",
    "VGG": "models",
    "average_precision": "metrics",
    "cache_features": "caching",
    "confusion": "metrics",
    "join_features": "descriptors",
    "load_backbone": "weights",
    "load_features": "fusion",
    "mean_class_recall": "metrics",
    "open_dataset": "datasets",
    "read_descriptors": "fusion",
    "run_protocol": "protocols",
    "save_weights": "weights",
    "top_k_error": "metrics",
}

__all__ = [
    "VGG",
    "ExtractionSettings",
    "Extractor",
    "FeatureFile",
    "average_precision",
    "cache_features",
    "confusion",
    "join_features",
    "load_backbone",
    "load_features",
    "mean_class_recall",
    "open_dataset",
    "read_descriptors",
    "run_protocol",
    "save_weights",
    "top_k_error",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"vggfeat.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vggfeat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
