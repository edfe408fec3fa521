"""A rendered imitation of ILSVRC-2012's classification and localisation data, with its development kit."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggfeat.errors import ConfigError
from vggfeat.samples import rank_by_hash
from vggfeat.synthetic.annotations import object_line, write_annotation, write_lines
from vggfeat.synthetic.everyday import everyday
from vggfeat.synthetic.families import Family, family
from vggfeat.synthetic.jobs import Form, Job, Render, Rendered
from vggfeat.synthetic.materials import Material, material
from vggfeat.synthetic.scenes import PHOTO_SHAPES
from vggfeat.synthetic.settings import Settings

FIRST, MOST = 60, 240
"""Number of the first family, and how many classes there can be; no other set has these families."""
FIRST_MATERIAL = 120
"""Number of the first class that has a usual colour and finish; those before it come in every kind."""

_TASK = "CLS-LOC"
_MAT_TITLE = b"MATLAB 5.0 MAT-file, rendered by vggfeat"
_MAT_TITLE_BYTES = 116


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
        Synset(wnid, family(FIRST + k), material(wnid) if k >= FIRST_MATERIAL else None, numbers[wnid])
        for k, wnid in enumerate(wnids)
    ]


def write_ilsvrc(root: Path, settings: Settings, seed: int, render: Render) -> None:
    """Write `ILSVRC`, the lists beside it, and `ILSVRC2012_devkit_t12`.

    Every object of an image's class has a box, in four of five training images and in all of validation. One
    training image is a PNG and one is CMYK, though they are named .JPEG; some are grey.

    Parameters
    ----------
    root : Path
        Folder to write into.
    settings : Settings
        Reads image_side, classes (2 to 240), train (per class), val and test (in all).
    seed : int
        Seed of the set.
    render : callable
        Makes the images.
    """
    settings.needs("ilsvrc", classes=2, train=2, val=1)
    if settings.classes > MOST:
        raise ConfigError(f"ilsvrc: expected at most {MOST} classes, found {settings.classes}")
    classes = synsets(settings.classes)
    parts = {
        "train": _train_images(classes, settings.train),
        "val": _numbered_images("val", classes, settings.val),
        "test": _numbered_images("test", classes, settings.test),
    }
    data = root / "ILSVRC" / "Data" / _TASK
    jobs = [_job(data, part, image, seed, settings.image_side) for part in parts for image in parts[part]]
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


def _job(data: Path, part: str, image: _RenderedImage, seed: int, side: int) -> Job:
    synset = image.synset
    draw = partial(
        everyday, side=side, name=synset.wnid, family=synset.look, material=synset.material, shapes=PHOTO_SHAPES
    )
    return Job(path=data / part / f"{image.path}.JPEG", key=(seed, "ilsvrc", image.path), draw=draw, form=image.form)


def _write_annotations(root: Path, found: Mapping[str, Mapping[_RenderedImage, Rendered]]) -> None:
    for part in ("train", "val"):
        for number, (image, rendered) in enumerate(found[part].items()):
            if part == "train" and number % 5 == 4:
                continue
            path = root / "ILSVRC" / "Annotations" / _TASK / part / f"{image.path}.xml"
            folder = image.synset.wnid if part == "train" else part
            write_annotation(path, folder, path.stem, rendered, map(object_line, rendered.things))


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
    names = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    table = np.zeros((len(rows), 1), dtype=[(name, object) for name in names])
    for number, row in enumerate(rows):
        table[number, 0] = tuple(float(value) if isinstance(value, int) else value for value in row)
    file = io.BytesIO()
    savemat(file, {"synsets": table}, oned_as="row")
    # The title that the library writes holds the time of day.
    return _MAT_TITLE.ljust(_MAT_TITLE_BYTES) + file.getvalue()[_MAT_TITLE_BYTES:]
