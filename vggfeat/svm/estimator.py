"""The Newton solver as scikit-learn estimators: at one C, and with C chosen by cross-validation.

n = rows, m = rows to score, D = length of a descriptor, K = classes, G = values of C, F = folds.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score
from sklearn.model_selection import check_cv
from sklearn.utils import Tags, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from vggfeat.checks import check_unmasked
from vggfeat.svm.settings import C_GRID, SvmSettings
from vggfeat.svm.solve import Split, SvmProblemSet, fittable_classes


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
        Labels; of an indicator matrix the numbers of its columns.
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
        y : array (n,) of labels of two classes or more, or indicator matrix (n, K) of 0 and 1
        sample_weight : (n,), optional
            Factor to C of each row, not negative; 0 leaves it out.

        Raises
        ------
        ValueError
            As scikit-learn's estimators, for arrays that don't fit.
        ConfigError
            If a parameter is not allowed.
        FitError
            If a class has no row of weight above 0, or nothing but such rows, or an array is masked.
        """
        rows, signs = self._read(X, y)
        check_unmasked("sample_weight", sample_weight)
        weights = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
        if not self.multilabel_ and len(np.unique(signs[weights > 0], axis=0)) < 2:
            raise ValueError("y: expected at least 2 classes with rows of weight above 0, found fewer (1 class)")
        self._solve(self._problems(rows), signs, self.C, weights[:, None] * self._factors(signs, weights))
        return self

    def _read(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int8]]:
        """Return rows (n, D) and labels 1 or -1, (n, K) or (n, 1); keep the names of the classes."""
        check_unmasked("X, y", x, y)
        several = np.asarray(y).ndim == 2 and np.asarray(y).shape[1] > 1
        rows, labels = validate_data(self, x, y, dtype=[np.float64, np.float32], multi_output=several)
        check_classification_targets(labels)
        kind = type_of_target(labels)
        self.multilabel_ = kind == "multilabel-indicator"
        if self.multilabel_:
            self.classes_ = np.arange(labels.shape[1])
            return rows, np.where(labels > 0, 1, -1).astype(np.int8)
        if several:
            raise ValueError(f"y: expected labels (n,), or an indicator matrix of 0 and 1 (n, K), found {kind}")
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y: expected at least 2 classes with rows of weight above 0, found fewer (1 class)")
        return rows, np.where(numbers[:, None] == self._positive(), 1, -1).astype(np.int8)

    def _positive(self) -> NDArray[np.int64]:
        """Return the numbers of the classes that have a function: of two classes the second alone."""
        return np.arange(1, 2) if self._is_binary() else np.arange(len(self.classes_))

    def _is_binary(self) -> bool:
        return len(self.classes_) == 2 and not self.multilabel_

    def _problems(self, rows: NDArray[Any]) -> SvmProblemSet:
        settings = SvmSettings(intercept_scaling=self.intercept_scaling, tolerance=self.tol, device=self.device)
        return SvmProblemSet(rows, settings)

    def _solve(
        self, problems: SvmProblemSet, signs: NDArray[np.int8], costs: float | ArrayLike, weights: NDArray[np.float64]
    ) -> None:
        names = [str(self.classes_[k]) for k in self._positive()]
        model = problems.fit(np.arange(len(signs)), signs, costs, weights=weights, classes=names)
        if not model.converged.all():
            lost = ", ".join(name for name, solved in zip(names, model.converged, strict=True) if not solved)
            warnings.warn(
                f"gave up at a relative duality gap of {model.gap.max():.1g} for {lost}",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.coef_, self.intercept_, self.gap_ = model.coef, model.intercept, model.gap

    def _factors(self, signs: NDArray[np.int8], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what `class_weight` makes each row count for each function, (n, 1) or (n, K)."""
        if self.class_weight is None:
            return np.ones(signs.shape)
        if self.multilabel_:
            raise ValueError(f"class_weight: expected None for an indicator matrix, found {self.class_weight!r}")
        # As in LIBLINEAR: where there are more than two classes, the rest of them has the factor 1.
        numbers = (signs[:, 0] > 0).astype(np.int64) if self._is_binary() else signs.argmax(axis=1)
        factors = self._class_factors(numbers, weights)[numbers][:, None]
        return np.where((signs == 1) | self._is_binary(), factors, 1.0)

    def _class_factors(self, numbers: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the factor of each class to C, (K,)."""
        if self.class_weight == "balanced":
            totals = np.bincount(numbers, weights)
            return weights.sum() / (len(totals) * np.where(totals > 0, totals, 1.0))
        return compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_)

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Score X (m, D): (m, K), or (m,) for two labels, above 0 where the second is more likely."""
        check_is_fitted(self)
        check_unmasked("X", X)
        rows = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores = rows @ self.coef_.T + self.intercept_
        return scores[:, 0] if self._is_binary() else scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the label with the highest score of each row of X (m, D); or which scores are above 0, (m, K)."""
        scores = self.decision_function(X)
        if self.multilabel_:
            return (scores > 0).astype(int)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class LinearOneVsRestCV(LinearOneVsRest):
    """`LinearOneVsRest` with C chosen by cross-validation, all values of all classes of all folds in one sweep.

    Labels get one C, that of the highest mean accuracy; the columns of an indicator matrix each the C of their highest
    mean average precision, over the folds whose test rows have positives and negatives of the column: of positives
    alone it is 1 whatever the scores; or where no fold has both, that of the highest mean of the other columns. Of
    equal values the smallest C is taken.

    Parameters
    ----------
    Cs : (G,) array of float
        Values of C to choose from; by default those of `vggfeat svm`.
    cv : int, splitter of scikit-learn, or iterable of (training rows, test rows)
        Folds; of a number, stratified by label.
    intercept_scaling, tol, device
        As in `LinearOneVsRest`.

    Attributes
    ----------
    C_ : float, or (K,) float64 for an indicator matrix
        What was chosen.
    cv_scores_ : (G, F) float64, or (G, F, K) for an indicator matrix
        Accuracy or average precision on the test rows of each fold, 0 to 1, for ascending C; NaN where there is none.
    classes_, coef_, intercept_, gap_, n_features_in_, feature_names_in_
        As in `LinearOneVsRest`, of the last fit, on all rows.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(12.0)[:, None]
    >>> LinearOneVsRestCV(cv=3).fit(x, x[:, 0] > 5).predict([[2.0], [9.0]])
    array([False,  True])
    """

    def __init__(
        self,
        Cs: ArrayLike = C_GRID,  # noqa: N803
        *,
        cv: Any = 5,
        intercept_scaling: float = 1.0,
        tol: float = 1e-6,
        device: str | None = None,
    ) -> None:
        super().__init__(intercept_scaling=intercept_scaling, tol=tol, device=device)
        self.Cs = Cs
        self.cv = cv

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # type: ignore[override]  # noqa: N803
        """Choose C, and fit one function a class to all rows.

        Parameters
        ----------
        X : (n, D)
        y : array (n,) of labels of two classes or more, or indicator matrix (n, K) of 0 and 1

        Raises
        ------
        ValueError
            As scikit-learn's estimators, for arrays that don't fit, or more folds than rows of a class; or if no test
            row tells which C is better.
        ConfigError
            If a parameter is not allowed.
        FitError
            If a class has no row, or nothing but rows, in a training part.
        """
        rows, signs = self._read(X, y)
        costs, problems = np.sort(np.asarray(self.Cs, dtype=np.float64).ravel()), self._problems(rows)
        folds = list(check_cv(self.cv, y, classifier=not self.multilabel_).split(rows, y))
        if not folds:
            raise ValueError("cv: expected folds to choose C by, found none; an iterable is used up by one fit")
        parts = [Split(rows=train, labels=signs[train], held_out=test) for train, test in folds]
        names = [str(self.classes_[k]) for k in self._positive()]
        sweeps = problems.sweep(parts, costs, classes=names)
        measure = self._average_precision if self.multilabel_ else self._accuracy
        found = [measure(sweep.scores, signs[part.held_out]) for sweep, part in zip(sweeps, parts, strict=True)]
        self.cv_scores_ = np.stack(found, axis=1)
        best = costs[self._best(self.cv_scores_)]
        self.C_ = best if self.multilabel_ else float(best)
        self._solve(problems, signs, self.C_, np.ones(signs.shape))
        return self

    def _best(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the number of the best C for scores (G, F) or (G, F, K): one, or (K,)."""
        known = ~np.isnan(scores)
        if not known.any():
            raise ValueError("cv: expected test rows, positive and negative ones, to choose C by, found none")
        sums, counts = np.where(known, scores, 0.0).sum(axis=1), known.sum(axis=1)
        # Rounded, so that values which differ by the order of a summation only count as equal.
        means = np.round(np.divide(sums, counts, out=np.zeros(sums.shape), where=counts > 0), 12)
        best = means.argmax(axis=0)
        if self.multilabel_ and not (counts > 0).all():
            best[counts[0] == 0] = np.round(means[:, counts[0] > 0].mean(axis=1), 12).argmax()
        return best

    def _accuracy(self, scores: NDArray[np.float64], signs: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return for scores (G, K, m) the share of rows whose best class is right, (G,)."""
        if not len(signs):
            return np.full(len(scores), np.nan)
        if self._is_binary():
            return ((scores[:, 0] > 0) == (signs[:, 0] > 0)).mean(axis=1)
        return (scores.argmax(axis=1) == signs.argmax(axis=1)).mean(axis=1)

    def _average_precision(self, scores: NDArray[np.float64], signs: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return for scores (G, K, m) the average precision of each class, (G, K); NaN where scores decide nothing."""
        found = np.full(scores.shape[:2], np.nan)
        for k in np.flatnonzero(fittable_classes(signs)).tolist():
            found[:, k] = [average_precision_score(signs[:, k] > 0, one) for one in scores[:, k]]
        return found
