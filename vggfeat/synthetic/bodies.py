"""Bodies put together from parts, as beasts, tools and plants are: for classes that differ in how their parts lie.

P = corners of an outline; h, w = sides of a patch of the image in pixels. A body lies in a frame of its own, x to the
right and y down, inside the unit circle or nearly so.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vggfeat.synthetic.drawing import Pixels
from vggfeat.synthetic.everyday import blurred, noise
from vggfeat.synthetic.families import OUTLINES, PATTERNS, Plane, Points

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
    """Of the palette; taken modulo its length"""
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
