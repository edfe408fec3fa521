"""Boxes of ILSVRC-2012's localisation task: annotations in PASCAL VOC's XML, one file an image.

N = images of a list, M = boxes. A million names and half a million files: folders are listed once, and only what is
there is opened.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from os.path import isdir
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from vggfeat.datasets.files import list_folder, listed, object_box, object_name, read_annotation, read_text
from vggfeat.datasets.ilsvrc import official
from vggfeat.errors import DatasetError
from vggfeat.samples import Box, LabelledImages
from vggfeat.wording import counted

Subset = Literal["train", "val"]

_BASES = ("ILSVRC/Annotations/CLS-LOC", "Annotations/CLS-LOC", "Annotations", "Annotation", "bbox",
          "ILSVRC2012_bbox_{part}_v2", "ILSVRC2012_bbox_{part}_v3")  # fmt: skip
_ARCHIVES = {"train": "ILSVRC2012_bbox_train_v2.tar.gz", "val": "ILSVRC2012_bbox_val_v3.tgz"}
_KITS = ("ILSVRC2012_devkit_t12", "ILSVRC2014_devkit", "ILSVRC2015_devkit", "ILSVRC/devkit", "devkit", "")
_BLACKLISTS = tuple(f"ILSVRC{year}_clsloc_validation_blacklist.txt" for year in (2014, 2015, 2013))
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_MOST = 1 << 20
_EVERY = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """Boxes of the objects of each image's own class; those of other classes are passed over."""

    edges: NDArray[np.float64]
    """(M, 4) as `samples.Box`, in pixels of the image that was annotated. They are as annotated, not clipped: some
    reach over the edge of their image."""
    first: NDArray[np.int64]
    """(N + 1,): the boxes of row i are edges[first[i]:first[i + 1]]."""
    sizes: NDArray[np.int64]
    """(N, 2) height and width of the image that was annotated; 0 where there is no annotation. That of a packed copy
    may be smaller."""
    excluded: NDArray[np.bool_]
    """(N,) images on the blacklist, which the localisation error of ILSVRC leaves out."""
    notes: tuple[str, ...] = ()
    """What a user should know, a sentence each."""

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def has(self) -> NDArray[np.bool_]:
        """(N,) whether an image has a box."""
        return np.diff(self.first) > 0

    def of(self, row: int) -> NDArray[np.float64]:
        """Return the boxes of an image, (n, 4)."""
        return self.edges[self.first[row] : self.first[row + 1]]

    def select(self, rows: NDArray[np.int64]) -> "Boxes":
        """Return those of some rows, without the notes."""
        counts = np.diff(self.first)[rows]
        parts = [self.of(row) for row in rows.tolist()]
        return Boxes(
            edges=np.concatenate([np.zeros((0, 4)), *parts]),
            first=np.concatenate([[0], np.cumsum(counts)]),
            sizes=self.sizes[rows],
            excluded=self.excluded[rows],
        )

    def fingerprint(self) -> str:
        """SHA-256 over boxes, sizes and blacklist, as 64 hex digits."""
        digest = hashlib.sha256()
        for column, kind in ((self.edges, "<f8"), (self.first, "<i8"), (self.sizes, "<i8"), (self.excluded, "?")):
            digest.update(np.ascontiguousarray(column, dtype=kind).tobytes())
        return digest.hexdigest()


def select_images(images: LabelledImages, rows: NDArray[np.int64]) -> LabelledImages:
    """Return some rows of a list."""
    shards = images.shards
    return replace(
        images,
        paths=tuple(images.paths[row] for row in rows.tolist()),
        targets=images.targets[rows],
        shards=None if shards is None else shards._replace(places=shards.places[rows]),
    )


def read_boxes(
    root: Path | str,
    images: LabelledImages,
    part: Subset,
    *,
    annotations: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Boxes:
    """Read the boxes of a list of images.

    The file of an image is CLASS/NAME.xml or NAME.xml, in one of the folders that the official archives make, below
    the root or next to it: ILSVRC/Annotations/CLS-LOC/train or val (Kaggle), Annotations, Annotation, bbox, each with
    or without train or val in it, or those two alone. What a file says its image is called does not count.

    Parameters
    ----------
    root : Path or str
        As for `ilsvrc.read`.
    images : LabelledImages
        From `ilsvrc.read`.
    part : train or val
        Which list it is.
    annotations : Path, optional
        Folder to look in instead, where they lie elsewhere.
    progress : callable
        Told files read and files in all.

    Returns
    -------
    Boxes
        Of all images, in their order. About 100 in each class of the training set have some, and all of the
        validation set.

    Raises
    ------
    DatasetError
        If there are no annotations, one can't be read or is none, one is missing in a flat folder of validation
        annotations, or more than half have no object of their image's class.
    """
    root = Path(root)
    place, names = _find_files(root, images, part, annotations)
    rows = [row for row, name in enumerate(names) if name]
    found = _Found(len(images))
    progress(0, len(rows))
    for done, row in enumerate(rows, start=1):
        found.read(row, place / names[row], images.classes[images.targets[row]])
        if done % _EVERY == 0 or done == len(rows):
            progress(done, len(rows))
    found.check(place, len(rows))
    excluded, blacklist = np.zeros(len(images), bool), None
    if part == "val":
        excluded, blacklist = _read_blacklist(root, annotations, images)
    boxes = found.boxes(excluded)
    notes = [*_said(boxes, found, part)]
    if blacklist is not None:
        notes.append(f"{blacklist}: {counted(excluded.sum(), 'image{s} {do} not count')}")
    return replace(boxes, notes=tuple(notes))


class _Found:
    """What was read so far; rows come in order."""

    def __init__(self, count: int) -> None:
        self.edges: list[Box] = []
        self.counts = np.zeros(count, np.int64)
        self.sizes = np.zeros((count, 2), np.int64)
        self.strange: list[str] = []
        self.outside: list[str] = []

    def read(self, row: int, path: Path, name: str) -> None:
        """Add the boxes that the objects of a name have in a file."""
        annotation = read_annotation(path)
        height, width = self.sizes[row] = _size(annotation, path)
        objects = list(enumerate(annotation.findall("object"), start=1))
        own = [object_box(item, f"{path}, object {k}") for k, item in objects if object_name(item) == name]
        # A pixel too many is common, because some count from 0 and some from 1.
        if any(min(b.left, b.top) < -1 or b.right > width + 1 or b.bottom > height + 1 for b in own):
            self.outside.append(path.name)
        if not own:
            self.strange.append(f"{path}, {listed(sorted({object_name(item) for _, item in objects})) or 'no object'}")
        self.edges += own
        self.counts[row] = len(own)

    def check(self, place: Path, files: int) -> None:
        """Refuse annotations of other classes than those of the images."""
        if 2 * len(self.strange) > files:
            raise DatasetError(
                f"{place}: expected objects named as the class of their image, found others in {len(self.strange)} "
                f"of {files} annotations, the first is {self.strange[0]}; give images and annotations of one set"
            )

    def boxes(self, excluded: NDArray[np.bool_]) -> Boxes:
        """Return all."""
        return Boxes(
            edges=np.array(self.edges, dtype=np.float64).reshape(-1, 4),
            first=np.concatenate([[0], np.cumsum(self.counts)]),
            sizes=self.sizes,
            excluded=excluded,
        )


def _find_files(root: Path, images: LabelledImages, part: Subset, annotations: Path | None) -> tuple[Path, list[str]]:
    """Return a folder, and for each row the name of its file in it, empty if there is none."""
    for place in _places(root, part, annotations):
        names, flat = _names(place, images)
        missing = [path for path, name in zip(images.paths, names, strict=True) if not name]
        if len(missing) == len(names):
            continue
        if flat and missing:
            remedy = f"unpack {_ARCHIVES[part]} whole" if official(images.classes) else "add them, or remove the images"
            raise DatasetError(
                f"{place}: expected an annotation of every {part} image, found none for {listed(missing)}; {remedy}"
            )
        return place, names
    remedy = (
        f"unpack {_ARCHIVES[part]} there, or give"
        if official(images.classes)
        else "put an XML file an image there, or give"
    )
    raise DatasetError(
        f"{annotations or root}: expected annotations of the {part} images, for instance in "
        f"Annotations/CLS-LOC/{part}, found none; {remedy} the folder that holds them"
    )


def _places(root: Path, part: Subset, annotations: Path | None) -> Iterator[Path]:
    around = [place / base.format(part=part) for place in (root, *root.absolute().parents[:2]) for base in _BASES]
    # Images that are held out of the training set have their annotations among those of it.
    inner = dict.fromkeys([part, "train", ""])
    for base in [*around, root] if annotations is None else [annotations]:
        yield from (base / name for name in inner if isdir(base / name))


def _names(place: Path, images: LabelledImages) -> tuple[list[str], bool]:
    """Return a name for each row, and whether the files lie side by side instead of in class folders."""
    here = set(list_folder(place))
    inside = {name: set(list_folder(place / name)) for name in images.classes if name in here}
    names = []
    for path, target in zip(images.paths, images.targets.tolist(), strict=True):
        name = f"{path.rpartition('/')[2].rpartition('.')[0]}.xml"
        folder = images.classes[target]
        deep = name in inside.get(folder, ())
        names.append(f"{folder}/{name}" if deep else name if name in here else "")
    return names, not inside


def _size(annotation: Element, path: Path) -> tuple[int, int]:
    try:
        height, width = (int(float(annotation.findtext(f"size/{side}") or "")) for side in ("height", "width"))
    except (ValueError, OverflowError):
        height = width = 0
    if height < 1 or width < 1:
        raise DatasetError(f"{path}: expected the height and the width of the image in size, found none")
    return height, width


def _read_blacklist(
    root: Path, annotations: Path | None, images: LabelledImages
) -> tuple[NDArray[np.bool_], str | None]:
    """Say of each row whether its number, which stands in its name, is listed; and name the list."""
    excluded = np.zeros(len(images), bool)
    places = [root, root.parent, *([annotations, annotations.parent] if annotations else [])]
    files = (
        place / kit / data / name for place in places for kit in _KITS for data in ("data", "") for name in _BLACKLISTS
    )
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return excluded, None
    lines = read_text(path, _MOST).split()
    odd = next((line for line, text in enumerate(lines, start=1) if not text.isascii() or not text.isdigit()), None)
    if odd is not None:
        raise DatasetError(f"{path}, line {odd}: expected the number of an image, found {lines[odd - 1][:40]!r}")
    known = {int(text) for text in lines}
    for row, name in enumerate(images.paths):
        number = _NUMBER.search(name)
        excluded[row] = number is not None and int(number[1]) in known
    return excluded, path.name


def _said(boxes: Boxes, found: _Found, part: Subset) -> Iterator[str]:
    yield f"{boxes.has.sum()} of {len(boxes)} {part} images have boxes of their class, {len(boxes.edges)} in all"
    if found.strange:
        strange = counted(len(found.strange), "annotation{s} {have} no object of the class of the image")
        yield f"{strange}, the first is {found.strange[0]}"
    if found.outside:
        outside = counted(len(found.outside), "image{s}")
        yield f"boxes of {outside} reach beyond the image, the first is {found.outside[0]}"
