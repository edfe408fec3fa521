"""Recall, confusion and top-k error against values counted by hand and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, recall_score, top_k_accuracy_score

from vggfeat.errors import ConfigError, FitError
from vggfeat.metrics import class_recall, confusion, mean_class_recall, predict_classes, top_k_error

# --- recall of classes


def test_mean_class_recall_weighs_classes_not_samples():
    # Class 0: 3 of 4 right; class 1: 0 of 1.
    targets, predictions = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 0])
    np.testing.assert_array_equal(class_recall(targets, predictions, 2), [0.75, 0])
    assert mean_class_recall(targets, predictions, 2) == pytest.approx(0.375)


def test_a_class_that_is_only_predicted_adds_nothing():
    # Class 0: 1 of 2 right, class 1: 1 of 1; class 2 has no sample.
    targets, predictions = np.array([0, 0, 1]), np.array([0, 2, 1])
    assert mean_class_recall(targets, predictions, 3) == pytest.approx(0.75)
    with pytest.warns(UserWarning, match="not in y_true"):
        assert balanced_accuracy_score(targets, predictions) == pytest.approx(0.75)
    macro = recall_score(targets, predictions, average="macro", zero_division=0)
    assert macro == pytest.approx(0.5)


def test_no_prediction_is_a_wrong_prediction():
    targets = np.array([0, 0, 1, 1])
    assert mean_class_recall(targets, np.array([0, -1, -1, -1]), 2) == pytest.approx(1 / 4)
    np.testing.assert_array_equal(confusion(targets, np.array([0, -1, -1, 0]), 2), [[1, 0], [1, 0]])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_equals_balanced_accuracy_where_every_class_occurs(seed, num_classes):
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, 30)])
    predictions = rng.integers(0, num_classes, len(targets))
    value = mean_class_recall(targets, predictions, num_classes)
    assert value == pytest.approx(balanced_accuracy_score(targets, predictions))
    counts = confusion(targets, predictions, num_classes)
    assert value == pytest.approx(np.mean(np.diag(counts) / counts.sum(axis=1)))


def test_confusion_has_true_classes_in_rows():
    np.testing.assert_array_equal(
        confusion(np.array([0, 0, 0, 2]), np.array([1, 1, 0, 1]), 3), [[1, 2, 0], [0, 0, 0], [0, 1, 0]]
    )


def test_no_sample_gives_no_value():
    empty = np.array([], dtype=int)
    assert math.isnan(mean_class_recall(empty, empty, 3))
    assert math.isnan(top_k_error(empty, np.zeros((0, 3)), 1))
    assert confusion(empty, empty, 2).sum() == 0


@pytest.mark.parametrize(
    ("targets", "predictions", "words"),
    [
        ([0, 3], [0, 0], "targets from 0 to 2, found 0 to 3"),
        ([0, -1], [0, 0], "targets from 0 to 2, found -1 to 0"),
        ([0, 1], [0, -2], "predictions from -1 to 2"),
        ([0, 1], [0], "prediction for every target"),
        ([0.0, 1.0], [0, 1], "whole numbers"),
    ],
)
def test_recall_refuses_what_is_no_class(targets, predictions, words):
    with pytest.raises(FitError, match=words):
        mean_class_recall(targets, predictions, 3)


# --- scores


def test_predictions_take_the_first_of_equal_scores_and_none_without_a_score():
    scores = [[1, 3, 3], [-np.inf, -np.inf, -9], [-np.inf] * 3]
    np.testing.assert_array_equal(predict_classes(scores), [1, 2, -1])


def test_top_k_error_counts_missed_samples():
    scores = [[5, 4, 3], [5, 4, 3], [5, 4, 3], [3, 4, 5]]
    targets = [0, 1, 2, 2]
    assert top_k_error(targets, scores, 1) == pytest.approx(2 / 4)
    assert top_k_error(targets, scores, 2) == pytest.approx(1 / 4)
    assert top_k_error(targets, scores, 3) == 0
    assert top_k_error(targets, scores, 5) == 0


def test_top_k_error_of_a_constant_net_is_that_of_guessing():
    targets = np.arange(10)
    for k in (1, 3, 5):
        assert top_k_error(targets, np.zeros((10, 10)), k) == pytest.approx(1 - k / 10)


def test_top_k_error_never_guesses_what_has_no_score():
    assert top_k_error([0, 1], [[-np.inf, 1], [-np.inf, -np.inf]], 2) == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_top_k_error_equals_sklearns_where_no_scores_are_equal(seed, k):
    rng = np.random.default_rng(seed)
    targets, scores = rng.integers(0, 6, 40), rng.standard_normal((40, 6))
    expected = 1 - top_k_accuracy_score(targets, scores, k=k, labels=np.arange(6))
    assert top_k_error(targets, scores, k) == pytest.approx(expected)


def test_scores_are_checked():
    with pytest.raises(FitError, match="found NaN"):
        predict_classes([[0, np.nan]])
    with pytest.raises(FitError, match="samples, classes"):
        predict_classes([0, 1])
    with pytest.raises(ConfigError, match="at least 1, found 0"):
        top_k_error([0], [[1, 2]], 0)
