"""Images of one subject as people take them for a catalogue or an album: for training nets whose features travel.

What a net learns from images that are all made in one way serves that way alone. So grounds are white, plain,
rough as clouds or stone, or patterned; objects are flat or rounded, clean or grained, with a shadow or without; colours
are dull or vivid; and the subject lies mostly near the middle, as photographers have it.

H, W = sides of the image in pixels; h, w = sides of a patch of it.
"""

import numpy as np
from numpy.random import Generator
from PIL import Image

from vggfeat.synthetic.drawing import (
    Canvas,
    Patch,
    Pixels,
    add_clutter,
    background,
    place,
    slope,
)
from vggfeat.synthetic.families import PATTERNS, Family
from vggfeat.synthetic.materials import Material, blurred, colour, draw_material, noise, paint, paint_material, soft
from vggfeat.synthetic.outlines import OUTLINES
from vggfeat.synthetic.scenes import Note, Scene, Shapes, annotate, find_spot, shape_of

_SIZES = 0.26, 0.5
"""Reach of an object, as a share of the smaller side of the image."""


def everyday(
    rng: Generator, *, side: int, name: str, family: Family, material: Material | None, shapes: Shapes
) -> Scene:
    """Show one, two or three objects of a family on a ground of any kind.

    Parameters
    ----------
    rng : Generator
        Source of everything random.
    side : int
        Longer side of most images, in pixels.
    name : str
        Class that the annotation gives.
    family : Family
        Outline and pattern.
    material : Material or None
        Usual colour and finish of the class; None for every kind.
    shapes : Shapes
        Of the image.
    """
    canvas = Canvas(_ground(rng, *shape_of(rng, shapes, side)))
    add_clutter(canvas, rng, int(rng.choice((0, 1, 5, 14), p=(0.35, 0.15, 0.25, 0.25))))
    count = int(rng.choice((1, 2, 3), p=(0.75, 0.2, 0.05)))
    for _ in range(count):
        reach = canvas.side * rng.uniform(*_SIZES) / (1 + 0.3 * (count - 1))
        alone = count == 1 and rng.random() < 0.7
        centre = _near_middle(rng, canvas) if alone else find_spot(canvas, rng, reach, margin=0.85)
        _add_object(canvas, rng, family, material, centre, reach)
    return annotate(canvas, rng, [Note(name)] * count, _photograph)


def _near_middle(rng: Generator, canvas: Canvas) -> tuple[float, float]:
    height, width = canvas.owner.shape
    x, y = rng.normal(0, 0.07, 2) * canvas.side
    return width / 2 + float(x), height / 2 + float(y)


def _ground(rng: Generator, width: int, height: int) -> Pixels:
    """(H, W, 3) ground of one kind out of four."""
    kinds = (_plain, _rough, _patterned, background)
    return kinds[int(rng.choice(4, p=(0.3, 0.35, 0.15, 0.2)))](rng, width, height)


def _plain(rng: Generator, width: int, height: int) -> Pixels:
    """Paint (H, W, 3) in white, or in one colour with a slope of light."""
    if rng.random() < 0.55:
        white = np.float32(255 - rng.uniform(0, 12))
        return np.full((height, width, 3), white, dtype=np.float32)
    light = 1 + slope(rng, width, height) * np.float32(rng.uniform(0, 0.35) * rng.integers(0, 2))
    return colour(rng) * light[..., None]


def _rough(rng: Generator, width: int, height: int) -> Pixels:
    """Paint (H, W, 3) as clouds, walls and meadows are: much at large scale, less at small, more bright than hue."""
    fall = rng.uniform(0.2, 1.3)
    pixels = colour(rng) + (noise(rng, width, height, fall) * np.float32(rng.uniform(8, 55)))[..., None]
    for _ in range(2):
        axis = rng.uniform(-1, 1, 3)
        hue = (axis - axis.mean()).astype(np.float32)
        pixels = pixels + (noise(rng, width, height, fall + 0.4) * np.float32(rng.uniform(0, 35)))[..., None] * hue
    return pixels


def _patterned(rng: Generator, width: int, height: int) -> Pixels:
    """Paint (H, W, 3) with a pattern, which then tells nothing of the class."""
    pattern = list(PATTERNS.values())[int(rng.integers(len(PATTERNS)))]
    angle, scale = rng.uniform(0, np.pi), rng.uniform(1, 5) / min(width, height)
    x = np.arange(width, dtype=np.float32)[None, :] * np.float32(scale)
    y = np.arange(height, dtype=np.float32)[:, None] * np.float32(scale)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    mix = pattern(cos * x - sin * y, sin * x + cos * y, float(rng.uniform(1, 4)))
    first, second = colour(rng), colour(rng)
    pixels = first + mix[..., None] * (second - first) * np.float32(rng.uniform(0.15, 0.8))
    return pixels + (noise(rng, width, height, 0.7) * np.float32(rng.uniform(0, 20)))[..., None]


def _add_object(
    canvas: Canvas, rng: Generator, family: Family, usual: Material | None, centre: tuple[float, float], reach: float
) -> None:
    chosen = None if usual is None else draw_material(rng, usual)
    drawn = chosen is not None and chosen.finish == "drawn"
    most_border = 0.14 if drawn else 0.0 if rng.random() < 0.35 else 0.1
    patch = place(rng, OUTLINES[family.outline], centre, reach, most_border)
    colours = paint(rng, family, patch, reach) if chosen is None else paint_material(rng, family, patch, reach, chosen)
    ink = colour(rng) * np.float32(0.25 if drawn else 0.4)
    colours += (ink - colours) * patch.edge[..., None]
    if rng.random() < 0.3:
        _cast_shadow(canvas, rng, patch, reach)
    canvas.add(patch.left, patch.top, colours, patch.cover, patch.cover >= 0.5)


def _cast_shadow(canvas: Canvas, rng: Generator, patch: Patch, reach: float) -> None:
    around = max(int(0.25 * reach), 2)
    dark = blurred(np.pad(patch.cover, around), rng.uniform(0.02, 0.12) * reach) * np.float32(rng.uniform(0.2, 0.6))
    x, y = (int(v) for v in rng.uniform(-0.2, 0.2, 2) * reach)
    black = np.zeros((*dark.shape, 3), dtype=np.float32)
    canvas.litter(patch.left - around + x, patch.top - around + y, black, dark)


def _photograph(canvas: Canvas, rng: Generator) -> Image.Image:
    """Light, blur and grain, each by chance; an RGB image."""
    height, width = canvas.owner.shape
    pixels = canvas.pixels
    if rng.random() < 0.6:
        light = slope(rng, width, height) * np.float32(rng.uniform(0, 0.35)) + np.float32(rng.uniform(0.8, 1.1))
        pixels = pixels * light[..., None]
    if rng.random() < 0.5:
        pixels = pixels + rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(0, 9))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    blur = rng.uniform(0, 0.0025 if rng.random() < 0.6 else 0.009) * canvas.side
    return soft(image, blur) if blur > 0.3 else image
