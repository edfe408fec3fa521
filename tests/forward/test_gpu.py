"""The same claims on a GPU as on the CPU. Without one this file is skipped, and nothing is claimed of GPUs."""

import numpy as np
import pytest
import torch

from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.images.decode import DecodedImage
from vggfeat.weights import random_backbone

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device here")
NET = "random:D:0:0.25"


def images():
    rng = np.random.default_rng(0)
    sizes = [(375, 500), (500, 375), (333, 500), (375, 500)]
    return [DecodedImage((rng.integers(0, 256, (*size, 3), dtype=np.uint8),), size, bytes(32)) for size in sizes]


def features(device, precision="fp32", **options):
    settings = ExtractionSettings(scales=(256, 384), precision=precision, **options)
    return np.stack([row.features for row in feature_runner(random_backbone(NET), settings, device).rows(images())])


def cosines(one, other):
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(axis=-1, dtype=np.float64) / lengths


def test_float32_equals_the_cpu():
    one, other = features("cpu"), features("cuda")
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_other_precisions_keep_the_direction(precision):
    assert cosines(features("cuda"), features("cuda", precision)).min() > 0.9999


def test_the_same_call_gives_the_same_bits():
    assert np.array_equal(features("cuda"), features("cuda"))


def test_strips_equal_the_whole():
    whole, strips = features("cuda"), features("cuda", batch_pixels=2 * 384 * 400)
    np.testing.assert_allclose(strips, whole, rtol=1e-3, atol=1e-4 * np.abs(whole).max())


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same():
    many = images() * 8
    net = random_backbone(NET)
    expected = feature_runner(net, ExtractionSettings(scales=(768,)), "cuda").rows(many)
    extraction = feature_runner(net, ExtractionSettings(scales=(768,), batch_pixels=1 << 28), "cuda")
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(max(0, free - (3 << 30)), dtype=torch.uint8, device="cuda")
    try:
        rows = extraction.rows(many)
    finally:
        del taken
        torch.cuda.empty_cache()
    assert extraction.halvings > 0
    for row, wanted in zip(rows, expected, strict=True):
        scale = np.abs(wanted.features).max()
        np.testing.assert_allclose(row.features, wanted.features, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_padded_batches_equal_those_of_equal_size(precision):
    one, other = features("cuda", precision), features("cuda", precision, batching="padded")
    assert cosines(one, other).min() > 0.9999


def test_launches_that_follow_each_other_keep_their_rows():
    extraction = feature_runner(random_backbone(NET), ExtractionSettings(scales=(256, 384)), "cuda")
    expected = [row.features for row in extraction.rows(images())]
    launched = [extraction.launch(images()[::order]) for order in (1, -1)]
    for order, one in zip((1, -1), launched, strict=True):
        for row, wanted in zip(extraction.finish(one), expected[::order], strict=True):
            np.testing.assert_allclose(row.features, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
