"""What a net offers to the rest of the package, and a net together with what its weights ask for.

N = images, H, W = image sides in pixels, h, w = sides of a dense map, C = channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from vggfeat.errors import ConfigError

Pool = Literal["floor", "ceil"]
"""Rounding of the pooling output: floor in torchvision, ceil in the nets that the authors published (Caffe)."""

Sides = TypeVar("Sides", int, Tensor)

IMAGENET_MEAN = (123.68, 116.779, 103.939)
"""Mean RGB pixel of the ILSVRC training set, 0 to 255, as published with the authors' nets."""
BOX_FACTS = "localisation"
"""What a file of ours has among its facts if its last layer answers with boxes; see `vggfeat.localisation.nets`."""

NOT_FINITE = "not_finite"
"""What `imported` says of a file that has NaN or infinity in its last layers, which the net therefore ends before."""


@dataclass(frozen=True, kw_only=True)
class MapInfo:
    """One of the dense maps that a net offers."""

    channels: int
    stride: int
    """Pixels between neighbouring positions."""
    window: int = 1
    """Side of the square of cells, `stride` pixels wide each, that belong to a position: 7 for fc6 of a VGG net."""
    reach: int = 0
    """Pixels that a position sees beyond its window, on either side."""


class Net(nn.Module, ABC):
    """A fully convolutional net with named maps: what the forward pass, files of weights and reports ask of it.

    A further net is a subclass in a file of its own, a line in `vggfeat.nets.families`, and an importer of its files
    (`vggfeat.weights.importing`).
    """

    config: str
    """Its name, unique among all nets: D, D-BN, ..."""
    num_classes: int
    width: float
    """Factor on the channel counts of the hidden layers."""
    pool: Pool
    layers: nn.ModuleDict
    """Everything with weights: names in `layers.state_dict()` are those of our files."""
    first: str
    """Name in `layers` of the convolution that takes the image."""
    maps: Mapping[str, MapInfo]
    """What a forward pass can return, the shallowest first."""
    scores: str
    """Name of the map of class scores before the soft-max, (N, num_classes, h, w), and of the layer that gives it."""
    last: str = ""
    """The deepest map there is, where the file had no weights for those behind it; empty for a complete net."""
    min_side: int
    """The shortest image side, in pixels, that gives every map a position."""

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        maps: Collection[str],
        masks: Mapping[str, Tensor] | None = None,
        sides: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run the net up to the deepest map asked for.

        Parameters
        ----------
        images : Tensor (N, 3, H, W), floating point
            RGB, already normalised as the weights ask for.
        maps : names out of `self.maps`
        masks : optional
            Factors on activations, for nets that can be trained here.
        sides : Tensor (N, 2), int, optional
            Height and width of each image, where it is smaller than the tensor that it lies in: at its top left,
            with zeros to the right and below. Within its own `map_side`, its maps are what they are without them;
            outside they may have any values.

        Returns
        -------
        dict of str to Tensor (N, C, h, w)
        """

    @abstractmethod
    def map_side(self, name: str, side: Sides) -> Sides:
        """Positions of a map along an image side in pixels, or along many in a tensor; 0 or less if it is too short."""

    def least_side(self, name: str) -> int:
        """Return the shortest image side, in pixels, that gives a map a position."""
        return next(side for side in range(1, self.min_side + 1) if self.map_side(name, side) > 0)

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.parameters())
        kind = f"{type(self).__name__}({self.config}, width {self.width:g}, pooling rounded by {self.pool}"
        return f"{kind}, {self.num_classes} classes, {parameters:,} parameters)"


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A net and the preprocessing that its weights ask for."""

    model: Net
    """The net, in evaluation mode, on the CPU, float32; no parameter asks for a gradient."""
    source: str
    """What was asked for: a file name without its folder, small, or random:NET:SEED:WIDTH."""
    sha256: str
    """SHA-256 of the file's bytes; of the tensors for random weights. 64 hex digits."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """RGB, 0 to 255, subtracted from every pixel (Sect. 2.1)."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB, 0 to 255, divided by after that: 1 in the paper."""
    classes: tuple[str, ...] = ()
    """Names of the fc8 channels, where the file holds them."""
    trained: bool = True
    """False for random weights."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else a file of ours says of its net, for instance the recipe and the accuracy; nothing depends on it."""
    imported: Mapping[str, Any] = field(default_factory=dict)
    """For a net of another library: its format, its file, and how each question of preprocessing was settled."""

    def __repr__(self) -> str:
        trained = "" if self.trained else ", untrained"
        return f"Backbone({self.source}, {self.model!r}{trained}, SHA-256 {self.sha256[:12]}...)"

    def check_layer(self, layer: str) -> None:
        """Check that the net has a map; ConfigError, which says why it may have none, if it has not."""
        if layer in self.model.maps:
            return
        reasons = {"without": "has no", NOT_FINITE: "has NaN or infinity in"}
        reported = [(words, self.imported[name]) for name, words in reasons.items() if name in self.imported]
        why = "".join(f"; {self.source} {words} {layers}" for words, layers in reported)
        raise ConfigError(f"layer: expected one of {', '.join(self.model.maps)}, found {layer!r}{why}")

    def describe(self) -> dict[str, Any]:
        """Return what belongs into the provenance of anything computed with the net, ready for JSON."""
        return {
            "weights": self.source,
            "weights_sha256": self.sha256,
            "net": self.model.config,
            "width": self.model.width,
            "num_classes": self.model.num_classes,
            "pool_rounding": self.model.pool,
            "channel_order": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "trained": self.trained,
            **({"last": self.model.last} if self.model.last else {}),
            **({"imported": dict(self.imported)} if self.imported else {}),
        }
