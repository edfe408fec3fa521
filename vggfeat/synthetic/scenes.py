"""Whole images: which objects lie where, what an annotator would write about them, and how they become files."""

import io
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from vggfeat.synthetic.drawing import Canvas, add_clutter, add_object, background, generator
from vggfeat.synthetic.families import Family
from vggfeat.synthetic.people import TOGETHER, add_person

Shapes = tuple[tuple[int, int, int], ...]
"""Width and height of an image whose longer side is 500, and how often it occurs."""
Camera = Callable[[Canvas, Generator], Image.Image]

PHOTO_SHAPES: Shapes = ((500, 375, 12), (375, 500, 4), (500, 333, 2), (333, 500, 1), (500, 400, 1), (442, 500, 1))
SMALL_SHAPES: Shapes = ((500, 333, 5), (500, 400, 3), (333, 500, 2), (500, 500, 2), (430, 500, 2), (500, 230, 1))

_FEWEST_PIXELS = 9
_HIDDEN = 0.35
"""An object of which less than this share is seen counts as difficult."""
_IDLE = (("other",), ("walking",), ("running",), ("jumping",))


@dataclass(frozen=True)
class Thing:
    """What is annotated of one object."""

    name: str
    box: tuple[int, int, int, int]
    """xmin, ymin, xmax, ymax of its visible part in pixels, 1-based, inclusive."""
    difficult: bool
    """Hard to recognise."""
    truncated: bool
    """Cut by the edge of the image."""
    actions: tuple[str, ...]
    """What a person does; empty for everything else."""
    point: tuple[int, int]
    """x, y of a visible pixel of it, 1-based."""


@dataclass(frozen=True)
class Scene:
    """An image with its annotation."""

    image: Image.Image
    """RGB, H x W."""
    things: tuple[Thing, ...]
    """Things in the scene, from left to right."""
    owner: NDArray[np.uint8]
    """(H, W) number of the thing (from 1) that is seen at each pixel; 0 where there is none."""


@dataclass(frozen=True)
class Note:
    """What is known of an object before anybody looks: its class, how it was drawn, whether it is to be annotated."""

    name: str
    faint: bool = False
    actions: tuple[str, ...] = ()
    listed: bool = True


def blank(rng: Generator, shapes: Shapes, side: int) -> Canvas:
    """Background with clutter, in one of the shapes; `side` is the length in pixels of a side of 500."""
    canvas = Canvas(background(rng, *shape_of(rng, shapes, side)))
    add_clutter(canvas, rng, 14)
    return canvas


def shape_of(rng: Generator, shapes: Shapes, side: int) -> tuple[int, int]:
    """Choose width and height of an image in pixels, as for `blank`."""
    weights = np.array([shape[2] for shape in shapes], dtype=np.float64)
    width, height, _ = shapes[int(rng.choice(len(shapes), p=weights / weights.sum()))]
    return max(round(width * side / 500), 1), max(round(height * side / 500), 1)


def several_objects(rng: Generator, *, side: int, classes: Sequence[tuple[str, Family | None]], first: int) -> Scene:
    """Draw an image in the manner of VOC: one object that is well seen, and up to four others behind it.

    `side` is the length in pixels of a side of 500, `classes` gives the name and look of each class, None for a
    person, and `first` is the row there of the object that is well seen.
    """
    canvas = blank(rng, PHOTO_SHAPES, side)
    notes = []
    for _ in range(int(rng.choice(5, p=(0.2, 0.3, 0.25, 0.15, 0.1)))):
        name, family = classes[int(rng.integers(len(classes)))]
        faint = bool(rng.random() < 0.15)
        reach = canvas.side * (rng.uniform(0.05, 0.08) if faint else rng.uniform(0.12, 0.24))
        _add(canvas, rng, family, find_spot(canvas, rng, reach, margin=0.3), reach, 0.55 if faint else 1.0)
        notes.append(Note(name, faint))
    name, family = classes[first]
    reach = canvas.side * rng.uniform(0.2, 0.36)
    _add(canvas, rng, family, find_spot(canvas, rng, reach, margin=0.85), reach)
    return annotate(canvas, rng, [*notes, Note(name)])


def people_at_work(
    rng: Generator, *, side: int, actions: Sequence[str], first: str, extras: Sequence[tuple[str, Family]]
) -> Scene:
    """Draw an image of one to three people, sometimes with an object, or a passer-by who is not annotated.

    `side` is the length in pixels of a side of 500, `first` what the person does that is well seen, `actions` what
    the others may do, where "other" is more frequent, and `extras` the objects that may be there.
    """
    canvas = blank(rng, PHOTO_SHAPES, side)
    height, width = canvas.owner.shape
    count = int(rng.choice((1, 2, 3), p=(0.45, 0.35, 0.2)))
    places = rng.permutation(count)
    notes = []
    if rng.random() < 0.3:
        # Not all people of the real set are annotated either.
        stature = height * rng.uniform(0.25, 0.35)
        add_person(canvas, rng, ("other",), find_spot(canvas, rng, stature / 2, margin=1.0), stature)
        notes.append(Note("person", listed=False))
    if rng.random() < 0.25:
        name, family = extras[int(rng.integers(len(extras)))]
        reach = canvas.side * rng.uniform(0.1, 0.18)
        add_object(canvas, rng, family, find_spot(canvas, rng, reach, margin=1.0), reach)
        notes.append(Note(name))
    for number, place in enumerate(places):
        doing = first if number == count - 1 else "other" if rng.random() < 0.3 else str(rng.choice(list(actions)))
        pairs = [pair for pair in TOGETHER if pair[0] == doing]
        both = pairs[int(rng.integers(len(pairs)))] if pairs and rng.random() < 0.25 else (doing,)
        stature = height * rng.uniform(0.5, 0.75) / (1 + 0.25 * (count - 1)) * min(1.0, 1.2 * width / height)
        x = width * (place + 0.5 + rng.uniform(-0.15, 0.15)) / count
        y = rng.uniform(0.58 * stature, height - 0.55 * stature)
        add_person(canvas, rng, both, (x, y), stature)
        notes.append(Note("person", actions=both))
    return annotate(canvas, rng, notes)


def one_subject(
    rng: Generator,
    *,
    side: int,
    name: str,
    family: Family | None,
    shapes: Shapes,
    sizes: tuple[float, float],
    most: int,
) -> Scene:
    """Draw an image of one class, in the manner of Caltech; without a family it is clutter alone.

    `side` is the length in pixels of a side of 500, `sizes` the range of an object's reach as a share of the smaller
    side. There are at most `most` objects, and mostly one.
    """
    canvas = blank(rng, shapes, side)
    if family is None:
        add_clutter(canvas, rng, 30)
        return annotate(canvas, rng, [])
    count = min(int(rng.choice((1, 2, 3), p=(0.75, 0.2, 0.05))), most)
    for _ in range(count):
        reach = canvas.side * rng.uniform(*sizes) / (1 + 0.3 * (count - 1))
        add_object(canvas, rng, family, find_spot(canvas, rng, reach, margin=0.95), reach)
    return annotate(canvas, rng, [Note(name)] * count)


def cut_out(scene: Scene) -> Image.Image:
    """Show the things of a scene on a transparent ground, as an RGBA image."""
    image = scene.image.convert("RGBA")
    image.putalpha(Image.fromarray(np.where(scene.owner > 0, 255, 0).astype(np.uint8)))
    return image


def _add(
    canvas: Canvas,
    rng: Generator,
    family: Family | None,
    centre: tuple[float, float],
    reach: float,
    opacity: float = 1.0,
) -> None:
    if family is None:
        add_person(canvas, rng, _IDLE[int(rng.integers(len(_IDLE)))], centre, 2 * reach, opacity)
    else:
        add_object(canvas, rng, family, centre, reach, opacity)


def find_spot(canvas: Canvas, rng: Generator, reach: float, margin: float) -> tuple[float, float]:
    """Find the emptiest of eight places, at least `margin` times `reach` inside the image where that is possible."""
    height, width = canvas.owner.shape
    inset = min(margin * reach, 0.49 * canvas.side)
    best, least = (width / 2, height / 2), 2.0
    for _ in range(8):
        x, y = rng.uniform(inset, width - inset), rng.uniform(inset, height - inset)
        near = canvas.owner[max(int(y - reach), 0) : int(y + reach) + 1, max(int(x - reach), 0) : int(x + reach) + 1]
        taken = float((near > 0).mean())
        if taken < least:
            best, least = (x, y), taken
    return best


def annotate(canvas: Canvas, rng: Generator, notes: Sequence[Note], photograph: Camera = Canvas.photograph) -> Scene:
    """Photograph a canvas and note what can be seen of each object, which `notes` name in the order of drawing.

    Objects of fewer than 9 visible pixels, and those not listed, are left out. Difficult are the faint ones and those
    of which less than 35 % is seen.
    """
    seen = []
    for number, note in enumerate(notes, start=1):
        rows, columns = np.nonzero(canvas.owner == number)
        if not note.listed or len(rows) < _FEWEST_PIXELS:
            continue
        box = (int(columns.min()) + 1, int(rows.min()) + 1, int(columns.max()) + 1, int(rows.max()) + 1)
        share = len(rows) / canvas.drawn[number - 1]
        height, width = canvas.owner.shape
        cut = box[0] == 1 or box[1] == 1 or box[2] == width or box[3] == height
        middle = int(rng.integers(len(rows)))
        thing = Thing(
            name=note.name,
            box=box,
            difficult=note.faint or share < _HIDDEN,
            truncated=cut,
            actions=note.actions,
            point=(int(columns[middle]) + 1, int(rows[middle]) + 1),
        )
        seen.append((box, number, thing))
    seen.sort(key=lambda entry: entry[:2])
    renumber = np.zeros(len(canvas.drawn) + 1, dtype=np.uint8)
    for new, (_, old, _) in enumerate(seen, start=1):
        renumber[old] = new
    return Scene(photograph(canvas, rng), tuple(thing for *_, thing in seen), renumber[canvas.owner])


SOURCE = "rendered by vggfeat"
"""What every tag of an annotation's source says."""


class Form(Enum):
    """How an image is stored, whatever the ending of its name says: Pillow's format and mode."""

    JPEG = "JPEG", "RGB"
    GREY = "JPEG", "L"
    CMYK = "JPEG", "CMYK"
    PNG = "PNG", "RGB"
    CUT_OUT = "PNG", "RGBA"
    """Transparent around the things."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to render."""

    path: Path
    image: str
    """Its id: with the seed and the name of the set all that its random numbers depend on."""
    draw: Callable[[Generator], Scene]
    """Makes the scene from random numbers; a module's function, bound with `functools.partial`."""
    form: Form = Form.JPEG


@dataclass(frozen=True)
class Rendered:
    """What an image shows: (width, height) in pixels, and its things."""

    size: tuple[int, int]
    things: tuple[Thing, ...]


Render = Callable[[Sequence[Job]], list[Rendered]]


def render(
    jobs: Sequence[Job], *, seed: int, name: str, workers: int, progress: Callable[[int, int], None] | None
) -> list[Rendered]:
    """Render the images of a set in the order of their jobs, in this process or in several; make their folders."""
    for folder in sorted({job.path.parent for job in jobs}):
        folder.mkdir(parents=True, exist_ok=True)
    render_one = partial(_render_one, seed, name)
    # A process that is forked while other threads run can hang, so new ones start from nothing.
    start = multiprocessing.get_context("spawn")
    done: list[Rendered] = []
    with ProcessPoolExecutor(workers, mp_context=start) if workers > 1 else nullcontext() as pool:
        for rendered in pool.map(render_one, jobs, chunksize=8) if pool else map(render_one, jobs):
            done.append(rendered)
            if progress:
                progress(len(done), len(jobs))
    return done


def _render_one(seed: int, name: str, job: Job) -> Rendered:
    rng = generator(seed, name, job.image)
    scene = job.draw(rng)
    file_format, mode = job.form.value
    image = cut_out(scene) if job.form is Form.CUT_OUT else scene.image.convert(mode)
    encoded = io.BytesIO()  # Pillow does not look at how much of what it writes into a file the disk has taken.
    image.save(encoded, file_format, quality=int(rng.integers(65, 96)))  # PNG has no quality
    job.path.write_bytes(encoded.getbuffer())
    return Rendered(scene.image.size, scene.things)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, each line ended; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def write_annotation(
    path: Path, folder: str, filename: str, image: Rendered, objects: Iterable[str], source: Sequence[str]
) -> None:
    """Write the XML of one image, as PASCAL VOC and ILSVRC have it, from its objects' lines and its source's tags."""
    width, height = image.size
    sources = "".join(f"<{tag}>{SOURCE}</{tag}>" for tag in source)
    head = [
        f"<folder>{folder}</folder>",
        f"<filename>{filename}</filename>",
        f"<source>{sources}</source>",
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "<segmented>0</segmented>",
    ]
    body = [f"\t{line}" for line in (*head, *objects)]
    write_lines(path, ["<annotation>", *body, "</annotation>"])


def object_line(thing: Thing) -> str:
    """XML of an object as in VOC's main task."""
    xmin, ymin, xmax, ymax = thing.box
    box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return (
        f"<object><name>{thing.name}</name><pose>Unspecified</pose><truncated>{thing.truncated:d}</truncated>"
        f"<difficult>{thing.difficult:d}</difficult><bndbox>{box}</bndbox></object>"
    )


def action_line(thing: Thing, actions: Iterable[str], ending: str) -> str:
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
