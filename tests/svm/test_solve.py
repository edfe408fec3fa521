"""SVMs against the solution on paper, the conditions of a minimum, and scikit-learn called directly."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from svm_reference import fit, gradient, sweep_rows, table
from vggfeat.errors import ConfigError, FitError
from vggfeat.svm import SOLVERS, LinearModel, Split, SvmProblemSet, SvmSettings, arrays, fittable_classes
from vggfeat.svm.settings import SolverEntry

TIGHT = SvmSettings(tolerance=1e-13)
STREAM = SvmSettings(solver="stream", tolerance=1e-13)
PEER = SvmSettings(solver="liblinear", liblinear_tolerance=1e-9, max_iterations=100_000, jobs=1)
all_solvers = pytest.mark.parametrize("exact", [TIGHT, PEER, STREAM], ids=["newton", "liblinear", "stream"])


# --- the problem that is solved


@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("length", [1, 7])
@all_solvers
def test_two_opposite_points_as_solved_on_paper(cost, length, exact):
    # 0.5 w^2 + 2 C (1 - w)^2 is least at w = 4 C / (1 + 4 C); by symmetry the intercept is 0.
    x = np.zeros((2, length))
    x[:, 0] = 1, -1
    model = fit(x, [[1], [-1]], cost, exact)
    np.testing.assert_allclose(model.coef, [[4 * cost / (1 + 4 * cost)] + [0] * (length - 1)], atol=1e-6)
    np.testing.assert_allclose(model.intercept, [0], atol=1e-6)
    np.testing.assert_allclose(model.scores(x), [[model.coef[0, 0]], [-model.coef[0, 0]]], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(5, 40),
    length=st.integers(1, 60),
    cost=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
    scaling=st.sampled_from([0.5, 1.0, 4.0]),
    balanced=st.booleans(),
    solver=st.sampled_from(list(SOLVERS)),
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
    model = fit(x, labels, cost, chosen)
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
@all_solvers
def test_equals_linear_svc_on_the_rows_that_take_part(n, length, exact):
    x, labels = table(n, length)
    labels[5:15, 0] = 0
    labels[20:25, 2] = 0
    model = fit(x, labels, [0.5, 2.0, 8.0], exact)
    for k, cost in enumerate((0.5, 2.0, 8.0)):
        part = labels[:, k] != 0
        peer = LinearSVC(C=cost, dual=True, tol=1e-9, max_iter=100_000, random_state=0)
        peer.fit(x[part].astype(float), labels[part, k])
        np.testing.assert_allclose(model.coef[k], peer.coef_[0], atol=1e-5)
        np.testing.assert_allclose(model.scores(x)[:, k], peer.decision_function(x.astype(float)), atol=1e-5)
    np.testing.assert_array_equal(model.C, [0.5, 2, 8])
    assert model.converged.all()


@all_solvers
def test_rows_left_out_of_a_class_dont_touch_it(exact):
    x, labels = table()
    labels[7, 1] = 0
    first = fit(x, labels, 1.0, exact)
    moved = x.copy()
    moved[7] = -10 * labels[7, 0] * first.coef[0]  # far on the wrong side of class 0
    second = fit(moved, labels, 1.0, exact)
    np.testing.assert_allclose(first.coef[1], second.coef[1], atol=1e-10)
    assert np.abs(first.coef[0] - second.coef[0]).max() > 1e-3


@pytest.mark.parametrize("seed", range(5))
@all_solvers
def test_equal_and_zero_rows_in_many_dimensions(seed, exact):
    # The rows span fewer dimensions than there are rows.
    x, labels = table(12, 50, seed=seed)
    x = np.concatenate([x, x[:6], np.zeros((3, 50), dtype=np.float32)])
    labels = np.concatenate([labels, labels[:6], labels[:3]])
    model = fit(x, labels, 4.0, exact)
    peer = LinearSVC(C=4.0, dual=True, tol=1e-9, max_iter=100_000, random_state=0).fit(x.astype(float), labels[:, 0])
    np.testing.assert_allclose(model.coef[0], peer.coef_[0], atol=1e-5)


@pytest.mark.parametrize(("n", "length"), [(40, 6), (20, 90)])
@all_solvers
def test_a_sweep_is_a_fit_for_every_value_of_c(n, length, exact):
    x, labels = table(n, length)
    other, _ = table(15, length, seed=9)
    sweep = sweep_rows(x, labels, other, [0.1, 10, 1], exact)
    assert sweep.scores.shape == (3, 3, 15)
    assert sweep.converged.shape == sweep.gap.shape == (3, 3)
    for g, cost in enumerate((0.1, 10, 1)):
        expected = fit(x, labels, cost, exact)
        np.testing.assert_allclose(sweep.scores[g].T, expected.scores(other), atol=1e-5)
        np.testing.assert_array_equal(sweep.converged[g], expected.converged)


def test_large_tables_are_scored_in_pieces(monkeypatch):
    x, labels = table()
    model = fit(x, labels, 1.0, TIGHT)
    whole = model.scores(x)
    monkeypatch.setattr(arrays, "_ROW_BYTES", 8 * 6 * 7)
    np.testing.assert_allclose(model.scores(x), whole, rtol=1e-12)


# --- convergence


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_giving_up_is_recorded_without_a_warning(solver):
    x, labels = table(200, 20)
    hard = SvmSettings(tolerance=1e-300, liblinear_tolerance=1e-12, max_iterations=2, solver=solver, jobs=1)
    easy = SvmSettings(solver=solver, jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep = sweep_rows(x, labels, x, [1e-6, 1e3], hard)
        model = fit(x, labels, 1e3, hard)
    assert not sweep.converged[1].any()
    assert not model.converged.any()
    assert np.isfinite(sweep.gap).all()
    assert fit(x, labels, 1e-6, easy).converged.all()


def test_progress_counts_problems():
    x, labels = table()
    seen = []
    fit(x, labels, 1.0, PEER, progress=lambda *step: seen.append(step))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    seen.clear()
    sweep_rows(x, labels, x, [1, 2], TIGHT, progress=lambda *step: seen.append(step))
    assert seen == [(0, 6), (3, 6), (6, 6)]


# --- another solver


def test_another_solver_is_one_class_and_one_line_of_the_table(monkeypatch):
    monkeypatch.setitem(SOLVERS, "nnls", SolverEntry("nnls_solver:NnlsSolver", "exact and slow"))
    other = SvmSettings(solver="nnls", intercept_scaling=2.0, class_weight="balanced")
    x, labels = table()
    labels[3:9, 1] = 0
    seen = []
    found = sweep_rows(x, labels, x[:7], [0.1, 10.0], other, progress=lambda *step: seen.append(step))
    expected = sweep_rows(x, labels, x[:7], [0.1, 10.0], replace(other, solver="newton", tolerance=1e-13))
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    assert found.converged.all()
    assert seen[-1] == (6, 6)
    model = fit(x, labels, [0.1, 1.0, 10.0], other)
    np.testing.assert_allclose(model.scores(x[:7])[:, [0, 2]], found.scores[[0, 1], [0, 2]].T, atol=1e-9)
    with pytest.raises(ConfigError, match="device: expected none with the solver nnls, found 'cpu'"):
        replace(other, device="cpu")


def test_the_command_offers_the_solvers_of_the_table():
    from vggfeat.cli.svm import svm

    (option,) = (option for option in svm.params if option.name == "solver")
    assert list(option.type.choices) == ["auto", *SOLVERS]
    assert all(entry.words in option.help for entry in SOLVERS.values())


# --- refusals


def test_a_class_that_cant_be_fitted_is_named():
    x, labels = table()
    labels[:, 1] = np.where(labels[:, 1] == 1, 0, labels[:, 1])
    np.testing.assert_array_equal(fittable_classes(labels), [True, False, True])
    with pytest.raises(FitError, match=r"class sofa: expected positive and negative rows .* found 0 positive"):
        fit(x, labels, 1.0, classes=["car", "sofa", "cat"])
    with pytest.raises(FitError, match=r"class 1: .* and 0 negative"):
        fit(x, np.where(np.arange(3) == 1, 1, np.abs(labels) * labels), 1.0)


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
        fit(x, labels, 1.0)


def test_lengths_must_match():
    x, labels = table()
    model = LinearModel(
        coef=np.ones((2, 6)), intercept=np.zeros(2), C=np.ones(2), converged=np.ones(2, dtype=bool), gap=np.zeros(2)
    )
    with pytest.raises(FitError, match="to score: expected length 6, found 5"):
        model.scores(x[:, :5])
    with pytest.raises(FitError, match="3 class names, found 1"):
        fit(x, labels, 1.0, classes=["car"])


@pytest.mark.parametrize("cost", [0, -1.0, np.nan, np.inf, 1e101, []])
def test_values_of_c_are_checked(cost):
    x, labels = table()
    with pytest.raises(ConfigError, match=r"C: expected finite numbers above 0, at most 1e\+100, found"):
        sweep_rows(x, labels, x, cost)


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
@all_solvers
def test_weights_are_checked(weights, words, exact):
    x, labels = table()
    with pytest.raises(FitError, match=words):
        SvmProblemSet(x, exact).fit(ALL, labels, 1.0, weights=weights)


@all_solvers
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
