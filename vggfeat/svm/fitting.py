"""Fits on rows that are used once.

n = training rows, m = rows to score, D = length of a descriptor, K = classes, G = values of C.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.errors import FitError
from vggfeat.svm.checks import check_descriptors
from vggfeat.svm.model import LinearModel, Sweep
from vggfeat.svm.rows import Split, SvmProblemSet
from vggfeat.svm.settings import Progress, SvmSettings


def fit_one_vs_rest(
    descriptors: NDArray[np.floating],
    labels: ArrayLike,
    C: float | ArrayLike,  # noqa: N803
    settings: SvmSettings | None = None,
    *,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> LinearModel:
    """Fit one linear SVM a class.

    Parameters
    ----------
    descriptors : (n, D) float32 or float64
    labels : (n, K) array of 1, -1 or 0
        0 = the row takes no part for this class.
    C : float or (K,) array of float
        Cost of an error, above 0; for all classes or for each.
    settings : SvmSettings, optional
    classes : K names, optional
        For messages; numbers otherwise.
    progress : callable, optional
        See `Progress`.

    Returns
    -------
    LinearModel
        A class whose solver gave up is marked in `converged`; there is no warning.

    Raises
    ------
    FitError
        If shapes don't fit, a number is not finite, or a class has no positive or no negative row.
    ConfigError
        If a C is not above 0.
    """
    shared = SvmProblemSet(descriptors, settings)
    rows = np.arange(len(np.asarray(descriptors)))
    return shared.fit(rows, labels, C, classes=classes, progress=progress)


def scores_over_C(  # noqa: N802
    descriptors: NDArray[np.floating],
    labels: ArrayLike,
    held_out: NDArray[np.floating],
    grid: ArrayLike,
    settings: SvmSettings | None = None,
    *,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Fit every class with every value of C and score other rows: what a choice of C is made by.

    Parameters
    ----------
    descriptors : (n, D) float32 or float64
    labels : (n, K) array of 1, -1 or 0
        0 = the row takes no part for this class.
    held_out : (m, D) float32 or float64
        Rows to score; they take no part in the fit.
    grid : (G,) array of float
        Values of C, above 0.
    settings, classes, progress
        As for `fit_one_vs_rest`.

    Returns
    -------
    Sweep

    Raises
    ------
    FitError, ConfigError
        As `fit_one_vs_rest`.
    """
    x, other = check_descriptors(descriptors, "to train on"), check_descriptors(held_out, "held out")
    if other.shape[1] != x.shape[1]:
        raise FitError(f"descriptors held out: expected length {x.shape[1]}, found {other.shape[1]}")
    shared = SvmProblemSet(np.concatenate([x, other]), settings)
    part = Split(rows=np.arange(len(x)), labels=np.asarray(labels), held_out=np.arange(len(x), len(x) + len(other)))
    return shared.sweep([part], grid, classes=classes, progress=progress)[0]
