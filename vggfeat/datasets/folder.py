"""Anybody's images: a folder per class, a flat folder, or a CSV file that lists them.

N = samples, K = classes.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vggfeat.datasets.files import listed
from vggfeat.datasets.levels import SPLITS, Layout, Level, class_name_notes, class_of, find_level, listed_split
from vggfeat.datasets.manifest import Row, read_rows
from vggfeat.datasets.tree import IMAGE_SUFFIXES, Found, walk
from vggfeat.errors import DatasetError
from vggfeat.samples import DataSet, Label, Task


def read(root: Path, layout: Layout | None = None) -> DataSet:
    """Read a folder of images.

    Parameters
    ----------
    root : Path
        The first level of folders names the classes, and images at any depth below belong to them; or the
        first level is splits, and the second names the classes; or all images lie directly in the root (or in the
        split folders), and there are no labels. `vggfeat.datasets.levels.find_level` tells which.
    layout : "splits" or "classes", optional
        What the first level is.

    Returns
    -------
    DataSet
        "folder": ids are the relative paths, sorted by code point; labels (N, K) 1 and -1, or (N, 0). Links to
        folders are followed, but no folder is read twice. Hidden names and __MACOSX are passed over. Anything
        with an image's suffix is listed, even if it can't be opened, so that it is reported and not lost;
        notes count the rest.

    Raises
    ------
    DatasetError
        If there is no image, images lie both in class folders and next to them, or the first level may be splits
        as well as classes.
    """
    root = Path(root)
    found = walk(root)
    if not found.images:
        endings = " ".join(IMAGE_SUFFIXES)
        raise DatasetError(f"{root}: expected images ({endings}), found {len(found.others)} other file(s)")
    level = find_level(root, found.images, layout)
    splits: dict[str, list[int]] = {name: [] for name in level.splits}
    classes_of: list[str | None] = [None] * len(found.images)
    for name, folder in level.folders.items():
        for row, path in enumerate(found.images):
            cls = class_of(path, folder)
            if cls is not None:
                classes_of[row] = cls
                splits.get(name, []).append(row)
    _check_one_level(root, found.images, classes_of)
    classes = tuple(sorted({cls for cls in classes_of if cls}))
    labels = _label_matrix(classes, [{cls: Label.POSITIVE} if cls else {} for cls in classes_of])
    return DataSet(
        name="folder",
        task=Task.SINGLE_LABEL if classes else Task.UNLABELLED,
        classes=classes,
        ids=tuple(found.images),
        paths=tuple(found.images),
        labels=labels,
        splits=_arrays(splits),
        root=str(root),
        notes=(
            *level.notes,
            *class_name_notes(classes),
            *_split_notes(classes, labels, splits),
            *_notes(found, level),
        ),
    )


def read_manifest(csv_path: Path) -> DataSet:
    """Read a CSV file that lists images.

    Parameters
    ----------
    csv_path : Path
        The file, or the folder that holds it as manifest.csv. Comma-separated, with a header of
        `vggfeat.datasets.manifest.COLUMNS` in any order. *path* is relative to the folder of the CSV file. *labels*
        are separated by ";", and "?name" means that the image is neither positive nor negative for this class.
        *split* may name several, separated by ";"; VAL, valid, dev and the like are val, as `listed_split` says.
        *box* is "left top right bottom" in pixel edges: 0-based, right and bottom exclusive. *id* defaults to the path.

    Returns
    -------
    DataSet
        "manifest": rows in file order; labels (N, K), classes sorted. Single-label if every row has exactly
        one label, multi-label if not, unlabelled if there are none.

    Raises
    ------
    DatasetError
        If a line is malformed, a path is absolute or leaves the folder, an id occurs twice, a split has two names or
        one that is nearly train, val or test. The message names the line.
    """
    csv_path = Path(csv_path)
    if csv_path.is_dir():
        csv_path /= "manifest.csv"
        if not csv_path.exists():
            raise DatasetError(
                f"{csv_path}: expected the list of the images, found none; give the CSV file with --root"
            )
    rows = list(read_rows(csv_path))
    if not rows:
        raise DatasetError(f"{csv_path}: expected lines below the header, found none")
    _check_ids(csv_path, rows)
    classes = tuple(sorted({name for row in rows for name in row.labels}))
    single = all(list(row.labels.values()) == [Label.POSITIVE] for row in rows)
    task = Task.UNLABELLED if not classes else Task.SINGLE_LABEL if single else Task.MULTI_LABEL
    labels = _label_matrix(classes, [row.labels for row in rows])
    splits, renamed = _read_splits(csv_path, rows)
    return DataSet(
        name="manifest",
        task=task,
        classes=classes,
        ids=tuple(row.id for row in rows),
        paths=tuple(row.path for row in rows),
        labels=labels,
        boxes=_box_matrix(rows),
        splits=_arrays(splits),
        root=str(csv_path.parent),
        notes=(
            *renamed,
            *_manifest_notes(rows, classes),
            *class_name_notes(classes),
            *_split_notes(classes, labels, splits),
        ),
    )


def _check_one_level(root: Path, images: Sequence[str], classes: Sequence[str | None]) -> None:
    # "": in a split folder or alone; None: next to the split folders
    examples: dict[str | bool | None, str] = {}
    for path, cls in zip(images, classes, strict=True):
        examples.setdefault(bool(cls) if cls is not None else None, path)
    if len(examples) > 1:
        flat, inner = list(examples.values())[:2]
        raise DatasetError(
            f"{root}: expected all images in class folders or none, found {flat!r} next to {inner!r}; "
            "move them, or list them in a manifest"
        )


def _notes(found: Found, level: Level) -> tuple[str, ...]:
    used = _with_parents(path.rpartition("/")[0] for path in found.images)
    above = _with_parents(level.folders.values())
    empty = [path for path in found.folders if path not in used and path.rpartition("/")[0] in above]
    notes = [
        ("Not images by their endings, and ignored", found.others),
        ("Folders without images, and ignored", empty),
        ("Links to folders that are read under another name, and ignored", found.repeated),
        ("Names that are not UTF-8, and left out; rename them to use them", found.unnameable),
    ]
    return tuple(f"{what}: {listed(names)}." for what, names in notes if names)


def _with_parents(folders: Iterable[str]) -> set[str]:
    """Return folders with all above them, the root included."""
    found = {""}
    for folder in set(folders):
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _split_notes(classes: Sequence[str], labels: np.ndarray, splits: Mapping[str, Sequence[int]]) -> list[str]:
    """Name the classes that have positives in one split only."""
    filled = {name: (labels[rows] == Label.POSITIVE).any(axis=0) for name, rows in splits.items() if len(rows)}
    if len(filled) < 2 or not classes:
        return []
    table = np.array(list(filled.values()))  # (splits, K)
    names = list(filled)
    alone = [
        f"{classes[k]} ({names[int(table[:, k].argmax())]})" for k in np.flatnonzero(table.sum(axis=0) == 1).tolist()
    ]
    return [f"Classes that occur in one split only: {listed(alone)}."] if alone else []


def _check_ids(path: Path, rows: Sequence[Row]) -> None:
    lines: dict[str, int] = {}
    for row in rows:
        if row.id in lines:
            raise DatasetError(
                f"{path}, line {row.line}: expected every id once, found {row.id!r} also in line {lines[row.id]}; "
                "give several boxes on one image an id each"
            )
        lines[row.id] = row.line


def _read_splits(path: Path, rows: Sequence[Row]) -> tuple[dict[str, list[int]], list[str]]:
    """Return the rows of each split by the name that protocols know, and a note of names that were another."""
    splits: dict[str, list[int]] = {}
    spelled: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(rows):
        for text in row.splits:
            try:
                name = listed_split(text)
            except ValueError as error:
                known = ", ".join(SPLITS)
                raise DatasetError(
                    f"{path}, line {row.line}: expected a split {known} or another name, {error}"
                ) from None
            first, line = spelled.setdefault(name, (text, row.line))
            if first.lower() != text.lower():
                raise DatasetError(
                    f"{path}, line {row.line}: expected one name for the split {name}, found {text!r}, and "
                    f"{first!r} in line {line}; use one of them"
                )
            if number not in splits.setdefault(name, [])[-1:]:
                splits[name].append(number)
    renamed = [f"{text} as {name}" for name, (text, _) in spelled.items() if text != name]
    return splits, [f"Read as splits: {listed(renamed)}."] if renamed else []


def _manifest_notes(rows: Sequence[Row], classes: Sequence[str]) -> list[str]:
    notes = []
    # Lists of Python and JSON too, and the commas of Chinese.
    apart = re.compile(r"[,|/&+\t\uff0c\uff1b\u3001]")
    parts = {name: {part.strip(" []'\"") for part in apart.split(name)} - {""} for name in classes}
    seen = Counter(part for several in parts.values() for part in several)
    joined = [
        repr(name) for name, several in parts.items() if several != {name} and any(seen[one] > 1 for one in several)
    ]
    if joined:
        notes.append(f"Read as one class each: {listed(joined)}; several labels of an image are separated by ';'.")
    bare = [row.line for row in rows if not row.labels]
    most_one = all(list(row.labels.values()) in ([], [Label.POSITIVE]) for row in rows)
    if most_one and 0 < len(bare) < len(rows):
        notes.append(
            f"Read as multi-label, because {len(bare)} line(s) have no label (the first is line {bare[0]}); "
            "give every line one label to make it single-label."
        )
    return notes


def _label_matrix(classes: Sequence[str], labels: Sequence[dict[str, int]]) -> np.ndarray:
    column_of = {name: column for column, name in enumerate(classes)}
    matrix = np.full((len(labels), len(classes)), Label.NEGATIVE, dtype=np.int8)
    for row, known in enumerate(labels):
        for name, label in known.items():
            matrix[row, column_of[name]] = label
    return matrix


def _box_matrix(rows: Sequence[Row]) -> np.ndarray | None:
    if all(row.box is None for row in rows):
        return None
    return np.array([row.box or (math.nan,) * 4 for row in rows], dtype=np.float64)


def _arrays(splits: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {name: np.array(rows, dtype=np.int64) for name, rows in splits.items()}
