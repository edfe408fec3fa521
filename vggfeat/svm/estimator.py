"""The Newton solver as a scikit-learn estimator.

n = rows, m = rows to score, D = length of a descriptor, K = classes.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from vggfeat.svm.settings import SvmSettings
from vggfeat.svm.solve import SvmProblemSet


class LinearOneVsRest(ClassifierMixin, BaseEstimator):
    """Linear SVMs with squared hinge loss, one class against the rest: `LinearSVC`, all classes in one solve.

    The optimum is that of `sklearn.svm.LinearSVC(C=C, intercept_scaling=..., class_weight=...)`.

    Parameters
    ----------
    C : float or (K,) array of float
        Cost of an error, above 0; for all classes or for each of `classes_`. Of two classes there is one function.
    intercept_scaling : float
        See `SvmSettings`.
    class_weight : dict, "balanced" or None
        Factor to C of the rows of each class where it is the positive one, and of two classes of both, as in
        `LinearSVC`. "balanced": n / (K * rows of the class), where a row counts by its weight.
    tol : float
        Relative duality gap.
    device : str or None
        See `SvmSettings`.

    Attributes
    ----------
    classes_ : (K,) array
    coef_ : (K, D) float64, or (1, D) for two classes
    intercept_ : (K,) float64, or (1,) for two classes
    gap_ : (K,) float64, or (1,) for two classes
        Relative duality gap: the certificate of the solution.
    n_features_in_ : int
    feature_names_in_ : (D,) array of str
        Where X had names.

    Examples
    --------
    >>> import numpy as np
    >>> model = LinearOneVsRest(C=10.0).fit(np.array([[0.0], [1.0], [2.0]]), ["no", "no", "yes"])
    >>> model.predict(np.array([[3.0]]))
    array(['yes'], dtype='<U3')
    """

    def __init__(
        self,
        C: float | ArrayLike = 1.0,  # noqa: N803
        *,
        intercept_scaling: float = 1.0,
        class_weight: Mapping[Any, float] | str | None = None,
        tol: float = 1e-6,
        device: str | None = None,
    ) -> None:
        self.C = C
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.tol = tol
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:  # noqa: N803
        """Fit one function a class.

        Parameters
        ----------
        X : (n, D)
        y : (n,) labels of two classes or more
        sample_weight : (n,), optional
            Factor to C of each row, not negative; 0 leaves it out.

        Raises
        ------
        ValueError
            As scikit-learn's estimators, for arrays that don't fit.
        ConfigError
            If a parameter is not allowed.
        FitError
            If a class has no row of weight above 0.
        """
        rows, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        weights = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(np.unique(numbers[weights > 0])) < 2:
            raise ValueError("y: expected at least 2 classes with rows of weight above 0, found fewer (1 class)")
        named = np.arange(1, 2) if len(self.classes_) == 2 else np.arange(len(self.classes_))
        signs = np.where(numbers[:, None] == named, 1, -1)
        factors = self._class_factors(numbers, weights)[numbers][:, None]
        # As in LIBLINEAR: where there are more than two classes, the rest of them has the factor 1.
        factors = np.where((signs == 1) | (len(self.classes_) == 2), factors, 1.0)
        settings = SvmSettings(intercept_scaling=self.intercept_scaling, tolerance=self.tol, device=self.device)
        names = [str(self.classes_[k]) for k in named]
        model = SvmProblemSet(rows, settings).fit(
            np.arange(len(rows)), signs, self.C, weights=weights[:, None] * factors, classes=names
        )
        if not model.converged.all():
            lost = ", ".join(name for name, solved in zip(names, model.converged, strict=True) if not solved)
            warnings.warn(
                f"gave up at a relative duality gap of {model.gap.max():.1g} for {lost}",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.coef_, self.intercept_, self.gap_ = model.coef, model.intercept, model.gap
        return self

    def _class_factors(self, numbers: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the factor of each class to C, (K,)."""
        if self.class_weight == "balanced":
            totals = np.bincount(numbers, weights)
            return weights.sum() / (len(totals) * np.where(totals > 0, totals, 1.0))
        return compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_)

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Score X (m, D): (m, K), or (m,) for two classes, above 0 where the second is more likely."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores = rows @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the label of the class with the highest score for each row of X (m, D)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]
