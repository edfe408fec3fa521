"""Rescaling, normalisation and mirror, against Pillow and hand-computed values."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vggfeat.nets.transforms import clear, margin, mirror, normalise, normalised_batch, pad, rescale, rescaled_size


@pytest.mark.parametrize(("height", "width", "smallest", "expected"), [
    (375, 500, 256, (256, 341)),  # 341.33
    (500, 375, 384, (512, 384)),  # 512.0
    (333, 500, 256, (256, 384)),  # 384.38
    (2, 3, 5, (5, 8)),  # 7.5: halves go up
    (300, 300, 256, (256, 256)),
    (1, 100, 256, (256, 25600)),
    (768, 1024, 256, (256, 341)),
])  # fmt: skip
def test_the_smallest_side_becomes_q(height, width, smallest, expected):
    assert rescaled_size(height, width, smallest) == expected
    assert rescaled_size(width, height, smallest) == expected[::-1]


@pytest.mark.parametrize(("mode", "filter_"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("size", [(20, 31), (90, 130)])
def test_rescaling_equals_pillow(mode, filter_, size):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 77, 3), dtype=np.uint8)
    channels = [
        np.asarray(Image.fromarray(pixels[..., c].astype(np.float32)).resize(size[::-1], filter_)) for c in range(3)
    ]
    found = rescale(torch.from_numpy(pixels).permute(2, 0, 1), size, mode)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.stack(channels), atol=2e-3)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_rescaling_on_a_cpu_is_what_pytorch_does(mode):
    rng = np.random.default_rng(0)
    sizes = [(1, 1, 3, 5), (2, 9, 1, 1), (7, 5, 7, 50), (40, 31, 21, 31), (99, 50, 256, 129), (50, 40, 24, 15)]
    for height, width, tall, wide in [*sizes, *rng.integers(1, 90, (40, 4)).tolist()]:
        image = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).permute(2, 0, 1)
        expected = F.interpolate(image[None].float(), (tall, wide), mode=mode, align_corners=False, antialias=True)[0]
        for form in (image, image.contiguous(), image.float()):
            found = rescale(form, (tall, wide), mode)
            assert found.shape == (3, tall, wide)
            assert (found - expected).abs().max() < 2e-4, (height, width, tall, wide)


def test_rescaling_has_gradients_also_after_inference():
    image = torch.rand(3, 11, 13, requires_grad=True)
    with torch.inference_mode():
        rescale(image, (17, 19))
    rescale(image, (17, 19)).mean().backward()
    assert float(image.grad.sum()) == pytest.approx(1.0, abs=1e-5)  # The weights of each value add up to 1.


def test_anti_aliasing_keeps_the_mean_of_a_fine_pattern():
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 200  # a quarter of the size: without anti-aliasing all 0 or all 200
    inner = rescale(stripes, (16, 16))[:, 2:-2, 2:-2]
    assert (inner - 100).abs().max() < 1


def test_an_image_of_the_right_size_keeps_its_values():
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(rescale(image, (5, 7)), image.float())


def test_normalise_subtracts_the_mean_pixel_of_each_channel():
    images = torch.full((1, 3, 2, 2), 100.0)
    found = normalise(images, torch.tensor([100.0, 90.0, 130.0]), torch.tensor([1.0, 2.0, 10.0]))
    assert found[0, :, 0, 0].tolist() == [0.0, 5.0, -3.0]


@pytest.mark.parametrize("sizes", [[(4, 6)] * 3, [(4, 6), (5, 2), (1, 7)], [(3, 3)]])
def test_a_batch_has_the_values_of_its_images(sizes):
    mean, std = torch.tensor([100.0, 90.0, 130.0]), torch.tensor([1.0, 2.0, 10.0])
    planes = [torch.rand(3, *size) * 255 for size in sizes]
    pixels = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in planes]
    whole = max(size[0] for size in sizes), max(size[1] for size in sizes)
    expected = pad([normalise(image, mean, std) for image in planes], whole)
    for images in (planes, pixels):
        found = normalised_batch(images, mean, std, whole)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_mirror_swaps_left_and_right():
    images = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert mirror(images)[0, 0].tolist() == [[2, 1, 0], [5, 4, 3]]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_margin_is_cleared_and_nothing_of_the_images(layout):
    maps = torch.full((3, 2, 3, 4), torch.inf).contiguous(memory_format=layout)
    clear(maps, margin(maps, torch.tensor([(1, 2), (3, 2), (3, 4)])))
    own, x = torch.inf, 0
    expected = [
        [[own, own, x, own], [x, x, x, x], [own, own, x, own]],
        [[own, own, x, own], [own, own, x, own], [own, own, x, x]],  # as tall as the map
        [[own] * 4] * 3,  # as large as the map
    ]
    assert maps[:, 0].tolist() == maps[:, 1].tolist() == expected
    clear(maps, margin(maps, torch.tensor([(1, 1), (3, 2), (3, 4)]), reach=2))
    assert maps[0, 0].tolist() == [[own, x, x, own], [x, x, x, x], [x, x, x, x]]
    assert margin(maps, None) is None
    assert clear(maps, None) is maps
