"""Rendered imitations of data sets in their layouts: VOC's objects and actions, Caltech, a folder, ILSVRC-2012."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from vggfeat.samples import rank_by_hash
from vggfeat.synthetic import Settings
from vggfeat.synthetic.everyday import Material, everyday, material
from vggfeat.synthetic.families import Family, family
from vggfeat.synthetic.scenes import (
    PHOTO_SHAPES,
    SMALL_SHAPES,
    Form,
    Job,
    Render,
    Rendered,
    Scene,
    action_line,
    object_line,
    one_subject,
    people_at_work,
    several_objects,
    write_annotation,
    write_lines,
)

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
    dealt = deal(counts, len(CLASSES)).items()
    sets = {part: {_object_id(year, k): k for k in found} for part, found in dealt}
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
    dealt = deal(counts, 2 * len(ACTIONS)).items()
    sets = {part: {f"{2010 if k % 4 == 1 else 2011}_{k:06d}": k for k in found} for part, found in dealt}
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
        _annotate(tree, image, rendered, (action_line(thing, shown, ending) for thing in rendered.things))


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


FIRST_FOLDER, FIRST_ILSVRC, FIRST_CALTECH101, FIRST_CALTECH256 = 20, 60, 300, 402
"""Number of the first family of each set; no two sets share one."""
FIRST_MATERIAL = 120
"""Number of the first class of ILSVRC that has a usual colour and finish; those before it come in every kind."""

BACKGROUND, CLUTTER = "BACKGROUND_Google", "257.clutter"
_SMALLEST = "inline_skate"
_NAMES_101 = (BACKGROUND, _SMALLEST, "accordion", "airplanes", "anchor", "ant", "barrel", "bass", "beaver", "brain")
_NAMES_256 = ("056.dog", "198.spider", CLUTTER, "001.ak47", "251.airplanes-101", "232.t-shirt")
_FOLDER_FORMS = (
    (".jpg", Form.JPEG), (".png", Form.PNG), (".JPG", Form.JPEG), (".png", Form.CUT_OUT), (".jpeg", Form.GREY),
    (".jpg", Form.JPEG),
)  # fmt: skip
_TASK = "CLS-LOC"
_MAT_TITLE = b"MATLAB 5.0 MAT-file, rendered by vggfeat"
_MAT_TITLE_BYTES = 116


def caltech101_classes(count: int) -> list[str]:
    """Names of the first classes: ten of the official ones, then names of families."""
    more = [family(FIRST_CALTECH101 + number).title.replace(" ", "_") for number in range(len(_NAMES_101), count)]
    return [*_NAMES_101, *more][:count]


def caltech256_classes(count: int) -> list[str]:
    """Names of the first classes: six of the official ones, then numbered names of families."""
    taken = {int(name[:3]) for name in _NAMES_256}
    free = [number for number in range(1, 258) if number not in taken]
    titles = [family(FIRST_CALTECH256 + number).title for number in range(len(_NAMES_256), 257)]
    more = [f"{number:03d}.{title.replace(' ', '-')}" for number, title in zip(free, titles, strict=True)]
    return [*_NAMES_256, *more][:count]


def write_caltech101(root: Path, settings: Settings, render: Render) -> None:
    """Write `101_ObjectCategories`: the background class, one class of 31 images, and the stray file `tmp`."""
    tree = root / "101_ObjectCategories"
    render(_caltech_jobs(tree, caltech101_classes(settings.classes), FIRST_CALTECH101, settings))
    write_lines(tree / BACKGROUND / "tmp", ["not an image"])


def write_caltech256(root: Path, settings: Settings, render: Render) -> None:
    """Write `256_ObjectCategories`: numbered classes, clutter, and the stray file and folder of the original."""
    tree = root / "256_ObjectCategories"
    render(_caltech_jobs(tree, caltech256_classes(settings.classes), FIRST_CALTECH256, settings))
    write_lines(tree / "198.spider" / "RENAME2", ["not an image"])
    write_lines(tree / "056.dog" / "greg" / "vision309", [])


def _caltech_jobs(tree: Path, classes: Sequence[str], first: int, settings: Settings) -> list[Job]:
    jobs = []
    for number, cls in enumerate(classes):
        count = 31 if cls == _SMALLEST else settings.per_class + 3 * number % 7
        look = None if cls in (BACKGROUND, CLUTTER) else family(first + number)
        draw = partial(
            one_subject, side=settings.image_side, name=cls, family=look, shapes=SMALL_SHAPES, sizes=(0.3, 0.46), most=1
        )
        prefix = cls[:3] if cls[0].isdigit() else "image"
        for k in range(count):
            image, form = f"{cls}/{prefix}_{k + 1:04d}.jpg", Form.GREY if k % 17 == 5 else Form.JPEG
            jobs.append(Job(path=tree / image, image=image, draw=draw, form=form))
    return jobs


def write_folder(root: Path, settings: Settings, render: Render) -> None:
    """Write a folder per class with JPEG and PNG files, some of them transparent, and a stray text file."""
    jobs = []
    for number in range(settings.classes):
        look = family(FIRST_FOLDER + number)
        draw = partial(
            one_subject, side=settings.image_side, name=look.title, family=look, shapes=PHOTO_SHAPES,
            sizes=(0.25, 0.42), most=2,
        )  # fmt: skip
        for k in range(settings.per_class + 3 * number % 5):
            image, (ending, form) = f"{look.title}/{k + 1:03d}", _FOLDER_FORMS[k % len(_FOLDER_FORMS)]
            jobs.append(Job(path=root / f"{image}{ending}", image=image, draw=draw, form=form))
    render(jobs)
    write_lines(root / family(FIRST_FOLDER).title / "notes.txt", ["not an image"])


class Synset(NamedTuple):
    """One class: its name of letter and digits, what its objects look like, and the kit's number of it."""

    wnid: str
    look: Family
    material: Material | None
    """Its usual colour and finish, if it has them."""
    number: int

    @property
    def title(self) -> str:
        """Words for lists of classes, for instance "brown furry brick heart"."""
        return " ".join([*(word for word in self.material or () if word), self.look.title])


class _RenderedImage(NamedTuple):
    path: str
    synset: Synset
    form: Form


def synsets(count: int) -> list[Synset]:
    """Classes in the order of their families; the kit's numbers follow neither these nor the sorted names."""
    wnids = [f"n9{int(hashlib.sha256(f'class {k}'.encode()).hexdigest(), 16) % 10**7:07d}" for k in range(count)]
    numbers = {wnid: number for number, wnid in enumerate(rank_by_hash("development kit", wnids), start=1)}
    return [
        Synset(wnid, family(FIRST_ILSVRC + k), material(wnid) if k >= FIRST_MATERIAL else None, numbers[wnid])
        for k, wnid in enumerate(wnids)
    ]


def write_ilsvrc(root: Path, settings: Settings, render: Render) -> None:
    """Write `ILSVRC`, the lists next to it, and `ILSVRC2012_devkit_t12`.

    Every object of an image's class has a box, in four of five training images and in all of validation. One
    training image is a PNG and one is CMYK, though they are named .JPEG; some are grey.
    """
    classes = synsets(settings.classes)
    parts = {
        "train": list(_train_images(classes, settings.train)),
        "val": _numbered_images("val", classes, settings.val),
        "test": _numbered_images("test", classes, settings.test),
    }
    data = root / "ILSVRC" / "Data" / _TASK
    jobs = [_job(data / part, image, settings.image_side) for part, images in parts.items() for image in images]
    done = iter(render(jobs))
    found = {part: {image: next(done) for image in images} for part, images in parts.items()}
    _write_annotations(root, found)
    _write_lists(root, classes, found)
    kit, truth = root / "ILSVRC2012_devkit_t12" / "data", (str(image.synset.number) for image in parts["val"])
    write_lines(kit / "ILSVRC2012_validation_ground_truth.txt", truth)
    (kit / "meta.mat").write_bytes(_meta(sorted(classes, key=lambda synset: synset.number), settings.train))


def _train_images(classes: Sequence[Synset], count: int) -> Iterator[_RenderedImage]:
    odd = {(0, 1): Form.PNG, (1, 1): Form.CMYK}
    for row, synset in enumerate(classes):
        for k in range(count):
            form = odd.get((row, k), Form.GREY if k % 19 == 7 else Form.JPEG)
            # Numbers of the real files have gaps and different lengths.
            yield _RenderedImage(f"{synset.wnid}/{synset.wnid}_{2 + 37 * k + k * k % 11}", synset, form)


def _numbered_images(part: str, classes: Sequence[Synset], count: int) -> list[_RenderedImage]:
    """Every run of as many images as there are classes has each class once, in an order of its own."""
    images: list[_RenderedImage] = []
    by_wnid = {synset.wnid: synset for synset in classes}
    while len(images) < count:
        for wnid in rank_by_hash(f"{part}/{len(images)}", list(by_wnid))[: count - len(images)]:
            form = Form.GREY if len(images) % 19 == 7 else Form.JPEG
            images.append(_RenderedImage(f"ILSVRC2012_{part}_{len(images) + 1:08d}", by_wnid[wnid], form))
    return images


def _job(folder: Path, image: _RenderedImage, side: int) -> Job:
    synset = image.synset
    draw = partial(
        everyday, side=side, name=synset.wnid, family=synset.look, material=synset.material, shapes=PHOTO_SHAPES
    )
    return Job(path=folder / f"{image.path}.JPEG", image=image.path, draw=draw, form=image.form)


def _write_annotations(root: Path, found: Mapping[str, Mapping[_RenderedImage, Rendered]]) -> None:
    for part in ("train", "val"):
        for number, (image, rendered) in enumerate(found[part].items()):
            if part == "train" and number % 5 == 4:
                continue
            path = root / "ILSVRC" / "Annotations" / _TASK / part / f"{image.path}.xml"
            folder = image.synset.wnid if part == "train" else part
            objects = map(object_line, rendered.things)
            write_annotation(path, folder, path.stem, rendered, objects, source=("database",))


def _write_lists(root: Path, classes: Sequence[Synset], found: Mapping[str, Mapping[_RenderedImage, Rendered]]) -> None:
    lists = {"train_cls": "train", "val": "val", "test": "test"}
    for name, part in lists.items():
        lines = (f"{image.path} {number}" for number, image in enumerate(found[part], start=1))
        write_lines(root / "ILSVRC" / "ImageSets" / _TASK / f"{name}.txt", lines)
    rows = [f"{synset.wnid} {synset.title}, {synset.look.outline}" for synset in sorted(classes)]
    write_lines(root / "LOC_synset_mapping.txt", rows)
    solution = {
        image.path: "".join(f"{thing.name} {' '.join(map(str, thing.box))} " for thing in rendered.things)
        for image, rendered in found["val"].items()
    }
    # The rows of the real file are in no order.
    shuffled = (f"{name},{solution[name]}" for name in rank_by_hash("solution", list(solution)))
    write_lines(root / "LOC_val_solution.csv", ["ImageId,PredictionString", *shuffled])


def _meta(classes: Sequence[Synset], train: int) -> bytes:
    """Make the kit's `synsets`: the classes in the order of their numbers, then their common ancestor."""
    from scipy.io import savemat

    empty = np.zeros(0)
    rows = [(k.number, k.wnid, k.title, f"a {k.title}", 0, empty, 0, train) for k in classes]
    everything = len(rows) + 1
    children = np.arange(1.0, everything)
    rows.append((everything, "n00001740", "entity", "all that there is", len(classes), children, 1, 0))
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss",
             "num_children", "children", "wordnet_height", "num_train_images")  # fmt: skip
    table = np.zeros((len(rows), 1), dtype=[(name, object) for name in names])
    for number, row in enumerate(rows):
        table[number, 0] = tuple(float(value) if isinstance(value, int) else value for value in row)
    file = io.BytesIO()
    savemat(file, {"synsets": table}, oned_as="row")
    # The title that the library writes holds the time of day.
    return _MAT_TITLE.ljust(_MAT_TITLE_BYTES) + file.getvalue()[_MAT_TITLE_BYTES:]
