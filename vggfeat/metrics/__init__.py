"""The measures of the paper's tasks: average precision, class recall, confusion, top-k error, localisation error.

Every measure is a proportion from 0 to 1; none is a percentage.
"""

from vggfeat.metrics.boxes import (
    GUESSES,
    LEAST_OVERLAP,
    Localised,
    box_overlap,
    inclusive_pixels,
    localisation_error,
)
from vggfeat.metrics.classes import (
    PrecisionRecall,
    Rule,
    average_precision,
    class_recall,
    confusion,
    mean_class_recall,
    mean_defined,
    precision_recall,
    predict_classes,
    top_k_error,
)

__all__ = [
    "GUESSES",
    "LEAST_OVERLAP",
    "Localised",
    "PrecisionRecall",
    "Rule",
    "average_precision",
    "box_overlap",
    "class_recall",
    "confusion",
    "inclusive_pixels",
    "localisation_error",
    "mean_class_recall",
    "mean_defined",
    "precision_recall",
    "predict_classes",
    "top_k_error",
]
