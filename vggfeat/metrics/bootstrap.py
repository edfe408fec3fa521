"""How much of a result, or of a difference between two, may be chance of the test images: a bootstrap.

Images or groups of them, not rows, are drawn with replacement, and the same ones in both results and in all of their
tests (people of one image, or one image in the tests of several splits, stay together). What is left out: another
training set, another split, another seed. A test of which a resample has no image, and a class of which it has no
positive, have no value in it: its mean is over the others. m = rows of a test, K = classes, P = images or groups, B =
resamples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_choice, convert_fields, whole_number
from vggfeat.errors import FitError
from vggfeat.metrics import predict_classes
from vggfeat.metrics.classes import THRESHOLDS

Measure = Literal["ap-11-point", "ap-area", "recall", "accuracy"]
Values = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Times that each row was drawn (b, m) -> value of each class (b, K)."""

BLOCK = 1 << 20
"""Rows, drawn or not, that are counted at a time."""


@dataclass(frozen=True, kw_only=True)
class BootstrapSettings:
    """How images are drawn and intervals are read off."""

    resamples: int = 1000
    """Enough for the ends of a 95 % interval to a tenth of its width."""
    seed: int = 0
    level: float = 0.95
    """Level of the interval, which lies between two percentiles of the differences."""

    def __post_init__(self) -> None:
        convert_fields(self)
        whole_number("resamples", self.resamples, 1)
        whole_number("seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedScores:
    """The scores of one test by two results, row by row of the same samples."""

    images: Sequence[str]
    """m names; rows of one image have the same."""
    labels: NDArray[np.int8]
    """(m, K) of 1, -1, 0."""
    first: NDArray[np.float64]
    """(m, K) scores; -inf where an image failed."""
    second: NDArray[np.float64]
    """(m, K)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class TestScores:
    """The scores of one test, row by row."""

    __test__ = False  # pytest takes the name for one of a test.

    images: Sequence[str]
    """m names; rows of one image, or of one group, have the same."""
    labels: NDArray[np.int8]
    """(m, K) of 1, -1, 0."""
    scores: NDArray[np.float64]
    """(m, K) scores; -inf where an image failed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Interval:
    """Where a result lies, from 0 to 1."""

    mean: float
    """Mean of the measure as in the headline: over classes, then over tests."""
    low: float
    """NaN, as `high`, where no resample has a value."""
    high: float
    settings: BootstrapSettings
    images: int
    """P."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Difference:
    """The second result minus the first, each value from -1 to 1."""

    mean: float
    """Mean of the measure as in the headline: over classes, then over tests."""
    interval: tuple[float, float]
    classes: NDArray[np.float64]
    """(K,) NaN where one of the two has no value."""
    class_intervals: NDArray[np.float64]
    """(K, 2)"""
    settings: BootstrapSettings
    images: int
    """P."""


def paired_bootstrap(
    tests: Sequence[PairedScores], measure: Measure, settings: BootstrapSettings = BootstrapSettings()
) -> Difference:
    """Compare two results of the same tests.

    Parameters
    ----------
    tests : sequence of PairedScores
        One, or one for each split or fold.
    measure : "ap-11-point", "ap-area", "recall" or "accuracy"
        By which both are measured, as `vggfeat.metrics` does; accuracy has no value for single classes.
    settings : BootstrapSettings, optional

    Returns
    -------
    Difference
        Its interval is that between percentiles of the resampled differences (Efron's percentile interval).

    Raises
    ------
    FitError
        If there is no test or no image, or a score is NaN.
    ConfigError
        If there is no such measure.
    """
    names, places = _places(tests, measure)
    pairs = [tuple(_values(test.labels, scores, measure) for scores in (test.first, test.second)) for test in tests]

    def difference(counts: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        taken = [counts[:, place] for place in places]
        both = [[value(rows) for value in pair] for pair, rows in zip(pairs, taken, strict=True)]
        means = np.array([_nanmean(second) - _nanmean(first) for first, second in both])  # (tests, b)
        return means, _nanmean(np.array([second - first for first, second in both]), axis=0)

    own_means, own_classes = difference(np.ones((1, len(names)), np.float32))
    drawn = [difference(counts) for counts in _draws(len(names), sum(map(len, places)), settings)]
    ends = _ends(settings)
    means = np.concatenate([_nanmean(each, axis=0) for each, _ in drawn])
    classes = np.concatenate([per_class for _, per_class in drawn])
    low, high = _percentiles(means[:, None], ends)[0].tolist()
    return Difference(
        mean=float(_nanmean(own_means, axis=0)[0]),
        interval=(low, high),
        classes=own_classes[0],
        class_intervals=_percentiles(classes, ends),
        settings=settings,
        images=len(names),
    )


def bootstrap_interval(
    tests: Sequence[TestScores], measure: Measure, settings: BootstrapSettings = BootstrapSettings()
) -> Interval:
    """Say where a result may lie by chance of its test images.

    `tests`: the scores of one run; the rest is as for `paired_bootstrap`.

    The interval is that between percentiles of the resampled results, corrected for their bias (Efron's bias-corrected
    percentile interval): average precision is higher where images occur more than once. In a difference that cancels
    out.
    """
    names, places = _places(tests, measure)
    values = [_values(test.labels, test.scores, measure) for test in tests]

    def results(counts: NDArray[np.float32]) -> NDArray[np.float64]:
        """(b, P) counts become (tests, b) results."""
        return np.array([_nanmean(value(counts[:, place])) for value, place in zip(values, places, strict=True)])

    own = float(_nanmean(results(np.ones((1, len(names)), np.float32)), axis=0)[0])
    draws = _draws(len(names), sum(map(len, places)), settings)
    drawn = np.concatenate([_nanmean(results(counts), axis=0) for counts in draws])
    low, high = _percentiles(drawn[:, None], _unbiased_ends(own, drawn, settings))[0].tolist()
    return Interval(mean=own, low=low, high=high, settings=settings, images=len(names))


def _places(
    tests: Sequence[PairedScores] | Sequence[TestScores], measure: Measure
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Return the P names of all tests, and which of them each row of a test has."""
    check_choice("measure", measure, get_args(Measure))
    names = list(dict.fromkeys(name for test in tests for name in test.images))
    if not names:
        raise FitError("bootstrap: expected tested images to draw from, found none")
    number = {name: place for place, name in enumerate(names)}
    return names, [np.array([number[name] for name in test.images]) for test in tests]


def _ends(settings: BootstrapSettings) -> tuple[float, float]:
    return 50 - 50 * settings.level, 50 + 50 * settings.level


def _unbiased_ends(own: float, drawn: NDArray[np.float64], settings: BootstrapSettings) -> tuple[float, float]:
    """Return the percentiles that `_ends` become where resamples lie on one side of the value that they are of."""
    known = drawn[~np.isnan(drawn)]
    if not len(known) or np.isnan(own):
        return _ends(settings)
    # Rounded, so that values which differ by the order of a summation count as equal.
    below = (np.sign(np.round(own - known, 9)) + 1).mean() / 2
    normal, least = NormalDist(), 1 / (len(known) + 1)
    bias = normal.inv_cdf(min(max(below, least), 1 - least))
    low, high = (100 * normal.cdf(2 * bias + normal.inv_cdf(end / 100)) for end in _ends(settings))
    return low, high


def _draws(images: int, rows: int, settings: BootstrapSettings) -> Iterator[NDArray[np.float32]]:
    """Yield how often each image is drawn, (b, P), some resamples at a time."""
    rng = np.random.default_rng(settings.seed)
    step = max(1, BLOCK // max(images, rows))
    for start in range(0, settings.resamples, step):
        size = min(step, settings.resamples - start)
        drawn = rng.integers(images, size=(size, images)) + images * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images).astype(np.float32)


def _values(labels: NDArray[np.int8], scores: NDArray[np.float64], measure: Measure) -> Values:
    if np.isnan(scores).any():
        raise FitError("bootstrap: expected scores to rank by (-inf ranks last), found NaN")
    if measure in ("recall", "accuracy"):
        targets = labels.argmax(axis=1)
        return _recall(targets, targets == predict_classes(scores), labels.shape[1], measure == "accuracy")
    ranked = [_Ranked(labels[:, k], scores[:, k], measure == "ap-area") for k in range(labels.shape[1])]
    return lambda rows: np.stack([one(rows) for one in ranked], axis=1)


def _recall(targets: NDArray[np.int64], right: NDArray[np.bool_], count: int, together: bool) -> Values:
    member = np.ones((len(targets), 1)) if together else targets[:, None] == np.arange(count)
    samples, hits = member.astype(np.float32), (member * right[:, None]).astype(np.float32)

    def value(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return (rows @ hits).astype(np.float64) / (rows @ samples)

    return value


class _Ranked:
    """One class of one result, ranked once; precision is computed only where it can be highest, at the positives."""

    def __init__(self, labels: NDArray[np.int8], scores: NDArray[np.float64], area: bool) -> None:
        order = np.argsort(-scores, kind="stable")
        signs = labels[order]
        self.area, self.positives, self.negatives = area, order[signs == 1], order[signs == -1]
        self.before = np.cumsum(signs == -1)[signs == 1]
        """Negatives that rank before each positive."""

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        if not len(self.positives):
            return np.full(len(rows), np.nan)
        weights = rows[:, self.positives]
        # Counts below 2**24 are exact in float32.
        hits = np.cumsum(weights, axis=1)
        alarms = np.zeros((len(rows), len(self.negatives) + 1), np.float32)
        np.cumsum(rows[:, self.negatives], axis=1, out=alarms[:, 1:])
        found = hits + alarms[:, self.before]
        precision = np.divide(hits, found, out=np.zeros(hits.shape), where=found > 0, dtype=np.float64)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        total = hits[:, -1].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = self._area(weights, best, total) if self.area else self._eleven_points(hits, best, total)
        return np.where(total > 0, value, np.nan)

    def _area(self, weights: Any, best: Any, total: Any) -> NDArray[np.float64]:
        return np.einsum("bp,bp->b", weights, best) / total

    def _eleven_points(self, hits: Any, best: Any, total: Any) -> NDArray[np.float64]:
        recall = hits.astype(np.float64) / total[:, None]
        best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
        reached = [best[np.arange(len(best)), (recall < threshold).sum(axis=1)] for threshold in THRESHOLDS]
        return np.sum(reached, axis=0) / len(THRESHOLDS)


def _nanmean(values: NDArray[np.float64], axis: int = 1) -> NDArray[np.float64]:
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(axis=axis) / there.sum(axis=axis)


def _percentiles(values: NDArray[np.float64], ends: tuple[float, float]) -> NDArray[np.float64]:
    """(B, K) values become (K, 2) percentiles of those that are numbers."""
    found = np.full((values.shape[1], 2), np.nan)
    for k, column in enumerate(values.T):
        defined = column[~np.isnan(column)]
        if len(defined):
            found[k] = np.percentile(defined, ends)
    return found
