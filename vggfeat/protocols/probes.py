"""Other classifiers under the same splits, and with few images: what of a figure is the features', what the SVM's.

A probe is trained on the training rows of a protocol and measured on its test rows by its measure, as the SVM is; its
one setting is chosen on the rows that the protocol holds out. Low-shot: a few training images of each class, drawn
several times, with the setting that was chosen for all. n = training rows, m = rows to score, K = classes, D = length.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_choice, check_given, convert_fields
from vggfeat.errors import ConfigError
from vggfeat.metrics import mean_defined
from vggfeat.protocols.folds import SplitPlan
from vggfeat.protocols.rules import plan_protocol
from vggfeat.protocols.settings import Evaluation, ProtocolSettings, Rows
from vggfeat.svm import SvmProblemSet, fittable_classes
from vggfeat.table import DescriptorTable

Array = NDArray[np.float32]
Signs = NDArray[np.int8]
Scorer = Callable[[Array, Signs, Array, float], NDArray[np.float64]]
"""Takes training rows (n, D), their labels (n, K) of 1, -1, 0, rows (m, D) and the setting; returns scores (m, K)."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many classifiers are done, and all of them."""


class Probe(NamedTuple):
    """A kind of classifier."""

    setting: str
    """What its setting is called."""
    grid: tuple[float, ...]
    """Values to choose from, of equally good ones the first."""
    scores: Scorer


class ProbeValue(NamedTuple):
    """What a probe is worth."""

    probe: str
    shots: int | None
    """Training images of each class; None for all."""
    mean: float
    """Mean of the headline's measure, 0 to 1, over the runs of the protocol and all draws."""
    deviation: float | None
    """Standard deviation over them (n - 1); None where there is one."""
    values: tuple[float, ...]
    """NaN where no class could be trained and measured; the mean is over the others."""
    settings: tuple[float, ...]
    """What was chosen, for each run."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Which probes, and with how few images.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    probes: tuple[str, ...] = ("svm", "knn", "logistic")
    """Names of `PROBES`."""
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Training images of each class; all are always measured as well."""
    repeats: int = 5
    """Draws for each number of shots."""
    protocol: ProtocolSettings = field(default_factory=ProtocolSettings)

    def __post_init__(self) -> None:
        convert_fields(self)
        for name in self.probes:
            check_choice("probe", name, PROBES)
        if not self.probes or self.repeats < 1 or any(shots < 1 for shots in self.shots):
            raise ConfigError(
                f"probes, shots, repeats: expected a probe and numbers from 1, found {self.probes}, {self.shots}, "
                f"{self.repeats}"
            )
        for field_name in ("probes", "shots"):  # What is named twice is measured once.
            object.__setattr__(self, field_name, tuple(dict.fromkeys(getattr(self, field_name))))


def run_probes(
    table: DescriptorTable, settings: ProbeSettings | None = None, *, progress: Progress | None = None
) -> tuple[str, list[ProbeValue]]:
    """Train and measure probes under the protocol of a data set.

    Returns
    -------
    measure, values
        The key of the measure (`vggfeat.protocols.results.METRICS`), and for each probe one value for all images and
        one for each number of shots that some class has.

    Raises
    ------
    FitError, ConfigError
        As `run_protocol`.
    """
    check_given("table", table, DescriptorTable, "what vggfeat.read_descriptors makes of feature files")
    settings = settings or ProbeSettings()
    _, evaluation, (_, plans, *_) = plan_protocol(table.dataset, settings.protocol)
    report = progress or (lambda doing, done, total: None)
    most = max(len(members) for plan in plans for members in _of_classes(table, evaluation, plan))
    numbers = (None, *(shots for shots in settings.shots if shots <= most))
    total = len(settings.probes) * len(numbers)
    found: list[ProbeValue] = []
    for name in settings.probes:
        report(name, len(found), total)
        chosen = [_choose(table, evaluation, PROBES[name], plan) for plan in plans]
        for shots in numbers:
            values = [
                _measure(table, evaluation, PROBES[name], rows, plan.test_rows, setting)
                for plan, setting in zip(plans, chosen, strict=True)
                for rows in _draws(table, evaluation, plan, shots, settings)
            ]
            known = np.array([value for value in values if not np.isnan(value)])
            deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
            found.append(ProbeValue(name, shots, mean_defined(known), deviation, tuple(values), tuple(chosen)))
            report(name, len(found), total)
    return evaluation.metric, found


def _choose(table: DescriptorTable, evaluation: Evaluation, probe: Probe, plan: SplitPlan) -> float:
    def worth(setting: float) -> float:
        parts = [_measure(table, evaluation, probe, fit, held, setting) for fit, held in plan.parts]
        return mean_defined(np.array(parts))

    found = np.array([worth(setting) for setting in probe.grid])
    return probe.grid[int(np.argmax(np.where(np.isnan(found), -np.inf, found)))]


def _measure(
    table: DescriptorTable, evaluation: Evaluation, probe: Probe, fit_rows: Rows, test_rows: Rows, setting: float
) -> float:
    """Train on rows and measure on others; rows without a descriptor are not trained on, and rank last.

    By average precision, classes that lack a positive or a negative to train on have no value, as in the choice of C.
    """
    ok, x = table.ok, table.descriptors
    fit_rows = fit_rows[ok[fit_rows]]
    labels = evaluation.training_labels(fit_rows, "train a probe")
    usable = fittable_classes(labels)
    scores = np.full((len(test_rows), labels.shape[1]), -np.inf)
    there = ok[test_rows]
    if usable.any() and there.any():
        found = probe.scores(x[fit_rows], labels[:, usable], x[test_rows[there]], setting)
        scores[np.ix_(there, usable)] = found
    truth = evaluation.truth(test_rows, "measure a probe")
    values = evaluation.values(truth, scores)
    if evaluation.metric != "recall":
        values = {key: np.where(usable, per_class, np.nan) for key, per_class in values.items()}
    return evaluation.means(values, truth, scores)[evaluation.metric]


def _draws(
    table: DescriptorTable, evaluation: Evaluation, plan: SplitPlan, shots: int | None, settings: ProbeSettings
) -> list[Rows]:
    """Return the rows to train on: all, or as many of each class as there are shots, drawn several times."""
    if shots is None:
        return [plan.fit_rows]
    of_class, draws = _of_classes(table, evaluation, plan), []
    for repeat in range(settings.repeats):
        rng = np.random.default_rng([settings.protocol.seed, shots, repeat])
        drawn = [rng.permutation(members)[:shots] for members in of_class]
        draws.append(np.unique(np.concatenate(drawn)))
    return draws


def _of_classes(table: DescriptorTable, evaluation: Evaluation, plan: SplitPlan) -> list[Rows]:
    """Return for each class the rows with a descriptor that it can be trained on."""
    rows = plan.fit_rows[table.ok[plan.fit_rows]]
    positive = evaluation.training_labels(rows, "draw from") == 1
    return [rows[positive[:, k]] for k in range(positive.shape[1])]


def _svm(x: Array, labels: Signs, others: Array, setting: float) -> NDArray[np.float64]:
    return SvmProblemSet(x).fit(np.arange(len(x)), labels, setting).scores(others)


def _knn(x: Array, labels: Signs, others: Array, setting: float) -> NDArray[np.float64]:
    """Return the share of positives among the k nearest by cosine, near ones counting more.

    Those whose label is ignored count neither way; 0 where all of the k are.
    """
    from sklearn.neighbors import KNeighborsRegressor

    def weights(distance: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.exp(-distance / 0.07))  # The temperature of Wu et al. 2018, usual for cosines.

    machine = KNeighborsRegressor(min(int(setting), len(x)), metric="cosine", weights=weights)
    found = machine.fit(x, np.hstack([labels == 1, labels != 0]).astype(np.float64)).predict(others)  # (m, 2 K)
    positive, known = np.split(np.asarray(found, dtype=np.float64), 2, axis=1)
    return np.divide(positive, known, out=np.zeros(positive.shape), where=known > 0)


def _logistic(x: Array, labels: Signs, others: Array, setting: float) -> NDArray[np.float64]:
    """Return the scores of one logistic regression a class, whatever its other classes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scores = np.empty((len(others), labels.shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # A probe that is nearly there ranks as well.
        for k in range(labels.shape[1]):
            taking_part = labels[:, k] != 0
            machine = LogisticRegression(C=setting, max_iter=1000)
            machine.fit(x[taking_part], labels[taking_part, k])
            scores[:, k] = machine.decision_function(others)
    return scores


PROBES = {
    "svm": Probe("C", (1.0, 0.25, 4.0, 16.0), _svm),
    "knn": Probe("k", (20, 5, 1, 100), _knn),
    "logistic": Probe("C", (100.0, 1.0, 10.0, 1000.0), _logistic),
}
"""Name -> probe; the svm is that of `vggfeat svm`, with fewer values of C."""
