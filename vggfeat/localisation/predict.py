"""Guesses for a user's own images, and drawings of them."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vggfeat.datasets.files import IMAGE_SUFFIXES, list_folder
from vggfeat.datasets.folder import left_out_notes
from vggfeat.errors import ConfigError, ImageError
from vggfeat.images.decode import DecodeSettings, Request
from vggfeat.images.image_bytes import shown
from vggfeat.images.pool import Decoder
from vggfeat.localisation.locate import LocalisationRequest, LocalisedImage, Localiser
from vggfeat.runtime.figures import font_file
from vggfeat.samples import Box
from vggfeat.wording import with_bytes

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167))
"""Of the boxes from best to last: told apart by people who do not see all colours (Okabe and Ito 2008)."""
BLACK = (0, 0, 0)
LONGEST_LABEL = 60
AT_ONCE = 8
"""Images that are in memory together."""


class Predicted(NamedTuple):
    """What became of one image."""

    path: str
    located: LocalisedImage
    drawn: str
    """Name for the file with its boxes; empty if it failed."""


class Mark(NamedTuple):
    """A box and its label."""

    box: Box
    """Pixel edges; it may lie partly outside the image."""
    text: str


def image_files(places: Sequence[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """Return images in the order given, and a note on the folders that have none.

    A folder gives the images in it, sorted, but not those of its folders. Raises ConfigError if there are no images.
    """
    files: list[Path] = []
    empty: list[Path] = []
    for place in places:
        if not place.is_dir():
            files.append(place)
            continue
        names = [name for name in list_folder(place) if name.lower().endswith(IMAGE_SUFFIXES)]
        found = [place / name for name in names if not name.startswith(".")]
        files += found
        empty += [] if found else [place]
    if not files:
        where = f" in {', '.join(map(str, empty))}; name the folders that hold them" if empty else ""
        raise ConfigError(f"images: expected files, or folders of some, found none{where}")
    return files, left_out_notes([], list(map(str, empty)), [], [])


def predict_files(
    files: Sequence[Path],
    localiser: Localiser,
    classes: Sequence[str],
    words: Mapping[str, str],
    *,
    workers: int = 0,
    decode: DecodeSettings = DecodeSettings(),  # noqa: B008  frozen
) -> Iterator[tuple[Predicted, bytes]]:
    """Locate what is on some images, and draw it.

    Parameters
    ----------
    files : sequence of Path
    localiser : Localiser
        With a classification net.
    classes : sequence of str
        K names.
    words : mapping
        Class name -> what people call it, where that is known.
    workers, decode
        As for `vggfeat.extract.extract_features`.

    Yields
    ------
    prediction : Predicted
        In the order of the files; an image that can't be read has a reason, and the others go on.
    png : bytes
        The drawing; empty if the image failed.
    """
    names = drawing_names(files)
    # The images are drawn on, so they are decoded at full size.
    with Decoder(workers, replace(decode, largest_side=None)) as decoder:
        decoded = decoder.stream(Request(str(path.absolute()), (None,)) for path in files)
        for start in range(0, len(files), AT_ONCE):
            paths = files[start : start + AT_ONCE]
            images = [next(decoded) for _ in paths]
            found = localiser.locate(images, [LocalisationRequest()] * len(paths))
            for path, image, located, name in zip(paths, images, found, names[start:], strict=False):
                if located.reason or isinstance(image, ImageError):
                    reason = located.reason.replace(f"{shown(str(path.absolute()))}: ", "")
                    yield Predicted(str(path), replace(located, reason=reason), ""), b""
                    continue
                marks = [
                    Mark(guess.box, f"{title(classes[guess.label], words)} {100 * guess.posterior:.0f} %")
                    for guess in located.ranked()
                ]
                yield Predicted(str(path), located, name), draw_boxes(image.regions[0], marks)


def title(name: str, words: Mapping[str, str]) -> str:
    """Return what people call a class, in short."""
    return words.get(name, "").partition(",")[0] or name


def shown_path(path: str) -> str:
    """Return a path as text that can be written anywhere."""
    return with_bytes(path)


def drawing_names(files: Sequence[Path]) -> list[str]:
    """Names of the drawings; images of one name, in whatever case (some disks ignore it), are numbered."""
    names: dict[str, str] = {}
    for path in files:
        stem, number = shown_path(path.name), 1
        while (name := f"{stem}{'' if number == 1 else f'-{number}'}.boxes.png").casefold() in names:
            number += 1
        names[name.casefold()] = name
    return list(names.values())


def draw_boxes(image: NDArray[np.uint8], marks: Sequence[Mark]) -> bytes:
    """Draw boxes on an image, the first on top.

    Every line is a colour between two of black, and every label black on a plate of the colour, so that both are seen
    on dark and on bright ground. Equal input gives equal bytes with the same version of Pillow.

    `image` (H, W, 3) uint8, RGB. `marks`: best first.
    Returns a PNG file of W x H pixels.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(min(canvas.size) / 150))
    size = max(10, round(min(canvas.size) / 25))
    coloured = [(mark, COLOURS[number % len(COLOURS)]) for number, mark in enumerate(marks)]
    for mark, colour in reversed(coloured):
        _draw_frame(pen, canvas.size, mark.box, colour, line)
    taken: list[tuple[float, float, float, float]] = []
    for mark, colour in coloured:
        text, font = _label(mark.text, size)
        _draw_label(pen, canvas.size, mark.box, text, colour, font, taken)
    drawn = io.BytesIO()
    canvas.save(drawn, format="PNG")
    return drawn.getvalue()


def _draw_frame(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], box: Box, colour: tuple[int, int, int], line: int
) -> None:
    left, top = max(0, round(box.left)), max(0, round(box.top))
    # Pillow's rectangles hold their last pixel.
    right, bottom = min(size[0], round(box.right)) - 1, min(size[1], round(box.bottom)) - 1
    if right <= left or bottom <= top:
        return
    thin = max(1, line // 2)
    for inset, width, fill in ((0, line + 2 * thin, BLACK), (thin, line, colour)):
        corners = (left + inset, top + inset, right - inset, bottom - inset)
        if corners[2] > corners[0] and corners[3] > corners[1]:
            pen.rectangle(corners, outline=fill, width=width)


def _label(text: str, size: int) -> tuple[str, ImageFont.ImageFont | ImageFont.FreeTypeFont]:
    """Return what a label says, in a font that has its letters where one is installed."""
    text = text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 3]}..."
    if text.isascii():
        return text, ImageFont.load_default(size=size)
    file, text = font_file(text)
    return text, ImageFont.truetype(file, size)


def _draw_label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Box,
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Write the label in the upper left corner of its box, below the labels that are there already."""
    x0, y0, x1, y1 = pen.textbbox((0, 0), text, font=font)
    pad = max(2, round((y1 - y0) / 4))
    width, height = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
    left = min(max(0, round(box.left)), max(0, size[0] - width))
    top = min(max(0, round(box.top)), max(0, size[1] - height))

    def covered() -> float | None:
        """Return where the first label ends that this one would cover."""
        for other_left, other_top, other_right, other_bottom in taken:
            if left < other_right and other_left < left + width and top < other_bottom and other_top < top + height:
                return other_bottom
        return None

    while (bottom := covered()) is not None and bottom + height <= size[1]:
        top = bottom
    taken.append((left, top, left + width, top + height))
    pen.rectangle((left, top, left + width - 1, top + height - 1), fill=colour, outline=BLACK)
    pen.text((left + pad - x0, top + pad - y0), text, fill=BLACK, font=font)
