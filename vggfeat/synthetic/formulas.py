"""Images that formulas alone make, in as many classes as are asked for: for training nets whose features travel.

A class is made by its number, and an image of it by random numbers of its own. The classes take turns at four kinds:
fractals and bodies put together from parts (`figures`), surfaces whose pattern is a random formula of the place, and
leaves that hide one another. Each class has a palette, which most of its images keep; a figure stands on a ground that
says nothing of it. Others have found fractals (Kataoka 2020), leaves (Baradad 2021, "Learning to see by looking at
noise") and formulas (Baradad 2022, "Procedural image programs") of use.

H, W = sides of the image in pixels, here equal; K = colours of a palette. Colours are float32 RGB, 0 to 255.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from vggfeat.synthetic import Settings
from vggfeat.synthetic.drawing import Pixels, cloud, generator, grained, lit, to_image
from vggfeat.synthetic.everyday import any_colour, blurred, ground, noise, softened
from vggfeat.synthetic.families import Plane
from vggfeat.synthetic.figures import Body, System, blob, body_patch, figure, random_body, random_system, varied
from vggfeat.synthetic.scenes import Form, Job, Render, Scene

_UNITS = 6
"""Waves that a formula sums, and bends of the sums."""
_OVERSAMPLING = 2
_MOST_LEAVES, _OUTLINES = 500, 12
"""Leaves of an image, and different ones among them"""
_LEVELS = 256
"""Colours between those of a palette"""
_BENDS: Sequence[Callable[[Plane], Plane]] = (
    np.sin,
    np.tanh,
    lambda v: np.exp(-v * v),
    lambda v: np.clip(4 * np.sin(v), -1, 1),
    lambda v: np.abs(v % 2 - 1) * 2 - 1,
    np.cos,
)


class Formula(NamedTuple):
    """A pattern: waves over the plane, bent, summed and bent again."""

    waves: Pixels
    """(units, 4) factors of x, y and radius, and a phase"""
    sums: Pixels
    """(units, units)"""
    bends: tuple[int, ...]
    """2 x units numbers of `_BENDS`"""
    warp: float
    """How far clouds displace the place"""


class Leaves(NamedTuple):
    """What leaves have in common."""

    corners: int
    """Corners of a polygon; 0 for a blob."""
    smallest: float
    """Reach, as a share of the image's side"""
    largest: float
    slender: float
    """Smaller to larger side"""
    edged: bool
    spread: float
    """Spread of the brightness, in grey levels"""


class Look(NamedTuple):
    """A class: what its images show, and in which colours."""

    name: str
    kind: str
    content: System | Formula | Leaves | Body
    palette: Pixels
    """(K, 3)"""
    free: bool
    """Whether it comes turned by any angle."""


def look(number: int) -> Look:
    """Class `number`, from 0; it depends on nothing else."""
    kind = list(KINDS)[number % len(KINDS)]
    rng = generator(0, "formula", str(number))
    palette = np.stack([any_colour(rng) for _ in range(int(rng.integers(3, 6)))])
    content = KINDS[kind].choose(rng)
    return Look(f"{kind}-{number:04d}", kind, content, palette, bool(rng.random() < 0.4))


def write_formulas(root: Path, settings: Settings, render: Render) -> None:
    """Write `train` and `val`, in each a folder for every class; the images of `val` are dealt out to the classes."""
    looks = [look(number) for number in range(settings.classes)]
    jobs = []
    for row, one in enumerate(looks):
        val = len(range(row, settings.val, len(looks)))
        for part, count in (("train", settings.train), ("val", val)):
            for k in range(count):
                image = f"{part}/{one.name}/{k + 1:04d}"
                draw = partial(formula_image, one, settings.image_side)
                jobs.append(Job(path=root / f"{image}.jpg", image=image, draw=draw, form=Form.JPEG))
    render(jobs)


def formula_image(look: Look, side: int, rng: Generator) -> Scene:
    """Draw an image of a class, `side` pixels high and wide; nothing in it is annotated."""
    angle = rng.uniform(-np.pi, np.pi) if look.free else rng.normal(0, 0.35)
    palette = _worn(rng, look.palette)
    pixels = KINDS[look.kind].draw(look.content, rng, palette, side, angle)
    if rng.random() < 0.4:
        pixels = lit(rng, pixels)
    if rng.random() < 0.4:
        pixels = grained(rng, pixels)
    image = to_image(pixels)
    blur = rng.uniform(0, 0.006) * side
    if rng.random() < 0.3 and blur > 0.3:
        image = softened(image, blur)
    return Scene(image, (), np.zeros((side, side), dtype=np.uint8))


def _worn(rng: Generator, palette: Pixels) -> Pixels:
    """(K, 3) colours of one image: those of its class, a little off, or by chance any."""
    if rng.random() < 0.35:
        palette = np.stack([any_colour(rng) for _ in palette])
    off = rng.normal(0, 10, 3) + rng.normal(0, 8, palette.shape)
    return np.clip(palette * rng.uniform(0.8, 1.15) + off, 0, 255).astype(np.float32)


def _painted(palette: Pixels, mix: Plane) -> Pixels:
    """(H, W, 3) colours between those of a palette, by a plane of 0 to 1."""
    steps, levels = np.linspace(0, _LEVELS - 1, len(palette)), np.arange(_LEVELS)
    table = np.stack([np.interp(levels, steps, channel) for channel in palette.T], axis=1).astype(np.float32)
    return table[(mix * (_LEVELS - 1)).astype(np.uint8)]


def any_ground(rng: Generator, side: int) -> Pixels:
    """(H, W, 3) ground that says nothing of the class; by chance a formula of its own. It is not quite in focus."""
    half = side // 2
    if rng.random() < 0.75:
        pixels = ground(rng, half, half)
    else:
        palette = np.stack([any_colour(rng) for _ in range(3)])
        pixels = _draw_surface(random_formula(rng), rng, palette, half, rng.uniform(-np.pi, np.pi))
    return np.asarray(to_image(pixels).resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32).copy()


def _draw_fractal(system: System, rng: Generator, palette: Pixels, side: int, angle: float) -> Pixels:
    pixels = any_ground(rng, side)
    reach = int(side * rng.uniform(0.55, 1))
    cover, hue = figure(varied(system, rng, 0.04), rng, reach, reach, angle)
    if rng.random() < 0.5:
        cover = blurred(cover, rng.uniform(0.3, 1))
    cover = cover[..., None] ** np.float32(rng.uniform(0.5, 1))
    top, left = (int(v) for v in rng.uniform(0, side - reach + 1, 2))
    under = pixels[top : top + reach, left : left + reach]
    under += cover * (_painted(palette, hue) - under)
    return pixels


def random_formula(rng: Generator) -> Formula:
    """Choose a pattern, coarse or fine."""
    pace = np.exp(rng.uniform(0.3, 2.6))
    waves = rng.normal(0, 1, (_UNITS, 4)) * [pace, pace, pace * rng.integers(0, 2), 3]
    waves[:, :3] *= np.exp(rng.normal(0, 0.5, (_UNITS, 1)))
    bends = tuple(int(k) for k in rng.integers(len(_BENDS), size=2 * _UNITS))
    warp = float(rng.uniform(0, 0.3) * rng.integers(0, 2))
    return Formula(waves, rng.normal(0, 1.2, (_UNITS, _UNITS)), bends, warp)


def _draw_surface(formula: Formula, rng: Generator, palette: Pixels, side: int, angle: float) -> Pixels:
    zoom, cos, sin = np.exp(rng.uniform(-0.45, 0.45)), np.cos(angle), np.sin(angle)
    line = np.linspace(-zoom, zoom, side, dtype=np.float32)
    across, down = (line + np.float32(v) for v in rng.normal(0, 0.3, 2))
    x = (cos * across[None, :] - sin * down[:, None]).astype(np.float32)
    y = (sin * across[None, :] + cos * down[:, None]).astype(np.float32)
    if formula.warp:
        x, y = (v + cloud(rng, side, side, 6) * np.float32(formula.warp) for v in (x, y))
    radius = np.hypot(x, y)
    changed = (formula.waves * (1 + rng.normal(0, 0.04, formula.waves.shape))).astype(np.float32)
    first = [
        _BENDS[bend](a * x + b * y + c * radius + d) for bend, (a, b, c, d) in zip(formula.bends, changed, strict=False)
    ]
    second = [
        _BENDS[bend](sum(w * plane for w, plane in zip(row.astype(np.float32), first, strict=True)))
        for bend, row in zip(formula.bends[_UNITS:], formula.sums, strict=True)
    ]
    mix = 0.5 + 0.5 * np.sin(sum(second[1:4], second[0]))
    light = 1 + np.float32(rng.uniform(0, 0.25)) * second[4]
    return _painted(palette, mix) * light[..., None]


def random_leaves(rng: Generator) -> Leaves:
    """Choose form and sizes of leaves."""
    smallest = np.exp(rng.uniform(np.log(0.01), np.log(0.08)))
    return Leaves(
        corners=int(rng.choice((0, 0, 2, 3, 4, 5, 24))),
        smallest=float(smallest),
        largest=float(smallest * np.exp(rng.uniform(0.3, 2))),
        slender=float(rng.uniform(0.3, 1)),
        edged=bool(rng.random() < 0.4),
        spread=float(rng.uniform(0, 35)),
    )


def _draw_leaves(leaves: Leaves, rng: Generator, palette: Pixels, side: int, angle: float) -> Pixels:
    """Let leaves fall until they cover the image twice, or so."""
    whole = side * _OVERSAMPLING
    image = Image.new("RGB", (whole, whole), tuple(int(v) for v in palette[0]))
    pen = ImageDraw.Draw(image)
    zoom = np.exp(rng.normal(0, 0.25))
    shares = rng.uniform(0, 1, _MOST_LEAVES)
    reaches = zoom * leaves.largest / (1 + shares * (leaves.largest / leaves.smallest - 1))  # small ones are frequent
    count = min(int(np.searchsorted(np.cumsum(3 * leaves.slender * reaches**2), 2)) + 1, _MOST_LEAVES)
    corners = _fallen(leaves, rng, reaches[:count] * whole, angle) + rng.uniform(0, whole, (count, 1, 2))
    chosen = palette[rng.integers(len(palette), size=count)] + rng.normal(0, leaves.spread, (count, 1))
    fills = np.clip(chosen, 0, 255).astype(int)
    for points, fill, edge in zip(corners.tolist(), fills.tolist(), (fills // 3).tolist(), strict=True):
        pen.polygon([(x, y) for x, y in points], fill=tuple(fill), outline=tuple(edge) if leaves.edged else None)
    pixels = np.asarray(image.reduce(_OVERSAMPLING), dtype=np.float32)
    grain = noise(rng, side, side, rng.uniform(0.2, 1)) * np.float32(rng.uniform(0, 0.15))
    return pixels * (1 + grain)[..., None]


def _fallen(leaves: Leaves, rng: Generator, reaches: Pixels, angle: float) -> Pixels:
    """(leaves, P, 2) corners of turned leaves of such sizes, around the origin."""
    count = len(reaches)
    outlines = np.stack([_leaf(leaves, rng) for _ in range(_OUTLINES)]) * [1, leaves.slender]
    turned = angle + rng.normal(0, 0.5 if leaves.slender < 0.6 else 3, count)
    cos, sin = np.cos(turned)[:, None], np.sin(turned)[:, None]
    x, y = outlines[rng.integers(_OUTLINES, size=count)].transpose(2, 0, 1) * reaches[:, None]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=2)


def _leaf(leaves: Leaves, rng: Generator) -> Pixels:
    """(P, 2) outline in the unit circle."""
    if not leaves.corners:
        return blob(rng, 3, 0.25)[::2]
    if leaves.corners == 2:  # a stripe
        return np.array([[-1.0, -0.15], [1, -0.15], [1, 0.15], [-1, 0.15]])
    angles = 2 * np.pi * np.arange(leaves.corners) / leaves.corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _draw_body(body: Body, rng: Generator, palette: Pixels, side: int, angle: float) -> Pixels:
    pixels = any_ground(rng, side)
    reach = side * rng.uniform(0.3, 0.52)
    colours, cover = body_patch(body, rng, palette, reach, angle)  # (h, w, 3), (h, w)
    height, width = cover.shape
    middle = rng.normal(side / 2, 0.06 * side, 2)
    top, left = (int(m - size / 2) for m, size in zip(middle, (height, width), strict=True))
    rows, columns = slice(max(top, 0), min(top + height, side)), slice(max(left, 0), min(left + width, side))
    seen = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    under = pixels[rows, columns]
    under += cover[seen][..., None] * (colours[seen] - under)
    return pixels


class Kind(NamedTuple):
    """A way to make images."""

    choose: Callable[[Generator], Any]
    """Makes what is common to a class."""
    draw: Callable[[Any, Generator, Pixels, int, float], Pixels]
    """Makes (H, W, 3) pixels of that, from random numbers, a palette, the image's side, and an angle."""


KINDS = {
    "fractal": Kind(random_system, _draw_fractal),
    "surface": Kind(random_formula, _draw_surface),
    "leaves": Kind(random_leaves, _draw_leaves),
    "body": Kind(random_body, _draw_body),
}
"""In the order in which the classes take turns."""
