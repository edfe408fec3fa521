"""Rendered imitations of data sets with one class an image: Caltech-101, Caltech-256, a folder, ILSVRC-2012."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggfeat.samples import rank_by_hash
from vggfeat.synthetic import Settings
from vggfeat.synthetic.everyday import Material, everyday, material
from vggfeat.synthetic.families import Family, family
from vggfeat.synthetic.jobs import Form, Job, Render, Rendered, object_line, write_annotation, write_lines
from vggfeat.synthetic.scenes import PHOTO_SHAPES, SMALL_SHAPES, one_subject

FIRST_FOLDER, FIRST_ILSVRC, FIRST_CALTECH101, FIRST_CALTECH256 = 20, 60, 300, 402
"""Number of the first family of each set; no two sets share one."""
FIRST_MATERIAL = 120
"""Number of the first class of ILSVRC that has a usual colour and finish; those before it come in every kind."""

BACKGROUND, CLUTTER = "BACKGROUND_Google", "257.clutter"
_SMALLEST = "inline_skate"
_NAMES_101 = (BACKGROUND, _SMALLEST, "accordion", "airplanes", "anchor", "ant", "barrel", "bass", "beaver", "brain")
_NAMES_256 = ("056.dog", "198.spider", CLUTTER, "001.ak47", "251.airplanes-101", "232.t-shirt")
_FOLDER_FORMS = (
    (".jpg", Form.JPEG),
    (".png", Form.PNG),
    (".JPG", Form.JPEG),
    (".png", Form.CUT_OUT),
    (".jpeg", Form.GREY),
    (".jpg", Form.JPEG),
)
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
        "train": _train_images(classes, settings.train),
        "val": _numbered_images("val", classes, settings.val),
        "test": _numbered_images("test", classes, settings.test),
    }
    data = root / "ILSVRC" / "Data" / _TASK
    jobs = [_job(data / part, image, settings.image_side) for part, images in parts.items() for image in images]
    done = iter(render(jobs))
    found = {part: {image: next(done) for image in images} for part, images in parts.items()}
    _write_annotations(root, found)
    _write_lists(root, classes, found)
    _write_kit(root / "ILSVRC2012_devkit_t12" / "data", classes, parts["val"], settings.train)


def _train_images(classes: Sequence[Synset], count: int) -> list[_RenderedImage]:
    odd = {(0, 1): Form.PNG, (1, 1): Form.CMYK}
    images = []
    for row, synset in enumerate(classes):
        for k in range(count):
            form = odd.get((row, k), Form.GREY if k % 19 == 7 else Form.JPEG)
            # Numbers of the real files have gaps and different lengths.
            path = f"{synset.wnid}/{synset.wnid}_{2 + 37 * k + k * k % 11}"
            images.append(_RenderedImage(path, synset, form))
    return images


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
    solution = {image.path: _solution(rendered) for image, rendered in found["val"].items()}
    # The rows of the real file are in no order.
    shuffled = (f"{name},{solution[name]}" for name in rank_by_hash("solution", list(solution)))
    write_lines(root / "LOC_val_solution.csv", ["ImageId,PredictionString", *shuffled])


def _solution(rendered: Rendered) -> str:
    return "".join(f"{thing.name} {' '.join(map(str, thing.box))} " for thing in rendered.things)


def _write_kit(data: Path, classes: Sequence[Synset], val: Sequence[_RenderedImage], train: int) -> None:
    write_lines(data / "ILSVRC2012_validation_ground_truth.txt", (str(image.synset.number) for image in val))
    (data / "meta.mat").write_bytes(_meta(sorted(classes, key=lambda synset: synset.number), train))


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
