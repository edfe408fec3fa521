"""Localisation against the official rules spelled out, hand-made boxes, and OverFeat's merging taken word by word."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import box_iou

from vggfeat.errors import ConfigError, FitError, ImageError
from vggfeat.images.decode import DecodedImage
from vggfeat.localisation.drawing import Mark, draw_boxes
from vggfeat.localisation.guesses import Ask, LocaliseSettings
from vggfeat.localisation.locate import CropLocaliser, Localiser
from vggfeat.localisation.maps import DenseMaps, MapSettings
from vggfeat.localisation.merging import MergeSettings, match_scores, merge
from vggfeat.localisation.nets import BoxNet
from vggfeat.localisation.windows import boxes_of, window_frames, within
from vggfeat.metrics import box_overlap, inclusive_pixels, localisation_error
from vggfeat.nets.families import initialise
from vggfeat.nets.transforms import normalise, rescale
from vggfeat.nets.vgg import VGG
from vggfeat.samples import Box
from vggfeat.weights import Backbone

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- overlap, in inclusive pixels


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ([5, 5, 5, 5], [5, 5, 5, 5], 1),  # A box of one pixel has an area.
        ([1, 1, 2, 1], [2, 1, 3, 1], 1 / 3),  # They share the pixel 2; with exclusive ends they would only touch.
        ([1, 1, 2, 1], [3, 1, 4, 1], 0),
        ([1, 1, 10, 10], [6, 1, 15, 10], 50 / 150),
        ([1, 1, 10, 10], [1, 1, 5, 10], 1 / 2),
        ([1, 1, 10, 10], [11, 11, 20, 20], 0),
        ([-4, -4, 5, 5], [1, 1, 5, 5], 1 / 4),
    ],
)
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


# --- the official error

OBJECT = [1, 1, 10, 10]
HALF = [1, 1, 5, 10]
LESS = [1, 1, 5, 9]


def one_image(labels, boxes, objects=(OBJECT,), target=0):
    return localisation_error([target], [list(objects)], [labels], [boxes])


@pytest.mark.parametrize(
    ("labels", "boxes", "objects", "error"),
    [
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
    ],
)
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


# --- merging


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


# --- where windows lie


def test_windows_are_32_pixels_apart_and_224_wide():
    frames = window_frames((3, 4))
    assert frames.shape == (3, 4, 4)
    assert frames[0, 0].tolist() == [0, 0, 224, 224]
    assert frames[2, 3].tolist() == [96, 64, 320, 288]
    assert window_frames((1, 1), (7, 20)).tolist() == [[[20, 7, 244, 231]]]


def test_the_numbers_of_a_class_become_a_box_in_pixels_of_the_file():
    # Two classes at 1 x 2 positions; of the second: centre (0.25, -0.25), half the window wide, a quarter high.
    numbers = torch.zeros(8, 1, 2)
    numbers[4:] = torch.tensor([0.25, -0.25, 0.5, 0.25])[:, None, None]
    found = boxes_of(numbers, np.array([1]), window_frames((1, 2)), (256, 256), (512, 512))
    # In the rescaled image: centre (112 + 56, 112 - 56), 112 x 56; the file is twice as large.
    np.testing.assert_allclose(found[0, 0], [2 * (168 - 56), 2 * (56 - 28), 2 * (168 + 56), 2 * (56 + 28)])
    np.testing.assert_allclose(found[0, 1], found[0, 0] + [64, 0, 64, 0])
    # The longer side is rounded, so that width and height have factors of their own.
    wide = boxes_of(numbers, np.array([1]), window_frames((1, 2)), (256, 256), (512, 768))
    np.testing.assert_allclose(wide[0], found[0] * [1.5, 1, 1.5, 1])


def test_boxes_stay_within_the_image_and_keep_a_pixel():
    boxes = np.array([[-5.0, 2, 500, 9], [50, 50, 60, 60], [8, 3, 4, 3.2]])
    np.testing.assert_allclose(within(boxes, (20, 30)), [[0, 2, 30, 9], [29, 19, 30, 20], [8, 3, 9, 4]])


# --- nets


def backbone(outputs, seed=0, pool="floor", classes=()):
    model = VGG("A", outputs, width=1 / 32, pool=pool).eval()
    initialise(model, torch.Generator().manual_seed(seed))
    return Backbone(model=model, source=f"net {seed}", sha256=f"{seed}", mean=(120.0, 110.0, 100.0), classes=classes)


def constant(net, numbers):
    """Let a box net say the same of every window."""
    with torch.no_grad():
        net.backbone.model.layers["fc8"].weight.zero_()
        net.backbone.model.layers["fc8"].bias.copy_(torch.tensor(numbers).flatten())
    return net


def box_net(kind="pcr", frame="window", seed=0, pool="floor"):
    outputs = 4 if kind == "scr" else 4 * len(CLASSES)
    return BoxNet(
        backbone=backbone(outputs, seed, pool), kind=kind, classes=CLASSES, frame=frame, window=224, scale=224
    )


def image(height, width, seed=0):
    # Coarse, so that the net sees more than grey.
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    pixels = np.repeat(np.repeat(coarse, 16, 0), 16, 1)[:height, :width].copy()
    return DecodedImage((pixels,), (height, width), bytes(32))


def dense(nets, scales, classifier=None, **more):
    return Localiser(nets, classifier, CLASSES, LocaliseSettings(scales=scales, **more))


def test_a_net_that_always_says_the_same_boxes_the_middle_of_every_window():
    net = constant(box_net("scr"), [0.0, 0.0, 0.5, 0.25])
    maps = DenseMaps(net.backbone, MapSettings(scales=(256,)), "cpu")
    (found,) = maps.maps([image(256, 320).regions[0]])
    assert found.map.shape == (4, 2, 4)
    boxes = boxes_of(found.map, np.array([0]), window_frames((2, 4)), found.rescaled, (256, 320))
    expected = [[32 * j + 56, 32 * i + 84, 32 * j + 168, 32 * i + 140] for i in range(2) for j in range(4)]
    np.testing.assert_allclose(boxes[0], expected, atol=1e-4)


def test_every_class_has_its_own_box():
    net = constant(box_net("pcr"), [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]])
    (found,) = dense([net], ((224,),)).locate([image(224, 224)], [Ask(np.array([2, 0, 1]))])
    np.testing.assert_allclose(found.boxes, [[112, 112, 224, 224], [0, 0, 224, 224], [56, 56, 168, 168]], atol=1e-4)
    assert (found.guesses, found.classes.tolist()) == (3, [2, 0, 1])


def test_a_box_relative_to_the_image_is_the_same_from_every_window():
    net = constant(box_net("scr", "image"), [0.1, 0.0, 0.5, 0.5])
    (found,) = dense([net], ((256,),)).locate([image(512, 640)], [Ask(np.array([1]))])
    np.testing.assert_allclose(found.boxes, [[224, 128, 544, 384]], atol=1e-3)
    assert found.windows.tolist() == [2 * 4]


@pytest.mark.parametrize("kind", ["scr", "pcr"])
@pytest.mark.parametrize("frame", ["window", "image"])
def test_dense_at_exactly_224_is_the_centre_crop(kind, frame):
    net, settings_ = box_net(kind, frame), LocaliseSettings(scales=((224,),))
    ask = [Ask(None, 2)]
    (crop,) = CropLocaliser(net, CLASSES, settings_).locate([image(300, 300)], ask)
    (whole,) = dense([net], ((224,),)).locate([image(300, 300)], [Ask(np.zeros(0, int), 2)])
    np.testing.assert_allclose(whole.boxes, crop.boxes, atol=1e-3)
    assert whole.classes.tolist() == crop.classes.tolist() == [2]
    assert whole.guesses == crop.guesses == 0


def test_the_centre_crop_lies_in_the_middle():
    net = constant(box_net("scr"), [0.0, 0.0, 1.0, 1.0])
    crops = CropLocaliser(net, CLASSES, LocaliseSettings(scales=((256,),)))
    (found,) = crops.locate([image(256, 400)], [Ask(None, 0)])
    np.testing.assert_allclose(found.boxes, [[88, 16, 312, 240]], atol=1e-4)


@pytest.mark.parametrize(("size", "first"), [((224, 353), (0, 64)), ((291, 224), (33, 0))])
def test_the_centre_crop_sees_what_one_would_cut_out_by_hand(size, first):
    net, seen = box_net("pcr"), image(*size)
    top, left = first
    cut = np.ascontiguousarray(seen.regions[0][top : top + 224, left : left + 224])
    crops = CropLocaliser(net, CLASSES, LocaliseSettings(scales=((224,),)))
    (found,) = crops.locate([seen], [Ask(None, 1)])
    with torch.inference_mode():
        numbers = net_says(net.backbone, DecodedImage((cut,), (224, 224), bytes(32)), 224)[4:8, 0, 0].double()
    x, y, w, h = (224 * numbers).tolist()
    edges = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) + 112 + np.array([left, top, left, top])
    np.testing.assert_allclose(found.boxes[0], within(edges, size), atol=1e-2)


def test_a_strip_gives_the_values_of_the_whole():
    net, pixels = backbone(12, 3), image(256, 900).regions[0]
    maps = [DenseMaps(net, MapSettings(scales=(256,), batch_pixels=most), "cpu") for most in (1 << 22, 120_000)]
    (whole,), (strips,) = (list(one.maps([pixels])) for one in maps)
    assert whole.map.shape == (12, 2, 22)
    torch.testing.assert_close(strips.map, whole.map, rtol=1e-4, atol=1e-4)


def net_says(net, seen, side):
    """Run a net without any of our machinery but the rescaling of a square image."""
    pixels = rescale(torch.from_numpy(seen.regions[0]).permute(2, 0, 1), (side, side))
    images = normalise(pixels[None], torch.tensor(net.mean), torch.tensor(net.std))
    return net.model(images, ("fc8",))["fc8"][0]


def test_boxes_are_rated_by_the_posterior_of_their_own_window():
    classifier, seen = backbone(3, 5, classes=CLASSES), image(288, 288)
    with torch.no_grad():  # Unsure, so that all three posteriors matter.
        classifier.model.layers["fc8"].weight.mul_(0.01)
    net = constant(box_net("scr", "image"), [0.0, 0.0, 0.5, 0.5])
    (found,) = dense([net], ((288,),), classifier).locate([seen], [Ask(None, 1)])
    with torch.inference_mode():
        scores = net_says(classifier, seen, 288)
    assert scores.shape == (3, 3, 3)
    own = torch.softmax(scores.mean((1, 2)), 0)
    assert own.min() > 0.02
    assert found.classes.tolist() == own.argsort(descending=True).tolist()
    np.testing.assert_allclose(found.posteriors, own[found.classes], rtol=1e-3)
    summed = torch.softmax(scores, 0).sum((1, 2))
    np.testing.assert_allclose(found.scores, summed[found.classes], rtol=1e-3)


def test_the_boxes_of_all_nets_and_scales_are_put_together_before_they_are_merged():
    # Each net alone has four windows at 256 and is sure; the second is 10 % wider.
    first = constant(box_net("scr", "image"), [0.0, 0.0, 0.5, 0.5])
    second = constant(box_net("scr", "image", seed=1), [0.0, 0.0, 0.55, 0.5])
    (found,) = dense([first, second], ((224, 256), (256,))).locate([image(256, 256)], [Ask(np.array([0]))])
    windows = {"first": 1 + 4, "second": 4}
    assert found.windows.tolist() == [sum(windows.values())]
    side = (5 * 0.5 + 4 * 0.55) / 9 * 256
    np.testing.assert_allclose(found.boxes, [[128 - side / 2, 64, 128 + side / 2, 192]], rtol=1e-4)
    apart = dense([first, second], ((224, 256), (256,)), merging=MergeSettings(threshold=0.01))
    (alone,) = apart.locate([image(256, 256)], [Ask(np.array([0]))])
    assert alone.windows.tolist() == [5]


def test_nets_that_round_differently_are_compared_where_both_have_a_window():
    # A side of 270 has 2 positions with floor and 3 with ceil.
    net, classifier = box_net("pcr", pool="ceil"), backbone(3, 5, classes=CLASSES)
    assert (net.backbone.model.map_side("fc8", 270), classifier.model.map_side("fc8", 270)) == (3, 2)
    (found,) = dense([net], ((270,),), classifier).locate([image(270, 270)], [Ask()])
    assert found.reason == ""
    assert found.windows.max() <= 4


def test_classes_are_matched_by_name():
    net = constant(box_net("pcr"), [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]])
    turned = Localiser([net], None, ("cat", "ant"), LocaliseSettings(scales=((224,),)))
    (found,) = turned.locate([image(224, 224)], [Ask(np.array([0, 1]))])
    np.testing.assert_allclose(found.boxes, [[112, 112, 224, 224], [0, 0, 224, 224]], atol=1e-4)
    with pytest.raises(ConfigError, match="without 'dog'"):
        Localiser([net], None, ("cat", "dog"), LocaliseSettings(scales=((224,),)))


def test_images_that_fail_are_named_and_change_nothing_for_the_others():
    localiser = dense([box_net("pcr")], ((224,),), backbone(3, 5, classes=CLASSES))
    broken = ImageError("missing", "x.png: there is none")
    seen = [image(224, 300), broken, image(230, 224, 1), image(16, 11_264)]
    found = localiser.locate(seen, [Ask()] * 4)
    assert [row.reason.partition(":")[0] for row in found] == ["", "missing", "", "elongated"]
    assert found[1].guesses == len(found[1].boxes) == 0
    (alone,) = localiser.locate([seen[2]], [Ask()])
    np.testing.assert_allclose(found[2].boxes, alone.boxes, rtol=1e-5)


def test_an_image_without_a_label_fails():
    (found,) = dense([box_net("scr")], ((224,),)).locate([image(224, 224)], [Ask(np.array([-1, -1]), 0)])
    assert found.reason.startswith("no-label: ")


def test_a_net_that_gives_no_number_fails_its_image():
    net = constant(box_net("scr"), [0.0, 0.0, 1.0, float("inf")])
    (found,) = dense([net], ((224,),)).locate([image(224, 224)], [Ask(np.array([0]))])
    assert found.reason.startswith("non-finite: ")


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="those of 1 box nets, found 2"):
        dense([box_net()], ((224,), (256,)))
    with pytest.raises(ConfigError, match="expected one, for the centre crop"):
        CropLocaliser(box_net(), CLASSES, LocaliseSettings(scales=((224, 256),)))
    with pytest.raises(ConfigError, match="1 to 5 guesses"):
        LocaliseSettings(scales=((224,),), top=6)
    with pytest.raises(ConfigError, match="at least one box net"):
        LocaliseSettings(scales=())


def test_a_short_scale_is_raised_alike_for_all_nets():
    ceil = box_net("scr", pool="ceil")
    assert ceil.backbone.model.min_side == 193
    localiser = dense([ceil], ((200,),), backbone(3, 5, classes=CLASSES))
    (found,) = localiser.locate([image(224, 224)], [Ask()])
    assert found.reason == ""
    assert localiser.largest_side == 224


# --- drawing


def opened(png):
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("ground", [0, 255, 128])
def test_boxes_and_labels_are_seen_on_any_ground(ground):
    plain = np.full((240, 320, 3), ground, np.uint8)
    drawn = opened(draw_boxes(plain, [Mark(Box(40, 60, 280, 200), "cat 93 %")]))
    assert drawn.shape == (240, 320, 3)
    colour = np.array([230, 159, 0])
    # From the ground inwards at the middle of the left edge: black, the colour, black.
    crossing = drawn[130, 36:60]
    assert (crossing[:4] == ground).all()
    assert (crossing == colour).all(axis=1).sum() >= 1
    assert (crossing == 0).all(axis=1).sum() >= 2
    plate = drawn[60:72, 42:80]
    assert (plate == colour).all(axis=2).mean() > 0.3
    assert (plate == 0).all(axis=2).mean() > 0.05
    assert (drawn[150, 100:200] == ground).all()


def test_the_original_pixels_are_not_drawn_on_and_equal_input_gives_equal_bytes():
    plain = np.zeros((64, 64, 3), np.uint8)
    marks = [Mark(Box(5, 5, 60, 60), "a"), Mark(Box(5, 5, 60, 60), "b"), Mark(Box(5, 5, 60, 60), "c")]
    assert draw_boxes(plain, marks) == draw_boxes(plain, marks)
    assert not plain.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (200, 2), (30, 30)])
def test_small_images_and_odd_boxes_do_no_harm(size):
    plain = np.zeros((*size, 3), np.uint8)
    boxes = [Box(-50, -50, 500, 500), Box(10.2, 10.2, 10.4, 10.4), Box(900, 900, 950, 950), Box(0, 0, 1, 1)]
    marks = [Mark(box, f"{name} " * 40) for box, name in zip(boxes, ("x", "日本", "\N{PILE OF POO}", ""), strict=True)]
    assert opened(draw_boxes(plain, marks)).shape == (*size, 3)


def test_labels_of_equal_boxes_do_not_cover_each_other():
    plain = np.full((300, 300, 3), 90, np.uint8)
    drawn = opened(draw_boxes(plain, [Mark(Box(20, 20, 280, 280), f"class {k}") for k in range(5)]))
    seen = {tuple(pixel) for pixel in drawn[:, 40]}
    assert {(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167)} <= seen


def test_settings_are_told_for_the_record():
    told = LocaliseSettings(scales=((256,), (352, 384))).describe()
    assert told["scales"] == [[256], [352, 384]]
    assert told["merging"] == dataclasses.asdict(MergeSettings())
