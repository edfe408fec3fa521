"""Boxes and their labels on an image."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vggfeat.samples import Box

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167))
"""Of the boxes from best to last: told apart by people who do not see all colours (Okabe and Ito 2008)."""
_DARK = (0, 0, 0)
_LONGEST = 60


class Mark(NamedTuple):
    """A box and what is to be written at it."""

    box: Box
    """Pixel edges; it may lie partly outside the image."""
    text: str


def draw_boxes(image: NDArray[np.uint8], marks: Sequence[Mark]) -> bytes:
    """Draw boxes on an image, the first on top.

    Every line is a colour between two of black, and every label black on a plate of the colour, so that both are seen
    on dark and on bright ground. Equal input gives equal bytes with the same version of Pillow.

    Parameters
    ----------
    image : (H, W, 3) uint8, RGB
    marks : sequence of Mark
        Best first.

    Returns
    -------
    bytes
        A PNG file of W x H pixels.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(min(canvas.size) / 150))
    font = ImageFont.load_default(size=max(10, round(min(canvas.size) / 25)))
    numbered = [(mark, COLOURS[number % len(COLOURS)]) for number, mark in enumerate(marks)]
    for mark, colour in reversed(numbered):
        _frame(pen, canvas.size, mark.box, colour, line)
    taken: list[tuple[float, float, float, float]] = []
    for mark, colour in numbered:
        _label(pen, canvas.size, mark, colour, font, taken)
    drawn = io.BytesIO()
    canvas.save(drawn, format="PNG")
    return drawn.getvalue()


def _frame(pen: ImageDraw.ImageDraw, size: tuple[int, int], box: Box, colour: tuple[int, int, int], line: int) -> None:
    left, top = max(0, round(box.left)), max(0, round(box.top))
    # Pillow's rectangles hold their last pixel.
    right, bottom = min(size[0], round(box.right)) - 1, min(size[1], round(box.bottom)) - 1
    if right <= left or bottom <= top:
        return
    thin = max(1, line // 2)
    rings = ((0, line + 2 * thin, _DARK), (thin, line, colour))
    for inset, width, fill in rings:
        corners = (left + inset, top + inset, right - inset, bottom - inset)
        if corners[2] > corners[0] and corners[3] > corners[1]:
            pen.rectangle(corners, outline=fill, width=width)


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    mark: Mark,
    colour: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Write the label in the upper left corner of its box, below the labels that stand there already."""
    text = mark.text if len(mark.text) <= _LONGEST else f"{mark.text[: _LONGEST - 3]}..."
    x0, y0, x1, y1 = pen.textbbox((0, 0), text, font=font)
    pad = max(2, round((y1 - y0) / 4))
    width, height = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
    left = min(max(0, round(mark.box.left)), max(0, size[0] - width))
    top = min(max(0, round(mark.box.top)), max(0, size[1] - height))
    while (hit := _hit((left, top, left + width, top + height), taken)) is not None and hit + height <= size[1]:
        top = hit
    taken.append((left, top, left + width, top + height))
    pen.rectangle((left, top, left + width - 1, top + height - 1), fill=colour, outline=_DARK)
    pen.text((left + pad - x0, top + pad - y0), text, fill=_DARK, font=font)


def _hit(plate: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> float | None:
    """Return where the first label ends that a plate would cover, or None."""
    for left, top, right, bottom in taken:
        if plate[0] < right and left < plate[2] and plate[1] < bottom and top < plate[3]:
            return bottom
    return None
