"""Painting with Pillow and NumPy: backgrounds, clutter, objects, and what a camera does to them.

H, W = sides of the image in pixels; h, w = sides of a patch of it. Pixels are float32 RGB, 0 to 255, until
`Canvas.photograph` makes an image of them. Everything random comes from the generator that is passed in.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from vggfeat.synthetic.families import OUTLINES, PATTERNS, Family, Plane, Points

Pixels = NDArray[np.floating[Any]]
"""(h, w, 3) float32 RGB, 0 to 255."""
OVERSAMPLING = 3
"""Outlines are drawn this many times larger and averaged, which makes smooth edges."""


def generator(seed: int, name: str, image: str) -> Generator:
    """Random numbers of one image, however many others are made, from the set's seed and name and the image's id."""
    digest = hashlib.sha256(f"{seed}/{name}/{image}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))


class Canvas:
    """An image in the making, and which object is seen at each pixel.

    Attributes
    ----------
    pixels : (H, W, 3) float32
        RGB, 0 to 255; at first the ground, which is painted over.
    owner : (H, W) uint8
        Number of the object seen there, 0 where there is none.
    drawn : list of int
        Pixels that each object had when it was drawn, its part outside the image included.
    """

    def __init__(self, pixels: Pixels) -> None:
        height, width = pixels.shape[:2]
        self.pixels = pixels
        self.owner = np.zeros((height, width), dtype=np.uint8)
        self.drawn: list[float] = []

    @property
    def side(self) -> int:
        """The smaller side, in pixels."""
        return min(self.owner.shape)

    def add(self, left: int, top: int, colours: Pixels, cover: Plane, own: NDArray[np.bool_]) -> None:
        """Lay a patch over the image as a new object; it may reach over the edges.

        `left`, `top`: place of the patch.
        `colours` (h, w, 3) float32: RGB, 0 to 255.
        `cover` (h, w) float32: opacity, 0 to 1.
        `own` (h, w) bool: which pixels belong to the object; the others that are covered hide what lies behind.
        """
        self.drawn.append(float(own.sum()))
        inside, outside = self.litter(left, top, colours, cover)
        seen = self.owner[outside]
        seen[cover[inside] >= 0.5] = 0
        seen[own[inside]] = len(self.drawn)

    def litter(self, left: int, top: int, colours: Pixels, cover: Plane) -> tuple[tuple[slice, slice], ...]:
        """Lay a patch over the image that belongs to nothing; return the seen part of it, and where that is."""
        height, width = self.owner.shape
        rows = slice(*np.clip((top, top + cover.shape[0]), 0, height).tolist())
        columns = slice(*np.clip((left, left + cover.shape[1]), 0, width).tolist())
        inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        under = self.pixels[rows, columns]
        under += (colours[inside] - under) * cover[inside][..., None]
        return inside, (rows, columns)

    def photograph(self, rng: Generator) -> Image.Image:
        """Light it from one side, blur it a little, add noise; an RGB image."""
        image = to_image(grained(rng, lit(rng, self.pixels)))
        blur = rng.uniform(0, 0.0025) * self.side
        return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.3 else image


def lit(rng: Generator, pixels: Pixels) -> Pixels:
    """(H, W, 3) pixels in a light from one side."""
    height, width, _ = pixels.shape
    light = slope(rng, width, height) * np.float32(rng.uniform(0, 0.35)) + np.float32(rng.uniform(0.8, 1.1))
    return pixels * light[..., None]


def grained(rng: Generator, pixels: Pixels) -> Pixels:
    """(H, W, 3) pixels with a camera's noise."""
    noise = rng.standard_normal((*pixels.shape[:2], 1), dtype=np.float32)
    return pixels + noise * np.float32(rng.uniform(0, 9))


def to_image(pixels: Pixels) -> Image.Image:
    """Make an RGB image of (H, W, 3) pixels."""
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def random_colour(rng: Generator) -> Pixels:
    """Choose RGB between 0 and 255, (3,) float32: any hue and brightness, the dull ones more often."""
    grey = rng.uniform(20, 235)
    return np.clip(grey + rng.uniform(-1, 1, 3) * rng.uniform(10, 110), 0, 255).astype(np.float32)


def contrasting(rng: Generator, first: Pixels, choose: Callable[[Generator], Pixels], apart: float) -> Pixels:
    """Choose a colour whose mean brightness differs from that of the first by at least `apart`."""
    while True:
        second = choose(rng)
        if abs(float(first.mean() - second.mean())) >= apart:
            return second


def slope(rng: Generator, width: int, height: int) -> Plane:
    """(H, W) plane that rises from -1 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-np.cos(angle), np.cos(angle), width, dtype=np.float32)
    y = np.linspace(-np.sin(angle), np.sin(angle), height, dtype=np.float32)
    plane = x[None, :] + y[:, None]
    return plane / np.abs(plane).max()


def cloud(rng: Generator, width: int, height: int, cells: int) -> Plane:
    """(H, W) smooth noise between about -1 and 1, `cells` across the image."""
    grid = rng.uniform(-1, 1, (max(cells * height // width, 2), cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def background(rng: Generator, width: int, height: int) -> Pixels:
    """(H, W, 3) ground of two or three colours, mixed by slopes and by noise of several sizes."""
    mix = slope(rng, width, height) * np.float32(rng.uniform(0, 1))
    for cells in (3, 9, 30):
        mix = mix + cloud(rng, width, height, cells) * np.float32(rng.uniform(0, 0.7) * rng.integers(0, 2))
    if rng.random() < 0.3:
        mix = np.round(mix * 2) / 2
    first, second, third = (random_colour(rng) for _ in range(3))
    mix = np.clip(mix, -1, 1)[..., None]
    pixels = second + np.maximum(mix, 0) * (third - second) - np.minimum(mix, 0) * (first - second)
    grain = cloud(rng, width, height, width // 3) * np.float32(rng.uniform(0, 25))
    return pixels + grain[..., None]


def add_clutter(canvas: Canvas, rng: Generator, amount: int) -> None:
    """Strew strokes, splinters and patterned scraps of no particular outline over the image."""
    height, width = canvas.owner.shape
    for _ in range(int(rng.integers(amount // 2, amount + 1))):
        reach = canvas.side * rng.uniform(0.04, 0.16)
        centre = rng.uniform(0, width), rng.uniform(0, height)
        if rng.random() < 0.35:
            _add_scrap(canvas, rng, centre, reach)
        else:
            _add_splinter(canvas, rng, centre, reach)


def _add_scrap(canvas: Canvas, rng: Generator, centre: tuple[float, float], reach: float) -> None:
    """Let no pattern alone give a class away: here it lies on an outline that no class has."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(4, 8))))
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.5, 1, (len(angles), 1))
    pattern = list(PATTERNS)[int(rng.integers(len(PATTERNS)))]
    canvas.litter(*_surface(rng, (corners,), pattern, rng.uniform(1.5, 4.5), centre, reach))


def _add_splinter(canvas: Canvas, rng: Generator, centre: tuple[float, float], reach: float) -> None:
    """Draw a crooked stroke or a plain polygon."""
    corners = rng.normal(0, 0.6, (int(rng.integers(2, 6)), 2))
    points = [(float(x) * reach + centre[0], float(y) * reach + centre[1]) for x, y in corners]
    stencil = Image.new("L", (canvas.owner.shape[1], canvas.owner.shape[0]))
    if len(points) == 2 or rng.random() < 0.5:
        ImageDraw.Draw(stencil).line(points, fill=255, width=max(1, round(reach * rng.uniform(0.03, 0.2))))
    else:
        ImageDraw.Draw(stencil).polygon(points, fill=255)
    bounds = stencil.getbbox()
    if bounds:
        cover = np.asarray(stencil.crop(bounds), dtype=np.float32) / 255
        canvas.litter(bounds[0], bounds[1], np.broadcast_to(random_colour(rng), (*cover.shape, 3)), cover)


def add_object(
    canvas: Canvas, rng: Generator, family: Family, centre: tuple[float, float], reach: float, opacity: float = 1.0
) -> None:
    """Draw one object of a family: turned, stretched, coloured and shaded at random.

    `centre` is x, y in pixels, and `reach` the distance from there to the farthest corner before stretching; an
    object of an opacity below 1 is hard to see.
    """
    frequency = family.frequency * rng.uniform(0.85, 1.2)
    left, top, colours, cover = _surface(rng, OUTLINES[family.outline], family.pattern, frequency, centre, reach)
    canvas.add(left, top, colours, cover * np.float32(opacity), cover >= 0.5)


def _placement(rng: Generator) -> NDArray[np.float64]:
    """(2, 2) turn by up to 40 degrees, stretch and slant."""
    angle = np.radians(rng.uniform(-40, 40))
    stretch = np.exp(rng.uniform(-0.18, 0.18))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    return turn @ np.array([[stretch * mirror, rng.uniform(-0.15, 0.15)], [0.0, 1 / stretch]])


def _surface(
    rng: Generator, rings: tuple[Points, ...], pattern: str, frequency: float, centre: tuple[float, float], reach: float
) -> tuple[int, int, Pixels, Plane]:
    """Colour an outline: left and top of the patch, (h, w, 3) colours, (h, w) opacity."""
    patch = place(rng, rings, centre, reach, most_border=0.1)
    first = random_colour(rng)
    second = contrasting(rng, first, random_colour, apart=60)
    mix = PATTERNS[pattern](patch.x, patch.y, frequency)[..., None]
    colours = first + mix * (second - first)
    colours = colours * slanting(rng, patch)[..., None]
    colours += (random_colour(rng) * np.float32(0.5) - colours) * patch.edge[..., None]
    return patch.left, patch.top, colours, patch.cover


class Patch(NamedTuple):
    """Where an outline lies in the image, and its own coordinates there."""

    left: int
    """Left edge of the patch in the image, in pixels."""
    top: int
    cover: Plane
    """(h, w) 1 inside the outline, 0 outside."""
    edge: Plane
    """(h, w) 1 on the line along the outline."""
    x: Plane
    """(h, w) coordinates of the outline before it was turned and stretched; it reaches to 1."""
    y: Plane


def place(
    rng: Generator, rings: tuple[Points, ...], centre: tuple[float, float], reach: float, most_border: float
) -> Patch:
    """Turn and stretch an outline at random, and lay it around `centre`; the line along it is at most `most_border`."""
    matrix = _placement(rng) * reach
    placed = [ring @ matrix.T + centre for ring in rings]
    left, top = (int(v) for v in np.floor(placed[0].min(axis=0)) - 1)
    right, bottom = (int(v) for v in np.ceil(placed[0].max(axis=0)) + 2)
    cover, edge = _stencil(placed, left, top, right - left, bottom - top, rng.uniform(0, most_border) * reach)
    columns = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - centre[0])
    rows = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - centre[1])
    back = np.linalg.inv(matrix).astype(np.float32)
    x = back[0, 0] * columns[None, :] + back[0, 1] * rows[:, None]
    y = back[1, 0] * columns[None, :] + back[1, 1] * rows[:, None]
    return Patch(left, top, cover, edge, x, y)


def _stencil(
    rings: Sequence[Points], left: int, top: int, width: int, height: int, border: float
) -> tuple[Plane, Plane]:
    """(h, w) cover of an outline, and (h, w) cover of the line along its edge, 0 to 1."""
    size = width * OVERSAMPLING, height * OVERSAMPLING
    whole, line = Image.new("L", size), Image.new("L", size)
    for number, ring in enumerate(rings):
        corners = [(float(x), float(y)) for x, y in (ring - (left, top)) * OVERSAMPLING]
        ImageDraw.Draw(whole).polygon(corners, fill=0 if number else 255)
        if border >= 1:
            closed = [*corners, corners[0]]
            ImageDraw.Draw(line).line(closed, fill=255, width=round(border * OVERSAMPLING))
    cover, edge = (np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32) / 255 for image in (whole, line))
    return cover, edge


def slanting(rng: Generator, patch: Patch) -> Plane:
    """(h, w) light from above, a little from one side."""
    return 1 + np.float32(rng.uniform(0, 0.25)) * (patch.x * np.float32(rng.uniform(-1, 1)) - patch.y)
