"""Recall of classes, confusion and top-k error.

N = samples, K = classes. Every measure is a proportion from 0 to 1; none is a percentage.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.errors import ConfigError, FitError


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
    """Recall of each class: its correctly predicted samples / its samples.

    Parameters
    ----------
    targets, predictions, num_classes
        As for `confusion`; a prediction of -1 counts as wrong.

    Returns
    -------
    (K,) float64
        NaN for classes of which there is no sample.

    Raises
    ------
    FitError
        As `confusion`.
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
    """Choose the class of the highest score.

    Parameters
    ----------
    scores : (N, K) array of float
        -inf = not to be chosen.

    Returns
    -------
    (N,) int64
        Of equal scores the first class; -1 where all scores are -inf.

    Raises
    ------
    FitError
        If a score is NaN or the array is not (N, K) with K from 1.
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
        If `k` is below 1.
    FitError
        If shapes don't fit, a class number is out of its range, or a score is NaN.

    Notes
    -----
    With one true class a sample, this is the flat error of ILSVRC's `eval_clsloc.m`.
    """
    if k < 1:
        raise ConfigError(f"k: expected at least 1, found {k}")
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
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] == 0:
        raise FitError(f"scores: expected an array (samples, classes), found shape {table.shape}")
    if np.isnan(table).any():
        raise FitError("scores: expected numbers to rank by (-inf ranks last), found NaN")
    return table
