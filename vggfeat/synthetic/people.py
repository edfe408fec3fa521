"""Jointed figures: what a person does shows in the pose, and in the thing that is held or ridden.

Lengths are in statures (1 = head to foot of somebody upright), angles in degrees from straight down, positive
towards the side that the figure faces. The figure's frame has its hips at (0, 0), x forward, y down.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vggfeat.synthetic.drawing import OVERSAMPLING, Canvas, Pixels, random_colour
from vggfeat.synthetic.families import Plane

Point = tuple[float, float]
Colour = tuple[int, int, int]

TRUNK, NECK, HEAD = 0.29, 0.05, 0.075
UPPER_ARM, FOREARM, THIGH, SHIN = 0.17, 0.16, 0.25, 0.25
_AHEAD, _BEHIND, _UP, _DOWN = 0.85, 0.85, 0.85, 0.65
"""How far a patch reaches from the hips, so that every pose and thing lies inside."""


class Limbs(NamedTuple):
    """Angles of one way to hold the legs (thigh and shin) or the arms (upper arm and forearm)."""

    far: tuple[float, float]
    near: tuple[float, float]
    lean: float = 0.0
    """Lean of the trunk; of legs only."""
    thing: str = ""
    """What carries the person (bicycle, horse or stool), or what the hands hold or touch."""


LEGS = {
    "standing": Limbs((6, 3), (-6, -3)),
    "walking": Limbs((26, 14), (-22, -38), lean=4),
    "running": Limbs((68, -12), (-32, -100), lean=16),
    "jumping": Limbs((55, 30), (-55, -30)),
    "sitting": Limbs((84, 2), (78, -4), thing="stool"),
    "cycling": Limbs((72, -8), (28, -42), lean=32, thing="bicycle"),
    "riding": Limbs((38, -6), (34, -10), lean=3, thing="horse"),
}
ARMS = {
    "hanging": Limbs((8, 12), (-8, -2)),
    "akimbo": Limbs((45, -45), (-45, 45)),
    "swinging": Limbs((28, 45), (-28, -8)),
    "pumping": Limbs((55, 145), (-55, 35)),
    "raised": Limbs((150, 172), (-150, -172)),
    "phoning": Limbs((8, 12), (38, 168), thing="phone"),
    "reading": Limbs((40, 92), (30, 82), thing="book"),
    "playing": Limbs((55, 88), (-30, 72), thing="guitar"),
    "filming": Limbs((62, 152), (56, 146), thing="camera"),
    "typing": Limbs((38, 86), (30, 80), thing="computer"),
    "steering": Limbs((50, 62), (46, 60)),
}

POSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "jumping": (("jumping",), ("raised",)),
    "phoning": (("standing", "sitting"), ("phoning",)),
    "playinginstrument": (("standing", "sitting"), ("playing",)),
    "reading": (("standing", "sitting"), ("reading",)),
    "ridingbike": (("cycling",), ("steering",)),
    "ridinghorse": (("riding",), ("steering",)),
    "running": (("running",), ("pumping",)),
    "takingphoto": (("standing", "sitting"), ("filming",)),
    "usingcomputer": (("sitting",), ("typing",)),
    "walking": (("walking",), ("swinging",)),
    "other": (("standing", "sitting"), ("hanging", "akimbo")),
}
"""Action -> the legs and the arms that it may have."""

TOGETHER = (("walking", "phoning"), ("walking", "takingphoto"), ("walking", "reading"), ("ridinghorse", "takingphoto"))
"""Two actions at once: the first gives the legs, the second the arms."""


class _Pen:
    """Draws in the figure's frame, and keeps apart what is person and what is thing."""

    def __init__(self, stature: float, facing: int, tilt: float) -> None:
        self._scale = stature * OVERSAMPLING
        self._turn = facing, np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
        wide, high = round((_AHEAD + _BEHIND) * stature), round((_UP + _DOWN) * stature)
        self.centre = wide / 2, high * _UP / (_UP + _DOWN)
        size = wide * OVERSAMPLING, high * OVERSAMPLING
        self._images = Image.new("RGB", size), Image.new("L", size), Image.new("L", size)
        self._draws = [ImageDraw.Draw(image) for image in self._images]

    def place(self, x: float, y: float) -> Point:
        facing, cos, sin = self._turn
        left, top = (value * OVERSAMPLING for value in self.centre)
        return left + facing * (cos * x - sin * y) * self._scale, top + (sin * x + cos * y) * self._scale

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        placed = [self.place(*point) for point in points]
        for draw, fill in self._inks(colour, person=False):
            draw.polygon(placed, fill=fill)

    def line(self, points: Sequence[Point], thick: float, colour: Colour, person: bool = False) -> None:
        """Draw a stroke with round joints and ends."""
        placed = [self.place(*point) for point in points]
        for draw, fill in self._inks(colour, person):
            draw.line(placed, fill=fill, width=max(1, round(thick * self._scale)))
        for point in points:
            self.disc(point, thick / 2, colour, person)

    def disc(self, centre: Point, radius: float, colour: Colour, person: bool = False, hollow: float = 0) -> None:
        """Draw a disc, or a hoop of the thickness `hollow`."""
        (x, y), reach = self.place(*centre), radius * self._scale
        for draw, fill in self._inks(colour, person):
            bounds = (x - reach, y - reach, x + reach, y + reach)
            if hollow:
                draw.ellipse(bounds, outline=fill, width=max(1, round(hollow * self._scale)))
            else:
                draw.ellipse(bounds, fill=fill)

    def _inks(self, colour: Colour, person: bool) -> Iterator[tuple[ImageDraw.ImageDraw, int | Colour]]:
        yield from zip(self._draws, (colour, 255, 255 if person else 0), strict=True)

    def planes(self) -> tuple[Pixels, Plane, NDArray[np.bool_]]:
        """(h, w, 3) colours, (h, w) opacity, (h, w) whether it is person."""
        paint, cover, person = (np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32) for image in self._images)
        opacity = cover / 255
        # Averaging has mixed the edges with the black around them.
        return paint / np.maximum(opacity, 1 / 255)[..., None], opacity, person >= 127.5


def _end(start: Point, angle: float, length: float) -> Point:
    radians = np.radians(angle)
    return start[0] + length * float(np.sin(radians)), start[1] + length * float(np.cos(radians))


def _ink(rng: Generator) -> Colour:
    red, green, blue = (int(value) for value in random_colour(rng))
    return red, green, blue


def _skin(rng: Generator) -> Colour:
    tone = rng.uniform(0.3, 1.0)
    return int(245 * tone), int(205 * tone**1.15), int(175 * tone**1.3)


def add_person(
    canvas: Canvas, rng: Generator, actions: Sequence[str], hips: Point, stature: float, opacity: float = 1.0
) -> None:
    """Draw a person; the thing that is held or ridden is drawn too, but does not belong to the person.

    `actions` is one key of `POSES`, or a pair of `TOGETHER`; `hips` is x, y in pixels, and `stature` the height of the
    person upright. A person of an opacity below 1 is hard to see.
    """
    legs = LEGS[str(rng.choice(POSES[actions[0]][0]))]
    arms = ARMS[str(rng.choice(POSES[actions[-1]][1]))]
    pen = _Pen(stature, 1 if rng.random() < 0.5 else -1, float(rng.normal(0, 4)))
    _draw_figure(pen, rng, legs, arms)
    colours, cover, person = pen.planes()
    left, top = round(hips[0] - pen.centre[0]), round(hips[1] - pen.centre[1])
    canvas.add(left, top, colours, cover * np.float32(opacity), person)


def _draw_figure(pen: _Pen, rng: Generator, legs: Limbs, arms: Limbs) -> None:
    """From back to front: far limbs, what carries, trunk and head, near leg, what is held, near arm."""
    skin, shirt, trousers, hair, thing = _skin(rng), _ink(rng), _ink(rng), _ink(rng), _ink(rng)
    thick = rng.uniform(0.85, 1.25)
    lean = legs.lean + float(rng.normal(0, 3))
    shoulders = _end((0, 0), 180 - lean, TRUNK)
    head = _end(shoulders, 180 - lean, NECK + HEAD)
    far, near = _joints(rng, (0, 0), legs.far, THIGH, SHIN), _joints(rng, (0, 0), legs.near, THIGH, SHIN)
    far_arm = _joints(rng, shoulders, arms.far, UPPER_ARM, FOREARM)
    near_arm = _joints(rng, shoulders, arms.near, UPPER_ARM, FOREARM)
    _limb(pen, far_arm, 0.055 * thick, shirt, skin, 0.7)
    _limb(pen, far, 0.085 * thick, trousers, trousers, 0.7)
    _draw_carrier(pen, legs.thing, thing, far_arm[2])
    pen.line([(0, 0), shoulders], 0.15 * thick, shirt, person=True)
    pen.line([shoulders, head], 0.06, skin, person=True)
    pen.disc(head, HEAD, hair, person=True)
    pen.disc((head[0] + 0.018, head[1] + 0.022), HEAD * 0.8, skin, person=True)
    _limb(pen, near, 0.085 * thick, trousers, trousers, 1.0)
    _draw_held(pen, arms.thing, _ink(rng), near_arm[2], head)
    _limb(pen, near_arm, 0.055 * thick, shirt, skin, 1.0)


def _joints(
    rng: Generator, start: Point, angles: tuple[float, float], upper: float, lower: float
) -> tuple[Point, Point, Point]:
    first, second = (angle + float(rng.normal(0, 5)) for angle in angles)
    middle = _end(start, first, upper)
    return start, middle, _end(middle, second, lower)


def _limb(
    pen: _Pen, joints: tuple[Point, Point, Point], thick: float, upper: Colour, lower: Colour, light: float
) -> None:
    start, middle, end = joints
    dark_upper, dark_lower = ((int(r * light), int(g * light), int(b * light)) for r, g, b in (upper, lower))
    pen.line([middle, end], thick * 0.85, dark_lower, person=True)
    pen.line([start, middle], thick, dark_upper, person=True)


def _draw_carrier(pen: _Pen, thing: str, colour: Colour, hand: Point) -> None:
    dark = (30, 30, 34)
    if thing == "stool":
        pen.polygon([(-0.14, 0.06), (0.2, 0.06), (0.2, 0.11), (-0.14, 0.11)], colour)
        for x in (-0.1, 0.16):
            pen.line([(x, 0.1), (x, 0.36)], 0.03, colour)
    elif thing == "bicycle":
        for x in (-0.36, 0.46):
            pen.disc((x, 0.36), 0.24, dark, hollow=0.03)
        frame = [(-0.36, 0.36), (-0.04, 0.08), (0.38, 0.06), (0.06, 0.38), (-0.36, 0.36)]
        pen.line(frame, 0.028, colour)
        pen.line([(0.06, 0.38), (-0.04, 0.05)], 0.028, colour)
        pen.line([(0.46, 0.36), (0.36, -0.02), hand], 0.028, colour)
    elif thing == "horse":
        for x in (-0.42, -0.3, 0.26, 0.38):
            pen.line([(x, 0.2), (x + 0.03, 0.58)], 0.06, colour)
        pen.line([(-0.36, 0.17), (0.33, 0.17)], 0.25, colour)
        pen.line([(0.36, 0.12), (0.58, -0.2)], 0.14, colour)
        pen.line([(0.58, -0.2), (0.74, -0.1)], 0.09, colour)
        pen.line([(-0.46, 0.12), (-0.6, 0.4)], 0.05, dark)


def _draw_held(pen: _Pen, thing: str, colour: Colour, hand: Point, head: Point) -> None:
    x, y = hand
    dark, pale = (28, 28, 32), (238, 236, 228)
    if thing == "phone":
        pen.line([(x, y + 0.05), (x + 0.015, y - 0.07)], 0.045, dark)
    elif thing == "book":
        pen.polygon([(x, y + 0.02), (x - 0.1, y - 0.16), (x + 0.02, y - 0.18), (x + 0.05, y)], colour)
        pen.polygon([(x + 0.05, y), (x + 0.02, y - 0.18), (x + 0.16, y - 0.19), (x + 0.2, y - 0.01)], pale)
    elif thing == "guitar":
        pen.line([(0.08, -0.06), (0.5, -0.3)], 0.035, dark)
        pen.disc((-0.02, -0.02), 0.12, colour)
        pen.disc((0.12, -0.09), 0.085, colour)
        pen.disc((0.07, -0.06), 0.035, dark)
    elif thing == "camera":
        x, y = head[0] + 0.1, head[1] + 0.01
        pen.polygon([(x - 0.03, y - 0.06), (x + 0.1, y - 0.06), (x + 0.1, y + 0.07), (x - 0.03, y + 0.07)], dark)
        pen.polygon([(x + 0.1, y - 0.035), (x + 0.18, y - 0.05), (x + 0.18, y + 0.06), (x + 0.1, y + 0.045)], colour)
    elif thing == "computer":
        pen.polygon([(0.14, 0.0), (0.72, 0.0), (0.72, 0.05), (0.14, 0.05)], colour)
        pen.line([(0.66, 0.04), (0.66, 0.5)], 0.04, colour)
        pen.polygon([(0.46, -0.33), (0.66, -0.38), (0.7, -0.06), (0.5, -0.03)], dark)
        pen.polygon([(0.485, -0.3), (0.645, -0.345), (0.675, -0.085), (0.515, -0.06)], (170, 205, 235))
