"""The file that ILSVRC's evaluation takes: a line an image, "label xmin ymin xmax ymax" once to five times.

N = images in the order of their file names, G = guesses, K = classes. Labels are the numbers of the development
kit, from 1, which are not in the order of the WNIDs; boxes are 1-based whole pixels, both ends inclusive.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.datasets.files import read_text
from vggfeat.datasets.ilsvrc import find_kit, read_classes
from vggfeat.errors import DatasetError
from vggfeat.metrics import GUESSES

FILLER = "0 0 0 0 0"
"""Line of an image without a guess. No class has the number 0, so it is never right; the official script reads the
same where a line has fewer guesses than another, because `dlmread` fills up with zeros. An empty line would be skipped,
which would give every later guess to another image."""
_FIELDS = 5
_LONGEST = 4096
_MOST = 1 << 28


class ClassIds(NamedTuple):
    """How classes are numbered in a submission."""

    ids: NDArray[np.int64]
    """(K,) number of each class, in the order of the data's classes."""
    source: str
    """Where the numbers come from, in words."""


def class_ids(classes: tuple[str, ...], root: Path) -> ClassIds:
    """Find the number of each class: that of the development kit in or next to the root, else its place from 1.

    Raises DatasetError if there is a kit that lacks a class.
    """
    kit = find_kit((root, root.parent))
    if kit is None:
        return ClassIds(np.arange(1, len(classes) + 1), "places in the sorted list of classes, because there is no kit")
    by_name = {wnid: number for number, wnid in read_classes(kit)[0].items()}
    missing = [name for name in classes if name not in by_name]
    if missing:
        raise DatasetError(f"{kit.meta}: expected every class of the data, found none of the name {missing[0]}")
    return ClassIds(
        np.array([by_name[name] for name in classes], dtype=np.int64),
        f"the numbers of the development kit ({kit.meta.name})",
    )


def submission_text(labels: ArrayLike, boxes: ArrayLike, numbers: ArrayLike) -> str:
    """Write guesses as the official file has them.

    Parameters
    ----------
    labels : (N, G) array of int
        Classes from 0, -1 = no guess; an image without any gets the line `FILLER`.
    boxes : (N, G, 4) array of int
        xmin, ymin, xmax, ymax in inclusive pixels.
    numbers : (K,) array of int
        Number of each class in the file.
    """
    known = np.asarray(numbers)
    lines = []
    for classes, places in zip(np.asarray(labels).tolist(), np.asarray(boxes).tolist(), strict=True):
        guesses = [
            f"{known[k]} {' '.join(str(int(edge)) for edge in box)}"
            for k, box in zip(classes, places, strict=True)
            if k >= 0
        ]
        lines.append(" ".join(guesses) or FILLER)
    return "".join(f"{line}\n" for line in lines)


def read_submission(path: Path, *, images: int, classes: int = 1000) -> list[NDArray[np.float64]]:
    """Read a submission, and check every number of it.

    Parameters
    ----------
    path : Path
    images : int
        Lines that there must be, for instance 50000 for validation and 100000 for test.
    classes : int
        Labels are from 1 to this.

    Returns
    -------
    list of N arrays (G, 5), float64
        label, xmin, ymin, xmax, ymax of each guess; G from 0 to 5. Five zeros are no guess.

    Raises
    ------
    DatasetError
        If the file can't be read; for the first line that is not of the format, or another number of lines. File and
        line are named.
    """
    lines = read_text(path, _MOST).split("\n")
    if lines[-1] == "":
        lines.pop()
    found = [_guesses(f"{path}, line {number}", line, classes) for number, line in enumerate(lines, start=1)]
    if len(found) != images:
        raise DatasetError(f"{path}: expected {images} lines, one an image in the order of names, found {len(found)}")
    return found


def _guesses(where: str, line: str, classes: int) -> NDArray[np.float64]:
    if len(line) > _LONGEST:
        raise DatasetError(f"{where}: expected at most {_LONGEST} characters, found {len(line)}")
    fields = line.split()
    if not fields or len(fields) % _FIELDS or len(fields) > GUESSES * _FIELDS:
        raise DatasetError(
            f"{where}: expected label xmin ymin xmax ymax once to {GUESSES} times, found {len(fields)} fields"
        )
    guesses = np.array([_number(where, field) for field in fields]).reshape(-1, _FIELDS)
    guesses = guesses[guesses.any(axis=1)]
    for label, xmin, ymin, xmax, ymax in guesses.tolist():
        if label != int(label) or not 1 <= label <= classes:
            raise DatasetError(f"{where}: expected labels from 1 to {classes}, found {label:g}")
        if xmin > xmax or ymin > ymax:
            raise DatasetError(
                f"{where}: expected xmin <= xmax and ymin <= ymax, found {xmin:g} {ymin:g} {xmax:g} {ymax:g}"
            )
    return guesses


def _number(where: str, field: str) -> float:
    try:
        # Python reads more than other programs do: 1_000, and digits of any script.
        value = float(field) if field.isascii() and "_" not in field else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(f"{where}: expected finite numbers, found {field[:40]!r}")
    return value
