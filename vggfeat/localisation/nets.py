"""Box nets: a classification net whose last layer answers with boxes (VGG paper, Appendix A).

K = classes. fc8 has 4 channels (SCR) or 4 K (PCR): those of class c are 4 c to 4 c + 3, see `localisation.targets`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from vggfeat.errors import ConfigError, WeightsError
from vggfeat.localisation.settings import BoxRecipe, Frame, Kind
from vggfeat.nets.backbone import BOX_FACTS
from vggfeat.nets.families import allocated
from vggfeat.nets.vgg import VGG
from vggfeat.training.initialisation import copy_layers
from vggfeat.weights import Backbone, load_backbone


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxNet:
    """A net that answers with boxes, and what its numbers mean."""

    backbone: Backbone
    """fc8 has 4 or 4 K channels, which answer in numbers of `localisation.targets`, whatever unit they were trained in;
    `backbone.classes` is empty, because they are no classes."""
    kind: Kind
    classes: tuple[str, ...]
    """K names, in the order of the channels; for scr, those that the net was trained on."""
    frame: Frame
    """What the numbers are relative to; see `localisation.settings.BoxRecipe`."""
    window: int
    """Side of the crops that it was trained on, in pixels."""
    scale: int
    """S of training, in pixels."""

    @property
    def layers(self) -> str | None:
        """Which layers were learnt, as `localisation.settings.BoxRecipe` calls them; None if its file doesn't say."""
        told: Mapping[str, Any] = self.backbone.facts.get(BOX_FACTS, {})
        return told.get("layers")

    def describe(self) -> dict[str, Any]:
        """Return what belongs into the provenance of anything computed with the net, ready for JSON."""
        own = {"kind": self.kind, "frame": self.frame, "window": self.window, "scale": self.scale}
        return {**self.backbone.describe(), BOX_FACTS: {**own, "classes": len(self.classes)}}


def is_box_net(backbone: Backbone) -> bool:
    """Say whether fc8 answers with boxes instead of class scores."""
    return BOX_FACTS in backbone.facts


def load_box_net(spec: str | os.PathLike[str]) -> BoxNet:
    """Load a box net.

    Parameters
    ----------
    spec : str or path
        As for `load_backbone`.

    Raises
    ------
    WeightsError
        If it can't be loaded, is of another kind, or says of itself what does not fit its channels.
    """
    place = os.fspath(spec)
    backbone = load_backbone(place)
    if not is_box_net(backbone):
        raise WeightsError(
            f"{place}: expected a net that answers with boxes, found none; give the weights of `vggfeat localise train`"
        )
    told = backbone.facts[BOX_FACTS]
    try:
        net = BoxNet(
            backbone=backbone,
            kind=told["kind"],
            classes=tuple(str(name) for name in told["classes"]),
            frame=told["frame"],
            window=int(told["window"]),
            scale=int(told["scale"]),
        )
        unit = float(told.get("unit", 1))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{place}: expected metadata of a box net, found damaged ones: {error}") from None
    channels = 4 if net.kind == "scr" else 4 * len(net.classes)
    if not 0 < unit < math.inf:
        raise WeightsError(f"{place}: expected a unit of its boxes above 0, found {unit}")
    if net.kind not in get_args(Kind) or net.frame not in get_args(Frame) or channels != backbone.model.num_classes:
        raise WeightsError(
            f"{place}: expected {channels} channels of fc8 for {net.kind} and {len(net.classes)} classes, "
            f"found {backbone.model.num_classes}, with boxes relative to {net.frame}"
        )
    for parameter in backbone.model.layers["fc8"].parameters():
        parameter.mul_(unit)
    return net


def facts_of(recipe: BoxRecipe, classes: Sequence[str]) -> dict[str, Any]:
    """Return what a weights file says of its box head; `load_box_net` reads it."""
    training = recipe.training
    return {
        BOX_FACTS: {
            **recipe.describe(),
            "window": training.crop,
            "scale": recipe.scale,
            "classes": [str(c) for c in classes],
        }
    }


def first_box_weights(recipe: BoxRecipe, num_classes: int, started_from: Backbone) -> tuple[VGG, list[str]]:
    """Put a new last layer on a classification net.

    Parameters
    ----------
    recipe : BoxRecipe
    num_classes : int
        K.
    started_from : Backbone
        A classification net; of which classes does not matter.

    Returns
    -------
    model : VGG
        On the CPU, in training mode; layers that don't learn ask for no gradient.
    notes : list of str
        What a user should know, a sentence each.

    Raises
    ------
    ConfigError
        If the net is a box net already, or another than the recipe's.
    """
    _check(recipe, started_from)
    with torch.device("meta"):  # PyTorch's own first weights would cost time and move its random state.
        model = recipe.training.build(recipe.outputs(num_classes))
    allocated(model)
    copy_layers(model, started_from, [name for name in model.layers if name != "fc8"])
    with torch.no_grad():
        generator = torch.Generator().manual_seed(recipe.training.seed)
        model.get_parameter("layers.fc8.weight").normal_(0.0, recipe.head_std, generator=generator)
        model.get_parameter("layers.fc8.bias").zero_()
    for name, layer in model.layers.items():
        layer.requires_grad_(recipe.layers == "all" or name.startswith("fc"))
    return model.train(), _notes(recipe, started_from)


def _check(recipe: BoxRecipe, started_from: Backbone) -> None:
    if is_box_net(started_from):
        raise ConfigError(
            f"{started_from.source}: expected a classification net to start from, as in Appendix A of the paper, "
            "found a box net"
        )
    found, wanted = started_from.model, recipe.training
    for name, value in (("net", found.config), ("width", found.width), ("pool", found.pool)):
        if value != getattr(wanted, name):
            raise ConfigError(
                f"{started_from.source}: {name}: expected {getattr(wanted, name)}, as in the recipe, found {value}"
            )


def _notes(recipe: BoxRecipe, started_from: Backbone) -> list[str]:
    try:
        scales = sorted({int(side) for side in started_from.facts["training"]["recipe"]["scale"]})
    except (KeyError, TypeError, ValueError):
        return []
    if scales == [recipe.scale]:
        return []
    return [
        f"{started_from.source} was trained at S = {' to '.join(map(str, scales))}, the boxes are at {recipe.scale}: "
        "the paper has the same S for both"
    ]
