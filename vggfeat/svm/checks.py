"""What is refused before a fit, and the weights of the rows.

n = rows, K = classes, D = length of a descriptor.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggfeat.errors import ConfigError, FitError
from vggfeat.svm.settings import ClassWeight

LARGEST_C = 1e100
"""So that squares of what is proportional to C are numbers."""


def fittable_classes(labels: ArrayLike) -> NDArray[np.bool_]:
    """Say for labels (n, K) of 1, -1, 0 which of the K classes have both a positive and a negative row."""
    signs = np.asarray(labels)
    return (signs == 1).any(axis=0) & (signs == -1).any(axis=0)


def check_costs(C: float | ArrayLike) -> NDArray[np.float64]:  # noqa: N803
    """Return values of C as float64; ConfigError if there is none, or one is not above 0 and at most `LARGEST_C`."""
    costs = np.asarray(C, dtype=np.float64)
    if not costs.size or not ((costs > 0) & (costs <= LARGEST_C)).all():
        raise ConfigError(f"C: expected finite numbers above 0, at most {LARGEST_C:g}, found {costs.tolist()}")
    return costs


def check_labels(labels: ArrayLike, rows: int, classes: Sequence[str] | None) -> NDArray[np.int8]:
    """Return labels (n, K) of 1, -1 or 0 as int8.

    Raises
    ------
    FitError
        If the shape is another, there are other labels, or a class has no positive or no negative row.
    """
    signs = np.asarray(labels)
    if signs.ndim != 2 or len(signs) != rows or not signs.shape[1]:
        raise FitError(f"SVM: expected labels of shape ({rows}, classes), found {signs.shape}")
    if classes is not None and len(classes) != signs.shape[1]:
        raise FitError(f"SVM: expected {signs.shape[1]} class names, found {len(classes)}")
    if not np.isin(signs, (1, -1, 0)).all():
        raise FitError(f"SVM: expected labels 1, -1 or 0, found {np.unique(signs)[:5].tolist()}")
    for k in np.flatnonzero(~fittable_classes(signs)).tolist():
        positives, negatives = int((signs[:, k] == 1).sum()), int((signs[:, k] == -1).sum())
        raise FitError(
            f"SVM of class {classes[k] if classes is not None else k}: expected positive and negative rows to "
            f"train on, found {positives} positive and {negatives} negative"
        )
    return signs.astype(np.int8)


def check_descriptors(descriptors: NDArray[np.floating], what: str) -> NDArray[np.floating]:
    """Return descriptors (n, D) as an array; FitError if they are of another kind or not finite."""
    x = np.asarray(descriptors)
    if x.ndim != 2 or not x.shape[1] or not np.issubdtype(x.dtype, np.floating):
        raise FitError(f"descriptors {what}: expected numbers of shape (rows, length), found {x.dtype} {x.shape}")
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise FitError(f"descriptors {what}: expected finite numbers, found others in row {row}")
    return x


def check_rows(rows: ArrayLike, count: int, what: str, *, once: bool = False) -> NDArray[np.int64]:
    """Return numbers of rows of a table of `count`; FitError if they are of another kind, or one comes twice."""
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (numbers.size and not np.issubdtype(numbers.dtype, np.integer)):
        raise FitError(f"rows {what}: expected a list of row numbers, found {numbers.dtype} {numbers.shape}")
    for number in numbers[(numbers < 0) | (numbers >= count)][:1]:
        raise FitError(f"rows {what}: expected numbers from 0 to {count - 1}, found {number}")
    if once and len(np.unique(numbers)) < len(numbers):
        raise FitError(f"rows {what}: expected each once, found one twice; give it a weight instead")
    return numbers.astype(np.int64)


def check_weights(weights: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return weights (n,) or (n, K) of rows as (n, 1) or (n, K); FitError if one is negative or not finite."""
    given = np.asarray(weights, dtype=np.float64)
    if given.shape not in (shape, shape[:1]):
        raise FitError(f"weights: expected the shape {shape[:1]} or {shape}, found {given.shape}")
    if not (np.isfinite(given) & (given >= 0)).all():
        raise FitError("weights: expected finite numbers that are not negative, found others")
    return given[:, None] if given.ndim == 1 else given


def row_weights(signs: NDArray[np.int8], class_weight: ClassWeight) -> NDArray[np.float64]:
    """Return what each row counts in each class, (n, K) for signs (n, K): 0 where it takes no part."""
    taking_part = np.abs(signs).astype(np.float64)
    if class_weight == "none":
        return taking_part
    positives, negatives = (signs == 1).sum(axis=0), (signs == -1).sum(axis=0)
    return taking_part * (positives + negatives) / (2 * np.where(signs == 1, positives, negatives))
