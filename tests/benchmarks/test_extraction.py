"""The benchmarks of extraction: what is counted, by hand and by PyTorch; what is measured, for consistency."""

import json
from collections import Counter
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from vggfeat.benchmarks import ceilings
from vggfeat.benchmarks import extraction as bench
from vggfeat.benchmarks.ceilings import copy_rate, matrix_rate, with_threads
from vggfeat.benchmarks.extraction import BenchSettings, default_images, measure
from vggfeat.benchmarks.jpegs import SHAPES, listed, make_jpegs, photograph, shapes
from vggfeat.benchmarks.operations import layer_costs
from vggfeat.benchmarks.plain import PlainExtractor, plain_net, plain_precision, read_features
from vggfeat.benchmarks.roofline import Ceilings, measure_ceilings, roofline
from vggfeat.benchmarks.speeds import Form, FormSpeeds, PlainSpeeds, Rates, Speeds
from vggfeat.benchmarks.stages import Stages, run_network
from vggfeat.cli import run
from vggfeat.errors import ConfigError
from vggfeat.extract import RunSettings
from vggfeat.forward.features import Extraction, ExtractionSettings, requests
from vggfeat.forward.precision import cosines
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.nets.vgg import VGG
from vggfeat.weights import random_backbone

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


# --- images


def test_the_images_have_the_sides_and_the_sizes_of_real_ones(tmp_path):
    found = shapes(200, np.random.default_rng(0))
    assert {shape: found.count(shape) for shape in SHAPES} == {shape: share * 200 for shape, share in SHAPES.items()}
    assert all(64 <= side <= 500 for shape in found for side in shape)
    names = make_jpegs(tmp_path, 4, 0)
    sizes = []
    for name in names:
        with Image.open(tmp_path / name) as image:
            pixels = image.width * image.height
        sizes.append((tmp_path / name).stat().st_size / pixels)
    # At 500 x 375: bytes a pixel of files of 75 to 110 kB.
    assert 0.4 < np.mean(sizes) < 0.59


def test_equal_seeds_give_equal_files(tmp_path):
    def files(folder, seed):
        (tmp_path / folder).mkdir()
        return [(tmp_path / folder / name).read_bytes() for name in make_jpegs(tmp_path / folder, 2, seed)]

    first, same, other = files("a", 3), files("b", 3), files("c", 4)
    assert first == same != other


def test_amplitudes_fall_as_in_photographs():
    grey = photograph(np.random.default_rng(0), 256, 256).mean(axis=2)
    amplitude = np.abs(np.fft.fft2(grey - grey.mean()))
    low, high = amplitude[0, 4:8].mean(), amplitude[0, 32:64].mean()
    assert 4 < low / high < 16  # eight times the frequency


def test_a_list_may_go_through_the_files_again(tmp_path):
    data = listed(tmp_path, ("a.jpg", "b.jpg"), 3)
    assert data.paths == ("a.jpg", "b.jpg") * 3
    assert len(set(data.ids)) == 6


# --- the plain baseline


@pytest.mark.parametrize(("config", "layer"), [("A", "fc7"), ("A-LRN", "fc6"), ("C", "pool5"), ("D", "fc8")])
def test_the_baseline_has_our_features(tmp_path, config, layer):
    backbone = random_backbone(f"random:{config}:1:0.0625")
    files = listed(tmp_path, make_jpegs(tmp_path, 2, 5))
    with Decoder(0, DecodeSettings()) as decoder:
        images = list(decoder.stream(requests(files, range(2), ("image",))))
    ours = Extraction(backbone, ExtractionSettings(scales=(224, 256), layer=layer)).rows(images)
    theirs = PlainExtractor(backbone, (224, 256), layer, CPU)
    for row, path in zip(ours, files.paths, strict=True):
        expected = theirs.features(tmp_path / path)
        np.testing.assert_allclose(row.features[:, 0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("way", ["autocast", "bfloat16"])
@pytest.mark.parametrize("config", ["A", "A-LRN"])
def test_the_baseline_in_bf16_has_them_up_to_rounding(tmp_path, config, way):
    backbone = random_backbone(f"random:{config}:1:0.0625")
    (name,) = make_jpegs(tmp_path, 1, 5)
    exact, rounded = (PlainExtractor(backbone, (224, 256), "fc7", CPU, form) for form in ("float32", way))
    rounded.write([tmp_path / name], tmp_path / "out.h5")
    (found,), expected = read_features(tmp_path / "out.h5"), exact.features(tmp_path / name)
    assert found.dtype == expected.dtype == np.float32
    assert 0.999 < cosines(found, expected).min() < 1 - 1e-9
    kept = next(rounded.net.parameters()).dtype
    assert kept == (torch.float32 if way == "autocast" else torch.bfloat16)


def test_the_faster_way_to_bf16_is_the_baseline(stages, monkeypatch):
    def seconds(act, *_):
        way = act.func.__self__.way
        return {"autocast": 2.0, "bfloat16": 1.0}[way]

    monkeypatch.setattr(bench, "_seconds", seconds)
    settings = BenchSettings(scales=(224,), forms=(Form("bf16", "size"), Form("fp16", "size")))
    found = bench._baselines(stages, settings, lambda name: None)
    assert [(one.precision, one._extractor.way) for one in found] == [("fp32", "float32"), ("bf16", "bfloat16")]
    (alone,) = bench._baselines(stages, replace(settings, forms=(Form("fp16", "size"),)), lambda name: None)
    assert alone.precision == "fp32"


def test_float32_of_a_plain_user_is_tf32_on_a_gpu():
    assert [plain_precision(torch.device(name)) for name in ("cpu", "cuda:1")] == ["fp32", "tf32"]


@pytest.mark.parametrize(("config", "name"), [("A", "vgg11"), ("D", "vgg16")])
def test_the_baseline_is_torchvisions_module_where_there_is_one(config, name, monkeypatch):
    with torch.device("meta"):
        module = models.get_model(name)
        found, by_hand = plain_net(VGG(config), "fc8"), None
        monkeypatch.setattr("vggfeat.benchmarks.plain.TORCHVISION", {})
        by_hand = plain_net(VGG(config), "fc8")
    linear = [layer for layer in module.classifier if isinstance(layer, nn.Linear)]
    assert [repr(layer) for layer in found[: len(module.features)]] == [repr(layer) for layer in module.features]
    assert [layer.weight[0].numel() for layer in found if isinstance(layer, nn.Conv2d)][-3:] == [
        layer.in_features for layer in linear
    ]
    assert [repr(layer) for layer in found] == [repr(layer) for layer in by_hand]


# --- stages


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    backbone = random_backbone("random:A:0:0.0625")
    folder = tmp_path_factory.mktemp("stages")
    files = listed(folder, make_jpegs(folder, 3, 2))
    extraction = Extraction(backbone, ExtractionSettings(scales=(224,)), "cpu")
    with Decoder(0, DecodeSettings()) as decoder:
        yield Stages(backbone, extraction, files, decoder, RunSettings(workers=0, shard_rows=3), 2)


@pytest.mark.parametrize("batching", ["size", "padded"])
def test_the_net_alone_gets_the_batches_of_a_run(stages, batching, monkeypatch):
    one = Extraction(stages.backbone, ExtractionSettings(scales=(224,), batching=batching), "cpu")
    seen = []
    for name in ("read", "read_padded"):
        read = getattr(one, name)
        monkeypatch.setattr(one, name, lambda images, *rest, read=read: seen.append(images) or read(images, *rest))
    batches = stages.batches(one)
    run_network(one, batches)
    alone = [seen.pop(0) for _ in batches]
    assert sum(len(images) for images in alone) == 3
    stages.run(one, stages.often)
    for images, other in zip(seen, alone * 2, strict=True):
        torch.testing.assert_close(images, other, rtol=0, atol=0)


def test_a_batch_that_must_be_halved_ends_the_measurement(stages, monkeypatch):
    one = Extraction(stages.backbone, ExtractionSettings(scales=(224,), batching="padded"), "cpu")
    read = Extraction.read

    def small(images, *rest):
        if len(images) > 1:
            raise RuntimeError("CUDA out of memory. Tried much")
        return read(one, images, *rest)

    monkeypatch.setattr(one, "read", small)
    monkeypatch.setattr(one, "read_padded", small)
    with pytest.raises(ConfigError, match=r"found 1 that had to be halved; give a --batch-pixels below 1048576"):
        stages.features(one)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried much"), MemoryError()])
def test_memory_that_runs_out_is_told_in_a_line(stages, monkeypatch, error):
    def refuse(*_):
        raise error

    one = Extraction(stages.backbone, ExtractionSettings(scales=(224,), precision="bf16"), "cpu")
    batches = stages.batches(one)
    monkeypatch.setattr(one, "read", refuse)
    with pytest.raises(
        ConfigError, match=r"^bf16, size: expected batches that fit into the memory of cpu, .* --batch-pixels"
    ):
        run_network(one, batches)
    stages._batches.clear()
    monkeypatch.setattr(one, "prepared", refuse)
    with pytest.raises(ConfigError, match="or fewer --images"):
        stages.batches(one)
    stages._batches.clear()


def test_other_errors_of_the_net_are_defects(stages, monkeypatch):
    def refuse(*_):
        raise RuntimeError("shape")

    one = Extraction(stages.backbone, ExtractionSettings(scales=(224,)), "cpu")
    monkeypatch.setattr(one, "read", refuse)
    with pytest.raises(RuntimeError, match="shape"):
        run_network(one, stages.batches(one))


# --- figures


def some_speeds(**changes):
    form = FormSpeeds(
        form=Form("bf16", "size"),
        network=Rates((3.0, 5.0, 4.0)),
        together=Rates((2.0, 2.0)),
        least_cosine=1.0,
    )
    plain = PlainSpeeds(precision="bf16", way="autocast", module="m", together=Rates((0.5,)), least_cosine=1.0)
    values = {
        "device": "d", "decoding": Rates((50.0,)), "resizing": Rates((20.0,)), "writing": Rates((90.0,)),
        "forms": (form,), "plain": (plain,),
        "matrix_multiply_adds": {"bf16": 16_000.0}, "image_multiply_adds": 1_000.0,
    }  # fmt: skip
    return Speeds(**{**values, **changes})


def test_shares_and_ratios_by_hand():
    speeds = some_speeds()
    (told,) = speeds.describe()["forms"]
    assert told["network"] == {"median": 4.0, "rounds": [3.0, 5.0, 4.0]}
    assert told["network_share"] == 4 * 1000 / 16_000
    assert told["together_share"] == 2 * 1000 / 16_000
    assert told["ratio"] == 4
    assert told["limit"] == "network"
    (plain,) = speeds.describe()["plain"]
    assert plain["together_share"] == 0.5 * 1000 / 16_000


def test_the_ratio_is_to_the_baseline_of_the_same_precision():
    def plain(precision, rate):
        return PlainSpeeds(precision=precision, way="w", module="m", together=Rates((rate,)), least_cosine=1.0)

    both = some_speeds(plain=(plain("fp32", 0.1), plain("bf16", 0.5)))
    assert both.ratio(both.forms[0]) == 4
    for others in ((), (plain("fp32", 0.1),), (plain("tf32", 0.1),)):
        speeds = some_speeds(plain=others)
        assert speeds.ratio(speeds.forms[0]) is None


@pytest.mark.parametrize("slowest", ["decoding", "resizing", "writing"])
def test_what_is_slowest_alone_holds_it_up(slowest):
    speeds = some_speeds(**{slowest: Rates((3.9,))})
    assert speeds.limit(speeds.forms[0]) == slowest


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    forms = tuple(Form(*words) for words in (("fp32", "padded"), ("bf16", "size")))
    settings = BenchSettings(
        scales=(224, 240), forms=forms, images=3, repeat=2, workers=0, rounds=2, seconds=0.01, seed=1
    )
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vggfeat.benchmarks.ceilings.MATRIX_SIDE", {"cpu": 256})
        folder = tmp_path_factory.mktemp("bench")
        speeds = measure(random_backbone("random:A:0:0.0625"), settings, folder, said.append)
    assert sorted(path.name for path in folder.iterdir()) == ["000000.jpg", "000001.jpg", "000002.jpg"]
    return speeds, said


def test_forms_and_baselines_take_turns(measured):
    _, said = measured
    turns = [name.split(": ", 1)[1] for name in said if name.startswith("round")]
    assert turns[: len(turns) // 2] == turns[len(turns) // 2 :]
    assert turns[-2:] == ["plain baseline, fp32: files to file", "plain baseline, bf16: files to file"]
    assert len(set(turns)) == 3 + 2 * 3 + 2


def test_measured_figures_are_consistent(measured):
    speeds, _ = measured
    assert [one.form.precision for one in speeds.forms] == ["fp32", "bf16"]
    assert [one.precision for one in speeds.plain] == ["fp32", "bf16"]
    assert speeds.plain[0].way == "float32"
    assert speeds.plain[1].way in ("autocast", "bfloat16")
    told = speeds.describe()
    for one, form, plain in zip(speeds.forms, told["forms"], speeds.plain, strict=True):
        assert len(one.network.rounds) == len(one.together.rounds) == 2
        ceiling = speeds.matrix_multiply_adds[one.form.precision]
        assert form["network_share"] == pytest.approx(one.network.median * speeds.image_multiply_adds / ceiling)
        assert form["ratio"] == pytest.approx(one.together.median / plain.together.median)
        assert form["limit"] == min(speeds.stages(one), key=speeds.stages(one).get)
        # The whole holds its parts: with no workers, nothing runs beside the net.
        assert one.together.median < 1.5 * min(speeds.stages(one).values())
    assert speeds.plain[0].least_cosine > 1 - 1e-6
    assert 0.999 <= speeds.plain[1].least_cosine < 1 - 1e-9
    assert speeds.forms[0].least_cosine > 1 - 1e-6
    assert 0.9999 <= speeds.forms[1].least_cosine < 1 - 1e-9


def test_multiply_adds_are_the_mean_over_the_images(measured, tmp_path):
    speeds, _ = measured
    settings = ExtractionSettings(scales=(224, 240))
    counted = []
    for name in make_jpegs(tmp_path, 3, 1):
        with Image.open(tmp_path / name) as image:
            shape = image.height, image.width
        counted.append(roofline(net("A", 1 / 16), settings, shape).total.multiply_adds)
    assert speeds.image_multiply_adds == pytest.approx(np.mean(counted))


def test_everything_runs_once_before_it_counts(tmp_path, monkeypatch):
    done = []

    def note(owner, name, files=lambda *args: None):
        act = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: done.append((name, files(*args))) or act(*args))

    note(Stages, "decode")
    note(Stages, "resize")
    note(Stages, "write", lambda self, files: len(files))
    note(Stages, "_cache", lambda self, extraction, files, out: len(files))
    note(PlainExtractor, "write", lambda self, paths, out: "plain")
    note(bench, "run_network", lambda extraction, batches: extraction.settings.batching)
    settings = BenchSettings(
        scales=(224,),
        forms=(Form("fp32", "size"), Form("fp32", "padded")),
        images=2,
        repeat=3,
        workers=0,
        rounds=1,
        seconds=1e-9,
    )
    monkeypatch.setattr("vggfeat.benchmarks.ceilings.MATRIX_SIDE", {"cpu": 64})
    note(bench, "matrix_rate", lambda device, precision, seconds: precision)
    measure(random_backbone("random:A:0:0.0625"), settings, tmp_path, lambda name: done.append((name, None)))
    start = done.index(("round 1 of 1: decoding", None))
    before, counted = (Counter(one for one in part if one[0].isidentifier()) for part in (done[:start], done[start:]))
    nets = {("run_network", "size"): 1, ("run_network", "padded"): 1, ("resize", None): 1, ("write", "plain"): 1,
            ("matrix_rate", "fp32"): 1}  # fmt: skip
    # Every image is decoded when the stages are made.
    assert before == nets | {("write", 2): 1, ("_cache", 2): 2}
    assert counted == nets | {("decode", None): 1, ("write", 6): 1, ("_cache", 6): 2}


def test_what_all_are_compared_with_is_not_compiled():
    backbone = random_backbone("random:A:0:0.0625")
    forms = (Form("fp32", "size"), Form("bf16", "size"))
    settings = BenchSettings(scales=(224,), forms=forms)
    reference, found = bench._extractions(backbone, settings)
    assert found[forms[0]] is reference
    reference, found = bench._extractions(backbone, replace(settings, compiled=True))
    assert not reference.settings.compiled
    assert (reference.settings.precision, reference.settings.batching) == ("fp32", "size")
    assert all(one.settings.compiled for one in found.values())


def test_repeated_images_fill_whole_shards():
    forms = (Form("fp32", "size"),)

    def rows(device, images, repeat):
        return BenchSettings(scales=(224,), forms=forms, device=device, images=images, repeat=repeat).cache.rows()

    assert rows("cuda", 24, 20) == 24
    assert rows("cuda", default_images("cuda"), 20) == rows("cuda", 512, 20) == 256
    assert rows("cpu", default_images("cpu"), 2) == 24
    assert rows("cpu", 40, 1) == 32
    with pytest.raises(ConfigError, match=r"images: expected at most 32, or a multiple of it, .* found 40"):
        rows("cpu", 40, 2)


# --- the commands

SMALL = ["--net", "A", "--width", "0.0625", "--scales", "224", "--device", "cpu"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("vggfeat.benchmarks.ceilings.MATRIX_SIDE", {"cpu": 256})
    monkeypatch.setattr("vggfeat.benchmarks.ceilings.COPY_BYTES", {"cpu": 1 << 20})


def test_the_roofline_as_text_and_as_json(quick, capsys):
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


def test_counting_measures_nothing(monkeypatch, capsys):
    monkeypatch.delattr("vggfeat.benchmarks.roofline.matrix_rate")
    assert run(["bench", "roofline", *SMALL, "--no-measure"]) == 0
    shown = capsys.readouterr().out
    assert "least ms" not in shown
    assert "at most" not in shown
    assert run(["bench", "roofline", *SMALL, "--no-measure", "--json"]) == 0
    assert "ceilings" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", ["roofline", "extract"])
def test_the_device_is_made_ready_as_for_extraction(command, quick, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("vggfeat.runtime.devices.ready_device", lambda name: asked.append(name) or "cpu")
    monkeypatch.setattr("vggfeat.runtime.devices.default_batch_pixels", lambda device: 12345678)
    short = ["--images", "1", "--rounds", "1", "--no-plain", "--workers", "0"] if command == "extract" else []
    assert run(["bench", command, *SMALL[:-1], "nothing", "--seconds", "0.01", *short, "--json"]) == 0
    assert asked == ["nothing"]
    assert json.loads(capsys.readouterr().out)["batch_pixels"] == 12345678


@pytest.mark.parametrize("shape", ["375", "ax4", "0x5"])
def test_a_shape_that_is_none_is_refused(shape, capsys):
    assert run(["bench", "roofline", *SMALL, "--no-measure", "--shape", shape]) == 2
    assert "expected" in capsys.readouterr().err


def test_the_measurement_as_text_and_as_json(quick, capsys):
    words = ["bench", "extract", *SMALL, "--precision", "fp32", "--images", "2", "--workers", "0", "--threads", "1",
             "--rounds", "1", "--seconds", "0.01"]  # fmt: skip
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "vggfeat-bench-extract"
    assert told["device"] == "cpu, 1 thread"
    assert [form["precision"] for form in told["forms"]] == ["fp32"]
    (plain,) = told["plain"]
    assert plain["least_cosine"] > 1 - 1e-6
    expected = {"images": 2, "repeat": 1, "workers": 0, "threads": 1, "rounds": 1, "seconds": 0.01,
                "batch_pixels": 1 << 20, "shard_rows": 2, "compiled": False, "seed": 0}  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    assert told["versions"]["torch"] == version("torch")
    assert run([*words, "--no-plain"]) == 0
    shown = capsys.readouterr().out
    assert "plain baseline" not in shown
    assert "fp32, size" in shown
    assert f"{told['image_multiply_adds'] / 1e9:.4g} G" in shown


def test_the_text_shows_the_figures_of_the_json():
    from vggfeat.cli.bench_extraction import _lines

    speeds = some_speeds()
    row = next(line for line in _lines(speeds) if line.startswith("bf16, size"))
    assert row.split()[2:] == ["4", "25", "%", "2", "12", "%", "4.00", "1.00000000", "network"]
    row = next(line for line in _lines(speeds) if line.startswith("plain baseline, bf16"))
    assert row.split()[3:] == ["-", "-", "0.5", "3", "%", "1.00", "1.00000000", "-"]
    assert "plain baseline: m; bf16 by torch.autocast" in _lines(speeds)
    alone = _lines(some_speeds(plain=()))
    assert next(line for line in alone if line.startswith("bf16, size")).split()[8:] == ["-", "1.00000000", "network"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "tf32"], "tf32 exists on CUDA devices only"),
        (["--precision", "fp8"], "precision: expected one of fp32, tf32, bf16, fp16, found 'fp8'"),
        (["--batching", "shape"], "batching: expected one of size, padded, found 'shape'"),
        (["--device", "nothing"], "device: expected cpu or a CUDA device"),
    ],
)
def test_forms_that_are_not_possible_are_refused_in_a_line(words, message, capsys):
    quick = ["--images", "1", "--rounds", "1", "--seconds", "0.01", "--no-plain", "--workers", "0"]
    assert run(["bench", "extract", *SMALL, *quick, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
