"""Labels as a protocol counts them, and what scores are worth against them.

m = rows, K = classes.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import FitError
from vggfeat.metrics import (
    Rule,
    average_precision,
    class_recall,
    confusion,
    mean_class_recall,
    mean_defined,
    predict_classes,
)
from vggfeat.samples import DataSet, Label

Difficult = Literal["ignore", "negative", "positive"]
"""What label 0 (VOC: only difficult objects of the class) is taken for."""
Metric = Literal["ap-11-point", "ap-area", "recall"]
"""See `vggfeat.protocols.results.METRICS`."""
Rows = NDArray[np.int64]
"""Ascending rows of the data set."""

_SIGNS = {"ignore": 0, "negative": -1, "positive": 1}
RANDOM_ORDERS = 100
"""Number of random orders averaged for the chance level of average precision."""
_RULES: dict[str, Rule] = {"ap-11-point": "11-point", "ap-area": "area"}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One data set, one measure, one reading of the labels."""

    dataset: DataSet
    metric: Metric
    difficult_in_training: Difficult = "ignore"
    difficult_in_scoring: Difficult = "ignore"

    def training_labels(self, rows: Rows, what: str) -> NDArray[np.int8]:
        """Labels (m, K) of 1, -1, 0 to train on; `what` names the rows in errors.

        Raises
        ------
        FitError
            If a label is withheld, or recall is asked for and a sample hasn't exactly one class.
        """
        return self._labels(rows, self.difficult_in_training, f"train on ({what})")

    def truth(self, rows: Rows, what: str) -> NDArray[np.int8]:
        """Labels (m, K) of 1, -1, 0 to measure by; errors as `training_labels`."""
        return self._labels(rows, self.difficult_in_scoring, f"measure by ({what})")

    def values(self, truth: NDArray[np.int8], scores: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return key of a measure -> (K,) value of each class, NaN without a positive; both rules of precision."""
        if self.metric == "recall":
            return {"recall": class_recall(truth.argmax(axis=1), predict_classes(scores), truth.shape[1])}
        return {key: _precisions(truth, scores, rule) for key, rule in _RULES.items()}

    def curve_values(self, truth: NDArray[np.int8], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what C is chosen by: (K,) average precision by the headline's rule, or (1,) mean class recall."""
        if self.metric == "recall":
            return np.array([mean_class_recall(truth.argmax(axis=1), predict_classes(scores), truth.shape[1])])
        return _precisions(truth, scores, _RULES[self.metric])

    def means(
        self, values: dict[str, NDArray[np.float64]], truth: NDArray[np.int8], scores: NDArray[np.float64]
    ) -> dict[str, float]:
        """Return key of a measure -> its mean over the classes that have a value; with recall, accuracy as well."""
        means = {key: mean_defined(per_class) for key, per_class in values.items()}
        if self.metric == "recall":
            right = truth.argmax(axis=1) == predict_classes(scores)
            means["accuracy"] = float(right.mean()) if len(right) else float("nan")
        return means

    def chance(self, truth: NDArray[np.int8]) -> float:
        """Return the headline without knowledge, as `results.CHANCE` says; NaN without a positive."""
        positives, counted = (truth == 1).sum(axis=0), (truth != 0).sum(axis=0)
        occurring = positives > 0
        if not occurring.any():
            return float("nan")
        if self.metric == "recall":
            return 1 / truth.shape[1]  # A guess may be any class, whether the rows hold it or not.
        rule, counts = _RULES[self.metric], zip(positives[occurring], counted[occurring], strict=True)
        return float(np.mean([expected_precision(int(pos), int(all_), rule) for pos, all_ in counts]))

    def confusion(self, truth: NDArray[np.int8], scores: NDArray[np.float64]) -> NDArray[np.int64] | None:
        """(K, K) counts, row = true class; None where samples have several classes."""
        if self.metric != "recall":
            return None
        return confusion(truth.argmax(axis=1), predict_classes(scores), len(self.dataset.classes))

    def _labels(self, rows: Rows, difficult: Difficult, purpose: str) -> NDArray[np.int8]:
        labels = self.dataset.labels[rows]
        withheld = (labels == Label.WITHHELD).any(axis=1)
        if withheld.any():
            raise FitError(
                f"{self.dataset.name}: expected labels of all samples to {purpose}, found {withheld.sum()} of "
                f"{len(rows)} without, the first is {self.dataset.ids[rows[withheld.argmax()]]!r}; take them out of "
                f"the split, or choose the protocol voc-server, which scores test without its labels"
            )
        several = (labels == Label.POSITIVE).sum(axis=1) != 1
        if self.metric == "recall" and several.any():
            raise FitError(
                f"{self.dataset.name}: expected exactly one class for every sample to {purpose}, found "
                f"another number for {self.dataset.ids[rows[several.argmax()]]!r}"
            )
        signs = np.where(labels == Label.IGNORED, np.int8(_SIGNS[difficult]), labels)
        return np.where(labels == Label.UNLISTED, np.int8(0), signs)


def _precisions(truth: NDArray[np.int8], scores: NDArray[np.float64], rule: Rule) -> NDArray[np.float64]:
    return np.array([average_precision(truth[:, k], scores[:, k], rule) for k in range(truth.shape[1])])


@cache
def expected_precision(positives: int, counted: int, rule: Rule) -> float:
    """Return the average precision of a random order, as the mean over `RANDOM_ORDERS` of them.

    Both rules take maxima over the ranking, so it lies above the share of positives, most for rare classes. The orders
    are drawn from a fixed seed.
    """
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(counted) < positives, 1, -1)
    orders = (rng.permutation(labels) for _ in range(RANDOM_ORDERS))
    return float(np.mean([average_precision(order, -np.arange(counted), rule) for order in orders]))
