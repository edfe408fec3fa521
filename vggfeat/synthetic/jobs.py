"""Images to render, one after the other or in several processes."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from numpy.random import Generator
from PIL import Image

from vggfeat.synthetic.drawing import generator
from vggfeat.synthetic.scenes import Scene, Thing, cut_out

Progress = Callable[[int, int], None]
"""Told the number of images that are done, and of all."""


class Form(Enum):
    """How an image is stored, whatever the ending of its name says."""

    JPEG = "JPEG, colour"
    GREY = "JPEG, one channel"
    CMYK = "JPEG, four channels"
    PNG = "PNG, colour"
    CUT_OUT = "PNG, transparent around the things"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to render.

    Parameters
    ----------
    path : Path
        File to write.
    key : (int, str, str)
        Seed, set and image id: all that its random numbers depend on.
    draw : callable
        Makes the scene from random numbers; a module's function, bound with `functools.partial`.
    form : Form
        How it is stored.
    """

    path: Path
    key: tuple[int, str, str]
    draw: Callable[[Generator], Scene]
    form: Form = Form.JPEG


@dataclass(frozen=True)
class Rendered:
    """What stands in an image: (width, height) in pixels, and its things."""

    size: tuple[int, int]
    things: tuple[Thing, ...]


Render = Callable[[Sequence[Job]], list[Rendered]]


def render(jobs: Sequence[Job], workers: int, progress: Progress | None) -> list[Rendered]:
    """Render images in the order of their jobs.

    Parameters
    ----------
    jobs : sequence of Job
        The folders of their paths are made here.
    workers : int
        Processes; 1 works in this one.
    progress : callable, optional
        Called after each image.
    """
    for folder in sorted({job.path.parent for job in jobs}):
        folder.mkdir(parents=True, exist_ok=True)
    # A process that is forked while other threads run can hang, so new ones start from nothing.
    start = multiprocessing.get_context("spawn")
    done: list[Rendered] = []
    with ProcessPoolExecutor(workers, mp_context=start) if workers > 1 else nullcontext() as pool:
        for rendered in pool.map(_render_one, jobs, chunksize=8) if pool else map(_render_one, jobs):
            done.append(rendered)
            if progress:
                progress(len(done), len(jobs))
    return done


def _render_one(job: Job) -> Rendered:
    rng = generator(*job.key)
    scene = job.draw(rng)
    _save(scene, job, quality=int(rng.integers(65, 96)))
    return Rendered(scene.image.size, scene.things)


def _save(scene: Scene, job: Job, quality: int) -> None:
    image: Image.Image = scene.image
    if job.form is Form.PNG:
        image.save(job.path, "PNG")
    elif job.form is Form.CUT_OUT:
        cut_out(scene).save(job.path, "PNG")
    else:
        mode = {Form.JPEG: "RGB", Form.GREY: "L", Form.CMYK: "CMYK"}[job.form]
        image.convert(mode).save(job.path, "JPEG", quality=quality)
