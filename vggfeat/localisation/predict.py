"""Guesses for a user's own images, and drawings of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vggfeat.datasets.files import list_folder
from vggfeat.datasets.folder import IMAGE_SUFFIXES
from vggfeat.errors import ConfigError, ImageError
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.localisation.drawing import Mark, draw_boxes
from vggfeat.localisation.guesses import Ask, Located
from vggfeat.localisation.locate import Localiser

_AT_ONCE = 8


class Predicted(NamedTuple):
    """What became of one image."""

    path: str
    located: Located
    drawn: str
    """Name of the file with its boxes; empty if it failed."""


def image_files(places: Sequence[Path]) -> list[Path]:
    """Return images in the order given; a folder stands for the images in it, sorted, but not for its folders.

    Raises
    ------
    ConfigError
        If there are none.
    """
    found: list[Path] = []
    for place in places:
        names = list_folder(place) if place.is_dir() else []
        inside = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
        found += [place / name for name in inside] if place.is_dir() else [place]
    if not found:
        raise ConfigError("images: expected files, or folders of some, found none")
    return found


def predict_files(
    files: Sequence[Path],
    localiser: Localiser,
    classes: Sequence[str],
    words: Mapping[str, str],
    save: Callable[[str, bytes], object],
    *,
    workers: int = 0,
    decode: DecodeSettings = DecodeSettings(),  # noqa: B008  frozen
    progress: Callable[[int, int], None] | None = None,
) -> list[Predicted]:
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
    save : callable
        Called with NAME.boxes.png and the bytes of the drawing, for every image that could be read.
    workers, decode
        As for `vggfeat.extract.extract_features`.
    progress : callable, optional
        Called with images done and in all.

    Returns
    -------
    list of Predicted
        In the order of the files; an image that can't be read has a reason, and the others go on.
    """
    found: list[Predicted] = []
    names = _drawing_names(files)
    # The images are drawn on, so they are decoded at full size.
    with Decoder(workers, replace(decode, largest_side=None)) as decoder:
        answers = decoder.stream(Request(str(path.absolute()), (None,)) for path in files)
        if progress is not None:
            progress(0, len(files))
        for start in range(0, len(files), _AT_ONCE):
            paths = files[start : start + _AT_ONCE]
            images = [next(answers) for _ in paths]
            for path, image, located in zip(paths, images, localiser.locate(images, [Ask()] * len(paths)), strict=True):
                found.append(_drawn(path, image, located, names[len(found)], classes, words, save))
            if progress is not None:
                progress(len(found), len(files))
    return found


def title(name: str, words: Mapping[str, str]) -> str:
    """Return what people call a class, in short."""
    return words.get(name, "").partition(",")[0] or name


def shown_path(path: str) -> str:
    """Return a path as text that can be written anywhere."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _drawn(
    path: Path,
    image: DecodedImage | ImageError,
    located: Located,
    name: str,
    classes: Sequence[str],
    words: Mapping[str, str],
    save: Callable[[str, bytes], object],
) -> Predicted:
    if located.reason or isinstance(image, ImageError):
        return Predicted(str(path), located._replace(reason=located.reason.replace(f"{path.absolute()}: ", "")), "")
    marks = [
        Mark(guess.box, f"{title(classes[guess.label], words)} {100 * guess.posterior:.0f} %")
        for guess in located.ranked()
    ]
    save(name, draw_boxes(image.regions[0], marks))
    return Predicted(str(path), located, name)


def _drawing_names(files: Sequence[Path]) -> list[str]:
    """Names of the drawings; images of one name in several folders are numbered."""
    names: list[str] = []
    taken: set[str] = set()
    for path in files:
        stem, number = shown_path(path.name), 1
        while (name := f"{stem}{'' if number == 1 else f'-{number}'}.boxes.png") in taken:
            number += 1
        taken.add(name)
        names.append(name)
    return names
