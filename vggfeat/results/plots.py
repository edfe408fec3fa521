"""Results as an image: the classes from best to worst, and what C was chosen by.

K = classes, G = values of C.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vggfeat.metrics import mean_defined
from vggfeat.protocols.results import Result, Run
from vggfeat.protocols.spread import LearningCurve
from vggfeat.results.text import printable
from vggfeat.runtime.fonts import Fonts, fonts_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 40
"""With more classes only the best and the worst get a bar, and a histogram shows all."""
ENDS = 16
"""How many of each then."""
MOST_RUNS = 5
"""With more they are not named."""
LONGEST_NAME = 32

_BLUE, _GREY, _ORANGE = "#3b6ea8", "#9aa5b1", "#d9772b"


class _Bar(NamedTuple):
    name: str
    value: float
    """Per cent; NaN where there is none."""
    label: str


def draw(result: Result, title: str) -> bytes:
    """Draw a result; equal results give equal bytes.

    Parameters
    ----------
    result : Result
    title : str
        One line above all.

    Returns
    -------
    bytes
        A PNG file of 1320 pixels by 540 to some 1200, however many classes there are.
    """
    from matplotlib.figure import Figure

    fonts = fonts_for([printable(text) for text in (title, *result.classes, *(run.name for run in result.runs))])
    bars = _bars(result, fonts)
    with _style(fonts):
        few = len(bars) <= MOST_BARS
        shown = bars if few else _ends(bars)
        figure = Figure(figsize=(11, max(4.5, 1.2 + 0.22 * len(shown))), layout="constrained")
        figure.suptitle(_clear(title, fonts, 150))
        if few:
            left, right = figure.subplots(1, 2)
        else:
            axes = figure.subplot_mosaic([["bars", "all"], ["bars", "choice"]])
            left, right = axes["bars"], axes["choice"]
            _draw_histogram(axes["all"], bars, result)
        _draw_bars(left, shown, result)
        _draw_choice(right, result, fonts)
        return _png(figure)


def draw_learning_curve(curve: LearningCurve, measure: str, title: str) -> bytes:
    """Draw a learning curve, the mean of each share with its lowest and highest; equal curves give equal bytes.

    Parameters
    ----------
    curve : LearningCurve
    measure : str
        In words.
    title : str
        One line above all.

    Returns
    -------
    bytes
        A PNG file of 840 pixels by 540.
    """
    from matplotlib.figure import Figure

    fonts, there = fonts_for([printable(title)]), [row for row in curve.rows() if np.isfinite(row["mean"])]
    samples, means, low, high = (np.array([row[name] for row in there]) for name in ("samples", "mean", "low", "high"))
    with _style(fonts):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        figure.suptitle(_clear(title, fonts, 110))
        axes, spread = figure.subplots(), [100 * (means - low), 100 * (high - means)]
        axes.errorbar(samples, 100 * means, spread, color=_BLUE, marker="o", capsize=3, label="mean, lowest, highest")
        axes.set_xscale("log", base=2)
        axes.set_xticks(samples, [f"{count:.0f}" for count in samples])
        axes.minorticks_off()
        axes.set(xlabel="training samples", ylabel=f"{measure}, %")
        _add_legend(axes)
        return _png(figure)


@contextmanager
def _style(fonts: Fonts) -> Iterator[None]:
    """Draw in our own style, whatever the user's is."""
    import matplotlib.style

    own = {"font.size": 9, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.style.context(["default", {**own, "font.family": fonts.families}]):
        yield


def _png(figure: "Figure") -> bytes:
    drawn = io.BytesIO()
    # No version of the drawing library in the file.
    figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    return drawn.getvalue()


def _bars(result: Result, fonts: Fonts) -> list[_Bar]:
    values = [(_clear(row.name, fonts), 100 * row.values[result.metric]) for row in result.class_rows()]
    bars = [_Bar(name, value, "no value" if np.isnan(value) else f"{value:.1f}") for name, value in values]
    return sorted(bars, key=lambda bar: np.inf if np.isnan(bar.value) else -bar.value)


def _ends(bars: Sequence[_Bar]) -> list[_Bar]:
    valued = [bar for bar in bars if np.isfinite(bar.value)]
    between = len(valued) - 2 * ENDS
    return [*valued[:ENDS], _Bar(f"... {between} between", np.nan, ""), *valued[-ENDS:]] if between > 0 else valued


def _draw_bars(axes: "Axes", bars: Sequence[_Bar], result: Result) -> None:
    places = range(len(bars))
    axes.barh(places, np.nan_to_num([bar.value for bar in bars]), color=_BLUE, height=0.75)
    for place, bar in zip(places, bars, strict=True):
        long = bar.value > 12  # Enough to hold its number.
        at = bar.value - 1 if long else float(np.nan_to_num(bar.value)) + 1
        patch = {"facecolor": _BLUE if long else "white", "edgecolor": "none", "pad": 0.5}
        text = axes.text(at, place, bar.label, va="center", bbox=patch if bar.label else None)
        text.set(ha="right" if long else "left", color="white" if long else "black")
    axes.set_yticks(places, [bar.name for bar in bars])
    axes.set(xlim=(0, 100), ylim=(len(bars) - 0.4, -0.6), xlabel=_measure(result))
    axes.tick_params(axis="y", length=0)
    _draw_levels(axes, result)
    if axes.get_legend_handles_labels()[0]:
        _add_legend(axes)


def _draw_histogram(axes: "Axes", bars: Sequence[_Bar], result: Result) -> None:
    values = [bar.value for bar in bars if np.isfinite(bar.value)]
    axes.hist(values, bins=list(range(0, 101, 5)), color=_BLUE, rwidth=0.9)
    axes.set(xlim=(0, 100), xlabel=_measure(result), ylabel="classes", title=f"{len(values)} of {len(bars)} classes")
    axes.locator_params(axis="y", integer=True)
    _draw_levels(axes, result)


def _draw_levels(axes: "Axes", result: Result) -> None:
    levels = (("mean", result.headline, "black", "-"), ("chance", result.chance, _ORANGE, "--"))
    for name, value, color, style in levels:
        if np.isfinite(value):
            label = f"{name} {100 * value:.1f} %"
            axes.axvline(100 * value, linewidth=1.2, color=color, linestyle=style, label=label)


def _draw_choice(axes: "Axes", result: Result, fonts: Fonts) -> None:
    grid = result.runs[0].choice.grid
    if all(np.isnan(run.choice.curve).all() for run in result.runs):
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"C = {grid[0]:g} was given, not chosen.", ha="center", transform=axes.transAxes)
        return
    names = [_clear(run.name, fonts) for run in result.runs] if 1 < len(result.runs) <= MOST_RUNS else ["all classes"]
    for number, run in enumerate(result.runs):
        _draw_curves(axes, run, number, names[number] if number < len(names) else None, len(result.runs))
    axes.set_xscale("log")
    step = -(-len(grid) // 7)
    axes.set_xticks(grid[::step], [f"{value:.4g}" for value in grid[::step]])
    axes.minorticks_off()
    axes.set(xlabel="C", ylabel=f"{_measure(result)} on held-out rows")
    _add_legend(axes)


def _draw_curves(axes: "Axes", run: Run, number: int, name: str | None, runs: int) -> None:
    grid, curve = run.choice.grid, 100 * run.choice.curve
    columns = np.arange(curve.shape[1])
    if len(columns) > 1:
        labels = ["a class" if number == 0 and k == 0 else None for k in columns]
        alpha = min(0.6, max(0.1, 30 / (runs * len(columns))))
        axes.plot(grid, curve, color=_GREY, linewidth=0.7, alpha=alpha, label=labels, zorder=1)
    mean = np.apply_along_axis(mean_defined, 1, curve)
    axes.plot(grid, mean, color=f"C{number % 10}", linewidth=1.6, label=name)
    chosen = np.searchsorted(grid, run.choice.C[columns])
    label = "chosen" if number == 0 else None
    axes.plot(grid[chosen], curve[chosen, columns], "o", markersize=3.5, color="black", label=label, zorder=3)


def _add_legend(axes: "Axes") -> None:
    # Above: within, it would cover what there is to see.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6, frameon=False, columnspacing=1.2)


def _measure(result: Result) -> str:
    return f"{result.metric_name.removeprefix('mean ')}, %"


def _clear(name: str, fonts: Fonts, longest: int = LONGEST_NAME) -> str:
    text = fonts.shown(printable(name))
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
