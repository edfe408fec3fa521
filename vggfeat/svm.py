"""Linear support vector machines, one class against the rest, at given values of C.

n = training rows, m = rows to score, D = length of a descriptor, K = classes, G = values of C.

For each class, with labels y = 1 or -1 and rows of other labels left out, a weight vector w and an intercept b
minimise

    0.5 (|w|^2 + (b / s)^2) + C * sum over rows of weight * max(0, 1 - y (w x + b))^2

with s = `SvmSettings.intercept_scaling`. The VGG paper says "linear SVM" (Appendix B) and no more, so loss,
intercept and weights are those that LIBLINEAR and scikit-learn's `LinearSVC` take by default.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import joblib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from vggfeat.errors import ConfigError, FitError, check_choice

Loss = Literal["squared_hinge"]
ClassWeight = Literal["none", "balanced"]
Solver = Literal["liblinear"]
Progress = Callable[[int, int], None]
"""Called with the number of solved problems and the number of all."""

_CHUNK_BYTES = 1 << 27
# Below this many numbers to read (rows * length * problems) worker processes take longer to start than to help.
_PARALLEL_FROM = 1 << 27


@dataclass(frozen=True, kw_only=True)
class SvmSettings:
    """How the SVMs are fitted, except C.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    loss: Loss = "squared_hinge"
    """The only one so far; LIBLINEAR's default. The paper does not say."""
    intercept_scaling: float = 1.0
    """The constant that is appended to every descriptor; the intercept is penalised through it, less with larger
    values. LIBLINEAR's default. The paper does not say whether there was an intercept."""
    class_weight: ClassWeight = "none"
    """balanced: positives and negatives of a class weigh the same in sum, n / 2. The paper does not say."""
    tolerance: float = 1e-4
    """The solver's stopping rule, scikit-learn's default."""
    max_iterations: int = 1000
    """Passes over the data after which the solver gives up; scikit-learn's default."""
    seed: int = 0
    """Order in which the solver visits the rows; it changes results within the tolerance only."""
    jobs: int = -1
    """Worker processes; -1 = one a core. It never changes results."""
    solver: Solver = "liblinear"
    """LIBLINEAR through scikit-learn's `LinearSVC`."""

    def __post_init__(self) -> None:
        for name, kind in (("loss", Loss), ("class_weight", ClassWeight), ("solver", Solver)):
            check_choice(name, getattr(self, name), get_args(kind))
        for name in ("intercept_scaling", "tolerance", "max_iterations"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name}: expected a number above 0, found {getattr(self, name)}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed: expected 0 to 2147483647, found {self.seed}")
        if self.jobs != -1 and self.jobs < 1:
            raise ConfigError(f"jobs: expected at least 1, or -1 for one a core, found {self.jobs}")


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModel:
    """K linear functions of a descriptor."""

    coef: NDArray[np.float64]
    """(K, D)"""
    intercept: NDArray[np.float64]
    """(K,)"""
    C: NDArray[np.float64]
    """(K,) the value that each class was fitted with."""
    converged: NDArray[np.bool_]
    """(K,) False where the solver gave up before its tolerance."""

    def scores(self, descriptors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Score descriptors (m, D): signed, above 0 where the class is more likely than not; (m, K) float64.

        Raises
        ------
        FitError
            If descriptors have another length, or numbers that are not finite.
        """
        x = _check_descriptors(descriptors, "to score")
        if x.shape[1] != self.coef.shape[1]:
            raise FitError(f"descriptors to score: expected length {self.coef.shape[1]}, found {x.shape[1]}")
        return _times(x, self.coef) + self.intercept


class Sweep(NamedTuple):
    """Scores of held-out rows, for every value of C."""

    scores: NDArray[np.float64]
    """(G, K, m)"""
    converged: NDArray[np.bool_]
    """(G, K)"""


def fit_one_vs_rest(
    descriptors: NDArray[np.floating],
    labels: ArrayLike,
    C: float | ArrayLike,  # noqa: N803
    settings: SvmSettings | None = None,
    *,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> LinearModel:
    """Fit one linear SVM a class.

    Parameters
    ----------
    descriptors : (n, D) float32 or float64
    labels : (n, K) array of 1, -1 or 0
        0 = the row takes no part for this class.
    C : float or (K,) array of float
        Cost of an error, above 0; for all classes or for each.
    settings : SvmSettings, optional
    classes : K names, optional
        For messages; numbers otherwise.
    progress : callable, optional
        See `Progress`.

    Returns
    -------
    LinearModel
        A class whose solver gave up is marked in `converged`; there is no warning.

    Raises
    ------
    FitError
        If shapes don't fit, a number is not finite, or a class has no positive or no negative row.
    ConfigError
        If a C is not above 0.

    Notes
    -----
    Needs 8 n D bytes for the rows in float64, and 16 n D for each worker. Where D > n the rows are first turned into
    n dimensions, which loses nothing: then it is 8 n D + 16 n n, and 8 n n for each worker.
    """
    x, signs, _ = _check_training(descriptors, labels, classes)
    costs = np.broadcast_to(check_costs(C), signs.shape[1:])
    space = _Space.of(x)
    problems = [(k, float(cost)) for k, cost in enumerate(costs)]
    coef, intercept, converged = _solve_all(space.rows, signs, problems, settings or SvmSettings(), progress)
    return LinearModel(coef=space.back(coef), intercept=intercept, C=costs.copy(), converged=converged)


def scores_over_C(  # noqa: N802
    descriptors: NDArray[np.floating],
    labels: ArrayLike,
    held_out: NDArray[np.floating],
    grid: ArrayLike,
    settings: SvmSettings | None = None,
    *,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Fit every class with every value of C and score other rows: what a choice of C is made by.

    Parameters
    ----------
    descriptors : (n, D) float32 or float64
    labels : (n, K) array of 1, -1 or 0
        0 = the row takes no part for this class.
    held_out : (m, D) float32 or float64
        Rows to score; they take no part in the fit.
    grid : (G,) array of float
        Values of C, above 0.
    settings, classes, progress
        As for `fit_one_vs_rest`.

    Returns
    -------
    Sweep

    Raises
    ------
    FitError, ConfigError
        As `fit_one_vs_rest`.
    """
    x, signs, num_classes = _check_training(descriptors, labels, classes)
    other = _check_descriptors(held_out, "held out")
    if other.shape[1] != x.shape[1]:
        raise FitError(f"descriptors held out: expected length {x.shape[1]}, found {other.shape[1]}")
    costs = check_costs(grid)
    space = _Space.of(x)
    # Class by class, so that neighbouring problems cost about the same and the workers stay level.
    problems = [(k, float(cost)) for k in range(num_classes) for cost in costs]
    coef, intercept, converged = _solve_all(space.rows, signs, problems, settings or SvmSettings(), progress)
    scores = _times(space.into(other), coef) + intercept  # (m, K * G)
    shape = (num_classes, len(costs))
    return Sweep(scores.T.reshape(*shape, len(other)).swapaxes(0, 1), converged.reshape(shape).T)


def fittable_classes(labels: ArrayLike) -> NDArray[np.bool_]:
    """Say for labels (n, K) of 1, -1, 0 which of the K classes have both a positive and a negative row."""
    signs = np.asarray(labels)
    return (signs == 1).any(axis=0) & (signs == -1).any(axis=0)


def check_costs(C: float | ArrayLike) -> NDArray[np.float64]:  # noqa: N803
    """Return values of C as float64; ConfigError if there is none, or one is not a finite number above 0."""
    costs = np.asarray(C, dtype=np.float64)
    if not costs.size or not (np.isfinite(costs) & (costs > 0)).all():
        raise ConfigError(f"C: expected finite numbers above 0, found {costs.tolist()}")
    return costs


@dataclass(frozen=True, kw_only=True)
class _Space:
    """Training rows in coordinates in which they are short.

    n rows span at most n dimensions. With D > n, QR of the transposed rows gives an orthonormal basis of that
    span; in it the rows form a triangle of n x n numbers with the same inner products, and the best w lies in
    the span too. LIBLINEAR reads the non-zero numbers only, so a problem costs n n / 2 instead of n D.
    """

    rows: NDArray[np.float64]
    """(n, d)"""
    basis: NDArray[np.float64] | None
    """(D, d), or None where d = D."""

    @staticmethod
    def of(x: NDArray[np.floating]) -> "_Space":
        if x.shape[1] <= x.shape[0]:
            return _Space(rows=np.ascontiguousarray(x, dtype=np.float64), basis=None)
        # The transpose of a copy in C order is in LAPACK's order, so the basis takes the place of the copy.
        own = np.array(x, dtype=np.float64, order="C").T
        basis, triangle = qr(own, mode="economic", overwrite_a=True, check_finite=False)
        return _Space(rows=np.ascontiguousarray(triangle.T), basis=basis)

    def into(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        return x if self.basis is None else _times(x, self.basis.T)

    def back(self, coef: NDArray[np.float64]) -> NDArray[np.float64]:
        return coef if self.basis is None else coef @ self.basis.T


_Call = tuple[NDArray[np.float64], NDArray[np.int8], float, SvmSettings]
_Solution = tuple[NDArray[np.float64], float, bool]


def _solve_all(
    x: NDArray[np.float64],
    signs: NDArray[np.int8],
    problems: list[tuple[int, float]],
    settings: SvmSettings,
    progress: Progress | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Solve problems (class, C); coef (P, D), intercept (P,), converged (P,)."""
    calls = [(x, np.ascontiguousarray(signs[:, k]), cost, settings) for k, cost in problems]
    coef = np.empty((len(problems), x.shape[1]))
    intercept, converged = np.empty(len(problems)), np.empty(len(problems), dtype=bool)
    for done, solution in enumerate(_run(calls, settings.jobs), start=1):
        coef[done - 1], intercept[done - 1], converged[done - 1] = solution
        if progress is not None:
            progress(done, len(problems))
    return coef, intercept, converged


def _run(
    calls: list[tuple[NDArray[np.float64], NDArray[np.int8], float, SvmSettings]], jobs: int
) -> Iterable[_Solution]:
    workers = min(joblib.effective_n_jobs(jobs), len(calls))
    if workers < 2 or calls[0][0].size * len(calls) < _PARALLEL_FROM:
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


def _solve(x: NDArray[np.float64], signs: NDArray[np.int8], cost: float, settings: SvmSettings) -> _Solution:
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
            tol=settings.tolerance,
            max_iter=settings.max_iterations,
            random_state=settings.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # Rows of weight 0 are left out without a copy of the others.
            svm.fit(x, np.where(signs > 0, 1, -1), sample_weight=_row_weights(signs, settings.class_weight))
        converged = bool(svm.n_iter_ < settings.max_iterations)
        if converged:
            break
    return svm.coef_[0], float(svm.intercept_[0]), converged


def _row_weights(signs: NDArray[np.int8], class_weight: ClassWeight) -> NDArray[np.float64]:
    taking_part = np.abs(signs).astype(np.float64)
    if class_weight == "none":
        return taking_part
    positives, negatives = (signs == 1).sum(), (signs == -1).sum()
    return taking_part * (positives + negatives) / (2 * np.where(signs == 1, positives, negatives))


def _times(x: NDArray[np.floating], coef: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply (m, D) by the transpose of (P, D) in float64, a few rows at a time."""
    product = np.empty((len(x), len(coef)))
    step = max(1, _CHUNK_BYTES // (8 * x.shape[1]))
    for start in range(0, len(x), step):
        product[start : start + step] = x[start : start + step].astype(np.float64, copy=False) @ coef.T
    return product


def _check_training(
    descriptors: NDArray[np.floating], labels: ArrayLike, classes: Sequence[str] | None
) -> tuple[NDArray[np.floating], NDArray[np.int8], int]:
    x, signs = _check_descriptors(descriptors, "to train on"), np.asarray(labels)
    if signs.ndim != 2 or len(signs) != len(x) or not signs.shape[1]:
        raise FitError(f"SVM: expected labels of shape ({len(x)}, classes), found {signs.shape}")
    if classes is not None and len(classes) != signs.shape[1]:
        raise FitError(f"SVM: expected {signs.shape[1]} class names, found {len(classes)}")
    if not np.isin(signs, (1, -1, 0)).all():
        raise FitError(f"SVM: expected labels 1, -1 or 0, found {np.unique(signs)[:5].tolist()}")
    for k in np.flatnonzero(~fittable_classes(signs)).tolist():
        positives, negatives = int((signs[:, k] == 1).sum()), int((signs[:, k] == -1).sum())
        raise FitError(
            f"SVM of class {classes[k] if classes is not None else k}: expected positive and negative rows to "
            f"train on, found {positives} positive and {negatives} negative"
        )
    return x, signs.astype(np.int8), signs.shape[1]


def _check_descriptors(descriptors: NDArray[np.floating], what: str) -> NDArray[np.floating]:
    x = np.asarray(descriptors)
    if x.ndim != 2 or not x.shape[1] or not np.issubdtype(x.dtype, np.floating):
        raise FitError(f"descriptors {what}: expected numbers of shape (rows, length), found {x.dtype} {x.shape}")
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise FitError(f"descriptors {what}: expected finite numbers, found others in row {row}")
    return x
