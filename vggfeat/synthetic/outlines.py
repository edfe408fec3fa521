"""The outlines of rendered objects, in their own frame: x to the right, y down, all inside the unit circle."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating[Any]]
"""(P, 2) corners of a closed outline, x and y."""


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
