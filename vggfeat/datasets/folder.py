"""Anybody's images: a folder per class, or a flat folder.

N = samples, K = classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggfeat.datasets.files import IMAGE_SUFFIXES, listed, walk
from vggfeat.datasets.levels import Layout, Level, class_name_notes, class_of, find_level
from vggfeat.errors import DatasetError
from vggfeat.samples import DataSet, Label, Task
from vggfeat.wording import counted


def read(root: Path, layout: Layout | None = None) -> DataSet:
    """Read a folder of images.

    Parameters
    ----------
    root : Path
        The first level of folders names the classes, and images at any depth below belong to them; or the first level
        is splits, and the second names the classes; or all images lie directly in the root (or in the split folders),
        and there are no labels.
    layout : "splits" or "classes", optional
        What the first level is; by default `vggfeat.datasets.levels.find_level` tells.

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
        If there is no image, images lie both in class folders and next to them, or the first level may be splits as
        well as classes.
    """
    root = Path(root)
    found = walk(root)
    if not found.images:
        endings = " ".join(IMAGE_SUFFIXES)
        raise DatasetError(f"{root}: expected images ({endings}), found {counted(len(found.others), 'other file{s}')}")
    arranged = arrange(root, found.images, layout)
    level, classes, splits = arranged.level, arranged.classes, arranged.splits
    labels = label_matrix(classes, [{cls: Label.POSITIVE} if cls else {} for cls in arranged.classes_of])
    empty = empty_folders(found.folders, (path.rpartition("/")[0] for path in found.images), level)
    return DataSet(
        name="folder",
        task=Task.SINGLE_LABEL if classes else Task.UNLABELLED,
        classes=classes,
        ids=tuple(found.images),
        paths=tuple(found.images),
        labels=labels,
        splits=row_arrays(splits),
        root=str(root),
        notes=(
            *level.notes,
            *class_name_notes(classes),
            *split_notes(classes, labels, splits),
            *left_out_notes(found.others, empty, found.repeated, found.unnameable),
        ),
    )


class Arranged(NamedTuple):
    """What the folders of images say of them."""

    level: Level
    classes: tuple[str, ...]
    """Sorted."""
    classes_of: list[str | None]
    """Class of each image; "" where it lies in none."""
    splits: dict[str, list[int]]
    """Name of each split -> the numbers of its images."""


def arrange(root: Path | str, images: Sequence[str], layout: Layout | None) -> Arranged:
    """Tell classes and splits of images by their folders; one image of each folder tells as much as all.

    Raises DatasetError as `read`.
    """
    level = find_level(root, images, layout)
    splits: dict[str, list[int]] = {name: [] for name in level.splits}
    classes_of: list[str | None] = [None] * len(images)
    for name, folder in level.folders.items():
        for row, path in enumerate(images):
            cls = class_of(path, folder)
            if cls is not None:
                classes_of[row] = cls
                splits.get(name, []).append(row)
    _check_one_level(root, images, classes_of)
    return Arranged(level, tuple(sorted({cls for cls in classes_of if cls})), classes_of, splits)


def _check_one_level(root: Path | str, images: Sequence[str], classes: Sequence[str | None]) -> None:
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


def left_out_notes(*left_out: Sequence[str]) -> tuple[str, ...]:
    """Return notes on the names of files, folders and links that are not read, for each of `LEFT_OUT` that has some."""
    return tuple(f"{what}: {listed(names)}." for what, names in zip(LEFT_OUT, left_out, strict=True) if names)


LEFT_OUT = (
    "Not images by their endings, and ignored",
    "Folders without images, and ignored",
    "Links to folders that are read under another name, and ignored",
    "Names that are not UTF-8, and left out; rename them to use them",
)
"""Notes on what a walk has met besides images."""


def empty_folders(folders: Iterable[str], filled: Iterable[str], level: Level) -> list[str]:
    """Return the folders that stand for a class or split and hold no image."""
    used, above = _with_parents(filled), _with_parents(level.folders.values())
    return [path for path in folders if path not in used and path.rpartition("/")[0] in above]


def _with_parents(folders: Iterable[str]) -> set[str]:
    """Return folders with all above them, the root included."""
    found = {""}
    for folder in set(folders):
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def split_notes(classes: Sequence[str], labels: np.ndarray, splits: Mapping[str, Sequence[int]]) -> list[str]:
    """Name the classes that have positives in one split only."""
    filled = {name: (labels[rows] == Label.POSITIVE).any(axis=0) for name, rows in splits.items() if len(rows)}
    return lonely_notes(
        classes, {name: {classes[k] for k in np.flatnonzero(some).tolist()} for name, some in filled.items()}
    )


def lonely_notes(classes: Sequence[str], filled: Mapping[str, set[str]]) -> list[str]:
    """Name the classes that are in one split only, of the classes that each split has."""
    places = {cls: [name for name, some in filled.items() if cls in some] for cls in classes}
    alone = [f"{cls} ({names[0]})" for cls, names in places.items() if len(names) == 1 < len(filled)]
    return [f"Classes that occur in one split only: {listed(alone)}."] if alone else []


def label_matrix(classes: Sequence[str], labels: Sequence[dict[str, int]]) -> np.ndarray:
    """Return labels (N, K): what is known of each row, and negative for all other classes."""
    column_of = {name: column for column, name in enumerate(classes)}
    matrix = np.full((len(labels), len(classes)), Label.NEGATIVE, dtype=np.int8)
    for row, known in enumerate(labels):
        for name, label in known.items():
            matrix[row, column_of[name]] = label
    return matrix


def row_arrays(splits: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Return the rows of splits as a `DataSet` takes them."""
    return {name: np.array(rows, dtype=np.int64) for name, rows in splits.items()}
