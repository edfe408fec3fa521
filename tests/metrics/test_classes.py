"""Recall, top-k error and average precision against hand counts, scikit-learn, and the development kits' rules."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, recall_score, top_k_accuracy_score

from vggfeat.errors import ConfigError, FitError
from vggfeat.metrics import (
    average_precision,
    class_recall,
    confusion,
    mean_class_recall,
    precision_recall,
    predict_classes,
    top_k_error,
)

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


@pytest.mark.parametrize(("targets", "predictions", "words"), [
    ([0, 3], [0, 0], "targets from 0 to 2, found 0 to 3"),
    ([0, -1], [0, 0], "targets from 0 to 2, found -1 to 0"),
    ([0, 1], [0, -2], "predictions from -1 to 2"),
    ([0, 1], [0], "prediction for every target"),
    ([0.0, 1.0], [0, 1], "whole numbers"),
])  # fmt: skip
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
    with pytest.raises(ConfigError, match="k: expected a whole number from 1, found 0"):
        top_k_error([0], [[1, 2]], 0)


def ranked(signs):
    """Labels from "+-0" in order of rank, and scores that rank them so."""
    return [{"+": 1, "-": -1, "0": 0}[sign] for sign in signs], -np.arange(len(signs), dtype=float)


# --- average precision by hand


def test_both_rules_on_a_list_of_four():
    # + - + -: precision at the hits 1/1 and 2/3.
    labels, scores = ranked("+-+-")
    assert average_precision(labels, scores, "area") == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert average_precision(labels, scores, "11-point") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_truth_values_are_refused_as_false_would_be_ignored():
    for labels in ([True, False], np.array([False, False]), [np.True_, np.False_]):
        with pytest.raises(FitError, match=r"expected labels 1, -1 or 0, found bool; give np.where"):
            average_precision(labels, [1.0, 2.0])


def test_eleven_points_is_the_default():
    labels, scores = ranked("+-+-")
    assert average_precision(labels, scores) == average_precision(labels, scores, "11-point")


def test_official_example_of_the_action_kit():
    # Hits at ranks 2, 3, 5 of 5: precision 1/2, 2/3, 3/5; the first is lifted to 2/3.
    value = average_precision([1, -1, 1, -1, 1], [0.9, 0.95, 0.4, 0.3, 0.2], "area")
    assert value == pytest.approx(0.6444444444, abs=1e-10)
    assert value == pytest.approx((2 / 3 + 2 / 3 + 3 / 5) / 3)


def test_eleven_points_keep_the_rounding_of_the_kits_thresholds():
    # Ten positives: recalls of exactly 3/10, 6/10, 7/10 fall below thresholds of 0.30000000000000004 and so on.
    labels, scores = ranked("+++-++++-++-+")
    precision = [Fraction(1)] * 3 + [Fraction(7, 8)] * 4 + [Fraction(9, 11)] * 2 + [Fraction(10, 13)]
    exact = (precision[0] + sum(precision)) / 11
    assert float(exact) == pytest.approx(0.9005086, abs=5e-8)
    trapped = exact - (precision[2] - precision[3] + precision[5] - precision[6] + precision[6] - precision[7]) / 11
    assert average_precision(labels, scores, "11-point") == pytest.approx(float(trapped), abs=1e-12)
    assert average_precision(labels, scores, "11-point") == pytest.approx(0.8839797, abs=5e-8)
    assert average_precision(labels, scores, "area") == pytest.approx(float(sum(precision) / 10))


@pytest.mark.parametrize("rule", ["11-point", "area"])
def test_bounds(rule):
    assert average_precision(*ranked("+++--"), rule) == 1
    assert average_precision(*ranked("---+"), rule) == pytest.approx(1 / 4)
    assert average_precision(*ranked("++"), rule) == 1


@pytest.mark.parametrize("rule", ["11-point", "area"])
def test_equal_scores_keep_the_order_of_the_rows(rule):
    assert average_precision([1, -1], [0.5, 0.5], rule) == 1
    assert average_precision([-1, 1], [0.5, 0.5], rule) == pytest.approx(1 / 2)
    labels = [-1] * 99 + [1] * 99
    assert average_precision(labels, np.zeros(198), rule) < average_precision(labels[::-1], np.zeros(198), rule) == 1


@pytest.mark.parametrize("rule", ["11-point", "area"])
def test_missing_scores_rank_last_and_still_count(rule):
    # The second positive is found at rank 4 of 4, whatever its row.
    for labels, scores in (([1, 1, -1, -1], [3, -np.inf, 1, -9e99]), ([-1, 1, 1, -1], [1, 3, -np.inf, -9e99])):
        assert average_precision(labels, scores, rule) == average_precision(*ranked("+--+"), rule) < 1


@pytest.mark.parametrize("rule", ["11-point", "area"])
@pytest.mark.parametrize("signs", ["0+-+-", "+0-+-", "+-0+0-", "00+-+-0"])
def test_ignored_samples_change_nothing_even_on_top(rule, signs):
    assert average_precision(*ranked(signs), rule) == average_precision(*ranked("+-+-"), rule)


@pytest.mark.parametrize("rule", ["11-point", "area"])
@pytest.mark.parametrize("labels", [[], [-1, -1], [0], [0, -1]])
def test_without_a_positive_there_is_no_value(rule, labels):
    assert math.isnan(average_precision(labels, np.zeros(len(labels)), rule))


def test_area_is_never_below_the_uninterpolated_value_and_can_be_above():
    labels, scores = np.array([1, -1, 1, -1, 1]), np.array([0.9, 0.95, 0.4, 0.3, 0.2])
    assert average_precision(labels, scores, "area") > average_precision_score(labels == 1, scores) + 0.05


@pytest.mark.parametrize(("labels", "scores", "words"), [
    ([1, -1], [0.0], "as many labels as scores"),
    ([[1, -1]], [[0.0, 1.0]], "as many labels as scores"),
    ([1, 2], [0.0, 1.0], "labels 1, -1 or 0"),
    ([1, -1], [0.0, np.nan], "found NaN"),
])  # fmt: skip
def test_refusals(labels, scores, words):
    with pytest.raises(FitError, match=words):
        average_precision(labels, scores)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="11-point, area, found 'voc'"):
        average_precision([1], [0.0], "voc")


def test_whole_numbers_of_any_kind_rank_as_numbers():
    # -uint8(1) would be 255.
    assert average_precision([-1, 1], np.array([1, 2], dtype=np.uint8)) == 1


# --- the kits' rules, step by step


def kit_curve(labels, scores):
    """Recall and precision with the loops of a person who counts; NaN where the kit divides 0 by 0."""
    rows = list(range(len(labels)))
    rows.sort(key=lambda row: -scores[row])
    positives = sum(1 for label in labels if label > 0)
    found = wrong = 0
    recall, precision = [], []
    for row in rows:
        found += labels[row] > 0
        wrong += labels[row] < 0
        recall.append(found / positives)
        precision.append(found / (found + wrong) if found + wrong else float("nan"))
    return recall, precision


def kit_eleven_points(labels, scores):
    recall, precision = kit_curve(labels, scores)
    total = 0.0
    for step in range(11):
        threshold = step * 0.1
        best = None
        for r, p in zip(recall, precision, strict=True):
            if r >= threshold and not math.isnan(p) and (best is None or p > best):
                best = p
        total += 0.0 if best is None else best
    return total / 11


def kit_area(labels, scores):
    recall, precision = kit_curve(labels, scores)
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        if math.isnan(precision[i]) or precision[i + 1] > precision[i]:
            precision[i] = precision[i + 1]
    total = 0.0
    for i in range(1, len(recall)):
        if recall[i] != recall[i - 1]:
            total += (recall[i] - recall[i - 1]) * precision[i]
    return total


lists = st.lists(
    st.tuples(st.sampled_from([1, -1, -1, 0]), st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 1.0, 2.0, math.inf])),
    min_size=1,
    max_size=40,
).filter(lambda rows: any(label == 1 for label, _ in rows))


@settings(max_examples=400, deadline=None)
@given(lists)
@example([(0, 2.0), (1, 1.0), (-1, 1.0)])
@example([(1, 0.0)] * 10 + [(-1, 0.0)] * 10)
def test_every_list_agrees_with_the_rules_spelled_out(rows):
    labels, scores = zip(*rows, strict=True)
    assert average_precision(labels, scores, "11-point") == pytest.approx(kit_eleven_points(labels, scores), abs=1e-12)
    assert average_precision(labels, scores, "area") == pytest.approx(kit_area(labels, scores), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_long_random_lists_agree_with_the_rules_spelled_out(seed, positives):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.ones(positives), rng.choice([-1, -1, 0], 140)]).astype(int)
    scores = np.round(rng.standard_normal(len(labels)) + labels, rng.integers(0, 3))
    order = rng.permutation(len(labels))
    labels, scores = labels[order], scores[order]
    assert average_precision(labels, scores, "11-point") == pytest.approx(kit_eleven_points(labels, scores), abs=1e-12)
    assert average_precision(labels, scores, "area") == pytest.approx(kit_area(labels, scores), abs=1e-12)


# --- the curve


def test_precision_and_recall_of_a_short_list():
    recall, precision = precision_recall(*ranked("0+-+"))
    np.testing.assert_array_equal(recall, [0, 1 / 2, 1 / 2, 1])
    np.testing.assert_array_equal(precision, [np.nan, 1, 1 / 2, 2 / 3])


def test_recall_without_positives_is_not_a_number():
    recall, precision = precision_recall([-1, -1], [0, 1])
    assert np.isnan(recall).all()
    np.testing.assert_array_equal(precision, [0, 0])
