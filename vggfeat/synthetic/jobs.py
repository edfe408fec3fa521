"""Images to render, one after the other or in several processes, and the files that annotate them."""

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from numpy.random import Generator

from vggfeat.synthetic.drawing import generator
from vggfeat.synthetic.scenes import Scene, Thing, cut_out

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
    image.save(job.path, file_format, quality=int(rng.integers(65, 96)))  # PNG has no quality
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
