"""Linear support vector machines, one class against the rest, at given values of C.

For each class, with labels y = 1 or -1 and rows of other labels left out, a weight vector w and an intercept b
minimise

    0.5 (|w|^2 + (b / s)^2) + C * sum over rows of weight * max(0, 1 - y (w x + b))^2

with s = `SvmSettings.intercept_scaling`. The VGG paper says "linear SVM" (Appendix B) and no more, so loss,
intercept and weights are those that LIBLINEAR and scikit-learn's `LinearSVC` take by default.

The names below are loaded when they are first used, so that the table of solvers can be read without NumPy.
"""

from typing import TYPE_CHECKING

from vggfeat.lazy import lazy_names
from vggfeat.svm.settings import SOLVERS, SvmSettings

if TYPE_CHECKING:
    from vggfeat.svm.arrays import check_device
    from vggfeat.svm.estimator import LinearOneVsRest, LinearOneVsRestCV
    from vggfeat.svm.model import LinearModel, Sweep, load_model, save_model
    from vggfeat.svm.solve import Split, SvmProblemSet, check_costs, fittable_classes

__all__ = [
    "SOLVERS",
    "LinearModel",
    "LinearOneVsRest",
    "LinearOneVsRestCV",
    "Split",
    "SvmProblemSet",
    "SvmSettings",
    "Sweep",
    "check_costs",
    "check_device",
    "fittable_classes",
    "load_model",
    "save_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "vggfeat.svm.estimator": ("LinearOneVsRest", "LinearOneVsRestCV"),
        "vggfeat.svm.arrays": ("check_device",),
        "vggfeat.svm.model": ("LinearModel", "Sweep", "load_model", "save_model"),
        "vggfeat.svm.solve": ("Split", "SvmProblemSet", "check_costs", "fittable_classes"),
    },
)
