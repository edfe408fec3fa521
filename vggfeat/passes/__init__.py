"""Runs of a net over many images, what features, class posteriors and maps share."""

from vggfeat.passes.batching import Batching, Size, by_size, padded
from vggfeat.passes.running import MAX_RESCALED_PIXELS, Passes, Row
from vggfeat.passes.settings import PassSettings, Precision

__all__ = ["MAX_RESCALED_PIXELS", "Batching", "PassSettings", "Passes", "Precision", "Row", "Size", "by_size", "padded"]
