"""Recall of classes, confusion and top-k error, and average precision of one class, by both rules of VOC.

N = samples, K = classes. Every measure is a proportion from 0 to 1; none is a percentage.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.checks import check_choice, check_unmasked, whole_number
from vggfeat.errors import FitError


def confusion(targets: ArrayLike, predictions: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count the pairs of true and predicted class.

    Parameters
    ----------
    targets : (N,) array of int from 0 to K - 1
        True classes.
    predictions : (N,) array of int from -1 to K - 1
        -1 = no prediction.
    num_classes : int
        K.

    Returns
    -------
    (K, K) int64
        Row = true class, column = predicted class. Samples without a prediction are in no cell, so that a row
        sums to less than the samples of its class by their number.

    Raises
    ------
    FitError
        If shapes differ or a class number is out of its range.
    """
    true, predicted = _check_classes(targets, predictions, num_classes)
    known = predicted >= 0
    cells = np.bincount(true[known] * num_classes + predicted[known], minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def class_recall(targets: ArrayLike, predictions: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    """Recall of each class, (K,) float64: its correctly predicted samples / its samples; NaN where it has none.

    Parameters and errors are those of `confusion`; a prediction of -1 counts as wrong.
    """
    true, predicted = _check_classes(targets, predictions, num_classes)
    samples = np.bincount(true, minlength=num_classes)
    correct = np.bincount(true[true == predicted], minlength=num_classes)
    return np.divide(correct, samples, out=np.full(num_classes, np.nan), where=samples > 0)


def mean_class_recall(targets: ArrayLike, predictions: ArrayLike, num_classes: int) -> float:
    """Mean over classes of their recall: the Caltech measure (VGG paper, Appendix B).

    Parameters
    ----------
    targets, predictions, num_classes
        As for `confusion`; a prediction of -1 counts as wrong.

    Returns
    -------
    float
        Mean over the classes that occur in `targets`, which is scikit-learn's `balanced_accuracy_score`; a class
        that is only predicted adds nothing (in `recall_score` with macro averages it would add a 0). NaN where
        there is no sample at all.

    Raises
    ------
    FitError
        As `confusion`.
    """
    return mean_defined(class_recall(targets, predictions, num_classes))


def mean_defined(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def predict_classes(scores: ArrayLike) -> NDArray[np.int64]:
    """Choose the class of the highest score, of equal ones the first: (N,) int64 of scores (N, K).

    A score of -inf is not chosen; -1 where all are. FitError if one is NaN or the array is not (N, K) with K from 1.
    """
    table = _check_scores(scores)
    return np.where(table.max(axis=1) > -np.inf, table.argmax(axis=1), -1)


def top_k_error(targets: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Proportion of samples whose true class is not among the k highest scores.

    Parameters
    ----------
    targets : (N,) array of int from 0 to K - 1
    scores : (N, K) array of float
        A class with -inf is never among the guesses.
    k : int
        From 1. With k from K on, only classes at -inf are missed.

    Returns
    -------
    float
        Of equal scores the class with the lower number ranks higher, so that a net with constant output has a
        top-k error of 1 - k/K on balanced classes, not 0. NaN where there is no sample.

    Raises
    ------
    ConfigError
        If `k` is no whole number from 1.
    FitError
        If shapes don't fit, a class number is out of its range, or a score is NaN.

    Notes
    -----
    With one true class a sample, this is the flat error of ILSVRC's `eval_clsloc.m`.
    """
    k = whole_number("k", k, 1)
    table = _check_scores(scores)
    true, _ = _check_classes(targets, np.zeros(len(table), dtype=np.int64), table.shape[1])
    own = np.take_along_axis(table, true[:, None], axis=1)
    before = (table == own) & (np.arange(table.shape[1]) < true[:, None])
    rank = ((table > own) | before).sum(axis=1)
    missed = (rank >= k) | (own[:, 0] == -np.inf)
    return float(missed.mean()) if len(missed) else float("nan")


def _check_classes(
    targets: ArrayLike, predictions: ArrayLike, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    check_unmasked("recall", targets, predictions)
    true, predicted = np.asarray(targets), np.asarray(predictions)
    if true.ndim != 1 or true.shape != predicted.shape:
        raise FitError(f"recall: expected a prediction for every target, found {predicted.shape} for {true.shape}")
    for what, numbers, lowest in (("targets", true, 0), ("predictions", predicted, -1)):
        if numbers.size and not np.issubdtype(numbers.dtype, np.integer):
            raise FitError(f"recall: expected {what} as whole numbers, found {numbers.dtype}")
        if numbers.size and (numbers.min() < lowest or numbers.max() >= num_classes):
            raise FitError(
                f"recall: expected {what} from {lowest} to {num_classes - 1}, found {numbers.min()} to {numbers.max()}"
            )
    return true.astype(np.int64), predicted.astype(np.int64)


def _check_scores(scores: ArrayLike) -> NDArray[np.float64]:
    check_unmasked("scores", scores)
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] == 0:
        raise FitError(f"scores: expected an array (samples, classes), found shape {table.shape}")
    if np.isnan(table).any():
        raise FitError("scores: expected numbers to rank by (-inf ranks last), found NaN")
    return table


Rule = Literal["11-point", "area"]
"""How a precision-recall curve becomes one number: 11-point is VOC2007's, area that of VOC2010 to VOC2012."""

# The sums of np.arange carry rounding (0.30000000000000004), and so do those of the kit's 0:0.1:1: a recall of
# exactly 3/10 misses the fourth threshold there too. Round numbers would give other values than the kit's.
THRESHOLDS = np.arange(0, 1.1, 0.1)


class PrecisionRecall(NamedTuple):
    """A precision-recall curve, a point for every sample, best score first."""

    recall: NDArray[np.float64]
    """(N,) found positives / all positives; NaN everywhere where there is no positive."""
    precision: NDArray[np.float64]
    """(N,) found positives / found samples that count; NaN before the first sample that counts."""


def precision_recall(labels: ArrayLike, scores: ArrayLike) -> PrecisionRecall:
    """Rank samples by score and follow precision and recall down the list.

    Parameters
    ----------
    labels : (N,) array of 1, -1 or 0
        0 = ignored: neither a hit nor a false alarm (VOC: only difficult objects of the class).
    scores : (N,) array of float
        Higher is more confident. Equal scores keep the order of the rows; -inf ranks last, as the official kits
        do with samples that are missing from a results file.

    Returns
    -------
    PrecisionRecall

    Raises
    ------
    FitError
        If shapes differ, a label is none of the numbers 1, -1, 0, or a score is NaN.

    Notes
    -----
    Source: `VOCevalcls.m` of the development kits of VOC2007 to VOC2012, `VOCevalaction.m` of VOC2012.
    """
    check_unmasked("average precision", labels, scores)
    truth, ranked = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != ranked.shape:
        raise FitError(f"average precision: expected as many labels as scores, found {truth.shape} and {ranked.shape}")
    if truth.dtype.kind == "b":  # False is 0, and all of them would be ignored.
        raise FitError("average precision: expected labels 1, -1 or 0, found bool; give np.where(labels, 1, -1)")
    if not np.isin(truth, (1, -1, 0)).all():
        raise FitError(f"average precision: expected labels 1, -1 or 0, found {sorted(set(truth.tolist()))[:5]}")
    if np.isnan(ranked).any():
        raise FitError("average precision: expected scores to rank by (-inf ranks last), found NaN")
    truth = truth[np.argsort(-ranked, kind="stable")]
    hits, alarms = np.cumsum(truth == 1), np.cumsum(truth == -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return PrecisionRecall(hits / (truth == 1).sum(), hits / (hits + alarms))


def average_precision(labels: ArrayLike, scores: ArrayLike, rule: Rule = "11-point") -> float:
    """Average precision of one class, as the official VOC development kits compute it.

    Neither rule is scikit-learn's `average_precision_score`, which doesn't interpolate and never exceeds "area".

    Parameters
    ----------
    labels : (N,) array of 1, -1 or 0
        0 = ignored, which is not negative: where there are 0 and 1 alone, every sample that counts is positive.
    scores : (N,) array of float
        Equal scores keep the order of the rows; -inf ranks last and still counts.
    rule : "11-point" or "area"
        11-point: mean over the recalls 0, 0.1, ... 1 of the best precision at that recall or beyond (VOC2007,
        `VOCevalcls.m`). area: area under the curve of the best precision at each recall or beyond (VOC2010 to
        VOC2012, `VOCap.m`).

    Returns
    -------
    float
        From 0 to 1. NaN where no sample is positive: there is nothing to find, so there is no value. (The kits'
        lines give 0 by the first rule and NaN by the second; official lists always hold positives.)

    Raises
    ------
    ConfigError
        If `rule` is neither.
    FitError
        As `precision_recall`.
    """
    check_choice("rule", rule, get_args(Rule))
    curve = precision_recall(labels, scores)
    if not np.any(np.asarray(labels) == 1):
        return float("nan")
    return _eleven_points(curve) if rule == "11-point" else _area(curve)


def _eleven_points(curve: PrecisionRecall) -> float:
    # np.fmax skips NaN, as MATLAB's max does: precision is 0/0 as long as every sample so far is ignored.
    best = [np.fmax.reduce(curve.precision[curve.recall >= threshold], initial=0.0) for threshold in THRESHOLDS]
    return float(np.sum(best) / len(best))


def _area(curve: PrecisionRecall) -> float:
    recall = np.concatenate([[0.0], curve.recall, [1.0]])
    precision = np.concatenate([[0.0], curve.precision, [0.0]])
    best = np.fmax.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(np.diff(recall)) + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * best[steps]))
