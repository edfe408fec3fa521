"""Runs of the same classes and measure, side by side: their differences, and what is behind each class.

m = rows of a test, K = classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from vggfeat.metrics.bootstrap import BootstrapSettings, Difference, PairedScores, paired_bootstrap
from vggfeat.results.charts import Chart, choice, choices, learning, overview, ranking
from vggfeat.results.reading import SvmRun
from vggfeat.results.record import DASH, percent
from vggfeat.results.thumbnails import Examples, examples_of, per_list

ALL_PAIRS = 4
"""Up to so many runs each is compared with each, beyond that with the first."""
LARGEST_MATRIX = 30
"""Classes up to which the whole matrix is shown."""
MOST_PAIRS = 20
MOST_CHOICES = 5
"""Runs whose choice of C is drawn."""
MINUS = "\N{MINUS SIGN}"
MEASURES = {"ap-11-point": "AP, 11-point", "ap-area": "AP, area", "recall": "recall", "accuracy": "accuracy"}


class Cell(NamedTuple):
    """One cell of a sortable table."""

    text: str
    value: float | None = None
    """What is sorted by; None sorts by the text, NaN comes last."""
    bar: float | None = None
    """Length of a bar behind the text, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class SortableTable:
    """A sortable table."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunPair:
    """The second run minus the first."""

    first: int
    """Number of the run, from 0."""
    second: int
    difference: Difference | None
    """None where the two can't be compared image by image."""
    reason: str
    """Why not; empty if there is a difference."""


@dataclass(frozen=True, kw_only=True)
class ClassPart:
    """What is behind the value of one class."""

    name: str
    values: tuple[str, ...]
    """Headline's measure, one a run."""
    charts: tuple[Chart, ...]
    """Precision over recall, of multi-label sets; and the curve over C, where each class has its own."""
    examples: tuple[Examples | None, ...]
    """One a run; None where the scores are missing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunGroup:
    """Runs of the same classes and measure."""

    runs: tuple[SvmRun, ...]
    comparisons: tuple[RunPair, ...]
    table: SortableTable
    overviews: tuple[Chart, ...]
    """Precision and recall of all classes and their means; and the choice of C, of each run."""
    confusions: tuple[tuple[SvmRun, "Confusion"], ...]
    """Runs that have a confusion matrix, with it."""
    classes: tuple[ClassPart, ...]
    """Worst first, by the last run: a reader puts what is compared with before what is new."""

    @property
    def title(self) -> str:
        """Name of the data set."""
        return str(self.runs[0].results["dataset"]["name"])

    @property
    def measure(self) -> str:
        """The headline's, in words."""
        return str(self.runs[0].results["metric"]["name"])


def group_runs(runs: Sequence[SvmRun]) -> list[list[SvmRun]]:
    """Put runs together that can stand in one table, in the order of their first ones."""
    groups: dict[Any, list[SvmRun]] = {}
    for run in runs:
        groups.setdefault((run.results["dataset"]["name"], run.metric, run.classes), []).append(run)
    return list(groups.values())


def make_group(runs: Sequence[SvmRun], comparisons: Sequence[RunPair], lists: int) -> RunGroup:
    """Gather what the page says of runs of the same classes and measure.

    `lists`: lists of images on the whole page, which share its budget.
    """
    several = len(runs) > 1
    each = [(run.results, run.name if several else "") for run in runs[:MOST_CHOICES]]
    curves = [draw(results, name) for draw in (learning, choices) for results, name in each]
    charts = (None if runs[0].single else overview(runs), *curves)
    return RunGroup(
        runs=tuple(runs),
        comparisons=tuple(comparisons),
        table=_table(runs, comparisons),
        overviews=tuple(filter(None, charts)),
        confusions=tuple((run, found) for run in runs if (found := confusion_of(run)) is not None),
        classes=tuple(_class_part(runs, k, per_list(lists)) for k in _worst_first(runs[-1])),
    )


def points(value: float) -> str:
    """Write a difference of proportions in points, always with its sign."""
    return DASH if not np.isfinite(value) else f"{100 * value:+.1f}".replace("-", MINUS)


def _table(runs: Sequence[SvmRun], comparisons: Sequence[RunPair]) -> SortableTable:
    """Every class, column by column: the headline's measure of all runs first, then what differs, then the rest."""
    several, classes = len(runs) > 1, [run.results["classes"] for run in runs]
    keys = sorted(classes[0][0]["values"], key=lambda key: key != runs[0].metric)
    named = [(f", {run.name}" if several else "", rows) for run, rows in zip(runs, classes, strict=True)]
    columns = [("class", [Cell(str(row["name"])) for row in classes[0]])]
    columns += [
        (f"{kind} pos", [_counts(row[f"{kind}_positives"]) for row in classes[0]])
        for kind in ("train", "test")
        if kind == "test" or not several
    ]
    measured = [
        (f"{MEASURES.get(key, key)} %{name}", [_measured(row["values"].get(key), key == keys[0]) for row in rows])
        for key in keys
        for name, rows in named
    ]
    against = [found for found in comparisons if found.first == 0 and found.difference is not None]
    differing = [
        (
            f"{runs[found.second].name} {MINUS} {runs[0].name}, points",
            [_differing(found, k) for k in range(len(classes[0]))],
        )
        for found in against
    ]
    costs = [(f"C{name}", [_costs(row) for row in rows]) for name, rows in named]
    columns += [*measured[: len(runs)], *differing, *measured[len(runs) :], *costs]
    return SortableTable(
        header=tuple(head for head, _ in columns), rows=tuple(zip(*(cells for _, cells in columns), strict=True))
    )


def _counts(counts: Sequence[int]) -> Cell:
    low, high = min(counts), max(counts)
    return Cell(f"{low}" if low == high else f"{low}{DASH}{high}", float(low))


def _measured(value: float | None, bar: bool) -> Cell:
    return Cell(DASH, float("nan")) if value is None else Cell(percent(value), float(value), value if bar else None)


def _differing(found: RunPair, k: int) -> Cell:
    difference = found.difference
    assert difference is not None
    low, high = difference.class_intervals[k].tolist()
    value = float(difference.classes[k])
    if not np.isfinite(value):
        return Cell(DASH, float("nan"))
    return Cell(f"{points(value)} [{points(low)}, {points(high)}]", value)


def _costs(row: Mapping[str, Any]) -> Cell:
    costs = list(dict.fromkeys(row["C"]))
    mark = "" if all(row["converged"]) else " not converged"
    return Cell("/".join(f"{value:g}" for value in costs) + mark, float(costs[0]))


def _worst_first(run: SvmRun) -> list[int]:
    values = [row["values"].get(run.metric) for row in run.results["classes"]]
    return np.argsort([np.inf if value is None else value for value in values], kind="stable").tolist()


def _class_part(runs: Sequence[SvmRun], k: int, most: int) -> ClassPart:
    classes, single = runs[0].classes, runs[0].single
    examples = [examples_of(run.tests, k, classes, single=single, most=most) if run.tests else None for run in runs]
    return ClassPart(
        name=classes[k],
        values=tuple(percent(run.results["classes"][k]["values"].get(run.metric), DASH) for run in runs),
        charts=tuple(filter(None, (None if single else ranking(runs, k), choice(runs, k)))),
        examples=tuple(examples),
    )


def compare_runs(
    runs: Sequence[SvmRun], settings: BootstrapSettings, progress: Callable[[int, int], None] | None = None
) -> list[RunPair]:
    """Compare runs of the same classes and measure, each pair by the same resamples."""
    pairs = list(combinations(range(len(runs)), 2))
    if len(runs) > ALL_PAIRS:
        pairs = [pair for pair in pairs if pair[0] == 0]
    found = []
    for done, (first, second) in enumerate(pairs):
        if progress is not None:
            progress(done, len(pairs))
        found.append(_compare(runs, first, second, settings))
    return found


def _compare(runs: Sequence[SvmRun], first: int, second: int, settings: BootstrapSettings) -> RunPair:
    tests = _paired(runs[first], runs[second])
    if isinstance(tests, str):
        return RunPair(first=first, second=second, difference=None, reason=tests)
    measure = runs[first].metric
    difference = paired_bootstrap(tests, measure, settings)  # type: ignore[arg-type]  # checked there
    return RunPair(first=first, second=second, difference=difference, reason="")


def _paired(first: SvmRun, second: SvmRun) -> list[PairedScores] | str:
    """Match the rows of two runs by id, or say why that can't be done."""
    if not first.tests or not second.tests:
        return "the scores of one of them are missing (scores.npz)"
    if len(first.tests) != len(second.tests):
        return f"{len(first.tests)} and {len(second.tests)} tests"
    tests = []
    for mine, yours in zip(first.tests, second.tests, strict=True):
        place = {name: row for row, name in enumerate(yours.ids)}
        alone = next((name for name in mine.ids if name not in place), None)
        if alone is not None or len(place) != len(mine.ids):
            return "they were tested on other samples"
        order = np.array([place[name] for name in mine.ids], dtype=np.int64)
        if (mine.labels != yours.labels[order]).any():
            return "the labels of the same samples differ, or were read in another way (difficult ones)"
        theirs = yours.scores[order]
        tests.append(PairedScores(images=mine.images, labels=mine.labels, first=mine.scores, second=theirs))
    return tests


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Images of one class that were taken for another."""

    true: str
    predicted: str
    count: int
    share: float
    """Share of all predictions for the true class."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A confusion matrix."""

    classes: tuple[str, ...]
    """K names."""
    rows: tuple[tuple[float, ...], ...]
    """(K, K) shares of each true class; empty with more than `LARGEST_MATRIX` classes."""
    pairs: tuple[Pair, ...]
    """The most frequent mistakes, the commonest first."""
    mistakes: int
    """All of them."""
    tested: int
    """All predictions, right or wrong; with several tests, those of all of them."""


def confusion_of(run: SvmRun) -> Confusion | None:
    """Read the confusion of a run; None for multi-label sets."""
    if not run.results.get("confusion"):
        return None
    counts = np.array(run.results["confusion"], dtype=np.float64)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    wrong = counts * (1 - np.eye(len(counts)))
    order = np.argsort(-wrong.ravel(), kind="stable")[:MOST_PAIRS]
    pairs = [
        Pair(true=run.classes[i], predicted=run.classes[j], count=int(wrong[i, j]), share=float(shares[i, j]))
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j] > 0
    ]
    small = len(counts) <= LARGEST_MATRIX
    return Confusion(
        classes=run.classes,
        rows=tuple(map(tuple, shares.tolist())) if small else (),
        pairs=tuple(pairs),
        mistakes=int(wrong.sum()),
        tested=int(counts.sum()),
    )
