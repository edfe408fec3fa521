"""What a rendered object is: an outline and a surface pattern. Colour is no part of it; see `everyday` for that.

A class is one `Family`, that is one outline with one pattern; every object of the class is then turned, scaled,
stretched and coloured at random. h, w = sides of a patch in pixels; x, y = the object's own frame: x to the right, y
down, all outlines inside the unit circle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]
"""(h, w) float32 values on the pixels of a patch."""
Points = NDArray[np.floating[Any]]
"""(P, 2) corners of a closed outline, x and y."""

COARSE, FINE = 2.2, 3.8


@dataclass(frozen=True)
class Family:
    """One class of objects.

    `outline`: a key of `OUTLINES`.
    `pattern`: a key of `PATTERNS`.
    `frequency`: repeats of the pattern over the unit length.
    """

    outline: str
    pattern: str
    frequency: float

    @property
    def title(self) -> str:
        """Words for lists of classes, for instance "fine brick heart"."""
        grain = "fine " if self.frequency > COARSE else ""
        return f"{grain}{self.pattern} {self.outline}"


def _polygon(corners: int) -> Points:
    angles = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _polar(radius: Callable[[Points], Points]) -> Points:
    """Outline by its distance from the centre; the angle 0 points up and grows clockwise."""
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    return radius(angles)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _star(rays: int, inner: float) -> Points:
    corners = _polygon(2 * rays)
    corners[1::2] *= inner
    return corners


def _gear(teeth: int, depth: float) -> Points:
    return _polar(lambda angle: 1 - depth * (np.sin(teeth * angle) > 0))


def _petals(count: int, depth: float) -> Points:
    return _polar(lambda angle: 1 - depth * (1 - np.abs(np.cos(count * angle / 2))))


def _arc(start: float, stop: float, radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> Points:
    angles = np.radians(np.linspace(start, stop, 60))
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def _corners(*values: float) -> Points:
    """Corners from x, y, x, y ... in hundredths."""
    return np.array(values, dtype=np.float64).reshape(-1, 2) / 100


def _both_sides(*values: float) -> Points:
    """Corners of the right half from top to bottom, in hundredths, and their mirror images."""
    right = _corners(*values)
    return np.concatenate([right, right[::-1] * [-1, 1]])


def _joined(*parts: Points) -> Points:
    return np.concatenate(parts)


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -y / 16], axis=1)


def _fitted(*rings: Points) -> tuple[Points, ...]:
    """Scale an outline, and its holes with it, so that it touches the unit circle."""
    reach = np.hypot(rings[0][:, 0], rings[0][:, 1]).max()
    return tuple(ring / reach for ring in rings)


# fmt: off
OUTLINES: dict[str, tuple[Points, ...]] = {
    "star": _fitted(_star(5, 0.42)),
    "disc": _fitted(_polygon(90)),
    "cross": _fitted(_both_sides(33, -100, 33, -33, 100, -33, 100, 33, 33, 33, 33, 100)),
    "heart": _fitted(_heart()),
    "triangle": _fitted(_polygon(3)),
    "crescent": _fitted(_polygon(90), _arc(0, 360, 0.8, x=0.5)),
    "gear": _fitted(_gear(8, 0.24)),
    "arrow": _fitted(_both_sides(0, -100, 80, -10, 30, -10, 30, 100)),
    "ring": _fitted(_polygon(90), 0.58 * _polygon(90)),
    "letter T": _fitted(_both_sides(90, -90, 90, -40, 28, -40, 28, 95)),
    "oval": _fitted(_polygon(90) * [1.0, 0.48]),
    "square": _fitted(_both_sides(80, -80, 80, 80)),
    "flower": _fitted(_petals(5, 0.5)),
    "bow": _fitted(_both_sides(0, -16, 100, -70, 100, 70, 0, 16)),
    "letter E": _fitted(_corners(-70, -95, 70, -95, 70, -55, -20, -55, -20, -20, 55, -20,
                                 55, 20, -20, 20, -20, 55, 70, 55, 70, 95, -70, 95)),
    "drop": _fitted(_joined(_corners(0, -100), _arc(-25, 205, 0.6, y=0.38))),
    "mushroom": _fitted(_joined(_arc(180, 360, 0.95), _corners(30, 0, 30, 90, -30, 90, -30, 0))),
    "fish": _fitted(_joined(_arc(25, 335, 0.62, x=-0.3) * [1, 0.8], _corners(95, -55, 75, 0, 95, 55))),
    "letter U": _fitted(_joined(_corners(80, -90), _arc(0, 180, 0.8, y=0.15), _corners(-80, -90, -36, -90),
                                _arc(180, 0, 0.36, y=0.15), _corners(36, -90))),
    "bolt": _fitted(_corners(25, -100, -65, 15, -10, 15, -35, 100, 65, -25, 10, -25, 55, -100)),
    "frame": _fitted(_both_sides(85, -85, 85, 85), _both_sides(45, -45, 45, 45)),
    "sun": _fitted(_star(12, 0.68)),
    "house": _fitted(_both_sides(0, -100, 90, -15, 65, -15, 65, 90)),
    "letter H": _fitted(_both_sides(35, -22, 35, -90, 80, -90, 80, 90, 35, 90, 35, 22)),
    "half moon": _fitted(_arc(180, 360, 1.0, y=0.4)),
    "kite": _fitted(_both_sides(0, -100, 55, -25, 0, 100)),
    "clover": _fitted(_petals(3, 0.68)),
    "letter L": _fitted(_corners(-65, -95, -15, -95, -15, 45, 75, 45, 75, 95, -65, 95)),
    "sector": _fitted(_joined(_arc(35, 325), _corners(0, 0))),
    "letter A": _fitted(_both_sides(25, -95, 90, 95, 50, 95, 35, 45), _both_sides(0, -55, 25, 15)),
    "cog": _fitted(_gear(14, 0.34)),
    "lens": _fitted(_joined(_arc(217, 323, 1.25, y=0.75), _arc(37, 143, 1.25, y=-0.75))),
    "chevron": _fitted(_both_sides(0, -75, 95, 10, 95, 75, 0, -10)),
    "letter Z": _fitted(_corners(-80, -90, 80, -90, 80, -45, -15, 45, 80, 45, 80, 90, -80, 90,
                                 -80, 45, 15, -45, -80, -45)),
    "key": _fitted(_joined(_arc(20, 340, 0.42, x=-0.55),
                           _corners(100, -14, 100, 45, 75, 45, 75, 14, 50, 14, 50, 35, 30, 35, 30, 14))),
    "fir": _fitted(_both_sides(0, -100, 50, -40, 25, -40, 70, 15, 35, 15, 85, 75)),
}
# fmt: on
"""Name -> outer outline, then holes."""


def _soft(wave: Plane, sharpness: float = 4.0) -> Plane:
    """Turn a wave around 0 into a pattern in [0, 1] with soft edges."""
    return np.clip(0.5 + sharpness * wave / 2, 0, 1, dtype=np.float32)


def _cycle(x: Plane) -> Plane:
    return np.sin(np.float32(2 * np.pi) * x)


def _ramp(x: Plane) -> Plane:
    """Triangle wave of period 1 between 0 and 1; it is 0 at halves and 1 at whole numbers."""
    return np.abs(x % 1 - np.float32(0.5)) * 2


def _waves(x: Plane, y: Plane, f: float) -> Plane:
    """Irregular patches: a sum of waves whose directions and lengths don't fit together."""
    waves = [(1.0, 0.3, 0.1), (-0.45, 0.93, 0.7), (0.62, -0.71, 0.4), (1.31, 0.64, 0.2), (-0.2, -1.37, 0.9)]
    total = np.zeros_like(x)
    for a, b, c in waves:
        total = total + _cycle(x * (f * a) + y * (f * b) + c)
    return _soft(total, 3)


def _bricks(x: Plane, y: Plane, f: float) -> Plane:
    row = np.floor(y * f)
    along = _ramp(x * (f / 2) + 0.5 * (row % 2) + 0.5)
    return _soft(np.minimum(along * 2, _ramp(y * f + 0.5)) - 0.28, 8)


def _scales(x: Plane, y: Plane, f: float) -> Plane:
    row = np.floor(y * (1.5 * f))
    across = (x * f + 0.5 * (row % 2)) % 1 - 0.5
    return _soft(0.62 - np.hypot(across * 1.2, y * (1.5 * f) - row), 9)


PATTERNS: dict[str, Callable[[Plane, Plane, float], Plane]] = {
    "striped": lambda x, y, f: _soft(_cycle(x * f)),
    "dotted": lambda x, y, f: _soft(0.3 - np.hypot(x * f % 1 - 0.5, y * f % 1 - 0.5), 18),
    "ringed": lambda x, y, f: _soft(_cycle(np.hypot(x, y) * (1.2 * f))),
    "chequered": lambda x, y, f: _soft(_cycle(x * (0.7 * f)) * _cycle(y * (0.7 * f)), 9),
    "blotched": _waves,
    "shaded": lambda x, y, f: np.clip(0.5 + 0.55 * y, 0, 1, dtype=np.float32),
    "brick": _bricks,
    "spoked": lambda x, y, f: _soft(np.sin(np.arctan2(y, x) * np.float32(round(3 * f)))),
    "zigzag": lambda x, y, f: _soft(_cycle(y * f + 0.45 * _ramp(x * (1.2 * f)))),
    "netted": lambda x, y, f: _soft(0.3 - np.minimum(_ramp((x + y) * (0.7 * f)), _ramp((x - y) * (0.7 * f))), 9),
    "spiral": lambda x, y, f: _soft(np.sin(np.hypot(x, y) * np.float32(7.5 * f) + 2 * np.arctan2(y, x))),
    "scaly": _scales,
    "speckled": lambda x, y, f: _waves(x, y, 2.6 * f),
}
"""Name -> function of x, y (each (h, w)) and the frequency; it gives (h, w) values in [0, 1]."""

COUNT = 2 * len(OUTLINES) * len(PATTERNS)
"""Number of distinct families."""


def family(index: int) -> Family:
    """Family number `index`, 0 <= index < `COUNT`.

    Neighbours differ in outline and in pattern: 36 outlines and 13 patterns have no common divisor, so walking
    through both lists at once meets each pair exactly once before the finer grain begins.
    """
    outlines, patterns = list(OUTLINES), list(PATTERNS)
    frequency = COARSE if index < COUNT // 2 else FINE
    return Family(outlines[index % len(outlines)], patterns[index % len(patterns)], frequency)
