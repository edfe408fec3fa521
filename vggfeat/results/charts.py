"""Curves as a few numbers that a template draws as SVG: small, sharp, and in the colours of the page, light or dark.

An image of a plotting library would bring its fonts and its colours along, some 30 kB for every class.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

COLOURS = 6
"""Styles of lines, c0 to c5 of the style sheet; more lines begin again."""
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
    """In the legend; empty for none."""
    x: ArrayLike
    """(n,)"""
    y: ArrayLike
    """(n,); NaN breaks the curve."""
    style: str
    """c0 to c5, grey, or mean: a class of the style sheet."""
    marks: bool = False
    """Points instead of a curve."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A curve in the coordinates of its chart."""

    name: str
    style: str
    path: str
    """Of SVG; empty where there are points alone."""
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
    return Drawn(name=line.name, style=line.style, path=path, points=points)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
