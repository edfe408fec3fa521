"""The preconditioner of the Newton solver against the matrix that it stands for."""

import numpy as np
import pytest

from svm_reference import features
from vggfeat.svm.arrays import arrays_of
from vggfeat.svm.directions import Preconditioner
from vggfeat.svm.kernel import Gram

on_torch = pytest.mark.parametrize("device", [None, "cpu"], ids=["numpy", "torch"])


def solved(x, bounds, device, residual):
    """Solve for residuals (P, n), on rows with a constant 1; return coefficients and their scores."""
    arrays = arrays_of(device)
    kernel = Gram(x[:, :-1], 1.0, arrays).kernel(np.arange(len(x)))
    single = [arrays.xp.asarray(arrays.asarray(one), dtype=arrays.xp.float32) for one in (bounds, residual)]
    inverse = Preconditioner.of_kernel(kernel, solutions=100).inverse(single[0])
    return [arrays.to_numpy(one) for one in inverse.solve(single[1], kernel.times(single[1]))]


@on_torch
def test_all_eigenvectors_solve_exactly_where_all_rows_are_active(device):
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.standard_normal((60, 4)) @ rng.standard_normal((4, 90)), np.ones(60)])  # rank 5
    residual, bound = rng.standard_normal((3, 60)), 0.1
    found, scores = solved(x, np.full((3, 60), bound), device, residual)
    weights = np.linalg.solve(np.eye(91) + bound * x.T @ x, x.T @ residual.T)
    np.testing.assert_allclose(x.T @ found.T, weights, atol=1e-3)
    np.testing.assert_allclose(scores.T, x @ weights, atol=1e-4 * np.abs(x @ x.T).max())


def test_it_is_symmetric_and_positive_whatever_rows_are_active():
    # As an operator on weight vectors: r K M r' = r' K M r.
    x, labels = features(200, 300, 2)
    x = np.column_stack([x, np.ones(200)])
    bounds = np.where(labels.T[[0, 0]] > 0, 30.0, 0.0)
    residual = np.random.default_rng(1).standard_normal((2, 200))
    _, scores = solved(x, bounds, None, residual)
    product = residual @ scores.T
    assert product[0, 1] == pytest.approx(product[1, 0], rel=1e-3)
    assert (np.linalg.eigvalsh(product) > 0).all()


def test_numbers_beyond_float32_have_none():
    x = 1e30 * np.random.default_rng(0).standard_normal((40, 50))
    arrays = arrays_of(None)
    with np.errstate(all="ignore"):
        assert Preconditioner.of_kernel(Gram(x, 1.0, arrays).kernel(np.arange(40)), solutions=5) is None
