"""Out-of-fold scores against scikit-learn's, and planted errors found again."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from planted import SEVERAL, SINGLE, planted_table
from vggfeat.audit.neighbours import out_of_fold, suspects
from vggfeat.protocols.folds import k_folds
from vggfeat.samples import Label


def scored(table, **settings):
    data = table.dataset
    settings = {"grid": (1.0,), **settings}
    return out_of_fold(data, table.descriptors, table.ok, np.arange(len(data)), **settings)


@pytest.mark.parametrize("task", [SINGLE, SEVERAL])
def test_scores_are_those_of_scikit_learn_on_the_same_folds(task):
    table, _ = planted_table(task)
    found, positive = scored(table), table.dataset.labels == 1
    fold = k_folds([str(row) for row in range(len(positive))], positive, 5)
    machine = OneVsRestClassifier(LinearSVC(C=1.0, tol=1e-8, max_iter=100000))
    theirs = cross_val_predict(
        machine, table.descriptors.astype(np.float64), positive.astype(int), cv=PredefinedSplit(fold),
        method="decision_function",
    )  # fmt: skip
    np.testing.assert_allclose(found.scores, theirs, atol=2e-3)
    assert (found.problems, found.folds, found.C) == (20, 5, 1.0)


@pytest.mark.parametrize("task", [SINGLE, SEVERAL])
def test_planted_errors_are_found_and_rank_first(task):
    table, wrong = planted_table(task)
    found = suspects(table.dataset, scored(table))
    first = {one.row for one in found[: len(wrong)]}
    assert first == set(wrong.tolist()), "all 12 that were planted, and no other before them"
    assert len(found) <= 2 * len(wrong)
    assert 8 <= sum(one.confident for one in found) <= len(wrong)
    assert [one.margin for one in found] == sorted(one.margin for one in found)
    assert all(one.margin < 0 for one in found)


def test_what_scikit_learn_finds_is_found_here():
    """The rows whose label is not the class that `LinearSVC` gives them, out of fold."""
    table, wrong = planted_table()
    given = table.dataset.labels.argmax(axis=1)
    theirs = cross_val_predict(LinearSVC(C=1.0), table.descriptors.astype(np.float64), given, cv=5)
    contradicted = set(np.flatnonzero(theirs != given).tolist())
    assert set(wrong.tolist()) <= contradicted
    assert set(wrong.tolist()) <= {one.row for one in suspects(table.dataset, scored(table))}


def test_the_claim_is_the_true_class():
    table, wrong = planted_table()
    claims = {one.row: (one.label, one.claim) for one in suspects(table.dataset, scored(table))}
    for row in wrong.tolist():
        assert claims[row] == (f"class {(row + 1) % 4}", f"class {row % 4}")
    table, wrong = planted_table(SEVERAL)
    claims = {(one.row, one.label): one.claim for one in suspects(table.dataset, scored(table))}
    row = int(wrong[0])
    said = table.dataset.labels[row, row % 4]
    assert claims[row, f"class {row % 4}"] == ("absent" if said == 1 else "present")


def test_clean_labels_of_easy_classes_are_not_doubted():
    table, _ = planted_table(wrong=0, noise=0.1)
    assert suspects(table.dataset, scored(table)) == []


def test_copies_of_a_wrong_label_do_not_confirm_it():
    """Two copies with one wrong label: apart, the one in training would speak for the other."""
    table, wrong = planted_table(wrong=1)
    row, other = int(wrong[0]), (int(wrong[0]) + 100) % 240
    table.descriptors[other] = table.descriptors[row]
    table.dataset.labels[other] = table.dataset.labels[row]
    image = np.arange(240)
    image[other] = row
    found = out_of_fold(table.dataset, table.descriptors, table.ok, image, grid=(64.0,))
    assert {row, other} <= {one.row for one in suspects(table.dataset, found)}


def test_a_group_of_one_wrong_label_does_not_confirm_it():
    table, wrong = planted_table(wrong=1)
    row, other = int(wrong[0]), (int(wrong[0]) + 100) % 240
    table.descriptors[other] = table.descriptors[row]
    table.dataset.labels[other] = table.dataset.labels[row]
    groups = tuple("a" if one in (row, other) else f"g{one}" for one in range(240))
    table = replace(table, dataset=replace(table.dataset, groups=groups))
    found = scored(table, grid=(64.0,))
    assert {row, other} <= {one.row for one in suspects(table.dataset, found)}
    alone = replace(table, dataset=replace(table.dataset, groups=("a",) * 240))
    assert scored(alone) is None, "one group can't be parted"


def test_a_class_that_descriptors_tell_no_better_than_chance_is_not_judged():
    table, _ = planted_table(SEVERAL)
    table.dataset.labels[:, 2] = np.where(np.random.default_rng(9).random(240) < 0.5, 1, -1)
    assert "class 2" not in {one.label for one in suspects(table.dataset, scored(table))}


def test_a_label_that_is_not_listed_is_no_class():
    table, _ = planted_table(SINGLE)
    table.dataset.labels[table.dataset.labels == -1] = Label.UNLISTED
    table.dataset.labels[::2][table.dataset.labels[::2] == Label.UNLISTED] = -1
    claims = {one.row: one.label for one in suspects(table.dataset, scored(table))}
    assert all(name == f"class {table.dataset.labels[row].tolist().index(1)}" for row, name in claims.items())


def test_rows_without_labels_or_descriptors_take_no_part():
    table, _ = planted_table(SEVERAL)
    table.dataset.labels[3] = Label.WITHHELD
    table.ok[5] = False
    assert set(scored(table).rows.tolist()) == set(range(240)) - {3, 5}


@pytest.mark.parametrize("task", [SINGLE, SEVERAL])
def test_a_class_that_a_fold_cannot_be_trained_for_is_not_judged(task):
    table, _ = planted_table(task)
    table.dataset.labels[:, 3] = -1
    table.dataset.labels[0] = [-1, -1, -1, 1]
    rows = (table.dataset.labels == 1).any(axis=1)
    table.ok[~rows] = False
    found = scored(table)
    assert np.isnan(found.scores[:, 3]).all()
    assert np.isfinite(found.scores[:, :3]).all()
    assert {one.label for one in suspects(table.dataset, found)} <= {"class 0", "class 1", "class 2"}


def test_without_labels_nothing_is_trained():
    table, _ = planted_table(SEVERAL)
    table.dataset.labels[:] = Label.WITHHELD
    assert scored(table) is None
    table, _ = planted_table()
    table.ok[1:] = False
    assert scored(table) is None


def test_c_is_the_one_that_does_best():
    table, _ = planted_table(noise=1.0)
    assert scored(table, grid=(1e-6, 1.0)).C == 1.0
