"""Class posteriors, their fusion and their errors, against slow computations, torchvision's and scikit-learn's."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from torch import nn
from torchvision.transforms import v2

from image_files import draw
from vggfeat.classification import evaluate as fusing
from vggfeat.classification.evaluate import Fused, evaluate, fuse
from vggfeat.classification.extract import as_dataset, cache_posteriors, default_scales, match_classes
from vggfeat.datasets import ilsvrc
from vggfeat.errors import ConfigError, FitError, StoreError
from vggfeat.extract import RunSettings
from vggfeat.forward.posteriors import PosteriorSettings, centre, cut, cut_mirrored, grid, posterior_runner
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request, decode
from vggfeat.localisation.nets import BOX_FACTS
from vggfeat.nets.families import initialise
from vggfeat.nets.transforms import rescale, rescaled_size
from vggfeat.nets.vgg import VGG
from vggfeat.results.ilsvrc import classification_record, result_notes
from vggfeat.results.paper import TABLES_3_TO_6, is_official_fusion, paper_errors
from vggfeat.samples import DataSet, Task
from vggfeat.store.layout import Block, Shape, Status
from vggfeat.store.reader import FeatureFile
from vggfeat.store.writer import FeatureWriter
from vggfeat.training.packing import pack
from vggfeat.weights import Backbone, load_backbone, save_weights

CLASSES = 6
CACHE = RunSettings(workers=0, shard_rows=4)


def backbone(net="A", classes=(), count=CLASSES, width=1 / 32, facts=None, seed=0):
    model = VGG(net, count, width=width)
    initialise(model, torch.Generator().manual_seed(seed))
    model.layers["fc8"].weight.data *= 0.1  # Posteriors that are neither 0 nor 1.
    return Backbone(
        model=model.eval().requires_grad_(False),
        source="test",
        sha256=f"{seed:064x}",
        classes=tuple(classes),
        facts=facts or {},
    )


def image(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return DecodedImage((pixels,), (height, width), bytes([seed]) * 32)


def flipped(made):
    return made._replace(regions=(np.ascontiguousarray(made.regions[0][:, ::-1]),))


def posteriors(net, made, device="cpu", order=None, **settings):
    rows = posterior_runner(net, PosteriorSettings(**settings), device, order).rows([made])
    assert rows[0].failure is None
    return rows[0].features[:, 0]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-7)


def brought(net, made, side):
    """One image as the net wants it, (3, H, W)."""
    pixels = torch.from_numpy(made.regions[0]).permute(2, 0, 1)
    scaled = rescale(pixels, rescaled_size(*pixels.shape[1:], side))
    return scaled - torch.tensor(net.mean)[:, None, None]


def scores(net, image):
    """The class score map of one image, (K, h, w), in double precision."""
    with torch.inference_mode():
        return net.model(image[None])["fc8"][0].double().numpy()


def soft(values):
    """Soft-max over the first axis, written down once more."""
    exponentials = np.exp(values - values.max(axis=0))
    return exponentials / exponentials.sum(axis=0)


# Where the crops lie.


def test_the_grid_of_crops_is_the_one_computed_by_hand():
    # 256 - 224 = 32 in steps of 8; 384 - 224 = 160 in steps of 40.
    tops, lefts = (0, 8, 16, 24, 32), (0, 40, 80, 120, 160)
    assert grid(256, 384) == [(top, left) for top in tops for left in lefts]
    # 227 - 224 = 3: 0, 0.75, 1.5, 2.25, 3, each rounded down.
    assert sorted({top for top, _ in grid(227, 224)}) == [0, 1, 2, 3]
    assert [top for top, _ in grid(227, 224)][::5] == [0, 0, 1, 2, 3]
    assert {left for _, left in grid(227, 224)} == {0}
    assert len(grid(227, 224)) == 25
    # 341 - 224 = 117: 0, 29.25, 58.5, 87.75, 117.
    assert [left for _, left in grid(256, 341)][:5] == [0, 29, 58, 87, 117]


def test_the_middle_of_the_grid_is_the_centre_crop():
    for height in range(224, 240):
        assert grid(height, 300)[12] == centre(height, 300)[0]
    assert centre(256, 256) == [(16, 16)]
    assert centre(227, 224) == [(1, 0)]  # The spare pixel lies below.


def test_crops_are_cut_where_the_grid_says_and_mirrored_one_by_one():
    rows, columns = torch.meshgrid(torch.arange(230.0), torch.arange(250.0), indexing="ij")
    image = torch.stack([rows, columns, rows * 0])[None]
    places = grid(230, 250)
    for crop, turned, (top, left) in zip(cut(image, places), cut_mirrored(image, places), places, strict=True):
        assert crop.shape == turned.shape == (1, 3, 224, 224)
        assert (crop[0, 0, 0, 0], crop[0, 1, 0, 0]) == (top, left)
        assert torch.equal(turned, crop.flip(-1))


# Posteriors.


def test_crops_and_whole_images_are_the_same_at_exactly_224():
    net, made = backbone(), image(224, 224, 1)
    both = [posteriors(net, one, mode="crop", scales=(224,)) for one in (made, flipped(made))]
    for softmax in ("after", "before"):
        dense = posteriors(net, made, mode="dense", scales=(224,), softmax=softmax)
        close(dense, (both[0] + both[1]) / 2)
    # All 25 crops are that one.
    close(posteriors(net, made, mode="multi-crop", scales=(224,)), (both[0] + both[1]) / 2)
    assert not np.allclose(both[0], both[1], rtol=1e-3)


@pytest.mark.parametrize("softmax", ["after", "before"])
def test_dense_posteriors_are_what_section_3_2_says(softmax):
    net, made = backbone("B"), image(120, 200, 2)
    found = posteriors(net, made, mode="dense", scales=(256, 300), softmax=softmax)
    assert found.shape == (2, CLASSES)
    for row, side in zip(found, (256, 300), strict=True):
        tensor = brought(net, made, side)
        maps = [scores(net, one) for one in (tensor, tensor.flip(-1))]
        assert maps[0].shape[1] * maps[0].shape[2] > 2
        if softmax == "after":
            expected = [soft(one.mean((1, 2))) for one in maps]
        else:
            expected = [soft(one).mean((1, 2)) for one in maps]
        close(row, (expected[0] + expected[1]) / 2)
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_soft_max_before_and_after_the_average_differ_as_computed_by_hand(monkeypatch):
    # Scores of two classes at two positions: (0, ln 9) and (0, 0). After: soft-max of the mean (0, ln 3) = (1/4, 3/4).
    # Before: the mean of (1/10, 9/10) and (1/2, 1/2) = (0.3, 0.7). The mirror has the same scores.
    net, made = backbone(count=2), image(224, 256, 3)
    scored = torch.tensor([[0.0, 0.0], [np.log(9.0), 0.0]])[:, None]
    monkeypatch.setattr(VGG, "forward", lambda self, x, maps: {"fc8": scored.expand(len(x), 2, 1, 2)})
    close(posteriors(net, made, scales=(224,), softmax="after"), [[0.25, 0.75]])
    close(posteriors(net, made, scales=(224,), softmax="before"), [[0.3, 0.7]])


def test_soft_max_at_every_position_is_the_same_in_strips():
    net, made = backbone(), image(224, 1500, 4)
    for softmax in ("after", "before"):
        whole, strips = (
            posteriors(net, made, scales=(224,), softmax=softmax, batch_pixels=pixels)
            for pixels in (1 << 22, 2 * 224 * 800)
        )
        close(strips, whole)


def test_multi_crop_posteriors_are_the_mean_over_fifty_crops():
    net, made = backbone(), image(100, 130, 5)
    tensor = brought(net, made, 240)
    expected = []
    for i in range(5):
        for j in range(5):
            top, left = (i * (tensor.shape[1] - 224)) // 4, (j * (tensor.shape[2] - 224)) // 4
            crop = tensor[:, top : top + 224, left : left + 224]
            expected += [soft(scores(net, one)[:, 0, 0]) for one in (crop, crop.flip(-1))]
    assert len(expected) == 50
    close(posteriors(net, made, mode="multi-crop", scales=(240,))[0], np.mean(expected, axis=0))


def test_images_of_one_batch_do_not_mix():
    net = backbone()
    made = [image(100, 130, seed) for seed in range(3)]
    settings = PosteriorSettings(mode="multi-crop", scales=(230,), batch_pixels=7 * 224 * 224)
    rows = posterior_runner(net, settings).rows(made)
    for one, row in zip(made, rows, strict=True):
        close(row.features[:, 0], posteriors(net, one, mode="multi-crop", scales=(230,)))


def test_no_pass_of_crops_has_more_pixels_than_allowed(monkeypatch):
    seen = []
    original = VGG.forward
    monkeypatch.setattr(VGG, "forward", lambda self, x, *more: seen.append(len(x)) or original(self, x, *more))
    posteriors(backbone(), image(100, 130), mode="multi-crop", scales=(230,), batch_pixels=22 * 224 * 224)
    assert seen == [22, 22, 6]


@pytest.mark.parametrize("side", [224, 230])
def test_crops_that_do_not_fit_go_through_in_smaller_passes_and_fail_by_name_at_last(side, monkeypatch):
    original, seen = VGG.forward, []

    def scarce(self, x, *more):
        seen.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, x, *more)

    made, settings = image(side, side), PosteriorSettings(mode="multi-crop", scales=(side,))
    expected = posteriors(backbone(), made, mode="multi-crop", scales=(side,))
    monkeypatch.setattr(VGG, "forward", scarce)
    most = 1
    close(posteriors(backbone(), made, mode="multi-crop", scales=(side,)), expected)
    most = 0
    row = posterior_runner(backbone(), settings).rows([made])[0]
    assert row.failure.reason == "out-of-memory"
    assert seen[-1] == 1


def plain_net(net):
    """The same net from PyTorch's plain layers: flattened, with matrices for layers 6 to 8."""
    layers, state = [], net.model.layers
    for block, count in enumerate((1, 1, 2, 2, 2), start=1):
        for index in range(1, count + 1):
            layers += [state[f"conv{block}_{index}"], nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for name in ("fc6", "fc7", "fc8"):
        weight = state[name].weight
        linear = nn.Linear(weight[0].numel(), len(weight))
        linear.weight.data, linear.bias.data = weight.reshape(len(weight), -1), state[name].bias
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def test_centre_crops_are_those_of_torchvision():
    net = backbone()
    plain = plain_net(net)
    steps = [v2.ToDtype(torch.float32), v2.Resize(256, antialias=True), v2.CenterCrop(224)]
    steps.append(v2.Normalize(net.mean, net.std))
    # Sides for which torchvision, which rounds otherwise, sees the same pixels.
    for made in (image(100, 150, 6), image(150, 100, 7), image(256, 256, 8), image(512, 640, 9)):
        tensor = torch.from_numpy(made.regions[0]).permute(2, 0, 1)
        with torch.inference_mode():
            expected = torch.softmax(plain(v2.Compose(steps)(tensor)[None]), 1).numpy()
        close(posteriors(net, made, mode="crop", scales=(256,)), expected)


def test_scales_too_short_for_a_crop_are_raised_to_it():
    model = VGG("A", 2, width=1 / 64, pool="ceil")
    assert PosteriorSettings(scales=(200, 256), mode="dense").sides(model) == (200, 256)
    for mode in ("crop", "multi-crop"):
        assert PosteriorSettings(scales=(200, 256), mode=mode).sides(model) == (224, 256)


@pytest.mark.parametrize("wrong", [{"mode": "sparse"}, {"softmax": "never"}, {"scales": ()}, {"precision": "fp8"}])
def test_settings_that_are_not_allowed_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PosteriorSettings(**wrong)


# Classes and scales.


def test_classes_are_matched_by_name():
    names = ("c", "a", "b")
    assert match_classes(backbone(classes=names, count=3), ("a", "b", "c")).tolist() == [1, 2, 0]
    assert match_classes(backbone(count=3), ("a", "b", "c")).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (
            {"classes": ("a", "b", "x")},
            "expected the 3 classes of the data, found 3: c only in the data; x only in the",
        ),
        ({"classes": ("a", "b", "c", "x", "y", "z", "w"), "count": 7}, "found 7: w, x, y and 1 more only in the net"),
        ({"count": 4}, "expected 3 classes, as the data have, found 4 without names"),
        ({"classes": ("a", "b"), "count": 2}, "found 2: c only in the data; take"),
        ({"facts": {BOX_FACTS: {"kind": "scr"}}}, "expected a net that answers with class scores, found a box net"),
    ],
)
def test_other_classes_are_refused_in_one_line(net, said):
    with pytest.raises(ConfigError) as error:
        match_classes(backbone(**({"count": 3} | net)), ("a", "b", "c"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("told", "scales", "crop"),
    [
        ({"training": {"recipe": {"scale": [256, 256]}}}, (224, 256, 288), (256,)),
        ({"training": {"recipe": {"scale": [384, 384]}}}, (352, 384, 416), (384,)),
        ({"training": {"recipe": {"scale": [256, 512]}}}, (256, 384, 512), (384,)),
        # No crop of 224 fits below 224.
        ({"training": {"recipe": {"scale": [224, 224]}}}, (224, 256), (224,)),
        ({}, (256, 384, 512), (256,)),
        ({"training": {"recipe": {"scale": "256"}}}, (256, 384, 512), (256,)),
        ({"training": [1]}, (256, 384, 512), (256,)),
    ],
)
def test_scales_are_the_papers_for_the_s_of_the_net(told, scales, crop):
    net = backbone(facts=told)
    assert default_scales(net, "dense") == default_scales(net, "multi-crop") == scales
    assert default_scales(net, "crop") == crop


# Files of posteriors.


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for k, name in enumerate(("ant", "bee", "cat")):
        for number in range(4):
            draw(folder / "train" / name / f"{number}.png", 100 + 4 * k + number)
            draw(folder / "val" / name / f"{name}{number}.png", 4 * k + number, (70 + number % 2, 60))
    return folder


@pytest.fixture
def data(root):
    return ilsvrc.read(root)


SETTINGS = PosteriorSettings(scales=(224, 240))


def test_every_row_is_the_posterior_of_its_own_image_in_the_order_of_the_data(data, root, tmp_path):
    net = backbone(classes=("cat", "ant", "bee"), count=3)
    summary = cache_posteriors(data, net, tmp_path / "x.h5", SETTINGS, run=CACHE)
    assert (summary.total, summary.failures) == (12, ())
    with FeatureFile(tmp_path / "x.h5") as file:
        assert file.dataset.classes == ("ant", "bee", "cat")
        assert file.dataset.ids[:2] == ("ant0", "ant1")
        assert file.shape.dims == (2, 1, 3)
        for row, path in enumerate(file.dataset.paths):
            made = decode(Request(str(root / path), (None,)), DecodeSettings())
            own = posteriors(net, made, scales=(224, 240))  # cat, ant, bee
            close(file.read([row])[0, :, 0], own[:, [1, 2, 0]])
            assert file.dataset.classes[int(np.argmax(file.dataset.labels[row]))] == path.split("/")[1]
        told = file.provenance
    assert (told["layer"], told["mode"], told["softmax"], told["class_order"]) == (
        "posteriors", "dense", "after", "by name",
    )  # fmt: skip
    assert str(root) not in json.dumps(told)


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("mode", ["dense", "crop"])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(data, tmp_path, mode):
    settings = replace(SETTINGS, mode=mode)
    cache_posteriors(data, backbone(count=3), tmp_path / "whole.h5", settings, run=CACHE)

    def stop(done, total, failed):
        if done >= 6:
            raise Stop

    with pytest.raises(Stop):
        cache_posteriors(data, backbone(count=3), tmp_path / "x.h5", settings, run=CACHE, progress=stop)
    assert not (tmp_path / "x.h5").exists()
    summary = cache_posteriors(data, backbone(count=3), tmp_path / "x.h5", settings, run=CACHE)
    assert summary.resumed == 4
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize(
    ("what", "changed"),
    [("mode", {"mode": "crop"}), ("softmax", {"softmax": "before"}), ("scales", {"scales": (224,)})],
)
def test_posteriors_of_other_settings_are_refused_with_the_difference_named(data, tmp_path, what, changed):
    cache_posteriors(data, backbone(count=3), tmp_path / "x.h5", SETTINGS, run=CACHE)
    with pytest.raises(StoreError, match=what):
        cache_posteriors(data, backbone(count=3), tmp_path / "x.h5", replace(SETTINGS, **changed), run=CACHE)


def test_a_packed_copy_gives_the_posteriors_of_its_images(data, tmp_path):
    pack(data, tmp_path / "packed")
    packed = ilsvrc.read(tmp_path / "packed")
    net = backbone(count=3)
    cache_posteriors(packed, net, tmp_path / "x.h5", SETTINGS, run=CACHE)
    with FeatureFile(tmp_path / "x.h5") as file:
        for row in (0, 7):
            place = packed.val.place(row)
            made = decode(Request(place.file, (None,), place.span), DecodeSettings())
            close(file.read([row])[0, :, 0], posteriors(net, made, scales=(224, 240)))
        assert file.dataset.ids == as_dataset(data).ids


def test_images_that_cant_be_read_count_as_wrong_and_are_named(tmp_path):
    for name in ("ant", "bee"):
        draw(tmp_path / "in" / "train" / name / "0.png", 1)
        for number in range(4):
            draw(tmp_path / "in" / "val" / name / f"{name}{number}.png", number)
    (tmp_path / "in" / "val" / "ant" / "ant1.png").write_bytes(b"no image")
    (tmp_path / "in" / "val" / "bee" / "bee3.png").write_bytes(b"")
    read = ilsvrc.read(tmp_path / "in")
    net = backbone(count=2)
    net.model.layers["fc8"].bias.data[0] += 1000  # Everything is an ant.
    cache_posteriors(read, net, tmp_path / "x.h5", SETTINGS, run=CACHE)
    fused = fuse(tmp_path / "x.h5")
    assert list(fused.failed) == ["ant1", "bee3"]
    assert fused.failed["bee3"].startswith("empty")
    assert fused.ok.tolist() == [True, False, True, True, True, True, True, False]
    assert np.isneginf(fused.posteriors[1]).all()
    found = evaluate(fused)
    # Of 8: the four bees, and the ant that can't be read.
    assert found.top1_error == 5 / 8
    # With five guesses of two classes, only what can't be read.
    assert found.top5_error == 2 / 8
    assert found.classes[0].failed == found.classes[1].failed == 1
    assert found.pairs() == [(1, 0, 3)]
    assert "failed: bee3: empty" in classification_record(fused, found).text()
    assert "2 images could not be read" in " ".join(result_notes(fused))
    assert [row["id"] for row in classification_record(fused, found).content["failed"]] == ["ant1", "bee3"]


def test_images_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for name in ("ant", "bee"):
        draw(tmp_path / "train" / name / "0.png", 1)
        draw(tmp_path / "val" / name / "0.png", 1)
    assert as_dataset(ilsvrc.read(tmp_path)).ids == ("val/ant/0.png", "val/bee/0.png")


# Fusion.


def write_file(
    path, values, *, net="a", mode="dense", scales=(256,), failed=(), order=None, targets=None, layer="posteriors"
):
    """Write a file of posteriors: values (N, S, K)."""
    values = np.asarray(values, dtype=np.float32)
    count, _, classes = values.shape
    order = np.arange(count) if order is None else np.asarray(order)
    targets = (np.arange(count) % classes if targets is None else np.asarray(targets))[order]
    dataset = DataSet(
        name="ilsvrc",
        task=Task.SINGLE_LABEL,
        classes=tuple(f"class{k}" for k in range(classes)),
        ids=tuple(f"image{n}" for n in order),
        paths=tuple(f"val/image{n}.JPEG" for n in order),
        labels=np.where(targets[:, None] == np.arange(classes), 1, -1).astype(np.int8),
        splits={"val": np.arange(count)},
    )
    key = {"layer": layer, "mode": mode, "weights_sha256": net, "net": "D", "width": 1.0, "trained": True}
    status = [Status.FAILED if n in failed else Status.DONE for n in order]
    block = Block(
        features=values[order][:, :, None],
        status=np.array(status, np.uint8),
        reasons=tuple("truncated: gone" if n in failed else "" for n in order),
        sizes=np.ones((count, 2), np.int32),
        sha256=np.array([[n % 256] * 32 for n in order], np.uint8),
    )
    shape = Shape(scales=tuple(scales), regions=("image",), channels=classes)
    with FeatureWriter.open(path, dataset, key, shape, shard_rows=count) as parts:
        parts.append(0, block)
        parts.finish(key)
    return path


def test_scales_modes_and_nets_are_averaged_as_by_hand(tmp_path):
    # Two images, two classes; what is written down is the posterior of class 0.
    def table(*rows):
        return [[[p, 1 - p] for p in row] for row in rows]

    files = [
        write_file(tmp_path / "a1.h5", table((0.2, 0.4), (1.0, 0.5)), net="a", mode="dense", scales=(256, 384)),
        write_file(tmp_path / "a2.h5", table((0.6,), (0.3,)), net="a", mode="dense", scales=(512,)),
        write_file(tmp_path / "a3.h5", table((0.8,), (0.0,)), net="a", mode="multi-crop", scales=(256,)),
        write_file(tmp_path / "b.h5", table((0.9, 0.7), (0.1, 0.2)), net="b", mode="dense", scales=(256, 384)),
    ]
    # Net a: ((0.2 + 0.4 + 0.6) / 3 + 0.8) / 2 = 0.6 and ((1.0 + 0.5 + 0.3) / 3 + 0) / 2 = 0.3; net b: 0.8 and 0.15.
    close(fuse(files).posteriors[:, 0], [(0.6 + 0.8) / 2, (0.3 + 0.15) / 2])
    close(fuse(files[:3]).posteriors[:, 0], [0.6, 0.3])
    close(fuse(files[0]).posteriors[:, 0], [0.3, 0.75])
    close(fuse([files[0], files[3]], scales=(384,)).posteriors[:, 0], [(0.4 + 0.7) / 2, (0.5 + 0.2) / 2])
    fused = fuse(files)
    assert [part.share for part in fused.parts] == pytest.approx([1 / 12, 1 / 12, 1 / 4, 1 / 4])
    assert fused.posteriors.sum(axis=1) == pytest.approx(1)
    assert fused.targets.tolist() == [0, 1]
    assert fused.classes == ("class0", "class1")


def test_rows_are_matched_by_id_and_failures_of_any_file_count(tmp_path):
    rng = np.random.default_rng(0)
    one, other = rng.dirichlet(np.ones(3), (2, 7, 1))
    files = [
        write_file(tmp_path / "a.h5", one, net="a", failed=(2,)),
        write_file(tmp_path / "b.h5", other, net="b", failed=(5,), order=[3, 0, 6, 5, 1, 2, 4]),
    ]
    fused = fuse(files)
    expected = ((one + other) / 2)[:, 0]
    expected[[2, 5]] = -np.inf
    np.testing.assert_allclose(fused.posteriors, expected, rtol=1e-6)
    assert fused.ids == tuple(f"image{n}" for n in range(7))
    assert fused.failed == {"image2": "truncated: gone", "image5": "truncated: gone"}


def test_blocks_change_nothing(tmp_path, monkeypatch):
    values = np.random.default_rng(1).dirichlet(np.ones(4), (9, 2))
    path = write_file(tmp_path / "a.h5", values, scales=(256, 384))
    whole = fuse(path)
    monkeypatch.setattr(fusing, "BLOCK_BYTES", 2 * 2 * 4 * 4)
    assert np.array_equal(fuse(path).posteriors, whole.posteriors)
    assert np.array_equal(fuse(path).top(2), whole.top(2))


def test_fusing_needs_one_table_however_many_files_there_are(tmp_path, monkeypatch):
    count, classes = 4000, 500
    table = 4 * count * classes
    values = np.full((count, 2, classes), 1 / classes, np.float32)
    files = [write_file(tmp_path / f"{net}.h5", values, net=net, scales=(256, 384)) for net in "abc"]
    monkeypatch.setattr(fusing, "BLOCK_BYTES", 1 << 20)
    del values
    tracemalloc.start()
    try:
        fuse(files)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The files hold 6 tables. Next to one there are labels of a byte each, twice, what checks them, and 16 MiB
    # for the checksums.
    assert peak < table + 5 * count * classes + (1 << 24) + (1 << 21)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "expected each net, mode and scale once, found dense at Q = 256 of its net twice"),
        ({"net": "b", "targets": [1, 0, 2, 0]}, "expected the same labels"),
        ({"net": "b", "values": np.full((3, 1, 3), 1 / 3)}, "expected the same samples"),
        ({"net": "b", "values": np.full((4, 1, 2), 1 / 2)}, "expected the same"),
    ],
)
def test_files_that_do_not_go_together_are_refused_in_one_line(tmp_path, changed, said):
    first = write_file(tmp_path / "a.h5", np.full((4, 1, 3), 1 / 3))
    options = {"values": np.full((4, 1, 3), 1 / 3)} | changed
    other = write_file(tmp_path / "b.h5", options.pop("values"), **options)
    with pytest.raises((ConfigError, StoreError)) as error:
        fuse([first, other])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_images_of_other_bytes_are_refused(tmp_path):
    first = write_file(tmp_path / "a.h5", np.full((4, 1, 3), 1 / 3), net="a")
    swapped = write_file(tmp_path / "b.h5", np.full((4, 1, 3), 1 / 3), net="b")
    with FeatureFile(swapped) as file:
        dataset, key, shape = file.dataset, file.key, file.shape
    (tmp_path / "b.h5").unlink()
    block = Block(
        features=np.full((4, 1, 1, 3), 1 / 3, np.float32),
        status=np.full(4, Status.DONE, np.uint8),
        reasons=("",) * 4,
        sizes=np.ones((4, 2), np.int32),
        sha256=np.array([[0] * 32, [1] * 32, [9] * 32, [3] * 32], np.uint8),
    )
    with FeatureWriter.open(swapped, dataset, key, shape, shard_rows=4) as parts:
        parts.append(0, block)
        parts.finish(key)
    with pytest.raises(StoreError, match="the image 'image2' had other bytes"):
        fuse([first, swapped])


def test_scales_that_are_not_there_and_features_are_refused(tmp_path):
    path = write_file(tmp_path / "a.h5", np.full((4, 1, 3), 1 / 3))
    with pytest.raises(ConfigError, match=r"scales: expected some of 256 .*, found \[384\]"):
        fuse(path, scales=(384,))
    with pytest.raises(ConfigError, match="expected at least one file"):
        fuse([])
    other = write_file(tmp_path / "b.h5", np.full((4, 1, 3), 1 / 3), layer="fc7")
    with pytest.raises(StoreError, match="expected class posteriors, found features of fc7"):
        fuse(other)


def test_damage_is_found_before_anything_is_computed(tmp_path):
    values = np.full((4, 1, 3), 1 / 3)
    path = write_file(tmp_path / "a.h5", values)
    raw = bytearray(path.read_bytes())
    at = raw.index(np.float32(1 / 3).tobytes() * 6)
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="SHA-256"):
        fuse(path)


# Errors.


def fused_of(values, targets, **changed):
    values = np.asarray(values, dtype=np.float32)
    count, classes = values.shape
    columns = {
        "posteriors": values,
        "targets": np.asarray(targets),
        "ids": tuple(f"image{n}" for n in range(count)),
        "paths": tuple(f"image{n}.JPEG" for n in range(count)),
        "classes": tuple(f"class{k}" for k in range(classes)),
        "words": {},
        "failed": {},
        "parts": (),
        "dataset": {"name": "ilsvrc", "fingerprint": "", "layout": ""},
    }
    return Fused(**(columns | changed))


@pytest.mark.parametrize("classes", [2, 5, 6])
def test_the_top_5_error_is_reported_where_five_guesses_can_be_wrong(classes):
    fused = fused_of(np.random.default_rng(0).dirichlet(np.ones(classes), 20), np.arange(20) % classes)
    record = classification_record(fused, evaluate(fused))
    five = classes > 5
    assert ("top-5" in record.headline[0]) == ("top5_error" in record.columns) == five
    assert (record.content["top5_error"] is not None) == five
    assert ("top5_error" in record.content["chance"]) == ("top5_error" in record.classes[0]) == five


def test_errors_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    values, targets = rng.dirichlet(np.full(20, 0.1), 500), rng.integers(0, 20, 500)
    fused = fused_of(values, targets)
    found = evaluate(fused)
    labels = range(20)
    assert found.top1_error == pytest.approx(1 - top_k_accuracy_score(targets, fused.posteriors, k=1, labels=labels))
    assert found.top5_error == pytest.approx(1 - top_k_accuracy_score(targets, fused.posteriors, k=5, labels=labels))
    for k, row in enumerate(found.classes):
        rows = targets == k
        expected = 1 - top_k_accuracy_score(targets[rows], fused.posteriors[rows], k=5, labels=labels)
        assert row.top5_error == pytest.approx(expected)
    assert sum(row.images for row in found.classes) == 500
    assert found.confusion.sum() == 500


def test_confusions_are_counted_and_ranked_by_hand():
    guesses = [0, 1, 1, 0, 0, 2, 2, 0]
    targets = [0, 0, 0, 1, 1, 1, 2, 2]
    fused = fused_of(np.eye(3)[guesses], targets)
    # 0 for 1 twice, 1 for 0 twice, then 1 for 2 and 2 for 0 once.
    assert evaluate(fused).pairs() == [(0, 1, 2), (1, 0, 2), (1, 2, 1), (2, 0, 1)]
    assert evaluate(fused).top1_error == 6 / 8


def test_guesses_are_ranked_best_first_and_equal_ones_by_number():
    fused = fused_of([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [-np.inf] * 3], [0, 0, 0])
    assert fused.top(2).tolist() == [[1, 2], [0, 2], [-1, -1]]
    assert fused.top(9).shape == (3, 3)


def test_a_class_without_images_has_no_error_and_an_image_without_class_is_refused():
    found = evaluate(fused_of(np.eye(3)[[0, 0]], [0, 2]))
    assert np.isnan(found.classes[1].top1_error)
    assert found.top1_error == 0.5
    fused = fused_of(np.eye(3)[[0, 0]], [0, 2])
    assert classification_record(fused, found).content["classes"][1]["top1_error"] is None
    with pytest.raises(FitError, match="found none for image1"):
        evaluate(fused_of(np.eye(3)[[0, 0]], [0, -1]))


# The paper next to it.


@pytest.fixture(scope="module")
def official():
    """What fusing posteriors of the real 50,000 images would give, but for the posteriors."""
    names = tuple(sorted({f"n{number:08d}" for number in range(1, 1000)} | {"n01751748"}))
    targets = np.arange(50_000) % 1000
    first = names.index("n01751748")
    targets[[0, first]] = targets[[first, 0]]
    return fused_of(
        np.broadcast_to(np.float32(0.001), (50_000, 1000)),
        targets,
        ids=tuple(f"ILSVRC2012_val_{number:08d}" for number in range(1, 50_001)),
        paths=("",) * 50_000,
        classes=names,
    )


def part(net="D", scale=(256, 512), mode="dense", scales=(256, 384, 512), sha="a", **told):
    about = {"net": net, "trained_scale": scale and list(scale), "mode": mode, "weights_sha256": sha}
    provenance = {"width": 1.0, "trained": True} | about | told
    return fusing.FusedPart(file=f"{net}.h5", scales=scales, share=1.0, failed=0, provenance=provenance)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((part(),), [(4, 24.8, 7.5), (5, 24.8, 7.5)]),
        ((part(scales=(384,)),), [(3, 25.6, 8.1)]),
        ((part(scales=(384,), scale=(384, 384)),), [(3, 26.8, 8.7)]),
        ((part(scales=(384,), scale=None),), [(3, 26.8, 8.7), (3, 25.6, 8.1)]),
        ((part("E", mode="multi-crop"),), [(5, 24.6, 7.4)]),
        ((part("E"), part("E", mode="multi-crop")), [(5, 24.4, 7.1)]),
        ((part("E"), part(sha="b")), [(6, 24.0, 7.1)]),
        ((part("E"), part("D", sha="b", mode="multi-crop")), []),
        ((part(mode="crop", scales=(256,)),), []),
        ((part(scales=(256, 384)),), []),
        ((part(width=0.5),), []),
        ((part(trained=False),), []),
        ((part(), part(mode="multi-crop", scales=(256,))), []),
        ((part(scale=None, imported={"published": "vgg16-torchvision"}),), []),
        ((part(scale=None, imported={"published": "vgg16-timm"}, scales=(384,)),), []),
        ((part(scale=None, imported={"published": "vgg16-caffe"}, scales=(384,)),), [(3, 25.6, 8.1)]),
    ],
)
def test_the_papers_rows_are_those_of_the_same_nets_mode_and_scales(official, parts, expected):
    fused = replace(official, parts=parts)
    assert [(row.table, row.top1, row.top5) for row in paper_errors(fused)] == expected


def test_the_submission_is_recognised_in_any_order(official):
    (row,) = [row for row in TABLES_3_TO_6 if len(row.nets) == 7]
    scales = {"256": (256, 256), "384": (384, 384), "[256;512]": (256, 512)}
    parts = [part(net.net, scales[net.scale], scales=net.sides, sha=str(number)) for number, net in enumerate(row.nets)]
    assert paper_errors(replace(official, parts=tuple(parts[::-1]))) == [row]


def test_other_images_are_not_compared_with_the_paper(official):
    assert is_official_fusion(official)
    swapped = official.targets.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    renamed = (*official.ids[:-1], "mine")
    for other in (replace(official, targets=swapped), replace(official, ids=renamed), fused_of(np.eye(3), [0, 1, 2])):
        assert not is_official_fusion(other)
        assert paper_errors(replace(other, parts=(part(),))) == []


def test_nets_that_differ_in_more_than_weights_are_said_aloud():
    fused = fused_of(np.eye(3), [0, 1, 2], parts=(
        part(softmax="after", class_order="by number"), part("E", sha="b", softmax="before", trained=False),
    ))  # fmt: skip
    notes = " | ".join(result_notes(fused))
    assert "files of different softmax were averaged: after, before" in notes
    assert "E.h5: the net is untrained" in notes
    assert "D.h5: the weights name no classes; channel 0 was taken for class0" in notes


def test_weights_of_ours_keep_their_classes(tmp_path, data):
    model = backbone(count=3).model
    save_weights(tmp_path / "x.safetensors", model, mean=(1, 2, 3), classes=("bee", "cat", "ant"))
    assert match_classes(load_backbone(tmp_path / "x.safetensors"), data.classes).tolist() == [2, 0, 1]
