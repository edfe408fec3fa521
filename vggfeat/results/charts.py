"""Curves of results, and charts of them: a few numbers that a template draws as SVG, or matplotlib in an image file.

In SVG they are small, sharp, and in the colours of the page, light or dark; an image of a plotting library would bring
its fonts and its colours along, some 30 kB for every class.

K = classes, G = values of C.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.metrics import mean_defined, precision_recall

if TYPE_CHECKING:
    from vggfeat.results.reading import Scores, SvmRun

COLOURS = 6
"""Styles of lines, c0 to c5 of the style sheet; more lines begin again."""
MOST_TESTS = 5
"""Curves of so many tests of a run are drawn at most."""
WIDTH, HEIGHT = 360.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 18.0, 10.0, 36.0
_LEAST, _MOST_POWER = 1e-300, 308
"""Differences below the one, and powers of ten beyond the other, are more than a float can hold."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a chart."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def share(self, values: ArrayLike) -> NDArray[np.float64]:
        """Place values on the axis, from 0 to 1."""
        ends = np.array([self.low, self.high])
        given = np.asarray(values, dtype=np.float64)
        if self.logarithmic:
            with np.errstate(divide="ignore", invalid="ignore"):
                given, ends = np.log(given), np.log(ends)
        return (given - ends[0]) / ((ends[1] - ends[0]) or 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """One curve."""

    name: str
    """Name in the legend; empty for none."""
    x: ArrayLike
    """(n,)"""
    y: ArrayLike
    """(n,); NaN breaks the curve."""
    style: str
    """c0 to c5, or grey: a class of the style sheet."""
    marks: bool = False
    """Points instead of a curve."""
    hint: str = ""
    """What a pointer on the curve shows, where the legend does not have it."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A curve in the coordinates of its chart."""

    name: str
    hint: str
    style: str
    path: str
    """Path of SVG; empty where there are points alone."""
    points: tuple[tuple[str, str], ...]
    """x, y of each mark, and of each value without a neighbour, of which a path would show nothing."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark of an axis."""

    at: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What the template draws."""

    title: str
    """What it shows, for those who can't see it."""
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Drawn, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Curve]) -> Chart:
    """Place curves between axes."""
    return Chart(
        title=title,
        x_label=x.label,
        y_label=y.label,
        x_ticks=tuple(Tick(at=_short(_across(x, [tick])[0]), label=number(tick)) for tick in x.ticks),
        y_ticks=tuple(Tick(at=_short(_down(y, [tick])[0]), label=number(tick)) for tick in y.ticks),
        lines=tuple(_drawn(line, x, y) for line in lines),
    )


def linear_axis(label: str, values: ArrayLike, *, low: float | None = None, high: float | None = None) -> Axis:
    """Make an axis that holds all values that are numbers, and ends at round ones."""
    there = np.asarray(values, dtype=np.float64)
    there = there[np.isfinite(there)]
    first = low if low is not None else float(there.min(initial=math.inf))
    last = high if high is not None else float(there.max(initial=-math.inf))
    if not last - first > _LEAST:
        first = 0.0 if not math.isfinite(first) else first
        last = first + 1.0
    step = _round_step((last - first) / 4)
    start, stop = math.floor(first / step + 1e-9), math.ceil(last / step - 1e-9)
    ticks = tuple(round(step * index, 12) for index in range(start, stop + 1))
    return Axis(label=label, low=ticks[0], high=ticks[-1], ticks=ticks)


def log_axis(label: str, values: ArrayLike) -> Axis:
    """Make an axis for values above 0, with a mark for each power of ten; it is widened until it has two of them."""
    there = np.asarray(values, dtype=np.float64)
    there = there[np.isfinite(there) & (there > 0)]
    first, last = (float(there.min()), float(there.max())) if len(there) else (0.1, 1.0)
    powers = range(math.ceil(math.log10(first) - 1e-9), math.floor(math.log10(last) + 1e-9) + 1)
    if len(powers) < 2:
        lowest = min(math.floor(math.log10(first) + 1e-9), _MOST_POWER - 1)
        powers = range(lowest, min(max(lowest + 1, math.ceil(math.log10(last) - 1e-9)), _MOST_POWER) + 1)
        first, last = 10.0 ** powers[0], 10.0 ** powers[-1]
    step = max(1, -(-len(powers) // 6))
    ticks = tuple(10.0**power for power in powers[::step])
    return Axis(label=label, low=first, high=last, ticks=ticks, logarithmic=True)


def number(value: float) -> str:
    """Write a number with as many digits as a mark of an axis needs."""
    return f"{value:.6g}"


def thinned(count: int, most: int = 200) -> NDArray[np.int64]:
    """Choose at most so many of `count` points, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))


def _across(axis: Axis, values: ArrayLike) -> NDArray[np.float64]:
    return _LEFT + axis.share(values) * (WIDTH - _RIGHT - _LEFT)


def _down(axis: Axis, values: ArrayLike) -> NDArray[np.float64]:
    return HEIGHT - _BOTTOM - axis.share(values) * (HEIGHT - _BOTTOM - _TOP)


def _drawn(line: Curve, x: Axis, y: Axis) -> Drawn:
    across, down = _across(x, line.x), _down(y, line.y)
    there = np.isfinite(across) & np.isfinite(down)
    places = [(_short(a), _short(b)) for a, b in zip(across[there], down[there], strict=True)]
    begins = (there & ~np.concatenate([[False], there[:-1]]))[there]
    ends = (there & ~np.concatenate([there[1:], [False]]))[there]
    alone = begins & ends | line.marks
    path = "".join(
        f"{'M' if begin else 'L'}{a} {b}"
        for begin, one, (a, b) in zip(begins.tolist(), alone.tolist(), places, strict=True)
        if not one
    )
    points = tuple(place for one, place in zip(alone.tolist(), places, strict=True) if one)
    return Drawn(name=line.name, hint=line.hint, style=line.style, path=path, points=points)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


_LEVELS = np.linspace(0, 1, 101)
_RECALL, _PRECISION = (
    Axis(label=label, low=0, high=1, ticks=(0, 0.2, 0.4, 0.6, 0.8, 1)) for label in ("recall", "precision")
)


def overview(runs: "Sequence[SvmRun]") -> Chart | None:
    """Draw the mean over classes of the best precision at each recall or beyond, of the first test of each run."""
    lines: list[Curve] = []
    for place, run in enumerate(runs):
        found = [_best(_hits(test, k)) for test in run.tests[:1] for k in range(len(run.classes))]
        there = {name: curve for name, curve in zip(run.classes, found, strict=False) if curve is not None}
        if len(runs) == 1:
            lines += class_curves(_LEVELS, there)
        if there:
            name = run.name if len(runs) > 1 else "mean"
            lines.append(
                Curve(name=name, x=_LEVELS, y=np.mean(list(there.values()), axis=0), style=f"c{place % COLOURS}")
            )
    several = f", {runs[0].results['runs'][0]['name']}" if len(runs[0].results["runs"]) > 1 else ""
    title = f"best precision at each recall or beyond, mean over classes{several}"
    return chart(title, _RECALL, _PRECISION, lines) if lines else None


def ranking(runs: "Sequence[SvmRun]", k: int) -> Chart | None:
    """Draw precision over recall of one class, a point for each positive found."""
    lines = []
    for place, run in enumerate(runs):
        for number, test in enumerate(run.tests[:MOST_TESTS]):
            hits = _hits(test, k)
            if len(hits):
                name = run.name if number == 0 and len(runs) > 1 else ""
                kept = hits[thinned(len(hits))]
                lines.append(Curve(name=name, x=kept[:, 0], y=kept[:, 1], style=f"c{place % COLOURS}"))
    return chart(f"precision over recall, {runs[0].classes[k]}", _RECALL, _PRECISION, lines) if lines else None


def choice(runs: "Sequence[SvmRun]", k: int) -> Chart | None:
    """Draw what C was chosen by for one class, if each class has its own."""
    lines = []
    for place, run in enumerate(runs):
        for number, test in enumerate(run.results["runs"][:MOST_TESTS]):
            curve = _per_cent(test)
            if curve.shape[1] > 1 and not np.isnan(curve[:, k]).all():
                name = run.name if number == 0 and len(runs) > 1 else ""
                lines += _chosen(test["grid"], curve[:, k], test["C"][k], f"c{place % COLOURS}", name)
    title = f"{measure_of(runs[0].results)} on held-out rows over C, {runs[0].classes[k]}"
    return _over_costs(title, lines, runs[0].results) if lines else None


def choices(results: Mapping[str, Any], name: str = "") -> Chart | None:
    """Draw what C was chosen by, for all classes and tests of one run, whose name is in the title."""
    lines, title = cost_curves(results), f"{measure_of(results)} on held-out rows over C{name and f', {name}'}"
    return _over_costs(title, lines, results) if lines else None


def learning(results: Mapping[str, Any], name: str = "") -> Chart | None:
    """Draw the headline over the number of training images, of one run, whose name is in the title."""
    rows = [row for row in results.get("learning_curve") or () if row["mean"] is not None]
    if not rows:
        return None
    samples = [round(row["samples"]) for row in rows]
    curves = {key: 100 * np.array([row[key] for row in rows], dtype=np.float64) for key in ("mean", "low", "high")}
    x = Axis(label="training images", low=samples[0], high=samples[-1], ticks=tuple(samples), logarithmic=True)
    lines = [
        Curve(name="lowest and highest", x=samples, y=curves["low"], style="grey"),
        Curve(name="", x=samples, y=curves["high"], style="grey"),
        Curve(name="mean", x=samples, y=curves["mean"], style="c0"),
    ]
    title = f"{results['metric']['name']} over training images{name and f', {name}'}"
    return chart(title, x, linear_axis("%", np.concatenate(list(curves.values()))), lines)


def cost_curves(results: Mapping[str, Any]) -> list[Curve]:
    """Return what C was chosen by, in per cent: the mean over classes of each test, and the classes of the first.

    Where one C serves all classes there is one curve a test, and the C that was chosen is marked on it.
    """
    tests = results["runs"]
    lines: list[Curve] = []
    for number, test in enumerate(tests):
        grid, curve = test["grid"], _per_cent(test)
        name = str(test["name"]) if 1 < len(tests) <= COLOURS else "" if number else "mean over classes"
        style = f"c{number % COLOURS}"
        if curve.shape[1] == 1:
            lines += _chosen(grid, curve[:, 0], test["C"][0], style, name)
            continue
        if number == 0:
            lines += class_curves(grid, dict(zip(_names(results), curve.T, strict=True)))
        lines.append(Curve(name=name, x=grid, y=np.apply_along_axis(mean_defined, 1, curve), style=style))
    return [line for line in lines if np.isfinite(np.asarray(line.y, dtype=np.float64)).any()]


def class_curves(x: ArrayLike, curves: Mapping[str, NDArray[np.float64]]) -> list[Curve]:
    """Return a line a class: the highest and the lowest are in the legend, of the others a pointer shows the name."""
    means = {name: float(np.nanmean(curve)) for name, curve in curves.items() if not np.isnan(curve).all()}
    ranked = sorted(means, key=means.__getitem__)
    grey = [Curve(name="", hint=name, x=x, y=curves[name], style="grey") for name in ranked[1:-1]]
    ends = [("highest", name, "c2") for name in ranked[-1:]] + [("lowest", name, "c1") for name in ranked[:-1][:1]]
    return grey + [Curve(name=f"{end}: {name}", x=x, y=curves[name], style=style) for end, name, style in ends]


def _chosen(grid: Sequence[float], curve: Any, cost: float, style: str, name: str) -> list[Curve]:
    at = int(np.abs(np.asarray(grid) - cost).argmin())
    return [
        Curve(name=name, x=grid, y=curve, style=style),
        Curve(name="", x=[grid[at]], y=[curve[at]], style=style, marks=True),
    ]


def _over_costs(title: str, lines: Sequence[Curve], results: Mapping[str, Any]) -> Chart:
    values, costs = (np.concatenate([np.asarray(getattr(line, axis), float) for line in lines]) for axis in "yx")
    return chart(title, log_axis("C", costs), linear_axis(measure_of(results), values), lines)


def measure_of(results: Mapping[str, Any]) -> str:
    """Return the measure of the classes, as the label of an axis."""
    return f"{str(results['metric']['name']).removeprefix('mean ')}, %"


def _names(results: Mapping[str, Any]) -> list[str]:
    return [str(row["name"]) for row in results["classes"]]


def _per_cent(test: Mapping[str, Any]) -> NDArray[np.float64]:
    """(G, K) or (G, 1): numbers and None of JSON, with NaN for None."""
    return 100 * np.array(test["curve"], dtype=np.float64)


def _hits(test: "Scores", k: int) -> NDArray[np.float64]:
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
