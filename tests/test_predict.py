"""Images and a model in, classes out, in one command: what `extract` and `svm --apply` say in two."""

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggfeat.cli import run
from vggfeat.errors import ConfigError, DatasetError, FitError, StoreError, WeightsError
from vggfeat.predict import list_images, nets_of, predict_images
from vggfeat.protocols.apply import PredictionSettings, apply_model, open_model
from vggfeat.svm import load_model, save_model
from vggfeat.synthetic import Settings, write
from vggfeat.weights import load_backbone

NETS = ("random:A:0:0.03125", "random:A:1:0.03125")


def extract(root, out, weights="small", scales="224"):
    words = ["--root", str(root), "--weights", weights, "--scales", scales, "--device", "cpu", "--workers", "0"]
    assert run(["extract", "--dataset", "folder", *words, "--out", str(out), "--quiet"]) in (0, 3)
    return out


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Rendered images of three classes, a model of the small net on two thirds of them, and the others as new."""
    desk = tmp_path_factory.mktemp("predict")
    write("folder", desk / "photos", seed=0, size=Settings(image_side=96, classes=3, per_class=6), workers=1)
    for number, path in enumerate(sorted(path for path in (desk / "photos").rglob("*") if path.suffix == ".jpg")):
        if number % 3 == 0:
            place = desk / "new" / path.relative_to(desk / "photos")
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
    (min((desk / "new").iterdir()) / "0 bad.jpg").write_bytes(b"no image")
    extract(desk / "photos", desk / "photos.h5")
    words = ["--folds", "2", "--protocol", "k-fold", "--grid", "1", "--fit-all", "--quiet"]
    assert run(["svm", str(desk / "photos.h5"), *words]) == 0
    return desk


def good(desk):
    return [path for path in sorted((desk / "new").rglob("*.jpg")) if path.name != "0 bad.jpg"]


def predict(desk, *words):
    fixed = ["--device", "cpu", "--workers", "0", "--quiet"]
    return run(["predict", *(str(word) for word in words), "--model", str(desk / "photos.svm"), *fixed])


def test_it_says_what_extract_and_apply_say_and_a_bad_image_is_a_row(desk, tmp_path, capsys):
    new = extract(desk / "new", tmp_path / "new.h5")
    expected = apply_model(desk / "photos.svm", [new], PredictionSettings(probabilities=True))
    capsys.readouterr()
    out = tmp_path / "made" / "scores.csv"
    (desk / "new" / "notes.pdf").touch()
    assert predict(desk, desk / "new", "--probabilities", "--top", 2, "--out", out) == 3
    shown, err = capsys.readouterr()
    assert f"note: Not images by their endings, and ignored: {desk / 'new' / 'notes.pdf'}." in err
    shown = shown.splitlines()
    header, *rows = csv.reader(io.StringIO(out.read_text(), newline=""))
    classes = expected.classes
    assert header == [
        "image", "predicted", "score", "probability", *(f"score_{name}" for name in classes),
        *(f"probability_{name}" for name in classes), "failed",
    ]  # fmt: skip
    assert [row[0] for row in rows] == [str(desk / "new" / name) for name in expected.dataset.ids]
    assert shown[0].split() == ["image", "predicted", "best", "2"]
    for row, line, scores, chances, failed in zip(
        rows, shown[1:], expected.scores, expected.probabilities, expected.failed, strict=False
    ):
        assert line.startswith(row[0])
        if failed:
            assert row[1:-1] == [""] * 9
            assert row[-1].startswith("unrecognised: ")
            assert f"failed: {row[-1]}" in line
            continue
        best = int(scores.argmax())
        assert row[1] == classes[best]
        assert f"  {row[1]}  {row[1]} {scores[best]:.2f}, {100 * chances[best]:.1f} %; " in line
        found = np.array(row[2:-1], dtype=float)
        np.testing.assert_allclose(found, [scores[best], chances[best], *scores, *chances], rtol=1e-4, atol=1e-5)
        assert row[-1] == ""
    assert expected.failed.sum() == 1
    assert shown[-2:] == [f"{len(rows) - 1} images scored, 1 failed", f"{out}: {len(rows)} images"]
    assert len(rows) == len(good(desk)) + 1 > 3


def test_json_and_single_files_and_exit_codes(desk, capsys):
    first, second, *_ = good(desk)
    assert predict(desk, second, first, second, "--json", "--top", 1) == 0
    content = json.loads(capsys.readouterr().out)
    assert [image["id"] for image in content["images"]] == [str(second), str(first)]
    assert [len(image["best"]) for image in content["images"]] == [1, 1]
    assert content["model"]["file"] == "model.safetensors"
    assert predict(desk, first, desk / "gone.jpg", "--json") == 3
    assert json.loads(capsys.readouterr().out)["failed"][0]["reason"].startswith("missing: ")
    assert predict(desk, first, desk / "gone.jpg", "--allow-failed", 1) == 0
    assert predict(desk, first, "--overwrite") == 2


def test_no_class_is_given_that_is_not_probable_enough(desk, capsys):
    image = good(desk)[0]
    assert predict(desk, image, "--abstain-below", "1") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].removeprefix(str(image)).split()[0] == "-"
    assert shown[-1] == "1 image scored, 0 failed, 1 given no class, as none is as probable as 100.0 %"


def test_a_model_file_alone_is_enough_and_its_net_is_compared(desk, tmp_path, capsys):
    shutil.copy(desk / "photos.svm" / "model.safetensors", tmp_path / "mine.safetensors")
    saved = open_model(tmp_path / "mine.safetensors")
    (net,) = nets_of(saved)
    assert net.source == "small"
    assert nets_of(saved, ["small"])[0].sha256 == net.sha256
    with pytest.raises(WeightsError, match=r"^random:A:0.*mine\.safetensors was made with, small \(net .\), found an"):
        nets_of(saved, [NETS[0]])
    about = saved.about
    made = about["features"]["files"][0]["provenance"]
    for field, value, error, words in (
        ("weights_sha256", "00" * 32, WeightsError, "found no file of these bytes; give them with --weights"),
        ("mean", [1.0, 2.0, 3.0], FitError, r"small: mean: expected \[1.0, 2.0, 3.0\], as in photos.h5"),
        ("layer", "fc6", FitError, None),
        ("precision", "none", StoreError, "expected one that says how its features were extracted"),
    ):
        changed = {**about, "features": {**about["features"], "files": [
            {**about["features"]["files"][0], "provenance": {**made, field: value}}]}}  # fmt: skip
        save_model(tmp_path / "changed.safetensors", saved.model, changed)
        other = open_model(tmp_path / "changed.safetensors")
        image = good(desk)[0]
        if words is None:  # Another layer of the net is computed then; here it has other values.
            assert np.isfinite(predict_images(other, [image], nets_of(other)).scores).any()
            continue
        with pytest.raises(error, match=words):
            predict_images(other, [image], nets_of(other))


def test_two_nets_are_fused_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 128 + 127 * (name == "a"), (224, 230, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "x" / name / f"{number}.png")
    files = [extract(tmp_path / "x", tmp_path / f"{k}.h5", net) for k, net in enumerate(NETS)]
    words = ["--grid", "1", "--folds", "3", "--fit-all", "--join", "stack", "--quiet"]
    assert run(["svm", *map(str, files), *words, "--out", str(tmp_path / "run")]) == 0
    saved, images = open_model(tmp_path / "run"), list_images([tmp_path / "x"])[0]
    found = predict_images(saved, images, nets_of(saved, NETS[::-1]))
    expected = apply_model(tmp_path / "run", files)
    assert [str(Path(name).relative_to(tmp_path / "x")) for name in found.dataset.ids] == list(expected.dataset.ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    with pytest.raises(WeightsError, match="give them with --weights"):
        nets_of(saved, NETS[:1])
    model, about = load_model(tmp_path / "run" / "model.safetensors")
    about["features"]["files"][0]["regions"] = ["box"]
    save_model(tmp_path / "box.safetensors", model, about)
    with pytest.raises(ConfigError, match="found one of boxes, which an image alone has not"):
        predict_images(open_model(tmp_path / "box.safetensors"), images, [load_backbone(net) for net in NETS])


def test_what_a_folder_has_besides_images_is_named(tmp_path):
    """As `extract` names it: a folder of new images is no place where files may go missing without a word."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in (b"a/1.jpg", b"a/b/2.png", b"a/b/notes.pdf", b"a/caf\xe9.jpg", b".hidden"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "b")
    files, notes = list_images([tmp_path / "a", tmp_path / "a" / "1.jpg"])
    assert files == [tmp_path / "a" / "1.jpg", tmp_path / "a" / "b" / "2.png"]
    assert notes == (
        f"Not images by their endings, and ignored: {tmp_path}/a/b/notes.pdf.",
        f"Links to folders that are read under another name, and ignored: {tmp_path}/a/again.",
        f"Names that are not UTF-8, and left out; rename them to use them: {tmp_path}/a/caf\\xe9.jpg.",
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.pdf").touch()
    with pytest.raises(ConfigError, match=r"found none\. Not images by their endings, and ignored: .*notes\.pdf\."):
        list_images([tmp_path / "c"])


def test_nothing_to_predict_is_refused(tmp_path):
    folder = re.escape(str(tmp_path))
    with pytest.raises(ConfigError, match=f"images: expected files, or folders with some, found none.*: {folder}$"):
        list_images([tmp_path])
    # Nor is one folder of several passed over in silence.
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "1.jpg").touch()
    (tmp_path / "without").mkdir()
    files, notes = list_images([tmp_path / "with", tmp_path / "without"])
    assert files == [tmp_path / "with" / "1.jpg"]
    assert notes == (f"Folders without images, and ignored: {tmp_path}/without.",)


class AsPath:
    """What names a file without being a `Path`, as `os.PathLike` allows it."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, AsPath])
def test_paths_of_every_kind_are_taken_one_or_several(desk, kind):
    new, saved = good(desk), open_model(kind(desk / "photos.svm"))
    assert list_images(kind(desk / "new")) == list_images([kind(desk / "new")]) == list_images([desk / "new"])
    nets = nets_of(saved, "small")
    found = predict_images(saved, [kind(path) for path in new[:2]], nets)
    assert found.dataset.ids == tuple(map(str, new[:2]))
    one, several = (apply_model(saved.path, files) for files in (kind(desk / "photos.h5"), [kind(desk / "photos.h5")]))
    np.testing.assert_array_equal(one.scores, several.scores)
    with pytest.raises(DatasetError, match=r"found .* twice"):
        predict_images(saved, [new[0], new[0]], nets)
