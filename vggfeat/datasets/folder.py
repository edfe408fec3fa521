"""Anybody's images: a folder per class, a flat folder, or a CSV file that lists them.

N = samples, K = classes.
"""

import math
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggfeat.datasets.files import is_utf8, list_folder, listed
from vggfeat.datasets.manifest import Row, read_rows
from vggfeat.errors import DatasetError
from vggfeat.samples import DataSet, Label, Task

IMAGE_SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
"""Files with one of these endings, in any case, count as images."""

_SPLITS = ("train", "val", "test")


class _Found(NamedTuple):
    """What a walk met; paths relative to its root, with forward slashes."""

    images: list[str]
    folders: list[str]
    others: list[str]
    repeated: list[str]
    unnameable: list[str]


def read(root: Path) -> DataSet:
    """Read a folder of images.

    Parameters
    ----------
    root : Path
        The first level of folders names the classes, and images at any depth below belong to them; or the
        first level is train with or without val and test, and the second names the classes; or all images
        lie directly in the root (or in the split folders), and there are no labels.

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
        If there is no image, or images lie both in class folders and next to them.
    """
    root = Path(root)
    found = _walk(root)
    if not found.images:
        endings = " ".join(IMAGE_SUFFIXES)
        raise DatasetError(f"{root}: expected images ({endings}), found {len(found.others)} other file(s)")
    parts = [path.split("/") for path in found.images]
    tops = {names[0] for names in parts if len(names) > 1}
    depth = int("train" in tops and tops <= set(_SPLITS))
    classes_of = [names[depth] if len(names) > depth + 1 else "" for names in parts]
    _check_one_level(root, parts, depth)
    classes = tuple(sorted(set(classes_of) - {""}))
    splits: dict[str, list[int]] = {name: [] for name in _SPLITS if depth and name in tops}
    for row, names in enumerate(parts):
        if depth:
            splits[names[0]].append(row)
    return DataSet(
        name="folder",
        task=Task.SINGLE_LABEL if classes else Task.UNLABELLED,
        classes=classes,
        ids=tuple(found.images),
        paths=tuple(found.images),
        labels=_label_matrix(classes, [{cls: Label.POSITIVE} if cls else {} for cls in classes_of]),
        splits=_arrays(splits),
        root=str(root),
        notes=_notes(found, tops, depth),
    )


def read_manifest(csv_path: Path) -> DataSet:
    """Read a CSV file that lists images.

    Parameters
    ----------
    csv_path : Path
        The file, or the folder that holds it as manifest.csv. Comma-separated, with a header of
        `vggfeat.datasets.manifest.COLUMNS` in any order. *path* is relative to the folder of the CSV file. *labels*
        are separated by ";", and "?name" means that the image is neither positive nor negative for this class.
        *split* may name several, separated by ";". *box* is "left top right bottom" in pixel edges: 0-based, right
        and bottom exclusive. *id* defaults to the path.

    Returns
    -------
    DataSet
        "manifest": rows in file order; labels (N, K), classes sorted. Single-label if every row has exactly
        one label, multi-label if not, unlabelled if there are none.

    Raises
    ------
    DatasetError
        If a line is malformed, a path is absolute or leaves the folder, or an id occurs twice. The message
        names the line.
    """
    csv_path = Path(csv_path)
    if csv_path.is_dir():
        csv_path /= "manifest.csv"
    rows = list(read_rows(csv_path))
    if not rows:
        raise DatasetError(f"{csv_path}: expected lines below the header, found none")
    _check_ids(csv_path, rows)
    classes = tuple(sorted({name for row in rows for name in row.labels}))
    single = all(list(row.labels.values()) == [Label.POSITIVE] for row in rows)
    task = Task.UNLABELLED if not classes else Task.SINGLE_LABEL if single else Task.MULTI_LABEL
    splits: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        for name in row.splits:
            splits.setdefault(name, []).append(number)
    return DataSet(
        name="manifest",
        task=task,
        classes=classes,
        ids=tuple(row.id for row in rows),
        paths=tuple(row.path for row in rows),
        labels=_label_matrix(classes, [row.labels for row in rows]),
        boxes=_box_matrix(rows),
        splits=_arrays(splits),
        root=str(csv_path.parent),
        notes=_manifest_notes(rows),
    )


def _walk(root: Path) -> _Found:
    found = _Found([], [], [], [], [])
    seen: set[tuple[int, int]] = set()
    # Links wait until all real folders are read, so that a folder keeps its own name and not that of a link.
    folders, links = deque([""]), deque[str]()
    while folders or links:
        folder = (folders or links).popleft()
        status = _stat(root, folder)
        if (status.st_dev, status.st_ino) in seen:
            (found.images if _is_image(folder) else found.repeated).append(folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        found.folders.append(folder)
        for name in list_folder(root / folder):
            path = f"{folder}/{name}" if folder else name
            if name.startswith(".") or name == "__MACOSX":
                continue
            if not is_utf8(name):
                found.unnameable.append(path)
            elif os.path.isdir(root / path):
                (links if os.path.islink(root / path) else folders).append(path)
            else:
                (found.images if _is_image(path) else found.others).append(path)
    found.images.sort()
    return found


def _stat(root: Path, folder: str) -> os.stat_result:
    try:
        return os.stat(root / folder)
    except OSError as error:
        raise DatasetError(f"{root / folder}: expected a folder of images: {error.strerror}") from error


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)


def _check_one_level(root: Path, parts: Sequence[list[str]], depth: int) -> None:
    # 2: in a class folder; 1: directly in the root or in a split folder; 0: next to the split folders
    examples = {min(len(names) - depth, 2): "/".join(names) for names in parts}
    if len(examples) > 1:
        flat, inner = (examples[level] for level in sorted(examples)[:2])
        raise DatasetError(
            f"{root}: expected all images in class folders or none, found {flat!r} next to {inner!r}; "
            "move them, or list them in a manifest"
        )


def _notes(found: _Found, tops: set[str], depth: int) -> tuple[str, ...]:
    level = depth + 1
    used = {"/".join(path.split("/")[:level]) for path in found.images}
    empty = [
        path for path in found.folders if path and path.count("/") < level and path not in used and path not in tops
    ]
    split_like = sorted(tops & set(_SPLITS)) if not depth and len(tops & set(_SPLITS)) > 1 else []
    notes = [
        ("Not images by their endings, and ignored", found.others),
        ("Folders without images, and ignored", empty),
        ("Links to folders that are read under another name, and ignored", found.repeated),
        ("Names that are not UTF-8, and left out; rename them to use them", found.unnameable),
        ("Read as classes, not as splits, because other folders stand next to them or train is missing", split_like),
    ]
    return tuple(f"{what}: {listed(names)}." for what, names in notes if names)


def _check_ids(path: Path, rows: Sequence[Row]) -> None:
    lines: dict[str, int] = {}
    for row in rows:
        if row.id in lines:
            raise DatasetError(
                f"{path}, line {row.line}: expected every id once, found {row.id!r} also in line {lines[row.id]}; "
                "give several boxes on one image an id each"
            )
        lines[row.id] = row.line


def _manifest_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    bare = [row.line for row in rows if not row.labels]
    most_one = all(list(row.labels.values()) in ([], [Label.POSITIVE]) for row in rows)
    if not most_one or not 0 < len(bare) < len(rows):
        return ()
    return (
        f"Read as multi-label, because {len(bare)} line(s) have no label (the first is line {bare[0]}); "
        "give every line one label to make it single-label.",
    )


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
