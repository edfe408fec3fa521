"""Rendered imitations of VOCdevkit: image classification of 2007 and 2012, action classification of 2012."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from vggfeat.synthetic.annotations import object_line, person_line, write_annotation, write_lines
from vggfeat.synthetic.families import Family, family
from vggfeat.synthetic.jobs import Job, Render, Rendered
from vggfeat.synthetic.scenes import people_at_work, several_objects
from vggfeat.synthetic.settings import Settings

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The official names; only a person looks like one."""
ACTIONS = (
    "jumping", "other", "phoning", "playinginstrument", "reading", "ridingbike",
    "ridinghorse", "running", "takingphoto", "usingcomputer", "walking",
)  # fmt: skip
FAMILIES: tuple[tuple[str, Family | None], ...] = tuple(
    (name, None if name == "person" else family(number)) for number, name in enumerate(CLASSES)
)
"""Name and look of each class; None is a person."""

_MAIN_SETS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}


def write_objects(year: int, root: Path, settings: Settings, seed: int, render: Render) -> None:
    """Write `VOCdevkit/VOC<year>` with ImageSets/Main.

    Parameters
    ----------
    year : int
        2007, where the test set is annotated; or 2012, where it is not, and where images of other tasks lie in
        the same folder.
    root : Path
        Folder to write into.
    settings : Settings
        Reads image_side, train, val, test and, in 2012, unlisted.
    seed : int
        Seed of the set.
    render : callable
        Makes the images.
    """
    settings.needs(f"voc{year}", train=20, val=20, test=1)
    tree = root / "VOCdevkit" / f"VOC{year}"
    counts = {"train": settings.train, "val": settings.val, "test": settings.test}
    if year == 2012:
        counts["unlisted"] = settings.unlisted
    numbers = deal(counts, len(CLASSES))
    names = {number: _object_id(year, number) for part in numbers.values() for number in part}
    draw = partial(several_objects, side=settings.image_side, classes=FAMILIES)
    jobs = [
        Job(
            path=tree / "JPEGImages" / f"{name}.jpg",
            key=(seed, f"voc{year}", name),
            draw=partial(draw, first=number % len(CLASSES)),
        )
        for number, name in names.items()
    ]
    images = dict(zip(names.values(), render(jobs), strict=True))
    sets = {part: sorted(names[number] for number in found) for part, found in numbers.items()}
    secret = set(sets["test"]) if year == 2012 else set()
    _write_main_lists(tree / "ImageSets" / "Main", sets, images, labelled_test=not secret)
    for name, image in images.items():
        if name not in secret:
            lines = map(object_line, image.things)
            write_annotation(tree / "Annotations" / f"{name}.xml", tree.name, f"{name}.jpg", image, lines)


def deal(counts: Mapping[str, int], block: int) -> dict[str, list[int]]:
    """Deal out the numbers 1, 2, ... in blocks, so that the sets mix and each gets every class.

    Parameters
    ----------
    counts : mapping of str to int
        How many numbers each set gets.
    block : int
        Numbers that go to one set together.
    """
    dealt: dict[str, list[int]] = {name: [] for name in counts}
    number = 1
    while number <= sum(counts.values()):
        name = min(
            (name for name in counts if len(dealt[name]) < counts[name]), key=lambda n: len(dealt[n]) / counts[n]
        )
        size = min(block, counts[name] - len(dealt[name]))
        dealt[name] += range(number, number + size)
        number += size
    return dealt


def _object_id(year: int, number: int) -> str:
    return f"{number:06d}" if year == 2007 else f"{2008 + number % 4}_{number:06d}"


def _write_main_lists(
    folder: Path, sets: Mapping[str, Sequence[str]], images: Mapping[str, Rendered], *, labelled_test: bool
) -> None:
    for name, parts in _MAIN_SETS.items():
        ids = sorted(image for part in parts for image in sets[part])
        write_lines(folder / f"{name}.txt", ids)
        if name == "test" and not labelled_test:
            continue
        for cls in CLASSES:
            lines = (f"{image} {_label(images[image], cls):>2}" for image in ids)
            write_lines(folder / f"{cls}_{name}.txt", lines)


def _label(image: Rendered, cls: str) -> int:
    """1 for an object that is not difficult, 0 if all are, -1 without any (development kit, "Main")."""
    difficult = [thing.difficult for thing in image.things if thing.name == cls]
    return -1 if not difficult else int(not all(difficult))


def write_actions(root: Path, settings: Settings, seed: int, render: Render) -> None:
    """Write `VOCdevkit/VOC2012` with ImageSets/Action.

    Parameters
    ----------
    root : Path
        Folder to write into.
    settings : Settings
        Reads image_side, train, val and test.
    seed : int
        Seed of the set.
    render : callable
        Makes the images.
    """
    settings.needs("voc2012-action", train=20, val=20, test=1)
    tree = root / "VOCdevkit" / "VOC2012"
    numbers = deal({"train": settings.train, "val": settings.val, "test": settings.test}, 2 * len(ACTIONS))
    names = {number: f"{2011 - (number % 4 == 1)}_{number:06d}" for part in numbers.values() for number in part}
    extras = [(name, look) for name, look in FAMILIES if look is not None]
    draw = partial(people_at_work, side=settings.image_side, extras=extras)
    jobs = [
        Job(
            path=tree / "JPEGImages" / f"{name}.jpg",
            key=(seed, "voc2012-action", name),
            draw=partial(draw, actions=published(name), first=_first_action(number, name)),
        )
        for number, name in names.items()
    ]
    images = dict(zip(names.values(), render(jobs), strict=True))
    sets = {part: sorted(names[number] for number in found) for part, found in numbers.items()}
    _write_action_lists(tree / "ImageSets" / "Action", sets, images)
    for name, image in images.items():
        lines = _action_lines(image, () if name in sets["test"] else published(name), name)
        write_annotation(tree / "Annotations" / f"{name}.xml", tree.name, f"{name}.jpg", image, lines)


def published(image: str) -> tuple[str, ...]:
    """Actions that are annotated in an image: jumping is not, in those of 2010."""
    return tuple(action for action in ACTIONS if action != "jumping" or not image.startswith("2010"))


def _first_action(number: int, image: str) -> str:
    action = ACTIONS[number % len(ACTIONS)]
    return action if action in published(image) else "other"


def _action_lines(rendered: Rendered, actions: Iterable[str], image: str) -> Iterable[str]:
    ending = ".0" if image.endswith("5") else ""
    for thing in rendered.things:
        yield person_line(thing, actions, ending) if thing.name == "person" else object_line(thing)


def _write_action_lists(folder: Path, sets: Mapping[str, Sequence[str]], images: Mapping[str, Rendered]) -> None:
    for name, parts in _MAIN_SETS.items():
        ids = sorted(image for part in parts for image in sets[part])
        write_lines(folder / f"{name}.txt", ids)
        for action in ACTIONS:
            listed = [image for image in ids if action in published(image)]
            lines = (
                f"{image} {number:>2}" + ("" if name == "test" else f" {1 if action in thing.actions else -1:>2}")
                for image in listed
                for number, thing in enumerate(images[image].things, start=1)
                if thing.name == "person"
            )
            write_lines(folder / f"{action}_{name}.txt", lines)
