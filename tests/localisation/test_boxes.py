"""Boxes against coordinates and windows computed by hand, and merging against OverFeat's text, taken word by word."""

import math

import numpy as np
import pytest
import torch

from vggfeat.errors import ConfigError
from vggfeat.localisation.boxes import (
    MergeSettings,
    boxes_from_map,
    class_outputs,
    clip_to_image,
    decode,
    encode,
    match_scores,
    merge,
    overlaps,
    window_frames,
)

NAN = math.nan
WINDOW = torch.tensor([0.0, 0, 224, 224])


def test_coordinates_by_hand():
    # 112 wide around (112, 112), 56 high around (.., 84): centre, an eighth above it, half and a quarter of the side.
    box = torch.tensor([56.0, 56, 168, 112])
    assert encode(box, WINDOW).tolist() == [0, -0.125, 0.5, 0.25]
    # The same box in the window at row 1, column 2 of a dense map, 64 pixels further right and 32 further down.
    assert encode(box, WINDOW + torch.tensor([64.0, 32, 64, 32])).tolist() == pytest.approx(
        [-64 / 224, -0.125 - 32 / 224, 0.5, 0.25]
    )
    # A frame need not be square: each axis has its own unit.
    assert encode(box, torch.tensor([0.0, 0, 448, 224])).tolist() == [-0.25, -0.125, 0.25, 0.25]


def test_decode_is_the_inverse_of_encode():
    generator = torch.Generator().manual_seed(0)
    corners = 500 * torch.rand((50, 2, 2), generator=generator, dtype=torch.float64) - 100
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    frames = torch.tensor([[0.0, 0, 224, 224], [32, 64, 256, 288], [0, 0, 500, 333]], dtype=torch.float64)
    coordinates = encode(boxes[:, None], frames)
    assert coordinates.shape == (50, 3, 4)
    torch.testing.assert_close(decode(coordinates, frames), boxes[:, None].expand(50, 3, 4))


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        # Pixels 1 to 10 and 6 to 15 in both directions, inclusive: 25 common ones of 175.
        ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175),
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0),
        ((0, 0, 10, 10), (4, 4, 4, 9), 0),
        ((0, 0, 10, 10), (8, 2, 3, 9), 0),
        ((8, 2, 3, 9), (8, 2, 3, 9), 0),
        ((0, 0, 10, 10), (NAN, NAN, NAN, NAN), 0),
    ],
)
def test_overlaps_by_hand(one, other, share):
    assert overlaps(torch.tensor(one).double(), torch.tensor(other).double()).item() == share


def test_a_class_has_four_channels_of_its_own_or_all_share_four():
    outputs = torch.arange(24.0).view(2, 12)
    assert class_outputs(outputs, torch.tensor([2, 0])).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert class_outputs(outputs[:, :4], torch.tensor([2, 0])).tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]


def test_windows_are_32_pixels_apart_and_224_wide():
    frames = window_frames((3, 4))
    assert frames.shape == (3, 4, 4)
    assert frames[0, 0].tolist() == [0, 0, 224, 224]
    assert frames[2, 3].tolist() == [96, 64, 320, 288]
    assert window_frames((1, 1), (7, 20)).tolist() == [[[20, 7, 244, 231]]]


def test_the_outputs_of_a_class_become_a_box_in_pixels_of_the_file():
    # Two classes at 1 x 2 positions; of the second: centre (0.25, -0.25), half the window wide, a quarter high.
    coordinates = torch.zeros(8, 1, 2)
    coordinates[4:] = torch.tensor([0.25, -0.25, 0.5, 0.25])[:, None, None]
    found = boxes_from_map(coordinates, np.array([1]), window_frames((1, 2)), (256, 256), (512, 512))
    # In the rescaled image: centre (112 + 56, 112 - 56), 112 x 56; the file is twice as large.
    np.testing.assert_allclose(found[0, 0], [2 * (168 - 56), 2 * (56 - 28), 2 * (168 + 56), 2 * (56 + 28)])
    np.testing.assert_allclose(found[0, 1], found[0, 0] + [64, 0, 64, 0])
    # The longer side is rounded, so that width and height have factors of their own.
    wide = boxes_from_map(coordinates, np.array([1]), window_frames((1, 2)), (256, 256), (512, 768))
    np.testing.assert_allclose(wide[0], found[0] * [1.5, 1, 1.5, 1])


def test_boxes_stay_within_the_image_and_keep_a_pixel():
    boxes = np.array([[-5.0, 2, 500, 9], [50, 50, 60, 60], [8, 3, 4, 3.2]])
    np.testing.assert_allclose(clip_to_image(boxes, (20, 30)), [[0, 2, 30, 9], [29, 19, 30, 20], [8, 3, 9, 4]])


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
