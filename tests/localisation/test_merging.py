"""OverFeat's merging against its text taken word by word, and against averages computed by hand."""

import math

import numpy as np
import pytest

from vggfeat.errors import ConfigError
from vggfeat.localisation.merging import MergeSettings, match_scores, merge


def literal_merging(boxes, scores, threshold, average):
    """OverFeat's text, word by word: all pairs, the least match score, merge or stop; one class."""
    items = [(list(box), score, 1) for box, score in zip(boxes.tolist(), scores.tolist(), strict=True)]

    def match(a, b):
        (al, at, ar, ab), (bl, bt, br, bb) = a[0], b[0]
        distance = math.hypot((al + ar) / 2 - (bl + br) / 2, (at + ab) / 2 - (bt + bb) / 2)
        common = max(0, min(ar, br) - max(al, bl)) * max(0, min(ab, bb) - max(at, bt))
        union = (ar - al) * (ab - at) + (br - bl) * (bb - bt) - common
        diagonal = (math.hypot(ar - al, ab - at) + math.hypot(br - bl, bb - bt)) / 2
        return distance / diagonal + 1 - common / union

    while len(items) > 1:
        pairs = [(match(a, b), i, j) for i, a in enumerate(items) for j, b in enumerate(items) if i < j]
        score, i, j = min(pairs)
        if score > threshold:
            break
        first, second = items[i], items.pop(j)
        weights = (first[1], second[1]) if average == "score" else (first[2], second[2])
        box = [(weights[0] * x + weights[1] * y) / sum(weights) for x, y in zip(first[0], second[0], strict=True)]
        items[i] = (box, first[1] + second[1], first[2] + second[2])
    return max(items, key=lambda item: item[1])


def edges(rng, shape, spread=100):
    centres, sides = rng.uniform(0, spread, (*shape, 2)), rng.uniform(10, 80, (*shape, 2))
    return np.concatenate([centres - sides / 2, centres + sides / 2], axis=-1)


@pytest.mark.parametrize("average", ["score", "count"])
def test_merging_agrees_with_the_text_taken_word_by_word(average):
    rng = np.random.default_rng(2)
    for n in (1, 2, 3, 12, 24, 24, 24, 24, 24, 24, 24, 24):
        threshold = rng.uniform(0.2, 1.3)
        boxes, scores = edges(rng, (3, n)), rng.uniform(0.01, 1, (3, n))
        found = merge(boxes, scores, MergeSettings(threshold=threshold, average=average))
        for k in range(3):
            box, score, windows = literal_merging(boxes[k], scores[k], threshold, average)
            np.testing.assert_allclose(found.boxes[k], box, rtol=1e-9)
            assert (found.scores[k], found.windows[k]) == (pytest.approx(score), windows)


def test_many_weak_windows_that_agree_beat_a_strong_one_alone():
    boxes = np.array([[[0, 0, 50, 50]] * 3 + [[200, 200, 260, 260]]], dtype=float)
    found = merge(boxes, np.array([[0.3, 0.3, 0.3, 0.8]]), MergeSettings())
    np.testing.assert_allclose(found.boxes[0], [0, 0, 50, 50])
    assert found.scores[0] == pytest.approx(0.9)
    assert found.windows[0] == 3


def test_a_merged_box_is_the_average_by_score_or_by_count():
    boxes = np.array([[[0, 0, 40, 40], [8, 0, 48, 40]]], dtype=float)
    scores = np.array([[0.3, 0.1]])
    np.testing.assert_allclose(merge(boxes, scores, MergeSettings(threshold=1)).boxes[0], [2, 0, 42, 40])
    counted = merge(boxes, scores, MergeSettings(threshold=1, average="count"))
    np.testing.assert_allclose(counted.boxes[0], [4, 0, 44, 40])


def test_the_threshold_decides_and_the_match_score_does_not_depend_on_size():
    boxes = np.array([[0, 0, 40, 40], [8, 0, 48, 40]], dtype=float)
    # Centres 8 apart, diagonals of 40 sqrt 2, intersection 32 x 40, union 48 x 40.
    score = match_scores(boxes[0], boxes[1])
    assert score == pytest.approx(8 / math.hypot(40, 40) + 1 - 32 / 48)
    assert match_scores(7 * boxes[0], 7 * boxes[1]) == pytest.approx(float(score))
    for threshold, windows in ((score + 1e-9, 2), (score - 1e-9, 1)):
        assert merge(boxes[None], np.ones((1, 2)), MergeSettings(threshold=threshold)).windows[0] == windows


def test_of_more_boxes_than_are_merged_the_best_are_taken():
    boxes = np.array([[[0, 0, 9, 9], [90, 90, 99, 99], [0, 0, 9, 9]]], dtype=float)
    found = merge(boxes, np.array([[0.5, 0.7, 0.4]]), MergeSettings(most=2))
    np.testing.assert_allclose(found.boxes[0], [90, 90, 99, 99])


def test_scores_that_rounded_to_zero_do_no_harm():
    found = merge(np.array([[[0.0, 0, 9, 9], [0, 0, 9, 9]]]), np.zeros((1, 2)), MergeSettings())
    np.testing.assert_allclose(found.boxes, [[0, 0, 9, 9]])


@pytest.mark.parametrize("bad", [{"threshold": -1}, {"threshold": float("nan")}, {"most": 0}, {"average": "mean"}])
def test_merge_settings_are_checked(bad):
    with pytest.raises(ConfigError):
        MergeSettings(**bad)
