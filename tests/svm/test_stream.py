"""The streaming solver: the optimum of the other solvers, equal bits by any number of threads, and little memory."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from svm_reference import KINDS, data, features, fit, objective, reference
from vggfeat.errors import ConfigError
from vggfeat.svm import Split, SvmProblemSet, SvmSettings, blocks, stream, stream_steps
from vggfeat.svm.blocks import blocks_of, equal_blocks, parts_of, scores_of

STREAM = SvmSettings(solver="stream", jobs=1)
EXACT = SvmSettings(solver="stream", tolerance=1e-12, jobs=1)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "MOST_ROWS", 64)


def objectives(x, labels, costs, model):
    """Of every class."""
    bounds = 2 * np.broadcast_to(costs, labels.shape[1]) * np.abs(labels)
    x = x.astype(float)
    return np.array(
        [objective(x, labels[:, k], bounds[:, k], model.coef[k], model.intercept[k]) for k in range(len(bounds.T))]
    )


def with_gaps(labels, seed=5):
    """Ignore a fifth of the labels."""
    ignored = np.random.default_rng(seed).random(labels.shape) < 0.2
    return np.where(ignored, 0, labels).astype(np.int8)


# --- the optimum


@pytest.mark.parametrize("cost", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("n", "length", "classes"), [(500, 12, 1), (600, 150, 2), (400, 33, 20), (90, 300, 2)])
def test_objectives_are_those_of_newton_and_of_linear_svc(n, length, classes, cost, small_blocks):
    x, labels = features(n, length, classes)
    x[:30] = 0
    labels = with_gaps(labels)
    model, newton = (fit(x, labels, cost, SvmSettings(solver=name)) for name in ("stream", "newton"))
    assert model.converged.all()
    assert (model.gap <= 1e-6).all()
    mine = objectives(x, labels, cost, model)
    np.testing.assert_allclose(mine, objectives(x, labels, cost, newton), rtol=1e-6)
    for k in range(classes):
        part = labels[:, k] != 0
        peer = LinearSVC(C=cost, dual=False, tol=1e-10, max_iter=100_000).fit(x[part].astype(float), labels[part, k])
        best = objective(x.astype(float), labels[:, k], 2 * cost * part, peer.coef_[0], peer.intercept_[0])
        assert best * (1 - 1e-9) <= mine[k] <= best * (1 + 1e-6)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 60),
    length=st.integers(1, 80),
    power=st.integers(-6, 6),
    scaling=st.sampled_from([1.0, 0.1, 10.0]),
    balanced=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_the_gap_says_how_far_the_objective_is_above_the_optimum(kind, n, length, power, scaling, balanced, seed):
    x, signs = data(kind, n, length, seed)
    bounds = np.full(n, 2 * 10.0**power)
    if balanced:
        for sign in (1, -1):
            bounds[signs == sign] *= n / 2 / (signs == sign).sum()
    weighing = "balanced" if balanced else "none"
    chosen = SvmSettings(solver="stream", jobs=1, intercept_scaling=scaling, class_weight=weighing)
    model = fit(x, signs[:, None], 10.0**power, chosen)
    lowest = reference(x, signs, bounds, scaling)[2]
    mine = objective(x, signs, bounds, model.coef[0], model.intercept[0], scaling)
    # The lower bound is rounded, too, where numbers are large.
    assert model.gap[0] >= (mine - max(lowest, 0)) / mine - 1e-9
    assert model.converged[0] == (model.gap[0] <= 1e-6)
    if power <= 3 and kind != "badly scaled":
        assert model.converged[0]


@pytest.mark.parametrize("whole", [20, 10_000], ids=["part of the eigenvectors", "all of them"])
@pytest.mark.parametrize("cheap", [0, 10**6], ids=["conjugate gradients", "Hessians"])
@pytest.mark.parametrize("patience", [3, 50])
def test_every_way_to_a_direction_ends_at_the_optimum(whole, cheap, patience, monkeypatch, small_blocks):
    x, labels = features(400, 60, 3)
    for name, value in (("_WHOLE", whole), ("_CHEAP", cheap), ("_PATIENCE", patience), ("_FEW", 30)):
        monkeypatch.setattr(stream_steps, name, value)
    model = fit(x, labels, 20.0, EXACT)
    assert model.converged.all()
    expected = objectives(x, labels, 20.0, fit(x, labels, 20.0, SvmSettings(tolerance=1e-13)))
    np.testing.assert_allclose(objectives(x, labels, 20.0, model), expected, rtol=1e-11)


def test_rows_in_float16_are_those_numbers():
    x, labels = features(300, 20, 2)
    half = x.astype(np.float16)
    model, wide = (fit(rows, labels, 2.0, EXACT) for rows in (half, half.astype(np.float64)))
    np.testing.assert_allclose(model.coef, wide.coef, rtol=1e-5, atol=1e-7)


def test_rows_beyond_the_range_of_float32_are_given_up_not_believed():
    x, signs = data("random", 40, 5, 0)
    model = fit(x * 1e200, signs[:, None], 1.0, STREAM)
    assert not model.converged[0]
    assert model.gap[0] == 1


# --- passes


def test_all_values_of_c_and_all_classes_share_passes():
    x, labels = features(2000, 100, 5)
    split, few = Split(rows=np.arange(1500), labels=labels[:1500], held_out=np.arange(1500, 2000)), 0.3
    together = SvmProblemSet(x, STREAM)
    together.sweep([split], [0.1, 1.0, 10.0])
    alone = 0
    for cost in (0.1, 1.0, 10.0):
        for k in range(5):
            one = SvmProblemSet(x, STREAM)
            one.fit(split.rows, split.labels[:, k : k + 1], cost)
            alone += one.solver.passes
    assert together.solver.passes < few * alone


@pytest.mark.parametrize("jobs", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(jobs, small_blocks):
    x, labels = features(1000, 90, 4)
    split = Split(rows=np.arange(0, 900), labels=with_gaps(labels[:900]), held_out=np.arange(900, 1000))
    found = []
    for count in (1, jobs):
        problems = SvmProblemSet(x, SvmSettings(solver="stream", jobs=count))
        model = problems.fit(np.arange(1000), labels, [0.1, 1.0, 10.0, 1000.0])
        sweep = problems.sweep([split], [0.01, 1.0, 100.0])[0]
        seen = scores_of(blocks_of(x), np.arange(5, 900, 7), model.coef, model.intercept, count)
        found.append([model.coef, model.intercept, model.gap, sweep.scores, sweep.gap, seen])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_blocks_without_a_training_row_are_not_read():
    x, labels = features(1000, 20, 1)
    read = []

    def reader(start, stop):
        read.append(start)
        return x[start:stop]

    source = blocks.ReadBlocks(shape=x.shape, ends=np.array([100, 450, 1000]), reader=reader)
    chosen = np.concatenate([np.arange(20, 100), np.arange(460, 900)])
    model = SvmProblemSet(source, EXACT).fit(chosen, labels[chosen], 1.0)
    assert set(read) == {0, 450}
    expected = fit(x[chosen], labels[chosen], 1.0, EXACT)
    np.testing.assert_allclose(model.coef, expected.coef, rtol=1e-4, atol=1e-7)


def test_parts_name_the_rows_of_each_block():
    source = blocks.ReadBlocks(shape=(10, 1), ends=np.array([4, 6, 10]), reader=None)
    whole, part = parts_of(source, np.array([4, 5, 7, 9]))
    assert (whole.number, whole.places, whole.inside) == (1, slice(0, 2), None)
    assert (part.number, part.places, part.inside.tolist()) == (2, slice(2, 4), [1, 3])


# --- sweeps


def test_scores_of_held_out_rows_are_those_of_newton(small_blocks):
    x, labels = features(600, 40, 4)
    rng, splits = np.random.default_rng(0), []
    for count in (4, 2):
        rows = rng.permutation(600)
        splits.append(Split(rows=rows[:400], labels=with_gaps(labels[rows[:400], :count]), held_out=rows[400:]))
    grid = [10.0, 0.1, 1.0]
    mine, theirs = (
        SvmProblemSet(x, SvmSettings(solver=name, tolerance=1e-12, class_weight="balanced")).sweep(splits, grid)
        for name in ("stream", "newton")
    )
    for one, other in zip(mine, theirs, strict=True):
        assert one.converged.all()
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


def test_scores_in_a_file_and_few_problems_at_a_time_change_nothing(monkeypatch):
    x, labels = features(500, 30, 5)
    split = Split(rows=np.arange(300), labels=labels[:300], held_out=np.arange(499, 299, -1))
    expected = SvmProblemSet(x, EXACT).sweep([split], [0.1, 1.0])[0]
    monkeypatch.setattr(stream, "_SCORE_BYTES", 0)
    monkeypatch.setattr(stream, "_BATCH_NUMBERS", 4 * 300)
    found = SvmProblemSet(x, EXACT).sweep([split], [0.1, 1.0])[0]
    assert isinstance(found.scores, np.memmap)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert found.converged.all()


def test_no_splits_are_no_sweeps():
    assert SvmProblemSet(np.ones((3, 2)), STREAM).sweep([], [1.0]) == []


# --- memory and refusals

MEMORY = """
import resource
import numpy as np
from vggfeat.svm import SvmProblemSet, SvmSettings
from vggfeat.svm.blocks import equal_blocks

rows, length = 120_000, 512
base = np.random.default_rng(0).random((4096, length), dtype=np.float32) / length**0.5
def read(start, stop):
    assert stop - start <= len(base)
    return np.roll(base[: stop - start], start // 4096, axis=1)
labels = np.where(np.random.default_rng(1).random((rows, 2)) < 0.2, 1, -1)
problems = SvmProblemSet(equal_blocks((rows, length), read), SvmSettings(solver="stream", jobs=2))
problems.fit(np.arange(5 * 4096), labels[: 5 * 4096], 1e-3)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
model = problems.fit(np.arange(rows), labels, 1e-3)
assert model.converged.all()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
def test_memory_does_not_grow_with_the_rows():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    table = 4 * 120_000 * 512 / 2**20  # 234 MiB
    assert float(done.stdout) < 0.25 * table


def test_a_full_disk_is_named(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream, "_SCORE_BYTES", 0)
    monkeypatch.setattr(stream.os, "posix_fallocate", full)
    x, labels = features(100, 5, 1)
    split = Split(rows=np.arange(50), labels=labels[:50] * 0 + np.array([[1], [-1]] * 25), held_out=np.arange(50, 100))
    with pytest.raises(Exception, match="TMPDIR"):
        SvmProblemSet(x, STREAM).sweep([split], [1.0])


def test_solvers_that_need_a_table_refuse_blocks():
    source = equal_blocks((10, 2), lambda start, stop: np.ones((stop - start, 2)))
    with pytest.raises(
        ConfigError, match="solver: expected stream for rows that are read block by block, found newton"
    ):
        SvmProblemSet(source)
