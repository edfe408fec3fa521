"""Batches of images: each image once, none too large, none too empty."""

import numpy as np
import pytest

from vggfeat.forward.batching import by_size, padded, rounded_up, tensor_size


def sizes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (256, int(side)) if tall else (int(side), 256)
        for side, tall in zip(rng.integers(256, 500, count), rng.random(count) < 0.7, strict=True)
    ]


def area(batch, sizes):
    height, width = rounded_up((max(sizes[n][0] for n in batch), max(sizes[n][1] for n in batch)))
    return len(batch) * height * width


def test_equal_sizes_share_a_batch_in_their_order():
    assert by_size([(2, 3), (1, 9), (2, 3), (2, 3)], pixels=12) == [[1], [0, 2], [3]]
    assert by_size([(2, 3)], pixels=1) == [[0]]
    assert by_size([], pixels=1) == []


def test_similar_sizes_share_a_padded_batch():
    assert padded([(30, 60), (60, 30), (32, 64), (30, 120)], pixels=32 * 64 * 2) == [[0, 2], [3], [1]]
    assert padded([(33, 90), (40, 65), (50, 96)], pixels=64 * 96 * 2) == [[0, 1], [2]]
    assert padded([], pixels=1) == []


@pytest.mark.parametrize("seed", range(5))
def test_padded_batches_hold_every_image_once_and_little_padding(seed):
    found = sizes(200, seed)
    pixels = 8 * 256 * 300
    batches = padded(found, pixels, waste=0.1)
    assert sorted(n for batch in batches for n in batch) == list(range(200))
    assert len(batches) < len(by_size(found, pixels))
    for batch in batches:
        assert len(batch) == 1 or area(batch, found) <= pixels
        assert sum(area([n], found) for n in batch) >= 0.9 * area(batch, found)


def test_sides_of_padded_batches_are_multiples_of_32():
    assert [rounded_up(size) for size in ((1, 32), (33, 64), (256, 341))] == [(32, 32), (64, 64), (256, 352)]
    assert tensor_size([(60, 40), (50, 70)], "padded", pixels=1) == (64, 96)
    assert tensor_size([(60, 40)], "padded", pixels=64 * 64) == (64, 64)
    assert tensor_size([(60, 40)], "padded", pixels=64 * 64 - 1) == (60, 40)  # in strips
    assert tensor_size([(60, 40)], "size", pixels=1 << 20) == (60, 40)
