"""How well boxes fit, by the rules of ILSVRC's official script.

N = images, G = guesses of an image, M, T = boxes. Boxes here are (xmin, ymin, xmax, ymax) in whole pixels, both
ends inclusive, so that a box of one pixel has xmax = xmin and the area 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.checks import check_unmasked
from vggfeat.errors import FitError

GUESSES = 5
"""Guesses that an image may have, each a label and a box."""
LEAST_OVERLAP = 0.5
"""Overlap from which on a box counts as right: the script takes 0.5 itself, though the paper says "above"."""


class Localised(NamedTuple):
    """What became of the guesses of N images."""

    error: float
    """Share of counted images without a right guess; NaN if no image counts."""
    wrong: NDArray[np.bool_]
    """(N, G) whether the label of a guess is wrong, or its box fits no object of the class, or it is no guess."""
    overlaps: NDArray[np.float64]
    """(N, G) best overlap of the box of a guess with an object of the true class, whatever the label; 0 for none."""
    counted: NDArray[np.bool_]
    """(N,) whether an image counts."""

    def error_at(self, guesses: int) -> float:
        """Return the error by the first guesses of each image only."""
        wrong = self.wrong[self.counted, :guesses]
        return float(wrong.all(axis=1).mean()) if len(wrong) else float("nan")


def inclusive_pixels(boxes: ArrayLike) -> NDArray[np.int64]:
    """Turn boxes of pixel edges, (..., 4) as in `vggfeat.samples.Box`, into the whole pixels of the official files.

    Returns (..., 4) int64: xmin, ymin, xmax, ymax, 1-based and inclusive. Every edge goes to the nearest pixel
    boundary, halves up, so that Box(xmin - 1, ymin - 1, xmax, ymax) comes back as it was; a box thinner than a pixel
    gets one. FitError if an edge is NaN or infinite.
    """
    check_unmasked("boxes", boxes)
    edges = np.asarray(boxes, dtype=np.float64)
    if edges.shape[-1:] != (4,) or not np.isfinite(edges).all():
        raise FitError(f"boxes: expected finite edges of shape (..., 4), found shape {edges.shape} or others")
    whole = np.floor(edges + 0.5).astype(np.int64)
    first = whole[..., :2] + 1
    return np.concatenate([first, np.maximum(whole[..., 2:], first)], axis=-1)


def box_overlap(boxes: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of boxes (M, 4) and (T, 4), with inclusive pixels: a side is xmax - xmin + 1.

    Each is xmin, ymin, xmax, ymax, with xmax >= xmin and ymax >= ymin. Returns (M, T) float64 from 0 to 1. FitError if
    a shape is another, or a box has no pixel. Source: `eval_clsloc.m` of ILSVRC's development kits.
    """
    one, other = (_checked(table) for table in (boxes, others))
    first = np.maximum(one[:, None, :2], other[None, :, :2])
    last = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.clip(last - first + 1, 0, None).prod(axis=2)
    areas = [(table[:, 2:] - table[:, :2] + 1).prod(axis=1) for table in (one, other)]
    return common / (areas[0][:, None] + areas[1][None, :] - common)


def localisation_error(
    targets: ArrayLike,
    objects: Sequence[ArrayLike],
    labels: ArrayLike,
    boxes: ArrayLike,
    *,
    counted: ArrayLike | None = None,
) -> Localised:
    """Share of images where no guess has both the right label and a box that fits an object of that class.

    The error of an image is the minimum over its guesses of max(label is wrong, overlap < 0.5), where the overlap is
    the best with any object of the true class; it is 1 where there is no guess.

    Parameters
    ----------
    targets : (N,) array of int
        The true class, from 0.
    objects : N arrays (T, 4)
        Boxes of the objects of the true class: inclusive pixels, T at least 1 where the image counts.
    labels : (N, G) array of int
        Classes that are guessed, best first; -1 = no guess. G is at most 5.
    boxes : (N, G, 4) array
        Their boxes in inclusive pixels; of no meaning where there is no guess.
    counted : (N,) array of bool, optional
        False for images on the blacklist, which are left out; by default all count.

    Returns
    -------
    Localised

    Raises
    ------
    FitError
        If shapes do not fit, there are more than five guesses, or an image that counts has no object.

    Notes
    -----
    Source: `eval_clsloc.m` of ILSVRC's development kits; VGG paper, Appendix A.
    """
    check_unmasked("localisation", targets, labels, boxes, counted)
    true, guessed, placed = np.asarray(targets), np.asarray(labels), np.asarray(boxes, dtype=np.float64)
    counts = np.ones(len(true), dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
    _check_guesses(true, objects, guessed, placed, counts)
    overlaps = np.zeros(guessed.shape)
    for row, found in enumerate(objects):
        given = np.flatnonzero(guessed[row] >= 0)
        if len(given) and len(np.asarray(found)):
            overlaps[row, given] = box_overlap(placed[row, given], found).max(axis=1)
    wrong = (guessed != true[:, None]) | (overlaps < LEAST_OVERLAP)
    result = Localised(float("nan"), wrong, overlaps, counts)
    return result._replace(error=result.error_at(GUESSES))


def _checked(boxes: ArrayLike) -> NDArray[np.float64]:
    check_unmasked("boxes", boxes)
    table = np.asarray(boxes, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != 4:
        raise FitError(f"boxes: expected an array (boxes, 4), found shape {table.shape}")
    if not (table[:, 2:] >= table[:, :2]).all():
        raise FitError("boxes: expected xmin <= xmax and ymin <= ymax, found a box without a pixel")
    return table


def _check_guesses(
    targets: NDArray[np.int64],
    objects: Sequence[ArrayLike],
    labels: NDArray[np.int64],
    boxes: NDArray[np.float64],
    counted: NDArray[np.bool_],
) -> None:
    images = len(objects)
    shapes = targets.shape == counted.shape == (images,) == labels.shape[:1] and boxes.shape == (*labels.shape, 4)
    if not shapes or labels.ndim != 2 or labels.shape[1] > GUESSES:
        raise FitError(
            f"localisation: expected at most {GUESSES} labels and boxes for each of {images} images, found labels "
            f"of shape {labels.shape}, boxes {boxes.shape}, targets {targets.shape}"
        )
    for row in np.flatnonzero(counted).tolist():
        if not len(np.asarray(objects[row])):
            raise FitError(f"localisation: expected a box of the true class in every image, found none in row {row}")
