"""What other images say of one: pairs, nearest neighbours, and labels that others contradict."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from planted import SEVERAL, SINGLE, planted_table
from vggfeat.audit.neighbours import _Kept, compare_rows, out_of_fold, suspects
from vggfeat.protocols.folds import k_folds
from vggfeat.samples import Label

ROWS = 90


def rows_of(seed=0, length=6):
    rng = np.random.default_rng(seed)
    return (np.abs(rng.standard_normal((ROWS, length))) * rng.uniform(0.1, 9, (ROWS, 1))).astype(np.float32)


def brute(descriptors, image):
    unit = descriptors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    cosine[image[:, None] == image] = -np.inf
    return cosine


@pytest.mark.parametrize("block", [7, 30, 64, 90, 1000])
@pytest.mark.parametrize("threshold", [0.9, 0.97])
def test_pairs_and_distances_are_those_of_brute_force(block, threshold):
    descriptors = rows_of()
    image = np.arange(ROWS)
    image[[4, 80]] = 3  # one image, three rows
    side = np.arange(ROWS) % 3
    apart = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    found = compare_rows(
        descriptors, threshold=threshold, image=image, side=side, apart=apart, neighbours=4, block=block
    )
    cosine = brute(descriptors, image)
    wanted = {tuple(pair) for pair in np.argwhere(np.triu(cosine, 1) >= threshold).tolist()}
    assert len(wanted) > 15
    assert {tuple(pair) for pair in found.pairs.rows.tolist()} == wanted
    assert found.pairs.total == len(wanted)
    np.testing.assert_allclose(found.pairs.cosine, [cosine[tuple(pair)] for pair in found.pairs.rows], atol=1e-6)
    across = [bool(apart[side[i], side[j]]) for i, j in found.pairs.rows.tolist()]
    assert found.pairs.across.tolist() == across == sorted(across, reverse=True)
    assert found.pairs.total_across == sum(across)
    for part in (True, False):
        values = found.pairs.cosine[found.pairs.across == part]
        assert (np.diff(values) <= 0).all()
    nearest = 1 - np.sort(cosine, axis=1)[:, -4:].mean(axis=1)
    np.testing.assert_allclose(found.distance, nearest, atol=1e-6)


def test_of_too_many_pairs_the_first_are_kept_and_all_are_counted():
    descriptors = rows_of()
    settings = {
        "threshold": 0.5,
        "image": np.arange(ROWS),
        "side": np.arange(ROWS) % 2,
        "apart": ~np.eye(2, dtype=bool),
        "block": 16,
    }
    every, few = compare_rows(descriptors, **settings), compare_rows(descriptors, most=25, **settings)
    assert len(every.pairs.rows) == every.pairs.total == few.pairs.total > 500
    assert few.pairs.total_across == every.pairs.total_across > 100
    np.testing.assert_array_equal(few.pairs.rows, every.pairs.rows[:25])


def test_few_rows_have_the_neighbours_there_are():
    two = np.array([[1, 0], [1, 1]], np.float32)
    settings = {"threshold": 0.9, "side": np.zeros(2, int), "apart": np.zeros((1, 1), bool)}
    found = compare_rows(two, image=np.arange(2), **settings)
    np.testing.assert_allclose(found.distance, 1 - np.sqrt(0.5), atol=1e-6)
    alone = compare_rows(two, image=np.zeros(2, int), **settings)
    assert np.isnan(alone.distance).all()
    assert alone.pairs.total == 0


def test_progress_ends_with_all_pairs():
    said = []
    compare_rows(
        rows_of(), threshold=0.9, image=np.arange(ROWS), side=np.zeros(ROWS, int), apart=np.zeros((1, 1), bool),
        block=40, progress=lambda done, total: said.append((done, total)),
    )  # fmt: skip
    assert len(said) == 6
    assert said[-1] == (ROWS * (ROWS + 1) // 2,) * 2


def test_equal_rows_have_a_cosine_of_1_whatever_the_rounding():
    descriptors = np.tile(rows_of(length=64)[:40], (2, 1))
    alone = {"image": np.arange(80), "side": np.zeros(80, int), "apart": np.zeros((1, 1), bool)}
    found = compare_rows(descriptors, threshold=1.0, **alone)
    assert sorted(found.pairs.rows.tolist()) == [[row, row + 40] for row in range(40)]


def test_where_all_are_alike_no_more_pairs_are_sorted_than_can_be_first(monkeypatch):
    rows = 1 + 0.01 * np.random.default_rng(0).random((400, 5)).astype(np.float32)
    added, add = [], _Kept.add
    monkeypatch.setattr(_Kept, "add", lambda kept, *given: (add(kept, *given), added.append(len(kept.rows))))
    settings = {"threshold": 0.5, "image": np.arange(400), "side": np.arange(400) % 2, "apart": ~np.eye(2, dtype=bool)}
    few = compare_rows(rows, most=20, block=100, **settings)
    assert max(added) <= 4 * 20
    assert (few.pairs.total, few.pairs.total_across) == (400 * 399 // 2, 200 * 200)
    every = compare_rows(rows, most=10**6, block=400, **settings)
    np.testing.assert_array_equal(few.pairs.rows, every.pairs.rows[:20])


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
