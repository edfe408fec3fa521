"""Linear SVMs solved in another way, for the tests of the solvers, and short ways to call these.

The dual of the squared-hinge problem is a least-squares problem with numbers that must not be negative: with rows
z = y (x, s) and u = 2 C weight, find a >= 0 with the least |sum of a z|^2 + sum of (a / sqrt(u) - sqrt(u))^2. SciPy's
`nnls` solves that exactly, with the active-set method of Lawson and Hanson.
"""

import numpy as np
from scipy.optimize import nnls

from vggfeat.svm import Split, SvmProblemSet

KINDS = ("random", "separable", "nearly separable", "badly scaled", "duplicated", "constant columns", "zero rows")


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


def fit(x, labels, cost, settings=None, **options):
    """Fit all rows of a table."""
    return SvmProblemSet(x, settings).fit(np.arange(len(x)), labels, cost, **options)


def sweep_rows(x, labels, held_out, grid, settings=None, **options):
    """Train on all of x for every value of C, and score other rows."""
    split = Split(rows=np.arange(len(x)), labels=labels, held_out=len(x) + np.arange(len(held_out)))
    return SvmProblemSet(np.concatenate([x, held_out]), settings).sweep([split], grid, **options)[0]


def table(n=40, length=6, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((n, length)), 0).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-6
    labels = np.where(
        x @ rng.standard_normal((length, num_classes)) + 0.3 * rng.standard_normal(num_classes) > 0, 1, -1
    )
    labels[0], labels[1] = 1, -1
    return x, labels


def gradient(model, k, x, signs, cost, scaling, weights):
    """Derivative of the objective in the head of vggfeat.svm, by weight vector and intercept."""
    part = signs != 0
    x, y, weights = x[part].astype(float), signs[part], weights[part]
    slack = np.maximum(0, 1 - y * (x @ model.coef[k] + model.intercept[k]))
    pull = 2 * cost * weights * slack * y
    return model.coef[k] - x.T @ pull, model.intercept[k] / scaling**2 - pull.sum(), np.abs(pull).sum()


def data(kind, n, length, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, length))
    signs = np.where(rng.random(n) < rng.choice([0.5, 0.1]), 1, -1)
    if "separable" in kind:
        signs = np.where(x @ rng.standard_normal(length) > 0, 1, -1)
    if kind == "nearly separable":
        x[:, 0] += 1e-3 * signs
        signs[rng.integers(n)] *= -1
    if kind == "badly scaled":
        x *= 10.0 ** rng.uniform(-3, 3, length)
    if kind == "duplicated":  # with labels that contradict each other
        x = x[rng.integers(0, max(1, n // 3), n)]
    if kind == "constant columns":
        x[:, ::2] = rng.choice([0.0, 1.0, -3.0])
    if kind == "zero rows":
        x[rng.random(n) < 0.5] = 0
    signs[0], signs[1] = 1, -1
    return x, signs


def features(n, length, classes, seed=0):
    """Make rows like those of a net: not negative, correlated, of length 1; a tenth of each class is positive."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 30)) / np.sqrt(1 + np.arange(30))
    x = np.maximum(latent @ rng.standard_normal((30, length)) + 0.3 * rng.standard_normal((n, length)) - 0.5, 0)
    towards = latent @ rng.standard_normal((30, classes)) + 0.3 * rng.standard_normal((n, classes))
    labels = np.where(towards > np.quantile(towards, 0.9, axis=0), 1, -1)
    return (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-6)).astype(np.float32), labels
