"""Small rendered data sets in the official layouts, for a first look and for tests.

The images show textured, turned and scaled objects on cluttered grounds, and people in poses. A class is an
outline with a pattern (`vggfeat.synthetic.families`), never a background; only the later classes of ILSVRC have a
usual colour and finish as well (`vggfeat.synthetic.materials`). No two sets share a class, but all are of one kind,
so that features learnt on one can serve another.

An image depends on the seed, the set and its own id alone, not on how many others are made. The same versions of
Pillow and NumPy give the same bytes.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from vggfeat.errors import ConfigError, DatasetError, StoreError, check_choice
from vggfeat.synthetic.class_trees import write_caltech101, write_caltech256, write_folder
from vggfeat.synthetic.ilsvrc_tree import write_ilsvrc
from vggfeat.synthetic.jobs import Progress, Render, render
from vggfeat.synthetic.settings import NAMES, SIZES, Settings
from vggfeat.synthetic.voc_trees import write_actions, write_objects

__all__ = ["MARKER", "NAMES", "SIZES", "Settings", "write"]

MARKER = "RENDERED.txt"
"""File in the root of a rendered set: it says in words and in JSON what the images are."""

_IMAGES = (".jpg", ".jpeg", ".png")

_WRITERS: dict[str, Callable[[Path, Settings, int, Render], None]] = {
    "voc2007": partial(write_objects, 2007),
    "voc2012": partial(write_objects, 2012),
    "voc2012-action": write_actions,
    "caltech101": write_caltech101,
    "caltech256": write_caltech256,
    "ilsvrc": write_ilsvrc,
    "folder": write_folder,
}


def write(
    name: str,
    root: Path,
    *,
    seed: int = 0,
    size: str | Settings = "demo",
    workers: int = 1,
    progress: Progress | None = None,
) -> bool:
    """Render a data set.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    root : Path
        A folder that is new or empty, or that an earlier call with the same arguments has left.
    seed : int
        Another number, other images.
    size : str or Settings
        A key of `SIZES`, or counts.
    workers : int
        Processes, from 1.
    progress : callable, optional
        Called with the number of images done and of all, after each.

    Returns
    -------
    bool
        False if the same set stood there already, complete, and nothing was done.

    Raises
    ------
    ConfigError
        If name, size, seed or workers is not allowed.
    DatasetError
        If the folder holds anything else.
    StoreError
        If it can't be written.
    """
    settings = _settings(name, size)
    if seed < 0 or workers < 1:
        raise ConfigError(f"expected a seed from 0 and workers from 1, found seed {seed} and workers {workers}")
    root = Path(root)
    wanted = {"set": name, "seed": seed, **asdict(settings)}
    try:
        if _stands(root, wanted):
            return False
        root.mkdir(parents=True, exist_ok=True)
        _mark(root, wanted, images=None)
        _WRITERS[name](root, settings, seed, lambda jobs: render(jobs, workers, progress))
        _mark(root, wanted, images=_count(root))
    except OSError as error:
        cause = error.strerror or error
        raise StoreError(f"{error.filename or root}: can't be written: {cause}; mend it, or choose another") from error
    return True


def _settings(name: str, size: str | Settings) -> Settings:
    check_choice("data set", name, NAMES)
    if isinstance(size, Settings):
        return size
    check_choice("size", size, SIZES)
    return SIZES[size][name]


def _stands(root: Path, wanted: dict[str, object]) -> bool:
    """Tell whether this very set is there, whole; False if there is nothing, or only a part of it."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    found = _read_marker(root)
    if found is None:
        raise DatasetError(f"{root}: expected a new or empty folder to render into, found other files; choose another")
    images = found.pop("images", None)
    if found != wanted:
        raise DatasetError(
            f"{root}: expected a new or empty folder, found images rendered with other settings ({found}); "
            "delete the folder or choose another"
        )
    return images == _count(root)


def _read_marker(root: Path) -> dict[str, object] | None:
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None


def _count(root: Path) -> int:
    return sum(path.suffix.lower() in _IMAGES for path in root.rglob("*"))


def _mark(root: Path, wanted: dict[str, object], *, images: int | None) -> None:
    """Say what the folder holds; the number of images comes last, when all are there."""
    words = "\n".join(
        [
            "The images in this folder were rendered by vggfeat; nobody photographed them.",
            f"They imitate the layout of {wanted['set']}, and none of them comes from it.",
            "Results on them say nothing about results on the real data set.",
            "",
            json.dumps({**wanted, "images": images}),
            "",
        ]
    )
    (root / MARKER).write_text(words, encoding="utf-8")
