"""Where a run stands, what it tells while it works, and what it leaves behind."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vggfeat.training.schedule import Plateau


class Sums(NamedTuple):
    """Figures of training batches, added up."""

    loss: float = 0.0
    hits: float = 0.0
    """Images that the net was right about, dropout included."""
    images: float = 0.0
    """That count."""

    def plus(self, other: "Sums") -> "Sums":
        """Return both together."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a validation has shown; each task adds its figures, the first being the error that decides."""

    step: int
    images: int
    """That could be read."""

    @property
    def figures(self) -> dict[str, float]:
        """What the task has added."""
        return {name: value for name, value in asdict(self).items() if name not in ("step", "images")}

    @property
    def error(self) -> float:
        """From 0 to 1: what must improve, or else the learning rate drops."""
        return next(iter(self.figures.values()))


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands, beside weights and momenta."""

    step: int = 0
    """Steps done."""
    plateau: Plateau = field(default_factory=Plateau)
    sums: Sums = field(default_factory=Sums)
    """Of the steps since the last line of the log."""
    validation: Validation | None = None
    """The last one."""

    @classmethod
    def read(cls, told: dict[str, Any], validation: Callable[[dict[str, Any]], Validation]) -> "State":
        """Return the state that `asdict` has made ready for JSON; `validation` does so for its part."""
        last = told["validation"]
        return cls(
            step=told["step"],
            plateau=Plateau(**told["plateau"]),
            sums=Sums(*told["sums"]),
            validation=None if last is None else validation(last),
        )


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the caller is told during a run, and what it can say. Only the first process tells."""

    progress: Callable[[float, float, str], None] = lambda done, total, note: None
    """Called with steps done, steps at most, and a note to show beside them."""
    say: Callable[[str], None] = lambda sentence: None
    """Called with a sentence that a user should read at once."""
    stop: Callable[[], bool] = lambda: False
    """Asked after every step: True ends the run with a checkpoint. `stopping.signals_as_flag` hands one out."""


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
    """At the end."""
    seconds: float
    """Time of this run."""
    unreadable: tuple[tuple[str, str], ...]
    """(path, reason) of the images that could not be read."""
    notes: tuple[str, ...]
    """What a user should know, a sentence each."""
