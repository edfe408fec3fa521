"""Winograd's convolutions against PyTorch's own: the same sums, and which layers are computed in that way."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from vggfeat.errors import ConfigError
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.images.decode import DecodedImage
from vggfeat.nets import inference
from vggfeat.nets.families import build, initialise
from vggfeat.nets.inference import LEAST_CHANNELS, WinogradConv2d, with_winograd
from vggfeat.runtime.devices import checked_device
from vggfeat.weights import random_backbone

CHANNELS_LAST = torch.channels_last


def drawn(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def layer(channels, others, *, bias=True, dtype=torch.float64):
    made = nn.Conv2d(channels, others, 3, padding=1, bias=bias, dtype=dtype).requires_grad_(False)
    made.weight.copy_(drawn(others, channels, 3, 3, dtype=dtype) / channels**0.5)
    if bias:
        made.bias.copy_(drawn(others, dtype=dtype))
    return made


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("width", [1, 3, 4, 6, 7])
def test_in_float64_it_is_the_convolution(height, width):
    x, ours = drawn(2, 3, height, width), layer(3, 5)
    torch.testing.assert_close(WinogradConv2d(ours)(x), ours(x), rtol=0, atol=1e-13)


def test_without_a_bias_and_whatever_the_order_in_memory():
    x, ours = drawn(1, 2, 6, 6), layer(2, 4, bias=False)
    for form in (torch.contiguous_format, CHANNELS_LAST):
        found = WinogradConv2d(ours)(x.contiguous(memory_format=form))
        torch.testing.assert_close(found, ours(x), rtol=0, atol=1e-13)


def test_a_default_device_of_the_program_is_not_looked_at():
    x, ours = drawn(1, 2, 6, 6), layer(2, 4)
    with torch.device("meta"):
        found = WinogradConv2d(ours)(x)
    torch.testing.assert_close(found, ours(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [1, 40_000, 150_000])
def test_blocks_have_no_seams(size, monkeypatch):
    x, ours = drawn(3, 4, 21, 18), layer(4, 6)
    monkeypatch.setattr(inference, "_BLOCK_BYTES", size)  # a row of tiles, some, and whole images
    one = WinogradConv2d(ours)
    assert len(list(one._blocks(3, 6, 5))) == {1: 18, 40_000: 6, 150_000: 2}[size]
    torch.testing.assert_close(one(x), ours(x), rtol=0, atol=1e-13)


def test_rounding_in_float32_is_some_times_that_of_the_sum():
    x, exact = drawn(1, 512, 12, 12).relu(), layer(512, 64)
    expected = exact(x)
    ours, direct = WinogradConv2d(layer(512, 64, dtype=torch.float32)), layer(512, 64, dtype=torch.float32)
    error, least = (((made(x.float()) - expected).abs().max() / expected.abs().max()).item() for made in (ours, direct))
    assert least < error < 2e-5


def test_layers_of_another_form_stay():
    many = LEAST_CHANNELS
    others = [
        nn.Conv2d(many, many, 3),
        nn.Conv2d(many, many, 3, padding=1, stride=2),
        nn.Conv2d(many, many, 3, padding=2, dilation=2),
        nn.Conv2d(many, many, 3, padding=1, groups=2),
        nn.Conv2d(many, many, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(many, many, 1),
        nn.Conv2d(many, many, 7),
        nn.Conv2d(many - 1, many, 3, padding=1),
        nn.Conv2d(many, many - 1, 3, padding=1),
    ]
    found = with_winograd(nn.Sequential(*others, nn.Sequential(nn.Conv2d(many, many, 3, padding=1))))
    assert [type(one) for one in found[:-1]] == [nn.Conv2d] * len(others)
    assert type(found[-1][0]) is WinogradConv2d


def net(config):
    model = build(config, 10, width=1 / 4)
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False).to(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize(("config", "count"), [("A-LRN", 3), ("C", 3), ("D-BN", 5)])
def test_every_map_of_a_net_is_the_same_up_to_rounding(config, count):
    direct = net(config)
    ours = with_winograd(copy.deepcopy(direct))
    assert sum(isinstance(one, WinogradConv2d) for one in ours.layers.values()) == count
    x = drawn(2, 3, 231, 241, dtype=torch.float32).contiguous(memory_format=CHANNELS_LAST)
    sides = torch.tensor([[231, 241], [224, 231]])
    with torch.inference_mode():
        for given in ({}, {"sides": sides}):
            expected, found = direct(x, direct.maps, **given), ours(x, direct.maps, **given)
            for name, one in expected.items():
                assert found[name].shape == one.shape
                assert (found[name] - one).abs().max() <= 1e-5 * one.abs().max(), name


def test_a_runner_leaves_the_net_that_it_was_given_as_it_was():
    backbone = random_backbone("random:A:1:0.25")
    before = copy.deepcopy(backbone.model.state_dict())
    runner = feature_runner(backbone, ExtractionSettings(scales=(224,), precision="winograd"))
    assert any(isinstance(one, WinogradConv2d) for one in runner.model.layers.values())
    assert not any(isinstance(one, WinogradConv2d) for one in backbone.model.layers.values())
    assert all(torch.equal(one, before[name]) for name, one in backbone.model.state_dict().items())


def test_features_are_those_of_fp32_up_to_rounding():
    backbone = random_backbone("random:A:1:0.25")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image = DecodedImage((pixels,), (90, 120), bytes(32))
    found = [
        feature_runner(backbone, ExtractionSettings(scales=(224, 256), precision=precision)).rows([image])[0].features
        for precision in ("fp32", "winograd")
    ]
    assert not np.array_equal(*found)
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5 * found[0].max())


def test_it_is_for_the_cpu_and_not_compiled(monkeypatch):
    with pytest.raises(ConfigError, match="expected another than winograd for a compiled net"):
        ExtractionSettings(precision="winograd", compiled=True)
    monkeypatch.setattr(torch, "empty", lambda *size, device: torch.zeros(*size))
    with pytest.raises(ConfigError, match="on cuda expected fp32, tf32, bf16 or fp16, found winograd"):
        checked_device("cuda", "winograd")
