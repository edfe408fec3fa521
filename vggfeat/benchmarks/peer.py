"""Other solvers at their best: the form that suits a table, problems in parallel over the cores.

scikit-learn's `LinearSVC` and snapml solve vggfeat's problem, scikit-learn's `SVC` another one.

n = rows, D = length of a descriptor, P = problems (pairs of class and C).
"""

import time
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC, LinearSVC

from vggfeat.runtime.system import peak_memory
from vggfeat.svm.liblinear import shorten

TRIED_ROWS = 3000
TRIED_COSTS = (2.0**-5, 1.0, 2.0**6)
FEW = np.array([1, -1], dtype=np.int8)
"""Signs of the least problem."""


SAME_PROBLEM = "squared hinge"
"""0.5 |w|^2 + 0.5 b^2 + C sum of squared slacks: vggfeat's."""
OTHER_PROBLEM = "plain hinge"
"""0.5 |w|^2 + C sum of slacks, with a free intercept."""


class Found(NamedTuple):
    """One solved problem."""

    coef: NDArray[np.floating]
    """(D,), or numbers of which a basis makes these."""
    intercept: float
    converged: bool


class PeerForm(NamedTuple):
    """How `LinearSVC` can be called for the same result."""

    dtype: str
    dual: bool
    reduced: bool
    """Rows are turned into n dimensions by QR first, where n < D: that loses nothing, and LIBLINEAR reads less."""

    @property
    def solves(self) -> str:
        """Return which problem."""
        return SAME_PROBLEM

    def __str__(self) -> str:
        solver = "dual" if self.dual else "primal"
        return f"LinearSVC, {self.dtype} {solver}{', rows reduced by QR' if self.reduced else ''}"

    def prepare(self, x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return what all problems on rows x (n, D) take, and the basis (D, ...) of their coefficients if any."""
        rows, basis = shorten(x) if self.reduced else (x, None)
        return np.ascontiguousarray(rows, dtype=self.dtype), basis

    def solve_one(self, rows: NDArray[Any], signs: NDArray[np.int8], cost: float) -> Found:
        """Solve one problem, signs (n,)."""
        svm = LinearSVC(C=cost, dual=self.dual, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            svm.fit(rows, signs)
        return Found(svm.coef_[0], float(svm.intercept_[0]), bool(svm.n_iter_ < svm.max_iter))


class PrecomputedForm:
    """`SVC` on inner products that are computed once for all problems."""

    solves = OTHER_PROBLEM

    def __str__(self) -> str:
        return "SVC, precomputed kernel"

    def prepare(self, x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return inner products (n, n), of which `SVC` makes a float64 copy in any case, and the basis (D, n)."""
        rows = x.astype(np.float64)
        return rows @ rows.T, x.T

    def solve_one(self, rows: NDArray[Any], signs: NDArray[np.int8], cost: float) -> Found:
        """Solve one problem, signs (n,)."""
        svm = SVC(C=cost, kernel="precomputed").fit(rows, signs)
        coef = np.zeros(len(rows))
        coef[svm.support_] = svm.dual_coef_[0]
        return Found(coef, float(svm.intercept_[0]), svm.fit_status_ == 0)


class SnapForm:
    """`SupportVectorMachine` of snapml, which makes this process take subnormal numbers for zero once it is loaded."""

    solves = SAME_PROBLEM

    def __str__(self) -> str:
        return "snapml, dual"

    def prepare(self, x: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return the rows as they are."""
        return np.ascontiguousarray(x, dtype=np.float32), None

    def solve_one(self, rows: NDArray[Any], signs: NDArray[np.int8], cost: float) -> Found:
        """Solve one problem, signs (n,)."""
        from snapml import SupportVectorMachine

        svm = SupportVectorMachine(loss="squared_hinge", regularizer=1 / cost, fit_intercept=True, random_state=0)
        svm.fit(rows, signs.astype(np.float64))
        coef, intercept = (np.ravel(one) for one in (svm.coef_, svm.intercept_))
        return Found(coef, float(intercept[0]), bool(np.max(svm.n_iter_) < svm.max_iter))


Form = PeerForm | PrecomputedForm | SnapForm


def other_forms() -> list[Form]:
    """Return the solvers beside `LinearSVC`; snapml where it is installed."""
    return [PrecomputedForm(), *([SnapForm()] if find_spec("snapml") else [])]


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
    x: NDArray[np.float32], signs: NDArray[np.int8], costs: NDArray[np.float64], form: Form, threads: int
) -> Solutions:
    """Solve P problems on rows x (n, D), with signs (n, P) of 1 and -1 and costs (P,)."""
    with joblib.Parallel(n_jobs=threads) as pool:
        # The workers' start is not the peer's fault, nor that they import it.
        pool(joblib.delayed(form.solve_one)(np.eye(2, dtype=np.float32), FEW, 1.0) for _ in range(threads))
        begun = time.perf_counter()
        rows, basis = form.prepare(x)
        prepared = time.perf_counter()
        calls = (joblib.delayed(form.solve_one)(rows, signs[:, p].copy(), costs[p]) for p in range(len(costs)))
        found = pool(calls)
        solved = time.perf_counter()
        peaks = pool(joblib.delayed(peak_memory)() for _ in range(threads)) if threads > 1 else [0]
    coef = np.array([one.coef for one in found], dtype=np.float64)
    return Solutions(
        coef=coef if basis is None else coef @ basis.T,
        intercept=np.array([one.intercept for one in found], dtype=np.float64),
        converged=np.array([one.converged for one in found]),
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
