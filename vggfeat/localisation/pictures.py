"""Guesses for a user's own pictures: drawn, as JSON and as CSV."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.datasets.folder import PICTURE_SUFFIXES
from vggfeat.datasets.textfiles import list_folder
from vggfeat.errors import ConfigError, PictureError
from vggfeat.images.decoding import DecodeSettings, Picture, Request
from vggfeat.images.pool import Decoder
from vggfeat.localisation.drawing import Mark, draw_boxes
from vggfeat.localisation.guesses import Ask, Located
from vggfeat.localisation.predicting import Localiser
from vggfeat.report.files import write_files
from vggfeat.samples import Box

_AT_ONCE = 8


class Predicted(NamedTuple):
    """What became of one picture."""

    path: str
    located: Located
    drawn: str
    """Name of the file with its boxes; empty if it failed."""


def picture_files(places: Sequence[Path]) -> list[Path]:
    """Return pictures in the order given; a folder stands for the pictures in it, sorted, but not for its folders.

    Raises
    ------
    ConfigError
        If there are none.
    """
    found: list[Path] = []
    for place in places:
        names = list_folder(place) if place.is_dir() else []
        inside = [name for name in names if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")]
        found += [place / name for name in inside] if place.is_dir() else [place]
    if not found:
        raise ConfigError("pictures: expected files, or folders of some, found none")
    return found


def predict_files(
    files: Sequence[Path],
    localiser: Localiser,
    folder: Path,
    classes: Sequence[str],
    words: Mapping[str, str],
    *,
    workers: int = 0,
    decode: DecodeSettings = DecodeSettings(),  # noqa: B008  frozen
    progress: Callable[[int, int], None] | None = None,
) -> list[Predicted]:
    """Locate what is on some pictures, and draw it.

    Parameters
    ----------
    files : sequence of Path
    localiser : Localiser
        With a classification net.
    folder : Path
        Receives NAME.boxes.png for every picture, predictions.json and predictions.csv.
    classes : sequence of str
        K names.
    words : mapping
        Class name -> what people call it, where that is known.
    workers, decode
        As for `vggfeat.caching.cache_features`.
    progress : callable, optional
        Called with pictures done and in all.

    Returns
    -------
    list of Predicted
        In the order of the files; a picture that can't be read has a reason, and the others go on.

    Raises
    ------
    FitError
        If the folder can't be written.
    """
    found: list[Predicted] = []
    names = _drawing_names(files)
    # The pictures are drawn on, so they are decoded at full size.
    with Decoder(workers, replace(decode, largest_side=None)) as decoder:
        answers = decoder.stream(Request(str(path.absolute()), (None,)) for path in files)
        if progress is not None:
            progress(0, len(files))
        for start in range(0, len(files), _AT_ONCE):
            paths = files[start : start + _AT_ONCE]
            pictures = [next(answers) for _ in paths]
            for path, picture, located in zip(
                paths, pictures, localiser.locate(pictures, [Ask()] * len(paths)), strict=True
            ):
                found.append(_drawn(path, picture, located, folder, names[len(found)], classes, words))
            if progress is not None:
                progress(len(found), len(files))
    write_files(
        folder,
        {
            "predictions.json": json.dumps(predictions_json(found, classes, words), indent=2).encode() + b"\n",
            "predictions.csv": _csv(found, classes, words),
        },
    )
    return found


def predictions_json(found: Sequence[Predicted], classes: Sequence[str], words: Mapping[str, str]) -> dict[str, Any]:
    """Return the guesses ready for JSON; boxes are edges in pixels: left, top, right, bottom."""
    return {
        "format": "vggfeat-boxes",
        "version": 1,
        "pictures": [
            {
                "path": _text(one.path),
                "height": one.located.size[0],
                "width": one.located.size[1],
                "failed": one.located.reason,
                "drawn": one.drawn,
                "guesses": [
                    {
                        "class": classes[k],
                        "words": words.get(classes[k], ""),
                        "posterior": round(posterior, 6),
                        "box": [round(edge, 2) for edge in box],
                        "windows": windows,
                    }
                    for k, posterior, box, windows in _guesses(one.located)
                ],
            }
            for one in found
        ],
    }


def summary_lines(found: Sequence[Predicted], classes: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Return a line a picture: its best guess, or why there is none."""
    lines = []
    for one in found:
        if one.located.reason:
            lines.append(f"failed: {_text(one.path)}: {one.located.reason}")
            continue
        k, posterior, box, _ = next(_guesses(one.located))
        edges = " ".join(f"{edge:.0f}" for edge in box)
        lines.append(f"{_text(one.path)}: {_title(classes[k], words)} {100 * posterior:.0f} %, box {edges}")
    return lines


def _drawn(
    path: Path,
    picture: Picture | PictureError,
    located: Located,
    folder: Path,
    name: str,
    classes: Sequence[str],
    words: Mapping[str, str],
) -> Predicted:
    if located.reason or isinstance(picture, PictureError):
        return Predicted(str(path), located._replace(reason=located.reason.replace(f"{path.absolute()}: ", "")), "")
    marks = [
        Mark(Box(*box), f"{_title(classes[k], words)} {100 * posterior:.0f} %")
        for k, posterior, box, _ in _guesses(located)
    ]
    write_files(folder, {name: draw_boxes(_whole(picture), marks)})
    return Predicted(str(path), located, name)


def _whole(picture: Picture) -> NDArray[np.uint8]:
    return picture.regions[0]


def _guesses(located: Located) -> Iterator[tuple[int, float, list[float], int]]:
    for row in range(located.guesses):
        yield (
            int(located.classes[row]),
            float(located.posteriors[row]),
            located.boxes[row].tolist(),
            int(located.windows[row]),
        )


def _drawing_names(files: Sequence[Path]) -> list[str]:
    """Names of the drawings; pictures of one name in several folders are numbered."""
    names: list[str] = []
    taken: set[str] = set()
    for path in files:
        stem, number = _text(path.name), 1
        while (name := f"{stem}{'' if number == 1 else f'-{number}'}.boxes.png") in taken:
            number += 1
        taken.add(name)
        names.append(name)
    return names


def _title(name: str, words: Mapping[str, str]) -> str:
    return words.get(name, "").partition(",")[0] or name


def _csv(found: Sequence[Predicted], classes: Sequence[str], words: Mapping[str, str]) -> bytes:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["path", "class", "words", "posterior", "left", "top", "right", "bottom", "failed"])
    for one in found:
        for k, posterior, box, _ in _guesses(one.located):
            edges = [f"{edge:.2f}" for edge in box]
            title = words.get(classes[k], "")
            lines.writerow([_text(one.path), classes[k], title, f"{posterior:.6f}", *edges, ""])
        if one.located.reason:
            lines.writerow([_text(one.path), *[""] * 7, one.located.reason])
    return text.getvalue().encode("utf-8", "backslashreplace")


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
