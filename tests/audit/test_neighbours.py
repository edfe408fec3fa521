"""All pairs in blocks, against all pairs at once."""

import numpy as np
import pytest

from vggfeat.audit.neighbours import _Kept, compare_rows

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
