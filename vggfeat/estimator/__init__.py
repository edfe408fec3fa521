"""Images as programs have them become descriptors and maps."""

from vggfeat.estimator.extractor import Extractor, Failure

__all__ = ["Extractor", "Failure"]
