"""Images of one subject as people take them for a catalogue or an album: for training nets whose features travel.

What a net learns from images that are all made in one way serves that way alone. So grounds are white, plain,
rough as clouds or stone, or patterned; objects are flat or rounded, clean or grained, with a shadow or without; colours
are dull or vivid; and the subject lies mostly near the middle, as photographers have it.

Most classes come in every colour and finish. Others have a usual tint and a usual finish, as lemons and hedgehogs
have: a net that learns these as well keeps colour and fine grain, which matter in images that nobody rendered.

H, W = sides of the image or of a plane; h, w = sides of a patch of the image, in pixels.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from vggfeat.synthetic.drawing import (
    Canvas,
    Patch,
    Pixels,
    add_clutter,
    background,
    cloud,
    contrasting,
    grained,
    lit,
    place,
    random_colour,
    slanting,
    slope,
    to_image,
)
from vggfeat.synthetic.families import OUTLINES, PATTERNS, Family, Plane
from vggfeat.synthetic.scenes import Note, Scene, Shapes, annotate, find_spot, shape_of

_SIZES = 0.26, 0.5
"""Reach of an object, as a share of the smaller side of the image."""


class Tint(NamedTuple):
    """A range of colours."""

    hue: float
    """Middle: 0 red, 1 yellow, 2 green, 3 cyan, 4 blue, 5 magenta."""
    dull: float
    """Least saturation, 0 to 1."""
    vivid: float
    dark: int
    """Least brightness, 0 to 255."""
    bright: int


TINTS: dict[str, Tint] = {
    "red": Tint(0.0, 0.6, 1.0, 110, 255),
    "orange": Tint(0.5, 0.6, 1.0, 150, 255),
    "yellow": Tint(0.95, 0.5, 1.0, 160, 255),
    "green": Tint(2.0, 0.4, 1.0, 70, 220),
    "sky blue": Tint(3.3, 0.2, 0.6, 150, 255),
    "blue": Tint(4.0, 0.5, 1.0, 80, 230),
    "violet": Tint(5.0, 0.3, 0.9, 90, 240),
    "brown": Tint(0.4, 0.3, 0.7, 50, 160),
    "beige": Tint(0.6, 0.12, 0.4, 165, 245),
    "olive": Tint(1.3, 0.3, 0.7, 60, 160),
    "grey": Tint(0.5, 0.0, 0.1, 70, 190),
    "black": Tint(0.5, 0.0, 0.15, 0, 55),
    "white": Tint(0.5, 0.0, 0.08, 215, 255),
}
FINISHES = ("flat", "grained", "rough", "furry", "round", "drawn", "mottled")
"""flat: nothing but the pattern. grained, rough: fine and coarse noise. furry: hairs. round: shaded as a body.
drawn: dark lines on white. mottled: patches of another colour."""

_EXCEPTIONS = 0.12
"""Share of objects whose tint, or finish, is not the usual one of their class."""
_LEAST_CONTRAST = 25
_HAIR_REACH = 1.5


class Material(NamedTuple):
    """The usual look of a class's surface; None: any."""

    tint: str | None
    finish: str | None


def material(key: str) -> Material:
    """Choose the material of a class by its name alone: one in two has a tint, three in five have a finish."""
    number = int.from_bytes(hashlib.sha256(f"look {key}".encode()).digest())
    tint = list(TINTS)[number // 2 % len(TINTS)] if number % 2 else None
    number //= 64 * len(TINTS)
    return Material(tint, FINISHES[number // 5 % len(FINISHES)] if number % 5 < 3 else None)


def everyday(
    rng: Generator, *, side: int, name: str, family: Family, material: Material | None, shapes: Shapes
) -> Scene:
    """Show one, two or three objects of a family on a ground of any kind.

    `side` is the length in pixels of a side of 500, `name` the class that the annotation gives; a class whose material
    is None comes in every colour and finish.
    """
    canvas = Canvas(ground(rng, *shape_of(rng, shapes, side)))
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


def ground(rng: Generator, width: int, height: int) -> Pixels:
    """(H, W, 3) ground of one kind out of four."""
    kinds = (_plain, _rough, _patterned, background)
    return kinds[int(rng.choice(4, p=(0.3, 0.35, 0.15, 0.2)))](rng, width, height)


def _plain(rng: Generator, width: int, height: int) -> Pixels:
    """Paint (H, W, 3) in white, or in one colour with a slope of light."""
    if rng.random() < 0.55:
        white = np.float32(255 - rng.uniform(0, 12))
        return np.full((height, width, 3), white, dtype=np.float32)
    light = 1 + slope(rng, width, height) * np.float32(rng.uniform(0, 0.35) * rng.integers(0, 2))
    return any_colour(rng) * light[..., None]


def _rough(rng: Generator, width: int, height: int) -> Pixels:
    """Paint (H, W, 3) as clouds, walls and meadows are: much at large scale, less at small, more bright than hue."""
    fall = rng.uniform(0.2, 1.3)
    pixels = any_colour(rng) + (noise(rng, width, height, fall) * np.float32(rng.uniform(8, 55)))[..., None]
    for _ in range(2):
        axis = rng.uniform(-1, 1, 3)
        hue = (axis - axis.mean()).astype(np.float32)
        pixels = pixels + (noise(rng, width, height, fall + 0.4) * np.float32(rng.uniform(0, 35)))[..., None] * hue
    return pixels


def _patterned(rng: Generator, width: int, height: int) -> Pixels:
    """Paint (H, W, 3) with a pattern, which then says nothing of the class."""
    pattern = list(PATTERNS.values())[int(rng.integers(len(PATTERNS)))]
    angle, scale = rng.uniform(0, np.pi), rng.uniform(1, 5) / min(width, height)
    x = np.arange(width, dtype=np.float32)[None, :] * np.float32(scale)
    y = np.arange(height, dtype=np.float32)[:, None] * np.float32(scale)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    mix = pattern(cos * x - sin * y, sin * x + cos * y, float(rng.uniform(1, 4)))
    first, second = any_colour(rng), any_colour(rng)
    pixels = first + mix[..., None] * (second - first) * np.float32(rng.uniform(0.15, 0.8))
    return pixels + (noise(rng, width, height, 0.7) * np.float32(rng.uniform(0, 20)))[..., None]


def _add_object(
    canvas: Canvas, rng: Generator, family: Family, usual: Material | None, centre: tuple[float, float], reach: float
) -> None:
    chosen = None if usual is None else _draw_material(rng, usual)
    drawn = chosen is not None and chosen.finish == "drawn"
    most_border = 0.14 if drawn else 0.0 if rng.random() < 0.35 else 0.1
    patch = place(rng, OUTLINES[family.outline], centre, reach, most_border)
    colours = (
        _paint(rng, family, patch, reach) if chosen is None else _paint_material(rng, family, patch, reach, chosen)
    )
    ink = any_colour(rng) * np.float32(0.25 if drawn else 0.4)
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
    pixels = lit(rng, canvas.pixels) if rng.random() < 0.6 else canvas.pixels
    if rng.random() < 0.5:
        pixels = grained(rng, pixels)
    image = to_image(pixels)
    blur = rng.uniform(0, 0.0025 if rng.random() < 0.6 else 0.009) * canvas.side
    return softened(image, blur) if blur > 0.3 else image


def _draw_material(rng: Generator, usual: Material) -> Material:
    """Choose the material of one object: mostly the usual one; its finish is never None."""
    tint, finish = usual
    if finish is None or rng.random() < _EXCEPTIONS:
        finish = FINISHES[int(rng.integers(len(FINISHES)))]
    if tint is None or rng.random() < _EXCEPTIONS:
        tint = None
    return Material(tint, finish)


def _paint(rng: Generator, family: Family, patch: Patch, reach: float) -> Pixels:
    """Paint (h, w, 3) RGB, 0 to 255, with a family's pattern in any two colours, lit, by chance grained or rounded."""
    first, second = _pair(rng, None)
    mix = _pattern(rng, family, patch)
    colours = first + mix[..., None] * (second - first) * np.float32(rng.uniform(0.35, 1))
    light = slanting(rng, patch)
    height, width = light.shape
    if rng.random() < 0.5:
        light = light + noise(rng, width, height, rng.uniform(0.2, 1)) * np.float32(rng.uniform(0, 0.2))
    if rng.random() < 0.5 and min(light.shape) > 1:
        light = light + _rounded(rng, patch, reach, 0.12, 0.48)
    return colours * light[..., None]


def _paint_material(rng: Generator, family: Family, patch: Patch, reach: float, chosen: Material) -> Pixels:
    """Paint (h, w, 3) RGB, 0 to 255, with a family's pattern on a material of `_draw_material`."""
    mix = _pattern(rng, family, patch)
    if chosen.finish == "drawn":
        colours = _line_drawing(rng, mix, chosen.tint)
    else:
        first, second = _pair(rng, chosen.tint)
        colours = first + mix[..., None] * (second - first) * np.float32(rng.uniform(0.3, 1))
    if chosen.finish == "mottled":
        height, width = mix.shape
        other, much = any_colour(rng), np.float32(rng.uniform(0.4, 0.8))
        share = np.clip(0.5 + noise(rng, width, height, rng.uniform(0.3, 0.9)) * 0.8, 0, 1) * much
        colours = colours + share[..., None] * (other - colours)
    return colours * _light(rng, patch, reach, chosen.finish)[..., None]


def any_colour(rng: Generator) -> Pixels:
    """Choose RGB between 0 and 255, (3,) float32: dull, nearly black or white, or of any hue and vividness."""
    kind = rng.random()
    if kind < 0.4:
        return random_colour(rng)
    if kind < 0.52:
        grey = rng.uniform(0, 60) if rng.random() < 0.5 else rng.uniform(195, 255)
        return np.clip(grey + rng.uniform(-8, 8, 3), 0, 255).astype(np.float32)
    hue = _pure(rng.uniform(0, 6))
    return (rng.uniform(60, 255) * (1 - rng.beta(2, 1.2) * (1 - hue))).astype(np.float32)


def noise(rng: Generator, width: int, height: int, fall: float) -> Plane:
    """(H, W) noise of deviation about 1, whose amplitude falls with the number of cells to the power of `fall`."""
    total, power, cells = np.zeros((height, width), dtype=np.float32), 0.0, 2
    while cells == 2 or cells < width // 2:
        amplitude = cells**-fall
        total += cloud(rng, width, height, cells) * np.float32(amplitude)
        power += amplitude**2
        cells *= 2
    return total * np.float32(1.7 / np.sqrt(power))


def blurred(plane: Plane, radius: float) -> Plane:
    """(H, W) plane of values from 0 to 1, out of focus."""
    image = Image.fromarray((plane * 255).astype(np.uint8))
    return np.asarray(softened(image, radius), dtype=np.float32) / 255


def softened(image: Image.Image, radius: float) -> Image.Image:
    """Blur an image; two boxes come close to a Gaussian at a fraction of its time."""
    return image.filter(ImageFilter.BoxBlur(radius)).filter(ImageFilter.BoxBlur(radius))


def _pure(hue: float) -> Pixels:
    """(3,) RGB, 0 to 1, of full saturation and brightness."""
    return np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)


def _tinted(rng: Generator, tint: str | None) -> Pixels:
    """Choose RGB between 0 and 255, (3,) float32, of a tint or of any."""
    if tint is None:
        return any_colour(rng)
    middle, dull, vivid, dark, bright = TINTS[tint]
    pure = _pure(middle + rng.normal(0, 0.16))
    return (rng.uniform(dark, bright) * (1 - rng.uniform(dull, vivid) * (1 - pure))).astype(np.float32)


def _pair(rng: Generator, tint: str | None) -> tuple[Pixels, Pixels]:
    """Choose a colour of the tint, and any other that is brighter or darker."""
    first = _tinted(rng, tint)
    return first, contrasting(rng, first, any_colour, _LEAST_CONTRAST)


def _pattern(rng: Generator, family: Family, patch: Patch) -> Plane:
    return PATTERNS[family.pattern](patch.x, patch.y, family.frequency * rng.uniform(0.85, 1.2))


def _line_drawing(rng: Generator, mix: Plane, tint: str | None) -> Pixels:
    """(h, w, 3) nearly white, with dark lines where the pattern changes."""
    paper = (255 - rng.uniform(0, 60) * rng.uniform(0, 1, 3)).astype(np.float32)
    ink = _tinted(rng, tint) * np.float32(0.35 if tint is None else 0.6)
    lines = np.clip(1 - np.abs(mix - 0.5) * np.float32(2.2), 0, 1)
    return paper + lines[..., None] * (ink - paper)


def _light(rng: Generator, patch: Patch, reach: float, finish: str | None) -> Plane:
    """(h, w) factor of the colours."""
    light = slanting(rng, patch)
    height, width = light.shape
    if finish == "grained":
        light = light + noise(rng, width, height, rng.uniform(0, 0.3)) * np.float32(rng.uniform(0.08, 0.25))
    if finish == "rough":
        light = light + noise(rng, width, height, rng.uniform(0.6, 1.1)) * np.float32(rng.uniform(0.15, 0.35))
    if finish == "furry":
        light = light + _hairs(rng, patch) * np.float32(rng.uniform(0.12, 0.3))
    body = finish in ("round", "furry") or (finish in ("rough", "grained", "mottled") and rng.random() < 0.5)
    if body and min(light.shape) > 1:
        light = light + _rounded(rng, patch, reach, 0.2, 0.6)
    return np.maximum(light, np.float32(0.1))


def _rounded(rng: Generator, patch: Patch, reach: float, least: float, most: float) -> Plane:
    """(h, w) light and shade near the outline, as on a cushion."""
    down, right = np.gradient(blurred(patch.cover, 0.22 * reach))
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(least, most) * reach
    return (right * np.cos(angle) + down * np.sin(angle)).astype(np.float32) * np.float32(strength)


def _hairs(rng: Generator, patch: Patch) -> Plane:
    """(h, w) noise drawn out along one direction of the object, of deviation about 1."""
    sparse = Image.fromarray(rng.standard_normal((48, 12)).astype(np.float32))
    coat = np.asarray(sparse.resize((240, 960), Image.Resampling.BICUBIC))
    angle = rng.normal(0, 0.3)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across, along = patch.x * cos + patch.y * sin, patch.y * cos - patch.x * sin
    rows, columns = (
        np.clip((v / _HAIR_REACH + 1) / 2 * (size - 1), 0, size - 1).astype(int)
        for v, size in zip((across, along), coat.shape, strict=True)
    )
    return coat[rows, columns]
