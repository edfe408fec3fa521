"""Linear support vector machines, one class against the rest, at given values of C.

For each class, with labels y = 1 or -1 and rows of other labels left out, a weight vector w and an intercept b
minimise

    0.5 (|w|^2 + (b / s)^2) + C * sum over rows of weight * max(0, 1 - y (w x + b))^2

with s = `SvmSettings.intercept_scaling`. The VGG paper says "linear SVM" (Appendix B) and no more, so loss,
intercept and weights are those that LIBLINEAR and scikit-learn's `LinearSVC` take by default.
"""

from vggfeat.svm.arrays import check_device
from vggfeat.svm.batches import Split
from vggfeat.svm.checks import check_costs, fittable_classes
from vggfeat.svm.estimator import LinearOneVsRest, Search, search_C
from vggfeat.svm.fitting import fit_one_vs_rest, scores_over_C
from vggfeat.svm.model import LinearModel, Sweep
from vggfeat.svm.rows import SvmProblemSet
from vggfeat.svm.saving import load_model, save_model
from vggfeat.svm.settings import SvmSettings

__all__ = [
    "LinearModel",
    "LinearOneVsRest",
    "Search",
    "Split",
    "SvmProblemSet",
    "SvmSettings",
    "Sweep",
    "check_costs",
    "check_device",
    "fit_one_vs_rest",
    "fittable_classes",
    "load_model",
    "save_model",
    "scores_over_C",
    "search_C",
]
