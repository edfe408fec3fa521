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
from vggfeat.training.feed import ImageFeed
from vggfeat.training.learner import Learner
from vggfeat.training.objective import Classification, Objective
from vggfeat.training.recipe import Recipe, TrainingSettings
from vggfeat.training.run_folder import RunFolder, check_equal
from vggfeat.training.trainer import Outcome, Progress, Stopped, Trainer, TrainingState
from vggfeat.weights import Backbone


def train(
    recipe: Recipe,
    data: ClassificationSet,
    out: Path,
    *,
    started_from: Backbone | None = None,
    resume: bool = False,
    run: TrainingSettings = TrainingSettings(),  # noqa: B008  frozen
    progress: Progress = lambda done, total, note: False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Outcome:
    """Train a net on images, or resume the run that was doing so.

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
        Resume from the newest checkpoint in `out`, which must exist; in a folder that is empty, or has no checkpoint
        yet, begin, and say so.
    run : TrainingSettings
    progress : callable
        Called by every process after every step with steps done, the step at which training ends if validation
        improves no more, and a note; returns True to end the run with a checkpoint.
    say : callable
        Called by the first process with a sentence that a user should read at once.

    Returns
    -------
    Outcome

    Raises
    ------
    ConfigError
        If settings do not go together, or the device is not there.
    TrainingError
        If `out` holds something else, the loss is no number, memory is too small even for one image at a time, over
        1 % of the images can't be read, or another process of the run has gone or has other images or settings.
    StoreError
        If the disk refuses.
    """
    with (
        open_world(run.device, os.environ, lost=TrainingError, sums=True) as world,
        Decoder(run.workers, DecodeSettings()) as decoder,
    ):
        feed = ImageFeed(data, recipe, world, decoder)
        objective = Classification(recipe, feed.classes, started_from)
        return learn(objective, feed, out, world=world, resume=resume, run=run, progress=progress, say=say)


def learn(
    objective: Objective,
    feed: ImageFeed,
    out: Path,
    *,
    world: World,
    resume: bool = False,
    run: TrainingSettings = TrainingSettings(),  # noqa: B008  frozen
    progress: Progress = lambda done, total, note: False,
    say: Callable[[str], None] = lambda sentence: None,
    files: Files = DISK,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train for any `Objective` on the batches of any `ImageFeed`; otherwise as `train`.

    Parameters
    ----------
    objective : Objective
    feed : ImageFeed
        Its targets are of the objective.
    world : World
        The processes of the run.
    files : Files
        Carries out what changes the disk.
    clock : callable
        Seconds, for rates.
    """
    model, notes = objective.first_weights()
    identity = _identity(objective, feed)
    _check_processes(world, identity, objective.recipe, run)
    folder = RunFolder(out, files)
    with ExitStack() as stack:
        stack.callback(folder.close)
        # The checkpoint stays in the first process; the learner brings its tensors to the others.
        newest: list[Checkpoint] = []

        def begin() -> tuple[dict[str, Any] | None, list[str]]:
            checkpoint, damaged = folder.begin(identity, resume)
            newest.extend([checkpoint] if checkpoint else [])
            return checkpoint.about["state"] if checkpoint else None, damaged

        saved, damaged = world.on_main(begin)
        state = TrainingState.read(saved, objective) if saved else TrainingState()
        trainer = Trainer(objective, feed, run, world, folder, state, identity, progress, say, clock)
        stack.callback(trainer.close)
        for note in [*damaged, *([] if saved else notes)]:
            trainer.note(note)
        try:
            mean = trainer.prepare_feed()
        except Stopped:
            return trainer.outcome(None)
        learner = Learner(model, objective, run, world, newest[0].tensors if newest else None, trainer.note)
        newest.clear()
        return trainer.train(learner, mean)


def _identity(objective: Objective, feed: ImageFeed) -> dict[str, Any]:
    # A longer run begins as a shorter one does, so the number of steps may be another when it is resumed.
    recipe = {name: value for name, value in objective.recipe.describe().items() if name != "max_steps"}
    return {
        "format": 1,
        "recipe": recipe,
        "data": {**feed.fingerprint, "classes": len(feed.classes)},
        "started_from": objective.started_from.sha256 if objective.started_from else None,
        **objective.facts,
    }


def _check_processes(world: World, identity: dict[str, Any], recipe: Recipe, run: TrainingSettings) -> None:
    """Check that all take their shares of the same batches, and meet at the same steps."""
    own = {
        **identity,
        "max_steps": recipe.max_steps,
        "precision": run.precision,
        "checkpoint_every": run.checkpoint_every,
        "log_every": run.log_every,
    }
    said = world.gather(own)
    for rank, other in enumerate(said):
        check_equal(f"process {rank}", other, said[0], "give all processes the same command and the same images")
