"""Boxes as the four outputs of a net, and back; where the windows of a dense map lie; and many boxes merged into few.

n = images, k = boxes of an image, K = classes, h, w = positions of a dense map, T = classes that are asked for. A box
is (left, top, right, bottom) in edges, as `samples.Box`; its *coordinates* are (centre x, centre y, width, height),
relative to a *frame*: the rectangle whose centre is (0, 0) and whose sides are 1.

Merging is OverFeat's (Sermanet et al. 2014, Sect. 4.3), of n boxes that are predicted for each class over all windows,
scales and nets: as long as the least match score of a pair of boxes is at most t, replace the pair by its average; then
take the box for which the class outputs of all windows that fed it sum up highest. Boxes are only merged within their
class, because each carries the class outputs of one class alone.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.checks import check_choice, convert_fields
from vggfeat.errors import ConfigError
from vggfeat.forward.batching import Size

Weighting = Literal["score", "count"]

Boxes = NDArray[np.float64]
LEAST_SCORE = 1e-30
"""A posterior can round to 0, and the weights of an average must not all be 0."""


def encode(boxes: Tensor, frames: Tensor) -> Tensor:
    """Turn boxes (..., 4) into coordinates (..., 4) in frames (..., 4), the net's window or the complete image.

    Edges are in the same pixels, and shapes are broadcast. Centre x and width come in widths of the frame, centre y
    and height in heights of it.
    """
    corner, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    frame_corner, frame_size = frames[..., :2], frames[..., 2:] - frames[..., :2]
    centre = (corner + size / 2 - (frame_corner + frame_size / 2)) / frame_size
    return torch.cat([centre, (size / frame_size).expand_as(centre)], dim=-1)


def decode(coordinates: Tensor, frames: Tensor) -> Tensor:
    """Turn coordinates into edges of boxes (..., 4): the inverse of `encode`.

    They may lie outside of frame and image, and a box of negative width has its right edge on the left.
    """
    frame_corner, frame_size = frames[..., :2], frames[..., 2:] - frames[..., :2]
    centre = frame_corner + frame_size * (coordinates[..., :2] + 0.5)
    half = frame_size * coordinates[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def areas(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4); 0 where the right edge is left of the left one."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def intersect(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the common part (..., 4) of boxes; of area 0 where they have none."""
    corner = torch.maximum(boxes[..., :2], others[..., :2])
    return torch.cat([corner, torch.minimum(boxes[..., 2:], others[..., 2:])], dim=-1)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union (...) of boxes (..., 4), 0 to 1; 0 where a box has no area or is NaN.

    Edges are in the same pixels, or in any other units: the ratio is the same. Shapes are broadcast. In edges it is
    the official one of inclusive pixel numbers, whose widths are right - left + 1.
    """
    common, first, second = areas(intersect(boxes, others)), areas(boxes), areas(others)
    ratio = common / (first + second - common)
    return torch.where((first > 0) & (second > 0), ratio, torch.zeros_like(ratio))


def class_outputs(outputs: Tensor, classes: Tensor) -> Tensor:
    """Take the four outputs (n, 4) that belong to each image's class (n,), int64, 0 to K - 1.

    `outputs` are those of the last layer, (n, 4 K), or (n, 4), which are those of every class.
    """
    if outputs.shape[1] == 4:
        return outputs
    return outputs.unflatten(1, (-1, 4))[torch.arange(len(outputs), device=outputs.device), classes]


def window_frames(
    positions: tuple[int, int], offset: tuple[int, int] = (0, 0), *, side: int = 224, stride: int = 32
) -> Tensor:
    """Return the part of the rescaled image that each position (h, w) of a dense map sees: edges (h, w, 4), float64.

    The window of row i and column j begins at stride * i and stride * j, in pixels, behind `offset`, the row and column
    of the first window's corner; for a centre crop, that of the crop. With the pooling of Caffe, which rounds up, the
    last may reach beyond the image.
    """
    top = offset[0] + stride * torch.arange(positions[0], dtype=torch.float64, device="cpu")[:, None]
    left = offset[1] + stride * torch.arange(positions[1], dtype=torch.float64, device="cpu")[None, :]
    top, left = torch.broadcast_tensors(top, left)
    return torch.stack([left, top, left + side, top + side], dim=-1)


def boxes_from_map(
    outputs: Tensor, classes: NDArray[np.int64], frames: Tensor, rescaled: Size, image: Size
) -> NDArray[np.float64]:
    """Turn the outputs of a box net for one image into boxes.

    `outputs` (4, h, w) or (4 K, h, w): of the last layer; channels 4 c to 4 c + 3 are the coordinates for
    class c, and four channels are those of every class.
    `classes` (T,) int64: classes asked for, by their place among the net's.
    `frames` (h, w, 4) or (1, 1, 4): what the outputs are relative to, in edges, in pixels of the rescaled
    image.
    `rescaled`, `image` (height, width): sides of the image as the net saw it, and of the file.
    Returns edges (T, h w, 4), float64, in pixels of the file, within the image and at least one pixel wide and high.
    """
    table = outputs.double().unflatten(0, (-1, 4)).permute(0, 2, 3, 1)  # (1 or K, h, w, 4)
    wanted = table.expand(len(classes), -1, -1, -1) if len(table) == 1 else table[torch.from_numpy(classes)]
    boxes = decode(wanted, frames.double()).flatten(1, 2).numpy()  # (T, h w, 4)
    (height, width), (full_height, full_width) = rescaled, image
    factors = np.array([full_width / width, full_height / height] * 2)
    return clip_to_image(boxes * factors, image)


def clip_to_image(boxes: NDArray[np.float64], image: Size) -> NDArray[np.float64]:
    """Clip boxes (..., 4) to an image, height and width, and make what is left at least one pixel wide and high.

    The right edge of a box may be left of its left one.
    """
    sides = np.array([image[1], image[0]], dtype=np.float64)
    first = np.clip(boxes[..., :2], 0, sides - 1)
    last = np.clip(boxes[..., 2:], first + 1, sides)
    return np.concatenate([first, last], axis=-1)


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
        convert_fields(self)
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

    `boxes`, `others` (..., 4) arrays of float: pixel edges; their leading axes are broadcast.
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

    All classes advance together, so that Python runs n steps, however many classes there are. Time and memory grow
    with the square of n.

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
    """
    if scores.shape[1] > settings.most:
        kept = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, : settings.most], axis=1)
        boxes, scores = np.take_along_axis(boxes, kept[..., None], axis=1), np.take_along_axis(scores, kept, axis=1)
    boxes, scores = boxes.astype(np.float64), np.maximum(scores.astype(np.float64), LEAST_SCORE)
    windows = np.ones(scores.shape, dtype=np.int64)  # 0 for a box that went into another.
    match = match_scores(boxes[:, :, None], boxes[:, None, :])  # (K, n, n)
    rows = np.arange(scores.shape[1])
    match[:, rows, rows] = np.inf
    least, mate = match.min(axis=2), match.argmin(axis=2)  # (K, n): of each box, its best match.
    k = np.arange(len(scores))  # Classes that may have a pair left.
    while len(k):
        first = least[k].argmin(axis=1)
        found = least[k, first] <= settings.threshold
        k, first = k[found], first[found]
        second = mate[k, first]
        # The second box of each pair goes into the first.
        weights = scores if settings.average == "score" else windows
        share = (weights[k, second] / (weights[k, first] + weights[k, second]))[:, None]
        boxes[k, first] = (1 - share) * boxes[k, first] + share * boxes[k, second]
        scores[k, first] += scores[k, second]
        windows[k, first] += windows[k, second]
        scores[k, second], windows[k, second] = -np.inf, 0
        _update_matches(k, first, second, boxes, windows, match, least, mate)
    each, best = np.arange(len(scores)), scores.argmax(axis=1)
    return Merged(boxes[each, best], scores[each, best], windows[each, best])


def _update_matches(
    k: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64], boxes: Boxes,
    windows: NDArray[np.int64], match: NDArray[np.float64], least: NDArray[np.float64], mate: NDArray[np.int64],
) -> None:  # fmt: skip
    """Compute the match scores of the merged box of each class again, in place."""
    each = np.arange(len(k))
    new = match_scores(boxes[k, first][:, None], boxes[k])
    new[windows[k] == 0] = np.inf
    new[each, first] = np.inf
    match[k, second] = match[k, :, second] = np.inf
    match[k, first] = match[k, :, first] = new
    # A pair that has become better is in the row of the merged box: the others keep a mate that is left.
    stale = (mate[k] == first[:, None]) | (mate[k] == second[:, None])
    stale[each, second] = True
    class_of, row = np.nonzero(stale)
    rows = match[k[class_of], row]
    least[k[class_of], row], mate[k[class_of], row] = rows.min(axis=1), rows.argmin(axis=1)
