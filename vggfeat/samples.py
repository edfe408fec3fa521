"""What a data set is: ids, paths, labels, boxes and splits, row by row. No files are touched here.

N = samples, K = classes.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_unmasked
from vggfeat.errors import DatasetError
from vggfeat.wording import short_repr

STORED_FRAME = frozenset({"voc2012-action"})
"""Names of the data sets whose boxes are in stored pixels, see `DataSet.boxes_as_stored`."""


class Label(IntEnum):
    """What a data set says of one sample and one class."""

    POSITIVE = 1
    NEGATIVE = -1
    IGNORED = 0
    """Neither: in VOC, every object of the class in the image is marked difficult."""
    WITHHELD = 2
    """The sample is listed for the class, but its label is not published (test sets)."""
    UNLISTED = 3
    """The sample is not in the list of this class (VOC actions: jumping)."""


class Task(StrEnum):
    """How the labels of a data set are to be read."""

    MULTI_LABEL = "multi-label"
    SINGLE_LABEL = "single-label"
    UNLABELLED = "unlabelled"


class Box(NamedTuple):
    """A rectangle in pixel edges: 0-based, `right` and `bottom` exclusive.

    VOC's 1-based inclusive (xmin, ymin, xmax, ymax) is Box(xmin - 1, ymin - 1, xmax, ymax).
    """

    left: float
    top: float
    right: float
    bottom: float

    def within(self, width: int, height: int) -> tuple[int, int, int, int] | None:
        """Return the whole pixels of an image that the box touches, as edges; None if there are none."""
        if not (all(map(math.isfinite, self)) and self.left < self.right and self.top < self.bottom):
            return None
        left, top = max(0, math.floor(self.left)), max(0, math.floor(self.top))
        right, bottom = min(width, math.ceil(self.right)), min(height, math.ceil(self.bottom))
        return (left, top, right, bottom) if left < right and top < bottom else None


class Sample(NamedTuple):
    """One row of a data set."""

    id: str
    path: str
    box: Box | None


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """A list of samples with their labels and official splits.

    Raises
    ------
    DatasetError
        If columns differ in length, an id is empty or occurs twice, a group is empty, a label is none of `Label`, a
        split points outside the list, or labels, boxes or rows are no arrays or masked.
    """

    name: str
    """Name of the reader, for instance voc2007."""
    task: Task
    """How labels are read; it decides metric and protocol."""
    classes: tuple[str, ...]
    """K class names, in the order of the label columns."""
    ids: tuple[str, ...]
    """N unique names: an image id, image/object for people, a relative path for folders."""
    paths: tuple[str, ...]
    """N paths with forward slashes, relative to `root`."""
    labels: NDArray[np.int8]
    """(N, K) values of `Label`."""
    boxes: NDArray[np.float64] | None = None
    """(N, 4) edges as in `Box`, NaN in rows that have none; None if no row has one."""
    splits: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Split name -> ascending row numbers. Splits may overlap."""
    groups: tuple[str, ...] | None = None
    """N names of what an image is of (patient, site, specimen): images of one group are never parted by training and
    test. None where nothing is known of it."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further columns of a list, name -> N texts. They are kept and exported; nothing is computed of them."""
    root: str = ""
    """Folder that `paths` are relative to; it never enters a file."""
    notes: tuple[str, ...] = ()
    """What a user should know of this copy of the data, a sentence each."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        n = len(self.ids)
        arrays: list[tuple[str, Any]] = [("labels", self.labels), ("boxes", self.boxes), *self.splits.items()]
        for what, array in arrays:
            check_unmasked(f"{self.name}: {what}", array, error=DatasetError)
            if array is not None and not isinstance(array, np.ndarray):
                found = type(array).__name__
                raise DatasetError(f"{self.name}: expected {what} as an array of NumPy, found a {found}; pass an array")
        if len(self.paths) != n or self.labels.shape != (n, len(self.classes)):
            raise DatasetError(
                f"{self.name}: expected {n} paths and labels of shape ({n}, {len(self.classes)}), "
                f"found {len(self.paths)} and {self.labels.shape}"
            )
        if self.boxes is not None and self.boxes.shape != (n, 4):
            raise DatasetError(f"{self.name}: expected boxes of shape ({n}, 4), found {self.boxes.shape}")
        _check_unique(self.name, "id", self.ids)
        _check_unique(self.name, "class", self.classes)
        for name, column in (*self.columns.items(), *([] if self.groups is None else [("groups", self.groups)])):
            if len(column) != n or (column is self.groups and not all(column)):
                raise DatasetError(f"{self.name}: expected {n} values in the column {name}, found others")
        if self.labels.dtype.kind not in "iu":  # False would be read as `Label.IGNORED`.
            raise DatasetError(f"{self.name}: expected labels 1, -1, 0, 2 or 3, found {self.labels.dtype}")
        # Those of `Label` leave no gap; np.isin would take eight times the memory of the labels.
        if self.labels.size and not min(Label) <= self.labels.min() <= self.labels.max() <= max(Label):
            raise DatasetError(f"{self.name}: expected labels 1, -1, 0, 2 or 3, found others")
        for split, rows in self.splits.items():
            numbers = rows.dtype.kind in "iu" and rows.ndim == 1
            if len(rows) and not (numbers and rows[0] >= 0 and rows[-1] < n and (rows[:-1] < rows[1:]).all()):
                raise DatasetError(f"{self.name}: split {split} is not an ascending list of rows below {n}")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Sample:
        box = None
        if self.boxes is not None and not np.isnan(self.boxes[row]).any():
            box = Box(*self.boxes[row].tolist())
        return Sample(self.ids[row], self.paths[row], box)

    def __iter__(self) -> Iterator[Sample]:
        return (self[row] for row in range(len(self)))

    @property
    def boxes_as_stored(self) -> bool:
        """Whether boxes are in the pixels of the files as they are stored; else in those of the upright images.

        The tools of PASCAL VOC do not turn images by their EXIF orientation, those that people mark their own images
        with do.
        """
        return self.name in STORED_FRAME

    def classes_of(self, row: int) -> list[str]:
        """Return the names of the classes that a row is positive for."""
        return [self.classes[k] for k in np.flatnonzero(self.labels[row] == Label.POSITIVE).tolist()]

    def place(self, row: int) -> "Place":
        """Say where the image of a row is on this machine: a file of its own."""
        return Place(os.path.join(self.root, self.paths[row]), None)

    def fingerprint(self) -> str:
        """SHA-256 over everything that is stored of the data set (not over the images), as 64 hex digits."""
        digest = hashlib.sha256()
        lists: list[Any] = [self.name, str(self.task), self.classes, self.ids, self.paths, sorted(self.splits)]
        if self.groups is not None or self.columns:  # Without them it is that of files from before they were known.
            lists.append([self.groups, sorted(self.columns.items())])
        digest.update(json.dumps(lists).encode())
        digest.update(np.ascontiguousarray(self.labels, dtype=np.int8).tobytes())
        if self.boxes is not None:
            digest.update(np.ascontiguousarray(self.boxes, dtype="<f8").tobytes())
        for split in sorted(self.splits):
            digest.update(np.ascontiguousarray(self.splits[split], dtype="<i8").tobytes())
        return digest.hexdigest()


class Shards(NamedTuple):
    """Where images lie that are stored many to a file."""

    files: tuple[str, ...]
    """Names of the files, relative to the root of the images."""
    places: NDArray[np.int64]
    """(N, 3): number of the file, first byte in it, bytes; or (N, 4) with the CRC-32 of these bytes."""


class Place(NamedTuple):
    """Where one image lies."""

    file: str
    """Absolute path."""
    span: tuple[int, ...] | None
    """First byte and number of bytes of the image in the file, and their CRC-32 where it is known; None if it is the
    whole file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """A long list of images with one class each, as training reads it. N may be a million and more.

    DatasetError if columns differ in length, or a target is no class.
    """

    root: Path
    """Folder that `paths`, or the files of `shards`, are relative to."""
    paths: tuple[str, ...]
    """N names with forward slashes, relative to `root`; of packed images those of the files they were made from."""
    targets: NDArray[np.int64]
    """(N,) numbers of classes."""
    classes: tuple[str, ...]
    """K class names, in the order of the net's outputs."""
    shards: Shards | None = None
    """Where packed images lie; None for one file an image."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        n = len(self.paths)
        shapes = ((n, 3), (n, 4))
        if self.targets.shape != (n,) or (self.shards is not None and self.shards.places.shape not in shapes):
            raise DatasetError(f"{self.root}: expected a target and a place for each of {n} images, found others")
        if n and not 0 <= self.targets.min() <= self.targets.max() < len(self.classes):
            raise DatasetError(f"{self.root}: expected targets from 0 to {len(self.classes) - 1}, found others")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def ids(self) -> tuple[str, ...]:
        """N unique names: the files without folder and suffix (ILSVRC2012_val_00000001) where these are unique.

        So copies in different layouts match. Else the paths.
        """
        stems = tuple(path.rpartition("/")[2].rpartition(".")[0] or path for path in self.paths)
        return stems if len(set(stems)) == len(stems) else self.paths

    def place(self, row: int) -> Place:
        """Say where the image of a row lies."""
        if self.shards is None:
            return Place(os.path.join(self.root, self.paths[row]), None)
        shard, *span = self.shards.places[row].tolist()
        return Place(os.path.join(self.root, self.shards.files[shard]), tuple(span))

    def fingerprint(self) -> str:
        """SHA-256 over names, targets and places (not over the root and the images), as 64 hex digits."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.classes, None if self.shards is None else self.shards.files]).encode())
        digest.update("\0".join(self.paths).encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self.targets, dtype="<i8").tobytes())
        if self.shards is not None:
            digest.update(np.ascontiguousarray(self.shards.places, dtype="<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationSet:
    """What a net is trained on and chosen by."""

    train: LabelledImages
    val: LabelledImages
    classes: tuple[str, ...]
    """K sorted names, for ILSVRC the WNIDs; those of both lists."""
    words: Mapping[str, str]
    """Class name -> what people call it; empty if the copy does not say."""
    layout: str
    """How the copy is laid out, and where the validation images come from, in words."""


def rank_by_hash(prefix: str, names: tuple[str, ...] | list[str]) -> list[str]:
    """Order unique names by the SHA-256 of "prefix/name": a shuffle that every language can repeat.

    For the Caltech splits the prefix is "seed/class".
    """
    return sorted(
        names, key=lambda name: hashlib.sha256(f"{prefix}/{name}".encode("utf-8", "surrogateescape")).hexdigest()
    )


def _check_unique(where: str, what: str, names: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name:
            raise DatasetError(f"{where}: expected a name for every {what}, found an empty one")
        if name in seen:
            raise DatasetError(f"{where}: expected unique {what} names, found {name!r} twice")
        seen.add(name)
