"""What is asked of an image, what is answered, and what decides the answer.

K = classes, T = classes of an image that are located, h, w = positions of a dense map.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.errors import ConfigError
from vggfeat.forward import Precision, Size
from vggfeat.localisation.boxes import window_frames
from vggfeat.localisation.maps import MapSettings
from vggfeat.localisation.merging import MergeSettings
from vggfeat.localisation.nets import BoxNet
from vggfeat.nets.transforms import Interpolation
from vggfeat.samples import Box


@dataclass(frozen=True, kw_only=True)
class LocaliseSettings:
    """Everything that decides a guess, apart from the weights and the images."""

    scales: tuple[tuple[int, ...], ...]
    """Q of every box net, smallest image sides in pixels. Table 9 has 256 for S = 256, and 384 or {352, 384} for
    S = 384."""
    top: int = 5
    """Classes guessed for an image; the official rules allow five."""
    merging: MergeSettings = field(default_factory=MergeSettings)
    precision: Precision = "fp32"
    """Of the convolutions; all that follows is done in float32 or more."""
    interpolation: Interpolation = "bilinear"
    """How images are rescaled, always with anti-aliasing."""
    batch_pixels: int = 1 << 20
    """Pixels in one pass: bounds the memory. A larger image is run in exact overlapping strips."""

    def __post_init__(self) -> None:
        if not 1 <= self.top <= 5:
            raise ConfigError(f"top: expected 1 to 5 guesses an image, found {self.top}")
        if not self.scales:
            raise ConfigError("scales: expected those of at least one box net, found none")

    def maps(self, scales: Sequence[int], least: int) -> MapSettings:
        """Return the settings of one net."""
        return MapSettings(
            scales=tuple(scales),
            least=least,
            precision=self.precision,
            interpolation=self.interpolation,
            batch_pixels=self.batch_pixels,
        )

    def describe(self) -> dict[str, Any]:
        """Return all settings, ready for JSON."""
        return asdict(self) | {"scales": [list(scales) for scales in self.scales]}


class Ask(NamedTuple):
    """Which classes of an image are to be located."""

    labels: NDArray[np.int64] | None = None
    """Classes to guess, best first; None: the classification net's own, from its dense map."""
    truth: int | None = None
    """The true class, which is located as well, whether it is guessed or not."""


class Guess(NamedTuple):
    """A class, and where it is on an image."""

    label: int
    """Number of the class."""
    posterior: float
    """Of the whole image, from 0 to 1; NaN without a classification net."""
    box: Box
    """In pixels of the file."""
    windows: int
    """How many windows fed the box."""


class Located(NamedTuple):
    """What became of one image; T classes, of which the first G are its guesses."""

    classes: NDArray[np.int64]
    """(T,) the guesses, best first, and then the true class if it is asked for and not among them."""
    guesses: int
    """G."""
    boxes: NDArray[np.float64]
    """(T, 4) edges, in pixels of the file."""
    scores: NDArray[np.float64]
    """(T,) sum of the class posteriors of the windows that fed the box."""
    windows: NDArray[np.int64]
    """(T,) how many windows these were."""
    posteriors: NDArray[np.float64]
    """(T,) posterior of the class for the whole image; NaN without a classification net."""
    reason: str
    """Empty, or "reason: message" of the failure; then T is 0."""
    size: Size
    """Height and width of the image; (0, 0) if it could not be read."""

    def ranked(self) -> list[Guess]:
        """Return the guesses, best first."""
        columns = (self.classes, self.posteriors, self.boxes, self.windows)
        rows = zip(*(column[: self.guesses].tolist() for column in columns), strict=True)
        return [Guess(label, posterior, Box(*box), windows) for label, posterior, box, windows in rows]


def class_places(net: BoxNet, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of every class among those of a box net; zeros if its outputs are those of all classes.

    Raises
    ------
    ConfigError
        If the net lacks one.
    """
    if net.kind == "scr":
        return np.zeros(len(classes), dtype=np.int64)
    known = {name: place for place, name in enumerate(net.classes)}
    missing = [name for name in classes if name not in known]
    if missing:
        raise ConfigError(
            f"{net.backbone.source}: expected boxes of every class, found {len(known)} classes without {missing[0]!r} "
            f"({len(missing)} are missing); take a box net of the same classes"
        )
    return np.array([known[name] for name in classes], dtype=np.int64)


def net_frames(net: BoxNet, positions: tuple[int, int], rescaled: Size, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Return what the numbers of a net are relative to, (h, w, 4) or (1, 1, 4), in pixels of the rescaled image."""
    if net.frame == "image":
        return torch.tensor([[[0.0, 0.0, rescaled[1], rescaled[0]]]], dtype=torch.float64)
    return window_frames(positions, offset, net.window)


def wanted_classes(ask: Ask) -> NDArray[np.int64]:
    """Return the classes to locate: the guesses, and the true class if it is not among them."""
    labels = np.zeros(0, np.int64) if ask.labels is None else np.asarray(ask.labels, dtype=np.int64)
    labels = labels[labels >= 0]
    return labels if ask.truth is None or ask.truth in labels else np.append(labels, ask.truth)


def failed(reason: str, size: Size = (0, 0)) -> Located:
    """Return what stands for an image without guesses."""
    none = np.zeros(0)
    whole = none.astype(np.int64)
    return Located(whole, 0, np.zeros((0, 4)), none, whole, none, reason, size)
