"""What rendered objects are made of: colours, and the grain and shading of their surface.

Most classes come in every colour and finish. Others have a usual tint and a usual finish, as lemons and hedgehogs
have: a net that learns these as well keeps colour and fine grain, which matter in images that nobody rendered.

H, W = sides of a plane; h, w = sides of a patch of the image, in pixels.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from vggfeat.synthetic.drawing import Patch, Pixels, cloud, random_colour
from vggfeat.synthetic.families import PATTERNS, Family, Plane


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


def draw_material(rng: Generator, usual: Material) -> Material:
    """Choose the material of one object: mostly the usual one; its finish is never None."""
    tint, finish = usual
    if finish is None or rng.random() < _EXCEPTIONS:
        finish = FINISHES[int(rng.integers(len(FINISHES)))]
    if tint is None or rng.random() < _EXCEPTIONS:
        tint = None
    return Material(tint, finish)


def paint(rng: Generator, family: Family, patch: Patch, reach: float) -> Pixels:
    """Paint (h, w, 3) RGB, 0 to 255, with a family's pattern in any two colours, lit, by chance grained or rounded."""
    first, second = _pair(rng, None)
    mix = _pattern(rng, family, patch)
    colours = first + mix[..., None] * (second - first) * np.float32(rng.uniform(0.35, 1))
    light = _slanting(rng, patch)
    height, width = light.shape
    if rng.random() < 0.5:
        light = light + noise(rng, width, height, rng.uniform(0.2, 1)) * np.float32(rng.uniform(0, 0.2))
    if rng.random() < 0.5 and min(light.shape) > 1:
        light = light + _rounded(rng, patch, reach, 0.12, 0.48)
    return colours * light[..., None]


def paint_material(rng: Generator, family: Family, patch: Patch, reach: float, chosen: Material) -> Pixels:
    """Paint (h, w, 3) RGB, 0 to 255, with a family's pattern on a material of `draw_material`."""
    mix = _pattern(rng, family, patch)
    if chosen.finish == "drawn":
        colours = _line_drawing(rng, mix, chosen.tint)
    else:
        first, second = _pair(rng, chosen.tint)
        colours = first + mix[..., None] * (second - first) * np.float32(rng.uniform(0.3, 1))
    if chosen.finish == "mottled":
        height, width = mix.shape
        other, much = colour(rng), np.float32(rng.uniform(0.4, 0.8))
        share = np.clip(0.5 + noise(rng, width, height, rng.uniform(0.3, 0.9)) * 0.8, 0, 1) * much
        colours = colours + share[..., None] * (other - colours)
    return colours * _light(rng, patch, reach, chosen.finish)[..., None]


def colour(rng: Generator) -> Pixels:
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
    return np.asarray(soft(image, radius), dtype=np.float32) / 255


def soft(image: Image.Image, radius: float) -> Image.Image:
    """Blur an image; two boxes come close to a Gaussian at a fraction of its time."""
    return image.filter(ImageFilter.BoxBlur(radius)).filter(ImageFilter.BoxBlur(radius))


def _pure(hue: float) -> Pixels:
    """(3,) RGB, 0 to 1, of full saturation and brightness."""
    return np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)


def _tinted(rng: Generator, tint: str | None) -> Pixels:
    """Choose RGB between 0 and 255, (3,) float32, of a tint or of any."""
    if tint is None:
        return colour(rng)
    middle, dull, vivid, dark, bright = TINTS[tint]
    pure = _pure(middle + rng.normal(0, 0.16))
    return (rng.uniform(dark, bright) * (1 - rng.uniform(dull, vivid) * (1 - pure))).astype(np.float32)


def _pair(rng: Generator, tint: str | None) -> tuple[Pixels, Pixels]:
    """Choose a colour of the tint, and any other that is brighter or darker."""
    first, second = _tinted(rng, tint), colour(rng)
    while abs(float(first.mean() - second.mean())) < _LEAST_CONTRAST:
        second = colour(rng)
    return first, second


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
    light = _slanting(rng, patch)
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


def _slanting(rng: Generator, patch: Patch) -> Plane:
    """(h, w) light from above, a little from one side."""
    return 1 + np.float32(rng.uniform(0, 0.25)) * (patch.x * np.float32(rng.uniform(-1, 1)) - patch.y)


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
