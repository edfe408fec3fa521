"""What a single-label run takes for what.

K = classes.
"""

from dataclasses import dataclass

import numpy as np

from vggfeat.results.reading import SvmRun

LARGEST_MATRIX = 30
"""Classes up to which the whole matrix is shown."""
MOST_PAIRS = 20


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Images of one class that were taken for another."""

    true: str
    predicted: str
    count: int
    share: float
    """Of all predictions for the true class."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A confusion matrix."""

    classes: tuple[str, ...]
    """K names."""
    rows: tuple[tuple[float, ...], ...]
    """(K, K) shares of each true class; empty with more than `LARGEST_MATRIX` classes."""
    pairs: tuple[Pair, ...]
    """The most frequent mistakes, the commonest first."""
    mistakes: int
    """All of them."""
    tested: int
    """All predictions, right or wrong; with several tests, those of all of them."""


def confusion_of(run: SvmRun) -> Confusion | None:
    """Read the confusion of a run; None for multi-label sets."""
    if not run.results.get("confusion"):
        return None
    counts = np.array(run.results["confusion"], dtype=np.float64)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    wrong = counts * (1 - np.eye(len(counts)))
    order = np.argsort(-wrong.ravel(), kind="stable")[:MOST_PAIRS]
    pairs = [
        Pair(true=run.classes[i], predicted=run.classes[j], count=int(wrong[i, j]), share=float(shares[i, j]))
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j] > 0
    ]
    small = len(counts) <= LARGEST_MATRIX
    return Confusion(
        classes=run.classes,
        rows=tuple(map(tuple, shares.tolist())) if small else (),
        pairs=tuple(pairs),
        mistakes=int(wrong.sum()),
        tested=int(counts.sum()),
    )
