"""What a protocol may be told, and what it is where it is not told."""

import re
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal, get_args

from vggfeat.datasets.catalogue import DATASETS
from vggfeat.datasets.record import ProtocolName
from vggfeat.errors import ConfigError, FitError, check_choice
from vggfeat.protocols.evaluation import Difficult, Metric
from vggfeat.samples import DataSet, Label, Task
from vggfeat.svm import SvmSettings, check_costs
from vggfeat.svm.settings import C_GRID

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
    folds: int = 5
    """Folds of a cross-validation. The paper doesn't say."""
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
    """Of folds and held-out images."""
    fit_all: bool = False
    """Whether a last model is trained on all labelled samples, with the C that the protocol has chosen."""
    learning_curve: bool = False
    """Whether the headline's measure is computed for shares of the training images as well."""
    svm: SvmSettings = field(default_factory=SvmSettings)
    """Of the solver, worker processes included."""

    def __post_init__(self) -> None:
        kinds = {"protocol": ProtocolName, "rule": RuleChoice}
        kinds |= {"difficult_in_training": Difficult, "difficult_in_scoring": Difficult}
        for name, kind in kinds.items():
            check_choice(name, getattr(self, name), get_args(kind))
        for name, least in (("folds", 2), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise ConfigError(f"{name}: expected a whole number from {least}, found {value!r}")
        object.__setattr__(self, "grid", tuple(sorted(set(check_costs(self.grid).ravel().tolist()))))
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out: expected a fraction above 0 and below 1, found {self.held_out}")


def choose_protocol(dataset: DataSet, settings: ProtocolSettings) -> ProtocolName:
    """Return the protocol that is asked for, or else that of the data set.

    Raises
    ------
    FitError
        If the data set has no labels.
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

    Raises
    ------
    ConfigError, FitError
        If the protocol or the rule doesn't go with its labels.
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
