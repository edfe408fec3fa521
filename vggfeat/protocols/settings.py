"""What a protocol may be told."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from vggfeat.datasets.record import ProtocolName
from vggfeat.errors import ConfigError, check_choice
from vggfeat.protocols.evaluation import Difficult
from vggfeat.svm import SvmSettings, check_costs

RuleChoice = Literal["auto", "11-point", "area"]

C_GRID = tuple(2.0**power for power in range(-5, 11))
"""1/32 to 1024, each twice the one before. On features that tell the classes well the best lies below 8; on weak ones
(an untrained net, small images) it often lay at 64, where the grid used to end, and the four larger values add a
quarter to the time of the solver that takes all of them together."""


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings:
    """How C is chosen and what is reported.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    protocol: ProtocolName = "auto"
    """auto: that of the data set's record in `vggfeat.datasets.catalogue`; without one caltech if there is train-1,
    given-splits if there is train, else k-fold."""
    grid: tuple[float, ...] = C_GRID
    """Values of C to choose from; a single one is taken without a choice. The paper says that C was chosen, not
    from which values."""
    folds: int = 5
    """Folds of a cross-validation. The paper doesn't say."""
    held_out: float = 0.2
    """Part of the training images to choose C on where no split says which: the paper's part on Caltech."""
    difficult_in_training: Difficult = "ignore"
    """What label 0 means in training; the example classifier of the VOC kit ignores it."""
    difficult_in_scoring: Difficult = "ignore"
    """What label 0 means in average precision; the VOC kit ignores it, so other values make other measures."""
    rule: RuleChoice = "auto"
    """Average precision of the headline and of the choice of C; auto: the official rule of the data set under its own
    protocol, else 11-point for voc and area for the others."""
    seed: int = 0
    """Of folds and held-out images."""
    fit_all: bool = False
    """Whether a last model is trained on all labelled samples, with the C that the protocol has chosen."""
    learning_curve: bool = False
    """Whether the headline's measure is computed for shares of the training images as well."""
    svm: SvmSettings = field(default_factory=SvmSettings)
    """Of the solver, worker processes included."""

    def __post_init__(self) -> None:
        kinds = {"protocol": ProtocolName, "rule": RuleChoice}
        kinds |= {"difficult_in_training": Difficult, "difficult_in_scoring": Difficult}
        for name, kind in kinds.items():
            check_choice(name, getattr(self, name), get_args(kind))
        object.__setattr__(self, "grid", tuple(sorted(set(check_costs(self.grid).ravel().tolist()))))
        if self.folds < 2:
            raise ConfigError(f"folds: expected at least 2, found {self.folds}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out: expected a fraction above 0 and below 1, found {self.held_out}")
