"""Every random choice for an image, as a function of (seed, epoch, row) alone.

N = images of the training list, n = images of a batch. So the same image is cropped in the same way whatever the
number of workers and processes, and wherever a run was interrupted. Numbers come from a mixing function of whole
64-bit words (the finaliser of SplitMix64), which no version of a library can change.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError

_GOLDEN = 0x9E3779B97F4A7C15
_ORDER, _CROP = 1, 2


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """How a training image becomes an input of the net (VGG paper, Sect. 3.1).

    Raises
    ------
    ConfigError
        If a crop would not fit into the smallest S, or a number is out of its range.
    """

    scale: tuple[int, int] = (256, 256)
    """Least and largest S, the smallest side in pixels after rescaling; drawn per image, both included. (256, 256),
    (384, 384), or (256, 512) for scale jittering."""
    side: int = 224
    """Side of the crop in pixels."""
    mirror: float = 0.5
    """Share of crops that are flipped left and right."""
    colour: float = 0.1
    """Standard deviation of the three factors of the colour shift (Krizhevsky et al. 2012, Sect. 4.1)."""
    reduced: bool = True
    """Whether a JPEG twice as large as S, or more, is decoded at 1/2, 1/4 or 1/8 of its size, and another image of
    6 S or more is averaged over square blocks first. It saves most of the time that large images take."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 1 <= self.side <= low <= high:
            raise ConfigError(
                f"scale: expected {self.side} (the crop's side) <= least S <= largest, found {self.scale}"
            )
        if not 0 <= self.mirror <= 1 or not self.colour >= 0:
            raise ConfigError(f"expected mirror from 0 to 1 and colour from 0, found {self.mirror} and {self.colour}")


class Draws(NamedTuple):
    """What was drawn for n images."""

    scale: NDArray[np.int64]
    """(n,) S in pixels."""
    place: NDArray[np.float64]
    """(n, 2) from 0 up to 1: where the crop lies between top and bottom, and between left and right."""
    mirrored: NDArray[np.bool_]
    """(n,) whether it is flipped."""
    alphas: NDArray[np.float64]
    """(n, 3) factors of the colour shift, one per principal component, the largest first."""

    def part(self, numbers: NDArray[np.int64]) -> "Draws":
        """Return what was drawn for some of the images."""
        return Draws(self.scale[numbers], self.place[numbers], self.mirrored[numbers], self.alphas[numbers])


def draw(settings: CropSettings, seed: int, epochs: NDArray[np.int64], rows: NDArray[np.int64]) -> Draws:
    """Draw for some images.

    Parameters
    ----------
    settings : CropSettings
    seed : int
        Of the run.
    epochs, rows : ndarray (n,)
        How often the whole list was gone through before, and the image's row in it.
    """
    low, high = settings.scale
    uniform = [_uniform(_words(seed, _CROP, epochs, rows, k)) for k in range(8)]
    return Draws(
        scale=low + np.floor(uniform[0] * (high - low + 1)).astype(np.int64),
        place=np.stack(uniform[1:3], axis=1),
        mirrored=uniform[3] < settings.mirror,
        alphas=settings.colour * _normal(*uniform[4:8])[:, :3],
    )


def centred(scale: int, count: int) -> Draws:
    """Return the draws of plain centre crops: no mirror, no colour shift. A spare odd pixel lies below or right."""
    return Draws(
        scale=np.full(count, scale),
        place=np.full((count, 2), np.nan),
        mirrored=np.zeros(count, bool),
        alphas=np.zeros((count, 3)),
    )


class Order:
    """The order in which a list is gone through, again and again: another permutation in each epoch.

    Parameters
    ----------
    count : int
        N.
    seed : int
        Of the run.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._rows = -1, np.empty(0, np.int64)

    def take(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return epochs and rows of the places from `start` to `stop` in the endless sequence; both (stop - start,).

        A batch may hold the end of one epoch and the start of the next: none is cut short.
        """
        places = np.arange(start, stop)
        epochs = places // self.count
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._permutation(int(epoch))[places[epochs == epoch] - epoch * self.count]
        return epochs, rows

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            keys = _words(self.seed, _ORDER, np.full(self.count, epoch), np.arange(self.count), 0)
            self._epoch, self._rows = epoch, np.argsort(keys, kind="stable")
        return self._rows


def _words(seed: int, purpose: int, epochs: NDArray[np.int64], rows: NDArray[np.int64], k: int) -> NDArray[np.uint64]:
    mixed = np.zeros(1, np.uint64)
    for part in (seed, purpose, epochs, rows, k):
        mixed = _mix(mixed + np.asarray(part).astype(np.uint64))
    return mixed


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = word + np.uint64(_GOLDEN)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def _uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _normal(*uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn uniform numbers into as many normal ones by the method of Box and Muller; (n, len(uniform))."""
    half = len(uniform) // 2
    radius = [np.sqrt(-2 * np.log1p(-u)) for u in uniform[:half]]
    angle = [2 * np.pi * u for u in uniform[half:]]
    pairs = [(r * np.cos(a), r * np.sin(a)) for r, a in zip(radius, angle, strict=True)]
    return np.stack([value for pair in pairs for value in pair], axis=1)
