"""The precision contract: what is measured, and that half precision keeps it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vggfeat.errors import ImageError
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.forward.rerun import LEAST_COSINE, cosine_to_float32, cosines
from vggfeat.images.decode import DecodedImage
from vggfeat.weights import load_backbone


def image(seed):
    smooth = np.add.outer(np.arange(90) * (1 + seed), np.arange(120) * 2) % 256
    rng = np.random.default_rng(seed)
    noisy = smooth[..., None] * [1.0, 0.7, 0.4] + rng.integers(0, 60, (90, 120, 3))
    return DecodedImage((np.clip(noisy, 0, 255).astype(np.uint8),), (90, 120), bytes(32))


def features(passes, images):
    return [row.features for row in passes.rows(images)]


def test_cosines_by_hand():
    one = np.array([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], dtype=np.float32)
    other = np.array([[[4.0, 3.0], [-2.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]], dtype=np.float32)
    np.testing.assert_allclose(cosines(one, other), [[0.96, -1.0], [1.0, 0.0]])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_bundled_net_keeps_the_contract(precision):
    images = [image(1), ImageError("empty", "x"), image(2)]
    net = load_backbone("small")
    exact, half = (feature_runner(net, ExtractionSettings(scales=(224,), precision=p)) for p in ("fp32", precision))
    found = cosine_to_float32(exact, images, features(half, images))
    assert LEAST_COSINE <= found.least < 1
    assert found.images == 2


def test_nothing_is_claimed_where_nothing_was_compared():
    exact = feature_runner(load_backbone("small"), ExtractionSettings(scales=(224,)))
    failed = [ImageError("empty", "x")]
    assert cosine_to_float32(exact, failed, [None]) == (None, 0)


def test_a_wrong_row_is_seen():
    exact = feature_runner(load_backbone("small"), ExtractionSettings(scales=(224,)))
    found = features(exact, [image(1), image(2)])
    assert cosine_to_float32(exact, [image(1), image(2)], [found[0], found[0]]).least < 0.999


def percent(folder, *options):
    out = folder / f"{'-'.join(options)}.h5"
    source = ["--dataset", "voc2007", "--root", folder, "--weights", "small", "--scales", "224,256"]
    commands = [["extract", *source, "--out", out, "--quiet", *options], ["svm", "--features", out, "--json"]]
    for words in commands:
        done = subprocess.run([sys.executable, "-m", "vggfeat", *map(str, words)], stdout=subprocess.PIPE, check=True)
    return 100 * json.loads(done.stdout)["headline"]


@pytest.mark.long
def test_half_precision_and_padding_change_the_demo_by_no_more_than_a_tenth_of_a_point(tmp_path):
    words = ["data", "synth", "voc2007", "--root", tmp_path, "--size", "demo"]
    subprocess.run([sys.executable, "-m", "vggfeat", *map(str, words)], check=True)
    exact = percent(tmp_path, "--precision", "fp32")
    assert percent(tmp_path, "--precision", "bf16") == pytest.approx(exact, abs=0.1)
    assert percent(tmp_path, "--precision", "fp16") == pytest.approx(exact, abs=0.1)
    assert percent(tmp_path, "--batching", "padded") == pytest.approx(exact, abs=0.01)
