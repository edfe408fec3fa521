"""A packed copy of a training set, as `vggfeat data pack` makes it: images in large files, and where each begins.

The shards, shards/train-00000.tar, ..., are such that any tar program opens them; the index is index.json, written
last, with train.npz and val.npz (names, targets, places). N = images of a list. Reading an image takes its file and
its bytes, and nothing of tar.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import DatasetError
from vggfeat.formats.npz import UNREADABLE, Wanted, read_arrays
from vggfeat.runtime.checksums import unsealed
from vggfeat.samples import ClassificationSet, LabelledImages, Shards

INDEX = "index.json"
BEGUN = "packing.json"
"""Written first: what is being packed, and how."""
FORMAT = "vggfeat packed images, 2"
LISTS = ("train", "val")
_SHARD = re.compile(r"shards/[a-z]+-\d{5,}\.tar")
_AGAIN = "give the same `data pack` command again"


def columns(paths: tuple[str, ...], targets: NDArray[np.int64], places: NDArray[np.int64]) -> dict[str, Any]:
    """Make what the .npz file of a packed list holds: no strings of Python's, which would need a pickle.

    names: paths of the files that were packed, in UTF-8 with a zero between two, uint8; targets: (N,) numbers of
    classes; places: (N, 4) as in `Shards`; both int64.
    """
    names = "\0".join(paths).encode("utf-8", "surrogateescape")
    return {"names": np.frombuffer(names, np.uint8), "targets": targets, "places": places}


def is_packed(root: Path) -> bool:
    """Say whether a folder is a packed copy, complete or not."""
    return (root / INDEX).is_file() or (root / BEGUN).is_file()


def read_packed(root: Path) -> ClassificationSet:
    """Read the index of a packed copy, and look whether its shards have their sizes.

    Raises DatasetError if the copy is not complete, its index is damaged or of another version, or a shard is missing
    or has another size.
    """
    path = root / INDEX
    if not path.is_file():
        raise DatasetError(f"{root}: expected a packed copy that is complete, found one that was interrupted; {_AGAIN}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise DatasetError(f"{path}: expected the format {FORMAT!r}, found {index['format']!r}; {_AGAIN}")
        index = unsealed(index)
        lists = {name: _packed_images(root, name, index) for name in LISTS}
        layout = (
            f"packed, smallest side at most {index['side']}, JPEG quality {index['quality']}, from: {index['layout']}"
        )
        words = {str(name): str(text) for name, text in index["words"].items()}
    except OSError as error:
        raise DatasetError(
            f"{error.filename or root}: reading failed: {error.strerror or error}; make it readable"
        ) from error
    except UNREADABLE as error:
        raise DatasetError(
            f"{path}: expected the index of a packed copy, found {type(error).__name__}: {error}; {_AGAIN}"
        ) from error
    return ClassificationSet(**lists, classes=lists["train"].classes, words=words, layout=layout)


def _packed_images(root: Path, name: str, index: dict[str, Any]) -> LabelledImages:
    shards = index["shards"][name]
    for shard in shards:
        if not _SHARD.fullmatch(shard["file"]):
            raise ValueError(f"{shard['file'][:80]!r} in the place of the name of a shard")
        path = root / shard["file"]
        found = path.stat().st_size if path.is_file() else None
        if found != shard["bytes"]:
            raise DatasetError(f"{path}: expected {shard['bytes']} bytes, found {found}; {_AGAIN}")
    path = root / f"{name}.npz"
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        raise ValueError(f"something that is no file in the place of {path.name}")
    wanted = {"names": Wanted("u", (None,)), "targets": Wanted("i", (None,)), "places": Wanted("i", (None, 4))}
    with open(path, "rb") as file:
        # They are stored, not compressed, and can't be larger than their file.
        arrays = read_arrays(file, wanted, path.stat().st_size)
    names, targets, places = (arrays[key] for key in ("names", "targets", "places"))
    paths = names.tobytes().decode("utf-8", "surrogateescape").split("\0") if len(targets) else []
    return LabelledImages(
        root=root,
        paths=tuple(paths),
        targets=targets.astype(np.int64),
        classes=tuple(index["classes"]),
        shards=Shards(tuple(shard["file"] for shard in shards), places.astype(np.int64)),
    )
