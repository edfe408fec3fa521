"""Box nets that answer by hand, and nets run without any of our machinery, against what is located."""

import dataclasses

import numpy as np
import pytest
import torch

from toy_net import ToyResNet
from vggfeat.errors import ConfigError, ImageError
from vggfeat.images.decode import DecodedImage
from vggfeat.localisation.boxes import MergeSettings, boxes_from_map, clip_to_image, window_frames
from vggfeat.localisation.locate import CropLocaliser, LocalisationRequest, Localiser
from vggfeat.localisation.maps import LocaliseSettings, MapSettings, dense_maps, map_runner
from vggfeat.localisation.nets import BoxNet
from vggfeat.nets.families import initialise
from vggfeat.nets.transforms import normalise, rescale
from vggfeat.nets.vgg import VGG
from vggfeat.weights import Backbone

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def backbone(outputs, seed=0, pool="floor", classes=()):
    model = VGG("A", outputs, width=1 / 32, pool=pool).eval()
    initialise(model, torch.Generator().manual_seed(seed))
    return Backbone(model=model, source=f"net {seed}", sha256=f"{seed}", mean=(120.0, 110.0, 100.0), classes=classes)


def constant(net, numbers):
    """Let a box net say the same of every window."""
    model = net.backbone.model
    with torch.no_grad():
        model.layers[model.scores].weight.zero_()
        model.layers[model.scores].bias.copy_(torch.tensor(numbers).flatten())
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
    runner = map_runner(net.backbone, MapSettings(scales=(256,)), "cpu")
    (found,) = dense_maps(runner, [image(256, 320).regions[0]])
    assert found.map.shape == (4, 2, 4)
    boxes = boxes_from_map(found.map, np.array([0]), window_frames((2, 4)), found.rescaled, (256, 320))
    expected = [[32 * j + 56, 32 * i + 84, 32 * j + 168, 32 * i + 140] for i in range(2) for j in range(4)]
    np.testing.assert_allclose(boxes[0], expected, atol=1e-4)


def test_every_class_has_its_own_box():
    net = constant(box_net("pcr"), [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]])
    (found,) = dense([net], ((224,),)).locate([image(224, 224)], [LocalisationRequest(np.array([2, 0, 1]))])
    np.testing.assert_allclose(found.boxes, [[112, 112, 224, 224], [0, 0, 224, 224], [56, 56, 168, 168]], atol=1e-4)
    assert (found.guesses, found.classes.tolist()) == (3, [2, 0, 1])


def test_a_box_relative_to_the_image_is_the_same_from_every_window():
    net = constant(box_net("scr", "image"), [0.1, 0.0, 0.5, 0.5])
    (found,) = dense([net], ((256,),)).locate([image(512, 640)], [LocalisationRequest(np.array([1]))])
    np.testing.assert_allclose(found.boxes, [[224, 128, 544, 384]], atol=1e-3)
    assert found.windows.tolist() == [2 * 4]


@pytest.mark.parametrize("kind", ["scr", "pcr"])
@pytest.mark.parametrize("frame", ["window", "image"])
def test_dense_at_exactly_224_is_the_centre_crop(kind, frame):
    net, settings_ = box_net(kind, frame), LocaliseSettings(scales=((224,),))
    ask = [LocalisationRequest(None, 2)]
    (crop,) = CropLocaliser(net, CLASSES, settings_).locate([image(300, 300)], ask)
    (whole,) = dense([net], ((224,),)).locate([image(300, 300)], [LocalisationRequest(np.zeros(0, int), 2)])
    np.testing.assert_allclose(whole.boxes, crop.boxes, atol=1e-3)
    assert whole.classes.tolist() == crop.classes.tolist() == [2]
    assert whole.guesses == crop.guesses == 0


def test_the_centre_crop_lies_in_the_middle():
    net = constant(box_net("scr"), [0.0, 0.0, 1.0, 1.0])
    crops = CropLocaliser(net, CLASSES, LocaliseSettings(scales=((256,),)))
    (found,) = crops.locate([image(256, 400)], [LocalisationRequest(None, 0)])
    np.testing.assert_allclose(found.boxes, [[88, 16, 312, 240]], atol=1e-4)


@pytest.mark.parametrize(("size", "first"), [((224, 353), (0, 64)), ((291, 224), (33, 0))])
def test_the_centre_crop_sees_what_one_would_cut_out_by_hand(size, first):
    net, seen = box_net("pcr"), image(*size)
    top, left = first
    cut = np.ascontiguousarray(seen.regions[0][top : top + 224, left : left + 224])
    crops = CropLocaliser(net, CLASSES, LocaliseSettings(scales=((224,),)))
    (found,) = crops.locate([seen], [LocalisationRequest(None, 1)])
    with torch.inference_mode():
        numbers = net_says(net.backbone, DecodedImage((cut,), (224, 224), bytes(32)), 224)[4:8, 0, 0].double()
    x, y, w, h = (224 * numbers).tolist()
    edges = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) + 112 + np.array([left, top, left, top])
    np.testing.assert_allclose(found.boxes[0], clip_to_image(edges, size), atol=1e-2)


def test_a_strip_gives_the_values_of_the_whole():
    net, pixels = backbone(12, 3), image(256, 900).regions[0]
    runners = [map_runner(net, MapSettings(scales=(256,), batch_pixels=most), "cpu") for most in (1 << 22, 120_000)]
    (whole,), (strips,) = (list(dense_maps(one, [pixels])) for one in runners)
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
    (found,) = dense([net], ((288,),), classifier).locate([seen], [LocalisationRequest(None, 1)])
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
    (found,) = dense([first, second], ((224, 256), (256,))).locate(
        [image(256, 256)], [LocalisationRequest(np.array([0]))]
    )
    windows = {"first": 1 + 4, "second": 4}
    assert found.windows.tolist() == [sum(windows.values())]
    side = (5 * 0.5 + 4 * 0.55) / 9 * 256
    np.testing.assert_allclose(found.boxes, [[128 - side / 2, 64, 128 + side / 2, 192]], rtol=1e-4)
    apart = dense([first, second], ((224, 256), (256,)), merging=MergeSettings(threshold=0.01))
    (alone,) = apart.locate([image(256, 256)], [LocalisationRequest(np.array([0]))])
    assert alone.windows.tolist() == [5]


def test_a_net_of_another_family_has_its_own_stride_and_only_nets_of_the_same_windows_are_put_together():
    model = ToyResNet(num_classes=4).eval()
    toy = Backbone(model=model, source="toy", sha256="0", mean=(120.0, 110.0, 100.0))
    net = BoxNet(backbone=toy, kind="scr", classes=CLASSES, frame="window", window=4, scale=8)
    net = constant(net, [0.0, 0.0, 0.5, 0.5])
    one = dense([net], ((4,),), merging=MergeSettings(threshold=2.99))
    (found,) = one.locate([image(4, 6)], [LocalisationRequest(np.array([0]))])
    # The middles of 2 x 3 windows of 4 pixels, which begin at 0, 2 and 4, cut where the image ends, at 4 and 6.
    assert found.windows.tolist() == [6]
    cut = [[1, 1, 3, 3], [3, 1, 5, 3], [5, 1, 6, 3], [1, 3, 3, 4], [3, 3, 5, 4], [5, 3, 6, 4]]
    np.testing.assert_allclose(found.boxes, [np.mean(cut, axis=0)], atol=1e-4)
    with pytest.raises(ConfigError, match=r"\(stride, window\) \(2, 1\) in toy and \(32, 7\) in A; take nets of one"):
        dense([net], ((224,),), backbone(3, classes=CLASSES))


def test_nets_that_round_differently_are_compared_where_both_have_a_window():
    # A side of 270 has 2 positions with floor and 3 with ceil.
    net, classifier = box_net("pcr", pool="ceil"), backbone(3, 5, classes=CLASSES)
    assert (net.backbone.model.map_side("fc8", 270), classifier.model.map_side("fc8", 270)) == (3, 2)
    (found,) = dense([net], ((270,),), classifier).locate([image(270, 270)], [LocalisationRequest()])
    assert found.reason == ""
    assert found.windows.max() <= 4


def test_classes_are_matched_by_name():
    net = constant(box_net("pcr"), [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]])
    turned = Localiser([net], None, ("cat", "ant"), LocaliseSettings(scales=((224,),)))
    (found,) = turned.locate([image(224, 224)], [LocalisationRequest(np.array([0, 1]))])
    np.testing.assert_allclose(found.boxes, [[112, 112, 224, 224], [0, 0, 224, 224]], atol=1e-4)
    with pytest.raises(ConfigError, match="without 'dog'"):
        Localiser([net], None, ("cat", "dog"), LocaliseSettings(scales=((224,),)))


def test_images_that_fail_are_named_and_change_nothing_for_the_others():
    localiser = dense([box_net("pcr")], ((224,),), backbone(3, 5, classes=CLASSES))
    broken = ImageError("missing", "x.png: there is none")
    seen = [image(224, 300), broken, image(230, 224, 1), image(16, 11_264)]
    found = localiser.locate(seen, [LocalisationRequest()] * 4)
    assert [row.reason.partition(":")[0] for row in found] == ["", "missing", "", "elongated"]
    assert found[1].guesses == len(found[1].boxes) == 0
    (alone,) = localiser.locate([seen[2]], [LocalisationRequest()])
    np.testing.assert_allclose(found[2].boxes, alone.boxes, rtol=1e-5)


def test_an_image_without_a_label_fails():
    (found,) = dense([box_net("scr")], ((224,),)).locate(
        [image(224, 224)], [LocalisationRequest(np.array([-1, -1]), 0)]
    )
    assert found.reason.startswith("no-label: ")


def test_a_net_that_gives_no_number_fails_its_image():
    net = constant(box_net("scr"), [0.0, 0.0, 1.0, float("inf")])
    (found,) = dense([net], ((224,),)).locate([image(224, 224)], [LocalisationRequest(np.array([0]))])
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
    (found,) = localiser.locate([image(224, 224)], [LocalisationRequest()])
    assert found.reason == ""
    assert localiser.largest_side == 224


def test_settings_are_told_for_the_record():
    told = LocaliseSettings(scales=((256,), (352, 384))).describe()
    assert told["scales"] == [[256], [352, 384]]
    assert told["merging"] == dataclasses.asdict(MergeSettings())
