"""Overlap in inclusive pixels, and the official localisation error against its rules spelled out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from vggfeat.errors import FitError
from vggfeat.metrics import box_overlap, inclusive_pixels, localisation_error


@pytest.mark.parametrize(("one", "other", "overlap"), [
    ([5, 5, 5, 5], [5, 5, 5, 5], 1),  # A box of one pixel has an area.
    ([1, 1, 2, 1], [2, 1, 3, 1], 1 / 3),  # They share the pixel 2; with exclusive ends they would only touch.
    ([1, 1, 2, 1], [3, 1, 4, 1], 0),
    ([1, 1, 10, 10], [6, 1, 15, 10], 50 / 150),
    ([1, 1, 10, 10], [1, 1, 5, 10], 1 / 2),
    ([1, 1, 10, 10], [11, 11, 20, 20], 0),
    ([-4, -4, 5, 5], [1, 1, 5, 5], 1 / 4),
])  # fmt: skip
def test_overlaps_by_hand(one, other, overlap):
    assert box_overlap([one], [other])[0, 0] == pytest.approx(overlap, abs=1e-15)


def random_boxes(rng, count, most=60):
    first = rng.integers(1, most, (count, 2))
    return np.concatenate([first, first + rng.integers(0, most, (count, 2))], axis=1)


def test_overlaps_equal_torchvisions_on_pixel_edges():
    rng = np.random.default_rng(0)
    one, other = random_boxes(rng, 40), random_boxes(rng, 30)
    edges = [torch.tensor(boxes - [1, 1, 0, 0]).double() for boxes in (one, other)]
    np.testing.assert_allclose(box_overlap(one, other), box_iou(*edges).numpy(), atol=1e-14)


def test_a_box_without_a_pixel_is_refused():
    with pytest.raises(FitError, match="xmin <= xmax"):
        box_overlap([[5, 5, 4, 5]], [[1, 1, 2, 2]])
    with pytest.raises(FitError, match="boxes, 4"):
        box_overlap([1, 1, 2, 2], [[1, 1, 2, 2]])


def test_official_boxes_survive_the_way_to_edges_and_back():
    boxes = random_boxes(np.random.default_rng(1), 50)
    np.testing.assert_array_equal(inclusive_pixels(boxes - np.array([1, 1, 0, 0])), boxes)


def test_edges_go_to_the_nearest_pixel_boundary_and_thin_boxes_get_a_pixel():
    np.testing.assert_array_equal(inclusive_pixels([0.49, 0.5, 9.49, 9.5]), [1, 2, 9, 10])
    np.testing.assert_array_equal(inclusive_pixels([3.2, 4, 3.4, 4]), [4, 5, 4, 5])
    with pytest.raises(FitError, match="finite"):
        inclusive_pixels([0, 0, np.nan, 1])


OBJECT = [1, 1, 10, 10]
HALF = [1, 1, 5, 10]
LESS = [1, 1, 5, 9]


def one_image(labels, boxes, objects=(OBJECT,), target=0):
    return localisation_error([target], [list(objects)], [labels], [boxes])


@pytest.mark.parametrize(("labels", "boxes", "objects", "error"), [
    ([0], [OBJECT], [OBJECT], 0),
    ([1], [OBJECT], [OBJECT], 1),  # The label is wrong.
    ([0], [HALF], [OBJECT], 0),  # An overlap of one half is enough.
    ([0], [LESS], [OBJECT], 1),
    ([0], [[21, 1, 30, 10]], [OBJECT, [21, 1, 30, 10]], 0),  # Any object of the class will do.
    ([0, 1], [LESS, OBJECT], [OBJECT], 1),  # One guess has the label, another the box.
    ([1, 2, 3, 4, 0], [OBJECT] * 5, [OBJECT], 0),  # The fifth guess counts like the first.
    ([-1], [OBJECT], [OBJECT], 1),  # No guess is a wrong one.
    ([0, -1], [OBJECT, OBJECT], [OBJECT], 0),
    ([0, 0], [LESS, OBJECT], [OBJECT], 0),  # A label may be guessed twice.
])  # fmt: skip
def test_an_image_is_right_if_one_guess_has_label_and_box(labels, boxes, objects, error):
    assert one_image(labels, boxes, objects).error == error


def test_no_guesses_at_all_are_wrong():
    assert localisation_error([0], [[OBJECT]], np.zeros((1, 0), int), np.zeros((1, 0, 4))).error == 1


def test_the_blacklist_is_left_out_and_the_error_is_a_share_of_the_rest():
    labels, boxes = [[0], [1], [0], [1]], [[OBJECT]] * 4
    found = localisation_error([0] * 4, [[OBJECT]] * 4, labels, boxes, counted=[True, True, True, False])
    assert found.error == pytest.approx(1 / 3)
    assert localisation_error([0] * 4, [[OBJECT]] * 4, labels, boxes).error == 1 / 2
    none = localisation_error([0] * 4, [[]] * 4, labels, boxes, counted=[False] * 4)
    assert math.isnan(none.error)


def test_overlaps_and_fewer_guesses_are_told():
    found = one_image([1, 0], [HALF, OBJECT])
    np.testing.assert_allclose(found.overlaps, [[1 / 2, 1]])
    assert [found.error_at(k) for k in (1, 2, 5)] == [1, 0, 0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(FitError, match="at most 5 labels"):
        one_image([0] * 6, [OBJECT] * 6)
    with pytest.raises(FitError, match="none in row 0"):
        one_image([0], [OBJECT], [])
    with pytest.raises(FitError, match="at most 5 labels"):
        localisation_error([0, 0], [[OBJECT]], [[0]], [[OBJECT]])


def official_error(targets, objects, labels, boxes, blacklist):
    """The script's loops: its names, its + 1."""
    total = counted = 0
    for i, target in enumerate(targets):
        if i in blacklist:
            continue
        counted += 1
        cost = 1
        for label, bb in zip(labels[i], boxes[i], strict=True):
            if label < 0:
                continue
            ovmax = -math.inf
            for bbgt in objects[i]:
                bi = [max(bb[0], bbgt[0]), max(bb[1], bbgt[1]), min(bb[2], bbgt[2]), min(bb[3], bbgt[3])]
                iw, ih = bi[2] - bi[0] + 1, bi[3] - bi[1] + 1
                if iw > 0 and ih > 0:
                    ua = (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1)
                    ua += (bbgt[2] - bbgt[0] + 1) * (bbgt[3] - bbgt[1] + 1) - iw * ih
                    ovmax = max(ovmax, iw * ih / ua)
            cost = min(cost, max(int(label != target), int(not ovmax >= 0.5)))
        total += cost
    return total / counted


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_random_lists_agree_with_the_rules_spelled_out(seed):
    rng = np.random.default_rng(seed)
    targets, labels = rng.integers(0, 3, 12), rng.integers(-1, 3, (12, 5))
    objects = [random_boxes(rng, rng.integers(1, 4), 8) for _ in range(12)]
    boxes = np.stack([random_boxes(rng, 5, 8) for _ in range(12)])
    blacklist = set(rng.integers(0, 12, 3).tolist())
    counted = [row not in blacklist for row in range(12)]
    found = localisation_error(targets, objects, labels, boxes, counted=counted)
    assert found.error == pytest.approx(official_error(targets, objects, labels, boxes, blacklist), abs=1e-12)
