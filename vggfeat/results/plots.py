"""Results as an image: the classes from best to worst, and what C was chosen by.

K = classes.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vggfeat.protocols.spread import LearningCurve
from vggfeat.results.charts import cost_curves, measure_of
from vggfeat.results.record import printable
from vggfeat.runtime.figures import ABOVE, BLUE, GREY, ORANGE, Fonts, fonts_for, own_style, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 40
"""With more classes only the best and the worst get a bar, and a histogram shows all."""
ENDS = 16
"""How many of each then."""
LONGEST_NAME = 32

_LEGEND = {**ABOVE, "ncols": 6, "columnspacing": 1.2}


class _Bar(NamedTuple):
    name: str
    value: float
    """Per cent; NaN where there is none."""
    label: str


def draw(results: Mapping[str, Any], title: str) -> bytes:
    """Draw a result; equal results give equal bytes.

    `results`: results.json. `title`: one line above all. What is returned is a PNG file of 1320 pixels by 540 to some
    1200, however many classes there are.
    """
    from matplotlib.figure import Figure

    names = [row["name"] for row in (*results["classes"], *results["runs"])]
    fonts = fonts_for([printable(text) for text in (title, *names)])
    bars = _bars(results, fonts)
    with own_style(fonts):
        few = len(bars) <= MOST_BARS
        shown = bars if few else _ends(bars)
        figure = Figure(figsize=(11, max(4.5, 1.2 + 0.22 * len(shown))), layout="constrained")
        figure.suptitle(_clear(title, fonts, 150))
        if few:
            left, right = figure.subplots(1, 2)
        else:
            axes = figure.subplot_mosaic([["bars", "all"], ["bars", "choice"]])
            left, right = axes["bars"], axes["choice"]
            _draw_histogram(axes["all"], bars, results)
        _draw_bars(left, shown, results)
        _draw_choice(right, results, fonts)
        return png_bytes(figure)


def draw_learning_curve(curve: LearningCurve, measure: str, title: str) -> bytes:
    """Draw a learning curve, the mean of each share with its lowest and highest; equal curves give equal bytes.

    `measure`: in words. `title`: one line above all. What is returned is a PNG file of 840 pixels by 540.
    """
    from matplotlib.figure import Figure

    fonts, there = fonts_for([printable(title)]), [row for row in curve.rows() if np.isfinite(row["mean"])]
    samples, means, low, high = (np.array([row[name] for row in there]) for name in ("samples", "mean", "low", "high"))
    with own_style(fonts):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        figure.suptitle(_clear(title, fonts, 110))
        axes, spread = figure.subplots(), [100 * (means - low), 100 * (high - means)]
        axes.errorbar(samples, 100 * means, spread, color=BLUE, marker="o", capsize=3, label="mean, lowest, highest")
        axes.set_xscale("log", base=2)
        axes.set_xticks(samples, [f"{count:.0f}" for count in samples])
        axes.minorticks_off()
        axes.set(xlabel="training samples", ylabel=f"{measure}, %")
        axes.legend(**_LEGEND)
        return png_bytes(figure)


def _bars(results: Mapping[str, Any], fonts: Fonts) -> list[_Bar]:
    key, rows = results["metric"]["key"], results["classes"]
    values = [(_clear(row["name"], fonts), row["values"][key]) for row in rows]
    bars = [
        _Bar(name, np.nan, "no value") if value is None else _Bar(name, 100 * value, f"{100 * value:.1f}")
        for name, value in values
    ]
    return sorted(bars, key=lambda bar: np.inf if np.isnan(bar.value) else -bar.value)


def _ends(bars: Sequence[_Bar]) -> list[_Bar]:
    valued = [bar for bar in bars if np.isfinite(bar.value)]
    between = len(valued) - 2 * ENDS
    return [*valued[:ENDS], _Bar(f"... {between} between", np.nan, ""), *valued[-ENDS:]] if between > 0 else valued


def _draw_bars(axes: "Axes", bars: Sequence[_Bar], results: Mapping[str, Any]) -> None:
    places = range(len(bars))
    axes.barh(places, np.nan_to_num([bar.value for bar in bars]), color=BLUE, height=0.75)
    for place, bar in zip(places, bars, strict=True):
        long = bar.value > 12  # Enough to hold its number.
        at = bar.value - 1 if long else float(np.nan_to_num(bar.value)) + 1
        patch = {"facecolor": BLUE if long else "white", "edgecolor": "none", "pad": 0.5}
        text = axes.text(at, place, bar.label, va="center", bbox=patch if bar.label else None)
        text.set(ha="right" if long else "left", color="white" if long else "black")
    axes.set_yticks(places, [bar.name for bar in bars])
    axes.set(xlim=(0, 100), ylim=(len(bars) - 0.4, -0.6), xlabel=measure_of(results))
    axes.tick_params(axis="y", length=0)
    _draw_levels(axes, results)


def _draw_histogram(axes: "Axes", bars: Sequence[_Bar], results: Mapping[str, Any]) -> None:
    values = [bar.value for bar in bars if np.isfinite(bar.value)]
    title = f"{len(values)} of {len(bars)} classes"
    axes.hist(values, bins=list(range(0, 101, 5)), color=BLUE, rwidth=0.9)
    axes.set(xlim=(0, 100), xlabel=measure_of(results), ylabel="classes", title=title)
    axes.locator_params(axis="y", integer=True)
    _draw_levels(axes, results, legend=False)


def _draw_levels(axes: "Axes", results: Mapping[str, Any], *, legend: bool = True) -> None:
    chance = results["chance"]["value"]
    for name, value, color, style in (("mean", results["headline"], "black", "-"), ("chance", chance, ORANGE, "--")):
        if value is not None:
            label = f"{name} {100 * value:.1f} %"
            axes.axvline(100 * value, linewidth=1.2, color=color, linestyle=style, label=label)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(**_LEGEND)


def _draw_choice(axes: "Axes", results: Mapping[str, Any], fonts: Fonts) -> None:
    grid, lines = results["runs"][0]["grid"], cost_curves(results)
    if not lines:
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"C = {grid[0]:g} was given, not chosen.", ha="center", transform=axes.transAxes)
        return
    for line in lines:
        grey = line.style == "grey"
        look: dict[str, Any] = {"color": GREY if grey else f"C{line.style[1]}", "linewidth": 0.7 if grey else 1.6}
        look |= {"linestyle": "none", "marker": "o", "markersize": 3.5} if line.marks else {"zorder": 1 if grey else 2}
        axes.plot(line.x, line.y, label=_clear(line.name, fonts) if line.name else None, **look)
    axes.set_xscale("log")
    step = -(-len(grid) // 7)
    axes.set_xticks(grid[::step], [f"{value:.4g}" for value in grid[::step]])
    axes.minorticks_off()
    axes.set(xlabel="C", ylabel=f"{measure_of(results)} on held-out rows")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**_LEGEND)


def _clear(name: str, fonts: Fonts, longest: int = LONGEST_NAME) -> str:
    text = fonts.shown(printable(name))
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
