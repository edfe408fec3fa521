"""The boxes that windows predict for a class become a few, by OverFeat's greedy merging, and one of these is best.

K = classes, n = boxes that are predicted for each of them (over all windows, scales and nets), as pixel edges.

OverFeat (Sermanet et al. 2014, Sect. 4.3): as long as the least match score of a pair of boxes is at most t, replace
the pair by its average; then take the box for which the class outputs of all windows that fed it sum up highest.
Boxes are only merged within their class, because each carries the class outputs of one class alone.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, check_choice

Weighting = Literal["score", "count"]

Boxes = NDArray[np.float64]
_LEAST = 1e-30


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """What OverFeat's text leaves open."""

    threshold: float = 0.25
    """t: pairs whose match score is above it are not merged. The score (see `match_scores`) is 0 for equal boxes.
    OverFeat gives no value, and none would fit this form of the score; with a small box net on rendered images, 0.05
    to 0.3 gave the same error, and more gave a higher one."""
    average: Weighting = "score"
    """What a box weighs in the average of coordinates: the class outputs that fed it so far, so that windows which
    hardly see the class hardly move the box (our choice), or the number of windows that fed it."""
    most: int = 1000
    """Boxes of a class that are merged, those of the highest outputs: bounds time and memory by its square. No Q of
    the paper comes near it."""

    def __post_init__(self) -> None:
        check_choice("average", self.average, get_args(Weighting))
        if not 0 <= self.threshold < 3:
            raise ConfigError(f"threshold: expected a match score from 0 to below 3, found {self.threshold}")
        if self.most < 1:
            raise ConfigError(f"most: expected at least 1, found {self.most}")


class Merged(NamedTuple):
    """The best merged box of each class."""

    boxes: Boxes
    """(K, 4) pixel edges."""
    scores: NDArray[np.float64]
    """(K,) sum of the class outputs of the windows that fed it."""
    windows: NDArray[np.int64]
    """(K,) how many windows fed it."""


def match_scores(boxes: Boxes, others: Boxes) -> NDArray[np.float64]:
    """Say how badly boxes match: 0 for equal ones, growing with their distance and as their overlap falls.

    OverFeat adds "the distance between the centres of the two boxes and the intersection area of the boxes" and takes
    the least; taken literally, overlap would speak against a match. Here the area enters as 1 - intersection / union,
    and the distance in units of the mean of the two diagonals, so that the score is the same at every size.

    Parameters
    ----------
    boxes, others : (..., 4) arrays of float
        Pixel edges; their leading axes are broadcast.

    Returns
    -------
    (...) float64
    """
    # Sides one by one: NumPy is slow along an axis of two.
    (x, y, w, h), (other_x, other_y, other_w, other_h) = _centred(boxes), _centred(others)
    apart, apart_y = np.abs(x - other_x), np.abs(y - other_y)
    common = np.maximum((w + other_w) / 2 - apart, 0)
    common = np.minimum(common, np.minimum(w, other_w))
    common_y = np.maximum((h + other_h) / 2 - apart_y, 0)
    common_y = np.minimum(common_y, np.minimum(h, other_h))
    intersection = common * common_y
    union = w * h + other_w * other_h - intersection
    diagonal = (np.sqrt(w * w + h * h) + np.sqrt(other_w * other_w + other_h * other_h)) / 2
    return np.sqrt(apart * apart + apart_y * apart_y) / diagonal + 1 - intersection / union


def _centred(boxes: Boxes) -> tuple[NDArray[np.float64], ...]:
    left, top, right, bottom = (boxes[..., edge] for edge in range(4))
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def merge(boxes: Boxes, scores: NDArray[np.float64], settings: MergeSettings) -> Merged:
    """Merge the boxes of each class greedily, and choose the best of each.

    Parameters
    ----------
    boxes : (K, n, 4) array of float
        Pixel edges, finite, of sides above 0; n from 1.
    scores : (K, n) array of float
        Class output of the window that predicted the box, from 0.
    settings : MergeSettings

    Returns
    -------
    Merged

    Notes
    -----
    Time and memory grow with the square of n.
    """
    if scores.shape[1] > settings.most:
        kept = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, : settings.most], axis=1)
        boxes, scores = np.take_along_axis(boxes, kept[..., None], axis=1), np.take_along_axis(scores, kept, axis=1)
    merging = _Merging(boxes, scores, settings)
    while merging.step():
        pass
    return merging.best()


class _Merging:
    """All classes at once: Python runs n steps, however many classes there are."""

    def __init__(self, boxes: Boxes, scores: NDArray[np.float64], settings: MergeSettings) -> None:
        self._settings = settings
        # A posterior can round to 0, and weights of an average must not be 0 altogether.
        self._boxes, self._scores = boxes.astype(np.float64), np.maximum(scores.astype(np.float64), _LEAST)
        self._windows = np.ones(scores.shape, dtype=np.int64)
        self._open = np.arange(len(scores))
        """Classes that may have a pair left."""
        self._match = match_scores(self._boxes[:, :, None], self._boxes[:, None, :])
        rows = np.arange(scores.shape[1])
        self._match[:, rows, rows] = np.inf
        self._least, self._mate = self._match.min(axis=2), self._match.argmin(axis=2)

    def step(self) -> bool:
        """Merge the best pair of every class that has one below the threshold; say whether there was any."""
        first = self._least[self._open].argmin(axis=1)
        found = self._least[self._open, first] <= self._settings.threshold
        self._open, first = self._open[found], first[found]
        if len(self._open):
            second = self._mate[self._open, first]
            self._join(self._open, first, second)
            self._measure(self._open, first, second)
        return len(self._open) > 0

    def _join(self, k: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        weights = self._scores if self._settings.average == "score" else self._windows
        share = (weights[k, second] / (weights[k, first] + weights[k, second]))[:, None]
        self._boxes[k, first] = (1 - share) * self._boxes[k, first] + share * self._boxes[k, second]
        self._scores[k, first] += self._scores[k, second]
        self._windows[k, first] += self._windows[k, second]
        self._scores[k, second], self._windows[k, second] = -np.inf, 0

    def _measure(self, k: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        new = match_scores(self._boxes[k, first][:, None], self._boxes[k])
        new[self._windows[k] == 0] = np.inf
        each = np.arange(len(k))
        new[each, first] = np.inf
        self._match[k, second] = self._match[k, :, second] = np.inf
        self._match[k, first] = self._match[k, :, first] = new
        # A pair that has become better stands in the row of the merged box: the others keep a mate that is left.
        mate = self._mate[k]
        stale = (mate == first[:, None]) | (mate == second[:, None])
        stale[each, second] = True
        class_of, row = np.nonzero(stale)
        rows = self._match[k[class_of], row]
        self._least[k[class_of], row], self._mate[k[class_of], row] = rows.min(axis=1), rows.argmin(axis=1)

    def best(self) -> Merged:
        each, place = np.arange(len(self._scores)), self._scores.argmax(axis=1)
        return Merged(self._boxes[each, place], self._scores[each, place], self._windows[each, place])
