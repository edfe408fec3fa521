"""Errors of class posteriors: over all images, class by class, and which classes are taken for which.

N = images, K = classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggfeat.classification.fuse import Fused
from vggfeat.errors import FitError
from vggfeat.metrics import GUESSES, confusion, top_k_error


@dataclass(frozen=True, kw_only=True)
class ClassErrors:
    """What became of the images of one class."""

    name: str
    images: int
    failed: int
    """Images that could not be read; they count as wrong."""
    top1_error: float
    """From 0 to 1; NaN where there is no image of the class."""
    top5_error: float
    """The same with five guesses."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Errors on a set of images; failed images count as wrong."""

    top1_error: float
    """Share of images whose true class is not the best guess, from 0 to 1."""
    top5_error: float
    """Share of images whose true class is not among the five best guesses, from 0 to 1."""
    classes: tuple[ClassErrors, ...]
    """K, in the order of the columns."""
    confusion: NDArray[np.int64]
    """(K, K) images; row = true class, column = best guess. Failed images stand in no cell."""

    def pairs(self) -> list[tuple[int, int, int]]:
        """Return (true class, guessed class, images) of every confusion that occurs, the commonest first.

        Of equal ones, that of the lower true class comes first, then that of the lower guess.
        """
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        true, guessed = np.nonzero(wrong)
        order = np.argsort(-wrong[true, guessed], kind="stable")
        return [(int(true[n]), int(guessed[n]), int(wrong[true[n], guessed[n]])) for n in order]


def evaluate(fused: Fused) -> Evaluation:
    """Compute the errors of fused posteriors.

    Parameters
    ----------
    fused : Fused

    Returns
    -------
    Evaluation

    Raises
    ------
    FitError
        If an image has no true class.

    Notes
    -----
    The flat error of ILSVRC's `eval_clsloc.m` over all images; its blacklist is for localisation alone.
    """
    if (fused.targets < 0).any():
        name = fused.ids[int(np.argmin(fused.targets))]
        raise FitError(f"errors: expected a true class for every image, found none for {name}")
    missed: NDArray[np.int64] = np.zeros((len(fused.classes), 2), dtype=np.int64)
    classes = []
    ok = fused.ok
    for k, name in enumerate(fused.classes):
        # Class by class, so that no table of double precision of all images is made.
        rows = np.flatnonzero(fused.targets == k)
        errors = [top_k_error(fused.targets[rows], fused.posteriors[rows], guesses) for guesses in (1, GUESSES)]
        missed[k] = [round(error * len(rows)) if len(rows) else 0 for error in errors]
        classes.append(
            ClassErrors(
                name=name,
                images=len(rows),
                failed=int((~ok[rows]).sum()),
                top1_error=errors[0],
                top5_error=errors[1],
            )
        )
    top1, top5 = (missed.sum(axis=0) / len(fused.ids)).tolist()
    return Evaluation(
        top1_error=top1,
        top5_error=top5,
        classes=tuple(classes),
        confusion=confusion(fused.targets, fused.top(1)[:, 0], len(fused.classes)),
    )
