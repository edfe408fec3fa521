"""SVMs against the solution on paper, the conditions of a minimum, and scikit-learn called directly."""

import os
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from vggfeat.errors import ConfigError, FitError
from vggfeat.svm import (
    LinearModel,
    Split,
    SvmProblemSet,
    SvmSettings,
    certificate,
    fit_one_vs_rest,
    fittable_classes,
    liblinear,
    scores_over_C,
)

TIGHT = SvmSettings(tolerance=1e-13)
PEER = SvmSettings(solver="liblinear", liblinear_tolerance=1e-9, max_iterations=100_000, jobs=1)
both_solvers = pytest.mark.parametrize("exact", [TIGHT, PEER], ids=["newton", "liblinear"])


def table(n=40, length=6, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((n, length)), 0).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-6
    labels = np.where(
        x @ rng.standard_normal((length, num_classes)) + 0.3 * rng.standard_normal(num_classes) > 0, 1, -1
    )
    labels[0], labels[1] = 1, -1
    return x, labels


# --- the problem that is solved


@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("length", [1, 7])
@both_solvers
def test_two_opposite_points_as_solved_on_paper(cost, length, exact):
    # 0.5 w^2 + 2 C (1 - w)^2 is least at w = 4 C / (1 + 4 C); by symmetry the intercept is 0.
    x = np.zeros((2, length))
    x[:, 0] = 1, -1
    model = fit_one_vs_rest(x, [[1], [-1]], cost, exact)
    np.testing.assert_allclose(model.coef, [[4 * cost / (1 + 4 * cost)] + [0] * (length - 1)], atol=1e-6)
    np.testing.assert_allclose(model.intercept, [0], atol=1e-6)
    np.testing.assert_allclose(model.scores(x), [[model.coef[0, 0]], [-model.coef[0, 0]]], atol=1e-6)


def gradient(model, k, x, signs, cost, scaling, weights):
    """Derivative of the objective in the head of vggfeat.svm, by weight vector and intercept."""
    part = signs != 0
    x, y, weights = x[part].astype(float), signs[part], weights[part]
    slack = np.maximum(0, 1 - y * (x @ model.coef[k] + model.intercept[k]))
    pull = 2 * cost * weights * slack * y
    return model.coef[k] - x.T @ pull, model.intercept[k] / scaling**2 - pull.sum(), np.abs(pull).sum()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(5, 40),
    length=st.integers(1, 60),
    cost=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
    scaling=st.sampled_from([0.5, 1.0, 4.0]),
    balanced=st.booleans(),
    solver=st.sampled_from(["newton", "liblinear"]),
)
def test_the_result_is_a_minimum_of_the_stated_objective(seed, n, length, cost, scaling, balanced, solver):
    x, labels = table(n, length, 2, seed)
    labels = np.where(np.random.default_rng(seed).random(labels.shape) < 0.2, 0, labels)
    labels[:2] = [[1, 1], [-1, -1]]
    chosen = SvmSettings(
        solver=solver,
        tolerance=1e-13,
        liblinear_tolerance=1e-8,
        max_iterations=100_000,
        intercept_scaling=scaling,
        class_weight="balanced" if balanced else "none",
        jobs=1,
    )
    model = fit_one_vs_rest(x, labels, cost, chosen)
    for k in range(2):
        weights = np.ones(n)
        if balanced:
            for sign in (1, -1):
                mine = labels[:, k] == sign
                weights[mine] = (labels[:, k] != 0).sum() / 2 / mine.sum()
        by_coef, by_intercept, pull = gradient(model, k, x, labels[:, k], cost, scaling, weights)
        assert np.abs(by_coef).max() < 1e-5 * max(pull, 1e-3)
        assert abs(by_intercept) < 1e-5 * max(pull, 1e-3)


@pytest.mark.parametrize(("n", "length"), [(60, 8), (30, 200)])
@both_solvers
def test_equals_linear_svc_on_the_rows_that_take_part(n, length, exact):
    x, labels = table(n, length)
    labels[5:15, 0] = 0
    labels[20:25, 2] = 0
    model = fit_one_vs_rest(x, labels, [0.5, 2.0, 8.0], exact)
    for k, cost in enumerate((0.5, 2.0, 8.0)):
        part = labels[:, k] != 0
        peer = LinearSVC(C=cost, dual=True, tol=1e-9, max_iter=100_000, random_state=0)
        peer.fit(x[part].astype(float), labels[part, k])
        np.testing.assert_allclose(model.coef[k], peer.coef_[0], atol=1e-5)
        np.testing.assert_allclose(model.scores(x)[:, k], peer.decision_function(x.astype(float)), atol=1e-5)
    np.testing.assert_array_equal(model.C, [0.5, 2, 8])
    assert model.converged.all()


@both_solvers
def test_rows_left_out_of_a_class_dont_touch_it(exact):
    x, labels = table()
    labels[7, 1] = 0
    first = fit_one_vs_rest(x, labels, 1.0, exact)
    moved = x.copy()
    moved[7] = -10 * labels[7, 0] * first.coef[0]  # far on the wrong side of class 0
    second = fit_one_vs_rest(moved, labels, 1.0, exact)
    np.testing.assert_allclose(first.coef[1], second.coef[1], atol=1e-10)
    assert np.abs(first.coef[0] - second.coef[0]).max() > 1e-3


@pytest.mark.parametrize("seed", range(5))
@both_solvers
def test_equal_and_zero_rows_in_many_dimensions(seed, exact):
    # The rows span fewer dimensions than there are rows.
    x, labels = table(12, 50, seed=seed)
    x = np.concatenate([x, x[:6], np.zeros((3, 50), dtype=np.float32)])
    labels = np.concatenate([labels, labels[:6], labels[:3]])
    model = fit_one_vs_rest(x, labels, 4.0, exact)
    peer = LinearSVC(C=4.0, dual=True, tol=1e-9, max_iter=100_000, random_state=0).fit(x.astype(float), labels[:, 0])
    np.testing.assert_allclose(model.coef[0], peer.coef_[0], atol=1e-5)


@pytest.mark.parametrize(("n", "length"), [(40, 6), (20, 90)])
@both_solvers
def test_a_sweep_is_a_fit_for_every_value_of_c(n, length, exact):
    x, labels = table(n, length)
    other, _ = table(15, length, seed=9)
    sweep = scores_over_C(x, labels, other, [0.1, 10, 1], exact)
    assert sweep.scores.shape == (3, 3, 15)
    assert sweep.converged.shape == sweep.gap.shape == (3, 3)
    for g, cost in enumerate((0.1, 10, 1)):
        expected = fit_one_vs_rest(x, labels, cost, exact)
        np.testing.assert_allclose(sweep.scores[g].T, expected.scores(other), atol=1e-5)
        np.testing.assert_array_equal(sweep.converged[g], expected.converged)


def test_large_tables_are_scored_in_pieces(monkeypatch):
    x, labels = table()
    model = fit_one_vs_rest(x, labels, 1.0, TIGHT)
    whole = model.scores(x)
    monkeypatch.setattr(certificate, "_CHUNK_BYTES", 8 * 6 * 7)
    np.testing.assert_allclose(model.scores(x), whole, rtol=1e-12)


# --- convergence


@pytest.mark.parametrize("solver", ["newton", "liblinear"])
def test_giving_up_is_recorded_without_a_warning(solver):
    x, labels = table(200, 20)
    hard = SvmSettings(tolerance=1e-300, liblinear_tolerance=1e-12, max_iterations=2, solver=solver, jobs=1)
    easy = SvmSettings(solver=solver, jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep = scores_over_C(x, labels, x, [1e-6, 1e3], hard)
        model = fit_one_vs_rest(x, labels, 1e3, hard)
    assert not sweep.converged[1].any()
    assert not model.converged.any()
    assert np.isfinite(sweep.gap).all()
    assert fit_one_vs_rest(x, labels, 1e-6, easy).converged.all()


def test_the_primal_solver_of_liblinear_helps_where_its_dual_one_stalls():
    x, labels = table(200, 20)
    labels[::10] *= -1  # not separable
    chosen = SvmSettings(solver="liblinear", max_iterations=60, jobs=1)
    with pytest.warns(UserWarning, match="failed to converge"):
        LinearSVC(C=1e5, dual=True, max_iter=60, random_state=0).fit(x.astype(float), labels[:, 0])
    model = fit_one_vs_rest(x, labels, 1e5, chosen)
    assert model.converged.all()
    by_coef, by_intercept, pull = gradient(model, 0, x, labels[:, 0], 1e5, 1, np.ones(200))
    assert max(np.abs(by_coef).max(), abs(by_intercept)) < 0.02 * pull


def test_liblinear_has_not_converged_where_nothing_is_known_of_the_solution():
    # At such a C its own rule is met at once, but the slacks have no digit that is right.
    x, labels = table(200, 20)
    model = fit_one_vs_rest(x, labels, 1e9, SvmSettings(solver="liblinear", liblinear_tolerance=0.5, jobs=1))
    assert (model.gap > 0.9).any()
    assert not model.converged[model.gap > 0.9].any()


# --- workers of LIBLINEAR


def test_workers_change_no_digit(monkeypatch):
    x, labels = table(30, 50)
    alone = scores_over_C(x, labels, x, [0.1, 10], SvmSettings(solver="liblinear", jobs=1))
    monkeypatch.setattr(liblinear, "_PARALLEL_FROM", 0)
    seen = []
    two = SvmSettings(solver="liblinear", jobs=2)
    shared = scores_over_C(x, labels, x, [0.1, 10], two, progress=lambda *step: seen.append(step))
    np.testing.assert_array_equal(alone.scores, shared.scores)
    np.testing.assert_array_equal(alone.gap, shared.gap)
    assert seen == [(done, 6) for done in range(1, 7)]


@pytest.mark.filterwarnings("ignore:A worker stopped")
def test_a_worker_that_dies_is_reported(monkeypatch):
    x, labels = table()
    monkeypatch.setattr(liblinear, "_PARALLEL_FROM", 0)
    monkeypatch.setattr(liblinear, "_solve", lambda *_: os._exit(9))
    with pytest.raises(FitError, match=r"2 worker processes to stay alive.*fewer jobs"):
        fit_one_vs_rest(x, labels, 1.0, SvmSettings(solver="liblinear", jobs=2))


def test_progress_counts_problems():
    x, labels = table()
    seen = []
    fit_one_vs_rest(x, labels, 1.0, PEER, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    seen.clear()
    scores_over_C(x, labels, x, [1, 2], TIGHT, progress=lambda *step: seen.append(step))
    assert seen == [(3, 6), (6, 6)]


# --- refusals


def test_a_class_that_cant_be_fitted_is_named():
    x, labels = table()
    labels[:, 1] = np.where(labels[:, 1] == 1, 0, labels[:, 1])
    np.testing.assert_array_equal(fittable_classes(labels), [True, False, True])
    with pytest.raises(FitError, match=r"class sofa: expected positive and negative rows .* found 0 positive"):
        fit_one_vs_rest(x, labels, 1.0, classes=["car", "sofa", "cat"])
    with pytest.raises(FitError, match=r"class 1: .* and 0 negative"):
        fit_one_vs_rest(x, np.where(np.arange(3) == 1, 1, np.abs(labels) * labels), 1.0)


@pytest.mark.parametrize(
    ("x", "labels", "words"),
    [
        (np.zeros((2, 3)), [[1]], r"labels of shape \(2, classes\), found \(1, 1\)"),
        (np.zeros((2, 3)), [1, -1], "labels of shape"),
        (np.zeros((2, 3)), [[1], [2]], "labels 1, -1 or 0, found"),
        (np.array([[0.0], [np.inf]]), [[1], [-1]], "finite numbers, found others in row 1"),
        (np.zeros((2, 3), dtype=int), [[1], [-1]], "found int64"),
        (np.zeros(2), [[1], [-1]], r"shape \(rows, length\)"),
    ],
)
def test_arrays_are_checked(x, labels, words):
    with pytest.raises(FitError, match=words):
        fit_one_vs_rest(x, labels, 1.0)


def test_lengths_must_match():
    x, labels = table()
    with pytest.raises(FitError, match="held out: expected length 6, found 5"):
        scores_over_C(x, labels, x[:, :5], [1.0])
    model = LinearModel(
        coef=np.ones((2, 6)), intercept=np.zeros(2), C=np.ones(2), converged=np.ones(2, dtype=bool), gap=np.zeros(2)
    )
    with pytest.raises(FitError, match="to score: expected length 6, found 5"):
        model.scores(x[:, :5])
    with pytest.raises(FitError, match="3 class names, found 1"):
        fit_one_vs_rest(x, labels, 1.0, classes=["car"])


@pytest.mark.parametrize("cost", [0, -1.0, np.nan, np.inf, 1e101, []])
def test_values_of_c_are_checked(cost):
    x, labels = table()
    with pytest.raises(ConfigError, match=r"C: expected finite numbers above 0, at most 1e\+100, found"):
        scores_over_C(x, labels, x, cost)


ALL = np.arange(40)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ALL > 5, r"rows to train on: expected a list of row numbers, found bool"),
        (ALL[:, None], "found int64"),
        (ALL + 1, "expected numbers from 0 to 39, found 40"),
        (ALL - 1, "found -1"),
        (ALL // 2, "expected each once, found one twice"),
    ],
)
def test_row_numbers_are_checked(rows, words):
    # A mask or a number below 0 would choose other rows, in silence.
    x, labels = table()
    shared = SvmProblemSet(x)
    with pytest.raises(FitError, match=words):
        shared.fit(rows, labels, 1.0)
    with pytest.raises(FitError, match=words):
        shared.sweep([Split(rows=rows, labels=labels, held_out=ALL)], [1.0])
    if "once" not in words:
        with pytest.raises(FitError, match=words.replace("to train on", "to score")):
            shared.sweep([Split(rows=ALL, labels=labels, held_out=rows)], [1.0])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (-np.ones(40), "weights: expected finite numbers that are not negative"),
        (np.full(40, np.nan), "weights: expected finite"),
        (np.ones(39), r"weights: expected the shape \(40,\) or \(40, 3\), found \(39,\)"),
        (np.zeros(40), "class 0: .* found 0 positive and 0 negative"),
    ],
)
@both_solvers
def test_weights_are_checked(weights, words, exact):
    x, labels = table()
    with pytest.raises(FitError, match=words):
        SvmProblemSet(x, exact).fit(ALL, labels, 1.0, weights=weights)


@both_solvers
def test_rows_of_weight_0_are_left_out_before_classes_are_balanced(exact):
    x, labels = table()
    balanced = replace(exact, class_weight="balanced")
    weights = (ALL % 4 > 0).astype(float)
    weights[:2] = 1
    rows = np.flatnonzero(weights)
    model = SvmProblemSet(x, balanced).fit(ALL, labels, 1.0, weights=weights)
    expected = SvmProblemSet(x, balanced).fit(rows, labels[rows], 1.0)
    np.testing.assert_allclose(model.coef, expected.coef, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"loss": "hinge"}, "loss: expected one of squared_hinge, found 'hinge'"),
        ({"class_weight": None}, "class_weight: expected one of none, balanced, found None"),
        ({"solver": "libsvm"}, "solver: expected one of newton, liblinear"),
        ({"device": "cpu", "solver": "liblinear"}, "device: expected none"),
        ({"liblinear_tolerance": 0}, "liblinear_tolerance: expected a number above 0"),
        ({"tolerance": 0}, "tolerance: expected a number above 0"),
        ({"intercept_scaling": -1}, "intercept_scaling"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"seed": -1}, "seed"),
        ({"jobs": 0}, "jobs: expected at least 1, or -1"),
    ],
)
def test_settings_are_checked(setting, words):
    with pytest.raises(ConfigError, match=words):
        SvmSettings(**setting)
