"""Multiply-adds, bytes and least times: counted by hand and by PyTorch; ceilings of this machine."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from vggfeat.benchmarks import roofline
from vggfeat.benchmarks.roofline import copy_rate, image_costs, layer_costs, matrix_rate, measure, summarise
from vggfeat.cli import run
from vggfeat.errors import ConfigError
from vggfeat.forward.features import ExtractionSettings
from vggfeat.nets.vgg import VGG

CPU = torch.device("cpu")
FIVE = (256, 384, 512, 640, 768)


def net(config="D", width=1.0, pool="floor"):
    with torch.device("meta"):
        return VGG(config, width=width, pool=pool)


# --- operations and bytes


@pytest.mark.parametrize("config", ["A", "A-LRN", "C", "E"])
@pytest.mark.parametrize("pool", ["floor", "ceil"])
@pytest.mark.parametrize("layer", ["pool5", "fc6", "fc7", "fc8"])
def test_multiply_adds_are_those_that_pytorch_counts(config, pool, layer):
    model = net(config, 1 / 16, pool)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 251, 334, device="meta"), (layer,))
    counted = sum(cost.multiply_adds for cost in layer_costs(model, 251, 334, layer))
    assert 2 * counted == counter.get_total_flops()


def test_a_layer_by_hand():
    # A at 1/64: 1, 2, 4, 8, 8 channels and 64 in fc6. 225 x 300 pixels, halved with the rest left out.
    first, second, *_ = layer_costs(net("A", 1 / 64), 225, 300)
    assert (first.name, first.outputs, second.name, second.outputs) == (
        "conv1_1",
        (1, 225, 300),
        "conv2_1",
        (2, 112, 150),
    )
    assert first.multiply_adds == 27 * 225 * 300
    assert first.weights == 27 + 1
    # Three channels are read, a quarter of one is written.
    assert first.activations == 3 * 225 * 300 + 112 * 150
    fc6 = next(cost for cost in layer_costs(net("A", 1 / 64), 225, 300) if cost.name == "fc6")
    assert fc6.outputs == (64, 1, 3)
    assert fc6.multiply_adds == 8 * 49 * 64 * 3
    assert fc6.activations == 8 * 7 * 9 + 64 * 3


def test_sides_that_are_rounded_up_where_the_pooling_does():
    down, up = (layer_costs(net("A", 1 / 64, pool), 225, 301) for pool in ("floor", "ceil"))
    assert [cost.outputs[1:] for cost in down[:2]] == [(225, 301), (112, 150)]
    assert [cost.outputs[1:] for cost in up[:2]] == [(225, 301), (113, 151)]


@pytest.mark.parametrize(("config", "name"), [("A", "vgg11"), ("B", "vgg13"), ("D", "vgg16"), ("E", "vgg19")])
def test_a_crop_takes_what_torchvision_publishes(config, name):
    published = models.get_model_weights(name).IMAGENET1K_V1.meta["_ops"]  # in 10^9, to three digits after the point
    layers = layer_costs(net(config), 224, 224)
    assert sum(layer.multiply_adds for layer in layers) / 1e9 == pytest.approx(published, abs=6e-4)
    assert layers[0].multiply_adds == 224 * 224 * 64 * 27


def test_five_scales_take_93_crops():
    costs = image_costs(net(), ExtractionSettings(scales=FIVE), (375, 500))
    crop = sum(cost.multiply_adds for cost in layer_costs(net(), 224, 224, "fc7"))
    scales = ["256 x 341", "384 x 512", "512 x 683", "640 x 853", "768 x 1024"]
    assert list(dict.fromkeys(cost.scale for cost in costs)) == scales
    total = summarise(costs, {})["multiply_adds"]
    assert total == pytest.approx(1.4e12, rel=0.05)
    assert total / crop == pytest.approx(93, abs=2)


def test_weights_are_read_once_a_pass():
    model, size = net("A", 1 / 16), 256 * 341

    def moved(**changes):
        return summarise(image_costs(model, ExtractionSettings(scales=(256,), **changes), (375, 500)), {})["bytes"]

    alone, four = (moved(batch_pixels=n * 2 * size) for n in (1, 4))
    weights = sum(cost.weights for cost in layer_costs(model, 256, 341, "fc7"))
    assert alone - four == pytest.approx(4 * weights * 3 / 4)
    assert 2 * moved(batch_pixels=2 * size, precision="bf16") == alone


def test_the_slower_of_both_bounds_a_layer():
    costs = image_costs(net("A", 1 / 16), ExtractionSettings(scales=(256, 384)), (300, 400))
    assert not {"seconds", "bound"} & summarise(costs, {}).keys()
    ceilings = {"multiply_adds": 2e9, "bytes": 1e8}
    each = [summarise([cost], ceilings) for cost in costs]
    for cost, found in zip(costs, each, strict=True):
        times = cost.multiply_adds / 2e9, cost.bytes / 1e8
        assert found["seconds"] == pytest.approx(max(times))
        assert found["bound"] == ("matrix" if times[0] >= times[1] else "memory")
        assert (found["bound"] == "matrix") == (found["intensity"] >= 2e9 / 1e8)
    assert {found["bound"] for found in each} == {"matrix", "memory"}
    total = summarise(costs, ceilings)
    assert total["seconds"] == pytest.approx(sum(found["seconds"] for found in each))
    longest = {b: sum(found["seconds"] for found in each if found["bound"] == b) for b in ("matrix", "memory")}
    assert total["bound"] == max(longest, key=longest.get)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ConfigError, match=r"shape: expected sides of at least 1 pixel, found 0x5"):
        image_costs(net("A", 1 / 64), ExtractionSettings(scales=(256,)), (0, 5))


# --- ceilings


def test_ceilings_are_of_this_machine(monkeypatch):
    monkeypatch.setattr("vggfeat.benchmarks.roofline.MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr("vggfeat.benchmarks.roofline.COPY_BYTES", {"cpu": 1 << 16})
    for precision in ("fp32", "bf16"):
        assert 1e6 < matrix_rate(CPU, precision, 0.01) < 1e14
    assert 1e6 < copy_rate(CPU, 0.01) < 1e14
    with pytest.raises(ConfigError, match="on cpu expected fp32, winograd, bf16 or fp16, found tf32"):
        measure(net("A", 1 / 64), ExtractionSettings(scales=(256,), precision="tf32"), (300, 400), seconds=0.01)


def test_a_matrix_product_leaves_no_trace_for_which_nets_are_compiled_again(monkeypatch):
    monkeypatch.setattr("vggfeat.benchmarks.roofline.MATRIX_SIDE", {"cpu": 64})
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "none"
    try:
        matrix_rate(CPU, "fp32", 0)
        assert matmul.fp32_precision == "none"
    finally:
        matmul.fp32_precision = before


def test_both_libraries_multiply_the_same_matrices():
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    first, second = roofline._products(torch.from_numpy(left), torch.from_numpy(right))
    np.testing.assert_allclose(first().numpy(), left @ right, atol=1e-4)
    np.testing.assert_allclose(second().numpy(), left @ right, atol=1e-4)


# --- the command

SMALL = ["--net", "A", "--width", "0.0625", "--scales", "224", "--device", "cpu"]


def test_the_roofline_as_text_and_as_json(monkeypatch, capsys):
    monkeypatch.setattr("vggfeat.benchmarks.roofline.MATRIX_SIDE", {"cpu": 256})
    monkeypatch.setattr("vggfeat.benchmarks.roofline.COPY_BYTES", {"cpu": 1 << 20})
    words = ["bench", "roofline", *SMALL, "--shape", "300x400", "--seconds", "0.01"]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN
    assert found["format"] == "vggfeat-bench-roofline"
    assert found["settings"]["image"] == "300 x 400, mirrored"
    assert [row["name"] for row in found["rows"]][-3:] == ["fc7", "224 x 299", "all"]
    total = found["rows"][-1]
    assert total["seconds"] == pytest.approx(sum(row["seconds"] for row in found["rows"][:-2]))
    assert found["ceilings"].keys() == {"multiply_adds", "bytes"}
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert f"{total['multiply_adds'] / 1e9:.4g}" in shown
    for words in ("image 300 x 400, mirrored", "conv1_1", "224 x 299", "GB/s", "at most", "bound by"):
        assert words in shown


def test_counting_measures_nothing(capsys):
    assert run(["bench", "roofline", *SMALL, "--no-measure"]) == 0
    shown = capsys.readouterr().out
    assert "least ms" not in shown
    assert "at most" not in shown
    assert run(["bench", "roofline", *SMALL, "--no-measure", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN
    assert found["ceilings"] is found["machine"] is None


@pytest.mark.parametrize("shape", ["375", "ax4", "0x5"])
def test_a_shape_that_is_none_is_refused(shape, capsys):
    assert run(["bench", "roofline", *SMALL, "--no-measure", "--shape", shape]) == 2
    assert "expected" in capsys.readouterr().err
