"""Runs of a net over many images, what features, class posteriors and maps share."""

from vggfeat.forward.batching import Batching, Size, by_size, padded
from vggfeat.forward.runner import MAX_RESCALED_PIXELS, BatchRunner, Row
from vggfeat.forward.settings import ForwardSettings, Precision

__all__ = [
    "MAX_RESCALED_PIXELS",
    "BatchRunner",
    "Batching",
    "ForwardSettings",
    "Precision",
    "Row",
    "Size",
    "by_size",
    "padded",
]
