"""Folds and held-out rows: units whole, classes in equal parts; and what is said where a test has been seen."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from small_tables import data_set, multi_label, one_hot, table_of
from vggfeat.errors import ConfigError, FitError
from vggfeat.protocols import ProtocolSettings, run_protocol
from vggfeat.protocols import folds as division
from vggfeat.protocols.folds import contents_of, hold_out, k_folds, label_notes, unit_names
from vggfeat.samples import Task


def members(numbers):
    return np.eye(max(numbers) + 1, dtype=bool)[numbers]


def by_hash(prefix, names):
    return sorted(names, key=lambda name: hashlib.sha256(f"{prefix}/{name}".encode()).hexdigest())


NUMBERS = [0] * 12 + [1] * 5 + [2] * 20
PATHS = [f"{row}.png" for row in range(len(NUMBERS))]


def test_every_class_is_spread_evenly_and_so_are_sizes():
    fold = k_folds(PATHS, members(NUMBERS), 5)
    counts = np.array([[np.sum((fold == f) & (np.array(NUMBERS) == k)) for k in range(3)] for f in range(5)])
    assert counts.sum() == len(NUMBERS)
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1


def test_folds_are_dealt_by_hash_so_the_order_of_rows_is_of_no_account():
    positive = members(NUMBERS)
    fold = dict(zip(PATHS, k_folds(PATHS, positive, 4, seed=3), strict=True))
    order = np.random.default_rng(0).permutation(len(PATHS))
    shuffled = [PATHS[row] for row in order]
    assert dict(zip(shuffled, k_folds(shuffled, positive[order], 4, seed=3), strict=True)) == fold
    # The class of five is the rarest, so it is dealt first: in the order of its hashes to folds 0 1 2 3 0.
    rarest = by_hash("3/folds", [path for path, k in zip(PATHS, NUMBERS, strict=True) if k == 1])
    assert [fold[path] for path in rarest] == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("seed", range(6))
def test_a_class_goes_where_it_is_rarest_not_where_there_is_room(seed):
    # Class 0 takes an image in each fold, two of them of class 1 too: the third of class 1 has one place left.
    positive = np.array([[1, 1], [1, 1], [1, 0], [0, 1]], dtype=bool)
    fold = k_folds(["a", "b", "c", "d"], positive, 3, seed)
    assert sorted(fold[:3]) == [0, 1, 2]
    assert fold[3] == fold[2]


def test_the_seed_changes_folds():
    assert (k_folds(PATHS, members(NUMBERS), 4, seed=0) != k_folds(PATHS, members(NUMBERS), 4, seed=1)).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_rows_of_an_image_stay_together(seed, folds):
    rng = np.random.default_rng(seed)
    paths = [f"{number}.jpg" for number in rng.integers(0, 20, 60)]
    positive = rng.random((60, 4)) < 0.2
    fold = k_folds(paths, positive, folds)
    held = hold_out(paths, positive, 0.25)
    assert set(fold) == set(range(folds))
    for path in set(paths):
        rows = [row for row in range(60) if paths[row] == path]
        assert len(set(fold[rows])) == 1
        assert len(set(held[rows])) == 1


@pytest.mark.parametrize(("folds", "words"), [(1, "2 up to the number of images"), (4, r"images \(3\), found 4")])
def test_folds_are_checked(folds, words):
    with pytest.raises(ConfigError, match=words):
        k_folds(["a", "b", "c", "c"], np.ones((4, 1), dtype=bool), folds)


def test_held_out_is_the_papers_part_of_caltech():
    # 6 of 30 and 12 of 60; the first by hash.
    numbers = [0] * 30 + [1] * 60
    paths = [f"{row}.png" for row in range(90)]
    held = hold_out(paths, members(numbers), 0.2, seed=7)
    assert held[:30].sum() == 6
    assert held[30:].sum() == 12
    first = by_hash("7/held-out", paths[:30])[:6]
    assert {path for path, chosen in zip(paths[:30], held[:30], strict=True) if chosen} == set(first)


def test_small_classes_give_one_and_keep_one():
    held = hold_out(["a", "b", "c", "d", "e", "f"], members([0, 1, 1, 2, 2, 2]), 0.2)
    assert not held[0]
    assert held[1:3].sum() == 1
    assert held[3:].sum() == 1
    assert hold_out(["a", "b"], members([0, 0]), 0.99).sum() == 1


def test_images_without_a_positive_are_held_out_in_proportion():
    positive = np.zeros((50, 1), dtype=bool)
    positive[:10] = True
    held = hold_out([str(row) for row in range(50)], positive, 0.2)
    assert held[:10].sum() == 2
    assert held[10:].sum() == 8


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000))
def test_no_class_is_held_out_whole(seed):
    rng = np.random.default_rng(seed)
    positive = rng.random((25, 6)) < 0.15
    held = hold_out([str(row) for row in range(25)], positive, 0.5)
    occurring = positive.any(axis=0)
    assert positive[~held].any(axis=0)[occurring].all()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_the_fraction_is_checked(fraction):
    with pytest.raises(ConfigError, match="held_out: expected a fraction"):
        hold_out(["a", "b"], np.ones((2, 1), dtype=bool), fraction)


# --- groups


def of_groups(seed, rows=80, groups=16, classes=3):
    """Rows of one class each, in groups of different sizes."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, classes, rows)
    names = [f"g{number}" for number in np.minimum(rng.geometric(0.15, rows), groups)]
    return [f"{row}.png" for row in range(rows)], numbers, names


def parted(names, side):
    return {name for name in names if len({s for n, s in zip(names, side, strict=True) if n == name}) > 1}


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_dealt_whole_and_about_as_evenly_as_scikit_learn_deals_them(seed):
    paths, numbers, names = of_groups(seed)
    fold = k_folds(paths, members(numbers), 4, groups=names)
    assert set(fold) == {0, 1, 2, 3}
    assert not parted(names, fold.tolist())
    x, largest = np.zeros((len(paths), 1)), max(names.count(name) for name in names)
    for splitter in (GroupKFold(4), StratifiedGroupKFold(4)):
        theirs = [len(test) for _, test in splitter.split(x, numbers, names)]
        assert np.ptp(np.bincount(fold)) <= np.ptp(theirs) + largest


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_held_out_whole(seed):
    paths, numbers, names = of_groups(seed)
    held = hold_out(paths, members(numbers), 0.25, groups=names)
    assert not parted(names, held.tolist())
    assert 0.05 < held.mean() < 0.5
    for k in range(3):
        assert 0 < held[numbers == k].sum() < (numbers == k).sum()


def test_groups_of_one_are_images():
    paths = [f"group:{row}" for row in range(len(NUMBERS))]
    groups = [str(row) for row in range(len(NUMBERS))]
    for divide, part in ((k_folds, 4), (hold_out, 0.2)):
        alone = divide(paths, members(NUMBERS), part)
        np.testing.assert_array_equal(divide(PATHS, members(NUMBERS), part, groups=groups), alone)


def test_large_groups_by_hand():
    # One class in groups of 6, 3, 2 and 1 images: the largest first, each to the fold that has the fewest.
    groups = ["a"] * 6 + ["b"] * 3 + ["c"] * 2 + ["d"]
    positive = np.ones((12, 1), dtype=bool)
    fold = k_folds(PATHS[:12], positive, 2, groups=groups)
    assert fold.tolist() == [0] * 6 + [1] * 6
    # A sixth is 2 images: 6 is further from it than none, 3 is nearer, and with more it would be further again.
    assert np.flatnonzero(hold_out(PATHS[:12], positive, 1 / 6, groups=groups)).tolist() == [6, 7, 8]
    # A twentieth is 0 images, but of two groups one is held out, the smaller.
    assert hold_out(PATHS[:9], positive[:9], 0.05, groups=groups[:9]).tolist() == [False] * 6 + [True] * 3


def test_groups_that_share_an_image_are_one():
    assert unit_names(["a", "a", "b", "c"], ["2", "1", "2", "3"]) == ["group:1", "group:1", "group:1", "group:3"]
    assert unit_names(["a", "b"], None) == ["a", "b"]


# --- a million rows


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(division, "LARGE", 30)


def share(prefix, name):
    return int(hashlib.sha256(f"{prefix}/{name}".encode()).hexdigest()[:12], 16) / 16**12


def test_in_large_sets_the_hash_alone_decides(large):
    positive = members(NUMBERS)
    expected = [int(4 * share("3/folds", path)) for path in PATHS]
    assert k_folds(PATHS, positive, 4, seed=3).tolist() == expected
    assert hold_out(PATHS, positive, 0.3, seed=3).tolist() == [share("3/held-out", path) < 0.3 for path in PATHS]


def test_in_large_sets_groups_stay_whole_and_parts_are_of_the_size_asked_for(large):
    paths = [f"{row}.png" for row in range(20_000)]
    groups = [f"g{row // 4}" for row in range(20_000)]
    positive = members([row % 2 for row in range(20_000)])
    fold = k_folds(paths, positive, 5, groups=groups)
    assert (fold.reshape(-1, 4) == fold[::4, None]).all()
    assert np.abs(np.bincount(fold) / 4000 - 1).max() < 0.1
    held = hold_out(paths, positive, 0.2, groups=groups)
    assert (held.reshape(-1, 4) == held[::4, None]).all()
    assert 0.18 < held.mean() < 0.22


@pytest.mark.parametrize("count", [0, 1])
def test_large_sets_refuse_what_small_ones_refuse(large, count):
    with pytest.raises(ConfigError, match="folds: expected 2"):
        k_folds(PATHS, members(NUMBERS), count)
    with pytest.raises(ConfigError, match="held_out"):
        hold_out(PATHS, members(NUMBERS), 1.0)


FAST = ProtocolSettings(grid=(1.0,), folds=3)
SPLITS = {"train": range(30), "test": range(30, 60)}


def digests(count, **same):
    """Digests that differ, but for rows that have those of another: s3=5 is row 3 with the bytes of row 5."""
    numbers = np.arange(1, count + 1)
    for row, other in same.items():
        numbers[int(row[1:])] = other + 1
    return np.repeat(numbers[:, None], 32, axis=1).astype(np.uint8)


def notes_of(table, settings=FAST):
    return [note for note in run_protocol(table, settings).notes if "group" in note or "bytes" in note]


def test_the_same_bytes_in_training_and_test_are_said_with_their_names():
    dataset = data_set(np.repeat(multi_label(30), 2, axis=0), SPLITS)
    assert notes_of(table_of(dataset, sha256=digests(60))) == []
    assert notes_of(table_of(dataset)) == [], "files of old do not say it"
    assert notes_of(table_of(dataset, sha256=digests(60, s40=3, s59=3))) == [
        "In test 2 samples have the same bytes as images in train, among them s040.jpg as s003.jpg, s059.jpg as "
        "s003.jpg: the figures may be too good."
    ]


def test_images_that_failed_have_no_bytes_to_compare():
    dataset = data_set(multi_label(60), SPLITS)
    sha256 = digests(60)
    sha256[[3, 40]] = 0
    assert notes_of(table_of(dataset, failed=[3, 40], sha256=sha256)) == []
    assert len(set(contents_of(table_of(dataset, sha256=sha256)).tolist())) == 60


def test_over_folds_there_is_one_note_of_all():
    dataset = data_set(one_hot(np.arange(30) % 2), task=Task.SINGLE_LABEL)
    (note,) = notes_of(table_of(dataset, sha256=digests(30, **{f"s{row}": 0 for row in range(2, 30, 2)})))
    assert note.startswith("In the test 15 samples have the same bytes as images in the training of 3 of 3 runs, ")


def test_a_group_on_both_sides_of_given_splits_is_said():
    groups = ["a", "b", "c"] * 10 + ["c", "d", "e"] * 10
    dataset = data_set(multi_label(60), SPLITS, groups=tuple(groups))
    assert notes_of(table_of(dataset)) == [
        "1 group is both in train and in test, among them c: the figures may be too good."
    ]


def test_folds_keep_groups_together_and_so_do_held_out_parts():
    groups = tuple(f"g{row // 5}" for row in range(60))
    dataset = data_set(one_hot(np.arange(60) % 3), task=Task.SINGLE_LABEL, groups=groups)
    result = run_protocol(table_of(dataset), replace(FAST, grid=(1.0, 2.0)))
    assert not [note for note in result.notes if "group" in note]
    assert "Samples of one group stay together." in result.description
    tested = [{groups[row] for row in run.rows} for run in result.runs]
    assert sum(map(len, tested)) == len(set.union(*tested)) == 12


def test_too_few_groups_are_refused_by_their_number():
    groups = tuple("ab"[row % 2] for row in range(60))
    dataset = data_set(one_hot(np.arange(60) % 3), task=Task.SINGLE_LABEL, groups=groups)
    with pytest.raises(ConfigError, match=r"folds: expected 2 up to the number of groups \(2\), found 3"):
        run_protocol(table_of(dataset), FAST)
    groups = tuple("a" if row % 3 == 0 else f"{row // 6}" for row in range(60))
    with pytest.raises(FitError, match=r"the data set has 20 of it in 1 group: add samples"):
        run_protocol(table_of(replace(dataset, groups=groups)), FAST)


@pytest.mark.parametrize("single", [True, False])
def test_the_same_bytes_with_contradictory_labels_are_said(single):
    labels = one_hot([0, 1, 1, 0]) if single else np.array([[1, 1], [1, -1], [-1, 1], [1, 0]])
    dataset = data_set(labels, task=Task.SINGLE_LABEL if single else Task.MULTI_LABEL)
    assert label_notes(table_of(dataset, sha256=digests(4))) == []
    assert label_notes(table_of(dataset, sha256=digests(4, s3=0))) == []
    names = "s000 and s001 (class0)" if single else "s000 and s001 (class1)"
    assert label_notes(table_of(dataset, sha256=digests(4, s1=0))) == [
        f"1 image occurs more than once, with contradictory labels: {names}."
    ]


def test_boxes_of_one_image_may_have_labels_of_their_own():
    boxes = np.array([[0, 0, 5, 5], [5, 5, 9, 9], [0, 0, 5, 5]], dtype=float)
    dataset = replace(data_set(one_hot([0, 1, 1])), boxes=boxes)
    assert label_notes(table_of(dataset, sha256=digests(3, s1=0))) == []
    assert len(label_notes(table_of(dataset, sha256=digests(3, s2=0)))) == 1
