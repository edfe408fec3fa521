"""ILSVRC-2012 classification (CLS-LOC), and any class folders that are to be trained on like it.

K = classes. A class is a number in the order of the sorted names, as in Caffe, Keras and torchvision: n01440764 is 0.
The development kit numbers the classes in another order of its own.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggfeat.datasets.files import is_image, listed, read_text, walk
from vggfeat.datasets.ilsvrc_packed import is_packed, read_packed
from vggfeat.datasets.levels import Layout, class_name_notes, class_of, find_level, split_name
from vggfeat.errors import DatasetError, VggfeatError
from vggfeat.formats.mat5 import read_mat
from vggfeat.samples import ClassificationSet, LabelledImages, rank_by_hash

HELD_OUT = 0.1
"""Share of each class that validates where a copy has no validation images."""

_WANTED = "train/CLASS/IMAGE with val/CLASS/IMAGE or a flat val, or CLASS/IMAGE"

_WNID = re.compile(r"n\d{8}")

Files = dict[str, list[str]]
"""Class -> paths of its images, sorted, relative to the root."""

KIT = "ILSVRC2012_devkit_t12"
MAPPING = "LOC_synset_mapping.txt"
SOLUTION = "LOC_val_solution.csv"
_META = ("meta.mat", "meta_clsloc.mat")
_TRUTH = ("ILSVRC2012_validation_ground_truth.txt", "ILSVRC2015_clsloc_validation_ground_truth.txt")
_MOST = 1 << 26


class Kit(NamedTuple):
    """The two files of a development kit that matter here."""

    meta: Path
    truth: Path


def find_kit(places: Iterable[Path]) -> Kit | None:
    """Look for a development kit in some folders: by its name, as `data`, or the files themselves."""
    for place in places:
        for folder in (place / KIT / "data", place / KIT, place / "devkit" / "data", place / "data", place):
            meta = next((folder / name for name in _META if (folder / name).is_file()), None)
            truth = next((folder / name for name in _TRUTH if (folder / name).is_file()), None)
            if meta and truth:
                return Kit(meta, truth)
    return None


def read_classes(kit: Kit) -> tuple[dict[int, str], dict[str, str]]:
    """Read the kit's classes.

    Returns
    -------
    wnids : dict
        The kit's number -> WNID, of the classes and their ancestors. These numbers are not the order of the WNIDs.
    words : dict
        WNID -> words.

    Raises
    ------
    DatasetError
        If the file is no MATLAB file with `synsets`.
    """
    try:
        table = read_mat(kit.meta, ["synsets"])["synsets"]
        table = table if isinstance(table, list) else [table]
        number = next(name for name in table[0] if name.startswith("ILSVRC") and name.endswith("_ID"))
        rows = [(int(row[number].array().item()), str(row["WNID"]), str(row["words"])) for row in table]
    except (VggfeatError, LookupError, AttributeError, TypeError, ValueError, OverflowError, StopIteration) as error:
        raise DatasetError(
            f"{kit.meta}: expected the classes of the development kit, found {type(error).__name__}: {error}; "
            "unpack the kit again"
        ) from error
    return {row[0]: row[1] for row in rows}, {row[1]: row[2] for row in rows}


def read_truth(kit: Kit, wnids: dict[int, str]) -> list[str]:
    """Read the WNID of each validation image, in the order of the file names.

    Raises DatasetError if a line is not the number of a class; the message names the line.
    """
    known = {str(number): wnid for number, wnid in wnids.items()}
    found = []
    for line, text in enumerate(read_text(kit.truth, _MOST).split(), start=1):
        if text not in known:
            raise DatasetError(
                f"{kit.truth}, line {line}: expected the number of a class of the kit, found {text[:40]!r}"
            )
        found.append(known[text])
    return found


def read_solution(path: Path) -> dict[str, str]:
    """Read the WNID of each validation image, by name without ending, from the list of the Kaggle copy.

    Raises DatasetError if the file can't be read or a line has no label; the message names the line.
    """
    found = {}
    for number, line in enumerate(read_text(path, _MOST).splitlines(), start=1):
        name, _, labels = line.partition(",")
        if line and not labels.strip():
            raise DatasetError(f"{path}, line {number}: expected a name and its label, found {line[:80]!r}")
        if line:
            found[name] = labels.split()[0]
    return found


def read_mapping(path: Path) -> dict[str, str]:
    """Read words by WNID from lines of "WNID words"."""
    pairs = (line.split(maxsplit=1) for line in read_text(path, _MOST).splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def read(root: Path | str, layout: Layout | None = None) -> ClassificationSet:
    """Read a training set, in whichever of these layouts it lies.

    - A packed copy, made by `vggfeat data pack`.
    - train/CLASS and val/CLASS, with images at any depth below; the classes of ILSVRC are WNIDs.
    - train/WNID and a flat val, labelled by the development kit (ILSVRC2012_devkit_t12, in the root or next to it) or
      by LOC_val_solution.csv.
    - The Kaggle tree: ILSVRC/Data/CLS-LOC/train and val, with the development kit or LOC_val_solution.csv.
    - CLASS/IMAGE, or train/CLASS/IMAGE alone: of each class, the tenth of the paths with the least SHA-256
      validates.

    Classes are sorted by code point, and paths within a class. No image is opened.

    Parameters
    ----------
    root : path
        Links to files and to folders are followed; hidden names are passed over.
    layout : "splits" or "classes", optional
        What the folders of the first level are; by default `vggfeat.datasets.levels.find_level` tells.

    Returns
    -------
    ClassificationSet

    Raises
    ------
    DatasetError
        If there are no images or a single class, a class is in one of the two lists only, the labels of a flat val are
        missing or disagree with it, or the first level may be splits as well as classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: expected a folder with {_WANTED}, found none; give the place of the images")
    if is_packed(root):
        return read_packed(root)
    base = next((part for part in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC") if (root / part).is_dir()), "")
    found = walk(root / base)
    images = sorted([*found.images, *_odd_names(root / base, found.unnameable)])
    level = find_level(root / base, images, layout)
    splits = {name: _by_class(images, folder, base) for name, folder in level.folders.items()}
    if level.splits and "train" not in splits:
        raise DatasetError(
            f"{root}: expected train next to {listed(list(splits))}, found none; give a folder with {_WANTED}"
        )
    files = splits["train" if level.splits else ""][0]
    kit = find_kit((root, root.parent))
    said = (*level.notes, *class_name_notes(sorted(files)))
    notes = "".join(f"; {note.rstrip('.')}" for note in said)
    if "val" not in splits:
        if any(split_name(name) == "val" for name in found.folders) and level.splits:
            return _checked(root, files, {}, kit, "")
        kept, held = _hold_out(root, files)
        words = f"class folders, {HELD_OUT:.0%} of each class held out for validation by the SHA-256 of its path"
        return _checked(root, kept, held, kit, words + notes)
    sorted_val, flat = splits["val"]
    if flat and sorted_val:
        raise DatasetError(
            f"{root / base / level.splits['val']}: expected images in class folders or side by side, found both, "
            f"for instance {flat[0]} next to folders; move them"
        )
    if sorted_val:
        return _checked(root, files, sorted_val, kit, f"train and val in class folders{notes}")
    labelled, source = _labelled(root, flat, kit, official(files))
    return _checked(root, files, labelled, kit, f"train in class folders, flat val labelled by {source}{notes}")


def _odd_names(root: Path, paths: list[str]) -> list[str]:
    """Return the images whose names are not UTF-8, which need no id here; refuse such folders, which may be classes."""
    folders = [path for path in paths if not is_image(path) and (root / path).is_dir()]
    if folders:
        raise DatasetError(f"{root}: expected class names in UTF-8, found {listed(folders)}; rename them")
    return [path for path in paths if is_image(path)]


def _by_class(images: list[str], folder: str, base: str) -> tuple[Files, list[str]]:
    """Return the images of each class below a folder, and those directly in it; relative to the root."""
    files: Files = {}
    flat = []
    prefix = f"{base}/" if base else ""
    for path in images:
        cls = class_of(path, folder)
        if cls:
            files.setdefault(cls, []).append(prefix + path)
        elif cls is not None:
            flat.append(prefix + path)
    return files, flat


def official(classes: Iterable[str]) -> bool:
    """Whether classes are called as those of ILSVRC, by WNIDs; the remedies of ILSVRC help nobody else."""
    return all(_WNID.fullmatch(name) for name in classes)


def _labelled(root: Path, flat: list[str], kit: Kit | None, of_ilsvrc: bool) -> tuple[Files, str]:
    """Sort the images of a flat val by class, and name the file that says so."""
    solution = next((path for path in (root / SOLUTION, root.parent / SOLUTION) if path.is_file()), None)
    if kit is not None:
        labels, source = read_truth(kit, read_classes(kit)[0]), kit.truth
        if len(labels) != len(flat):
            raise DatasetError(
                f"{root / flat[0]}: expected {len(labels)} images there, one per line of {source}, "
                f"found {len(flat)}; unpack all validation images and nothing else there"
            )
    elif solution is not None:
        known, source = read_solution(solution), solution
        stems = [path.rpartition("/")[2].rpartition(".")[0] for path in flat]
        missing = [stem for stem in stems if stem not in known]
        if missing:
            raise DatasetError(f"{source}: expected a label for every image of val, found none for {listed(missing)}")
        labels = [known[stem] for stem in stems]
    else:
        remedy = "put them into class folders like those of train, or remove them, so that some of train validate"
        if of_ilsvrc:
            remedy = f"unpack {KIT}.tar.gz into {root}, or put {SOLUTION} there"
        raise DatasetError(f"{root / flat[0]}: expected labels of the flat validation images, found none; {remedy}")
    files: Files = {}
    for path, label in zip(flat, labels, strict=True):
        files.setdefault(label, []).append(path)
    return files, source.name


def _hold_out(root: Path, files: Files) -> tuple[Files, Files]:
    kept, held = {}, {}
    for name, paths in files.items():
        if len(paths) < 2:
            raise DatasetError(
                f"{root}: expected at least 2 images in each class, one to train on and one to validate, found "
                f"{len(paths)} in {name}; add images or remove the class"
            )
        ranked = rank_by_hash(name, paths)
        count = max(1, round(HELD_OUT * len(paths)))
        held[name], kept[name] = sorted(ranked[:count]), sorted(ranked[count:])
    return kept, held


def _checked(root: Path, train: Files, val: Files, kit: Kit | None, layout: str) -> ClassificationSet:
    if not train:
        raise DatasetError(f"{root}: expected images in class folders, found none; give a folder with {_WANTED}")
    for one, other, names in (("train", "val", set(train) - set(val)), ("val", "train", set(val) - set(train))):
        if names:
            raise DatasetError(
                f"{root}: expected every class in train and in val, found only in {one}: {listed(sorted(names))}; "
                f"add images of it to {other}, or remove it"
            )
    classes = tuple(sorted(train))
    if len(classes) < 2:
        raise DatasetError(
            f"{root}: expected at least 2 classes, found only {classes[0]}; there is nothing to tell apart"
        )
    words = _words(root, kit)
    return ClassificationSet(
        train=_listed(root, classes, train),
        val=_listed(root, classes, val),
        classes=classes,
        words={name: words[name] for name in classes if name in words},
        layout=layout,
    )


def _listed(root: Path, classes: tuple[str, ...], files: Files) -> LabelledImages:
    sizes = [len(files[name]) for name in classes]
    return LabelledImages(
        root=root,
        paths=tuple(path for name in classes for path in files[name]),
        targets=np.repeat(np.arange(len(classes), dtype=np.int64), sizes),
        classes=classes,
    )


def _words(root: Path, kit: Kit | None) -> dict[str, str]:
    mapping = next((path for path in (root / MAPPING, root.parent / MAPPING) if path.is_file()), None)
    if mapping is not None:
        return read_mapping(mapping)
    return {} if kit is None else read_classes(kit)[1]
