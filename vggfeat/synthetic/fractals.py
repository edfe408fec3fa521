"""Fractals of iterated function systems: a few affine maps, followed at random, leave a figure that they alone define.

M = maps of a system, P = points that walk at once, H, W = sides of the image in pixels. Nets that learnt to tell such
figures apart have come near to those that saw photographs (Kataoka and others, "Pre-training without natural images",
2020); the choice of the maps by their singular values, which keeps figures from falling into a dot or from spreading
into a cloud, is that of Anderson and Farrell ("Improving fractal pre-training", 2022).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from vggfeat.synthetic.families import Plane

Numbers = NDArray[np.floating[Any]]
_WALKERS, _STEPS, _FORGOTTEN = 1600, 60, 12
"""Points, steps of each, and first steps that are left out, as they depend on where a point began."""


class System(NamedTuple):
    """An iterated function system."""

    linear: Numbers
    """(M, 2, 2) float32"""
    shift: Numbers
    """(M, 2) float32"""
    bend: float
    """0 for affine maps; up to 1 for maps that are bent by a sine, as in fractal flames."""


def random_system(rng: Generator) -> System:
    """Choose 2 to 6 maps, whose singular values add up to what makes figures of lines and leaves."""
    count = int(rng.integers(2, 7))
    target = rng.uniform(5 + count, 6 + count) / 2
    while True:
        values = np.sort(rng.uniform(0, 1, (count, 2)), axis=1)[:, ::-1]  # (M, 2) the larger first
        values = values * target / (values[:, 0] + 2 * values[:, 1]).sum()
        if values.max() < 0.97:
            break
    mirrored = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    scaled = values[:, :, None] * _turns(rng.uniform(0, 2 * np.pi, count))  # (M, 2, 2)
    scaled[:, :, 1] *= mirrored[:, None]
    linear = _turns(rng.uniform(0, 2 * np.pi, count)) @ scaled
    bend = float(rng.uniform(0.3, 1)) if rng.random() < 0.4 else 0.0
    return System(linear.astype(np.float32), rng.uniform(-1, 1, (count, 2)).astype(np.float32), bend)


def varied(system: System, rng: Generator, amount: float) -> System:
    """Change every number of a system a little: the figure of the same class, in another state."""
    linear = system.linear * (1 + amount * rng.standard_normal(system.linear.shape)).astype(np.float32)
    shift = system.shift + (amount * rng.standard_normal(system.shift.shape)).astype(np.float32)
    return system._replace(linear=linear, shift=shift)


def figure(system: System, rng: Generator, height: int, width: int, angle: float) -> tuple[Plane, Plane]:
    """Draw a system into an image, turned by `angle`, as large as fits.

    Returns
    -------
    cover : (H, W) float32
        How often points came by, 0 to 1, by its logarithm.
    hue : (H, W) float32
        Which maps led there, 0 to 1: neighbours in the figure have neighbouring values.
    """
    points, hues = _walk(system, rng)  # (steps x P, 2), (steps x P,)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    points = points @ np.array([[cos, sin], [-sin, cos]], dtype=np.float32)
    low, high = np.percentile(points[::7], (0.5, 99.5), axis=0)
    scale = 0.94 * min(width / max(high[0] - low[0], 1e-6), height / max(high[1] - low[1], 1e-6))
    places = (points - (low + high) / 2) * scale + np.array([width / 2, height / 2])
    inside = ((places >= 0) & (places < (width, height))).all(axis=1)
    columns, rows = places[inside].astype(np.int64).T
    at = rows * width + columns
    visits = np.bincount(at, minlength=height * width).astype(np.float32).reshape(height, width)
    hue = np.bincount(at, weights=hues[inside], minlength=height * width).reshape(height, width)
    cover = np.log1p(visits)
    full = np.percentile(cover[visits > 0], 80) if at.size else 1.0
    return np.clip(cover / np.float32(max(full, 0.7)), 0, 1), (hue / np.maximum(visits, 1)).astype(np.float32)


def _walk(system: System, rng: Generator) -> tuple[Numbers, Numbers]:
    """Follow P points; where one leaves for infinity, it starts again."""
    count = len(system.linear)
    weights = np.abs(np.linalg.det(system.linear.astype(np.float64))) + 0.02
    chosen = rng.choice(count, (_STEPS, _WALKERS), p=weights / weights.sum())
    points = rng.uniform(-1, 1, (_WALKERS, 2)).astype(np.float32)
    hue = np.full(_WALKERS, 0.5, dtype=np.float32)
    own = np.linspace(0, 1, count, dtype=np.float32)
    (a, b), (c, d) = system.linear.transpose(1, 2, 0)  # (M,) each
    seen, hues = [], []
    for step, maps in enumerate(chosen):
        x, y = points.T
        moved = np.stack([a[maps] * x + b[maps] * y, c[maps] * x + d[maps] * y], axis=1) + system.shift[maps]
        if system.bend:
            moved = moved + np.float32(system.bend) * (np.sin(2 * moved) - moved)
        points = np.where(np.abs(moved) < 1e3, moved, np.float32(0))
        hue = (hue + own[maps]) / 2
        if step >= _FORGOTTEN:
            seen.append(points)
            hues.append(hue)
    return np.concatenate(seen), np.concatenate(hues)


def _turns(angles: Numbers) -> Numbers:
    """(M, 2, 2) turns by angles (M,)."""
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([cos, -sin, sin, cos], axis=1).reshape(-1, 2, 2)
