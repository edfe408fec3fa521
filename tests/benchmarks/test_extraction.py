"""The benchmark of extraction: images and baseline against ours; what is measured, for consistency."""

import json
from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from vggfeat.benchmarks.extraction import default_images, measure, summarise
from vggfeat.benchmarks.jpegs import SHAPES, listed, make_jpegs, photograph, shapes
from vggfeat.benchmarks.plain import PlainExtractor, plain_net, plain_precision, read_features
from vggfeat.benchmarks.roofline import roofline
from vggfeat.benchmarks.stages import REFERENCE, BenchSettings, Form, Stages, run_network
from vggfeat.cli import run
from vggfeat.cli.bench_extraction import _lines
from vggfeat.errors import ConfigError
from vggfeat.forward.features import ExtractionSettings, FeatureHead, feature_runner
from vggfeat.forward.precision import cosines
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.images.requests import row_requests
from vggfeat.nets.vgg import VGG
from vggfeat.weights import random_backbone

CPU = torch.device("cpu")


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
        images = list(decoder.stream(row_requests(files, range(2), ("image",))))
    ours = feature_runner(backbone, ExtractionSettings(scales=(224, 256), layer=layer)).rows(images)
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
    settings = BenchSettings(scales=(224,), forms=(Form("fp32", "size"),), images=3, repeat=2, workers=0)
    folder = tmp_path_factory.mktemp("stages")
    files = listed(folder, make_jpegs(folder, 3, 2))
    with Decoder(0, DecodeSettings()) as decoder:
        yield Stages(backbone, settings.runner(backbone, REFERENCE, False), files, decoder, settings)


def test_a_batch_that_must_be_halved_ends_the_measurement(stages, monkeypatch):
    one = feature_runner(stages.backbone, ExtractionSettings(scales=(224,), batching="padded"), "cpu")
    values = FeatureHead.values

    def small(head, model, images, *rest):
        if len(images) > 1:
            raise RuntimeError("CUDA out of memory. Tried much")
        return values(head, model, images, *rest)

    monkeypatch.setattr(FeatureHead, "values", small)
    with pytest.raises(ConfigError, match=r"found 1 that had to be halved; give a --batch-pixels below 1048576"):
        stages.features(one)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried much"), MemoryError()])
def test_memory_that_runs_out_is_told_in_a_line(stages, monkeypatch, error):
    def refuse(*_):
        raise error

    one = feature_runner(stages.backbone, ExtractionSettings(scales=(224,), precision="bf16"), "cpu")
    batches = stages.net_batches(one)
    monkeypatch.setattr(FeatureHead, "values", refuse)
    with pytest.raises(
        ConfigError, match=r"^bf16, size: expected batches that fit into the memory of cpu, .* --batch-pixels"
    ):
        run_network(one, batches)
    monkeypatch.setattr(one, "prepare", refuse)
    with pytest.raises(ConfigError, match="or fewer --images"):
        stages.net_batches(one)


def test_other_errors_of_the_net_are_defects(stages, monkeypatch):
    def refuse(*_):
        raise RuntimeError("shape")

    one = feature_runner(stages.backbone, ExtractionSettings(scales=(224,)), "cpu")
    monkeypatch.setattr(FeatureHead, "values", refuse)
    with pytest.raises(RuntimeError, match="shape"):
        run_network(one, stages.net_batches(one))


# --- figures


def some_figures(form="bf16", plain=("bf16",), **changes):
    rates = {
        "decoding": [50.0], "resizing": [20.0], "writing": [90.0],
        **{f"matrix product, {precision}": [15_000.0, 16_000.0] for precision in {form, *plain}},
        f"{form}, size: network": [3.0, 5.0, 4.0], f"{form}, size: files to file": [2.0, 2.0],
        **{f"plain baseline, {precision}: files to file": [0.5] for precision in plain},
    }  # fmt: skip
    forms = [{"precision": form, "batching": "size", "least_cosine": 1.0}]
    baselines = [{"precision": one, "way": "autocast", "module": "m", "least_cosine": 1.0} for one in plain]
    return summarise(rates | changes, forms, baselines, 1_000.0)


def test_shares_and_ratios_by_hand():
    found = some_figures()
    (form,), (plain,) = found["forms"], found["plain"]
    assert form["network"] == {"median": 4.0, "rounds": [3.0, 5.0, 4.0]}
    assert form["network_share"] == 4 * 1000 / 16_000
    assert form["together_share"] == 2 * 1000 / 16_000
    assert (form["ratio"], form["limit"]) == (4, "network")
    assert plain["together_share"] == 0.5 * 1000 / 16_000


@pytest.mark.parametrize(("plain", "ratio"), [(("fp32", "bf16"), 4), ((), None), (("fp32",), None), (("tf32",), None)])
def test_the_ratio_is_to_the_baseline_of_the_same_precision(plain, ratio):
    assert some_figures(plain=plain)["forms"][0]["ratio"] == ratio


@pytest.mark.parametrize("slowest", ["decoding", "resizing", "writing"])
def test_what_is_slowest_alone_holds_it_up(slowest):
    assert some_figures(**{slowest: [3.9]})["forms"][0]["limit"] == slowest


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
        found = measure(random_backbone("random:A:0:0.0625"), settings, folder, said.append)
    assert sorted(path.name for path in folder.iterdir()) == ["000000.jpg", "000001.jpg", "000002.jpg"]
    return found, said


def test_forms_and_baselines_take_turns(measured):
    _, said = measured
    turns = [name.split(": ", 1)[1] for name in said if name.startswith("round")]
    assert turns[: len(turns) // 2] == turns[len(turns) // 2 :]
    assert turns[-2:] == ["plain baseline, fp32: files to file", "plain baseline, bf16: files to file"]
    assert len(set(turns)) == 3 + 2 * 3 + 2


def test_measured_figures_are_consistent(measured):
    found, _ = measured
    assert (
        [one["precision"] for one in found["forms"]] == [one["precision"] for one in found["plain"]] == ["fp32", "bf16"]
    )
    assert found["plain"][0]["way"] == "float32"
    assert found["plain"][1]["way"] in ("autocast", "bfloat16")
    for form, plain in zip(found["forms"], found["plain"], strict=True):
        assert len(form["network"]["rounds"]) == len(form["together"]["rounds"]) == 2
        alone = {name: found[name]["median"] for name in ("decoding", "resizing", "writing")}
        alone["network"] = form["network"]["median"]
        ceiling = found["matrix_multiply_adds"][form["precision"]]
        assert form["network_share"] == pytest.approx(alone["network"] * found["image_multiply_adds"] / ceiling)
        assert form["ratio"] == pytest.approx(form["together"]["median"] / plain["together"]["median"])
        assert form["limit"] == min(alone, key=alone.get)
        # The whole holds its parts: with no workers, nothing runs next to the net.
        assert form["together"]["median"] < 1.5 * min(alone.values())
    for exact in (found["plain"][0], found["forms"][0]):
        assert exact["least_cosine"] > 1 - 1e-6
    assert 0.999 <= found["plain"][1]["least_cosine"] < 1 - 1e-9
    assert 0.9999 <= found["forms"][1]["least_cosine"] < 1 - 1e-9


def test_multiply_adds_are_the_mean_over_the_images(measured, tmp_path):
    found, _ = measured
    settings = ExtractionSettings(scales=(224, 240))
    counted = []
    for name in make_jpegs(tmp_path, 3, 1):
        with Image.open(tmp_path / name) as image:
            shape = image.height, image.width
        counted.append(roofline(random_backbone("random:A:0:0.0625").model, settings, shape).total.multiply_adds)
    assert found["image_multiply_adds"] == pytest.approx(np.mean(counted))


def test_repeated_images_fill_whole_shards():
    forms = (Form("fp32", "size"),)

    def rows(device, images, repeat):
        return BenchSettings(scales=(224,), forms=forms, device=device, images=images, repeat=repeat).run.rows()

    assert rows("cuda", 24, 20) == 24
    assert rows("cuda", default_images("cuda"), 20) == rows("cuda", 512, 20) == 256
    assert rows("cpu", default_images("cpu"), 2) == 24
    assert rows("cpu", 40, 1) == 32
    with pytest.raises(ConfigError, match=r"images: expected at most 32, or a multiple of it, .* found 40"):
        rows("cpu", 40, 2)


# --- the command

SMALL = ["--net", "A", "--width", "0.0625", "--scales", "224", "--device", "cpu"]


def test_the_measurement_as_text_and_as_json(monkeypatch, capsys):
    monkeypatch.setattr("vggfeat.benchmarks.ceilings.MATRIX_SIDE", {"cpu": 256})
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
    lines = _lines(some_figures())
    row = next(line for line in lines if line.startswith("bf16, size"))
    assert row.split()[2:] == ["4", "25", "%", "2", "12", "%", "4.00", "1.00000000", "network"]
    row = next(line for line in lines if line.startswith("plain baseline, bf16"))
    assert row.split()[3:] == ["-", "-", "0.5", "3", "%", "1.00", "1.00000000", "-"]
    assert "plain baseline: m; bf16 by torch.autocast" in lines
    alone = _lines(some_figures(plain=()))
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
