"""How rows are divided: each once, images whole, classes even, by a rule that can be repeated by hand."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from vggfeat.errors import ConfigError
from vggfeat.protocols import folds as division
from vggfeat.protocols.folds import hold_out, k_folds, unit_names


def one_hot(numbers):
    return np.eye(max(numbers) + 1, dtype=bool)[numbers]


def by_hash(prefix, names):
    return sorted(names, key=lambda name: hashlib.sha256(f"{prefix}/{name}".encode()).hexdigest())


NUMBERS = [0] * 12 + [1] * 5 + [2] * 20
PATHS = [f"{row}.png" for row in range(len(NUMBERS))]


def test_every_class_is_spread_evenly_and_so_are_sizes():
    fold = k_folds(PATHS, one_hot(NUMBERS), 5)
    counts = np.array([[np.sum((fold == f) & (np.array(NUMBERS) == k)) for k in range(3)] for f in range(5)])
    assert counts.sum() == len(NUMBERS)
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1


def test_folds_are_dealt_by_hash_so_the_order_of_rows_is_of_no_account():
    positive = one_hot(NUMBERS)
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
    assert (k_folds(PATHS, one_hot(NUMBERS), 4, seed=0) != k_folds(PATHS, one_hot(NUMBERS), 4, seed=1)).any()


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
    held = hold_out(paths, one_hot(numbers), 0.2, seed=7)
    assert held[:30].sum() == 6
    assert held[30:].sum() == 12
    first = by_hash("7/held-out", paths[:30])[:6]
    assert {path for path, chosen in zip(paths[:30], held[:30], strict=True) if chosen} == set(first)


def test_small_classes_give_one_and_keep_one():
    held = hold_out(["a", "b", "c", "d", "e", "f"], one_hot([0, 1, 1, 2, 2, 2]), 0.2)
    assert not held[0]
    assert held[1:3].sum() == 1
    assert held[3:].sum() == 1
    assert hold_out(["a", "b"], one_hot([0, 0]), 0.99).sum() == 1


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
    fold = k_folds(paths, one_hot(numbers), 4, groups=names)
    assert set(fold) == {0, 1, 2, 3}
    assert not parted(names, fold.tolist())
    x, largest = np.zeros((len(paths), 1)), max(names.count(name) for name in names)
    for splitter in (GroupKFold(4), StratifiedGroupKFold(4)):
        theirs = [len(test) for _, test in splitter.split(x, numbers, names)]
        assert np.ptp(np.bincount(fold)) <= np.ptp(theirs) + largest


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_held_out_whole(seed):
    paths, numbers, names = of_groups(seed)
    held = hold_out(paths, one_hot(numbers), 0.25, groups=names)
    assert not parted(names, held.tolist())
    assert 0.05 < held.mean() < 0.5
    for k in range(3):
        assert 0 < held[numbers == k].sum() < (numbers == k).sum()


def test_groups_of_one_are_images():
    paths = [f"group:{row}" for row in range(len(NUMBERS))]
    groups = [str(row) for row in range(len(NUMBERS))]
    for divide, part in ((k_folds, 4), (hold_out, 0.2)):
        alone = divide(paths, one_hot(NUMBERS), part)
        np.testing.assert_array_equal(divide(PATHS, one_hot(NUMBERS), part, groups=groups), alone)


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
    positive = one_hot(NUMBERS)
    expected = [int(4 * share("3/folds", path)) for path in PATHS]
    assert k_folds(PATHS, positive, 4, seed=3).tolist() == expected
    assert hold_out(PATHS, positive, 0.3, seed=3).tolist() == [share("3/held-out", path) < 0.3 for path in PATHS]


def test_in_large_sets_groups_stay_whole_and_parts_are_of_the_size_asked_for(large):
    paths = [f"{row}.png" for row in range(20_000)]
    groups = [f"g{row // 4}" for row in range(20_000)]
    positive = one_hot([row % 2 for row in range(20_000)])
    fold = k_folds(paths, positive, 5, groups=groups)
    assert (fold.reshape(-1, 4) == fold[::4, None]).all()
    assert np.abs(np.bincount(fold) / 4000 - 1).max() < 0.1
    held = hold_out(paths, positive, 0.2, groups=groups)
    assert (held.reshape(-1, 4) == held[::4, None]).all()
    assert 0.18 < held.mean() < 0.22


@pytest.mark.parametrize("count", [0, 1])
def test_large_sets_refuse_what_small_ones_refuse(large, count):
    with pytest.raises(ConfigError, match="folds: expected 2"):
        k_folds(PATHS, one_hot(NUMBERS), count)
    with pytest.raises(ConfigError, match="held_out"):
        hold_out(PATHS, one_hot(NUMBERS), 1.0)
