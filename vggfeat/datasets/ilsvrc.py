"""ILSVRC-2012 classification (CLS-LOC), and any class folders that are to be trained on like it.

K = classes. A class is a number in the order of the sorted names, as in Caffe, Keras and torchvision: n01440764 is 0.
The development kit numbers the classes in another order of its own.
"""

import os
from pathlib import Path

import numpy as np

from vggfeat.datasets import devkit as kits
from vggfeat.datasets import packed
from vggfeat.datasets.files import is_utf8, listed
from vggfeat.datasets.folder import IMAGE_SUFFIXES
from vggfeat.errors import DatasetError
from vggfeat.samples import ClassificationSet, LabelledImages, rank_by_hash

HELD_OUT = 0.1
"""Share of each class that validates where a copy has no validation images."""

_TRAIN = ("train", "ILSVRC2012_img_train")
_VAL = ("val", "ILSVRC2012_img_val", "validation")
_WANTED = "train/CLASS/IMAGE with val/CLASS/IMAGE or a flat val, or CLASS/IMAGE"

Files = dict[str, list[str]]
"""Class -> paths of its images, sorted, relative to the root."""


def read(root: Path | str) -> ClassificationSet:
    """Read a training set, in whichever of these layouts it lies.

    - A packed copy, made by `vggfeat data pack`.
    - train/CLASS and val/CLASS, with images at any depth below; the classes of ILSVRC are WNIDs.
    - train/WNID and a flat val, labelled by the development kit (ILSVRC2012_devkit_t12, in the root or next to it) or
      by LOC_val_solution.csv.
    - The Kaggle tree: ILSVRC/Data/CLS-LOC/train and val, with the development kit or LOC_val_solution.csv.
    - CLASS/IMAGE, or train/CLASS/IMAGE alone: of each class, the tenth of the paths with the least SHA-256
      validates.

    Parameters
    ----------
    root : Path or str
        Links to files and to class folders are followed; hidden names are passed over.

    Returns
    -------
    ClassificationSet
        Classes sorted by code point, and paths within a class. No image is opened.

    Raises
    ------
    DatasetError
        If there are no images or a single class, a class is in one of the two lists only, or the labels of a flat
        val are missing or disagree with it.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: expected a folder with {_WANTED}, found none; give the place of the images")
    if packed.is_packed(root):
        return packed.read(root)
    base = next((part for part in ("ILSVRC/Data/CLS-LOC/", "Data/CLS-LOC/") if (root / part).is_dir()), "")
    train, val = (
        next((base + name for name in names if (root / base / name).is_dir()), "") for names in (_TRAIN, _VAL)
    )
    if val and not train:
        raise DatasetError(f"{root}: expected train next to {val}, found none; give a folder with {_WANTED}")
    files = _class_files(root, train or base)
    kit = kits.find_kit((root, root.parent))
    if not val:
        kept, held = _hold_out(root, files)
        layout = f"class folders, {HELD_OUT:.0%} of each class held out for validation by the SHA-256 of its path"
        return _checked(root, kept, held, kit, layout)
    flat = _images(root, val, deep=False)
    sorted_val = _class_files(root, val)
    if flat and sorted_val:
        raise DatasetError(
            f"{root / val}: expected images in class folders or side by side, found both, "
            f"for instance {flat[0]} next to folders; move them"
        )
    if sorted_val or not flat:
        return _checked(root, files, sorted_val, kit, "train and val in class folders")
    found, source = _labelled(root, flat, kit)
    return _checked(root, files, found, kit, f"train in class folders, flat val labelled by {source}")


def _class_files(root: Path, folder: str) -> Files:
    try:
        with os.scandir(root / folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise DatasetError(f"{root / folder}: expected a folder that can be read: {error.strerror}") from error
    odd = [name for name in names if not is_utf8(name)]
    if odd:
        raise DatasetError(f"{root / folder}: expected class names in UTF-8, found {listed(odd)}; rename them")
    prefix = folder if not folder or folder.endswith("/") else f"{folder}/"
    found = {name: _images(root, prefix + name, deep=True) for name in names if name != "__MACOSX"}
    return {name: paths for name, paths in found.items() if paths}


def _images(root: Path, folder: str, *, deep: bool) -> list[str]:
    """Sorted paths relative to the root. The kind of an entry comes with its name: a million files, and no stat."""
    found, folders = [], [folder]
    while folders:
        here = folders.pop()
        try:
            with os.scandir(root / here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.name.lower().endswith(IMAGE_SUFFIXES):
                        found.append(f"{here}/{entry.name}")
                    elif deep and entry.is_dir(follow_symlinks=False):
                        folders.append(f"{here}/{entry.name}")
        except OSError as error:
            raise DatasetError(f"{root / here}: expected a folder that can be read: {error.strerror}") from error
    return sorted(found)


def _labelled(root: Path, flat: list[str], kit: kits.Kit | None) -> tuple[Files, str]:
    """Sort the images of a flat val by class, and name the file that says so."""
    solution = next((path for path in (root / kits.SOLUTION, root.parent / kits.SOLUTION) if path.is_file()), None)
    if kit is not None:
        labels, source = kits.read_truth(kit, kits.read_classes(kit)[0]), kit.truth
        if len(labels) != len(flat):
            raise DatasetError(
                f"{root / flat[0]}: expected {len(labels)} images there, one per line of {source}, "
                f"found {len(flat)}; unpack all validation images and nothing else there"
            )
    elif solution is not None:
        known, source = kits.read_solution(solution), solution
        stems = [path.rpartition("/")[2].rpartition(".")[0] for path in flat]
        missing = [stem for stem in stems if stem not in known]
        if missing:
            raise DatasetError(f"{source}: expected a label for every image of val, found none for {listed(missing)}")
        labels = [known[stem] for stem in stems]
    else:
        raise DatasetError(
            f"{root / flat[0]}: expected labels of the flat validation images, found none; unpack "
            f"{kits.KIT}.tar.gz into {root}, or put {kits.SOLUTION} there"
        )
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


def _checked(root: Path, train: Files, val: Files, kit: kits.Kit | None, layout: str) -> ClassificationSet:
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


def _words(root: Path, kit: kits.Kit | None) -> dict[str, str]:
    mapping = next((path for path in (root / kits.MAPPING, root.parent / kits.MAPPING) if path.is_file()), None)
    if mapping is not None:
        return kits.read_mapping(mapping)
    return {} if kit is None else kits.read_classes(kit)[1]
