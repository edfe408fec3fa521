"""The layers as inference on a CPU computes them, Winograd's too, against PyTorch's own, and where they stay these."""

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
from vggfeat.nets.inference import FEW_CHANNELS, LEAST_CHANNELS, WinogradConv2d, dense, max_pool, with_winograd
from vggfeat.runtime.devices import checked_device
from vggfeat.weights import random_backbone

CHANNELS_LAST = torch.channels_last


def net(config, dtype=torch.float32):
    model = build(config, 10, width=1 / 32)
    initialise(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model.eval().requires_grad_(False).to(dtype, memory_format=CHANNELS_LAST)


def images(*shape, dtype=torch.float32):
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return pixels.to(dtype).contiguous(memory_format=CHANNELS_LAST)


def products(monkeypatch):
    """Note what maps and weights are found to suit."""
    counted, chosen = [], inference._suits_onednn

    def counting(tensor):
        found = chosen(tensor)
        counted.append(found)
        return found

    monkeypatch.setattr(inference, "_suits_onednn", counting)
    return counted


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("config", ["A", "A-LRN", "C", "D-BN"])
def test_every_map_is_that_of_the_convolutions(config, dtype, most, monkeypatch):
    model, x = net(config, dtype), images(3, 3, 231, 265, dtype=dtype)
    sides = torch.tensor([[231, 265], [224, 265], [230, 231]])
    products_of = products(monkeypatch)
    with torch.no_grad():
        expected = [model(x, model.maps), model(x, model.maps, sides=sides)]
    assert products_of == []
    with torch.inference_mode():
        found = [model(x, model.maps), model(x, model.maps, sides=sides)]
        again = model(x, model.maps)
    if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert products_of == [True] * 18  # map and weights of three layers, three times
    else:
        assert products_of == [False] * 9  # their maps alone
    for ours, theirs in zip(found, expected, strict=True):
        for name, one in theirs.items():
            assert ours[name].shape == one.shape
            assert (ours[name] - one).abs().max() <= most * one.abs().max(), name
    assert all(torch.equal(again[name], one) for name, one in found[0].items())


def test_maps_keep_their_order_in_memory():
    model = net("A")
    with torch.inference_mode():
        maps = model(images(2, 3, 260, 230), ("fc6", "fc7", "fc8"))
    assert all(one.is_contiguous(memory_format=CHANNELS_LAST) for one in maps.values())


def test_a_number_that_is_none_stays_none():
    model, x = net("A"), images(1, 3, 224, 224)
    x[0, 0, 100, 100] = torch.nan
    with torch.inference_mode():
        assert model(x, ("fc7",))["fc7"].isnan().any()


def onednn(enabled):
    # A switch of Intel's GPUs, which it would touch as well, warns.
    return torch.backends.mkldnn.flags(enabled=enabled, allow_tf32=None)


ELSEWHERE = ["training", "float16", "float64", "bfloat16", "without onednn", "channels first", "half of it"]


@pytest.mark.parametrize("case", ELSEWHERE)
def test_elsewhere_they_are_convolutions(case, monkeypatch):
    layer, x = torch.nn.Conv2d(8, 4, 7).to(memory_format=CHANNELS_LAST), images(1, 8, 9, 9)
    if "float" in case:
        layer, x = layer.to(getattr(torch, case)), x.to(getattr(torch, case))
    elif case == "channels first":
        layer, x = layer.to(memory_format=torch.contiguous_format), x.contiguous()
    elif case == "half of it":
        layer = layer.to(memory_format=torch.contiguous_format)
    expected = copy.deepcopy(layer)(x).detach()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
    # Processors without AVX-512 have no bfloat16 by oneDNN.
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with onednn(case != "without onednn"), torch.inference_mode(case != "training"):
        found = dense(layer, x)
    torch.testing.assert_close(found.detach(), expected)


def test_gradients_flow_as_before():
    layer, x = torch.nn.Conv2d(8, 4, 7).to(memory_format=CHANNELS_LAST), images(1, 8, 9, 9)
    dense(layer, x).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ceil", [False, True])
def test_few_channels_are_pooled_to_the_same_bits(ceil, dtype, monkeypatch):
    maps = [images(2, 3, height, width, dtype=dtype) for height in (2, 5, 6) for width in (3, 4, 7)]
    maps[0][0, 0, 0, 0], maps[0][1, 1, 1, 1] = torch.nan, torch.inf
    expected = [torch.nn.functional.max_pool2d(x, 2, ceil_mode=ceil) for x in maps]
    monkeypatch.setattr(inference, "F", None)  # PyTorch's own is not to be had
    with torch.inference_mode():
        found = [max_pool(x, ceil=ceil) for x in maps]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert ours.is_contiguous(memory_format=CHANNELS_LAST)


def test_other_maps_are_pooled_by_pytorch(monkeypatch):
    monkeypatch.setattr(inference, "_halved", None)
    many, few = images(1, FEW_CHANNELS + 1, 4, 4), images(1, 2, 4, 4)
    assert max_pool(few, ceil=False).shape == (1, 2, 2, 2)
    with torch.inference_mode():
        for x in (many, few.contiguous(), images(1, 2, 1, 5)):
            assert max_pool(x, ceil=True).shape[3] == (x.shape[3] + 1) // 2
        with pytest.raises(RuntimeError, match="too small"):
            max_pool(images(1, 2, 1, 5), ceil=False)


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


def wide_net(config):
    model = build(config, 10, width=1 / 4)
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False).to(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize(("config", "count"), [("A-LRN", 3), ("C", 3), ("D-BN", 5)])
def test_every_map_of_a_net_is_the_same_up_to_rounding(config, count):
    direct = wide_net(config)
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
