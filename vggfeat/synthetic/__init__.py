"""Small rendered data sets in the official layouts, for a first look and for tests.

The images show textured, turned and scaled objects on cluttered grounds, and people in poses. A class is an
outline with a pattern (`vggfeat.synthetic.families`), never a background; only the later classes of ILSVRC have a
usual colour and finish as well (`vggfeat.synthetic.everyday`). No two sets share a class, but all are of one kind,
so that features learnt on one can serve another. `formulas` imitates no data set: its classes are fractals, surfaces,
leaves and bodies (`vggfeat.synthetic.formulas`), of many kinds, for training nets that are to serve any images.

An image depends on the seed, the set and its own id alone, not on how many others are made. The same versions of
Pillow and NumPy give the same bytes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path

from vggfeat.checks import check_choice, convert_fields
from vggfeat.errors import ConfigError, DatasetError, StoreError
from vggfeat.runtime.durable import DISK, atomic_write, is_temporary
from vggfeat.runtime.rendered import MARKER

_SMALLEST_SIDE = 32
_IMAGES, _LISTS = (".jpg", ".jpeg", ".png"), (".xml", ".txt", ".mat", ".csv")
"""Endings of what is rendered, and of what is written next to it; files of others are none of the set's business."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Counts of one rendered set; fields that its layout does not have are not read.

    Raises ConfigError if a count is negative or `image_side` is below 32.
    """

    image_side: int
    """Longer side of the images, in pixels."""
    train: int = 0
    """Images of the training list (VOC), or of each class (ILSVRC)."""
    val: int = 0
    """Images of the validation list."""
    test: int = 0
    """Images of the test list."""
    unlisted: int = 0
    """Images that lie in VOC-2012's folder but belong to no list."""
    classes: int = 0
    """Classes (Caltech with its background or clutter, ILSVRC, folder)."""
    per_class: int = 0
    """Images of a class, or a few more (Caltech, folder)."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.image_side < _SMALLEST_SIDE:
            raise ConfigError(f"image_side: expected at least {_SMALLEST_SIDE}, found {self.image_side}")
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ConfigError(f"{field.name}: expected 0 or more, found {getattr(self, field.name)}")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout that can be rendered."""

    home: str
    """Module and function that writes it, imported when it is called."""
    least: Mapping[str, int]
    """The smallest counts that it can do with, by field of `Settings`."""
    most_classes: int = 0
    """0 where the classes are those of the original."""
    tiny: Settings
    """For tests."""
    demo: Settings
    """For a first look in well under a minute."""
    large: Settings
    """For the training of small nets."""

    def settings(self, name: str, size: str | Settings) -> Settings:
        """Return the counts of a named size, or the given ones, checked.

        Raises ConfigError if the name is none of `SIZES`, a count is too small, or there are too many classes.
        """
        if not isinstance(size, Settings):
            check_choice("size", size, SIZES)
        found: Settings = size if isinstance(size, Settings) else getattr(self, size)
        for field, least in self.least.items():
            if getattr(found, field) < least:
                raise ConfigError(f"{name}: expected {field} of at least {least}, found {getattr(found, field)}")
        if found.classes > self.most_classes > 0:
            raise ConfigError(f"{name}: expected at most {self.most_classes} classes, found {found.classes}")
        return found


SIZES = ("tiny", "demo", "large")
"""Named sizes, fields of `Layout`."""

LAYOUTS: Mapping[str, Layout] = {
    "voc2007": Layout(
        home="vggfeat.synthetic.trees:write_voc2007",
        least={"train": 20, "val": 20, "test": 1},
        tiny=Settings(image_side=96, train=40, val=40, test=40),
        demo=Settings(image_side=500, train=140, val=140, test=260),
        large=Settings(image_side=500, train=1000, val=1000, test=2000),
    ),
    "voc2012": Layout(
        home="vggfeat.synthetic.trees:write_voc2012",
        least={"train": 20, "val": 20, "test": 1},
        tiny=Settings(image_side=96, train=40, val=40, test=20, unlisted=6),
        demo=Settings(image_side=500, train=140, val=140, test=60, unlisted=20),
        large=Settings(image_side=500, train=1000, val=1000, test=400, unlisted=100),
    ),
    "voc2012-action": Layout(
        home="vggfeat.synthetic.trees:write_actions",
        least={"train": 20, "val": 20, "test": 1},
        tiny=Settings(image_side=120, train=40, val=40, test=20),
        demo=Settings(image_side=500, train=140, val=140, test=60),
        large=Settings(image_side=500, train=800, val=800, test=200),
    ),
    "caltech101": Layout(
        home="vggfeat.synthetic.trees:write_caltech101",
        least={"classes": 3, "per_class": 31},
        most_classes=102,
        tiny=Settings(image_side=72, classes=6, per_class=32),
        demo=Settings(image_side=300, classes=8, per_class=45),
        large=Settings(image_side=300, classes=102, per_class=45),
    ),
    "caltech256": Layout(
        home="vggfeat.synthetic.trees:write_caltech256",
        least={"classes": 3, "per_class": 61},
        most_classes=257,
        tiny=Settings(image_side=72, classes=5, per_class=64),
        demo=Settings(image_side=300, classes=5, per_class=80),
        large=Settings(image_side=300, classes=257, per_class=80),
    ),
    "ilsvrc": Layout(
        home="vggfeat.synthetic.trees:write_ilsvrc",
        least={"classes": 2, "train": 2, "val": 1},
        most_classes=240,
        tiny=Settings(image_side=96, classes=6, train=12, val=24, test=6),
        demo=Settings(image_side=300, classes=20, train=40, val=200, test=40),
        large=Settings(image_side=300, classes=100, train=200, val=2000, test=200),
    ),
    "folder": Layout(
        home="vggfeat.synthetic.trees:write_folder",
        least={"classes": 2, "per_class": 4},
        most_classes=40,
        tiny=Settings(image_side=96, classes=4, per_class=12),
        demo=Settings(image_side=300, classes=8, per_class=40),
        large=Settings(image_side=300, classes=40, per_class=60),
    ),
    "formulas": Layout(
        home="vggfeat.synthetic.formulas:write_formulas",
        least={"classes": 2, "train": 2, "val": 2},
        tiny=Settings(image_side=96, classes=8, train=6, val=16),
        demo=Settings(image_side=256, classes=24, train=12, val=48),
        large=Settings(image_side=256, classes=480, train=40, val=480),
    ),
}
"""Name -> layout. `vggfeat data synth` offers all."""


def write(
    name: str,
    root: Path,
    *,
    seed: int = 0,
    size: str | Settings = "demo",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Render a data set.

    `name`: a key of `LAYOUTS`.
    `root`: a folder that is new or empty, or that an earlier call with the same arguments has left.
    `seed`: another number, other images.
    `size`: one of `SIZES`, or counts.
    `workers`: processes, from 1.
    `progress`: called with the number of images done and of all, after each.
    Returns False if the same set was there already, complete and as it was rendered, and nothing was done.
    Raises ConfigError if name, size, seed or workers is not allowed. Raises DatasetError if the folder holds anything
    else. Raises StoreError if it can't be written.
    """
    check_choice("data set", name, LAYOUTS)
    layout = LAYOUTS[name]
    settings = layout.settings(name, size)
    if seed < 0 or workers < 1:
        raise ConfigError(f"expected a seed from 0 and workers from 1, found seed {seed} and workers {workers}")
    root = Path(root)
    wanted = {"set": name, "seed": seed, **asdict(settings)}
    module, _, function = layout.home.partition(":")
    try:
        if _is_complete(root, wanted):
            return False
        from vggfeat.synthetic.scenes import render

        root.mkdir(parents=True, exist_ok=True)
        _mark(root, wanted)
        getattr(import_module(module), function)(
            root, settings, lambda jobs: render(jobs, seed=seed, name=name, workers=workers, progress=progress)
        )
        _mark(root, wanted | _contents(root))
    except OSError as error:
        cause = error.strerror or error
        raise StoreError(f"{error.filename or root}: can't be written: {cause}; fix it, or choose another") from error
    return True


def _is_complete(root: Path, wanted: dict[str, object]) -> bool:
    """Whether this very set is there, whole and unchanged; False if there is nothing, a part of it, or damage."""
    if not root.exists() or (root.is_dir() and all(is_temporary(path.name) for path in root.iterdir())):
        return False
    found = _read_marker(root)
    if found is None:
        raise DatasetError(f"{root}: expected a new or empty folder to render into, found other files; choose another")
    # Sets of before have no checksum, and are rendered again.
    contents = {key: found.pop(key, None) for key in ("images", "sha256")}
    if found != wanted:
        raise DatasetError(
            f"{root}: expected a new or empty folder, found images rendered with other settings ({found}); "
            "delete the folder or choose another"
        )
    return contents["sha256"] is not None and contents == _contents(root)


def _read_marker(root: Path) -> dict[str, object] | None:
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8").splitlines()[-1])
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
        IndexError,
    ):  # Any other OSError is no sign of other files.
        return None
    return found if isinstance(found, dict) else None


def _contents(root: Path) -> dict[str, object]:
    """Count the images of a set, and hash the names and the bytes of all its files."""
    images, digest = 0, hashlib.sha256()
    for path in sorted(root.rglob("*")):
        ending = path.suffix.lower()
        if ending in _IMAGES + _LISTS and path != root / MARKER and path.is_file():
            images += ending in _IMAGES
            with open(path, "rb") as file:
                digest.update(f"{path.relative_to(root)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return {"images": images, "sha256": digest.hexdigest()}


def _mark(root: Path, about: dict[str, object]) -> None:
    """Say what the folder holds; its number of images and its checksum come last, when all is there."""
    words = f"""\
The images in this folder were rendered by vggfeat; nobody photographed them.
They imitate the layout of {about["set"]}, and none of them comes from it.
Results on them say nothing about results on the real data set.

{json.dumps(about)}
"""
    with atomic_write(DISK, root / MARKER) as file:
        file.write(words.encode())
