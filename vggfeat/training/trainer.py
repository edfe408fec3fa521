"""The loop: steps, validations, drops of the learning rate, checkpoints, and the weights at the end.

Everything random depends on the seed and the number of the step, so that a checkpoint needs no random state: a run
that goes on from it does what the run before would have done.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vggfeat.errors import TrainingError
from vggfeat.runtime.distributed import World
from vggfeat.training.batches import Batch
from vggfeat.training.curves import draw_curves
from vggfeat.training.feed import Feed
from vggfeat.training.learner import Learner
from vggfeat.training.log import Log, read_log
from vggfeat.training.run_folder import RunFolder
from vggfeat.training.settings import TrainingSettings
from vggfeat.training.state import Hooks, Outcome, State, Sums, Validation
from vggfeat.training.stop_signals import Stopped
from vggfeat.training.task import Task
from vggfeat.weights import save_weights

SECONDS_BETWEEN_CURVES = 60.0


class Running:
    """A run, seen from one of its processes; all of them call the same methods in the same order.

    Parameters
    ----------
    task, feed, run, hooks, world, clock
        As for `vggfeat.training.train.learn`.
    folder : RunFolder
        Taken already.
    state : State
        Where the run stands; it grows with every step.
    identity : dict
        Goes into every checkpoint.
    """

    learner: Learner

    def __init__(
        self,
        task: Task,
        feed: Feed,
        run: TrainingSettings,
        hooks: Hooks,
        world: World,
        folder: RunFolder,
        state: State,
        identity: dict[str, Any],
        clock: Callable[[], float],
    ) -> None:
        self.task, self.feed, self.run, self.hooks, self.world = task, feed, run, hooks, world
        self.folder, self.state, self.identity, self.clock = folder, state, identity, clock
        self.recipe = task.recipe
        self.every = self.recipe.steps_between_validations(feed.images)
        self.resumed, self.saved = state.step, state
        self.begun = self.drawn = clock()
        self.notes: list[str] = []
        self.shown = ""
        self.log = Log(folder.path, state.step, folder.files) if world.is_main else None
        self._time_anew()

    def note(self, sentence: str) -> None:
        """Tell the user something now, in the log, and at the end."""
        self.notes.append(sentence)
        if self.log is not None:
            self.hooks.say(sentence)
            self.log.write("note", self.state.step, {"text": sentence})

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()

    def measuring(self, done: int, total: int) -> None:
        """Show how far the mean pixel is.

        Raises
        ------
        Stopped
            If the run is to stop.
        """
        self.hooks.progress(self.state.step, self.recipe.max_steps, f"mean pixel: {done} of {total} images")
        if self.hooks.stop():
            raise Stopped("stopped before the first step")

    def to_the_end(self, learner: Learner, mean: tuple[float, ...]) -> Outcome:
        """Train until the steps are done, validation has stopped improving for good, or `hooks.stop` says so.

        Parameters
        ----------
        learner : Learner
            As it was after `state.step` steps.
        mean : 3 numbers
            Pixel that the feed subtracts; it goes into the weights file.

        Raises
        ------
        TrainingError
            As `train`.
        """
        self.learner = learner
        if not self._steps() or not self._validated_now(last=True):
            self._save()
            return self.outcome(None)
        self._save()
        if self.state.sums.images and self.log is not None and not self.log.has("train", self.state.step):
            self._write_training(self.log)
        weights = self.folder.path / "weights.safetensors"
        if self.world.is_main:
            self._write_weights(weights, mean)
            self._draw()
        return self.outcome(weights)

    def _steps(self) -> bool:
        """Train; False if it was stopped."""
        with self.feed.training(self.state.step) as batches:
            self._time_anew()
            if self.world.is_main:
                self.hooks.progress(self.state.step, self.recipe.max_steps, self.shown)
            while True:
                if self.state.step % self.every == 0 and not self._validated_now():
                    return False
                if self.state.step >= self.recipe.max_steps or self.state.plateau.ended(self.recipe):
                    return True
                self._step(batches)
                if self.world.any(self.hooks.stop()):
                    return False

    def _step(self, batches: Iterator[Batch]) -> None:
        batch = next(batches)
        self.waited += batch.waited
        self.learner.step(self.state.step, batch.images, batch.targets, self.learning_rate)
        self.state = replace(self.state, step=self.state.step + 1)
        self.timed += 1
        if self.state.step % self.run.log_every == 0:
            self._log_training()
        if self.state.step % self.run.checkpoint_every == 0:
            self._save()
        if self.world.is_main:
            self.hooks.progress(self.state.step, self.recipe.max_steps, self.shown)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.state.plateau.learning_rate(self.recipe)

    def _take_sums(self) -> None:
        self.state = replace(self.state, sums=self.state.sums.plus(self.learner.take_sums(self.learning_rate)))

    def _log_training(self) -> None:
        self._take_sums()
        if self.log is not None:
            self._write_training(self.log)
        self.state = replace(self.state, sums=Sums())
        self._time_anew()

    def _write_training(self, log: Log) -> None:
        sums, seconds = self.state.sums, max(self.clock() - self.since, 1e-9)
        images = max(sums.images, 1)
        figures = {
            "epoch": self._epoch,
            "loss": sums.loss / images,
            next(iter(self.task.errors)): 1 - sums.hits / images,
            "lr": self.learning_rate,
            "images_per_s": self.timed * self.recipe.batch / seconds,
            "waiting": min(1.0, self.waited / seconds),
        }
        self.shown = (
            f"epoch {figures['epoch']:.1f}, loss {figures['loss']:.3g}, {figures['images_per_s']:.0f} images/s, "
            f"{figures['waiting']:.0%} waiting for data"
        )
        log.write("train", self.state.step, figures)

    @property
    def _epoch(self) -> float:
        return self.state.step * self.recipe.batch / self.feed.images

    def _time_anew(self) -> None:
        # Validations and checkpoints push `since` on: rates are those of training alone.
        self.since, self.waited, self.timed = self.clock(), 0.0, 0

    def _validated_now(self, *, last: bool = False) -> bool:
        """Validate, unless that was done at this step; False if it was stopped.

        The last validation, if it is none that is due, does not count for the learning rate: a run that goes on later
        must do as if it had never ended.
        """
        done = self.state.validation is not None and self.state.validation.step == self.state.step
        if done or self.state.step == 0:
            return True
        self._take_sums()  # A net that is no number is not worth validating.
        start = self.clock()
        found = self._validate()
        if found is None:
            return False
        plateau = self.state.plateau if last else self.state.plateau.after(1 - found.error, self.recipe)
        self.state = replace(self.state, validation=found, plateau=plateau)
        if self.log is not None:
            figures = {"epoch": self._epoch, **found.figures, "images": found.images}
            if not self.log.has("validation", self.state.step):  # by a run that was killed before its checkpoint
                self.log.write("validation", self.state.step, figures)
            if self.clock() - self.drawn > SECONDS_BETWEEN_CURVES:
                self._draw()
        self.since += self.clock() - start
        self._save()
        return True

    def _validate(self) -> Validation | None:
        """Rate what the net says of the validation images; None if it was stopped."""
        # The last is the number of processes that were stopped.
        sums = torch.zeros(len(self.task.rated) + 1, dtype=torch.float64, device=self.world.device)
        shown = 0
        with self.feed.validation() as batches:
            for batch in batches:
                sums[:-1] += self.task.rate(self.learner.outputs(batch.images), batch.targets)
                shown += len(batch.targets) * self.world.size
                if self.world.is_main:
                    text = f"validating: {min(shown, self.feed.validation_images)} of {self.feed.validation_images}"
                    self.hooks.progress(self.state.step, self.recipe.max_steps, text)
                if self.hooks.stop():
                    sums[-1] += 1
                    break
        *rated, stopped = self.world.sum(sums).tolist()
        if stopped:
            return None
        if not rated[-1]:
            raise TrainingError(
                f"step {self.state.step}: expected validation images, found none that can be read; mend them, then "
                "go on with --resume"
            )
        return self.task.validation(self.state.step, rated)

    def _save(self) -> None:
        """Write a checkpoint, unless this very state has one."""
        self._take_sums()
        if self.state == self.saved:
            return
        start = self.clock()
        tensors = self.learner.snapshot(self.state.step, self.learning_rate)
        unreadable = self._unreadable()
        if self.world.is_main:
            about = {"run": self.identity, "state": asdict(self.state)}
            self.folder.checkpoints.save(self.state.step, tensors, about)
            self.folder.add_unreadable(unreadable)
        self.saved = self.state
        self.since += self.clock() - start

    def _unreadable(self) -> list[tuple[str, str]]:
        return [pair for found in self.world.gather(self.feed.unreadable()) for pair in found]

    def _write_weights(self, path: Path, mean: tuple[float, ...]) -> None:
        found = self.state.validation
        told = {
            **{name: value for name, value in self.identity.items() if name not in self.task.facts},
            "step": self.state.step,
            "precision": self.learner.precision,
            "images": self.feed.images,
            "validation": None if found is None else asdict(found),
            "validation_scale": self.recipe.validation_scale,
        }
        facts = {**self.task.facts, "training": told}
        save_weights(path, self.learner.model, mean=mean, classes=self.task.channels, **facts)

    def _draw(self) -> None:
        self.drawn = self.clock()
        title = f"net {self.recipe.net}, S = {' to '.join(str(s) for s in sorted(set(self.recipe.scale)))}"
        lines = list(read_log(self.folder.path / "log.jsonl"))
        self.folder.write("curves.png", draw_curves(lines, title, self.task.errors))

    def outcome(self, weights: Path | None) -> Outcome:
        """Say what the run leaves behind."""
        unreadable = self._unreadable()
        return Outcome(
            folder=self.folder.path,
            weights=weights,
            step=self.state.step,
            resumed=self.resumed,
            validation=self.state.validation,
            learning_rate=self.learning_rate,
            seconds=self.clock() - self.begun,
            unreadable=self.folder.add_unreadable(unreadable) if self.world.is_main else tuple(unreadable),
            notes=tuple(self.notes),
        )
