"""scikit-learn's `LinearSVC` at its best: the form that suits a table, problems in parallel over the cores.

n = rows, D = length of a descriptor, P = problems (pairs of class and C).
"""

import time
import warnings
from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from vggfeat.runtime.system import peak_memory
from vggfeat.svm.liblinear import shorten

TRIED_ROWS = 3000
TRIED_COSTS = (2.0**-5, 1.0, 2.0**6)


class PeerForm(NamedTuple):
    """How `LinearSVC` can be called for the same result."""

    dtype: str
    dual: bool
    reduced: bool
    """Rows are turned into n dimensions by QR first, where n < D: that loses nothing, and LIBLINEAR reads less."""

    def __str__(self) -> str:
        solver = "dual" if self.dual else "primal"
        return f"{self.dtype} {solver}{', rows reduced by QR' if self.reduced else ''}"


FORMS = [
    PeerForm(dtype, dual, reduced)
    for reduced, dual, dtype in product((False, True), (True, False), ("float64", "float32"))
]
"""The reduced ones last."""


class Solutions(NamedTuple):
    """P solved problems."""

    coef: NDArray[np.float64]
    """(P, D)"""
    intercept: NDArray[np.float64]
    """(P,)"""
    converged: NDArray[np.bool_]
    """(P,)"""
    preparing: float
    """Seconds, for all problems on these rows together."""
    solving: float
    """Seconds, for these problems."""
    memory: int
    """Peak resident bytes of the worker processes together; 0 if there were none."""


class Trial(NamedTuple):
    """One form on a few problems, one after the other."""

    seconds: float
    """Without the preparation, which serves all problems on the same rows."""
    objective: float
    """Sum over the problems."""


def try_forms(x: NDArray[np.float32], signs: NDArray[np.int8]) -> dict[PeerForm, Trial]:
    """Solve one class, signs (n,), at three values of C in every form that fits the shape of x (n, D)."""
    rows = np.linspace(0, len(x) - 1, min(len(x), TRIED_ROWS)).astype(np.int64)
    x, signs, costs = x[rows], np.repeat(signs[rows][:, None], len(TRIED_COSTS), axis=1), np.array(TRIED_COSTS)
    few = np.argsort(signs[:, 0], kind="stable")[[0, -1]]
    solve(x[few], signs[few], costs, FORMS[0], threads=1)  # The first call of all is slower than the others.
    tried = {}
    for form in FORMS if len(x) < x.shape[1] else FORMS[:4]:
        found = solve(x, signs, costs, form, threads=1)
        values, _ = objectives(x, signs, costs, found.coef, found.intercept)
        tried[form] = Trial(found.solving, float(values.sum()))
    return tried


def fastest(tried: Mapping[PeerForm, Trial], *, reduced: bool) -> PeerForm | None:
    """Return the fastest form that finds the minimum, within 1 %."""
    best = min((one.objective for one in tried.values()), default=0.0)
    good = [form for form, one in tried.items() if form.reduced == reduced and one.objective <= 1.01 * best]
    return min(good, key=lambda form: tried[form].seconds, default=None)


def solve(
    x: NDArray[np.float32], signs: NDArray[np.int8], costs: NDArray[np.float64], form: PeerForm, threads: int
) -> Solutions:
    """Solve P problems on rows x (n, D), with signs (n, P) of 1 and -1 and costs (P,)."""
    with joblib.Parallel(n_jobs=threads) as pool:
        pool(joblib.delayed(peak_memory)() for _ in range(threads))  # The workers' start is not the peer's fault.
        begun = time.perf_counter()
        rows, basis = shorten(x) if form.reduced else (x, None)
        rows = np.ascontiguousarray(rows, dtype=form.dtype)
        prepared = time.perf_counter()
        calls = (joblib.delayed(_solve_one)(rows, signs[:, p].copy(), costs[p], form.dual) for p in range(len(costs)))
        found = pool(calls)
        solved = time.perf_counter()
        peaks = pool(joblib.delayed(peak_memory)() for _ in range(threads)) if threads > 1 else [0]
    coef = np.array([one[0] for one in found], dtype=np.float64)
    return Solutions(
        coef=coef if basis is None else coef @ basis.T,
        intercept=np.array([one[1] for one in found], dtype=np.float64),
        converged=np.array([one[2] for one in found]),
        preparing=prepared - begun,
        solving=solved - prepared,
        memory=sum(peaks),
    )


def objectives(
    x: NDArray[np.float32],
    signs: NDArray[np.int8],
    costs: NDArray[np.float64],
    coef: NDArray[np.float64],
    intercept: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the objective (P,) of solutions (P, D) and (P,), and the relative duality gap (P,), in float64.

    The dual solution is the best for the slacks: twice C times the slack. It gives a vector v' of weights and intercept
    in the place of v, and the gap is half of |v - v'|^2.
    """
    slack, pulled = np.empty(signs.shape), np.zeros(coef.shape)
    for start in range(0, len(x), 1024):
        part = slice(start, start + 1024)
        rows = x[part].astype(np.float64)
        slack[part] = np.maximum(0, 1 - signs[part] * (rows @ coef.T + intercept))
        pulled += (2 * costs * slack[part] * signs[part]).T @ rows
    values = 0.5 * ((coef**2).sum(axis=1) + intercept**2) + costs * (slack**2).sum(axis=0)
    other = (2 * costs * slack * signs).sum(axis=0)
    return values, 0.5 * (((coef - pulled) ** 2).sum(axis=1) + (intercept - other) ** 2) / values


def _solve_one(
    x: NDArray[np.floating], signs: NDArray[np.int8], cost: float, dual: bool
) -> tuple[NDArray[np.floating], float, bool]:
    svm = LinearSVC(C=cost, dual=dual, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(x, signs)
    return svm.coef_[0], float(svm.intercept_[0]), bool(svm.n_iter_ < svm.max_iter)
