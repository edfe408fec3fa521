"""A saved model on new images: the scores of the run that made it, or a refusal that names the difference."""

import csv
import io
import json
import re

import numpy as np
import pytest

from applied_models import CLASSES, NET, data_set, new_images, svm, write_file
from dying_disk import Dying, Killed
from vggfeat import descriptor_stream
from vggfeat.errors import FitError, StoreError
from vggfeat.protocols.apply import MADE_WITH, apply_model
from vggfeat.results import record
from vggfeat.results.predictions import predictions_csv, predictions_json, predictions_table
from vggfeat.results.reading import read_runs
from vggfeat.svm import load_model, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models, of one class an image and of several, with the feature files behind them."""
    folder = tmp_path_factory.mktemp("apply")
    for name, single in (("single", True), ("multi", False)):
        file = write_file(folder / f"{name}.h5", data_set(single=single), failed=[40])
        assert svm("--features", file, "--grid", "1,4", "--join", "max", "--out", folder / name) == 0
    return folder


@pytest.fixture
def new(tmp_path):
    return write_file(tmp_path / "new.h5", new_images(), failed=[2], seed=5)


def cells_of(path):
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("name", ["single", "multi"])
def test_on_its_own_features_a_model_gives_the_scores_of_its_run(folder, tmp_path, name):
    model = folder / name / "model.safetensors"
    assert svm("--apply", model, "--features", folder / f"{name}.h5", "--out", tmp_path) == 0
    with np.load(tmp_path / "scores.npz") as found, np.load(folder / name / "scores.npz") as trained:
        place = {name: row for row, name in enumerate(found["ids"].tolist())}
        rows = [place[name] for name in trained["ids_1"].tolist()]
        assert len(rows) == 30
        np.testing.assert_allclose(found["scores"][rows], trained["scores_1"], rtol=1e-12)
        assert np.isneginf(found["scores"]).all(axis=1).nonzero()[0].tolist() == [40]
        assert found["classes"].tolist() == list(CLASSES)


def test_features_larger_than_memory_get_the_same_scores(folder, monkeypatch):
    file = folder / "multi.h5"
    expected = apply_model(folder / "multi", [file])
    monkeypatch.setattr(descriptor_stream, "table_bytes", lambda *_, **__: 2**60)
    found = apply_model(folder / "multi", [file])
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-12)
    assert found.reasons == expected.reasons


def test_labels_of_new_images(folder, new, tmp_path, capsys):
    assert svm("--apply", folder / "single" / "model.safetensors", "--features", new, "--out", tmp_path / "out") == 0
    lines = cells_of(tmp_path / "out" / "predictions.csv")
    assert lines[0] == ["id", "predicted", "score", "failed"]
    assert [line[0] for line in lines[1:]] == list(new_images().ids)
    assert lines[3] == ["c.jpg", "", "", "truncated: it ends early"]
    with np.load(tmp_path / "out" / "scores.npz") as found:
        for row in (0, 1, 3):
            best = int(np.argmax(found["scores"][row]))
            assert lines[1 + row][1] == CLASSES[best]
            assert float(lines[1 + row][2]) == pytest.approx(found["scores"][row, best], rel=1e-8)
            assert lines[1 + row][3] == ""
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["failed"] == [{"id": "c.jpg", "reason": "truncated: it ends early"}]
    assert [row["id"] for row in content["predictions"]] == [new_images().ids[row] for row in (0, 1, 3)]
    assert content["samples"] == 4
    shown = capsys.readouterr().out
    assert "3 images scored, 1 failed" in shown
    assert "failed: c.jpg: truncated: it ends early" in shown
    counts = [
        int(line.removeprefix(name).split()[0]) for line, name in zip(shown.splitlines()[1:4], CLASSES, strict=True)
    ]
    assert sum(counts) == 3


def test_rankings_of_new_images(folder, new, tmp_path, capsys):
    words = ["--apply", folder / "multi" / "model.safetensors", "--features", new, "--out", tmp_path / "out"]
    assert svm(*words, "--top", 2) == 0
    lines = cells_of(tmp_path / "out" / "predictions.csv")
    assert lines[0] == ["id", *CLASSES, "failed"]
    assert lines[3] == ["c.jpg", "", "", "", "truncated: it ends early"]
    scores = np.array([line[1:4] for line in lines[1:] if not line[4]], dtype=float)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert "predictions" not in content
    names = [line[0] for line in lines[1:] if not line[4]]
    shown = capsys.readouterr().out.splitlines()
    for k, name in enumerate(CLASSES):
        order = np.argsort(-scores[:, k])[:2]
        assert [one["id"] for one in content["ranking"][name]] == [names[row] for row in order]
        line = next(line for line in shown if line.startswith(name + " "))
        assert int(line.removeprefix(name).split()[0]) == (scores[:, k] > 0).sum()
    assert shown[0].split() == ["class", "above", "0", "best", "2"]
    capsys.readouterr()
    assert svm(*words, "--top", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out) == content


def test_what_is_said_of_the_model_goes_with_the_predictions(folder, new):
    model = folder / "single" / "model.safetensors"
    found = predictions_json(apply_model(model, [new]), model=model, top=1)["model"]
    assert found["file"] == "model.safetensors"
    assert found["classes"] == list(CLASSES)
    assert found["plan"]["fitted"] == "train"
    assert found["features"]["join"] == "max"
    assert found["features"]["files"][0]["provenance"]["weights_sha256"] == "ab" * 32
    assert {"svm", "protocol", "vggfeat", "dataset"} <= set(found)


# --- refusals

OTHER = {
    "net": "E", "width": 0.5, "weights_sha256": "cd" * 32, "pool_rounding": "ceil", "channel_order": "BGR",
    "mean": [0.0, 2.0, 3.0], "std": [2.0, 1.0, 1.0], "layer": "fc6", "interpolation": "bicubic", "sides": [256, 400],
    "scales": (256, 512), "regions": ("image",),
}  # fmt: skip


def test_every_field_is_tried():
    assert set(MADE_WITH) | {"scales", "regions"} == set(OTHER)
    assert set(MADE_WITH) | {"precision"} == set(NET)


@pytest.mark.parametrize("field", OTHER)
def test_features_made_in_another_way_are_refused(folder, tmp_path, field, capsys):
    file = write_file(tmp_path / "other.h5", new_images(), **{field: OTHER[field]})
    model = folder / "single" / "model.safetensors"
    expected = {"scales": [256, 384], "regions": "image, box"} | NET
    found = ", ".join(OTHER[field]) if field == "regions" else OTHER[field]
    found = list(found) if isinstance(found, tuple) else found
    assert svm("--apply", model, "--features", file, "--out", tmp_path / "out") == 7
    message = capsys.readouterr().err
    if field != "weights_sha256":  # The test below.
        assert message.startswith(f"vggfeat: {file}: {field}: expected {expected[field]}, ")
        assert f"found {found}; extract it " in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_scales_are_called_as_their_option_and_not_by_the_sides_that_follow_from_them(folder, tmp_path):
    file = write_file(tmp_path / "other.h5", new_images(), scales=(256, 512), sides=[256, 512])
    with pytest.raises(FitError, match=r"other\.h5: scales: expected \[256, 384\], .* found \[256, 512\]; extract it"):
        apply_model(folder / "single" / "model.safetensors", [file])


def test_other_weights_are_called_by_their_names(folder, tmp_path):
    trained = write_file(tmp_path / "a.h5", data_set(), weights="D.safetensors")
    assert svm("--features", trained, "--grid", "1", "--join", "max", "--out", tmp_path / "a") == 0
    for name, said in (
        (
            "torchvision.pth",
            "expected D.safetensors (net D), as in a.h5 that the model was trained on, found torchvision",
        ),
        ("D.safetensors", "found D.safetensors (net D) of SHA-256 cdcdcdcd...; extract it in the same way"),
    ):
        other = write_file(tmp_path / name, new_images(), weights=name, weights_sha256="cd" * 32)
        with pytest.raises(FitError) as raised:
            apply_model(tmp_path / "a" / "model.safetensors", [other])
        assert f"{other}: weights: expected D.safetensors (net D)" in str(raised.value)
        assert said in str(raised.value)
        assert "cd" * 8 not in str(raised.value)


def test_another_precision_is_said_and_taken(folder, tmp_path):
    file = write_file(tmp_path / "new.h5", new_images(), precision="bf16")
    found = apply_model(folder / "single" / "model.safetensors", [file])
    assert found.notes == ("new.h5 was extracted in bf16, the model's features in fp32.",)
    assert "note: new.h5 was extracted in bf16" in predictions_table(found, top=1)


def test_regions_that_the_model_did_not_use_do_no_harm(folder, tmp_path):
    out = tmp_path / "image"
    assert svm("--features", folder / "single.h5", "--regions", "image", "--grid", "1", "--out", out) == 0
    both = write_file(tmp_path / "both.h5", new_images())
    found = apply_model(out / "model.safetensors", [both])
    assert np.isfinite(found.scores).all()
    assert load_model(out / "model.safetensors")[0].coef.shape == (3, 6)


def test_two_nets_are_taken_in_the_order_of_the_training(folder, tmp_path):
    dataset = data_set()
    first = write_file(tmp_path / "first.h5", dataset)
    second = write_file(tmp_path / "second.h5", dataset, seed=1, net="E", weights_sha256="cd" * 32)
    assert svm("--features", first, "--features", second, "--grid", "1", "--out", tmp_path / "two") == 0
    model = tmp_path / "two" / "model.safetensors"
    assert np.isfinite(apply_model(model, [first, second]).scores).all()
    with pytest.raises(FitError, match=r"second\.h5: net: expected D, as in first\.h5 .* found E"):
        apply_model(model, [second, first])
    with pytest.raises(FitError, match="a feature file of each of the nets D, E, in this order, found 1"):
        apply_model(model, [first])


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"features": {"join": "mean"}},
        {"features": {"join": "mean", "normalisation": "none", "files": []}},
        {"features": {"join": "mean", "normalisation": "none", "files": [{"provenance": {}}]}},
        {"features": [], "task": "single-label"},
        {"features": {"join": "mean", "normalisation": "none", "files": 3}, "task": "single-label"},
    ],
)
def test_a_model_of_unknown_features_is_refused(folder, new, tmp_path, about):
    model, about_it = load_model(folder / "single" / "model.safetensors")
    save_model(tmp_path / "model", model, {"classes": about_it["classes"], "task": "single-label", **about})
    with pytest.raises(FitError, match="expected a model that says how its features were made"):
        apply_model(tmp_path / "model", [new])


def test_damaged_files_are_refused(folder, new, tmp_path):
    model = (folder / "single" / "model.safetensors").read_bytes()
    (tmp_path / "model").write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    with pytest.raises(FitError, match="expected the bytes that its SHA-256 is of, found others"):
        apply_model(tmp_path / "model", [new])
    content = bytearray(new.read_bytes())
    place = content.find(np.float32(np.nan).tobytes())
    content[place + 40] ^= 1
    new.write_bytes(content)
    with pytest.raises(StoreError, match=r"new\.h5"):
        apply_model(folder / "single" / "model.safetensors", [new])


@pytest.fixture(scope="module")
def two_runs(folder):
    """Files of two runs of other settings, by the value of C that is in the settings of each."""
    for cost in ("2", "8"):
        words = ("--features", folder / "single.h5", "--grid", cost, "--join", "max", "--out", folder / cost)
        assert svm(*words) == 0
    names = ("results.json", "table.txt", "scores.npz", "model.safetensors")
    return {cost: {name: (folder / cost / name).read_bytes() for name in names} for cost in ("2", "8")}


def readers(place, features):
    """The value of C of the run that `report` and `svm --apply` take a folder for; None if they refuse it."""
    model = place / "model.safetensors"
    return [
        taken(lambda: read_runs([place])[0].results["runs"][0]["C"]),
        taken(lambda: apply_model(model, [features]) and load_model(model)[0].C),
    ]


def taken(read):
    try:
        return f"{read()[0]:g}"
    except (StoreError, FitError) as error:
        said = str(error)
    assert re.search("expected .*[;:] give |expected a model file, found none", said)
    return None


@pytest.mark.parametrize("before", [None, "2"], ids=["empty folder", "old run"])
def test_a_run_killed_while_it_is_written_is_never_mixed_with_another(folder, tmp_path, monkeypatch, two_runs, before):
    seen = []
    for calls in range(100):
        place = tmp_path / str(calls)
        if before:
            record.write_run(place, two_runs[before], last="results.json")
        with monkeypatch.context() as patch:
            patch.setattr(record, "DISK", Dying(calls))
            try:
                record.write_run(place, two_runs["8"], last="results.json")
            except Killed:
                seen.append(readers(place, folder / "single.h5"))
            else:
                break
    assert readers(place, folder / "single.h5") == ["8", "8"]
    assert {tuple(found) for found in seen} == {(before, before), (None, None), ("8", "8")}


def test_files_of_two_runs_are_refused_by_every_reader(folder, tmp_path, two_runs):
    for name in two_runs["2"]:
        place = tmp_path / name
        record.write_run(place, two_runs["2"], last="results.json")
        (place / name).write_bytes(two_runs["8"][name])
        assert readers(place, folder / "single.h5") == [None, None]


def test_a_model_that_an_earlier_run_left_is_refused_and_a_copy_elsewhere_is_not(folder, tmp_path, two_runs):
    place = tmp_path / "x"
    record.write_run(place, two_runs["2"], last="results.json")
    (place / "model-fold-3.safetensors").write_bytes(two_runs["8"]["model.safetensors"])
    with pytest.raises(StoreError, match=r"model-fold-3\.safetensors: .*found a model that an earlier run left"):
        apply_model(place / "model-fold-3.safetensors", [folder / "single.h5"])
    for copy in (place / "mine.safetensors", tmp_path / "model.safetensors"):
        copy.write_bytes(two_runs["8"]["model.safetensors"])
        apply_model(copy, [folder / "single.h5"])


@pytest.mark.parametrize("words", [["--join", "mean"], ["--grid", "1"], ["--solver", "newton"], ["--seed", "0"]])
def test_settings_that_the_model_decides_are_refused(folder, new, tmp_path, words, capsys):
    assert svm("--apply", folder / "single" / "model.safetensors", "--features", new, *words) == 2
    assert capsys.readouterr().err == (
        f"vggfeat: {words[0]}: not together with --apply, where the model decides; leave it out\n"
    )


def test_results_and_predictions_do_not_share_a_folder(folder, new, tmp_path, capsys):
    kept = (folder / "single" / "scores.npz").read_bytes()
    model = folder / "single" / "model.safetensors"
    assert svm("--apply", model, "--features", new, "--out", folder / "single") == 6
    assert "expected a folder for predictions, found results.json in it" in capsys.readouterr().err
    assert (folder / "single" / "scores.npz").read_bytes() == kept
    assert svm("--apply", model, "--features", new, "--out", tmp_path / "out") == 0
    assert svm("--features", folder / "single.h5", "--grid", "1,4", "--out", tmp_path / "out") == 6
    assert "expected a folder for results, found predictions.json in it" in capsys.readouterr().err


def test_results_of_other_settings_are_not_replaced_without_a_word(folder, tmp_path, capsys):
    words = ["--features", folder / "single.h5", "--join", "max", "--out", tmp_path / "out", "--grid"]
    assert svm(*words, "1,4") == svm(*words, "1,4") == 0
    assert "replaced" not in capsys.readouterr().err
    assert svm(*words, "1,2", "--seed", 3) == 0
    note = "results of other settings in it are replaced; other: protocol.grid, protocol.seed, protocol.svm.seed"
    assert f"note: {tmp_path / 'out'}: {note}\n" in capsys.readouterr().err
    (tmp_path / "out" / "results.json").write_text("[")
    assert svm(*words, "1,4") == 0


def test_a_folder_into_which_nothing_came_goes_again(folder, tmp_path):
    words = ["--features", folder / "single.h5", "--protocol", "voc-server", "--out"]
    assert svm(*words, tmp_path / "new") == 7
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    assert svm(*words, tmp_path / "old") == 7
    assert (tmp_path / "old").exists(), "it was there before"


def test_a_setting_of_predictions_alone_is_refused(folder, tmp_path, capsys):
    assert svm("--features", folder / "single.h5", "--top", 3, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err == "vggfeat: --top: expected together with --apply, found alone; leave it out\n"
    assert not (tmp_path / "out").exists()


def test_many_failures_are_counted_and_all_of_them_in_the_file(folder, tmp_path):
    file = write_file(tmp_path / "bad.h5", data_set(splits=False), failed=range(45))
    found = apply_model(folder / "single" / "model.safetensors", [file])
    table = predictions_table(found, top=3)
    assert table.count("\nfailed: ") == 2
    assert "\nfailed: images/00.jpg and 44 more: truncated: it ends early\n" in table
    assert "\nfailed: all of them: predictions.csv" in table
    assert predictions_csv(found).count(b"truncated: it ends early\n") == 45
