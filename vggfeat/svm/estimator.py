"""The solver as a scikit-learn estimator, and the choice of C by cross-validation.

n = rows, D = length of a descriptor, K = classes, G = values of C.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from vggfeat.errors import ConfigError, FitError
from vggfeat.svm.batches import Split
from vggfeat.svm.checks import check_costs, check_labels
from vggfeat.svm.rows import SvmProblemSet
from vggfeat.svm.settings import Progress, SvmSettings

Measure = Callable[[NDArray[np.bool_], NDArray[np.float64]], float]
"""Called with the truth (m,) and scores (m,) of held-out rows of one class; more is better."""


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


class Search(NamedTuple):
    """What every value of C is worth to every class."""

    C: NDArray[np.float64]
    """(K,) the best value for each class; of equally good ones the smallest."""
    grid: NDArray[np.float64]
    """(G,) ascending."""
    curve: NDArray[np.float64]
    """(G, K) mean of the measure over the folds."""
    spread: NDArray[np.float64]
    """(G, K) its standard deviation over the folds."""
    converged: NDArray[np.bool_]
    """(G, K) of all folds."""
    gap: NDArray[np.float64]
    """(G, K) largest relative duality gap of the folds."""


def search_C(  # noqa: N802
    descriptors: NDArray[np.floating],
    labels: ArrayLike,
    grid: ArrayLike,
    settings: SvmSettings | None = None,
    *,
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]] | int = 5,
    measure: Measure = average_precision_score,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Search:
    """Try every value of C on held-out rows, for each class.

    Parameters
    ----------
    descriptors : (n, D) float32 or float64
    labels : (n, K) array of 1, -1 or 0
        0 = the row takes no part for this class, in training and in measuring.
    grid : (G,) array of float
        Values of C, above 0.
    settings : SvmSettings, optional
    parts : pairs of row numbers to train on and to measure on, or number of folds
        Folds are made without chance; rows are dealt evenly by the rarest class that they are positive for.
    measure : callable
        See `Measure`; scikit-learn's average precision by default, which is neither of VOC's in `metrics`.
    classes, progress
        As for `fit_one_vs_rest`.

    Returns
    -------
    Search

    Raises
    ------
    FitError, ConfigError
        As `fit_one_vs_rest`, and if a class has no positive to measure on.
    """
    signs = check_labels(labels, len(np.asarray(descriptors)), classes)
    costs = np.unique(check_costs(grid))
    pairs = _folds(signs, int(parts)) if isinstance(parts, int | np.integer) else list(parts)
    if not pairs:
        raise ConfigError("parts: expected at least one pair of rows, found none")
    shared = SvmProblemSet(descriptors, settings)
    made = [Split(rows=fit, labels=signs[fit], held_out=held) for fit, held in pairs]
    sweeps = shared.sweep(made, costs, classes=classes, progress=progress)
    values = np.empty((len(pairs), len(costs), signs.shape[1]))
    for fold, ((_, held), sweep) in enumerate(zip(pairs, sweeps, strict=True)):
        for k in range(signs.shape[1]):
            truth = signs[held, k]
            if not (truth == 1).any():
                raise FitError(f"class {classes[k] if classes else k}: expected positives to measure on, found none")
            for g in range(len(costs)):
                values[fold, g, k] = measure(truth[truth != 0] == 1, sweep.scores[g, k][truth != 0])
    curve = values.mean(axis=0)
    return Search(
        C=costs[np.round(curve, 12).argmax(axis=0)],
        grid=costs,
        curve=curve,
        spread=values.std(axis=0),
        converged=np.logical_and.reduce([sweep.converged for sweep in sweeps]),
        gap=np.max([sweep.gap for sweep in sweeps], axis=0),
    )


def _folds(signs: NDArray[np.int8], count: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split rows by their rarest positive class."""
    if not 2 <= count <= len(signs):
        raise ConfigError(f"parts: expected 2 to {len(signs)} folds of as many rows, found {count}")
    frequency = np.where(signs == 1, (signs == 1).sum(axis=0), len(signs) + 1)
    kind = np.where((signs == 1).any(axis=1), frequency.argmin(axis=1), -1)
    with warnings.catch_warnings():
        # Of a class with fewer rows than folds: then the measure says what is missing.
        warnings.simplefilter("ignore", UserWarning)
        return list(StratifiedKFold(count).split(np.zeros(len(signs)), kind))
