"""Multiply-adds, bytes and least times: counted by hand and by PyTorch; ceilings of this machine."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from vggfeat.benchmarks import ceilings
from vggfeat.benchmarks.ceilings import copy_rate, matrix_rate, with_threads
from vggfeat.benchmarks.roofline import Ceilings, layer_costs, measure_ceilings, roofline
from vggfeat.cli import run
from vggfeat.errors import ConfigError
from vggfeat.forward.features import ExtractionSettings
from vggfeat.nets.vgg import VGG

CPU = torch.device("cpu")
FIVE = (256, 384, 512, 640, 768)


def net(config="D", width=1.0, pool="floor", classes=1000):
    with torch.device("meta"):
        return VGG(config, classes, width=width, pool=pool)


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
    assert first.fused == 3 * 225 * 300 + 112 * 150
    # The convolution writes, ReLU reads and writes, pooling reads and writes.
    assert first.separate == 3 * 225 * 300 + 4 * 225 * 300 + 112 * 150
    fc6 = next(cost for cost in layer_costs(net("A", 1 / 64), 225, 300) if cost.name == "fc6")
    assert fc6.outputs == (64, 1, 3)
    assert fc6.multiply_adds == 8 * 49 * 64 * 3
    assert fc6.fused == 8 * 7 * 9 + 64 * 3
    assert fc6.separate == fc6.fused + 2 * 64 * 3


def test_sides_that_are_rounded_up_where_the_pooling_does():
    down, up = (layer_costs(net("A", 1 / 64, pool), 225, 301) for pool in ("floor", "ceil"))
    assert [cost.outputs[1:] for cost in down[:2]] == [(225, 301), (112, 150)]
    assert [cost.outputs[1:] for cost in up[:2]] == [(225, 301), (113, 151)]


def test_a_crop_of_net_d_takes_what_torchvision_publishes():
    found = roofline(net(), ExtractionSettings(scales=(224,), layer="fc8"), (224, 224))
    published = models.get_model_weights("vgg16").IMAGENET1K_V1.meta["_ops"] * 1e9
    assert found.total.multiply_adds == pytest.approx(2 * published, rel=1e-4)


def test_five_scales_take_93_crops():
    found = roofline(net(), ExtractionSettings(scales=FIVE), (375, 500))
    crop = sum(cost.multiply_adds for cost in layer_costs(net(), 224, 224, "fc7"))
    assert found.sizes == ((256, 341), (384, 512), (512, 683), (640, 853), (768, 1024))
    assert found.total.multiply_adds == pytest.approx(1.4e12, rel=0.05)
    assert found.total.multiply_adds / crop == pytest.approx(93, abs=2)


def test_weights_are_read_once_a_pass():
    model, size = net("A", 1 / 16), 256 * 341
    alone, four = (
        roofline(model, ExtractionSettings(scales=(256,), batch_pixels=n * 2 * size), (375, 500)) for n in (1, 4)
    )
    weights = sum(cost.weights for cost in layer_costs(model, 256, 341, "fc7"))
    assert alone.total.bytes - four.total.bytes == pytest.approx(4 * weights * 3 / 4)
    half = roofline(model, ExtractionSettings(scales=(256,), batch_pixels=2 * size, precision="bf16"), (375, 500))
    assert 2 * half.total.bytes == alone.total.bytes


def test_the_slower_of_both_bounds_a_layer():
    model, settings = net("A", 1 / 16), ExtractionSettings(scales=(256, 384))
    counted = roofline(model, settings, (300, 400))
    assert (counted.total.seconds, counted.total.bound) == (0, "")
    found = roofline(model, settings, (300, 400), Ceilings(device="d", multiply_adds=2e9, bytes=1e8))
    assert {cost.bound for cost in found.layers} == {"matrix", "memory"}
    for costs in found.each:
        for cost in costs:
            times = cost.multiply_adds / 2e9, cost.bytes / 1e8
            assert cost.seconds == pytest.approx(max(times))
            assert (
                cost.bound
                == ("matrix" if times[0] >= times[1] else "memory")
                == ("matrix" if cost.intensity >= found.ceilings.ridge else "memory")
            )
            assert cost.separate_seconds >= cost.seconds
    each = sum(cost.seconds for costs in found.each for cost in costs)
    assert sum(cost.seconds for cost in found.layers) == pytest.approx(each)
    assert sum(cost.seconds for cost in found.scales) == pytest.approx(each)
    assert found.describe()["images_per_second"] == pytest.approx(1 / each)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ConfigError, match=r"shape: expected sides of at least 1 pixel, found 0x5"):
        roofline(net("A", 1 / 64), ExtractionSettings(scales=(256,)), (0, 5))


# --- ceilings


def test_ceilings_are_of_this_machine(monkeypatch):
    monkeypatch.setattr("vggfeat.benchmarks.ceilings.MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr("vggfeat.benchmarks.ceilings.COPY_BYTES", {"cpu": 1 << 16})
    for precision in ("fp32", "bf16"):
        assert 1e6 < matrix_rate(CPU, precision, 0.01) < 1e14
    assert 1e6 < copy_rate(CPU, 0.01) < 1e14
    with pytest.raises(ConfigError, match="tf32 exists on CUDA devices only"):
        measure_ceilings("cpu", "tf32", 0.01)


def test_a_matrix_product_leaves_no_trace_for_which_nets_are_compiled_again(monkeypatch):
    monkeypatch.setattr("vggfeat.benchmarks.ceilings.MATRIX_SIDE", {"cpu": 64})
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
    first, second = ceilings._products(torch.from_numpy(left), torch.from_numpy(right))
    np.testing.assert_allclose(first().numpy(), left @ right, atol=1e-4)
    np.testing.assert_allclose(second().numpy(), left @ right, atol=1e-4)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with with_threads(before + 1) as used:
        assert torch.get_num_threads() == used == before + 1
    assert torch.get_num_threads() == before


# --- the command

SMALL = ["--net", "A", "--width", "0.0625", "--scales", "224", "--device", "cpu"]


def test_the_roofline_as_text_and_as_json(monkeypatch, capsys):
    monkeypatch.setattr("vggfeat.benchmarks.ceilings.MATRIX_SIDE", {"cpu": 256})
    monkeypatch.setattr("vggfeat.benchmarks.ceilings.COPY_BYTES", {"cpu": 1 << 20})
    words = ["bench", "roofline", *SMALL, "--shape", "300x400", "--seconds", "0.01"]
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "vggfeat-bench-roofline"
    assert told["scales"][0]["size"] == [224, 299]
    assert [layer["name"] for layer in told["layers"]][-1] == "fc7"
    assert told["images_per_second"] == pytest.approx(1 / told["total"]["seconds"])
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert f"{told['total']['multiply_adds'] / 1e9:.3g}" in shown
    assert "an image of 300 x 400, mirrored" in shown
    for words in ("conv1_1", "224 x 299", "GB/s", "at most", "bound by"):
        assert words in shown


def test_counting_measures_nothing(capsys):
    assert run(["bench", "roofline", *SMALL, "--no-measure"]) == 0
    shown = capsys.readouterr().out
    assert "least ms" not in shown
    assert "at most" not in shown
    assert run(["bench", "roofline", *SMALL, "--no-measure", "--json"]) == 0
    assert "ceilings" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("shape", ["375", "ax4", "0x5"])
def test_a_shape_that_is_none_is_refused(shape, capsys):
    assert run(["bench", "roofline", *SMALL, "--no-measure", "--shape", shape]) == 2
    assert "expected" in capsys.readouterr().err
