"""What a protocol returns: every number and every choice behind it, ready for JSON.

K = classes, G = values of C, m = rows of a test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.metrics import mean_defined
from vggfeat.metrics.bootstrap import Interval
from vggfeat.protocols.display import result_frame, result_html, result_line
from vggfeat.svm import LinearModel
from vggfeat.wording import short_repr

if TYPE_CHECKING:
    from vggfeat.protocols.spread import LearningCurve
    from vggfeat.svm.calibration import Calibration

METRICS = {
    "ap-11-point": "mean average precision, 11-point",
    "ap-area": "mean average precision, area",
    "recall": "mean class recall",
    "accuracy": "accuracy over all test samples",
}
"""Key -> name in words. 11-point is VOC2007's rule, area that of VOC2010 to VOC2012."""

CHANCE = {
    "ap": "mean over classes of the average precision, by the same rule, of 100 random orders of the test samples "
    "that count",
    "recall": "1 / number of classes",
}
"""How the chance level is computed, by the first word of the measure's key."""
COUNTS = "train_positives", "train_negatives", "test_positives", "test_negatives"
"""Fields of a run and of a row of the table."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """Values of C and what they were chosen by."""

    C: NDArray[np.float64]
    """(K,) the smallest of the best values; all equal where one C serves all classes."""
    grid: NDArray[np.float64]
    """(G,) ascending."""
    curve: NDArray[np.float64]
    """(G, K) average precision of each class on held-out rows, or (G, 1) mean class recall; NaN = no value.
    The mean over folds where there are several. NaN throughout if C was given."""
    converged: NDArray[np.bool_]
    """(G, K) False where the solver gave up in one of the folds."""
    gap: NDArray[np.float64]
    """(G, K) relative duality gap, the largest of the folds; NaN where nothing was solved."""

    __repr__ = short_repr


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One choice of C, one fit with it, one test."""

    name: str
    """val, test, "split 2" or "fold 3"."""
    plan: Mapping[str, str]
    """chosen, fitted, tested -> on which rows, in words."""
    choice: Choice
    model: LinearModel
    """Model of the last fit."""
    train_positives: NDArray[np.int64]
    """(K,) in the last fit."""
    train_negatives: NDArray[np.int64]
    """(K,)"""
    test_positives: NDArray[np.int64]
    """(K,)"""
    test_negatives: NDArray[np.int64]
    """(K,)"""
    values: Mapping[str, NDArray[np.float64]]
    """Key of a measure -> (K,) value of each class, NaN where it has none."""
    means: Mapping[str, float]
    """Key of a measure -> one value for the run; for accuracy there is only this."""
    chance: float
    """What `means` of the headline's measure would be without any knowledge."""
    rows: NDArray[np.int64]
    """(m,) tested rows of the data set, in its order."""
    scores: NDArray[np.float64]
    """(m, K); -inf in rows whose image failed."""
    truth: NDArray[np.int8]
    """(m, K) labels 1, -1, 0 as they were scored."""
    confusion: NDArray[np.int64] | None = None
    """(K, K) counts, row = true class; None for multi-label sets."""
    fit_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(n,) rows of the last fit, those without a descriptor included."""

    __repr__ = short_repr


@dataclass(frozen=True, kw_only=True, eq=False)
class Submission:
    """Scores of samples whose labels are withheld, for the server's archive."""

    rows: NDArray[np.int64]
    """(m,) rows of the data set, in its order."""
    scores: NDArray[np.float64]
    """(m, K), finite; an image that failed is 1 below the lowest score of the class."""
    listed: NDArray[np.bool_]
    """(m, K) False where the row is not in the class's list and must not be written (VOC actions: jumping)."""
    model: LinearModel
    plan: Mapping[str, str]
    """chosen, fitted, scored -> on which rows, in words."""

    __repr__ = short_repr


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalModel:
    """A model for use: trained on all labelled samples after the tests, so that none is left to test it on."""

    rows: NDArray[np.int64]
    """(n,) rows that it was trained on, those without a descriptor included."""
    choice: Choice
    """The choice of the run; of several runs the C that is best on average over theirs."""
    model: LinearModel
    plan: Mapping[str, str]
    """chosen, fitted, estimated -> on which rows, in words."""
    calibration: "Calibration"
    """Fitted on the scores of the tests, which SVMs gave that were not trained on these samples."""


class Solved(NamedTuple):
    """How well a number of SVM problems were solved."""

    problems: int
    """Pairs of class and C."""
    converged: int
    """How many of them reached the tolerance."""
    worst_gap: float
    """The largest relative duality gap, which bounds how far an objective is above its minimum; NaN without one."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One line of the table of classes; tuples have an entry a run."""

    name: str
    values: Mapping[str, float]
    """Key of a measure -> mean over the runs in which the class has a value, NaN if there is none."""
    C: tuple[float, ...]
    converged: tuple[bool, ...]
    gap: tuple[float, ...]
    """Relative duality gap of the last fit."""
    train_positives: tuple[int, ...]
    train_negatives: tuple[int, ...]
    test_positives: tuple[int, ...]
    test_negatives: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The outcome of a protocol on a table of descriptors."""

    protocol: str
    """voc, voc-server, caltech, given-splits or k-fold."""
    description: str
    """What was done, in sentences."""
    metric: str
    """Key of the headline's measure in `METRICS`."""
    dataset: Mapping[str, Any]
    """Name, task, fingerprint, numbers of samples, classes and failed images."""
    classes: tuple[str, ...]
    """K names."""
    runs: tuple[Run, ...]
    """Runs, from one (VOC) to the number of splits or folds."""
    submission: Submission | None = None
    final: FinalModel | None = None
    interval: Interval | None = None
    """Interval of the headline, over resamples of the tested images or groups; `run_protocol` always gives one."""
    learning_curve: "LearningCurve | None" = None
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know, a sentence each."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """protocol: every setting in use; features: how the descriptors were made."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stage -> time in seconds."""

    def __repr__(self) -> str:
        return result_line(self)

    def _repr_html_(self) -> str:
        return result_html(self)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame of the table of classes.

        Returns
        -------
        DataFrame
            A row for each class of each run: run, class, the measures (0 to 1, NaN where a class has none), C,
            converged, gap, and how many positives and negatives were trained on and tested.

        Raises
        ------
        ConfigError
            If pandas is not installed.
        """
        return result_frame(self)

    @property
    def metric_name(self) -> str:
        """The headline's measure in words; never a bare mAP."""
        return METRICS[self.metric]

    @property
    def headline(self) -> float:
        """Mean over runs of the headline's measure, from 0 to 1."""
        return self.mean(self.metric)

    @property
    def chance(self) -> float:
        """Mean over runs of the headline's chance level."""
        return mean_defined(np.array([run.chance for run in self.runs]))

    def mean(self, metric: str) -> float:
        """Mean over runs of one of the measures in `Run.means`; those in which no class has a value are left out."""
        return mean_defined(self._means(metric))

    def deviation(self, metric: str) -> float | None:
        """Sample standard deviation over runs with a value (divisor: their number - 1), None for a single one.

        The paper prints a "+-" and doesn't say whether its divisor is the number of runs or one less.
        """
        known = self._means(metric)
        known = known[~np.isnan(known)]
        return float(np.std(known, ddof=1)) if len(known) > 1 else None

    def _means(self, metric: str) -> NDArray[np.float64]:
        return np.array([run.means[metric] for run in self.runs])

    @property
    def secondary(self) -> dict[str, float]:
        """The other measures, each with its mean over runs."""
        return {key: self.mean(key) for key in self.runs[0].means if key != self.metric}

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """(K, K) counts summed over runs, row = true class; None for multi-label sets."""
        counts = [run.confusion for run in self.runs if run.confusion is not None]
        return np.sum(counts, axis=0) if counts else None

    def convergence(self) -> dict[str, Solved]:
        """Say how well the SVMs were solved: choice -> all that C was chosen by, fit -> the last fits."""
        choices = [run.choice for run in self.runs]
        more = (last for last in (self.submission, self.final) if last is not None)
        models = [*(run.model for run in self.runs), *(last.model for last in more)]
        return {"choice": _solved(choices), "fit": _solved(models)}

    def class_rows(self) -> tuple[ClassRow, ...]:
        """Return the table of classes, in the data set's order."""
        rows = []
        for k, name in enumerate(self.classes):
            per_run = {key: np.array([run.values[key][k] for run in self.runs]) for key in self.runs[0].values}
            rows.append(
                ClassRow(
                    name=name,
                    values={key: mean_defined(values) for key, values in per_run.items()},
                    C=tuple(float(run.choice.C[k]) for run in self.runs),
                    converged=tuple(bool(run.model.converged[k]) for run in self.runs),
                    gap=tuple(float(run.model.gap[k]) for run in self.runs),
                    **{count: tuple(int(getattr(run, count)[k]) for run in self.runs) for count in COUNTS},
                )
            )
        return tuple(rows)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the scores as dicts, lists, strings and numbers; NaN becomes None."""
        confusion = self.confusion
        content = {
            "protocol": self.protocol,
            "description": self.description,
            "metric": {"key": self.metric, "name": self.metric_name},
            "headline": self.headline,
            "deviation": self._deviation_json(),
            "interval": self._interval_json(),
            "secondary": {key: {"name": METRICS[key], "value": value} for key, value in self.secondary.items()},
            "chance": {"value": self.chance, "formula": CHANCE[self.metric.split("-")[0]]},
            "dataset": self.dataset,
            "classes": [vars(row) for row in self.class_rows()],
            "runs": [_run_json(run) for run in self.runs],
            "convergence": {stage: solved._asdict() for stage, solved in self.convergence().items()},
            "confusion": confusion,
            "submission": _last_fit_json(self.submission),
            "learning_curve": None if self.learning_curve is None else self.learning_curve.rows(),
            "final": _last_fit_json(self.final),
            "notes": self.notes,
            "settings": self.settings,
            "seconds": self.seconds,
        }
        return {key: _plain(value) for key, value in content.items()}

    def _interval_json(self) -> dict[str, Any] | None:
        if self.interval is None:
            return None
        found = {"low": self.interval.low, "high": self.interval.high, **asdict(self.interval.settings)}
        return found | {"of": self.units, "drawn": self.interval.images}

    @property
    def units(self) -> str:
        """What the interval is drawn from: images, or groups of them."""
        return "groups" if self.dataset.get("groups") else "images"

    def _deviation_json(self) -> dict[str, Any] | None:
        if len(self.runs) == 1:
            return None
        return {
            "kind": "sample standard deviation over runs with a value (divisor: their number - 1)",
            "runs": len(self.runs),
            "values": {key: self.deviation(key) for key in self.runs[0].means},
        }


def _solved(found: Sequence[Choice] | Sequence[LinearModel]) -> Solved:
    converged = np.concatenate([one.converged.ravel() for one in found])
    gap = np.concatenate([one.gap.ravel() for one in found])
    there = ~np.isnan(gap)
    worst = float(gap[there].max()) if there.any() else float("nan")
    return Solved(int(there.sum()), int(converged[there].sum()), worst)


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "plan": run.plan,
        "means": run.means,
        "chance": run.chance,
        "grid": run.choice.grid,
        "curve": run.choice.curve,
        "curve_converged": run.choice.converged,
        "curve_gap": run.choice.gap,
        "C": run.choice.C,
        "converged": run.model.converged,
        "gap": run.model.gap,
        "values": run.values,
        "tested": len(run.rows),
    }


def _last_fit_json(last: Submission | FinalModel | None) -> dict[str, Any] | None:
    if last is None:
        return None
    model = {"C": last.model.C, "converged": last.model.converged, "gap": last.model.gap}
    listed = {"listed": last.listed.sum(axis=0)} if isinstance(last, Submission) else {}
    return {"plan": last.plan, **model, "samples": len(last.rows), **listed}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
