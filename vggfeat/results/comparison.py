"""Two runs side by side: what differs, and by how much more than chance; and what a run takes for what.

m = rows of a test, K = classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from vggfeat.metrics.bootstrap import BootstrapSettings, Difference, PairedScores, paired_bootstrap
from vggfeat.results.reading import Scores, SvmRun

ALL_PAIRS = 4
"""Up to so many runs each is compared with each, beyond that with the first."""
LARGEST_MATRIX = 30
"""Classes up to which the whole matrix is shown."""
MOST_PAIRS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class RunPair:
    """The second run minus the first."""

    first: int
    """Number of the run, from 0."""
    second: int
    difference: Difference | None
    """None where the two can't be compared image by image."""
    reason: str
    """Why not; empty if there is a difference."""


def compare_runs(
    runs: Sequence[SvmRun], settings: BootstrapSettings, progress: Callable[[int, int], None] | None = None
) -> list[RunPair]:
    """Compare runs of the same classes and measure, each pair by the same resamples."""
    pairs = list(combinations(range(len(runs)), 2))
    if len(runs) > ALL_PAIRS:
        pairs = [pair for pair in pairs if pair[0] == 0]
    found = []
    for done, (first, second) in enumerate(pairs):
        if progress is not None:
            progress(done, len(pairs))
        found.append(_compare(runs, first, second, settings))
    return found


def _compare(runs: Sequence[SvmRun], first: int, second: int, settings: BootstrapSettings) -> RunPair:
    tests = _paired(runs[first], runs[second])
    if isinstance(tests, str):
        return RunPair(first=first, second=second, difference=None, reason=tests)
    measure = runs[first].metric
    difference = paired_bootstrap(tests, measure, settings)  # type: ignore[arg-type]  # checked there
    return RunPair(first=first, second=second, difference=difference, reason="")


def _paired(first: SvmRun, second: SvmRun) -> list[PairedScores] | str:
    """Match the rows of two runs by id, or say why that can't be done."""
    if not first.tests or not second.tests:
        return "the scores of one of them are missing (scores.npz)"
    if len(first.tests) != len(second.tests):
        return f"{len(first.tests)} and {len(second.tests)} tests"
    tests = []
    for mine, yours in zip(first.tests, second.tests, strict=True):
        place = {name: row for row, name in enumerate(yours.ids)}
        alone = next((name for name in mine.ids if name not in place), None)
        if alone is not None or len(place) != len(mine.ids):
            return "they were tested on other samples"
        order = np.array([place[name] for name in mine.ids], dtype=np.int64)
        if (mine.labels != yours.labels[order]).any():
            return "the labels of the same samples differ, or were read in another way (difficult ones)"
        tests.append(_test(mine, yours, order))
    return tests


def _test(mine: Scores, yours: Scores, order: np.ndarray) -> PairedScores:
    return PairedScores(images=mine.images, labels=mine.labels, first=mine.scores, second=yours.scores[order])


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
