"""The benchmark of extraction: images and baseline against ours; what is measured, for consistency."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from vggfeat.benchmarks.extraction import HINTS, Plan, default_images, features, measure, peer_subjects, summarise
from vggfeat.benchmarks.measure import SHAPES, listed, make_jpegs, photograph, shapes
from vggfeat.benchmarks.roofline import image_costs
from vggfeat.benchmarks.stages import PlainExtractor, Stages, enough_memory, plain_net, plain_precision
from vggfeat.cli import run
from vggfeat.errors import ConfigError
from vggfeat.extract import RunSettings
from vggfeat.forward.features import ExtractionSettings, FeatureHead, feature_runner
from vggfeat.forward.rerun import cosines
from vggfeat.images.decode import DecodeSettings, row_requests
from vggfeat.images.pool import Decoder
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


def test_the_longest_side_changes_all_sides_by_one_factor(tmp_path):
    def sizes(folder, **options):
        (tmp_path / folder).mkdir()
        for name in make_jpegs(tmp_path / folder, 3, 0, **options):
            with Image.open(tmp_path / folder / name) as image:
                yield image.size

    assert np.abs(np.array([*sizes("small", longest=100)]) - np.array([*sizes("large")]) / 5).max() < 1


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
    theirs = PlainExtractor(backbone, (224, 256), layer, CPU, tuned=config == "C")
    for row, path in zip(ours, files.paths, strict=True):
        expected = theirs.features(tmp_path / path)
        np.testing.assert_allclose(row.features[:, 0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("way", ["autocast", "bfloat16"])
@pytest.mark.parametrize("config", ["A", "A-LRN"])
def test_the_baseline_in_bf16_has_them_up_to_rounding(tmp_path, config, way):
    backbone = random_backbone(f"random:{config}:1:0.0625")
    (name,) = make_jpegs(tmp_path, 1, 5)
    exact, rounded = (PlainExtractor(backbone, (224, 256), "fc7", CPU, form) for form in ("float32", way))
    (found,), expected = rounded.run([tmp_path / name], tmp_path / "out.h5"), exact.features(tmp_path / name)
    assert found.dtype == expected.dtype == np.float32
    assert 0.999 < cosines(found, expected).min() < 1 - 1e-9
    kept = next(rounded.net.parameters()).dtype
    assert kept == (torch.float32 if way == "autocast" else torch.bfloat16)


def test_float32_of_a_plain_user_is_tf32_on_a_gpu():
    assert [plain_precision(torch.device(name)) for name in ("cpu", "cuda:1")] == ["fp32", "tf32"]


@pytest.mark.parametrize(("config", "name"), [("A", "vgg11"), ("B", "vgg13"), ("D", "vgg16"), ("E", "vgg19")])
def test_the_baseline_is_torchvisions_module_layer_by_layer(config, name):
    with torch.device("meta"):
        theirs, found = models.get_model(name), plain_net(VGG(config), "fc8")
    assert [repr(layer) for layer in found[: len(theirs.features)]] == [repr(layer) for layer in theirs.features]
    dense = [layer for layer in found[len(theirs.features) :] if isinstance(layer, nn.Conv2d)]
    linear = [layer for layer in theirs.classifier if isinstance(layer, nn.Linear)]
    assert [layer.weight.flatten(1).shape for layer in dense] == [layer.weight.shape for layer in linear]
    assert sum(isinstance(layer, nn.ReLU) for layer in found) == sum(
        isinstance(layer, nn.ReLU) for layer in theirs.modules()
    )


def test_the_baseline_has_its_own_weights():
    backbone = random_backbone("random:A:1:0.0625")
    net = plain_net(backbone.model, "fc7")
    with torch.no_grad():
        net[0].weight.zero_()
    assert backbone.model.layers["conv1_1"].weight.abs().min() > 0


# --- stages


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    backbone = random_backbone("random:A:0:0.0625")
    reference = feature_runner(backbone, ExtractionSettings(scales=(224,)))
    folder = tmp_path_factory.mktemp("stages")
    files = listed(folder, make_jpegs(folder, 3, 2))
    with Decoder(0, DecodeSettings()) as decoder:
        yield Stages(reference, files, 2, decoder, RunSettings(workers=0, shard_rows=3))


def test_every_stage_says_how_many_images_it_has_done(stages):
    subjects = stages.shared() | stages.of_form(stages.reference)
    assert {name: subject.act() for name, subject in subjects.items()} == {
        "decoding": 3, "resizing": 3, "writing": 6, "network, fp32, size": 3, "files to file, fp32, size": 6,
    }  # fmt: skip
    assert list(Path(stages.files.root).glob("*/")) == []  # nothing is left of the feature files


def test_a_batch_that_must_be_halved_ends_the_measurement(stages, monkeypatch):
    one = feature_runner(stages.reference.backbone, ExtractionSettings(scales=(224,), batching="padded"))
    values = FeatureHead.values

    def small(head, model, images, *rest):
        if len(images) > 1:
            raise RuntimeError("CUDA out of memory. Tried much")
        return values(head, model, images, *rest)

    monkeypatch.setattr(FeatureHead, "values", small)
    message = r"^cpu: expected batches .*, found 1 that had to be halved; give a --batch-pixels below 1048576"
    with pytest.raises(ConfigError, match=message), enough_memory("cpu", 1 << 20):
        stages.features(one)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried much"), MemoryError()])
def test_memory_that_runs_out_is_told_in_a_line(error):
    expected = r"^cuda: expected batches that fit into its memory, found .*--batch-pixels below 7, or fewer --images$"
    with pytest.raises(ConfigError, match=expected), enough_memory("cuda", 7):
        raise error


def test_other_errors_of_the_net_are_defects():
    with pytest.raises(RuntimeError, match="shape"), enough_memory("cpu", 7):
        raise RuntimeError("shape")


# --- other libraries


def test_features_of_another_library_are_the_mean_over_space_and_mirror():
    def left_half(images):  # a map that its mirror changes
        return images[:, :, :, : images.shape[3] // 2]

    batch = np.arange(2 * 3 * 1 * 4, dtype=np.float32).reshape(2, 3, 1, 4)
    (found,) = features(left_half, [batch])
    np.testing.assert_array_equal(found, batch.mean((2, 3)))


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_other_libraries_run_the_same_net_on_the_same_batches(stages, library, monkeypatch):
    pytest.importorskip(library)
    pytest.importorskip("onnx")
    monkeypatch.setattr("vggfeat.benchmarks.extraction.find_spec", lambda name: name in (library, "onnx"))
    said = []
    found = peer_subjects(stages, {"fp32", "bf16"}, said.append)
    precisions = ["fp32"] if library == "onnxruntime" else [*HINTS]
    assert list(found) == [f"network by {library}, {precision}" for precision in precisions]
    assert len(said) == len(found)
    for subject in found.values():
        assert subject.act() == 3
        assert subject.facts["least_cosine"] > (1 - 1e-6 if subject.facts["precision"] == "fp32" else 0.999)


def test_without_other_libraries_there_are_none(stages, monkeypatch):
    monkeypatch.setattr("vggfeat.benchmarks.extraction.find_spec", lambda name: None)
    assert peer_subjects(stages, {"fp32"}, print) == {}


# --- figures


def some_rows(form="bf16", plain=("bf16",), **changes):
    rates = {
        "decoding": [50.0], "resizing": [20.0], "writing": [90.0],
        f"network, {form}, size": [3.0, 5.0, 4.0], f"files to file, {form}, size": [2.0, 2.0],
        **{f"plain loop, {precision}": [0.5] for precision in plain},
        **{f"tuned loop, {precision}": [0.8] for precision in plain},
    } | changes  # fmt: skip
    facts = {name: {"precision": name.split(", ")[1]} if ", " in name else {} for name in rates}
    matrix = {f"matrix product, {precision}": [15_000.0, 16_000.0] for precision in {form, *plain}}
    return {row["name"]: row for row in summarise(rates | matrix, facts, 1_000.0)}


def test_shares_and_ratios_by_hand():
    rows = some_rows()
    network, together, plain, tuned = (rows[name] for name in list(rows)[3:])
    assert (network["rate"], network["rounds"]) == (4.0, [3.0, 5.0, 4.0])
    assert network["share"] == 4 * 1000 / 16_000
    assert together["share"] == 2 * 1000 / 16_000
    assert (together["ratio"], together["ratio_tuned"], together["held_up_by"]) == (4, 2.5, "network")
    assert (plain["share"], plain["ratio"], tuned["ratio"]) == (0.5 * 1000 / 16_000, 1, 1.6)
    assert not {"share", "ratio", "ratio_tuned", "held_up_by"} & rows["decoding"].keys()


@pytest.mark.parametrize(("plain", "ratio"), [(("fp32", "bf16"), 4), ((), None), (("fp32",), None), (("tf32",), None)])
def test_the_ratio_is_to_the_baseline_of_the_same_precision(plain, ratio):
    assert some_rows(plain=plain)["files to file, bf16, size"].get("ratio") == ratio


@pytest.mark.parametrize("slowest", ["decoding", "resizing", "writing"])
def test_what_is_slowest_alone_holds_it_up(slowest):
    assert some_rows(**{slowest: [3.9]})["files to file, bf16, size"]["held_up_by"] == slowest


PEERS = [
    f"network by {library}, {precision}"
    for library, precisions in (("onnxruntime", ("fp32",)), ("openvino", ("fp32", "bf16")))
    for precision in precisions
    if find_spec("onnx") and find_spec(library)
]


@pytest.fixture(scope="module")
def measured():
    first = ExtractionSettings(scales=(224, 240), batching="padded")
    forms = [first, replace(first, precision="bf16", batching="size")]
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vggfeat.benchmarks.roofline.MATRIX_SIDE", {"cpu": 256})
        plan = Plan(images=3, repeat=2, rounds=2, seconds=0.01, seed=1)
        report = measure(random_backbone("random:A:0:0.015625"), forms, plan, RunSettings(workers=0), say=said.append)
    return report, said


def test_forms_and_baselines_take_turns(measured):
    report, said = measured
    turns = [name.split(": ", 1)[1] for name in said if name.startswith("round")]
    assert turns[: len(turns) // 2] == turns[len(turns) // 2 :]
    names = [
        "decoding", "resizing", "writing", "network, fp32, padded", "files to file, fp32, padded",
        "network, bf16, size", "files to file, bf16, size", *PEERS,
        "plain loop, fp32", "plain loop, bf16", "tuned loop, fp32", "tuned loop, bf16",
    ]  # fmt: skip
    assert [row["name"] for row in report.rows] == names
    assert turns[len(turns) // 2 :] == [*names, "matrix product, fp32", "matrix product, bf16"]


def test_measured_figures_are_consistent(measured):
    report, _ = measured
    rows = {row["name"]: row for row in report.rows}
    for precision, batching in (("fp32", "padded"), ("bf16", "size")):
        form, plain = rows[f"files to file, {precision}, {batching}"], rows[f"plain loop, {precision}"]
        alone = {name: rows[name]["rate"] for name in ("decoding", "resizing", "writing")}
        alone["network"] = rows[f"network, {precision}, {batching}"]["rate"]
        ceiling = report.figures["matrix_multiply_adds"][precision]
        assert len(form["rounds"]) == 2
        assert form["share"] == pytest.approx(form["rate"] * report.figures["image_multiply_adds"] / ceiling)
        assert form["ratio"] == pytest.approx(form["rate"] / plain["rate"])
        assert form["held_up_by"] == min(alone, key=alone.get)
    for exact in ("files to file, fp32, padded", "plain loop, fp32", "tuned loop, fp32"):
        assert rows[exact]["least_cosine"] > 1 - 1e-6
    for rounded in ("files to file, bf16, size", "plain loop, bf16", "tuned loop, bf16"):
        assert 0.999 <= rows[rounded]["least_cosine"] < 1 - 1e-9
    assert rows["plain loop, bf16"]["way"] in ("autocast", "bfloat16")


def test_multiply_adds_are_the_mean_over_the_images(measured, tmp_path):
    settings = ExtractionSettings(scales=(224, 240))
    counted = []
    for name in make_jpegs(tmp_path, 3, 1):
        with Image.open(tmp_path / name) as image:
            costs = image_costs(random_backbone("random:A:0:0.015625").model, settings, (image.height, image.width))
        counted.append(sum(cost.multiply_adds for cost in costs))
    assert measured[0].figures["image_multiply_adds"] == pytest.approx(np.mean(counted))


def test_repeated_images_fill_whole_shards():
    def rows(device, images, repeat):
        return Plan(images=images, repeat=repeat).shards(RunSettings(device=device)).rows()

    assert rows("cuda", 24, 20) == 24
    assert rows("cuda", default_images("cuda"), 20) == rows("cuda", 512, 20) == 256
    assert rows("cpu", default_images("cpu"), 2) == 24
    assert rows("cpu", 40, 1) == 32
    with pytest.raises(ConfigError, match=r"images: expected at most 32, or a multiple of it, .* found 40"):
        rows("cpu", 40, 2)


# --- the command

SMALL = ["--net", "A", "--width", "0.03125", "--scales", "224", "--device", "cpu"]


def test_the_measurement_as_text_and_as_json(monkeypatch, capsys):
    monkeypatch.setattr("vggfeat.benchmarks.roofline.MATRIX_SIDE", {"cpu": 256})
    words = ["bench", "extract", *SMALL, "--precision", "fp32", "--images", "2", "--workers", "0", "--threads", "1",
             "--rounds", "1", "--seconds", "0.01"]  # fmt: skip
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN
    assert found["format"] == "vggfeat-bench-extract"
    assert found["machine"]["device"] == "cpu, 1 thread"
    assert [row["name"] for row in found["rows"]][3:] == [
        "network, fp32, size", "files to file, fp32, size", *(name for name in PEERS if name.endswith("fp32")),
        "plain loop, fp32", "tuned loop, fp32",
    ]  # fmt: skip
    assert found["rows"][-1]["least_cosine"] > 1 - 1e-6
    expected = {"weights": "random:A:0:0.03125", "scales": [224], "layer": "fc7", "images": 2, "repeat": 1, "seed": 0,
                "longest": 500, "workers": 0, "rounds": 1, "seconds": 0.01, "batch_pixels": 1 << 20,
                "compiled": False}  # fmt: skip
    assert {name: found["settings"][name] for name in expected} == expected
    assert run([*words, "--no-plain"]) == 0
    shown = capsys.readouterr().out
    assert not any(name in shown for name in ("plain loop", "tuned loop", "network by"))
    assert "files to file, fp32, size" in shown
    assert f"{found['image_multiply_adds'] / 1e9:.4g} G" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "tf32"], "on cpu expected fp32, winograd, bf16 or fp16, found tf32"),
        (["--precision", "fp8"], "precision: expected one of fp32, winograd, tf32, bf16, fp16, found 'fp8'"),
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
