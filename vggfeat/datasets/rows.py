"""What the cells of a list say, column by column: paths, labels, splits, boxes and groups. N = rows."""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np

from vggfeat.datasets.cells import Cells, plain
from vggfeat.datasets.files import check_locale, listed
from vggfeat.datasets.levels import SPLITS, listed_split
from vggfeat.errors import DatasetError
from vggfeat.samples import Box, Label
from vggfeat.wording import counted

Value = TypeVar("Value")
ONE_HOT = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
"""What the cells of a column hold that is a class."""
_EXCEL_ERRORS = frozenset(("#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NUM!", "#NULL!"))
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _each(cells: Cells, texts: Iterable[str], read: Callable[[str, str], Value]) -> list[Value]:
    """Read every cell, equal ones once; `read` takes file and line, and the text."""
    known: dict[str, Value] = {}
    for row, text in enumerate(texts):
        if text not in known:
            known[text] = read(cells.where(row), text)
    return [known[text] for text in texts]


def read_paths(cells: Cells, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return paths with forward slashes, and a note of those that had others."""
    folder, turned = cells.path.parent, list[str]()
    paths = []
    for row, text in enumerate(texts):
        path = text
        if "\\" in path and not ("\0" in path or os.path.lexists(folder / path)):
            path = path.replace("\\", "/")
            turned.append(text)
        paths.append(path if _is_simple(path) else path_below(cells.where(row), path))
    check_locale(cells.path, paths)
    read = f"Read with / for \\: {counted(len(turned), 'path{s}')}, the first is "
    return paths, [f"{read}{turned[0]}."] if turned else []


def _is_simple(path: str) -> bool:
    return bool(path) and path[0] not in "./" and path[-1] not in "./" and not re.search(r"//|/\.|\0|^\w:/", path)


def path_below(where: str, text: str) -> str:
    """Return a path below the folder of a list, in its simplest form; DatasetError for any other."""
    if _is_simple(text):
        return text
    path = PurePosixPath(text)
    elsewhere = path.is_absolute() or re.match(r"[A-Za-z]:/|[A-Za-z][\w+.-]*://", text)  # a drive, an address
    if elsewhere or ".." in path.parts or "\0" in text or not path.name:
        raise DatasetError(f"{where}: expected a path below the folder of the list, without '..', found {text[:200]!r}")
    return str(path)


def read_labels(cells: Cells, column: int, separator: str | None) -> tuple[list[dict[str, int]], tuple[str, ...]]:
    """Return the labels of every row, and the classes.

    `column`: number of the column of labels. `separator`: between several labels in a cell; "none" for one label a
    cell. None: ";" in a column called labels, while elsewhere a cell with ";" is refused.
    """
    heading = cells.headings[column]
    found = _each(cells, cells.columns[column], partial(cell_labels, heading, separator or usual_separator(heading)))
    return found, tuple(sorted({name for some in found for name in some}))


def usual_separator(heading: str) -> str | None:
    """Return what parts several labels in a cell, where nobody has said it."""
    return ";" if plain(heading) == "labels" else None


def read_one_hot(cells: Cells, columns: Mapping[str, int]) -> tuple[list[dict[str, int]], tuple[str, ...]]:
    """Return the same of columns that are a class each, class -> number of the column."""
    marks = [_each(cells, cells.columns[number], partial(_mark, name)) for name, number in columns.items()]
    rows = [[name for name, mark in zip(columns, row, strict=True) if mark] for row in zip(*marks, strict=True)]
    return [dict.fromkeys(names, int(Label.POSITIVE)) for names in rows], tuple(sorted(columns))


def _mark(heading: str, where: str, text: str) -> bool:
    mark = ONE_HOT.get(text.strip().lower())
    if mark is None:
        raise DatasetError(f"{where}: expected 0 or 1, True or False in the column {heading!r}, found {text[:80]!r}")
    return mark


def _refuse_error(where: str, text: str) -> None:
    if text.strip() in _EXCEL_ERRORS:
        raise DatasetError(f"{where}: expected a value, found {text.strip()}, the result of a formula that failed")


def cell_labels(heading: str, separator: str | None, where: str, text: str) -> dict[str, int]:
    """Return the labels that a cell names, as `read_labels` does."""
    _refuse_error(where, text)
    if separator is None and ";" in text:
        raise DatasetError(
            f"{where}: expected one way to read {text[:80]!r} in the column {heading!r}, found one class or several; "
            "say which with --label-separator none or --label-separator ';'"
        )
    labels: dict[str, int] = {}
    several = text.split(separator) if separator not in (None, "none") else [text]
    for item in filter(None, (part.strip() for part in several)):
        name = item.removeprefix("?").strip()
        label = Label.IGNORED if item.startswith("?") else Label.POSITIVE
        if not name or labels.get(name, label) != label:
            raise DatasetError(f"{where}: expected labels as name or ?name, not both, found {text[:80]!r}")
        labels[name] = label
    return labels


def read_splits(cells: Cells, texts: Sequence[str]) -> tuple[dict[str, list[int]], list[str]]:
    """Return the rows of each split by the name that protocols know, and a note of names that were another."""
    splits: dict[str, list[int]] = {}
    spelled: dict[str, tuple[str, str]] = {}

    def read(where: str, text: str) -> list[str]:
        pairs = cell_splits(where, text)
        for written, name in pairs:
            first, place = spelled.setdefault(name, (written, where))
            if first.lower() != written.lower():
                raise DatasetError(
                    f"{where}: expected one name for the split {name}, found {written!r}, and {first!r} in "
                    f"{place.rpartition(', ')[2]}; use one of them"
                )
        return list(dict.fromkeys(name for _, name in pairs))

    for row, names in enumerate(_each(cells, texts, read)):
        for name in names:
            splits.setdefault(name, []).append(row)
    renamed = [f"{text} as {name}" for name, (text, _) in spelled.items() if text != name]
    return splits, [f"Read as splits: {listed(renamed)}."] if renamed else []


def cell_splits(where: str, text: str) -> list[tuple[str, str]]:
    """Return the splits that a cell names: as written, and as protocols know it."""
    pairs = []
    for written in filter(None, (part.strip() for part in text.split(";"))):
        if not _SPLIT_NAME.fullmatch(written):
            raise DatasetError(f"{where}: expected split names of letters, digits and _ . -, found {written[:40]!r}")
        try:
            pairs.append((written, listed_split(written)))
        except ValueError as error:
            raise DatasetError(f"{where}: expected a split {', '.join(SPLITS)} or another name, {error}") from None
    return pairs


def read_boxes(cells: Cells, texts: Sequence[str]) -> np.ndarray | None:
    """Return boxes (N, 4), NaN where there is none; None if no row has one."""
    boxes = _each(cells, texts, cell_box)
    if not any(boxes):
        return None
    return np.array([box or (math.nan,) * 4 for box in boxes], dtype=np.float64)


def cell_box(where: str, text: str) -> Box | None:
    """Return the box that a cell holds; None if it is empty."""
    if not text.strip():
        return None
    try:
        box = Box(*(float(part) for part in re.split(r"\s*[;\s]\s*", text.strip())))
    except (TypeError, ValueError):
        box = Box(math.nan, math.nan, math.nan, math.nan)
    if not (all(map(math.isfinite, box)) and box.left < box.right and box.top < box.bottom):
        raise DatasetError(
            f"{where}: expected a box as 'left top right bottom' with left < right and top < bottom, "
            f"found {text[:80]!r}"
        )
    return box


def _group(where: str, text: str) -> str:
    _refuse_error(where, text)
    return text.strip()


def read_groups(cells: Cells, texts: Sequence[str]) -> tuple[str, ...] | None:
    """Return the group of every row; None if there are none."""
    groups = tuple(_each(cells, texts, _group))
    if not any(groups):
        return None
    if not all(groups):
        raise DatasetError(
            f"{cells.where(groups.index(''))}: expected a group in every line, found none; give an image that belongs "
            "to no other a group of its own"
        )
    return groups
