"""Figures of classes that formulas make: fractals, and bodies put together from parts, as beasts, tools and plants are.

Fractals are those of iterated function systems: a few affine maps, followed at random, leave a figure that they alone
define. Nets that learnt to tell such figures apart have come near to those that saw photographs (Kataoka and others,
"Pre-training without natural images", 2020); the choice of the maps by their singular values, which keeps figures from
falling into a dot or from spreading into a cloud, is that of Anderson and Farrell ("Improving fractal pre-training",
2022). A body lies in a frame of its own, x to the right and y down, inside the unit circle or nearly so.

M = maps of a system, P = points that walk at once, or corners of an outline, H, W = sides of the image in pixels,
h, w = sides of a patch of it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vggfeat.synthetic.drawing import Pixels
from vggfeat.synthetic.everyday import blurred, noise
from vggfeat.synthetic.families import OUTLINES, PATTERNS, Plane, Points

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


_OVERSAMPLING = 2
_INK = 255


class Part(NamedTuple):
    """One part of a body."""

    outline: Points
    """(P, 2) in the unit circle"""
    x: float
    y: float
    size: float
    aspect: float
    angle: float
    colour: int
    """Number of the colour in the palette; taken modulo its length"""
    pattern: str | None
    frequency: float


class Body(NamedTuple):
    """What its parts are, from back to front; a symmetric one has those on its right on its left as well."""

    parts: tuple[Part, ...]
    inked: bool
    """Drawn with lines, as cliparts are"""
    round: float
    """How much it is shaded as a body, 0 to 1"""


def blob(rng: Generator, waves: int, depth: float) -> Points:
    """(48, 2) closed curve around the origin, with a few random bulges."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones_like(angles)
    for k in range(2, 2 + waves):
        radius += depth * rng.normal() / (k - 1) * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
    return np.maximum(radius, 0.2)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def random_body(rng: Generator) -> Body:
    """Choose a trunk and 1 to 7 parts that grow from it or from one another."""
    symmetric = rng.random() < 0.5
    parts = [_part(rng, 0.0, 0.0, rng.uniform(0.35, 0.6))]
    for _ in range(int(rng.integers(1, 8))):
        parent = parts[int(rng.integers(len(parts)))]
        away = rng.uniform(-np.pi, np.pi)
        x = parent.x + parent.size * rng.uniform(0.3, 1.2) * np.cos(away)
        y = parent.y + parent.size * rng.uniform(0.3, 1.2) * np.sin(away)
        parts.append(_part(rng, float(x), float(y), parent.size * rng.uniform(0.25, 0.7)))
    if symmetric:
        parts = [twin for part in parts for twin in _twins(part)]
    order = rng.permutation(len(parts)) if not symmetric else np.arange(len(parts))
    reach = max(np.hypot(part.x, part.y) + part.size for part in parts)
    placed = (parts[k]._replace(x=parts[k].x / reach, y=parts[k].y / reach, size=parts[k].size / reach) for k in order)
    return Body(tuple(placed), bool(rng.random() < 0.5), float(rng.uniform(0, 1)))


def _part(rng: Generator, x: float, y: float, size: float) -> Part:
    kind = rng.random()
    if kind < 0.45:
        outline = blob(rng, 3, 0.2)
    elif kind < 0.65:
        outline = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) * 0.8
    else:
        outline = list(OUTLINES.values())[int(rng.integers(len(OUTLINES)))][0]
    pattern = list(PATTERNS)[int(rng.integers(len(PATTERNS)))] if rng.random() < 0.35 else None
    return Part(
        outline=outline,
        x=x,
        y=y,
        size=size,
        aspect=float(np.exp(rng.normal(0, 0.5))),
        angle=float(rng.choice((0, rng.uniform(-np.pi, np.pi)))),
        colour=int(rng.integers(6)),
        pattern=pattern,
        frequency=float(rng.uniform(1, 4)),
    )


def _twins(part: Part) -> tuple[Part, ...]:
    if abs(part.x) < 0.12:
        return (part._replace(x=0.0, angle=0.0),)
    return part, part._replace(x=-part.x, angle=-part.angle, outline=part.outline * [-1, 1])


def body_patch(body: Body, rng: Generator, palette: Pixels, reach: float, angle: float) -> tuple[Pixels, Plane]:
    """Draw a body, its parts a little off their places, turned by `angle`.

    Returns
    -------
    colours : (h, w, 3) float32
        RGB, 0 to 255.
    cover : (h, w) float32
        1 on the body, 0 beside it.
    """
    side = int(2.9 * reach) * _OVERSAMPLING
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    squeeze = np.exp(rng.normal(0, 0.12))
    cos, sin = np.cos(angle), np.sin(angle)
    frame = np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror * squeeze, 1 / squeeze]) * (reach * _OVERSAMPLING)
    owner = Image.new("L", (side, side))
    inverses: list[tuple[Points, Points]] = []
    pen = ImageDraw.Draw(owner)
    width = max(1, round(rng.uniform(0.01, 0.04) * reach * _OVERSAMPLING))
    for number, part in enumerate(body.parts, start=1):
        matrix, centre = _placed(part, rng)
        corners = part.outline @ (frame @ matrix).T + frame @ centre + side / 2
        points = [(float(x), float(y)) for x, y in corners]
        pen.polygon(points, fill=number)
        if body.inked:
            pen.line([*points, points[0]], fill=_INK, width=width)
        inverses.append((np.linalg.inv(frame @ matrix), frame @ centre + side / 2))
    left, top, right, bottom = owner.getbbox() or (0, 0, side, side)
    owner = owner.crop((left, top, right + (right - left) % 2, bottom + (bottom - top) % 2))
    inverses = [(inverse, centre - (left, top)) for inverse, centre in inverses]
    colours = _coloured(body, np.asarray(owner), inverses, rng, palette)
    cover = np.asarray(owner.point(lambda v: 255 * (v > 0)).reduce(_OVERSAMPLING), dtype=np.float32) / 255
    reduced = np.asarray(Image.fromarray(colours).reduce(_OVERSAMPLING), dtype=np.float32)
    return reduced * _light(body, rng, cover, reach)[..., None], cover


def _placed(part: Part, rng: Generator) -> tuple[Points, Points]:
    """(2, 2) size, stretch and turn of a part in the body's frame, and (2,) where its middle lies."""
    size = part.size * np.exp(rng.normal(0, 0.1))
    angle = part.angle + rng.normal(0, 0.12)
    stretch = np.sqrt(part.aspect)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([stretch, 1 / stretch]) * size
    return matrix, np.array([part.x, part.y]) + rng.normal(0, 0.04, 2)


def _coloured(
    body: Body, owner: Plane, inverses: list[tuple[Points, Points]], rng: Generator, palette: Pixels
) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 colours by the number of the part that is seen, 0 where there is none."""
    table = np.zeros((256, 3), dtype=np.uint8)
    for number, part in enumerate(body.parts, start=1):
        table[number] = palette[part.colour % len(palette)]
    table[_INK] = palette.mean(axis=0) * rng.uniform(0, 0.35)
    # What is seen through the softened edge has the body's own colour.
    table[0] = table[1] if not body.inked else table[_INK]
    colours = table[owner]
    for number, (part, (inverse, centre)) in enumerate(zip(body.parts, inverses, strict=True), start=1):
        if part.pattern is None:
            continue
        rows, columns = np.nonzero(owner == number)
        x, y = (inverse @ (np.stack([columns, rows]) - centre[:, None])).astype(np.float32)
        mix = PATTERNS[part.pattern](x, y, part.frequency * float(rng.uniform(0.85, 1.2)))[:, None]
        first, second = (palette[(part.colour + k) % len(palette)] for k in (0, 1))
        colours[rows, columns] = first + mix * (second - first)
    return colours


def _light(body: Body, rng: Generator, cover: Plane, reach: float) -> Plane:
    """(h, w) factor of the colours: a body's shades, and some grain."""
    height, width = cover.shape
    light = 1 + noise(rng, width, height, rng.uniform(0.2, 1)) * np.float32(rng.uniform(0, 0.15) * rng.integers(0, 2))
    if rng.random() < body.round:
        down, right = np.gradient(blurred(cover, 0.2 * reach))
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.6) * reach
        light = light + (right * np.cos(angle) + down * np.sin(angle)) * np.float32(strength)
    return np.maximum(light, 0.1).astype(np.float32)
