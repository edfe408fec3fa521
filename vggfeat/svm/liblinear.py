"""The same problems one by one with LIBLINEAR: for comparison.

n = training rows, D = length of a descriptor, P = problems, G = values of C.
"""

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import joblib
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from vggfeat.errors import FitError
from vggfeat.svm.kernel import duality_gaps
from vggfeat.svm.settings import SvmSettings
from vggfeat.svm.solve import Problems, Solutions, Solver

# Below this many numbers to read (rows * length * problems) worker processes take longer to start than to help.
_PARALLEL_FROM = 1 << 27
# A relative duality gap at which nothing is solved, whatever LIBLINEAR's own rule says.
LOST = 0.5


class LiblinearSolver(Solver):
    """Solves with scikit-learn's `LinearSVC`, in worker processes where that helps.

    Converged is what is so by LIBLINEAR's own rule, and has a gap below `LOST`.

    Notes
    -----
    Needs 8 n D bytes for the rows in float64, and 16 n D for each worker. Where D > n the rows are first turned into
    n dimensions, which loses nothing: then it is 8 n D + 16 n n, and 8 n n for each worker.
    """

    def solve(self, problems: Problems, report: Callable[[int], None]) -> Solutions:
        """Solve problems class by class, so that neighbouring ones cost about the same and the workers stay level."""
        rows, basis = shorten(self.x[problems.rows])
        calls = [
            _Call(rows, signs.copy(), weights.copy(), cost, self.settings)
            for signs, weights, costs in zip(problems.signs, problems.weights, problems.costs, strict=True)
            for cost in costs.tolist()
        ]
        coef = np.empty((len(calls), rows.shape[1]))
        intercept, gap = np.empty(len(calls)), np.empty(len(calls))
        converged = np.empty(len(calls), dtype=bool)
        for i, solution in enumerate(_run(calls, self.settings.jobs)):
            coef[i], intercept[i], converged[i], gap[i] = solution
            report(1)
        if basis is not None:
            coef = coef @ basis.T
        shape = problems.costs.shape
        return Solutions(
            coef.reshape(*shape, -1), intercept.reshape(shape), converged.reshape(shape), gap.reshape(shape)
        )


def shorten(x: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return rows (n, D) in coordinates in which they are short, (n, d), and their basis (D, d), None where d = D.

    n rows span at most n dimensions. With D > n, QR of the transposed rows gives an orthonormal basis of that
    span; in it the rows form a triangle of n x n numbers with the same inner products, and the best w lies in
    the span too. LIBLINEAR reads the non-zero numbers only, so a problem costs n n / 2 instead of n D.
    """
    if x.shape[1] <= x.shape[0]:
        return np.ascontiguousarray(x, dtype=np.float64), None
    # The transpose of a copy in C order is in LAPACK's order, so the basis takes the place of the copy.
    own = np.array(x, dtype=np.float64, order="C").T
    basis, triangle = qr(own, mode="economic", overwrite_a=True, check_finite=False)
    return np.ascontiguousarray(triangle.T), basis


class _Call(NamedTuple):
    x: NDArray[np.float64]
    signs: NDArray[np.int8]
    weights: NDArray[np.float64]
    cost: float
    settings: SvmSettings


_Solution = tuple[NDArray[np.float64], float, bool, float]


def _run(calls: list[_Call], jobs: int) -> Iterable[_Solution]:
    workers = min(joblib.effective_n_jobs(jobs), len(calls))
    if workers < 2 or calls[0].x.size * len(calls) < _PARALLEL_FROM:
        yield from (_solve(*call) for call in calls)
        return
    # Processes, although LIBLINEAR lets go of Python's lock: its random numbers have one state a process, so
    # that threads would make the result depend on their timing. joblib hands the rows over as one shared file.
    pool = joblib.Parallel(n_jobs=workers, backend="loky", return_as="generator")
    try:
        yield from pool(joblib.delayed(_solve)(*call) for call in calls)
    except BrokenProcessPool as error:
        raise FitError(
            f"SVM: expected {workers} worker processes to stay alive, found one ended by the system, most often "
            f"because memory ran out; use fewer jobs"
        ) from error


def _solve(
    x: NDArray[np.float64], signs: NDArray[np.int8], weights: NDArray[np.float64], cost: float, settings: SvmSettings
) -> _Solution:
    """Solve one class at one C.

    The dual solver is the faster one at every shape and C of the paper's tasks. It can stall at large C; then the
    primal one takes over, as in recent LIBLINEAR.
    """
    for dual in (True, False):
        svm = LinearSVC(
            C=cost,
            dual=dual,
            loss=settings.loss,
            intercept_scaling=settings.intercept_scaling,
            tol=settings.liblinear_tolerance,
            max_iter=settings.max_iterations,
            random_state=settings.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # Rows of weight 0 are left out without a copy of the others.
            svm.fit(x, np.where(signs > 0, 1, -1), sample_weight=weights)
        converged = bool(svm.n_iter_ < settings.max_iterations)
        if converged:
            break
    coef, intercept = svm.coef_, svm.intercept_
    bounds, rows = 2 * cost * weights[None], np.arange(len(x))
    gap = duality_gaps(x, rows, signs[None], bounds, coef, intercept, settings.intercept_scaling)
    return coef[0], float(intercept[0]), converged and bool(gap[0] < LOST), float(gap[0])
