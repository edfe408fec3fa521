"""The layers as inference on a CPU computes them against PyTorch's own, and where they stay these."""

import copy

import pytest
import torch

from vggfeat.nets import inference
from vggfeat.nets.families import build, initialise
from vggfeat.nets.inference import FEW_CHANNELS, dense, max_pool

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
