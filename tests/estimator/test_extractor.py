"""Descriptors inside scikit-learn programs."""

import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from tiffs import write_tiff
from vggfeat import Extractor
from vggfeat.errors import ConfigError, ImageError, WeightsError
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.images.decode import DecodeSettings, Request, decode
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


def test_paths_pil_images_and_workers_give_the_same(images):
    extractor = Extractor(NET, scales=(224,), device="cpu", chunk=4)
    from_paths = extractor.transform(images)
    mixed = [Image.open(path) if number % 2 else path for number, path in enumerate(images)]
    np.testing.assert_array_equal(extractor.transform(mixed), from_paths)
    np.testing.assert_array_equal(clone(extractor).set_params(workers=1).transform(iter(images)), from_paths)


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
    with pytest.raises(ConfigError, match="chunk"):
        Extractor(NET, chunk=0).fit()
    with pytest.raises(WeightsError, match="found neither"):
        Extractor("nowhere.safetensors").fit()
