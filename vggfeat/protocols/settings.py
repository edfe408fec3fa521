"""Settings of a protocol and their defaults; the evaluation of scores against labels.

m = rows, K = classes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_choice, convert_fields, whole_number
from vggfeat.datasets.catalogue import DATASETS
from vggfeat.datasets.record import ProtocolName
from vggfeat.errors import ConfigError, FitError
from vggfeat.metrics import (
    Rule,
    average_precision,
    class_recall,
    confusion,
    mean_class_recall,
    mean_defined,
    predict_classes,
)
from vggfeat.samples import DataSet, Label, Task
from vggfeat.svm import SvmSettings, check_costs, fittable_classes
from vggfeat.svm.settings import C_GRID
from vggfeat.wording import counted

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

        Raises FitError if a label is withheld, or recall is asked for and a sample hasn't exactly one class.
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
        positives, counting = (truth == 1).sum(axis=0), (truth != 0).sum(axis=0)
        occurring = positives > 0
        if not occurring.any():
            return float("nan")
        if self.metric == "recall":
            return 1 / truth.shape[1]  # A guess may be any class, whether the rows hold it or not.
        rule, counts = _RULES[self.metric], zip(positives[occurring], counting[occurring], strict=True)
        return float(np.mean([expected_precision(int(pos), int(all_), rule) for pos, all_ in counts]))

    def decided(self, truth: NDArray[np.int8], ok: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Say for which classes scores decide the average precision, (K,): a positive and a negative have some.

        Rows that are not `ok` (m,) rank last, in their order, as the official kits do with what a results file lacks:
        of them alone, or of positives alone, the value is the same whatever the scores. All decide a recall.
        """
        if self.metric == "recall":
            return np.ones(truth.shape[1], dtype=bool)
        return fittable_classes(truth[ok])

    def weak_points(self, truth: NDArray[np.int8], ok: NDArray[np.bool_], tested: str) -> Iterator[tuple[str, str]]:
        """Yield sentences on classes whose values in a test say little, each with their names.

        `tested` names the rows of the test.
        """
        names, without = np.array(self.dataset.classes, dtype=object), (truth != 1).all(axis=0)
        listed, others = ", ".join(names[without]), counted((~without).sum(), "class{es}")
        if without.all():
            nothing = "it has no value, and means are over the other tests."
            yield f"In {tested} there is no positive of any class: {nothing}", listed
        elif without.any():
            nothing = f"no value for that, and the mean is over the other {others}."
            yield f"In {tested} there is no positive of {listed}: {nothing}", listed
        empty = ~without & ~self.decided(truth, ok)
        if empty.any():
            listed = ", ".join(names[empty])
            order = "the average precision there is that of the order of the list, whatever the SVM says."
            yield f"In {tested} there are no scores of both positives and negatives of {listed}: {order}", listed

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


RuleChoice = Literal["auto", "11-point", "area"]


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings:
    """How C is chosen and what is reported.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    protocol: ProtocolName = "auto"
    """auto: that of the data set's record in `vggfeat.datasets.catalogue`; without one caltech if there is train-1,
    given-splits if there is train, else k-fold."""
    grid: tuple[float, ...] = C_GRID
    """Values of C to choose from; a single one is taken without a choice. The paper says that C was chosen, not
    from which values."""
    folds: int | None = None
    """Folds of a cross-validation; None: 5, the paper doesn't say. A protocol of fixed splits draws none, and notes it
    where a number was given."""
    held_out: float = 0.2
    """Part of the training images to choose C on where no split says which: the paper's part on Caltech."""
    difficult_in_training: Difficult = "ignore"
    """What label 0 means in training; the example classifier of the VOC kit ignores it."""
    difficult_in_scoring: Difficult = "ignore"
    """What label 0 means in average precision; the VOC kit ignores it, so other values make other measures."""
    rule: RuleChoice = "auto"
    """Average precision of the headline and of the choice of C; auto: the official rule of the data set under its own
    protocol, else 11-point for voc and area for the others."""
    seed: int = 0
    """Seed of folds and held-out images."""
    fit_all: bool = False
    """Whether a last model is trained on all labelled samples, with the C that the protocol has chosen."""
    learning_curve: bool = False
    """Whether the headline's measure is computed for shares of the training images as well."""
    svm: SvmSettings = field(default_factory=SvmSettings)
    """Settings of the solver, worker processes included."""

    def __post_init__(self) -> None:
        convert_fields(self)
        kinds = {"protocol": ProtocolName, "rule": RuleChoice}
        kinds |= {"difficult_in_training": Difficult, "difficult_in_scoring": Difficult}
        for name, kind in kinds.items():
            check_choice(name, getattr(self, name), get_args(kind))
        whole_number("folds", self.fold_count, 2)
        whole_number("seed", self.seed, 0)
        object.__setattr__(self, "grid", tuple(sorted(set(check_costs(self.grid, "grid").ravel().tolist()))))
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out: expected a fraction above 0 and below 1, found {self.held_out}")

    @property
    def fold_count(self) -> int:
        """Folds of a cross-validation, where one is made."""
        return 5 if self.folds is None else self.folds


def choose_protocol(dataset: DataSet, settings: ProtocolSettings) -> ProtocolName:
    """Return the protocol that is asked for, or else that of the data set.

    Raises FitError if the data set has no labels.
    """
    if dataset.task == Task.UNLABELLED or not dataset.classes or (dataset.labels == Label.WITHHELD).all():
        raise FitError(
            f"{dataset.name}: expected labels to train on, found none; arrange the images in a folder a class, or "
            f"list them with labels in a CSV manifest, and extract again; without labels the features can be "
            f"exported, or loaded with vggfeat.load_features"
        )
    if settings.protocol != "auto":
        return settings.protocol
    record = DATASETS.get(dataset.name)
    if record is not None and record.protocol != "auto":
        return record.protocol
    if dataset.task == Task.SINGLE_LABEL and split_numbers(dataset):
        return "caltech"
    return "given-splits" if len(dataset.splits.get("train", ())) else "k-fold"


def choose_metric(dataset: DataSet, settings: ProtocolSettings, protocol: ProtocolName) -> Metric:
    """Return the measure of a data set under a protocol.

    Raises ConfigError or FitError if the protocol or the rule doesn't go with its labels.
    """
    single = dataset.task == Task.SINGLE_LABEL
    if protocol == "caltech" and not single:
        raise ConfigError(
            f"protocol: caltech measures recall, so it expects one class a sample, found {dataset.task} samples"
        )
    if single and protocol not in ("voc", "voc-server"):
        if settings.rule != "auto":
            raise ConfigError(f"rule: {dataset.name} is measured by mean class recall, found {settings.rule!r}")
        if len(dataset.classes) < 2:
            raise FitError(f"{dataset.name}: expected at least 2 classes, found {', '.join(dataset.classes)}")
        return "recall"
    rule = settings.rule
    if rule == "auto":
        record = DATASETS.get(dataset.name)
        official = record.average_precision if record is not None and record.protocol == protocol else None
        rule = official or ("11-point" if protocol == "voc" else "area")
    return "ap-11-point" if rule == "11-point" else "ap-area"


def split_numbers(dataset: DataSet) -> list[int]:
    """Return the numbers of splits that are called train-1, train-2 and so on, ascending."""
    matches = [re.fullmatch(r"train-(\d+)", name) for name in dataset.splits]
    return sorted(int(match[1]) for match in matches if match)
