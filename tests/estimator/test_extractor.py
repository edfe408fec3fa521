"""Descriptors inside scikit-learn programs."""

import logging
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from tiffs import write_tiff
from vggfeat import Extractor
from vggfeat.errors import ConfigError, ImageError, WeightsError
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.images.decode import DecodeSettings, Request, decode
from vggfeat.nets.transforms import normalise, rescale
from vggfeat.svm import LinearOneVsRestCV
from vggfeat.weights import random_backbone

NET = "random:A:0:0.03125"


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for number in range(6):
        stripes = np.zeros((60, 80 + 5 * number, 3), dtype=np.uint8)
        if number % 2:
            stripes[:, ::8] = 255
        else:
            stripes[::8] = 255
        noise = rng.integers(0, 40, stripes.shape, dtype=np.uint8)
        Image.fromarray(np.maximum(stripes, noise)).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    return paths


def test_descriptors_are_those_of_the_extraction(images):
    found = Extractor(NET, scales=(224, 240), device="cpu").fit_transform(images)
    rows = feature_runner(random_backbone(NET), ExtractionSettings(scales=(224, 240))).rows(
        [decode(Request(path, (None,)), DecodeSettings()) for path in images]
    )
    expected = np.stack([row.features.mean(axis=(0, 1)) for row in rows])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_paths_pil_images_and_generators_give_the_same(images):
    extractor = Extractor(NET, scales=(224,), device="cpu", chunk=4)
    from_paths = extractor.transform(images)
    mixed = [Image.open(path) if number % 2 else path for number, path in enumerate(images)]
    np.testing.assert_array_equal(extractor.transform(mixed), from_paths)
    np.testing.assert_array_equal(extractor.transform(iter(images)), from_paths)


def test_works_in_a_pipeline_and_clones(images):
    labels = [0, 1, 0, 1, 0, 1]
    model = make_pipeline(Extractor(NET, scales=(224,), device="cpu"), LinearSVC(C=10.0))
    assert clone(model).fit(images, labels).score(images, labels) == 1.0
    changed = model.set_params(extractor__join="max")
    assert changed.get_params()["extractor__join"] == "max"


def test_a_fitted_pipeline_pickles_without_the_net(images):
    extractor = Extractor(NET, scales=(224,), device="cpu").fit()
    packed = pickle.dumps(extractor)
    assert len(packed) < 5000
    np.testing.assert_array_equal(pickle.loads(packed).transform(images[:2]), extractor.transform(images[:2]))


def test_names_of_the_columns(images):
    for join, factor in (("mean", 1), ("stack", 2)):
        extractor = Extractor(NET, scales=(224, 230), device="cpu", join=join)
        names = extractor.get_feature_names_out()
        assert len(names) == extractor.transform(images[:1]).shape[1] == 128 * factor


def test_a_bad_image_is_named_by_number_and_path_and_nothing_is_skipped(images, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"image 2: .*bad\.jpg"):
        Extractor(NET, scales=(224,), device="cpu", chunk=2).transform([*images[:2], tmp_path / "bad.jpg"])


def test_a_bad_image_in_memory_is_named_too(images, tmp_path):
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "half.png") as half, pytest.raises(ImageError, match="image 1: "):
        Extractor(NET, scales=(224,), device="cpu").transform([images[0], half])


def test_a_deep_image_is_its_file_as_long_as_it_has_its_tags(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (30, 40, 1))
    (tmp_path / "a.tif").write_bytes(write_tiff(values, 12, photometric=1))
    extractor = Extractor(NET, scales=(224,), device="cpu")
    with Image.open(tmp_path / "a.tif") as image:
        expected = extractor.transform([tmp_path / "a.tif"])
        np.testing.assert_array_equal(extractor.transform([image]), expected)
        for derived in (image.copy(), image.crop((0, 0, 40, 30)), pickle.loads(pickle.dumps(image))):
            with pytest.raises(ImageError, match=r"image 1: .*mode I;16, whose black and white are not known"):
                extractor.transform([tmp_path / "a.tif", derived])
    shallow = Image.fromarray((values[..., 0] // 16).astype(np.uint8))
    assert float((extractor.transform([shallow]) @ expected.T)[0, 0]) > 0.999


@pytest.mark.parametrize(
    "changed",
    [
        {"layer": "fc6"},
        {"precision": "bf16"},
        {"interpolation": "bicubic"},
        {"scales": (240,)},
        {"weights": "random:A:1:0.03125"},
    ],
)
def test_a_changed_parameter_takes_effect_after_fitting(images, changed):
    extractor = Extractor(NET, scales=(224,), device="cpu").fit()
    before = extractor.transform(images[:1])
    after = extractor.set_params(**changed).transform(images[:1])
    assert not np.array_equal(before, after)
    parameters = {"weights": NET, "scales": (224,), "device": "cpu"} | changed
    np.testing.assert_array_equal(after, Extractor(**parameters).transform(images[:1]))


def test_no_images_give_no_rows():
    assert Extractor(NET, scales=(224,), device="cpu").transform([]).shape == (0, 128)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="expected a list"):
        Extractor(NET, scales=(224,)).transform("a.jpg")
    with pytest.raises(ConfigError, match=r"arrays or tensors, found int$"):
        Extractor(NET, scales=(224,), device="cpu").transform([1])
    with pytest.raises(ConfigError, match="join"):
        Extractor(NET, scales=(224,), join="sum").fit()
    for name, wrong in (("chunk", 0), ("chunk", "3"), ("workers", -1), ("workers", "a"), ("batch_pixels", 1.5)):
        with pytest.raises(ConfigError, match=f"{name}: expected a whole number from [01], found {wrong!r}"):
            Extractor(NET, **{name: wrong}).fit()
    for scales in (256.7, "256", (256.7,), None):
        with pytest.raises(ConfigError, match="scales: expected a whole number, found"):
            Extractor(NET, scales=scales).fit()
    with pytest.raises(WeightsError, match="found neither"):
        Extractor("nowhere.safetensors").fit()


def test_one_scale_may_be_a_number(images):
    one, several = (Extractor(NET, scales=scales, device="cpu").transform(images[:1]) for scales in (224, (224,)))
    np.testing.assert_array_equal(one, several)


def test_a_bad_image_becomes_a_row_of_nan_if_asked_for(images, tmp_path, caplog):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    given = [images[0], tmp_path / "bad.jpg", images[1], tmp_path / "none.jpg"]
    extractor = Extractor(NET, scales=224, device="cpu", errors="nan", chunk=3)
    with caplog.at_level(logging.WARNING, "vggfeat"):
        found = extractor.transform(given)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False, True]
    np.testing.assert_allclose(found[[0, 2]], extractor.transform(images[:2]), atol=1e-6)
    assert extractor.failures_ == []  # of the last call
    extractor.transform(given)
    assert [failure.index for failure in extractor.failures_] == [1, 3]
    assert [failure.name for failure in extractor.failures_] == [
        str(tmp_path / name) for name in ("bad.jpg", "none.jpg")
    ]
    assert [failure.reason.partition(":")[0] for failure in extractor.failures_] == ["unrecognised", "missing"]
    assert "2 of 4 images gave no descriptor" in caplog.text
    with pytest.raises(ConfigError, match="X: expected a list of images"):
        extractor.transform(images[0])
    assert extractor.failures_ == []
    with pytest.raises(ConfigError, match="errors: expected one of raise, nan"):
        Extractor(NET, errors="ignore").fit()


def processes(extractor):
    decoders = [decoder for decoder, _ in extractor._kept()._decoders.values()]
    return {worker._process.pid for decoder in decoders for worker in decoder._living}


def test_decoding_processes_stay_until_they_are_closed(images):
    with Extractor(NET, scales=224, device="cpu", workers=1) as extractor:
        first = extractor.transform(images[:2])
        (process,) = processes(extractor)
        extractor.transform([Path(images[0]).read_bytes()])
        assert processes(extractor) == {process}
    assert not os.path.exists(f"/proc/{process}")
    assert not processes(extractor)
    np.testing.assert_array_equal(extractor.transform(images[:2]), first)  # it may be used again
    (process,) = processes(extractor)
    del extractor  # or forgotten
    assert not os.path.exists(f"/proc/{process}")


def test_threads_may_share_an_extractor(images, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    extractor = Extractor(NET, scales=224, device="cpu", errors="nan", chunk=2)
    parts = [[*images[start:], *[tmp_path / "bad.jpg"] * start] for start in range(4)]
    expected = [extractor.transform(part) for part in parts]

    def work(number):
        rows = extractor.transform(parts[number % 4])
        return rows, len(extractor.failures_), extractor.maps(images[0], ["pool1"])["pool1"].sum()

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(work, range(8)))
    for number, (rows, failed, total) in enumerate(found):
        np.testing.assert_array_equal(rows, expected[number % 4])
        assert failed == number % 4
        assert total == found[0][2]


def test_generators_are_read_as_far_as_they_are_needed(images, tmp_path):
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield images[0] if len(drawn) <= 4 else tmp_path / "none.jpg"

    with pytest.raises(ImageError, match="image 4: "):
        Extractor(NET, scales=224, device="cpu", chunk=2).transform(endless())
    assert len(drawn) == 6  # to the end of the chunk


def test_progress_goes_to_standard_error_or_into_a_notebook(images, capsys, monkeypatch):
    extractor = Extractor(NET, scales=224, device="cpu", progress=True)
    extractor.transform(images[:2])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err
    shown = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    display = SimpleNamespace(display=lambda data, **_: handle)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    extractor.transform(iter(images[:2]))
    assert shown[-1].startswith("2 images, ")
    assert capsys.readouterr() == ("", "")


def test_maps_are_those_of_the_net_with_its_preprocessing(images):
    extractor = Extractor(NET, scales=224, device="cpu")
    backbone = random_backbone(NET)
    layers = ["relu1_1", "relu3_2", "pool5", "fc7"]
    found = extractor.maps(images[0], layers, scale=230)
    pixels = torch.from_numpy(np.array(Image.open(images[0]))).permute(2, 0, 1)
    x = normalise(rescale(pixels, (230, 307))[None], torch.tensor(backbone.mean), torch.tensor(backbone.std))
    with torch.inference_mode():
        expected = backbone.model(x, layers)
    assert [*found] == layers
    assert [maps.shape[1:] for maps in found.values()] == [(230, 307), (57, 76), (7, 9), (1, 3)]
    for layer in layers:
        np.testing.assert_allclose(found[layer], expected[layer][0], rtol=1e-4, atol=1e-4)
    strips = clone(extractor).set_params(batch_pixels=230 * 100).maps(images[0], layers, scale=230)
    for layer in layers:
        np.testing.assert_allclose(strips[layer], found[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", ["relu1_1", "relu4_2", "pool3", "conv5", "fc8"])
def test_descriptors_of_a_layer_are_the_means_of_its_maps(images, layer):
    extractor = Extractor(NET, scales=232, device="cpu", layer=layer, normalisation="none")
    image = np.array(Image.open(images[0]))
    both = [extractor.maps(one, [layer], scale=232)[layer].mean((1, 2)) for one in (image, image[:, ::-1])]
    np.testing.assert_allclose(extractor.transform([image])[0], np.mean(both, axis=0), rtol=1e-4, atol=1e-4)
    narrow = clone(extractor).set_params(batch_pixels=232 * 100)
    np.testing.assert_allclose(narrow.transform([image]), extractor.transform([image]), rtol=1e-4, atol=1e-4)


def test_an_image_too_small_for_a_layer_is_refused(images):
    extractor = Extractor(NET, scales=224, device="cpu")
    assert extractor.maps(images[0], ["pool4"])["pool4"].shape == (16, 3, 5)  # 60 x 80 as it is
    with pytest.raises(ConfigError, match="at least 224 pixels for fc6, found 80x60"):
        extractor.maps(images[0], ["pool4", "fc6"])
    with pytest.raises(ConfigError, match=r"expected one of relu1_1, pool1,.* found 'fc9'"):
        extractor.maps(images[0], ["fc9"])
    with pytest.raises(ConfigError, match="expected a list of maps"):
        extractor.maps(images[0], "fc7")
    assert [*extractor.maps(images[0], (layer for layer in ["pool4"]))] == ["pool4"]
    for scale in (0, 99.5, "99"):
        with pytest.raises(ConfigError, match=f"scale: expected a whole number from 1, found {scale!r}"):
            extractor.maps(images[0], ["pool4"], scale=scale)
    with pytest.raises(ImageError, match="expected a readable file"):
        extractor.maps("nowhere.jpg")


def test_a_pipeline_with_the_svms_is_validated_cloned_and_stored(images, tmp_path):
    labels = np.array(["rows", "columns"] * 3)
    model = make_pipeline(Extractor(NET, scales=224, device="cpu"), LinearOneVsRestCV([1.0, 10.0], cv=2))
    assert cross_val_score(model, images, labels, cv=3).tolist() == [1.0, 1.0, 1.0]
    fitted = clone(model).fit(images, labels)
    scores = fitted.decision_function(images)
    joblib.dump(fitted, tmp_path / "model.joblib")
    for again in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "model.joblib")):
        np.testing.assert_array_equal(again.decision_function(images), scores)
        assert again.predict(images).tolist() == labels.tolist()


def test_a_forked_process_has_its_own_decoders(images):
    extractor = Extractor(NET, scales=224, device="cpu")
    kept = extractor._kept()
    kept.process += 1
    assert extractor._kept() is not kept
    np.testing.assert_array_equal(extractor.transform(images[:1]), clone(extractor).transform(images[:1]))
