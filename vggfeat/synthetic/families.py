"""What a rendered object is: an outline and a surface pattern. Colour is no part of it; see `materials` for that.

A class is one `Family`, that is one outline with one pattern; every object of the class is then turned, scaled,
stretched and coloured at random. h, w = sides of a patch in pixels; x, y = the object's own frame, [-1, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.synthetic.outlines import OUTLINES

Plane = NDArray[np.floating[Any]]
"""(h, w) float32 values on the pixels of a patch."""

COARSE, FINE = 2.2, 3.8


@dataclass(frozen=True)
class Family:
    """One class of objects.

    Parameters
    ----------
    outline : str
        A key of `OUTLINES`.
    pattern : str
        A key of `PATTERNS`.
    frequency : float
        Repeats of the pattern over the unit length.
    """

    outline: str
    pattern: str
    frequency: float

    @property
    def title(self) -> str:
        """Words for lists of classes, for instance "fine brick heart"."""
        grain = "fine " if self.frequency > COARSE else ""
        return f"{grain}{self.pattern} {self.outline}"


def _soft(wave: Plane, sharpness: float = 4.0) -> Plane:
    """Turn a wave around 0 into a pattern in [0, 1] with soft edges."""
    return np.clip(0.5 + sharpness * wave / 2, 0, 1, dtype=np.float32)


def _cycle(x: Plane) -> Plane:
    return np.sin(np.float32(2 * np.pi) * x)


def _ramp(x: Plane) -> Plane:
    """Triangle wave of period 1 between 0 and 1; it is 0 at halves and 1 at whole numbers."""
    return np.abs(x % 1 - np.float32(0.5)) * 2


def _stripes(x: Plane, y: Plane, f: float) -> Plane:
    return _soft(_cycle(x * f))


def _dots(x: Plane, y: Plane, f: float) -> Plane:
    return _soft(0.3 - np.hypot(x * f % 1 - 0.5, y * f % 1 - 0.5), 18)


def _rings(x: Plane, y: Plane, f: float) -> Plane:
    return _soft(_cycle(np.hypot(x, y) * (1.2 * f)))


def _checks(x: Plane, y: Plane, f: float) -> Plane:
    return _soft(_cycle(x * (0.7 * f)) * _cycle(y * (0.7 * f)), 9)


def _blotches(x: Plane, y: Plane, f: float) -> Plane:
    """Irregular patches: a sum of waves whose directions and lengths don't fit together."""
    waves = [(1.0, 0.3, 0.1), (-0.45, 0.93, 0.7), (0.62, -0.71, 0.4), (1.31, 0.64, 0.2), (-0.2, -1.37, 0.9)]
    total = np.zeros_like(x)
    for a, b, c in waves:
        total = total + _cycle(x * (f * a) + y * (f * b) + c)
    return _soft(total, 3)


def _shade(x: Plane, y: Plane, f: float) -> Plane:
    return np.clip(0.5 + 0.55 * y, 0, 1, dtype=np.float32)


def _bricks(x: Plane, y: Plane, f: float) -> Plane:
    row = np.floor(y * f)
    along = _ramp(x * (f / 2) + 0.5 * (row % 2) + 0.5)
    return _soft(np.minimum(along * 2, _ramp(y * f + 0.5)) - 0.28, 8)


def _spokes(x: Plane, y: Plane, f: float) -> Plane:
    return _soft(np.sin(np.arctan2(y, x) * np.float32(round(3 * f))))


def _zigzag(x: Plane, y: Plane, f: float) -> Plane:
    return _soft(_cycle(y * f + 0.45 * _ramp(x * (1.2 * f))))


def _net(x: Plane, y: Plane, f: float) -> Plane:
    return _soft(0.3 - np.minimum(_ramp((x + y) * (0.7 * f)), _ramp((x - y) * (0.7 * f))), 9)


def _spiral(x: Plane, y: Plane, f: float) -> Plane:
    return _soft(np.sin(np.hypot(x, y) * np.float32(7.5 * f) + 2 * np.arctan2(y, x)))


def _scales(x: Plane, y: Plane, f: float) -> Plane:
    row = np.floor(y * (1.5 * f))
    across = (x * f + 0.5 * (row % 2)) % 1 - 0.5
    return _soft(0.62 - np.hypot(across * 1.2, y * (1.5 * f) - row), 9)


def _speckles(x: Plane, y: Plane, f: float) -> Plane:
    return _blotches(x, y, 2.6 * f)


PATTERNS: dict[str, Callable[[Plane, Plane, float], Plane]] = {
    "striped": _stripes,
    "dotted": _dots,
    "ringed": _rings,
    "chequered": _checks,
    "blotched": _blotches,
    "shaded": _shade,
    "brick": _bricks,
    "spoked": _spokes,
    "zigzag": _zigzag,
    "netted": _net,
    "spiral": _spiral,
    "scaly": _scales,
    "speckled": _speckles,
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
