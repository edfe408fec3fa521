"""The model on all labelled samples: whose C, whose rows, where it is kept, and what is said of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from applied_models import data_set as seen_images
from applied_models import svm, write_file
from small_tables import data_set, multi_label, one_hot, table_of
from vggfeat.errors import FitError
from vggfeat.protocols import ProtocolSettings, run_protocol
from vggfeat.protocols.apply import apply_model, find_model
from vggfeat.results.svm_files import model_files
from vggfeat.samples import Task
from vggfeat.svm import SvmProblemSet, load_model

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
