"""First weights: drawn at random, or taken from another net."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vggfeat.errors import ConfigError
from vggfeat.nets.families import allocated
from vggfeat.nets.vgg import VGG
from vggfeat.training.settings import Recipe
from vggfeat.weights import Backbone

COPIED_FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
"""Layers that B to E take from net A (VGG paper, Sect. 3.1)."""


def first_weights(recipe: Recipe, classes: Sequence[str], started_from: Backbone | None) -> tuple[VGG, list[str]]:
    """Build the net of a recipe with the weights that training begins with.

    Parameters
    ----------
    recipe : Recipe
    classes : sequence of str
        Names of the fc8 channels.
    started_from : Backbone or None
        What `recipe.start` asks for.

    Returns
    -------
    model : VGG
        On the CPU, in training mode.
    notes : list of str
        What a user should know, a sentence each.

    Raises
    ------
    ConfigError
        If `started_from` is missing, not asked for, or of another net or width.
    """
    with torch.device("meta"):  # PyTorch's own first weights would cost time and move its random state.
        model = recipe.build(len(classes))
    allocated(model)
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
    for name in ("width", "pool"):
        if getattr(found, name) != getattr(recipe, name):
            raise ConfigError(
                f"{started_from.source}: {name}: expected {getattr(recipe, name)}, as in the recipe, "
                f"found {getattr(found, name)}"
            )


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
    with torch.no_grad():
        for name in names:
            for kind in ("weight", "bias"):
                parameter = f"layers.{name}.{kind}"
                model.get_parameter(parameter).copy_(started_from.model.get_parameter(parameter))
        # Those weights took pixels divided by std; here, as in the paper, pixels are not divided.
        std = torch.tensor(started_from.std)[None, :, None, None]
        model.get_parameter("layers.conv1_1.weight").div_(std)
