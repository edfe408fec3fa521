"""The curves of SVM runs: precision over recall, and what C was chosen by.

K = classes, G = values of C.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.metrics import precision_recall
from vggfeat.results.charts import COLOURS, Axis, Chart, Curve, chart, linear_axis, log_axis, thinned
from vggfeat.results.reading import Scores, SvmRun

MOST_TESTS = 5
"""Curves of so many tests of a run are drawn at most."""
_LEVELS = np.linspace(0, 1, 101)
_RECALL, _PRECISION = (
    Axis(label=label, low=0, high=1, ticks=(0, 0.2, 0.4, 0.6, 0.8, 1)) for label in ("recall", "precision")
)


def overview(runs: Sequence[SvmRun]) -> Chart | None:
    """Draw the mean over classes of the best precision at each recall or beyond, of the first test of each run."""
    lines = []
    for place, run in enumerate(runs):
        if run.tests:
            curves = [_best(_hits(run.tests[0], k)) for k in range(len(run.classes))]
            there = [curve for curve in curves if curve is not None]
            if len(runs) == 1:
                lines += _grey(_LEVELS, there)
            if there:
                name = run.name if len(runs) > 1 else "mean"
                lines.append(Curve(name=name, x=_LEVELS, y=np.mean(there, axis=0), style=f"c{place % COLOURS}"))
    several = f", {runs[0].results['runs'][0]['name']}" if len(runs[0].results["runs"]) > 1 else ""
    title = f"best precision at each recall or beyond, mean over classes{several}"
    return chart(title, _RECALL, _PRECISION, lines) if lines else None


def ranking(runs: Sequence[SvmRun], k: int) -> Chart | None:
    """Draw precision over recall of one class, a point for each positive found."""
    lines = []
    for place, run in enumerate(runs):
        for number, test in enumerate(run.tests[:MOST_TESTS]):
            hits = _hits(test, k)
            if len(hits):
                name = run.name if number == 0 and len(runs) > 1 else ""
                kept = hits[thinned(len(hits))]
                lines.append(Curve(name=name, x=kept[:, 0], y=kept[:, 1], style=f"c{place % COLOURS}"))
    title = f"precision over recall, {runs[0].classes[k]}"
    return chart(title, _RECALL, _PRECISION, lines) if lines else None


def choice(runs: Sequence[SvmRun], k: int) -> Chart | None:
    """Draw what C was chosen by for one class, if each class has its own."""
    lines = []
    for place, run in enumerate(runs):
        for number, test in enumerate(run.results["runs"][:MOST_TESTS]):
            curve = _numbers(test["curve"])
            if curve.shape[1] > 1 and not np.isnan(curve[:, k]).all():
                name = run.name if number == 0 and len(runs) > 1 else ""
                lines += _chosen(test["grid"], 100 * curve[:, k], test["C"][k], f"c{place % COLOURS}", name)
    return _over_costs(lines, runs[0]) if lines else None


def choices(run: SvmRun) -> Chart | None:
    """Draw what C was chosen by, for all classes of the first test, or for all tests where one C serves all classes."""
    tests = run.results["runs"]
    lines: list[Curve] = []
    if _numbers(tests[0]["curve"]).shape[1] > 1:
        curve, grid = 100 * _numbers(tests[0]["curve"]), tests[0]["grid"]
        lines += _grey(grid, list(curve.T))
        there = ~np.isnan(curve).all(axis=0)
        if there.any():
            known = np.where(np.isnan(curve), 0, curve).sum(axis=1) / np.maximum(1, (~np.isnan(curve)).sum(axis=1))
            lines.append(Curve(name="mean", x=grid, y=known, style="c0"))
    else:
        for number, test in enumerate(tests[:COLOURS]):
            name = str(test["name"]) if len(tests) > 1 else ""
            lines += _chosen(test["grid"], 100 * _numbers(test["curve"])[:, 0], test["C"][0], f"c{number}", name)
    there = [line for line in lines if not np.isnan(np.asarray(line.y, float)).all()]
    return _over_costs(there, run) if there else None


def _chosen(grid: Sequence[float], curve: Any, cost: float, style: str, name: str) -> list[Curve]:
    at = int(np.abs(np.asarray(grid) - cost).argmin())
    return [
        Curve(name=name, x=grid, y=curve, style=style),
        Curve(name="", x=[grid[at]], y=[curve[at]], style=style, marks=True),
    ]


def _over_costs(lines: Sequence[Curve], run: SvmRun) -> Chart:
    measure = f"{str(run.results['metric']['name']).removeprefix('mean ')}, %"
    values = np.concatenate([np.asarray(line.y, dtype=np.float64) for line in lines])
    costs = np.concatenate([np.asarray(line.x, dtype=np.float64) for line in lines])
    return chart(f"{measure} on held-out rows over C", log_axis("C", costs), linear_axis(measure, values), lines)


def _numbers(values: Any) -> Any:
    """Turn lists of numbers and None into an array with NaN."""
    return np.array(values, dtype=np.float64)


def _hits(test: Scores, k: int) -> NDArray[np.float64]:
    """(P, 2) recall and precision at each positive of a class, best score first."""
    curve = precision_recall(test.labels[:, k], test.scores[:, k])
    found = np.flatnonzero(np.diff(np.concatenate([[0.0], curve.recall])) > 0)
    return np.stack([curve.recall[found], curve.precision[found]], axis=1)


def _best(hits: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(101,) the best precision at each of `_LEVELS` or beyond; None without a positive."""
    if not len(hits):
        return None
    best = np.maximum.accumulate(hits[::-1, 1])[::-1]
    return best[np.minimum(np.searchsorted(hits[:, 0], _LEVELS - 1e-12), len(best) - 1)]


def _grey(x: ArrayLike, curves: Sequence[ArrayLike]) -> list[Curve]:
    """One line a class; the first is named, so that the legend has them once."""
    return [Curve(name="" if place else "a class", x=x, y=y, style="grey") for place, y in enumerate(curves)]
