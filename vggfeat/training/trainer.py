"""The loop: steps, validations, drops of the learning rate, checkpoints, and the weights at the end.

Everything random depends on the seed and the number of the step, so that a checkpoint needs no random state: a run
that resumes from it does what the run before would have done.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vggfeat.errors import TrainingError
from vggfeat.runtime.checksums import short_checksum
from vggfeat.runtime.distributed import World
from vggfeat.training.data import LabelledBatch
from vggfeat.training.feed import ImageFeed
from vggfeat.training.learner import Learner, Sums
from vggfeat.training.objective import Objective, Validation
from vggfeat.training.recipe import Plateau, TrainingSettings
from vggfeat.training.run_folder import Log, RunFolder, draw_curves, read_log
from vggfeat.training.statistics import say_lost
from vggfeat.weights import save_weights
from vggfeat.wording import counted

SECONDS_BETWEEN_CURVES = 60.0
Progress = Callable[[float, float, str], bool | None]
"""Called with steps done, the step at which training ends if validation improves no more, and a note; returns True to
end the run with a checkpoint."""


class Stopped(TrainingError):  # noqa: N818  it is none
    """Work that can't be saved half-way was broken off because the run is to stop. It never leaves `learn`."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where a run is, besides weights and momenta."""

    step: int = 0
    """Steps done."""
    plateau: Plateau = field(default_factory=Plateau)
    sums: Sums = field(default_factory=Sums)
    """Sums over the steps since the last line of the log."""
    validation: Validation | None = None
    """The last one."""

    @classmethod
    def read(cls, fields: dict[str, Any], objective: Objective) -> "TrainingState":
        """Return the state that `asdict` has made ready for JSON."""
        last = fields["validation"]
        return cls(
            step=fields["step"],
            plateau=Plateau(**fields["plateau"]),
            sums=Sums(*fields["sums"]),
            validation=None if last is None else objective.validated(**last),
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run has left behind."""

    folder: Path
    """It holds weights.safetensors, log.jsonl, curves.png, run.json and the last two checkpoints."""
    weights: Path | None
    """The net after the last step; None if the run was stopped before its end."""
    step: int
    """Steps done, earlier runs included."""
    resumed: int
    """Steps that earlier runs had done."""
    validation: Validation | None
    """The last one."""
    learning_rate: float
    """Learning rate at the end."""
    seconds: float
    """Time of this run."""
    unreadable: tuple[tuple[str, str], ...]
    """(path, reason) of the images that could not be read."""
    notes: tuple[str, ...]
    """What a user should know, a sentence each."""


class Trainer:
    """A run, seen from one of its processes; all of them call the same methods in the same order.

    `objective`, `feed`, `run`, `world`, `progress`, `say`, `clock`: as for `vggfeat.training.train.learn`.
    `folder`: locked by the first process.
    `state`: where the run resumes; it grows with every step.
    `identity`: goes into every checkpoint.
    """

    learner: Learner

    def __init__(
        self, objective: Objective, feed: ImageFeed, run: TrainingSettings, world: World, folder: RunFolder,
        state: TrainingState, identity: dict[str, Any], progress: Progress, say: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.objective, self.feed, self.run, self.world = objective, feed, run, world
        self.folder, self.state, self.identity = folder, state, identity
        self.progress, self.say, self.clock = progress, say, clock
        self.recipe = objective.recipe
        self.every = self.recipe.steps_between_validations(feed.images)
        self.resumed, self.saved = state.step, state
        self.begun = self.drawn = clock()
        self.notes: list[str] = []
        self.shown = ""
        self.unreadable, self.lost = 0, set[str]()
        self.log = Log(folder.path, short_checksum(identity), state.step, folder.files) if world.is_main else None
        self._restart_clock()

    def note(self, sentence: str) -> None:
        """Report a sentence to the user now, in the log, and at the end."""
        self.notes.append(sentence)
        if self.log is not None:
            self.say(sentence)
            self.log.write("note", self.state.step, {"text": sentence})

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()

    def prepare_feed(self) -> tuple[float, ...]:
        """Return the mean pixel of the feed.

        Raises Stopped if the run is to stop meanwhile.
        """

        def measured(done: int, total: int) -> None:
            if self._report(f"mean pixel: {done} of {total} images"):
                raise Stopped("stopped before the first step")

        return self.feed.prepare(self.folder.path, measured)

    def train(self, learner: Learner, mean: tuple[float, ...]) -> Outcome:
        """Train until the steps are done, validation has stopped improving for good, or `progress` returns True.

        Parameters
        ----------
        learner : Learner
            As it was after `state.step` steps.
        mean : 3 numbers
            Pixel that the feed subtracts; it goes into the weights file.

        Raises
        ------
        TrainingError
            As `vggfeat.training.train.train`.
        """
        self.learner = learner
        finished = self._train_steps() and self._validate_once(last=True)
        self._save_checkpoint()
        if not finished:
            return self.outcome(None)
        if self.state.step < self.recipe.max_steps:
            self.note(
                f"training ended at step {self.state.step} of at most {self.recipe.max_steps}: validation has not "
                f"improved {counted(self.recipe.patience, 'time{s}')} in a row at the lowest learning rate, and "
                f"its least error is {100 * (1 - self.state.plateau.best):.1f} %; --patience and --drops decide when "
                "it ends"
            )
        if self.state.sums.images and self.log is not None and not self.log.has("train", self.state.step):
            self._log_sums(self.log)
        weights = self.folder.path / "weights.safetensors"
        if self.world.is_main:
            self._write_weights(weights, mean)
            self._draw_curves()
        return self.outcome(weights)

    def outcome(self, weights: Path | None) -> Outcome:
        """Return what the run leaves behind."""
        unreadable = self._all_unreadable()
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

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.state.plateau.learning_rate(self.recipe)

    @property
    def epoch(self) -> float:
        """How often the training images have been gone through."""
        return self.state.step * self.recipe.batch / self.feed.images

    @property
    def expected_end(self) -> int:
        """Step at which training ends if validation improves no more."""
        validations = self.state.validation.step // self.every if self.state.validation else 0
        end = (validations + self.state.plateau.validations_left(self.recipe)) * self.every
        return max(self.state.step, min(end, self.recipe.max_steps))

    def _report(self, note: str) -> bool:
        """Report progress, and return whether the run is to stop."""
        end = self.expected_end
        if end < self.recipe.max_steps:
            note += f"{', ' if note else ''}to step {self.recipe.max_steps} while validation improves"
        return bool(self.progress(self.state.step, end, note))

    def _train_steps(self) -> bool:
        """Train to the last step; return False if the run was stopped before."""
        with self.feed.training(self.state.step) as batches:
            self._restart_clock()
            while not self.world.any(self._report(self.shown)):
                if self.state.step % self.every == 0 and not self._validate_once():
                    return False
                if self.state.step >= self.recipe.max_steps or self.state.plateau.ended(self.recipe):
                    return True
                self._step(batches)
        return False

    def _step(self, batches: Iterator[LabelledBatch]) -> None:
        batch = next(batches)
        self.waited += batch.waited
        with self.world.together():
            self.learner.step(self.state.step, batch.images, batch.targets, self.learning_rate)
        self.state = replace(self.state, step=self.state.step + 1)
        self.timed += 1
        if self.state.step % self.run.log_every == 0 or self.state.step == 1:
            self._take_sums()
            if self.log is not None:
                self._log_sums(self.log)
            self.state = replace(self.state, sums=Sums())
            self._restart_clock()
        if self.state.step % self.run.checkpoint_every == 0:
            self._save_checkpoint()

    def _take_sums(self) -> None:
        self.state = replace(self.state, sums=self.state.sums.plus(self.learner.take_sums(self.learning_rate)))

    def _log_sums(self, log: Log) -> None:
        sums, seconds = self.state.sums, max(self.clock() - self.since, 1e-9)
        images = max(sums.images, 1)
        figures = {
            "epoch": self.epoch,
            "loss": sums.loss / images,
            next(iter(self.objective.errors)): 1 - sums.hits / images,
            "lr": self.learning_rate,
            "images_per_s": self.timed * self.recipe.batch / seconds,
            "waiting": min(1.0, self.waited / seconds),
        }
        self.shown = (
            f"epoch {figures['epoch']:.1f}, loss {figures['loss']:.3g}, {figures['images_per_s']:.0f} images/s, "
            f"{figures['waiting']:.0%} waiting for data"
        )
        log.write("train", self.state.step, figures)

    def _restart_clock(self) -> None:
        # Validations and checkpoints push `since` on: rates are those of training alone.
        self.since, self.waited, self.timed = self.clock(), 0.0, 0

    def _validate_once(self, *, last: bool = False) -> bool:
        """Validate, unless that was done at this step; return False if the run was stopped.

        The last validation, if it is none that is due, does not count for the learning rate: a run that is resumed
        later must do as if it had never ended.
        """
        done = self.state.validation is not None and self.state.validation.step == self.state.step
        if done or self.state.step == 0:
            return True
        self._take_sums()  # It raises for a loss of NaN: such a net is not worth validating.
        start = self.clock()
        found = self._validate()
        if found is None:
            return False
        plateau = self.state.plateau if last else self.state.plateau.after(1 - found.error, self.recipe)
        self.state = replace(self.state, validation=found, plateau=plateau)
        if self.log is not None:
            figures = {"epoch": self.epoch, **found.figures, "images": found.images}
            if not self.log.has("validation", self.state.step):  # by a run that was killed before its checkpoint
                self.log.write("validation", self.state.step, figures)
            if self.clock() - self.drawn > SECONDS_BETWEEN_CURVES:
                self._draw_curves()
        self.since += self.clock() - start
        self._save_checkpoint()
        return True

    def _validate(self) -> Validation | None:
        """Rate the net's outputs for the validation images; None if the run was stopped."""
        # The last is the number of processes that were stopped.
        sums = torch.zeros(len(self.objective.rated) + 1, dtype=torch.float64, device=self.world.device)
        seen, total = 0, self.feed.validation_images
        with self.feed.validation() as batches:
            for batch in batches:
                sums[:-1] += self.objective.rate(self.learner.outputs(batch.images), batch.targets)
                seen += len(batch.targets) * self.world.size
                if self._report(f"validating: {min(seen, total)} of {total}"):
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
        return self.objective.validation(self.state.step, rated)

    def _save_checkpoint(self) -> None:
        """Write a checkpoint, unless this very state has one."""
        self._take_sums()
        if self.state == self.saved:
            return
        start = self.clock()
        tensors = self.learner.snapshot(self.state.step, self.learning_rate)
        unreadable = self._all_unreadable()
        if self.world.is_main:
            about = {"run": self.identity, "state": asdict(self.state)}
            self.folder.checkpoints.save(self.state.step, tensors, about)
            self.folder.add_unreadable(unreadable)
            self._note_lost({path for path, _ in unreadable})  # What earlier calls could not read may be mended.
        self.saved = self.state
        self.since += self.clock() - start

    def _note_lost(self, unreadable: Collection[str]) -> None:
        """Say of which classes nothing is left to learn from, or to validate with, each once.

        Only images that this call could not read count, because those of earlier calls may be mended: a resumed run
        names a class when it has tried all its images again.
        """
        if len(unreadable) > self.unreadable:
            lost = [name for name in self.feed.lost(unreadable) if name not in self.lost]
            self.lost.update(lost)
            if lost:
                self.note(say_lost(lost))
        self.unreadable = len(unreadable)

    def _all_unreadable(self) -> list[tuple[str, str]]:
        return [(path, why) for found in self.world.gather(self.feed.unreadable()) for path, why in found]

    def _write_weights(self, path: Path, mean: tuple[float, ...]) -> None:
        found = self.state.validation
        training = {
            **{name: value for name, value in self.identity.items() if name not in self.objective.facts},
            "step": self.state.step,
            "precision": self.learner.precision,
            "images": self.feed.images,
            "validation": None if found is None else asdict(found),
            "validation_scale": self.recipe.validation_scale,
        }
        facts = {**self.objective.facts, "training": training}
        save_weights(path, self.learner.model, mean=mean, classes=self.objective.channels, **facts)

    def _draw_curves(self) -> None:
        self.drawn = self.clock()
        title = f"net {self.recipe.net}, S = {' to '.join(str(s) for s in sorted(set(self.recipe.scale)))}"
        lines = list(read_log(self.folder.path / "log.jsonl"))
        self.folder.write("curves.png", draw_curves(lines, title, self.objective.errors))
