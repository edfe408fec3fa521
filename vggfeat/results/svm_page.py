"""Runs of the same classes and measure, side by side: their headlines, their table, and what is behind each class.

K = classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vggfeat.results.charts import COLOURS, Chart
from vggfeat.results.comparison import Confusion, RunPair, confusion_of
from vggfeat.results.curves import choice, choices, overview, ranking
from vggfeat.results.reading import SvmRun
from vggfeat.results.thumbnails import Examples, examples_of, per_list

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
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


@dataclass(frozen=True, kw_only=True)
class ClassPart:
    """What is behind the value of one class."""

    name: str
    values: tuple[str, ...]
    """Headline's measure, one a run."""
    ranking: Chart | None
    """Precision and recall; None for single-label sets."""
    choice: Chart | None
    """The curve over C; None where one C was chosen for all classes."""
    examples: tuple[Examples | None, ...]
    """One a run; None where the scores are missing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Card:
    """The headline of a run, and what belongs to the run alone."""

    name: str
    style: str
    headline: float | None
    """From 0 to 1; None where there is none."""
    deviation: float | None
    """Over several tests."""
    value: str
    """Both in per cent."""
    measure: str
    tested: str
    chance: str
    secondary: tuple[tuple[str, str], ...]
    paper: tuple[Mapping[str, Any], ...]
    same_paper: Mapping[str, Any] | None
    """The row of `paper` with the same nets and regions."""
    description: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    confusion: Confusion | None
    failures: tuple[tuple[str, str], ...]
    failed: int
    times: tuple[tuple[str, float], ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunGroup:
    """Runs of the same classes and measure."""

    title: str
    single: bool
    """Whether an image has one class."""
    measure: str
    cards: tuple[Card, ...]
    comparisons: tuple[RunPair, ...]
    table: SortableTable
    overviews: tuple[Chart, ...]
    """Precision and recall of all classes and their means; and the choice of C, of a run that is alone."""
    classes: tuple[ClassPart, ...]
    """Worst first, by the last run: a reader puts what is compared with before what is new."""
    shown_test: str
    """Which test the images are of, where there are several."""


def group_runs(runs: Sequence[SvmRun]) -> list[list[SvmRun]]:
    """Put runs together that can stand in one table, in the order of their first ones."""
    groups: dict[Any, list[SvmRun]] = {}
    for run in runs:
        groups.setdefault((run.results["dataset"]["name"], run.metric, run.classes), []).append(run)
    return list(groups.values())


def make_group(runs: Sequence[SvmRun], comparisons: Sequence[RunPair], lists: int) -> RunGroup:
    """Gather what the page says of runs of the same classes and measure.

    Parameters
    ----------
    runs : sequence of SvmRun
    comparisons : sequence of RunPair
    lists : int
        Lists of images on the whole page, which share its budget.
    """
    first = runs[0]
    single = first.results["dataset"]["task"] == "single-label"
    several = len(first.results["runs"]) > 1
    return RunGroup(
        title=str(first.results["dataset"]["name"]),
        single=single,
        measure=str(first.results["metric"]["name"]),
        cards=tuple(_card(run, f"c{place % COLOURS}") for place, run in enumerate(runs)),
        comparisons=tuple(comparisons),
        table=_table(runs, comparisons),
        overviews=tuple(filter(None, (None if single else overview(runs), choices(first) if len(runs) == 1 else None))),
        classes=tuple(_class_part(runs, k, single, per_list(lists)) for k in _worst_first(runs[-1])),
        shown_test=str(first.results["runs"][0]["name"]) if several else "",
    )


def percent(value: float | None) -> str:
    """Write a proportion in per cent; a dash where there is none."""
    return DASH if value is None or not np.isfinite(value) else f"{100 * value:.1f}"


def points(value: float) -> str:
    """Write a difference of proportions in points, always with its sign."""
    return DASH if not np.isfinite(value) else f"{100 * value:+.1f}".replace("-", MINUS)


def _card(run: SvmRun, style: str) -> Card:
    results, key = run.results, run.metric
    tests = results["runs"]
    tested = f"on {tests[0]['plan']['tested']}" if len(tests) == 1 else f"mean of {len(tests)} tests"
    paper = tuple(results["paper"])
    failures = tuple((str(row["id"]), str(row["reason"])) for row in results["dataset"].get("failures", ()))
    return Card(
        name=run.name,
        style=style,
        headline=results["headline"],
        deviation=_deviation(results, key),
        value=_with_deviation(results["headline"], results, key),
        measure=str(results["metric"]["name"]),
        tested=tested,
        chance=percent(results["chance"]["value"]),
        secondary=tuple(
            (str(other["name"]), _with_deviation(other["value"], results, name))
            for name, other in results["secondary"].items()
        ),
        paper=paper,
        same_paper=next((row for row in paper if row["same_nets_and_regions"]), None),
        description=str(results["description"]),
        warnings=tuple(_warnings(results)),
        notes=tuple(map(str, results["notes"])),
        confusion=confusion_of(run),
        failures=failures,
        failed=int(results["dataset"]["failed"]),
        times=tuple((str(stage), float(seconds)) for stage, seconds in results["seconds"].items()),
        settings={name: results[name] for name in ("protocol", "dataset", "settings", "convergence")},
    )


def _with_deviation(value: float | None, results: Mapping[str, Any], key: str) -> str:
    deviation = _deviation(results, key)
    return f"{percent(value)} %" + ("" if deviation is None else f" ± {percent(deviation)}")


def _deviation(results: Mapping[str, Any], key: str) -> float | None:
    found: float | None = (results.get("deviation") or {}).get("values", {}).get(key)
    return found


def _warnings(results: Mapping[str, Any]) -> list[str]:
    stages = {"choice": "the choice of C", "fit": "the fit"}
    solved = results["convergence"]
    return [
        f"{found['problems'] - found['converged']} of {found['problems']} SVMs of {stages.get(stage, stage)} did not "
        "converge; their numbers may not be final."
        for stage, found in solved.items()
        if found["converged"] < found["problems"]
    ]


def _table(runs: Sequence[SvmRun], comparisons: Sequence[RunPair]) -> SortableTable:
    """Every class; the headline's measure of all runs first, then what differs, then the rest."""
    own = runs[0].metric
    keys = [own, *(key for key in runs[0].results["classes"][0]["values"] if key != own)]
    several = len(runs) > 1
    against = [found for found in comparisons if found.first == 0 and found.difference is not None]
    header = ["class", *(["train pos"] if not several else []), "test pos"]
    header += [_head(own, run, several) for run in runs]
    header += [f"{runs[found.second].name} {MINUS} {runs[0].name}, points" for found in against]
    header += [_head(key, run, several) for key in keys[1:] for run in runs]
    header += [f"C{f', {run.name}' if several else ''}" for run in runs]
    rows = []
    for k, row in enumerate(runs[0].results["classes"]):
        rows_of = [run.results["classes"][k] for run in runs]
        cells = [Cell(str(row["name"]))]
        cells += [_counts(row["train_positives"])] if not several else []
        cells += [_counts(row["test_positives"])]
        cells += [_measured(one["values"].get(own), bar=True) for one in rows_of]
        cells += [_differing(found, k) for found in against]
        cells += [_measured(one["values"].get(key)) for key in keys[1:] for one in rows_of]
        cells += [_costs(one) for one in rows_of]
        rows.append(tuple(cells))
    return SortableTable(header=tuple(header), rows=tuple(rows))


def _head(key: str, run: SvmRun, several: bool) -> str:
    return f"{MEASURES.get(key, key)} %{f', {run.name}' if several else ''}"


def _counts(counts: Sequence[int]) -> Cell:
    low, high = min(counts), max(counts)
    return Cell(f"{low}" if low == high else f"{low}{DASH}{high}", float(low))


def _measured(value: float | None, *, bar: bool = False) -> Cell:
    known = value is not None
    return Cell(percent(value), float(value) if known else float("nan"), float(value) if known and bar else None)  # type: ignore[arg-type]


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


def _class_part(runs: Sequence[SvmRun], k: int, single: bool, most: int) -> ClassPart:
    own = runs[0].metric
    classes = runs[0].classes
    examples = [examples_of(run.tests[0], k, classes, single=single, most=most) if run.tests else None for run in runs]
    return ClassPart(
        name=classes[k],
        values=tuple(percent(run.results["classes"][k]["values"].get(own)) for run in runs),
        ranking=None if single else ranking(runs, k),
        choice=choice(runs, k),
        examples=tuple(examples),
    )
