"""What a box net is and how it is trained: Appendix A of the VGG paper, and the choices that it leaves open.

K = classes.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from vggfeat.errors import ConfigError, check_choice
from vggfeat.training.settings import Recipe, recipe_for
from vggfeat.weights import Backbone

Kind = Literal["scr", "pcr"]
Layers = Literal["all", "fc"]
Frame = Literal["window", "image"]
Cut = Literal["whole", "clipped"]
Several = Literal["largest", "closest"]


@dataclass(frozen=True, kw_only=True)
class BoxRecipe:
    """Everything that decides the trained weights, apart from the images, boxes and weights that are started from.

    Raises
    ------
    ConfigError
        If a value is not allowed; the message names it.
    """

    kind: Kind = "pcr"
    """pcr, per-class regression: fc8 has four outputs for each class. scr, single-class regression: four that all
    classes share. Table 8 has pcr ahead, 34.3 % against 36.4 %."""
    layers: Layers = "all"
    """Which layers learn. all, which Table 8 has ahead; fc: fc6, fc7 and the new fc8, the others stay as they are."""
    frame: Frame = "window"
    """What the four numbers are relative to; the paper does not say. window: the part of the image that the net sees,
    224 pixels wide and high, so that at each place of a dense map the same numbers mean the same to the net. image:
    the whole rescaled image, of which a window shows a part that the net can't know."""
    cut: Cut = "whole"
    """What is asked for where a crop cuts the box; the paper does not say. whole: all of it, also what lies outside,
    because that is what counts in the test. clipped: the part inside."""
    least_inside: float = 0.5
    """Share of a box's area that must lie inside the crop for it to be learnt from; a crop without such a box counts
    nowhere. OverFeat (Sermanet et al. 2014), whose method Appendix A takes up, leaves out windows that the object lies
    mostly outside of."""
    several: Several = "largest"
    """Which box is asked for if an image has several of its class; the paper does not say. largest: the one with the
    largest area inside the crop, for a net can't answer with two. closest: the one nearest to what the net says, for
    the test accepts any."""
    unit: float = 0.2
    """What an output of 1 stands for, in sides of the frame. The loss is half the squared distance between the four
    outputs and those asked for, averaged over the batch: the Euclidean loss of Caffe, of which the paper's program was
    a branch (Sect. 3.3). The unit decides how much of it reaches the layers below the last, where gradients grow by
    its inverse square; the last layer learns equally fast with any. On rendered images the four numbers have
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
        check_choice("kind", self.kind, get_args(Kind))
        check_choice("layers", self.layers, get_args(Layers))
        check_choice("frame", self.frame, get_args(Frame))
        check_choice("cut", self.cut, get_args(Cut))
        check_choice("several", self.several, get_args(Several))
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

    def outputs(self, num_classes: int) -> int:
        """Channels of fc8: 4, or 4 K."""
        return 4 if self.kind == "scr" else 4 * num_classes

    def describe(self) -> dict[str, Any]:
        """Return what is not in `training`, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "training"}


BOX_FIELDS = ("kind", "layers", "frame", "cut", "least_inside", "several", "unit", "head_std")


def box_recipe_for(started_from: Backbone, scale: int = 256, **other: Any) -> BoxRecipe:
    """Return the recipe of Appendix A for a classification net and an S.

    Parameters
    ----------
    started_from : Backbone
        The classification net; the box net is of its configuration, width and pool rounding.
    scale : int
        S in pixels.
    other
        Fields of `BoxRecipe`, or of `Recipe`, that are to be other than the defaults.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """
    own = {name: other.pop(name) for name in BOX_FIELDS if name in other}
    training = recipe_for(started_from.model.config, (scale, scale), started_from, **other)
    return BoxRecipe(**own, training=training)
