"""Linear SVMs solved by another road, for the tests of the solver.

The dual of the squared-hinge problem is a least-squares problem with numbers that must not be negative: with rows
z = y (x, s) and u = 2 C weight, find a >= 0 with the least |sum of a z|^2 + sum of (a / sqrt(u) - sqrt(u))^2. SciPy's
`nnls` solves that exactly, with the active-set method of Lawson and Hanson.
"""

import numpy as np
from scipy.optimize import nnls


def objective(x, signs, bounds, coef, intercept, scaling=1.0):
    slack = np.maximum(0, 1 - signs * (x @ coef + intercept))
    return 0.5 * (coef @ coef + (intercept / scaling) ** 2 + (bounds * slack**2).sum())


def reference(x, signs, bounds, scaling=1.0):
    """Return coefficients, intercept and a lower bound of the objective; rows of bound 0 take no part."""
    part = bounds > 0
    x, signs, bounds = np.asarray(x, dtype=float)[part], signs[part], bounds[part]
    rows = signs[:, None] * np.column_stack([x, np.full(len(x), scaling)])
    matrix = np.concatenate([rows.T, np.diag(bounds**-0.5)])
    alpha, _ = nnls(matrix, np.concatenate([np.zeros(rows.shape[1]), bounds**0.5]), maxiter=50 * len(x) + 100)
    weights = alpha @ rows
    bound = alpha.sum() - 0.5 * (weights @ weights) - 0.5 * (alpha**2 / bounds).sum()
    return weights[:-1], weights[-1] * scaling, bound
