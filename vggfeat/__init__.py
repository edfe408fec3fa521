"""vggfeat: dense multi-scale features of VGG nets, and linear SVMs on them by the published protocols.

Importing this package loads neither PyTorch nor any other heavy library; the names below do when they are first used.
"""

import logging
from typing import TYPE_CHECKING, Any

from vggfeat import errors as errors
from vggfeat.errors import VggfeatError
from vggfeat.lazy import lazy_names

# What is worth a note goes to loggers below "vggfeat"; a program that sets up no logging sees nothing.
logging.getLogger("vggfeat").addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from vggfeat.datasets.catalogue import open_dataset
    from vggfeat.descriptors import join_features
    from vggfeat.estimator import Extractor
    from vggfeat.extract import RunSettings, extract_features
    from vggfeat.feature_dataset import FeatureDataset
    from vggfeat.forward.features import ExtractionSettings
    from vggfeat.images.decode import DecodeSettings
    from vggfeat.metrics import average_precision, confusion, mean_class_recall, top_k_error
    from vggfeat.nets.vgg import VGG
    from vggfeat.protocols.rules import run_protocol
    from vggfeat.store.reader import FeatureFile
    from vggfeat.table import load_features, read_descriptors
    from vggfeat.weights import load_backbone, save_weights

__all__ = [
    "VGG",
    "DecodeSettings",
    "ExtractionSettings",
    "Extractor",
    "FeatureDataset",
    "FeatureFile",
    "RunSettings",
    "VggfeatError",
    "average_precision",
    "confusion",
    "extract_features",
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

_lazy_name = lazy_names(
    __name__,
    {
        "vggfeat.datasets.catalogue": ("open_dataset",),
        "vggfeat.descriptors": ("join_features",),
        "vggfeat.estimator": ("Extractor",),
        "vggfeat.extract": ("RunSettings", "extract_features"),
        "vggfeat.feature_dataset": ("FeatureDataset",),
        "vggfeat.forward.features": ("ExtractionSettings",),
        "vggfeat.images.decode": ("DecodeSettings",),
        "vggfeat.metrics": ("average_precision", "confusion", "mean_class_recall", "top_k_error"),
        "vggfeat.nets.vgg": ("VGG",),
        "vggfeat.protocols.rules": ("run_protocol",),
        "vggfeat.store.reader": ("FeatureFile",),
        "vggfeat.table": ("load_features", "read_descriptors"),
        "vggfeat.weights": ("load_backbone", "save_weights"),
    },
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from vggfeat.runtime.devices import library_version

        return library_version("vggfeat")
    return _lazy_name(name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
