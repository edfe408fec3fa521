"""The evidence of all positions is the score; what it is spread over adds up to it; a mirrored image mirrors it."""

import base64
import io
import json
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

from vggfeat.cli import run
from vggfeat.errors import ConfigError, FitError, ImageError, WeightsError
from vggfeat.explain import Explainer, _resampled, _spread
from vggfeat.explain import explain as explain_image
from vggfeat.predict import nets_of, predict_images
from vggfeat.protocols import apply_model, open_model
from vggfeat.results.predictions import evidence_text, explain_mistakes, overlay
from vggfeat.results.reading import read_runs
from vggfeat.results.svm_page import make_group
from vggfeat.results.thumbnails import OUTSIDE, Example, Key
from vggfeat.svm import load_model, save_model

explain = partial(explain_image, workers=0)
NETS = ("random:A:0:0.03125", "random:B-BN:1:0.03125")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Images of two classes, two of them in the wrong one, features of two nets at two scales, and models on them."""
    desk = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    for number in range(6):
        name, high = ("cat", 90) if number % 2 else ("dog", 250)
        name = name if number < 4 else {"cat": "dog", "dog": "cat"}[name]
        pixels = rng.integers(0, high, (70 + 3 * number, 81, 3), dtype=np.uint8)
        (desk / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(desk / "images" / name / f"{number}.png")
    words = ["--dataset", "folder", "--root", str(desk / "images"), "--scales", "224,257", "--workers", "0", "--quiet"]
    for number, net in enumerate(NETS):
        out = str(desk / f"{number}.h5")
        assert run(["extract", *words, "--weights", net, "--out", out, "--device", "cpu"]) == 0
    return desk


def trained(desk, *words, files=(0,)):
    out = desk / "-".join(["run", *map(str, files), *words])
    features = [str(desk / f"{number}.h5") for number in files]
    settings = ["--protocol", "k-fold", "--folds", "2", "--grid", "8", "--fit-all", "--quiet", "--out", str(out)]
    if not out.exists():
        assert run(["svm", *features, *settings, *words]) == 0
    return out, [*map(str, features)], [NETS[number] for number in files]


@pytest.mark.parametrize(("words", "files"), [
    (("--join", "mean"), (0,)),
    (("--join", "stack", "--normalisation", "whole"), (0,)),
    (("--join", "max"), (0, 1)),
    (("--normalisation", "whole"), (0, 1)),
    (("--normalisation", "none"), (1,)),
], ids=["mean", "stack", "max of two nets", "two nets as a whole", "not normalised"])  # fmt: skip
def test_the_sum_over_positions_and_the_intercept_is_the_score(desk, words, files):
    out, features, nets = trained(desk, *words, files=files)
    applied = apply_model(out, features)
    row = applied.dataset.ids.index("cat/3.png")
    for number, name in enumerate(applied.classes):
        found = explain(desk / "images/cat/3.png", out, name=name, weights=nets)
        assert found.number == number
        assert found.total == pytest.approx(found.scores[number], abs=1e-4)
        np.testing.assert_allclose(found.scores, applied.scores[row], atol=1e-4)
        assert [one.scale for one in found.scales] == [224, 257] * len(files)
        sums = np.sum([one.sums for one in found.scales], axis=0) + load_model(out / "model.safetensors")[0].intercept
        np.testing.assert_allclose(sums, found.scores, atol=1e-4)
        for one in found.scales:
            assert sum(part.sum() for part in one.maps) == pytest.approx(one.sums[number], abs=1e-5)
            assert one.heat.sum() == pytest.approx(one.sums[number], abs=1e-5)
        assert found.heat.shape == found.image.shape[:2] == (79, 81)
        assert found.heat.sum() + found.bias == pytest.approx(found.total, abs=1e-9)


def test_each_net_reads_a_large_image_as_it_did(desk, tmp_path):
    """A JPEG that is reduced for the net of small scales, and not for the other."""
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (1400, 1420, 3), np.uint8)).save(tmp_path / "large.jpg")
    out, _, nets = trained(desk, files=(0, 1))
    model, about = load_model(out / "model.safetensors")
    about["features"]["files"][1]["scales"] = [224]
    about["features"]["files"][1]["provenance"]["sides"] = [224]
    save_model(tmp_path / "model.safetensors", model, about)
    found = explain(tmp_path / "large.jpg", tmp_path / "model.safetensors", weights=nets)
    saved = open_model(tmp_path / "model.safetensors")
    said = predict_images(saved, [tmp_path / "large.jpg"], nets_of(saved, nets))
    np.testing.assert_allclose(found.scores, said.scores[0], atol=1e-5)
    assert found.total == pytest.approx(found.scores[found.number], abs=1e-4)
    assert found.heat.shape == found.image.shape[:2] == (1400, 1420)


def test_a_mirrored_image_has_the_mirrored_evidence(desk, tmp_path):
    out, _, nets = trained(desk, "--join", "mean")
    image = Image.open(desk / "images/dog/2.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    first = explain(desk / "images/dog/2.png", out, weights=nets, name="dog")
    second = explain(tmp_path / "mirrored.png", out, weights=nets, name="dog")
    scale = np.abs(first.heat).max()
    np.testing.assert_allclose(second.heat, first.heat[:, ::-1], atol=1e-4 * scale)
    assert np.abs(first.heat - first.heat[:, ::-1]).max() > 1e-3 * scale, "not because it is symmetric"


def test_a_position_is_spread_over_the_pixels_of_its_window():
    # One position of 2 x 2 cells, 3 pixels wide, in an image of 7 x 6 pixels.
    heat = _spread(np.array([[36.0]]), 3, 2, (7, 6))
    assert heat.shape == (7, 6)
    np.testing.assert_array_equal(heat[:6], 1.0)
    np.testing.assert_array_equal(heat[6], 0.0)
    # Two positions next to each other share the cells between them.
    heat = _spread(np.array([[4.0, 8.0]]), 1, 2, (2, 3))
    np.testing.assert_array_equal(heat, [[1, 3, 2], [1, 3, 2]])
    # The last cell, 3 pixels wide, has 2 pixels in an image of 5: they bear all of it.
    heat = _spread(np.array([[6.0], [6.0]]), 3, 1, (5, 3))
    np.testing.assert_allclose(heat[:, 0], [6 / 9] * 3 + [1] * 2)


@pytest.mark.parametrize("count", [1, 3, 5, 8, 20])
def test_resampling_keeps_the_sum_and_shares_by_overlap(count):
    values = np.random.default_rng(0).standard_normal((5, 4))
    found = _resampled(values, count, 0)
    assert found.shape == (count, 4)
    np.testing.assert_allclose(found.sum(axis=0), values.sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(_resampled(np.array([[2.0, 4.0]]), 3, 1), [[4 / 3, 2, 8 / 3]])
    if count == 5:
        np.testing.assert_allclose(found, values, atol=1e-12)


def test_the_drawing_is_orange_where_for_and_blue_where_against(desk):
    out, _, nets = trained(desk, "--join", "mean")
    found = explain(desk / "images/dog/2.png", out, weights=nets)
    drawn = np.asarray(Image.open(io.BytesIO(overlay(found))))
    times = -(-256 // max(found.image.shape))
    assert times > 1, "so small that each pixel is drawn as a square"
    pixels = drawn[::times, ::times].astype(int)
    assert pixels.shape == found.image.shape
    np.testing.assert_array_equal(np.kron(pixels, np.ones((times, times, 1))), drawn)
    redder = pixels[..., 0] - pixels[..., 2]
    strong = np.abs(found.heat) > np.abs(found.heat).max() / 10
    assert strong.any()
    assert (np.sign(redder)[strong] == np.sign(found.heat)[strong]).all()


def test_what_can_not_be_explained_is_refused(desk, tmp_path):
    out, _, nets = trained(desk, "--join", "mean")
    image = desk / "images/dog/2.png"
    with pytest.raises(ConfigError, match="class: expected one of cat, dog, found 'cow'"):
        explain(image, out, name="cow", weights=nets)
    with pytest.raises(WeightsError, match="found another net"):
        explain(image, out, weights=[NETS[1]])
    with pytest.raises(WeightsError, match="give them with --weights"):
        explain(image, out)
    with pytest.raises(ImageError, match=r"none\.png: expected an image to explain, found: missing: expected"):
        explain(tmp_path / "none.png", out, weights=nets)
    with pytest.raises(FitError, match="expected a model file, found none; train one on all images"):
        explain(image, tmp_path, weights=nets)
    model, about = load_model(out / "model.safetensors")
    save_model(tmp_path / "given.safetensors", model, {**about, "features": {**about["features"], "files": []}})
    with pytest.raises(FitError, match="says how its features were made"):
        explain(image, tmp_path / "given.safetensors", weights=nets)
    made = {**about["features"]["files"][0], "regions": ["image", "box"]}
    save_model(tmp_path / "box.safetensors", model, {**about, "features": {**about["features"], "files": [made]}})
    with pytest.raises(FitError, match="which an image alone has not"):
        explain(image, tmp_path / "box.safetensors", weights=nets)


def test_the_command_draws_and_prints_the_sums(desk, tmp_path, monkeypatch, capsys):
    out, _, nets = trained(desk, "--join", "mean")
    monkeypatch.chdir(tmp_path)
    words = ["explain", str(desk / "images/cat/3.png"), "--model", str(out), "--weights", nets[0], "--device", "cpu"]
    assert run([*words, "--json", "--class", "dog"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["drawing"] == "3.evidence.png" or content["drawing"].endswith("/3.evidence.png")
    assert (tmp_path / "3.evidence.png").read_bytes().startswith(b"\x89PNG")
    assert content["class"] == "dog"
    parts = sum(one["sum"] for one in content["scales"]) + content["intercept"]
    assert parts == pytest.approx(content["score"], abs=1e-4)
    assert content["scales"][0]["classes"].keys() == {"cat", "dog"}
    lines = evidence_text(content).splitlines()
    assert lines[0].split() == ["class", "dog"]
    assert lines[1].split() == ["sum", "at", "Q", "=", "224", nets[0], f"{content['scales'][0]['sum']:+.4f}"]
    assert run(words) == 6, "it is there"


def test_the_page_draws_the_worst_mistakes_by_the_net(desk, tmp_path, capsys):
    out, _, nets = trained(desk, "--join", "mean")
    words = ["report", str(out), "--quiet", "--device", "cpu", "--explain", "--weights", nets[0]]
    page = tmp_path / "page.html"
    assert run([*words, "--root", str(desk / "images"), "--workers", "0", "--out", str(page)]) == 0
    text = page.read_text()
    drawn = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="evidence for (\w+) in ([^"]+)">', text)
    classes = make_group(read_runs([out]), [], 6).classes
    shown = {
        part.name: (*part.examples[0].highest, *part.examples[0].alarms, *part.examples[0].missed) for part in classes
    }
    mistakes = {name: [one for one in ones if one.verdict in ("wrong", "missed")] for name, ones in shown.items()}
    chosen = {name: ones[0] for name, ones in mistakes.items() if ones}
    assert len(drawn) == len(chosen) > 0
    for content, name, image in drawn:
        worst = chosen[name]
        assert image == worst.id
        assert Image.open(io.BytesIO(base64.b64decode(content))).size <= (256, 192)
        score = explain(desk / "images" / worst.key.path, out, name=name, weights=nets).scores
        number = ("cat", "dog").index(name)
        assert f"score {score[number]:.2f}, in the test {worst.score:.2f}" in text
    assert run(words) == 2
    assert "expected the root of the images with it (--root), found none" in capsys.readouterr().err
    assert run(["report", str(out), "--weights", nets[0]]) == 2


def test_a_mistake_whose_image_is_gone_says_why(desk, tmp_path):
    out, _, nets = trained(desk, "--join", "mean")
    places = {"none": "cat/none.png", "secret": "../../secret.png"}
    away, outside = (
        Example(key=Key(path, None), id=name, rank=1, score=0.5, verdict="missed", said="dog")
        for name, path in places.items()
    )
    explainer = Explainer(out, weights=nets, workers=0)
    found = explain_mistakes([("cat", away), ("cat", outside)], explainer, desk / "images", lambda done, total: None)
    assert [(one.drawing, one.score) for one in found] == [("missing", None), (OUTSIDE, None)]
