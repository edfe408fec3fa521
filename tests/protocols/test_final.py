"""The model on all labelled samples: whose C, whose rows, where it is kept, and what is said of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from applied_models import CLASSES, new_images, svm, write_file
from applied_models import data_set as seen_images
from small_tables import data_set, multi_label, one_hot, table_of
from vggfeat.errors import ConfigError, FitError
from vggfeat.protocols import ProtocolSettings, run_protocol
from vggfeat.protocols.apply import PredictionSettings, apply_model, find_model, open_model
from vggfeat.results.predictions import predictions_csv, predictions_json, predictions_table
from vggfeat.results.svm import model_files
from vggfeat.samples import Task
from vggfeat.svm import SvmProblemSet, load_model, save_model
from vggfeat.svm.calibration import Calibration

ALL = ProtocolSettings(grid=(0.25, 1.0, 4.0), folds=3, fit_all=True)


def single_label(count=30):
    return data_set(one_hot(np.arange(count) % 3), task=Task.SINGLE_LABEL)


def test_after_folds_the_model_is_a_fit_on_all_rows_with_the_c_that_is_best_on_average():
    table = table_of(single_label(), failed=[4], noise=2.0)
    result = run_protocol(table, ALL)
    curves = np.mean([run.choice.curve for run in result.runs], axis=0)
    best = ALL.grid[int(np.round(curves[:, 0], 12).argmax())]
    ok = np.flatnonzero(table.ok)
    expected = SvmProblemSet(table.descriptors).fit(ok, table.dataset.labels[ok], best)
    assert result.final.model.C.tolist() == [best] * 3
    np.testing.assert_allclose(result.final.model.coef, expected.coef, rtol=1e-6, atol=1e-9)
    assert len(result.final.rows) == 30
    assert (
        "model.safetensors was trained on all 30 labelled samples and has no test of its own: the figures are those "
        "of SVMs that were trained on at most 20 of them." in result.notes
    )


def test_after_one_test_it_takes_the_c_of_that_and_rows_of_every_split():
    dataset = data_set(multi_label(60), {"train": range(20), "test": range(20, 40)})
    result = run_protocol(table_of(dataset), ALL)
    (run,) = result.runs
    assert result.final.model.C.tolist() == run.choice.C.tolist()
    assert result.final.rows.tolist() == list(range(60))
    assert result.final.plan["estimated"] == "the test on test, by SVMs trained on fewer"


def test_samples_without_labels_take_no_part():
    labels = multi_label(60)
    labels[50:] = 2
    dataset = data_set(labels, {"train": range(20), "test": range(20, 40)})
    assert run_protocol(table_of(dataset), ALL).final.rows.tolist() == list(range(50))


def test_without_being_asked_nothing_changes():
    table = table_of(single_label())
    asked, plain = run_protocol(table, ALL), run_protocol(table, replace(ALL, fit_all=False))
    assert plain.final is None
    assert plain.to_json()["final"] is None
    assert plain.headline == asked.headline
    assert sorted(model_files(plain)) == [f"model-fold-{k}.safetensors" for k in (1, 2, 3)]
    assert sorted(model_files(asked)) == [*sorted(model_files(plain)), "model.safetensors"]
    content = asked.to_json()["final"]
    assert (content["samples"], content["plan"]["fitted"]) == (30, "all 30 labelled samples")


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("final")
    file = write_file(folder / "x.h5", seen_images(splits=False))
    words = [file, "--grid", "1", "--folds", 3, "--out"]
    assert svm(*words, folder / "without") == 0
    assert svm(*words, folder / "all", "--fit-all") == 0
    return folder


def test_the_folder_of_a_run_is_as_good_as_its_model(folds, capsys):
    found = apply_model(folds / "all", [folds / "x.h5"])
    np.testing.assert_array_equal(
        found.scores, apply_model(folds / "all" / "model.safetensors", [folds / "x.h5"]).scores
    )
    assert load_model(folds / "all" / "model.safetensors")[1]["plan"]["fitted"] == "all 60 labelled samples"
    assert svm(folds / "x.h5", "--apply", folds / "all", "--out", folds / "applied", "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"]["file"] == "model.safetensors"


@pytest.mark.parametrize("name", ["", "model.safetensors", "model-fold-7.safetensors"])
def test_where_there_is_no_such_model_those_that_there_are_are_named(folds, name):
    with pytest.raises(FitError) as raised:
        find_model(folds / "without" / name)
    assert str(raised.value) == (
        f"{folds / 'without' / (name or 'model.safetensors')}: expected a model file, found none; {folds / 'without'} "
        "holds model-fold-1.safetensors, model-fold-2.safetensors, model-fold-3.safetensors: give one of them, or "
        "train one on all images with `vggfeat svm --fit-all`"
    )


def test_without_any_model_the_way_to_one_is_named(tmp_path):
    with pytest.raises(FitError, match=r"found none; train one on all images with `vggfeat svm --fit-all`$"):
        find_model(tmp_path / "nothing" / "model.safetensors")


# --- probabilities


@pytest.fixture(scope="module")
def multi(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi")
    file = write_file(folder / "x.h5", seen_images(single=False), failed=[40])
    assert svm(file, "--grid", "1", "--fit-all", "--out", folder / "all") == 0
    return folder


def test_probabilities_need_nothing_but_the_model_file(folds, tmp_path, capsys):
    model = tmp_path / "alone.safetensors"
    model.write_bytes((folds / "all" / "model.safetensors").read_bytes())
    new = write_file(tmp_path / "new.h5", new_images(), failed=[2], seed=5)
    assert svm(new, "--apply", model, "--probabilities", "--top", 2, "--out", tmp_path / "out", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    with np.load(tmp_path / "out" / "scores.npz") as arrays:
        scores, probabilities = arrays["scores"], arrays["probabilities"]
    sigmoids = Calibration.from_json(load_model(model)[1]["calibration"])
    np.testing.assert_array_equal(probabilities, sigmoids.probabilities(scores, single=True))
    assert sigmoids.samples.tolist() == [60] * 3
    assert len(content["images"]) == len(content["predictions"]) == 3
    for row, image in zip((0, 1, 3), content["images"], strict=True):
        order = np.argsort(-scores[row])[:2]
        assert [one["class"] for one in image["best"]] == [CLASSES[k] for k in order]
        assert [one["probability"] for one in image["best"]] == probabilities[row, order].tolist()
        assert image["given"] == [CLASSES[order[0]]]
    lines = (tmp_path / "out" / "predictions.csv").read_bytes().split(b"\n")
    assert lines[0] == b"id,predicted,score,probability,failed"
    assert lines[3] == b"c.jpg,,,,truncated: it ends early"


def test_where_no_class_is_probable_enough_none_is_given_and_the_score_is_kept(folds, tmp_path):
    new = write_file(tmp_path / "new.h5", new_images(), failed=[2], seed=5)
    every = apply_model(folds / "all", [new], PredictionSettings(probabilities=True))
    best = np.sort(np.delete(every.probabilities.max(axis=1), 2))
    least = float(best[:2].mean())  # above that of one of the three images
    found = apply_model(folds / "all", [new], PredictionSettings(abstain_below=least))
    assert found.given.sum() == 2
    assert not found.given[2].any()
    content = predictions_json(found, model=folds / "x", top=1)
    without = [row for row in content["predictions"] if row["predicted"] is None]
    assert len(without) == 1
    assert np.isfinite(without[0]["score"])
    assert without[0]["probability"] == best[0]
    cells = [line.split(",") for line in predictions_csv(found).decode("utf-8", "surrogateescape").splitlines()]
    assert [line[-4:-2] for line in cells[1:]].count(["", f"{without[0]['score']:.9g}"]) == 1
    assert "3 images scored, 1 failed, 1 given no class, as none is as probable as " in predictions_table(found, top=1)


def test_of_several_classes_each_has_a_probability_of_its_own(multi, tmp_path):
    new = write_file(tmp_path / "new.h5", new_images(), seed=5)
    found = apply_model(multi / "all", [new], PredictionSettings(abstain_below=0.0))
    sigmoids = Calibration.from_json(found.about["calibration"])
    assert sigmoids.samples.tolist() == [29] * 3, "one of the tested images failed"
    np.testing.assert_array_equal(found.probabilities, sigmoids.probabilities(found.scores, single=False))
    np.testing.assert_array_equal(found.given, found.scores > 0)
    assert predictions_csv(found).startswith(
        b'id,cat,"dog, small",id,probability_cat,"probability_dog, small",probability_id,failed\n'
    )
    never = apply_model(multi / "all", [new], PredictionSettings(abstain_below=1.0))
    assert not never.given.any()


def test_probabilities_are_refused_where_they_are_not_known(folds, multi, tmp_path, capsys):
    words = [folds / "x.h5", "--out", tmp_path / "out", "--apply"]
    assert svm(*words, folds / "without" / "model-fold-1.safetensors", "--abstain-below", "0.5") == 7
    assert "train it with `vggfeat svm --fit-all`" in capsys.readouterr().err
    assert svm(folds / "x.h5", "--probabilities") == 2
    assert "--probabilities: expected together with --apply, found alone" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="abstain_below: expected a probability from 0 to 1, found 2"):
        PredictionSettings(abstain_below=2)
    for run, words in ((folds, "none for cat; add images of it"), (multi, None)):
        saved = open_model(run / "all")
        content = saved.about["calibration"]
        content["slope"][0] = content["offset"][0] = None
        found = tmp_path / f"{run.name}.safetensors"
        save_model(found, saved.model, saved.about)
        asked = PredictionSettings(probabilities=True)
        if words:
            with pytest.raises(FitError, match=words):
                apply_model(found, [run / "x.h5"], asked)
        else:
            applied = apply_model(found, [run / "x.h5"], asked)
            assert "There are no probabilities of cat, of which too few images were tested." in applied.notes
            assert np.isnan(applied.probabilities[:, 0]).all()
        save_model(found, saved.model, {**saved.about, "calibration": {"method": "sigmoid", "slope": [1]}})
        with pytest.raises(FitError, match="calibration: expected a sigmoid a class, found another"):
            apply_model(found, [run / "x.h5"], asked)
