"""The Newton solver against non-negative least squares, on easy and on ill-natured data; its batches and its memory."""

import functools
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from svm_reference import KINDS, data, features, fit, objective, reference, sweep_rows
from vggfeat.errors import ConfigError, FitError
from vggfeat.svm import Split, SvmProblemSet, SvmSettings, arrays, directions, kernel, newton

EXACT = SvmSettings(tolerance=1e-12)
on_torch = pytest.mark.parametrize("device", [None, "cpu"], ids=["numpy", "torch"])


# --- the optimum


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 60),
    length=st.integers(1, 80),
    power=st.integers(-6, 6),
    scaling=st.sampled_from([1.0, 0.1, 10.0]),
    one_positive=st.booleans(),
    balanced=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_the_objective_is_that_of_the_optimum(kind, n, length, power, scaling, one_positive, balanced, seed):
    x, signs = data(kind, n, length, seed)
    if one_positive:
        signs[1:] = -1
    ignored = np.random.default_rng(seed).random(n) < 0.1
    ignored[:2] = False
    labels = np.where(ignored, 0, signs)
    bounds = np.where(ignored, 0, 2 * 10.0**power)
    if balanced:
        for sign in (1, -1):
            bounds[labels == sign] *= (~ignored).sum() / 2 / (labels == sign).sum()
    chosen = SvmSettings(intercept_scaling=scaling, class_weight="balanced" if balanced else "none")
    model = fit(x, labels[:, None], 10.0**power, chosen)
    coef, intercept, lowest = reference(x, signs, bounds, scaling)
    mine = objective(x, signs, bounds, model.coef[0], model.intercept[0], scaling)
    best = objective(x, signs, bounds, coef, intercept, scaling)
    assert mine <= best * (1 + 1e-4)
    # The lower bound is rounded, too, where numbers are large.
    excess = (mine - max(lowest, 0)) / mine
    assert model.gap[0] >= excess - 1e-9
    assert model.converged[0] == (model.gap[0] <= 1e-6)
    if power <= 4 and kind != "badly scaled":
        assert model.converged[0]
    if model.converged[0] and best - lowest <= 1e-9 * best:
        # Strong convexity: the weights differ by less than the root of twice the excess.
        reach = np.sqrt(2 * 1.1e-6 * mine) * np.sqrt((x**2).sum(axis=1) + scaling**2)
        assert (np.abs(x @ (model.coef[0] - coef) + model.intercept[0] - intercept) <= reach + 1e-9).all()
        scores = x @ coef + intercept
        clear = np.abs(scores) > reach
        np.testing.assert_array_equal((model.scores(x)[:, 0] > 0)[clear], (scores > 0)[clear])


@functools.cache
def lowest_of_features(n, length, k, cost):
    x, labels = features(n, length, 3)
    return reference(x, labels[:, k], np.full(n, 2 * cost))[2]


@pytest.mark.parametrize(("n", "length"), [(400, 600), (400, 50), (700, 40)])
@on_torch
def test_features_like_those_of_a_net(n, length, device):
    x, labels = features(n, length, 3)
    for cost in (1e-6, 0.1, 10.0, 1e3, 1e6):
        model = fit(x, labels, cost, SvmSettings(device=device))
        assert model.converged.all()
        for k in range(3):
            lowest = lowest_of_features(n, length, k, cost)
            mine = objective(x.astype(float), labels[:, k], 2 * cost, model.coef[k], model.intercept[k])
            assert mine <= lowest * (1 + 2e-6)


@pytest.mark.parametrize("patience", [(1, 2), (30, 300)])
@pytest.mark.parametrize("length", [40, 900])
def test_every_way_to_a_direction_ends_at_the_optimum(length, patience, monkeypatch):
    # Conjugate gradients only, in float32 and then, as Cholesky is too dear, in float64; and both mixed with Cholesky.
    x, labels = features(300, length, 2)
    expected = [reference(x, labels[:, k], np.full(300, 200.0))[2] for k in range(2)]
    monkeypatch.setattr(directions, "_FEW", 0)
    monkeypatch.setattr(directions, "_CHEAP", 0)
    monkeypatch.setattr(directions, "_PATIENCE", patience)
    for dear in (0, 1000):
        monkeypatch.setattr(directions, "_DEAR", dear)
        model = fit(x, labels, 100.0)
        assert model.converged.all()
        for k in range(2):
            mine = objective(x.astype(float), labels[:, k], 200.0, model.coef[k], model.intercept[k])
            assert mine == pytest.approx(expected[k], rel=2e-6)


def test_a_wrong_solution_has_a_gap():
    x, labels = features(100, 20, 1)
    stopped = fit(x, labels, 100.0, SvmSettings(max_iterations=1))
    assert not stopped.converged[0]
    _, _, lowest = reference(x, labels[:, 0], np.full(100, 200.0))
    mine = objective(x.astype(float), labels[:, 0], 200.0, stopped.coef[0], stopped.intercept[0])
    assert stopped.gap[0] >= (mine - lowest) / mine > 1e-5


@on_torch
@pytest.mark.parametrize("size", [1.0, 1e160])
def test_beyond_float64_a_gap_is_1_and_the_end_is_reached(size, device):
    # At such lengths the inner products are infinite, at such a C the objective is known without a digit.
    x, labels = features(60, 90, 2)
    shared = SvmProblemSet(size * x.astype(float), SvmSettings(device=device, max_iterations=20))
    with np.errstate(over="ignore", invalid="ignore"):
        (sweep,) = shared.sweep([Split(rows=np.arange(60), labels=labels, held_out=np.arange(60))], [1.0, 1e100])
        model = shared.fit(np.arange(60), labels, 1e100)
    for gap, converged in ((sweep.gap, sweep.converged), (model.gap, model.converged)):
        assert (gap <= 1).all()
        np.testing.assert_array_equal(converged, gap <= 1e-6)
    assert np.isfinite(sweep.scores).all()
    assert np.isfinite(model.coef).all()
    if size > 1:
        assert not model.converged.any()


@on_torch
@pytest.mark.parametrize("cost", [1e22, 1e30, 1e100])
def test_beyond_float64_the_objective_does_not_rise(cost, device):
    # More rows than numbers: no solution is without slack. Of beta no digit is right; of weights some are, up to a C.
    x, labels = features(60, 20, 2)
    labels = np.where(np.random.default_rng(0).random(labels.shape) < 0.3, 1, -1).astype(np.int8)
    beyond, within = (fit(x, labels, each, SvmSettings(device=device)) for each in (cost, 1e6))
    slacks = [np.maximum(0, 1 - labels * (x @ model.coef.T + model.intercept)) for model in (beyond, within)]
    lost, least = ((slack**2).sum(axis=0) for slack in slacks)
    np.testing.assert_array_equal(beyond.converged, beyond.gap <= 1e-6)
    assert beyond.converged.all() == (cost < 1e30)
    assert within.converged.all()
    assert (lost <= 1.001 * least).all()


# --- many problems at once


@on_torch
@pytest.mark.parametrize("length", [20, 120])
def test_company_changes_nothing(length, device, monkeypatch):
    # Other classes, values of C, folds, and the size of batches.
    x, labels = features(90, length, 4)
    exact = SvmSettings(tolerance=1e-12, device=device)
    grid, fold = (0.01, 1.0, 100.0), np.arange(90) % 3
    parts = [
        Split(rows=np.flatnonzero(fold != f), labels=labels[fold != f], held_out=np.flatnonzero(fold == f))
        for f in range(3)
    ]
    together = SvmProblemSet(x, exact).sweep(parts, grid)
    monkeypatch.setattr(newton, "_BATCH_BYTES", 1)
    apart = SvmProblemSet(x, exact).sweep(parts, grid)
    for part, first, second in zip(parts, together, apart, strict=True):
        np.testing.assert_allclose(first.scores, second.scores, atol=2e-5)
        for k in range(4):
            alone = sweep_rows(x[part.rows], part.labels[:, [k]], x[part.held_out], grid[1:2], EXACT)
            np.testing.assert_allclose(first.scores[1, k], alone.scores[0, 0], atol=2e-5)


def test_parts_of_different_rows_and_classes():
    x, labels = features(120, 200, 3)
    first = Split(rows=np.arange(40), labels=labels[:40], held_out=np.arange(100, 120))
    second = Split(rows=np.arange(99, 39, -1), labels=labels[99:39:-1, :2], held_out=np.arange(5))
    shared = SvmProblemSet(x, EXACT)
    for part, sweep in zip((first, second), shared.sweep([first, second], [1.0, 10.0]), strict=True):
        assert sweep.scores.shape == (2, part.labels.shape[1], len(part.held_out))
        alone = sweep_rows(x[part.rows], part.labels, x[part.held_out], [1.0, 10.0], EXACT)
        np.testing.assert_allclose(sweep.scores, alone.scores, atol=2e-5)
    assert shared.sweep([], [1.0]) == []


@pytest.mark.parametrize("kept", [1 << 30, 1])
def test_a_table_remembers_inner_products_and_nothing_else(kept, monkeypatch):
    monkeypatch.setattr(kernel, "_KEPT_BYTES", kept)
    monkeypatch.setattr(kernel, "_COLUMN_BYTES", 8 * 100 * 70)
    x, labels = features(100, 200, 2)
    shared = SvmProblemSet(x, EXACT)
    for rows in (np.arange(60), np.arange(40, 90), np.arange(100)[::-1], np.arange(10, 50)):
        model = shared.fit(rows, labels[rows], [1.0, 4.0])
        alone = fit(x[rows], labels[rows], [1.0, 4.0], EXACT)
        np.testing.assert_allclose(model.coef, alone.coef, atol=2e-5)
        np.testing.assert_allclose(model.intercept, alone.intercept, atol=2e-5)


@pytest.mark.parametrize("length", [5, 60])
def test_weights_are_repeated_rows(length):
    x, labels = features(50, length, 2)
    times = np.random.default_rng(0).integers(1, 4, 50)
    weighted = SvmProblemSet(x, EXACT).fit(np.arange(50), labels, 2.0, weights=times)
    repeated = fit(np.repeat(x, times, axis=0), np.repeat(labels, times, axis=0), 2.0, EXACT)
    np.testing.assert_allclose(weighted.coef, repeated.coef, atol=2e-5)


def test_a_class_without_negatives_is_refused_by_name():
    x, labels = features(30, 5, 2)
    labels[:20, 1] = 1
    part = Split(rows=np.arange(20), labels=labels[:20], held_out=np.arange(20, 30))
    with pytest.raises(FitError, match=r"class cat: .* found 20 positive and 0 negative"):
        SvmProblemSet(x).sweep([part], [1.0], classes=["car", "cat"])


# --- memory and device


@pytest.mark.parametrize("length", [1200, 100])
def test_memory_is_what_the_docstring_says(length, monkeypatch):
    n, classes = 900, 40
    monkeypatch.setattr(newton, "_BATCH_BYTES", 1 << 23)
    monkeypatch.setattr(kernel, "_COLUMN_BYTES", 1 << 21)
    x, labels = features(n, length, classes)
    folds = [np.arange(n) % 3 != f for f in range(3)]
    parts = [Split(rows=np.flatnonzero(f), labels=labels[f], held_out=np.flatnonzero(~f)) for f in folds]
    tracemalloc.start()
    SvmProblemSet(x).sweep(parts, [0.1, 1.0, 10.0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    own = 20 * n**2 if length > n else 12 * n * (length + 1) + 8 * n * length
    problems = 3 * classes * n * (8 + 1)  # weights and labels
    scores = 3 * classes * 8 * n
    assert peak < 1.1 * (own + (1 << 23) + (1 << 22) + problems + scores)


def test_too_little_memory_is_said_in_one_line_and_other_errors_are_not_hidden(monkeypatch):
    x, labels = features(20, 5, 1)
    part = Split(rows=np.arange(20), labels=labels, held_out=np.arange(20))
    for error, expected in ((RuntimeError("CUDA out of memory. Tried"), FitError), (RuntimeError("no"), RuntimeError)):

        def fail(*arguments, error=error):
            raise error

        monkeypatch.setattr(kernel.Gram, "kernel", fail)
        for call in (lambda s: s.fit(np.arange(20), labels, 1.0), lambda s: s.sweep([part], [1.0])):
            with pytest.raises(
                expected, match=r"GiB of memory and more on cpu for fits on 20 rows of length 5, found too little|^no$"
            ):
                call(SvmProblemSet(x, SvmSettings(device="cpu")))


@pytest.mark.parametrize(("length", "needed"), [(400, 20 * 300**2), (50, 20 * 300 * 51)])
def test_memory_that_is_not_there_is_not_asked_for(length, needed, monkeypatch):
    x, labels = features(300, length, 1)
    shared, rows = SvmProblemSet(x), np.arange(300)
    monkeypatch.setattr(arrays, "free_memory", lambda: needed - 1)
    monkeypatch.setattr(kernel.Gram, "kernel", lambda *given: pytest.fail("memory was asked for"))
    part = Split(rows=rows, labels=labels, held_out=rows)
    for call in (lambda: shared.fit(rows, labels, 1.0), lambda: shared.sweep([part], [1.0])):
        with pytest.raises(FitError, match=r"expected 0\.0 GiB of memory and more on the CPU for fits on 300 rows"):
            call()
    monkeypatch.undo()
    monkeypatch.setattr(arrays, "free_memory", lambda: needed)
    assert shared.fit(rows, labels, 1.0).converged.all()
    monkeypatch.setattr(arrays, "free_memory", lambda: 4 * 300**2 if length == 400 else needed)
    assert shared.fit(rows, labels, 2.0).converged.all(), "what is known is not counted twice"


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 6 << 20), (str(5 << 20), (5 << 20) - (3 << 20) + (1 << 20)), ("", 6 << 20)]
)
def test_free_memory_is_that_of_the_machine_or_what_a_control_group_leaves(tmp_path, limit, expected):
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    assert arrays.free_memory(tmp_path) is None
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8192 kB\nMemAvailable: 4096 kB\nSwapFree: 2048 kB\n")
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{3 << 20}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {1 << 20}\nactive_file 7\n")
    assert arrays.free_memory(tmp_path) == expected


@pytest.mark.parametrize("device", ["nothing", "meta", "cuda:99"])
def test_a_device_that_isnt_there_or_cant_compute_is_refused(device):
    x, labels = features(20, 5, 1)
    with pytest.raises(ConfigError, match=f"device: expected one that PyTorch can use in float64, found '{device}'"):
        fit(x, labels, 1.0, SvmSettings(device=device))


def test_numpy_is_enough():
    code = (
        "import sys, numpy as np; from vggfeat.svm import SvmProblemSet; "
        "SvmProblemSet(np.eye(3)).fit(np.arange(3), [[1], [-1], [1]], 1.0); "
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("length", [16, 600])
def test_what_no_sum_of_many_rows_reaches_is_solved_for_the_weights(length, monkeypatch):
    rng = np.random.default_rng(0)
    x, held = (100 * rng.normal(size=(600, length))).astype(np.float32), np.arange(500, 600)
    labels = np.where(rng.random((500, 3)) < 0.2, 1, -1).astype(np.int8)
    asked, stream = [], newton.StreamSolver
    monkeypatch.setattr(newton, "StreamSolver", lambda *given: asked.append(given) or stream(*given))
    problems = SvmProblemSet(x)
    model = problems.fit(np.arange(500), labels, 1e5)
    (sweep,) = problems.sweep([Split(rows=np.arange(500), labels=labels, held_out=held)], [1e-7, 1e5])
    assert model.converged.all()
    assert sweep.converged.all()
    assert len(asked) == (2 if length < 500 else 0), "as many numbers as rows are no fewer"
    np.testing.assert_allclose(sweep.scores[1].T, model.scores(x[held]), rtol=1e-4)
    peer = LinearSVC(C=1e-7, dual=False, tol=1e-12, max_iter=100_000)
    for k, scores in enumerate(sweep.scores[0]):
        np.testing.assert_allclose(scores, peer.fit(x[:500], labels[:, k]).decision_function(x[held]), atol=2e-3)
