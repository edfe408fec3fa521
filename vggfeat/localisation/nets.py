"""Box nets: a classification net whose last layer answers with boxes (VGG paper, Appendix A).

K = classes. The last layer, fc8 of a VGG net, has 4 channels (SCR) or 4 K (PCR): those of class c are 4 c to 4 c + 3,
see `localisation.boxes`.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import torch

from vggfeat.checks import check_choice
from vggfeat.errors import ConfigError, WeightsError
from vggfeat.nets.backbone import BOX_FACTS, MapInfo, Net
from vggfeat.nets.vgg import VGG
from vggfeat.training.objective import copy_layers
from vggfeat.training.recipe import Recipe, recipe_for
from vggfeat.weights import Backbone, load_backbone

Kind = Literal["scr", "pcr"]
Layers = Literal["all", "fc"]
Frame = Literal["window", "image"]
Cut = Literal["whole", "clipped"]
Several = Literal["largest", "closest"]


@dataclass(frozen=True, kw_only=True)
class BoxRecipe:
    """Everything that decides the trained weights, apart from the images, boxes and weights that are started from.

    Raises ConfigError if a value is not allowed; the message names it.
    """

    kind: Kind = "pcr"
    """pcr, per-class regression: fc8 has four outputs for each class. scr, single-class regression: four that all
    classes share. Table 8 has pcr ahead, 34.3 % against 36.4 %."""
    layers: Layers = "all"
    """Which layers learn. all, which Table 8 has ahead; fc: fc6, fc7 and the new fc8, the others stay as they are."""
    frame: Frame = "window"
    """What the four outputs are relative to; the paper does not say. window: the part of the image that the net sees,
    224 pixels wide and high, so that at each position of a dense map the same outputs mean the same to the net. image:
    the complete rescaled image, of which a window shows a part that the net can't know."""
    cut: Cut = "whole"
    """The target where a crop cuts the box; the paper does not say. whole: all of it, also what lies outside,
    because that is what counts in the test. clipped: the part inside."""
    least_inside: float = 0.5
    """Share of a box's area that must lie inside the crop for it to be learnt from; a crop without such a box counts
    nowhere. OverFeat (Sermanet et al. 2014), whose method Appendix A takes up, leaves out windows that the object lies
    mostly outside of."""
    several: Several = "largest"
    """Which box is the target if an image has several of its class; the paper does not say. largest: the one with the
    largest area inside the crop, for a net can't answer with two. closest: the one nearest to the net's answer, for
    the test accepts any."""
    unit: float = 0.2
    """What an output of 1 means, in sides of the frame. The loss is half the squared distance between the four
    outputs and their targets, averaged over the batch: the Euclidean loss of Caffe, of which the paper's program was
    a branch (Sect. 3.3). The unit decides how much of it reaches the layers below the last, where gradients grow by
    its inverse square; the last layer learns equally fast with any. On rendered images the four targets have
    deviations of 0.15 to 0.19 sides, so that with 0.2 errors are about 1, as those of class scores are, and a learning
    rate of 1e-3 does what it does in classification. Measured there with fc6 to fc8 of the small net, 150 steps of 64
    crops: 48.5 % error with 0.2, 63.5 % with 1, and NaN with ten times the learning rate in its place."""
    head_std: float = 0.01
    """Deviation of the normal distribution that the weights of the new fc8 are drawn from; its biases are 0. Appendix A
    says "initialised randomly"; 0.01 is what the nets of the time had in their last layers (Krizhevsky et al. 2012)."""
    training: Recipe = field(default_factory=lambda: Recipe(net="D", start="same net", learning_rate=1e-3))
    """The rest is that of classification (Sect. 3.1) with a learning rate of 1e-3 (Appendix A). Dropout, mirroring,
    colour shift and the end of training are not said to be others, so they are not. "Stopped improving" is measured by
    the share of validation images that are localised, their class given (protocol 1 of Appendix A)."""

    def __post_init__(self) -> None:
        for name, allowed in (("kind", Kind), ("layers", Layers), ("frame", Frame), ("cut", Cut), ("several", Several)):
            check_choice(name, getattr(self, name), get_args(allowed))
        for name, most in (("least_inside", 1.0), ("unit", math.inf), ("head_std", math.inf)):
            value = getattr(self, name)
            if not (0 < value <= most and math.isfinite(value)):
                upper = f" and at most {most:g}" if math.isfinite(most) else ""
                raise ConfigError(f"{name}: expected a number above 0{upper}, found {value}")
        if len(set(self.training.scale)) > 1:
            raise ConfigError(f"scale: expected one S, as in Appendix A, found {self.training.scale}")

    @property
    def scale(self) -> int:
        """S in pixels; Appendix A has 256 and 384."""
        return self.training.scale[0]

    def metadata(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return what a weights file says of its box head; `load_box_net` reads it."""
        head = {name: value for name, value in asdict(self).items() if name != "training"}
        names = [str(name) for name in classes]
        return {BOX_FACTS: {**head, "window": self.training.crop, "scale": self.scale, "classes": names}}


def box_recipe_for(started_from: Backbone, scale: int = 256, **other: Any) -> BoxRecipe:
    """Return the recipe of Appendix A for a classification net and an S in pixels.

    The box net is of the configuration, width and pool rounding of the net. `other` are fields of `BoxRecipe`, or of
    `Recipe`, that are to be other than the defaults; ConfigError if a value is not allowed.
    """
    own = {one.name: other.pop(one.name) for one in fields(BoxRecipe) if one.name in other}
    return BoxRecipe(**own, training=recipe_for(started_from.model.config, (scale, scale), started_from, **other))


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxNet:
    """A net that answers with boxes, and what its outputs mean."""

    backbone: Backbone
    """Its last layer has 4 or 4 K channels, which answer in the coordinates of `localisation.boxes`, whatever unit they
    were trained in; `backbone.classes` is empty, because they are no classes."""
    kind: Kind
    classes: tuple[str, ...]
    """K names, in the order of the channels; for scr, those that the net was trained on."""
    frame: Frame
    """What the outputs are relative to; see `BoxRecipe`."""
    window: int
    """Side of the crops that it was trained on, in pixels."""
    scale: int
    """S of training, in pixels."""

    @property
    def layers(self) -> str | None:
        """Which layers were learnt, as `BoxRecipe` calls them; None if its file doesn't say."""
        return self.backbone.facts.get(BOX_FACTS, {}).get("layers")

    def describe(self) -> dict[str, Any]:
        """Return what belongs into the provenance of anything computed with the net, ready for JSON."""
        own = {"kind": self.kind, "frame": self.frame, "window": self.window, "scale": self.scale}
        return {**self.backbone.describe(), BOX_FACTS: {**own, "classes": len(self.classes)}}


def is_box_net(backbone: Backbone) -> bool:
    """Say whether a net answers with boxes instead of class scores."""
    return BOX_FACTS in backbone.facts


def last_map(model: Net) -> MapInfo:
    """Return what is known of the map that answers with boxes, or with class scores."""
    return model.maps[model.scores]


def check_windows(models: Sequence[Net]) -> None:
    """Check that a position of the last map sees the same part of an image in all nets.

    Raises ConfigError for the first net that differs.
    """
    windows = [(last_map(model).stride, last_map(model).window) for model in models]
    for model, window in zip(models, windows, strict=True):
        if window != windows[0]:
            raise ConfigError(
                "boxes: expected nets whose positions see the same windows, found (stride, window) "
                f"{windows[0]} in {models[0].config} and {window} in {model.config}; take nets of one family"
            )


def load_box_net(spec: str | os.PathLike[str]) -> BoxNet:
    """Load a box net by what `load_backbone` takes.

    Raises WeightsError if it can't be loaded, is of another kind, or its metadata do not fit its channels.
    """
    source = os.fspath(spec)
    backbone = load_backbone(source)
    if not is_box_net(backbone):
        raise WeightsError(
            f"{source}: expected a net that answers with boxes, found none; "
            "give the weights of `vggfeat localise train`"
        )
    metadata = backbone.facts[BOX_FACTS]
    try:
        net = BoxNet(
            backbone=backbone,
            kind=metadata["kind"],
            classes=tuple(str(name) for name in metadata["classes"]),
            frame=metadata["frame"],
            window=int(metadata["window"]),
            scale=int(metadata["scale"]),
        )
        unit = float(metadata.get("unit", 1))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{source}: expected metadata of a box net, found damaged ones: {error}") from None
    channels = 4 if net.kind == "scr" else 4 * len(net.classes)
    if not 0 < unit < math.inf:
        raise WeightsError(f"{source}: expected a unit of its boxes above 0, found {unit}")
    if net.kind not in get_args(Kind) or net.frame not in get_args(Frame) or channels != backbone.model.num_classes:
        raise WeightsError(
            f"{source}: expected {channels} channels of {backbone.model.scores} for {net.kind} and {len(net.classes)} "
            f"classes, found {backbone.model.num_classes}, with boxes relative to {net.frame}"
        )
    for parameter in backbone.model.layers[backbone.model.scores].parameters():
        parameter.mul_(unit)
    return net


def init_box_net(recipe: BoxRecipe, num_classes: int, started_from: Backbone) -> tuple[VGG, list[str]]:
    """Put a new last layer, for K classes, on a classification net; of which classes that is does not matter.

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
    if is_box_net(started_from):
        raise ConfigError(
            f"{started_from.source}: expected a classification net to start from, as in Appendix A of the paper, "
            "found a box net"
        )
    wanted = recipe.training
    wanted.check_start(started_from, "net", "width", "pool")
    model = wanted.build(4 if recipe.kind == "scr" else 4 * num_classes)
    copy_layers(model, started_from, [name for name in model.layers if name != "fc8"])
    with torch.no_grad():
        generator = torch.Generator().manual_seed(wanted.seed)
        model.get_parameter("layers.fc8.weight").normal_(0.0, recipe.head_std, generator=generator)
        model.get_parameter("layers.fc8.bias").zero_()
    for name, layer in model.layers.items():
        layer.requires_grad_(recipe.layers == "all" or name.startswith("fc"))
    return model.train(), _notes(recipe, started_from)


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
