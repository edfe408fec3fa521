"""Scores become probabilities: a sigmoid a class, fitted on scores of samples that the SVMs were not trained on.

m = samples, K = classes. Platt (1999), "Probabilistic outputs for support vector machines", by scikit-learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import FitError


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """K sigmoids: the probability of a class is 1 / (1 + exp(slope * score + offset))."""

    slope: NDArray[np.float64]
    """(K,) below 0 where a higher score makes the class more likely; NaN where nothing could be fitted."""
    offset: NDArray[np.float64]
    """(K,)"""
    samples: NDArray[np.int64]
    """(K,) scores that each was fitted on."""

    def probabilities(self, scores: NDArray[np.float64], *, single: bool) -> NDArray[np.float64]:
        """Turn scores (m, K) into probabilities (m, K), NaN in rows of -inf, whose image failed.

        Where a sample has exactly one class (`single`), those of a sample are divided by their sum; if that is 0, all
        classes are equally likely.
        """
        there = np.isfinite(scores).all(axis=1)
        found = np.full(scores.shape, np.nan)
        # 1 / (1 + exp(z)), without numbers that no float holds.
        found[there] = (1 - np.tanh((self.slope * scores[there] + self.offset) / 2)) / 2
        if single:
            sums = found[there].sum(axis=1, keepdims=True)
            even = np.full(found[there].shape, 1 / scores.shape[1])
            found[there] = np.divide(found[there], sums, out=even, where=sums > 0)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return it as a model's file keeps it; None stands for NaN."""
        numbers = {name: getattr(self, name).tolist() for name in ("slope", "offset")}
        known = {name: [None if np.isnan(value) else value for value in values] for name, values in numbers.items()}
        return {"method": "sigmoid", **known, "samples": self.samples.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Calibration":
        """Return what `to_json` was made from.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is something else.
        """
        if content["method"] != "sigmoid":
            raise ValueError(f"method: expected sigmoid, found {content['method']!r}")
        slope, offset = (np.array(content[name], dtype=np.float64) for name in ("slope", "offset"))
        samples = np.array(content["samples"], dtype=np.int64)
        if slope.ndim != 1 or not slope.shape == offset.shape == samples.shape:
            shapes = slope.shape, offset.shape, samples.shape
            raise ValueError(f"expected a slope, an offset and a number for each class, found shapes {shapes}")
        return cls(slope=slope, offset=offset, samples=samples)


def calibrate(scores: NDArray[np.float64], labels: NDArray[np.int8]) -> Calibration:
    """Fit a sigmoid a class.

    Parameters
    ----------
    scores : (m, K) float64
        Of samples that the SVMs were not trained on; rows of -inf are left out.
    labels : (m, K) of 1, -1, 0
        0 = left out for this class.

    Returns
    -------
    Calibration
        NaN for classes without a positive or without a negative.

    Raises
    ------
    FitError
        If the shapes differ.
    """
    from sklearn.calibration import _SigmoidCalibration

    if scores.shape != labels.shape or scores.ndim != 2:
        raise FitError(f"calibration: expected scores and labels of one shape, found {scores.shape} and {labels.shape}")
    count = scores.shape[1]
    found, samples = np.full((2, count), np.nan), np.zeros(count, dtype=np.int64)
    for k in range(count):
        taken = np.isfinite(scores[:, k]) & (labels[:, k] != 0)
        samples[k] = taken.sum()
        if len(np.unique(labels[taken, k])) == 2:
            sigmoid = _SigmoidCalibration().fit(scores[taken, k], labels[taken, k] == 1)
            found[:, k] = sigmoid.a_, sigmoid.b_
    return Calibration(slope=found[0], offset=found[1], samples=samples)
