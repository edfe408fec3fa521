"""Two runs side by side: what differs, and by how much more than chance of the test images.

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
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
) -> list[Comparison]:
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


def _compare(runs: Sequence[SvmRun], first: int, second: int, settings: BootstrapSettings) -> Comparison:
    tests = _paired(runs[first], runs[second])
    if isinstance(tests, str):
        return Comparison(first=first, second=second, difference=None, reason=tests)
    measure = runs[first].metric
    difference = paired_bootstrap(tests, measure, settings)  # type: ignore[arg-type]  # checked there
    return Comparison(first=first, second=second, difference=difference, reason="")


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
