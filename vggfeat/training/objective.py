"""What a net is trained for, and on: its outputs and their loss, how a validation rates them, first weights, batches.

N = images of a process's share of a batch, C = channels of fc8, K = classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vggfeat.errors import ConfigError
from vggfeat.nets.vgg import VGG
from vggfeat.training.data import NO_TARGET
from vggfeat.training.recipe import Recipe
from vggfeat.weights import Backbone

MOST_GUESSES = 5
COPIED_FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
"""Layers that B to E take from net A (VGG paper, Sect. 3.1)."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a validation has shown; each objective adds its figures, the first being the error that decides."""

    step: int
    images: int
    """That could be read."""

    @property
    def figures(self) -> dict[str, float]:
        """What the objective has added and measured."""
        own = {name: value for name, value in asdict(self).items() if name not in ("step", "images")}
        return {name: value for name, value in own.items() if value is not None}

    @property
    def error(self) -> float:
        """From 0 to 1: what must improve, or else the learning rate drops."""
        return next(iter(self.figures.values()))


class Objective(Protocol):
    """What the trainer asks of an objective; a *target* is what an `ImageFeed` gives for an image."""

    @property
    def recipe(self) -> Recipe:
        """What does not depend on the objective."""

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
    def validated(self) -> type[Validation]:
        """The class of what `validation` returns."""

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

        `outputs` (N, C), float32, are of fc8, `targets` (N, ...).
        """

    def rate(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sums over validation images that `rated` names, float64; the last is the images that count."""

    def validation(self, step: int, sums: list[float]) -> Validation:
        """Turn the sums of `rate` into errors."""


@dataclass(frozen=True, kw_only=True)
class ClassValidation(Validation):
    """What a validation of a classifying net has shown."""

    top1_error: float
    """Share of the images whose class does not have the highest score."""
    top5_error: float | None = None
    """Share of the images whose class is not among the five highest scores; None for up to five classes."""


@dataclass(frozen=True)
class Classification:
    """A score for each class, and multinomial logistic loss (VGG paper, Sect. 3.1); targets are numbers of classes."""

    recipe: Recipe
    channels: tuple[str, ...]
    """K names of the classes."""
    started_from: Backbone | None = None

    rated: ClassVar[tuple[str, ...]] = ("hits", "hits among the five highest scores", "images")
    validated: ClassVar[type[Validation]] = ClassValidation
    facts: ClassVar[Mapping[str, Any]] = {}

    @property
    def errors(self) -> Mapping[str, str]:
        """Top-1, and top-5 where five guesses can be wrong."""
        return {"top1_error": "top-1"} | ({"top5_error": "top-5"} if len(self.channels) > MOST_GUESSES else {})

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
        best = outputs.topk(min(MOST_GUESSES, outputs.shape[1]), dim=1).indices
        found = (best == targets[:, None]) & (targets != NO_TARGET)[:, None]
        counts = torch.stack([found[:, 0].sum(), found.any(1).sum(), (targets != NO_TARGET).sum()])
        return counts.double()

    def validation(self, step: int, sums: list[float]) -> ClassValidation:
        """Return top-1 and top-5 error."""
        hits, among_five, images = sums
        top5 = 1 - among_five / images if "top5_error" in self.errors else None
        return ClassValidation(step=step, top1_error=1 - hits / images, top5_error=top5, images=int(images))


def first_weights(recipe: Recipe, classes: Sequence[str], started_from: Backbone | None) -> tuple[VGG, list[str]]:
    """Build the net of a recipe with the weights that training begins with.

    Returns the net, on the CPU in training mode, and what a user should know, a sentence each. `classes` are the names
    of the fc8 channels, `started_from` is what `recipe.start` asks for.

    Raises ConfigError if `started_from` is missing, not asked for, or of another net or width.
    """
    model = recipe.build(len(classes))
    draw_weights(model, recipe, torch.Generator().manual_seed(recipe.seed))
    notes = []
    if started_from is not None or recipe.start != "random":
        _check(recipe, started_from)
        notes = _copy(model, recipe, classes, started_from)  # type: ignore[arg-type]
    return model.train().requires_grad_(True), notes


def draw_weights(model: VGG, recipe: Recipe, generator: torch.Generator) -> None:
    """Draw all weights as `recipe.initialisation` says; biases are 0."""
    with torch.no_grad():
        for name in model.layers:
            model.get_parameter(f"layers.{name}.bias").zero_()
            weight = model.get_parameter(f"layers.{name}.weight")
            fan_in, fan_out = _fans(name, weight)
            if recipe.initialisation == "glorot":
                bound = math.sqrt(6 / (fan_in + fan_out))
                weight.uniform_(-bound, bound, generator=generator)
            else:
                deviation = recipe.normal_std if recipe.initialisation == "normal" else math.sqrt(2 / fan_in)
                weight.normal_(0.0, deviation, generator=generator)


def _fans(name: str, weight: Tensor) -> tuple[int, int]:
    # fc6 is fully connected in training: its kernel has one position, so that an input feeds each channel once.
    positions = 1 if name.startswith("fc") else weight[0, 0].numel()
    return weight[0].numel(), weight.shape[0] * positions


def _check(recipe: Recipe, started_from: Backbone | None) -> None:
    wanted = {"random": "none", "A": "weights of net A", "same net": f"weights of net {recipe.net}"}[recipe.start]
    if started_from is None:
        raise ConfigError(f"started_from: the recipe starts from {wanted}, found none; give the weights file")
    found = started_from.model
    if recipe.start == "random" or found.config != ("A" if recipe.start == "A" else recipe.net):
        raise ConfigError(f"started_from: the recipe starts from {wanted}, found net {found.config}")
    recipe.check_start(started_from, "width", "pool")


def _copy(model: VGG, recipe: Recipe, classes: Sequence[str], started_from: Backbone) -> list[str]:
    notes = []
    names = list(COPIED_FROM_A if recipe.start == "A" else model.layers)
    if len(classes) != started_from.model.num_classes or started_from.classes not in ((), tuple(classes)):
        names.remove("fc8")
        notes.append(f"fc8 starts at zero, because {started_from.source} was trained for other classes")
        # Random scores would send large gradients through layers that have learnt something, and undo it.
        model.get_parameter("layers.fc8.weight").data.zero_()
    copy_layers(model, started_from, names)
    return notes


def copy_layers(model: VGG, started_from: Backbone, names: Sequence[str]) -> None:
    """Copy layers, conv1_1 among them, from a net into another, which takes pixels that are not divided."""
    if missing := [name for name in names if name not in started_from.model.layers]:
        raise ConfigError(
            f"{started_from.source}: expected {', '.join(missing)}, found a net without; take a complete one"
        )
    with torch.no_grad():
        for name in names:
            for kind in ("weight", "bias"):
                parameter = f"layers.{name}.{kind}"
                model.get_parameter(parameter).copy_(started_from.model.get_parameter(parameter))
        # Those weights took pixels divided by std; here, as in the paper, pixels are not divided.
        std = torch.tensor(started_from.std)[None, :, None, None]
        model.get_parameter("layers.conv1_1.weight").div_(std)
