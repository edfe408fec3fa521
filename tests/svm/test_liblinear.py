"""LIBLINEAR as a solver: when it gives up, and its workers."""

import os

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from svm_reference import fit, gradient, sweep_rows, table
from vggfeat.errors import FitError
from vggfeat.svm import SvmSettings, liblinear


def test_the_primal_solver_of_liblinear_helps_where_its_dual_one_stalls():
    x, labels = table(200, 20)
    labels[::10] *= -1  # not separable
    chosen = SvmSettings(solver="liblinear", max_iterations=60, jobs=1)
    with pytest.warns(UserWarning, match="failed to converge"):
        LinearSVC(C=1e5, dual=True, max_iter=60, random_state=0).fit(x.astype(float), labels[:, 0])
    model = fit(x, labels, 1e5, chosen)
    assert model.converged.all()
    by_coef, by_intercept, pull = gradient(model, 0, x, labels[:, 0], 1e5, 1, np.ones(200))
    assert max(np.abs(by_coef).max(), abs(by_intercept)) < 0.02 * pull


def test_liblinear_has_not_converged_where_nothing_is_known_of_the_solution():
    # At such a C its own rule is met at once, but the slacks have no digit that is right.
    x, labels = table(200, 20)
    model = fit(x, labels, 1e9, SvmSettings(solver="liblinear", liblinear_tolerance=0.5, jobs=1))
    assert (model.gap > 0.9).any()
    assert not model.converged[model.gap > 0.9].any()


def test_workers_change_no_digit(monkeypatch):
    x, labels = table(30, 50)
    alone = sweep_rows(x, labels, x, [0.1, 10], SvmSettings(solver="liblinear", jobs=1))
    monkeypatch.setattr(liblinear, "_PARALLEL_FROM", 0)
    seen = []
    two = SvmSettings(solver="liblinear", jobs=2)
    shared = sweep_rows(x, labels, x, [0.1, 10], two, progress=lambda *step: seen.append(step))
    np.testing.assert_array_equal(alone.scores, shared.scores)
    np.testing.assert_array_equal(alone.gap, shared.gap)
    assert seen == [(done, 6) for done in range(7)]


@pytest.mark.filterwarnings("ignore:A worker stopped")
def test_a_worker_that_dies_is_reported(monkeypatch):
    x, labels = table()
    monkeypatch.setattr(liblinear, "_PARALLEL_FROM", 0)
    monkeypatch.setattr(liblinear, "_solve", lambda *_: os._exit(9))
    with pytest.raises(FitError, match=r"2 worker processes to stay alive.*fewer jobs"):
        fit(x, labels, 1.0, SvmSettings(solver="liblinear", jobs=2))
