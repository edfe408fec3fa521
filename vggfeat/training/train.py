"""Training from beginning to end: images in, a folder with the weights out."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vggfeat.errors import TrainingError
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.runtime.distributed import World, open_world
from vggfeat.runtime.durable import DISK, Files
from vggfeat.samples import ClassificationSet
from vggfeat.training.checkpoints import Checkpoint
from vggfeat.training.feed import Feed, ImageFeed
from vggfeat.training.learner import Learner
from vggfeat.training.run_folder import RunFolder
from vggfeat.training.settings import Recipe, TrainingSettings
from vggfeat.training.state import Hooks, Outcome, State
from vggfeat.training.stop_signals import Stopped
from vggfeat.training.task import Classification, Task
from vggfeat.training.trainer import Running
from vggfeat.weights import Backbone


def train(
    recipe: Recipe,
    data: ClassificationSet,
    out: Path,
    *,
    started_from: Backbone | None = None,
    resume: bool = False,
    run: TrainingSettings = TrainingSettings(),  # noqa: B008  frozen
    decode: DecodeSettings = DecodeSettings(),  # noqa: B008  frozen
    hooks: Hooks = Hooks(),  # noqa: B008  frozen
) -> Outcome:
    """Train a net on images, or go on with the run that was doing so.

    Started by torchrun, all its processes train together; the first of them writes.

    Parameters
    ----------
    recipe : Recipe
    data : ClassificationSet
    out : Path
        Folder of the run, new or empty.
    started_from : Backbone, optional
        The weights that `recipe.start` asks for.
    resume : bool
        Go on from the newest checkpoint in `out`; if nothing stands there, begin.
    run : TrainingSettings
    decode : DecodeSettings
        Limits for an image.
    hooks : Hooks

    Returns
    -------
    Outcome

    Raises
    ------
    ConfigError
        If settings do not go together, or the device is not there.
    TrainingError
        If `out` holds something else, the loss is no number, memory is too small even for one image at a time, over
        1 % of the images can't be read, or another process of the run has gone.
    StoreError
        If the disk refuses.
    """
    with (
        open_world(run.device, os.environ, lost=TrainingError, sums=True) as world,
        Decoder(run.workers, decode) as decoder,
    ):
        feed = ImageFeed(data, recipe, world, decoder)
        task = Classification(recipe, feed.classes, started_from)
        return learn(task, feed, out, world=world, resume=resume, run=run, hooks=hooks)


def learn(
    task: Task,
    feed: Feed,
    out: Path,
    *,
    world: World,
    resume: bool = False,
    run: TrainingSettings = TrainingSettings(),  # noqa: B008  frozen
    hooks: Hooks = Hooks(),  # noqa: B008  frozen
    files: Files = DISK,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train for any `Task` on what any `Feed` hands out; otherwise as `train`.

    Parameters
    ----------
    task : Task
    feed : Feed
        Its targets are of the task.
    world : World
        The processes of the run.
    files : Files
        Carries out what changes the disk.
    clock : callable
        Seconds, for rates.
    """
    model, notes = task.first_weights()
    identity = _identity(task, feed)
    folder = RunFolder(out, files)
    with ExitStack() as stack:
        stack.callback(folder.close)
        # The checkpoint stays in the first process; the learner brings its tensors to the others.
        held: list[Checkpoint] = []

        def begin() -> tuple[dict[str, Any] | None, list[str]]:
            found, damaged = folder.begin(identity, resume)
            held.extend([found] if found else [])
            return found.about["state"] if found else None, damaged

        told, damaged = world.on_main(begin)
        state = State.read(told, task.read_validation) if told else State()
        running = Running(task, feed, run, hooks, world, folder, state, identity, clock)
        stack.callback(running.close)
        for note in damaged if told else notes:
            running.note(note)
        try:
            mean = feed.prepare(out, running.measuring)
        except Stopped:
            return running.outcome(None)
        learner = Learner(model, task, run, world, held[0].tensors if held else None, running.note)
        held.clear()
        return running.to_the_end(learner, mean)


def _identity(task: Task, feed: Feed) -> dict[str, Any]:
    # A longer run begins as a shorter one does, so the number of steps may be another when it is gone on with.
    told = {name: value for name, value in task.recipe.describe().items() if name != "max_steps"}
    return {
        "format": 1,
        "recipe": told,
        "data": {**feed.fingerprint, "classes": len(feed.classes)},
        "started_from": task.started_from.sha256 if task.started_from else None,
        **task.facts,
    }
