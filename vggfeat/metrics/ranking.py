"""Average precision of one class, by both rules of VOC.

N = ranked samples. Every measure is a proportion from 0 to 1; none is a percentage.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.errors import FitError, check_choice

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
