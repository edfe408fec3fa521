"""The paired bootstrap, against resamples that are drawn row by row and against the binomial distribution."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from vggfeat.errors import ConfigError, FitError
from vggfeat.metrics import average_precision, bootstrap, class_recall, predict_classes
from vggfeat.metrics.bootstrap import BootstrapSettings, PairedScores, TestScores, bootstrap_interval, paired_bootstrap

ROWS, CLASSES = 40, 3


def make_test(seed=0, *, single=False, images=None):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((ROWS, CLASSES)) < 0.3, 1, -1).astype(np.int8)
    labels[rng.random((ROWS, CLASSES)) < 0.1] = 0
    if single:
        labels = np.where(rng.integers(CLASSES, size=ROWS)[:, None] == np.arange(CLASSES), 1, -1).astype(np.int8)
    # Few different scores, so that many are equal; and an image that failed.
    first, second = (labels + np.round(2 * rng.standard_normal((ROWS, CLASSES))) for _ in range(2))
    first[7], second[9] = -np.inf, -np.inf
    return PairedScores(images=images or [f"{row}" for row in range(ROWS)], labels=labels, first=first, second=second)


def value(labels, scores, measure):
    """Of each class, by the functions that results are made with, on rows that are really there once or more."""
    if measure == "recall":
        return class_recall(labels.argmax(axis=1), predict_classes(scores), CLASSES)
    if measure == "accuracy":
        return np.array([np.mean(labels.argmax(axis=1) == predict_classes(scores))])
    rule = measure.removeprefix("ap-")
    return np.array([average_precision(labels[:, k], scores[:, k], rule) for k in range(labels.shape[1])])


@pytest.mark.parametrize("measure", ["ap-11-point", "ap-area", "recall", "accuracy"])
@pytest.mark.parametrize("together", [False, True])
def test_each_resample_is_that_of_the_rows_drawn(measure, together, monkeypatch):
    images = [f"{row // 3}" for row in range(ROWS)] if together else None
    single = measure in ("recall", "accuracy")
    tests = [make_test(seed, single=single, images=images) for seed in (0, 1)]
    names = list(dict.fromkeys(tests[0].images))
    settings = BootstrapSettings(resamples=60, seed=5)
    drawn, draws = [], bootstrap._draws

    def spy(*arguments):
        for counts in draws(*arguments):
            drawn.extend(counts)
            yield counts

    monkeypatch.setattr(bootstrap, "_draws", spy)
    found = paired_bootstrap(tests, measure, settings)
    assert len(drawn) == 60
    means, per_class = [], []
    for counts in [np.ones(len(names)), *drawn]:
        assert counts.sum() == len(names)
        both = []
        for test in tests:
            times = [int(counts[names.index(image)]) for image in test.images]
            rows = np.repeat(np.arange(ROWS), times)
            both.append([value(test.labels[rows], scores[rows], measure) for scores in (test.first, test.second)])
        means.append(np.mean([np.nanmean(second) - np.nanmean(first) for first, second in both]))
        per_class.append(np.nanmean([second - first for first, second in both], axis=0))
    assert found.mean == pytest.approx(means[0], abs=1e-12)
    np.testing.assert_allclose(found.classes, per_class[0], atol=1e-6)
    np.testing.assert_allclose(found.interval, np.percentile(means[1:], [2.5, 97.5]), atol=1e-6)
    expected = np.nanpercentile(per_class[1:], [2.5, 97.5], axis=0).T
    np.testing.assert_allclose(found.class_intervals, expected, atol=1e-6)
    assert (found.images, found.settings) == (len(names), settings)


def test_an_interval_is_that_of_the_binomial_distribution():
    # Right on 30 of 100 images, and on none: the resampled differences are Binomial(100, 0.3) / 100.
    labels = np.tile(np.array([[1, -1]], np.int8), (100, 1))
    wrong = np.tile([[0.0, 1.0]], (100, 1))
    right = np.where(np.arange(100)[:, None] < 30, [[1.0, 0.0]], wrong)
    test = PairedScores(images=[f"{row}" for row in range(100)], labels=labels, first=wrong, second=right)
    found = paired_bootstrap([test], "accuracy", BootstrapSettings(resamples=20_000))
    assert found.mean == pytest.approx(0.3)
    np.testing.assert_allclose(found.interval, binom.ppf([0.025, 0.975], 100, 0.3) / 100, atol=0.011)
    narrow = paired_bootstrap([test], "accuracy", BootstrapSettings(resamples=20_000, level=0.5))
    np.testing.assert_allclose(narrow.interval, binom.ppf([0.25, 0.75], 100, 0.3) / 100, atol=0.011)


def test_every_image_is_drawn_as_often_as_any_other():
    counts = np.concatenate(list(bootstrap._draws(20, 20, BootstrapSettings(resamples=4000))))
    assert counts.shape == (4000, 20)
    assert (counts.sum(axis=1) == 20).all()
    # A count is Binomial(20, 1/20): mean 1, variance 0.95.
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=5 * np.sqrt(0.95 / 4000))
    np.testing.assert_allclose(counts.var(axis=0), 0.95, atol=0.15)


def test_equal_runs_do_not_differ_whatever_is_drawn():
    test = make_test()
    same = PairedScores(images=test.images, labels=test.labels, first=test.first, second=test.first)
    found = paired_bootstrap([same], "ap-area", BootstrapSettings(resamples=50))
    assert (found.mean, found.interval) == (0, (0, 0))


def test_the_seed_decides_and_the_size_of_blocks_does_not(monkeypatch):
    test = make_test()
    first = paired_bootstrap([test], "ap-area", BootstrapSettings(resamples=50))
    assert paired_bootstrap([test], "ap-area", BootstrapSettings(resamples=50)).interval == first.interval
    assert paired_bootstrap([test], "ap-area", BootstrapSettings(resamples=50, seed=1)).interval != first.interval
    monkeypatch.setattr(bootstrap, "BLOCK", 100)
    assert paired_bootstrap([test], "ap-area", BootstrapSettings(resamples=50)).interval == first.interval


def test_a_class_without_a_positive_has_no_value_and_does_not_count():
    test = make_test()
    labels = test.labels.copy()
    labels[:, 1] = -1
    bare = PairedScores(images=test.images, labels=labels, first=test.first, second=test.second)
    found = paired_bootstrap([bare], "ap-11-point", BootstrapSettings(resamples=50))
    assert np.isnan(found.classes).tolist() == [False, True, False]
    assert np.isnan(found.class_intervals[1]).all()
    assert found.mean == pytest.approx(np.nanmean(found.classes))


def test_what_is_refused():
    test = make_test()
    with pytest.raises(ConfigError, match="measure: expected one of ap-11-point"):
        paired_bootstrap([test], "ap")
    with pytest.raises(FitError, match="expected tested images to draw from, found none"):
        paired_bootstrap([], "ap-area")
    unknown = PairedScores(images=test.images, labels=test.labels, first=test.first * np.nan, second=test.second)
    with pytest.raises(FitError, match="found NaN"):
        paired_bootstrap([unknown], "ap-area")


# --- one result alone


def alone(test):
    return TestScores(images=test.images, labels=test.labels, scores=test.first)


@pytest.mark.parametrize("measure", ["ap-area", "recall"])
def test_an_interval_is_that_of_the_rows_drawn_corrected_for_its_bias(measure, monkeypatch):
    images = [f"{row // 3}" for row in range(ROWS)]
    tests = [make_test(seed, single=measure == "recall", images=images) for seed in (0, 1)]
    names, drawn, draws = list(dict.fromkeys(images)), [], bootstrap._draws
    monkeypatch.setattr(bootstrap, "_draws", lambda *words: [drawn.extend(one) or one for one in draws(*words)])
    found = bootstrap_interval([alone(test) for test in tests], measure, BootstrapSettings(resamples=200))

    def mean(counts):
        rows = np.repeat(np.arange(ROWS), [int(counts[names.index(image)]) for image in images])
        return np.mean([np.nanmean(value(test.labels[rows], test.first[rows], measure)) for test in tests])

    own, means = mean(np.ones(len(names))), np.array([mean(counts) for counts in drawn])
    bias = norm.ppf((means < own).mean() + (np.abs(means - own) < 1e-9).mean() / 2)
    expected = np.percentile(means, 100 * norm.cdf(2 * bias + norm.ppf([0.025, 0.975])))
    assert found.mean == pytest.approx(own, abs=1e-6)
    np.testing.assert_allclose([found.low, found.high], expected, atol=1e-3)
    assert found.images == len(names) == 14


def test_of_a_proportion_it_is_that_of_the_binomial_distribution():
    labels = np.tile(np.array([[1, -1]], np.int8), (100, 1))
    scores = np.where(np.arange(100)[:, None] < 30, [[1.0, 0.0]], [[0.0, 1.0]])
    test = TestScores(images=[f"{row}" for row in range(100)], labels=labels, scores=scores)
    found = bootstrap_interval([test], "accuracy", BootstrapSettings(resamples=20_000))
    np.testing.assert_allclose([found.low, found.high], binom.ppf([0.025, 0.975], 100, 0.3) / 100, atol=0.011)
    groups = TestScores(images=["right"] * 30 + ["wrong"] * 70, labels=labels, scores=scores)
    whole = bootstrap_interval([groups], "accuracy")
    assert (whole.low, whole.high, whole.images) == (0, 1, 2), "of two groups all resamples are far apart"


def test_a_test_that_a_resample_has_no_image_of_does_not_count_in_it():
    """Folds of one image each: their mean is the proportion of all, which is binomial; every resample lacks some."""
    labels, right = np.array([[1, -1]], np.int8), np.arange(30) % 3 > 0
    tests = [
        TestScores(images=[f"{row}"], labels=labels, scores=np.array([[1.0, 0.0] if hit else [0.0, 1.0]]))
        for row, hit in enumerate(right)
    ]
    found = bootstrap_interval(tests, "recall", BootstrapSettings(resamples=400))
    assert found.mean == pytest.approx(2 / 3)
    assert 0.3 < found.low < found.mean < found.high < 0.95


def test_what_is_always_right_has_no_width_and_what_has_no_value_no_ends():
    test = make_test()
    perfect = TestScores(images=test.images, labels=test.labels, scores=test.labels.astype(float))
    found = bootstrap_interval([perfect], "ap-area", BootstrapSettings(resamples=50))
    assert (found.mean, found.low, found.high) == (1, 1, 1)
    nothing = TestScores(images=test.images, labels=np.full_like(test.labels, -1), scores=test.first)
    found = bootstrap_interval([nothing], "ap-area", BootstrapSettings(resamples=50))
    assert np.isnan([found.mean, found.low, found.high]).all()
