"""Caltech-101 and Caltech-256: a folder per class, and splits that need no random-number library.

The protocol is that of the VGG paper, App. B ("Image classification on Caltech-101 and Caltech-256"): random
splits with 30 (60) training images per class, up to 50 (all the rest) to test, and 20 % of the training
images to choose settings by. "Random" here is the order of SHA-256 digests, which every language repeats.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggfeat.checks import whole_number
from vggfeat.datasets.files import is_utf8, list_folder, listed
from vggfeat.datasets.record import Archive
from vggfeat.errors import ConfigError, DatasetError
from vggfeat.samples import DataSet, Label, Task, rank_by_hash

ARCHIVES = {
    101: Archive("caltech-101.zip", "md5", "3138e1922a9193bfa496528edbbc45d0",
                 "https://data.caltech.edu/records/mzrjq-6wc02"),
    256: Archive("256_ObjectCategories.tar", "md5", "67b4f42ca05d46448c6bb8ecd2220f6d",
                 "https://data.caltech.edu/records/nyy15-4j048"),
}  # fmt: skip
"""By variety."""

_INNER_ARCHIVE = {101: ", then 101_ObjectCategories.tar.gz in it,", 256: ""}
_CLASS_FOLDER = {101: re.compile(r"[^.].*"), 256: re.compile(r"\d{3}\..+")}


class Draw(NamedTuple):
    """Names of one class, drawn for one split, best rank first."""

    train: list[str]
    held_out: list[str]
    """The first of `train`."""
    test: list[str]


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How many images of each class go where.

    Raises ConfigError if `train` or `test` is below 1, or `held_out` is not between 0 and `train` - 1.
    """

    train: int
    """Training images per class."""
    held_out: int
    """Training images per class, the first ranks, on which settings are chosen before the last fit."""
    test: int | None
    """Most test images per class, the ranks behind the training images; None takes all the rest."""

    def __post_init__(self) -> None:
        if self.train < 1 or (self.test is not None and self.test < 1):
            raise ConfigError(f"split rule: expected train and test from 1, found {self.train} and {self.test}")
        if not 0 <= self.held_out < self.train:
            raise ConfigError(f"split rule: expected held_out from 0 to {self.train - 1}, found {self.held_out}")

    def draw(self, seed: int, cls: str, names: Sequence[str]) -> Draw:
        """Draw the images of one class, ranked by the SHA-256 of "seed/class/name".

        Parameters
        ----------
        seed : int
            Another number, another split.
        cls : str
            Name of the class.
        names : sequence of str
            Unique file names of the class, in any order.

        Raises
        ------
        DatasetError
            If not a single test image is left.
        """
        if len(names) <= self.train:
            raise DatasetError(
                f"class {cls}: expected at least {self.train + 1} images ({self.train} to train, 1 to test), "
                f"found {len(names)}"
            )
        ranked = rank_by_hash(f"{seed}/{cls}", list(names))
        most = None if self.test is None else self.train + self.test
        return Draw(ranked[: self.train], ranked[: self.held_out], ranked[self.train : most])


OFFICIAL = {101: SplitRule(train=30, held_out=6, test=50), 256: SplitRule(train=60, held_out=12, test=None)}
"""The rules of the paper, by variety."""


def read(root: Path, variety: int, *, seed: int = 0, splits: int = 3, rule: SplitRule | None = None) -> DataSet:
    """Read Caltech-101 or Caltech-256 and draw its splits.

    Parameters
    ----------
    root : Path
        `101_ObjectCategories` (or `256_ObjectCategories`) or the folder that holds it.
    variety : int
        101 or 256. All 102 or 257 folders are classes, the background and clutter folders too.
    seed : int
        Split k (from 0) ranks the files of a class by the SHA-256 of "{seed + k}/class/file name".
    splits : int
        How many splits to draw, from 1.
    rule : SplitRule, optional
        How many images go where; by default `OFFICIAL[variety]`.

    Returns
    -------
    DataSet
        "caltech101" or "caltech256": one row per .jpg file that lies directly in a class folder, ids
        "class/file name" in sorted order; labels (N, K) 1 and -1; splits "train-1", "held-out-1" (a part of
        train-1), "test-1", "train-2", ... A note names what was ignored.

    Raises
    ------
    DatasetError
        If the folder is not found, or a class has too few images for one to be left to test.
    """
    if variety not in OFFICIAL:
        raise ConfigError(f"variety: expected 101 or 256, found {variety}")
    seed, splits = whole_number("seed", seed), whole_number("splits", splits, 1)
    tree = _find_tree(Path(root), variety)
    files, strays = _list_classes(tree, _CLASS_FOLDER[variety])
    ids = tuple(f"{cls}/{name}" for cls, names in files.items() for name in names)
    return DataSet(
        name=f"caltech{variety}",
        task=Task.SINGLE_LABEL,
        classes=tuple(files),
        ids=ids,
        paths=ids,
        labels=_one_hot(files),
        splits=_draw_splits(tree, files, ids, range(seed, seed + splits), rule or OFFICIAL[variety]),
        root=str(tree),
        notes=(f"Ignored, because they are not .jpg images of a class: {listed(strays)}.",) if strays else (),
    )


def _find_tree(root: Path, variety: int) -> Path:
    name = f"{variety}_ObjectCategories"
    for tree in (root / name, root / f"caltech-{variety}" / name):
        if isdir(tree):
            return tree
    if isdir(root) and any(_list_classes(root, _CLASS_FOLDER[variety])[0].values()):
        return root
    raise DatasetError(
        f"{root}: expected {name} in it, found none; unpack {ARCHIVES[variety].file}{_INNER_ARCHIVE[variety]} there"
    )


def _list_classes(tree: Path, pattern: re.Pattern[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Image names by class, and the paths of everything else; both sorted."""
    files: dict[str, list[str]] = {}
    strays: list[str] = []
    for name in list_folder(tree):
        path = tree / name
        if not isdir(path) or not pattern.fullmatch(name) or name == "__MACOSX" or not is_utf8(name):
            strays.append(name + "/" * isdir(path))
            continue
        files[name] = []
        for inner in list_folder(path):
            if _is_image(path / inner):
                files[name].append(inner)
            else:
                strays.append(f"{name}/{inner}" + "/" * isdir(path / inner))
    return files, strays


def _is_image(path: Path) -> bool:
    # macOS leaves ._image_0001.jpg next to image_0001.jpg.
    named = path.suffix.lower() == ".jpg" and not path.name.startswith(".")
    return named and is_utf8(path.name) and not isdir(path)


def _one_hot(files: dict[str, list[str]]) -> np.ndarray:
    sizes = [len(names) for names in files.values()]
    labels = np.full((sum(sizes), len(files)), Label.NEGATIVE, dtype=np.int8)
    labels[np.arange(sum(sizes)), np.repeat(np.arange(len(files)), sizes)] = Label.POSITIVE
    return labels


def _draw_splits(
    tree: Path, files: dict[str, list[str]], ids: tuple[str, ...], seeds: range, rule: SplitRule
) -> dict[str, np.ndarray]:
    row_of = {name: row for row, name in enumerate(ids)}
    splits: dict[str, np.ndarray] = {}
    for number, seed in enumerate(seeds, start=1):
        rows: dict[str, list[int]] = {"train": [], "held-out": [], "test": []}
        for cls, names in files.items():
            try:
                draw = rule.draw(seed, cls, names)
            except DatasetError as error:
                raise DatasetError(f"{tree}: {error}; is the data set unpacked whole?") from None
            for part, drawn in zip(rows, draw, strict=True):
                rows[part] += [row_of[f"{cls}/{name}"] for name in drawn]
        splits |= {f"{part}-{number}": np.array(sorted(found), dtype=np.int64) for part, found in rows.items()}
    return splits
