"""Rendered imitations of Caltech-101, of Caltech-256, and of anybody's folder of images."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vggfeat.errors import ConfigError
from vggfeat.synthetic.annotations import write_lines
from vggfeat.synthetic.families import family
from vggfeat.synthetic.jobs import Form, Job, Render
from vggfeat.synthetic.scenes import PHOTO_SHAPES, SMALL_SHAPES, one_subject
from vggfeat.synthetic.settings import Settings

FIRST_FOLDER, FIRST_CALTECH101, FIRST_CALTECH256 = 20, 300, 402
"""Number of the first family of each set; no two sets share one."""

BACKGROUND, CLUTTER = "BACKGROUND_Google", "257.clutter"
_SMALLEST = "inline_skate"
_NAMES_101 = (BACKGROUND, _SMALLEST, "accordion", "airplanes", "anchor", "ant", "barrel", "bass", "beaver", "brain")
_NAMES_256 = ("056.dog", "198.spider", CLUTTER, "001.ak47", "251.airplanes-101", "232.t-shirt")


def caltech101_classes(count: int) -> list[str]:
    """Names of the first classes: ten of the official ones, then names of families."""
    more = [family(FIRST_CALTECH101 + number).title.replace(" ", "_") for number in range(len(_NAMES_101), count)]
    return [*_NAMES_101, *more][:count]


def caltech256_classes(count: int) -> list[str]:
    """Names of the first classes: six of the official ones, then numbered names of families."""
    taken = {name[:3] for name in _NAMES_256}
    free = [f"{number:03d}" for number in range(1, 258) if f"{number:03d}" not in taken]
    titles = [family(FIRST_CALTECH256 + number).title for number in range(len(_NAMES_256), 257)]
    more = [f"{number}.{title.replace(' ', '-')}" for number, title in zip(free, titles, strict=True)]
    return [*_NAMES_256, *more][:count]


def write_caltech101(root: Path, settings: Settings, seed: int, render: Render) -> None:
    """Write `101_ObjectCategories`: the background class, one class of 31 images, and the stray file `tmp`.

    Parameters
    ----------
    root : Path
        Folder to write into.
    settings : Settings
        Reads image_side, classes (3 to 102) and per_class (31 or more).
    seed : int
        Seed of the set.
    render : callable
        Makes the images.
    """
    settings.needs("caltech101", classes=3, per_class=31)
    _check_most("caltech101", settings.classes, 102)
    tree = root / "101_ObjectCategories"
    jobs = []
    for number, cls in enumerate(caltech101_classes(settings.classes)):
        count = 31 if cls == _SMALLEST else settings.per_class + 3 * number % 7
        files = [f"image_{k:04d}.jpg" for k in range(1, count + 1)]
        look = None if cls == BACKGROUND else FIRST_CALTECH101 + number
        jobs += _class_jobs(tree / cls, files, ("caltech101", seed), look, settings.image_side)
    render(jobs)
    write_lines(tree / BACKGROUND / "tmp", ["not an image"])


def write_caltech256(root: Path, settings: Settings, seed: int, render: Render) -> None:
    """Write `256_ObjectCategories`: numbered classes, clutter, and the stray file and folder of the original.

    Parameters
    ----------
    root : Path
        Folder to write into.
    settings : Settings
        Reads image_side, classes (3 to 257) and per_class (61 or more).
    seed : int
        Seed of the set.
    render : callable
        Makes the images.
    """
    settings.needs("caltech256", classes=3, per_class=61)
    _check_most("caltech256", settings.classes, 257)
    tree = root / "256_ObjectCategories"
    jobs = []
    for number, cls in enumerate(caltech256_classes(settings.classes)):
        files = [f"{cls[:3]}_{k:04d}.jpg" for k in range(1, settings.per_class + 3 * number % 7 + 1)]
        look = None if cls == CLUTTER else FIRST_CALTECH256 + number
        jobs += _class_jobs(tree / cls, files, ("caltech256", seed), look, settings.image_side)
    render(jobs)
    write_lines(tree / "198.spider" / "RENAME2", ["not an image"])
    write_lines(tree / "056.dog" / "greg" / "vision309", [])


def write_folder(root: Path, settings: Settings, seed: int, render: Render) -> None:
    """Write a folder per class with JPEG and PNG files, some of them transparent, and a stray text file.

    Parameters
    ----------
    root : Path
        Folder to write into.
    settings : Settings
        Reads image_side, classes (2 to 40) and per_class (4 or more).
    seed : int
        Seed of the set.
    render : callable
        Makes the images.
    """
    settings.needs("folder", classes=2, per_class=4)
    _check_most("folder", settings.classes, 40)
    jobs = []
    for number in range(settings.classes):
        look = FIRST_FOLDER + number
        cls = family(look).title
        kinds = [_KINDS[k % len(_KINDS)] for k in range(settings.per_class + 3 * number % 5)]
        drawn = partial(
            one_subject, side=settings.image_side, name=cls, family=family(look), shapes=PHOTO_SHAPES,
            sizes=(0.25, 0.42), most=2,
        )  # fmt: skip
        jobs += [
            Job(path=root / cls / f"{k:03d}{ending}", key=(seed, "folder", f"{cls}/{k:03d}"), draw=drawn, form=form)
            for k, (ending, form) in enumerate(kinds, start=1)
        ]
    render(jobs)
    write_lines(root / family(FIRST_FOLDER).title / "notes.txt", ["not an image"])


_KINDS = (
    (".jpg", Form.JPEG),
    (".png", Form.PNG),
    (".JPG", Form.JPEG),
    (".png", Form.CUT_OUT),
    (".jpeg", Form.GREY),
    (".jpg", Form.JPEG),
)


def _class_jobs(folder: Path, files: Sequence[str], key: tuple[str, int], look: int | None, side: int) -> list[Job]:
    draw = partial(
        one_subject, side=side, name=folder.name, family=None if look is None else family(look),
        shapes=SMALL_SHAPES, sizes=(0.3, 0.46), most=1,
    )  # fmt: skip
    name, seed = key
    return [
        Job(
            path=folder / file,
            key=(seed, name, f"{folder.name}/{file}"),
            draw=draw,
            form=Form.GREY if k % 17 == 5 else Form.JPEG,
        )
        for k, file in enumerate(files)
    ]


def _check_most(name: str, classes: int, most: int) -> None:
    if classes > most:
        raise ConfigError(f"{name}: expected at most {most} classes, found {classes}")
