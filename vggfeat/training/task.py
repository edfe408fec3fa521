"""What a net is trained for: what its outputs are, the loss, and how a validation rates them.

N = images of a process's share of a batch, C = channels of fc8, K = classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vggfeat.nets.vgg import VGG
from vggfeat.training.initialisation import first_weights
from vggfeat.training.labels import NO_TARGET
from vggfeat.training.settings import Recipe
from vggfeat.training.state import Validation
from vggfeat.weights import Backbone


class Task(Protocol):
    """What the trainer asks of a task. A *target* is what a `Feed` says of an image, in the form of its task."""

    @property
    def recipe(self) -> Recipe:
        """What does not depend on the task."""

    @property
    def started_from(self) -> Backbone | None:
        """Weights that are started from."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of fc8, if they have some."""

    @property
    def errors(self) -> Mapping[str, str]:
        """Names of the errors in the log, and what the curves call them; the first is of training batches as well."""

    @property
    def rated(self) -> tuple[str, ...]:
        """What the figures of `rate` are."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What else decides the weights, or must be known of them: for run.json and the weights file."""

    def first_weights(self) -> tuple[VGG, list[str]]:
        """Return the net to begin with, on the CPU, in training mode, and sentences that a user should know.

        Parameters that don't learn ask for no gradient.
        """

    def no_targets(self, count: int) -> Tensor:
        """Return the targets of as many images that can't be read; (count, ...), on the CPU."""

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, the images that were right, and those that count, each summed over a part of a batch.

        Parameters
        ----------
        outputs : Tensor (N, C), float32
            Of fc8.
        targets : Tensor (N, ...)
        """

    def rate(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sums over validation images that `rated` names, float64; the last is the images that count."""

    def validation(self, step: int, sums: list[float]) -> Validation:
        """Turn the sums of `rate` into errors."""

    def read_validation(self, told: dict[str, Any]) -> Validation:
        """Return the validation that `asdict` has made ready for JSON."""


@dataclass(frozen=True, kw_only=True)
class ClassValidation(Validation):
    """What a validation of a classifying net has shown."""

    top1_error: float
    """Share of the images whose class does not have the highest score."""
    top5_error: float
    """Share of the images whose class is not among the five highest scores."""


@dataclass(frozen=True)
class Classification:
    """A score for each class, and multinomial logistic loss (VGG paper, Sect. 3.1); targets are numbers of classes."""

    recipe: Recipe
    channels: tuple[str, ...]
    """K names of the classes."""
    started_from: Backbone | None = None

    errors: ClassVar[Mapping[str, str]] = {"top1_error": "top-1", "top5_error": "top-5"}
    rated: ClassVar[tuple[str, ...]] = ("hits", "hits among the five highest scores", "images")
    facts: ClassVar[Mapping[str, Any]] = {}

    def first_weights(self) -> tuple[VGG, list[str]]:
        """Draw or copy them, as the recipe says."""
        return first_weights(self.recipe, self.channels, self.started_from)

    def no_targets(self, count: int) -> Tensor:
        """Return (count,) int64."""
        return torch.full((count,), NO_TARGET)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logistic loss, hits, and images."""
        loss = F.cross_entropy(outputs, targets, ignore_index=NO_TARGET, reduction="sum")
        counted = targets != NO_TARGET
        return loss, ((outputs.argmax(1) == targets) & counted).sum(), counted.sum()

    def rate(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Count in (3,) float64."""
        best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
        found = (best == targets[:, None]) & (targets != NO_TARGET)[:, None]
        counts = torch.stack([found[:, 0].sum(), found.any(1).sum(), (targets != NO_TARGET).sum()])
        return counts.double()

    def validation(self, step: int, sums: list[float]) -> ClassValidation:
        """Return top-1 and top-5 error."""
        hits, among_five, images = sums
        return ClassValidation(
            step=step, top1_error=1 - hits / images, top5_error=1 - among_five / images, images=int(images)
        )

    def read_validation(self, told: dict[str, Any]) -> ClassValidation:
        """Return what was told."""
        return ClassValidation(**told)
