"""Features against a slow, obvious computation: one image, one scale, one region at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vggfeat.errors import ConfigError, Failure, ImageError
from vggfeat.forward import features as extraction_module
from vggfeat.forward import runner
from vggfeat.forward.features import ExtractionSettings, FeatureHead, check_boxes, feature_runner, spatial_mean
from vggfeat.images.decode import DecodedImage, row_requests
from vggfeat.nets.transforms import rescale
from vggfeat.nets.vgg import VGG
from vggfeat.samples import DataSet, Task
from vggfeat.weights import random_backbone

SCALES = (224, 240)


def backbone(net="A", width=1 / 16):
    return random_backbone(f"random:{net}:0:{width}")


def image(height, width, seed=0, regions=1):
    rng = np.random.default_rng(seed)
    made = tuple(rng.integers(0, 256, (height + 9 * r, width - 5 * r, 3), dtype=np.uint8) for r in range(regions))
    return DecodedImage(made, (height, width), bytes([seed]) * 32)


def close(found, expected):
    """Equal to float32 rounding, measured on the scale of the whole vector."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


def reference(net, pixels, side, layer="fc7"):
    """One image at one scale, literally as Appendix B says it."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    size = (side, int(width * scale + 0.5)) if height <= width else (int(height * scale + 0.5), side)
    scaled = rescale(torch.from_numpy(pixels).permute(2, 0, 1), size)[None] - torch.tensor(net.mean)[:, None, None]
    with torch.inference_mode():
        maps = [net.model(x, (layer,))[layer] for x in (scaled, torch.flip(scaled, [3]))]
    return ((maps[0].mean((2, 3)) + maps[1].mean((2, 3))) / 2)[0].numpy()


@pytest.mark.parametrize("layer", ["pool5", "fc6", "fc7", "fc8"])
def test_features_are_the_spatial_mean_over_image_and_mirror(layer):
    net = backbone()
    images = [image(100, 140, 1), image(140, 100, 2), image(100, 140, 3), image(90, 90, 4)]
    rows = feature_runner(net, ExtractionSettings(scales=SCALES, layer=layer)).rows(images)
    for made, row in zip(images, rows, strict=True):
        assert row.failure is None
        assert row.size == made.size
        assert row.sha256 == made.sha256
        assert row.features.shape == (2, 1, net.model.maps[layer].channels)
        for s, side in enumerate(SCALES):
            expected = reference(net, made.regions[0], side, layer)
            close(row.features[s, 0], expected)


def test_at_a_224_crop_there_is_one_position():
    net = backbone()
    made = image(224, 224, 5)
    row = feature_runner(net, ExtractionSettings(scales=(224,))).rows([made])[0]
    close(row.features[0, 0], reference(net, made.regions[0], 224))


def test_regions_keep_their_places():
    net = backbone()
    made = image(120, 160, 6, regions=2)
    row = feature_runner(net, ExtractionSettings(scales=SCALES, regions=("image", "box"))).rows([made])[0]
    for s, side in enumerate(SCALES):
        for r in range(2):
            expected = reference(net, made.regions[r], side)
            close(row.features[s, r], expected)


def test_a_mirrored_image_has_the_same_feature():
    net = backbone()
    made = image(100, 130, 7)
    flipped = DecodedImage((np.ascontiguousarray(made.regions[0][:, ::-1]),), made.size, made.sha256)
    settings = ExtractionSettings(scales=(230,))
    one, other = (feature_runner(net, settings).rows([p])[0].features for p in (made, flipped))
    close(one, other)


def test_failures_keep_their_rows():
    images = [image(100, 100, 1), ImageError("empty", "nothing in it"), image(100, 100, 2)]
    rows = feature_runner(backbone(), ExtractionSettings(scales=(224,))).rows(images)
    assert [row.features is None for row in rows] == [False, True, False]
    assert rows[1].failure == Failure("empty", "nothing in it")
    assert rows[1].size == (0, 0)
    assert not np.array_equal(rows[0].features, rows[2].features)


def test_too_elongated_images_fail_by_name():
    thin = DecodedImage((np.zeros((1, 3000, 3), dtype=np.uint8),), (1, 3000), bytes(32))
    row = feature_runner(backbone(), ExtractionSettings(scales=(224,))).rows([thin])[0]
    assert row.features is None
    assert str(row.failure).startswith("elongated: 3000x1 pixels would become 672000x224")


def test_one_pixel_wide_images_are_enlarged():
    thin = DecodedImage((np.full((20, 1, 3), 99, dtype=np.uint8),), (20, 1), bytes(32))
    row = feature_runner(backbone(), ExtractionSettings(scales=(224,))).rows([thin])[0]
    assert np.isfinite(row.features).all()


def test_scales_below_one_window_are_raised_to_it():
    settings = ExtractionSettings(scales=(64, 256))
    assert settings.sides(VGG("A", width=1 / 64)) == (224, 256)
    assert settings.sides(VGG("A", width=1 / 64, pool="ceil")) == (193, 256)
    with pytest.raises(ConfigError, match="at most one scale below 224"):
        ExtractionSettings(scales=(64, 128)).sides(VGG("A", width=1 / 64))


def test_non_finite_features_fail_by_name():
    net = backbone()
    net.model.layers["fc7"].bias.data[3] = torch.inf
    row = feature_runner(net, ExtractionSettings(scales=(224,))).rows([image(100, 100)])[0]
    assert row.features is None
    assert str(row.failure).startswith("non-finite: the fc7 map")


@pytest.mark.parametrize("pool", ["floor", "ceil"])
@pytest.mark.parametrize(("net", "layer"), [("A", "fc7"), ("E", "fc7"), ("D", "pool5")])
@pytest.mark.parametrize("size", [(230, 1203), (1117, 226)])
def test_strips_give_the_values_of_the_whole(net, layer, pool, size):
    model = backbone(net, 1 / 32).model
    model.pool = pool
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 60
    passes = []
    with torch.inference_mode():
        whole = spatial_mean(model, images, layer, 1 << 30)
        original = type(model).forward
        type(model).forward = lambda self, x, maps: passes.append(x.shape) or original(self, x, maps)
        try:
            strips = spatial_mean(model, images, layer, 2 * 230 * 700)
        finally:
            type(model).forward = original
    assert len(passes) > 1
    assert max(shape[2] * shape[3] for shape in passes) < size[0] * size[1]
    close(strips.numpy(), whole.numpy())


def test_long_images_are_run_in_strips_by_the_extraction_too():
    net = backbone()
    made = image(224, 1800, 8)
    whole, strips = (
        feature_runner(net, ExtractionSettings(scales=(224,), batch_pixels=pixels)).rows([made])[0].features
        for pixels in (1 << 22, 2 * 224 * 900)
    )
    close(strips, whole)


def starve(monkeypatch, most):
    """Let a pass of more images run out of memory; return what each pass has, as it comes."""
    counts = []

    def scarce(model, tensor, layer, pixels):
        counts.append(len(tensor))
        if len(tensor) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return spatial_mean(model, tensor, layer, pixels)

    monkeypatch.setattr(extraction_module, "spatial_mean", scarce)
    return counts


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same(monkeypatch):
    net = backbone()
    images = [image(100, 130, seed) for seed in range(5)]
    settings = ExtractionSettings(scales=(224,))
    expected = [row.features for row in feature_runner(net, settings).rows(images)]
    sizes = starve(monkeypatch, 4)
    starved = feature_runner(net, settings)
    found = [row.features for row in starved.rows(images)]
    assert sizes == [10, 4, 6, 2, 4]
    assert starved.halvings == 2
    for one, other in zip(found, expected, strict=True):
        close(one, other)


def test_an_image_that_does_not_fit_is_cut_into_strips_and_fails_by_name_at_last(monkeypatch):
    budgets = []

    def scarce(model, tensor, layer, pixels):
        if tensor.shape[3] < 1000:
            return spatial_mean(model, tensor, layer, pixels)
        budgets.append((len(tensor), pixels))
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(extraction_module, "spatial_mean", scarce)
    images = [image(224, 224, 1), image(224, 1800, 2), image(224, 224, 3)]
    rows = feature_runner(backbone(), ExtractionSettings(scales=(224,))).rows(images)
    assert [row.failure and row.failure.reason for row in rows] == [None, "out-of-memory", None]
    # Image and mirror together, then one after the other in strips of half the pixels, down to the narrowest.
    assert budgets == [(2, 1 << 20), (1, 224 * 1800), (1, 224 * 900), (1, 224 * 450), (1, 224 * 225)]


@pytest.mark.parametrize("net", ["A", "E"])
@pytest.mark.parametrize("sides", [(224, 224), (224, 400), (400, 230)])
def test_an_image_that_does_not_fit_beside_its_mirror_goes_alone(net, sides, monkeypatch):
    # None of them is longer than the narrowest strip of these nets.
    made, settings = image(*sides), ExtractionSettings(scales=(min(sides),))
    expected = feature_runner(backbone(net), settings).rows([made])[0].features
    counts = starve(monkeypatch, 1)
    close(feature_runner(backbone(net), settings).rows([made])[0].features, expected)
    assert counts == [2, 1, 1]


@pytest.mark.parametrize("text", [
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "could not create a memory object",
    "DefaultCPUAllocator: can't allocate memory",
])  # fmt: skip
def test_every_way_to_say_out_of_memory_is_understood(text, monkeypatch):
    calls = []

    def once(model, images, layer, pixels):
        calls.append(len(images))
        if len(calls) == 1:
            raise RuntimeError(text)
        return spatial_mean(model, images, layer, pixels)

    monkeypatch.setattr(extraction_module, "spatial_mean", once)
    extraction = feature_runner(backbone(), ExtractionSettings(scales=(224,)))
    assert all(row.features is not None for row in extraction.rows([image(100, 130, 1), image(100, 130, 2)]))
    assert (calls, extraction.halvings) == ([4, 2, 2], 1)


def test_no_pass_has_more_pixels_than_allowed(monkeypatch):
    passes = []

    def watch(model, images, layer, pixels):
        passes.append(images.shape[0] * images.shape[2] * images.shape[3])
        return spatial_mean(model, images, layer, pixels)

    monkeypatch.setattr(extraction_module, "spatial_mean", watch)
    budget = 5 * 2 * 224 * 291
    feature_runner(backbone(), ExtractionSettings(scales=(224,), batch_pixels=budget)).rows(
        [image(100, 130, seed) for seed in range(12)]
    )
    assert passes == [budget, budget, 2 * 2 * 224 * 291]


def test_the_callers_net_keeps_its_precision_mode_and_place():
    net = backbone()
    net.model.train()
    first = feature_runner(net, ExtractionSettings(scales=(224,))).rows([image(100, 130)])[0].features
    feature_runner(net, ExtractionSettings(scales=(224,), precision="bf16")).rows([image(100, 130)])
    assert net.model.training
    assert net.model.layers["fc7"].weight.dtype == torch.float32
    again = feature_runner(net, ExtractionSettings(scales=(224,))).rows([image(100, 130)])[0].features
    assert np.array_equal(first, again)


def test_a_callers_autocast_changes_nothing():
    extraction = feature_runner(backbone(), ExtractionSettings(scales=(224,)))
    expected = extraction.rows([image(100, 130)])[0].features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(extraction.rows([image(100, 130)])[0].features, expected)


def test_interpolation_is_passed_on():
    made = image(100, 130)
    one, other = (
        feature_runner(backbone(), ExtractionSettings(scales=(224,), interpolation=kind)).rows([made])[0].features
        for kind in ("bilinear", "bicubic")
    )
    assert not np.allclose(one, other, rtol=1e-3)


def test_the_longest_side_at_the_largest_scale_decides_what_is_too_elongated():
    thin = DecodedImage((np.zeros((2, 600, 3), dtype=np.uint8),), (2, 600), bytes(32))
    settings = ExtractionSettings(scales=(224, 500))
    (row,) = feature_runner(backbone(), settings).rows([thin])
    assert str(row.failure).startswith("elongated: 600x2 pixels would become 150000x500")


def test_other_errors_are_not_taken_for_lack_of_memory(monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(extraction_module, "spatial_mean", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        feature_runner(backbone(), ExtractionSettings(scales=(224,))).rows([image(100, 100)])


def test_windows_bound_what_is_held_and_change_no_value():
    net = backbone()
    images = [image(100, 130, seed) for seed in range(6)]
    small = ExtractionSettings(scales=(224,), window_bytes=2 * 100 * 130 * 3)
    extraction = feature_runner(net, small)
    held = []
    original = extraction.batches
    extraction.batches = lambda window: held.append(len(window)) or original(window)
    found = extraction.rows(images)
    assert held == [2, 2, 2, 0]
    expected = feature_runner(net, ExtractionSettings(scales=(224,))).rows(images)
    for one, other in zip(found, expected, strict=True):
        close(one.features, other.features)


def test_the_same_call_gives_the_same_bits():
    net = backbone()
    images = [image(100, 130 + seed % 2, seed) for seed in range(5)]
    first, again = (feature_runner(net, ExtractionSettings(scales=SCALES)).rows(images) for _ in range(2))
    assert all(np.array_equal(a.features, b.features) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_the_direction_of_a_feature(precision):
    images = [image(100, 130, 1), image(130, 100, 2)]
    exact = feature_runner(backbone(), ExtractionSettings(scales=(224,))).rows(images)
    half = feature_runner(backbone(), ExtractionSettings(scales=(224,), precision=precision)).rows(images)
    for a, b in zip(exact, half, strict=True):
        assert b.features.dtype == np.float32
        one, other = a.features.ravel().astype(float), b.features.ravel().astype(float)
        assert not np.array_equal(one, other)
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.9999


MIXED = [(100, 130), (130, 100), (100, 133), (100, 131), (98, 140), (100, 130), (90, 90), (64, 200)]


@pytest.mark.parametrize("pool", ["floor", "ceil"])
@pytest.mark.parametrize(("net", "layer"), [("A", "fc7"), ("A-LRN", "fc8"), ("D", "pool5")])
def test_padding_between_images_changes_no_feature(net, layer, pool):
    weights = backbone(net, 1 / 32)
    weights.model.pool = pool
    images = [image(*size, seed) for seed, size in enumerate(MIXED)]
    kinds = [ExtractionSettings(scales=(225, 250), layer=layer, batching=kind) for kind in ("size", "padded")]
    own, padded = (feature_runner(weights, settings).rows(images) for settings in kinds)
    for one, other in zip(own, padded, strict=True):
        close(other.features, one.features)


def test_padded_batches_are_fewer(monkeypatch):
    passes = []
    original = VGG.forward

    def watch(self, tensor, *rest, **named):
        passes.append(tuple(tensor.shape))
        return original(self, tensor, *rest, **named)

    monkeypatch.setattr(VGG, "forward", watch)
    images = [image(*size, seed) for seed, size in enumerate(MIXED)]
    for kind, expected in (("size", 7), ("padded", 4)):
        passes.clear()
        feature_runner(backbone(width=1 / 32), ExtractionSettings(scales=(224,), batching=kind)).rows(images)
        assert len(passes) == expected
        assert sum(shape[0] for shape in passes) == 2 * len(MIXED)


def test_a_padded_image_that_does_not_fit_goes_through_in_strips(monkeypatch):
    images, net, seen = [image(100, 200)], backbone(width=1 / 32), []
    (expected,) = feature_runner(net, ExtractionSettings(scales=(225,), batching="padded")).rows(images)
    original = VGG.forward

    def scarce(self, tensor, *rest, **named):
        seen.append((tuple(tensor.shape), named.get("sides") is not None))
        if tensor[:, 0].numel() > 225 * 400:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, tensor, *rest, **named)

    monkeypatch.setattr(VGG, "forward", scarce)
    (found,) = feature_runner(net, ExtractionSettings(scales=(225,), batching="padded")).rows(images)
    close(found.features, expected.features)
    assert seen[0] == ((2, 3, 256, 480), True)
    assert all(shape[2] == 225 and not padded for shape, padded in seen[1:])


def test_padded_batches_that_do_not_fit_are_halved(monkeypatch):
    images = [image(100, 130 + seed, seed) for seed in range(4)]
    net = backbone(width=1 / 32)
    settings = ExtractionSettings(scales=(224,), batching="padded")
    expected = feature_runner(net, settings).rows(images)
    original = FeatureHead.values

    def scarce(head, model, tensor, pixels, sides):
        if len(tensor) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(head, model, tensor, pixels, sides)

    monkeypatch.setattr(FeatureHead, "values", scarce)
    starved = feature_runner(net, settings)
    for one, other in zip(starved.rows(images), expected, strict=True):
        close(one.features, other.features)
    assert starved.halvings == 1


def test_images_can_be_launched_before_others_are_finished():
    net = backbone(width=1 / 32)
    images = [image(100, 130, 1), ImageError("empty", "x"), image(130, 100, 2)]
    extraction = feature_runner(net, ExtractionSettings(scales=(224,)))
    expected = [extraction.rows([one])[0] for one in images]
    launched = [extraction.launch([one]) for one in images]
    for one, row in zip(reversed(launched), reversed(expected), strict=True):
        (found,) = extraction.finish(one)
        assert found.failure == row.failure
        assert row.features is None or np.array_equal(found.features, row.features)


def test_progress_counts_images():
    seen = []
    images = [image(100, 130, 1), ImageError("empty", "x"), image(120, 130, 2)]
    feature_runner(backbone(), ExtractionSettings(scales=SCALES)).rows(images, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(3)


def dataset(boxes=None):
    return DataSet(
        name="x",
        task=Task.UNLABELLED,
        classes=(),
        ids=("a", "b"),
        paths=("a.jpg", "b.jpg"),
        labels=np.zeros((2, 0), dtype=np.int8),
        boxes=boxes,
        root="root",
    )


def test_requests_name_the_file_and_the_parts():
    with_boxes = dataset(np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    made = list(row_requests(with_boxes, [1, 0], ("image", "box")))
    assert [request.path for request in made] == ["root/b.jpg", "root/a.jpg"]
    assert [request.boxes for request in made] == [(None, (5, 6, 7, 8)), (None, (1, 2, 3, 4))]


def test_a_sample_without_box_is_named():
    check_boxes(dataset(np.array([[1.0, 2, 3, 4], [np.nan] * 4])), ("image",))
    with pytest.raises(ConfigError, match="found none for b"):
        check_boxes(dataset(np.array([[1.0, 2, 3, 4], [np.nan] * 4])), ("box",))
    with pytest.raises(ConfigError, match="found none for a"):
        check_boxes(dataset(), ("image", "box"))


@pytest.mark.parametrize("settings", [
    {"scales": ()}, {"scales": (0,)}, {"scales": (256, 256)}, {"scales": (2.5,)}, {"regions": ()},
    {"regions": ("head",)}, {"precision": "fp8"}, {"interpolation": "nearest"}, {"batch_pixels": 0},
])  # fmt: skip
def test_settings_that_are_not_allowed_are_named(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ExtractionSettings(**settings)


def test_a_layer_that_the_net_has_not_is_named():
    with pytest.raises(
        ConfigError, match=r"layer: expected one of relu1_1, .*, conv5, pool5, fc6, fc7, fc8, found 'fc9'"
    ):
        feature_runner(backbone(), ExtractionSettings(layer="fc9"))


def test_devices_that_are_not_there_are_named():
    with pytest.raises(ConfigError, match="device: expected cpu or a CUDA device"):
        feature_runner(backbone(), ExtractionSettings(), "cuda:99")
    with pytest.raises(ConfigError, match="device: expected cpu or a CUDA device"):
        feature_runner(backbone(), ExtractionSettings(), "meta")
    with pytest.raises(ConfigError, match="on cpu expected fp32, winograd, bf16 or fp16, found tf32"):
        feature_runner(backbone(), ExtractionSettings(precision="tf32"), "cpu")


def test_an_image_that_does_not_fit_on_the_device_fails_alone(monkeypatch):
    upload = runner.to_device

    def scarce(tensor, device):
        if tensor.shape[0] == 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return upload(tensor, device)

    monkeypatch.setattr(runner, "to_device", scarce)
    images = [image(224, 224, 1), image(300, 300, 2), image(230, 240, 3)]
    rows = feature_runner(backbone(width=1 / 32), ExtractionSettings(scales=(224, 256))).rows(images)
    assert [row.failure and row.failure.reason for row in rows] == [None, "out-of-memory", None]


@pytest.mark.parametrize("batching", [pytest.param("size", marks=pytest.mark.long), "padded"])
def test_every_pass_of_a_compiled_net_is_compiled_whatever_its_shape(batching, monkeypatch):
    made, ran, passes = [], [], []

    def backend(graph, _):
        made.append(graph)
        return lambda *given: ran.append(graph) or graph.forward(*given)

    compiled, one_pass = VGG.compile, FeatureHead.values
    monkeypatch.setattr(VGG, "compile", lambda net, **options: compiled(net, backend=backend, **options))
    monkeypatch.setattr(FeatureHead, "values", lambda *given: passes.append(1) or one_pass(*given))
    net = backbone(width=1 / 32)
    # The deeper the map, the longer each compilation: padded batches of all forms go to pool3, the others to the end.
    scales, layer = ((224,), "pool3") if batching == "padded" else ((224, 256), "fc7")
    settings = ExtractionSettings(scales=scales, layer=layer, batching=batching, batch_pixels=1 << 18)
    # Squares, images alone in a batch, maps of one position: each a form of its own to a compiler.
    sizes = [(224, 224), (224, 225), (300, 300), (500, 375), (375, 500), (375, 500), (240, 700), (230, 260), (449, 233)]
    # Padded batches have the most forms, more than PyTorch compiles unless it is told to.
    images = [image(*size, seed) for seed, size in enumerate(sizes if batching == "padded" else sizes[::2])]
    plain = feature_runner(net, settings).rows(images)
    assert not made
    passes.clear()
    rows = feature_runner(net, replace(settings, compiled=True)).rows(images)
    assert len(ran) >= len(passes) > len(made) > 0
    for row, other in zip(rows, plain, strict=True):
        np.testing.assert_allclose(row.features, other.features, rtol=1e-4, atol=1e-6)
