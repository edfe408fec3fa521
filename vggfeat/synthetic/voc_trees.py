"""Rendered imitations of VOCdevkit: image classification of 2007 and 2012, action classification of 2012."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from numpy.random import Generator

from vggfeat.synthetic import Settings
from vggfeat.synthetic.families import Family, family
from vggfeat.synthetic.jobs import Job, Render, Rendered, object_line, write_annotation, write_lines
from vggfeat.synthetic.scenes import Scene, Thing, people_at_work, several_objects

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

_LISTS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
"""List -> the sets that it joins."""


def write_objects(year: int, root: Path, settings: Settings, render: Render) -> None:
    """Write `VOCdevkit/VOC<year>` with ImageSets/Main.

    The test set of 2007 is annotated. That of 2012 is not, and images of other tasks lie in the same folder.
    """
    tree = root / "VOCdevkit" / f"VOC{year}"
    counts = {"train": settings.train, "val": settings.val, "test": settings.test}
    if year == 2012:
        counts["unlisted"] = settings.unlisted
    sets = {part: {_object_id(year, k): k for k in found} for part, found in deal(counts, len(CLASSES)).items()}
    draw = partial(several_objects, side=settings.image_side, classes=FAMILIES)
    drawn = {image: partial(draw, first=k % len(CLASSES)) for ids in sets.values() for image, k in ids.items()}
    images = _render_images(tree, drawn, render)
    secret = sets["test"] if year == 2012 else ()
    folder = tree / "ImageSets" / "Main"
    for name, ids in _write_ids(folder, sets).items():
        for cls in () if name == "test" and secret else CLASSES:
            write_lines(folder / f"{cls}_{name}.txt", (f"{image} {_label(images[image], cls):>2}" for image in ids))
    for image, rendered in images.items():
        if image not in secret:
            _annotate(tree, image, rendered, map(object_line, rendered.things))


write_voc2007, write_voc2012 = partial(write_objects, 2007), partial(write_objects, 2012)


def _object_id(year: int, number: int) -> str:
    return f"{number:06d}" if year == 2007 else f"{2008 + number % 4}_{number:06d}"


def _label(image: Rendered, cls: str) -> int:
    """1 for an object that is not difficult, 0 if all are, -1 without any (development kit, "Main")."""
    difficult = [thing.difficult for thing in image.things if thing.name == cls]
    return -1 if not difficult else int(not all(difficult))


def deal(counts: Mapping[str, int], block: int) -> dict[str, list[int]]:
    """Deal out the numbers 1, 2, ... in blocks to sets of such counts, so that they mix and each gets every class."""
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


def _render_images(
    tree: Path, drawn: Mapping[str, Callable[[Generator], Scene]], render: Render
) -> dict[str, Rendered]:
    jobs = [Job(path=tree / "JPEGImages" / f"{image}.jpg", image=image, draw=draw) for image, draw in drawn.items()]
    return dict(zip(drawn, render(jobs), strict=True))


def _write_ids(folder: Path, sets: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Write each list of ids, sorted, and return them by name."""
    lists = {name: sorted(image for part in parts for image in sets[part]) for name, parts in _LISTS.items()}
    for name, ids in lists.items():
        write_lines(folder / f"{name}.txt", ids)
    return lists


def _annotate(tree: Path, image: str, rendered: Rendered, objects: Iterable[str]) -> None:
    path = tree / "Annotations" / f"{image}.xml"
    # The development kit's reader stops where one of the three is missing.
    write_annotation(path, tree.name, f"{image}.jpg", rendered, objects, source=("database", "annotation", "image"))


def write_actions(root: Path, settings: Settings, render: Render) -> None:
    """Write `VOCdevkit/VOC2012` with ImageSets/Action; people of the test set have boxes, but no actions."""
    tree = root / "VOCdevkit" / "VOC2012"
    counts = {"train": settings.train, "val": settings.val, "test": settings.test}
    sets = {part: {_action_id(k): k for k in found} for part, found in deal(counts, 2 * len(ACTIONS)).items()}
    extras = [(name, look) for name, look in FAMILIES if look is not None]
    draw = partial(people_at_work, side=settings.image_side, extras=extras)
    drawn = {
        image: partial(draw, actions=published(image), first=_first_action(image, number))
        for ids in sets.values()
        for image, number in ids.items()
    }
    images = _render_images(tree, drawn, render)
    folder = tree / "ImageSets" / "Action"
    for name, ids in _write_ids(folder, sets).items():
        for action in ACTIONS:
            listed = {image: images[image] for image in ids if action in published(image)}
            write_lines(folder / f"{action}_{name}.txt", _action_rows(listed, action, labelled=name != "test"))
    for image, rendered in images.items():
        shown = () if image in sets["test"] else published(image)
        ending = ".0" if image.endswith("5") else ""
        _annotate(tree, image, rendered, (_action_line(thing, shown, ending) for thing in rendered.things))


def _action_id(number: int) -> str:
    return f"{2010 if number % 4 == 1 else 2011}_{number:06d}"


def published(image: str) -> tuple[str, ...]:
    """Actions that are annotated in an image: jumping is not, in those of 2010."""
    return tuple(action for action in ACTIONS if action != "jumping" or not image.startswith("2010"))


def _first_action(image: str, number: int) -> str:
    action = ACTIONS[number % len(ACTIONS)]
    return action if action in published(image) else "other"


def _action_rows(images: Mapping[str, Rendered], action: str, *, labelled: bool) -> Iterator[str]:
    """Give a row for each person: image, number of the object in it, and 1 or -1."""
    for image, rendered in images.items():
        for number, thing in enumerate(rendered.things, start=1):
            if thing.name == "person":
                yield f"{image} {number:>2}" + (f" {1 if action in thing.actions else -1:>2}" if labelled else "")


def _action_line(thing: Thing, actions: Iterable[str], ending: str) -> str:
    """XML of an object as in the action task: other tags, in another order.

    `actions` are those that are published for the image, done or not. Other objects than people have them too: the
    development kit's reader stops where only some objects of an image have a tag that has tags inside. `ending`
    follows each coordinate, as real files have whole numbers and decimal ones.
    """
    xmin, ymin, xmax, ymax = (f"{value}{ending}" for value in thing.box)
    marks = "".join(f"<{name}>{name in thing.actions:d}</{name}>" for name in actions)
    return (
        f"<object><name>{thing.name}</name>{f'<actions>{marks}</actions>' if marks else ''}"
        f"<bndbox><xmax>{xmax}</xmax><xmin>{xmin}</xmin><ymax>{ymax}</ymax><ymin>{ymin}</ymin></bndbox>"
        f"<difficult>0</difficult><pose>Unspecified</pose>"
        f"<point><x>{thing.point[0]}</x><y>{thing.point[1]}</y></point></object>"
    )
