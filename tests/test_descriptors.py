"""Joining and normalising, by hand."""

import numpy as np
import pytest

from vggfeat.descriptors import fuse, join_features, l2_normalise
from vggfeat.errors import ConfigError

# One image, two scales, two regions, two channels.
FEATURES = np.array([[[[3, 0], [0, 8]], [[3, 8], [6, 8]]]], dtype=np.float32)


def test_mean_over_scales_then_regions_side_by_side():
    found = join_features(FEATURES, "mean", "none")
    assert found.tolist() == [[3, 4, 3, 8]]


def test_the_mean_of_large_values_does_not_overflow_and_that_of_others_keeps_its_bits():
    large = np.full((1, 3, 1, 2), 2e38, dtype=np.float32)
    assert (join_features(large, "mean", "none") == np.float32(2e38)).all()
    np.testing.assert_allclose(join_features(large, "mean"), 0.5**0.5, rtol=1e-6)
    rows = np.random.default_rng(0).random((5, 3, 1, 4)).astype(np.float32)
    both = join_features(np.concatenate([rows, np.repeat(large, 2, axis=3)]), "mean", "none")
    np.testing.assert_array_equal(both[:5], rows.mean(axis=1)[:, 0])


def test_maximum_over_scales():
    assert join_features(FEATURES, "max", "none").tolist() == [[3, 8, 6, 8]]


def test_stacking_goes_region_by_region_and_in_it_scale_by_scale():
    assert join_features(FEATURES, "stack", "none").tolist() == [[3, 0, 3, 8, 0, 8, 6, 8]]


def test_whole_brings_the_descriptor_to_unit_length():
    found = join_features(FEATURES, "mean", "whole")
    np.testing.assert_allclose(found, np.array([[3, 4, 3, 8]]) / np.sqrt(98), rtol=1e-6)


def test_blocks_brings_each_region_to_the_same_length_first():
    found = join_features(FEATURES, "mean", "blocks")
    expected = np.array([3 / 5, 4 / 5, 3 / np.sqrt(73), 8 / np.sqrt(73)]) / np.sqrt(2)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_with_one_region_blocks_and_whole_are_the_same():
    one = FEATURES[:, :, :1]
    np.testing.assert_allclose(join_features(one, "stack", "blocks"), join_features(one, "stack", "whole"), rtol=1e-6)


NET_D = np.array([[[[3, 4]]]], dtype=np.float32)
NET_E = np.array([[[[12, 0, 0]]]], dtype=np.float32)


@pytest.mark.parametrize(("normalisation", "expected"), [
    ("blocks", np.array([0.6, 0.8, 1, 0, 0]) / np.sqrt(2)),
    ("whole", np.array([3, 4, 12, 0, 0]) / 13),
    ("none", np.array([3, 4, 12, 0, 0])),
])  # fmt: skip
def test_two_nets_are_stacked_in_the_order_given_and_whole_normalises_neither_by_itself(normalisation, expected):
    np.testing.assert_allclose(fuse([NET_D, NET_E], "mean", normalisation)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(fuse([NET_E, NET_D], "mean", normalisation)[0, 3:], expected[:2], rtol=1e-6)


@pytest.mark.parametrize("normalisation", ["blocks", "whole", "none"])
def test_one_net_is_only_joined(normalisation):
    expected = join_features(FEATURES, "stack", normalisation)
    np.testing.assert_array_equal(fuse([FEATURES], "stack", normalisation), expected)


def test_lengths_of_the_paper():
    """Table 11 and Appendix B: 4096 on VOC, 12,288 on Caltech, 16,384 for two nets with image and box."""
    voc = np.ones((1, 5, 1, 4096), dtype=np.float32)
    caltech = np.ones((1, 3, 1, 4096), dtype=np.float32)
    actions = np.ones((1, 5, 2, 4096), dtype=np.float32)
    assert join_features(voc, "mean").shape == (1, 4096)
    assert join_features(caltech, "stack").shape == (1, 12288)
    assert fuse([caltech] * 2, "stack").shape == (1, 24576)
    assert fuse([actions] * 2, "mean").shape == (1, 16384)


def test_a_zero_feature_stays_zero_and_nothing_divides_by_it():
    assert join_features(np.zeros((2, 1, 1, 3), np.float32)).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize("join", ["mean", "max", "stack"])
@pytest.mark.parametrize("normalisation", ["blocks", "whole", "none"])
def test_an_image_that_failed_stays_nan_and_becomes_no_zero(join, normalisation):
    features = np.ones((3, 2, 1, 4), np.float32)
    features[1] = np.nan
    found = join_features(features, join, normalisation)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    np.testing.assert_array_equal(found[0], join_features(features[:1], join, normalisation)[0])


def test_lengths_are_one_whatever_the_scale_of_the_numbers():
    vectors = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    for factor in (1e-18, 1.0, 1e18):
        lengths = np.linalg.norm(l2_normalise(vectors * np.float32(factor)).astype(float), axis=1)
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.longdouble, np.int32, np.uint8])
def test_other_kinds_of_numbers_become_float32_and_lose_no_digit_on_the_way(kind):
    features = np.arange(24).reshape(2, 2, 2, 3).astype(kind)
    found = join_features(features, "mean", "whole")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, join_features(features.astype(np.float32), "mean", "whole"))


def test_an_array_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match=r"features: expected an array \(N, scales, regions, channels\), found shape"):
        join_features(FEATURES[0])


@pytest.mark.parametrize(
    ("join", "normalisation", "named"), [("sum", "blocks", "join"), ("mean", "l1", "normalisation")]
)
def test_unknown_ways_are_named(join, normalisation, named):
    with pytest.raises(ConfigError, match=f"{named}: expected one of"):
        join_features(FEATURES, join, normalisation)
