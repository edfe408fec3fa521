"""What SVM solvers are measured on, and others at their best: the form that suits a table, problems in parallel.

Descriptors are made up at the sizes of the paper's tasks. Like those of photographs, they are not negative, of unit
length, correlated (all of them are seen through a few hundred hidden properties), and tell the classes with errors; and
some classes are far more frequent than others. scikit-learn's `LinearSVC` and snapml solve vggfeat's problem,
scikit-learn's `SVC` another one.

N = images, n = rows, D = length of a descriptor, K = classes, P = problems (pairs of class and C).
"""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC, LinearSVC

from vggfeat.descriptors import l2_normalise
from vggfeat.errors import ConfigError
from vggfeat.runtime.system import peak_memory
from vggfeat.svm.liblinear import shorten

HIDDEN = 256
"""Properties behind the features."""
SHARES_OF_VOC = (0.40, 0.14, 0.11, 0.10, *np.linspace(0.09, 0.04, 16).tolist())
"""Part of the images that show a class: VOC-2007's most frequent one (person) is in 40 %, most are in some 5 %."""


class TaskSplit(NamedTuple):
    """Rows for a choice of C and a fit."""

    fit: NDArray[np.int64]
    """Rows to train on when C is chosen."""
    held_out: NDArray[np.int64]
    """Rows to measure on then."""
    refit: NDArray[np.int64]
    """Rows to train on with the chosen C."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a problem is."""

    note: str
    """What is behind the numbers of rows."""
    classes: int
    """K."""
    images: int
    """Multi-label: all; single-label: of each class."""
    blocks: int = 1
    """D / channels: nets times stacked scales."""
    averaged: int = 1
    """Scales that are averaged in each block."""
    channels: int = 4096
    splits: int = 1
    training: int = 0
    """Single-label: images of a class in a split's training part, of which a fifth is held out. 0: multi-label."""
    strength: float = 0.5
    """Strength of the classes' signal, against what else images differ by."""
    sample: int | None = None
    """How many problems of each stage the peer solves by default; None = all."""

    @property
    def single(self) -> bool:
        """Say whether an image has one class; then one C serves all classes."""
        return self.training > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a protocol gives to the solver."""

    size: Size
    seed: int
    descriptors: NDArray[np.float32]
    """(N, D)"""
    labels: NDArray[np.int8]
    """(N, K) of 1 and -1."""
    splits: tuple[TaskSplit, ...]


SIZES = {
    "tiny": Size(note="for trials of the command itself", classes=5, images=200, averaged=2, channels=64),
    "voc": Size(
        note="VOC-2007: C on train (2501) and val (2510), refit on both", classes=20, images=5011, averaged=5,
        strength=0.3,
    ),
    "caltech101": Size(
        note="Caltech-101: 3 splits of 30 training images a class, a fifth of them held out for C", classes=102,
        images=60, blocks=3, splits=3, training=30, sample=24,
    ),
    "caltech256": Size(
        note="Caltech-256, two nets: 3 splits of 60 training images a class, a fifth held out for C", classes=257,
        images=64, blocks=6, splits=3, training=60, sample=24,
    ),
    "caltech256-part": Size(
        note="a part of Caltech-256, two nets: 64 of its 257 classes, 1 of its 3 splits", classes=64, images=64,
        blocks=6, training=60, strength=0.4, sample=24,
    ),
}  # fmt: skip


def make_problem(name: str, seed: int = 0) -> Problem:
    """Make one of `SIZES`.

    Raises ConfigError if there is no such size.
    """
    if name not in SIZES:
        raise ConfigError(f"size: expected one of {', '.join(SIZES)}, found {name!r}")
    size, rng = SIZES[name], np.random.default_rng(seed)
    if size.single:
        numbers = np.repeat(np.arange(size.classes), size.images)
        labels = np.where(np.eye(size.classes)[numbers] == 1, 1, -1).astype(np.int8)
        splits = tuple(_draw_split(size, rng) for _ in range(size.splits))
    else:
        shares = np.resize(SHARES_OF_VOC, size.classes)
        labels = np.where(rng.random((size.images, size.classes)) < shares, 1, -1).astype(np.int8)
        half, rows = size.images // 2, np.arange(size.images)
        splits = (TaskSplit(rows[:half], rows[half:], rows),)
    descriptors = make_descriptors(labels, size, rng)
    return Problem(size=size, seed=seed, descriptors=descriptors, labels=labels, splits=splits)


def make_descriptors(labels: NDArray[np.int8], size: Size, rng: np.random.Generator) -> NDArray[np.float32]:
    """Make descriptors (N, D) of images with labels (N, K), as the features of a layer after its ReLU are joined."""
    spread = (1 + np.arange(HIDDEN, dtype=np.float32)) ** -0.5  # A few properties count more than most.
    meaning = rng.standard_normal((size.classes, HIDDEN), dtype=np.float32)
    hidden = rng.standard_normal((len(labels), HIDDEN), dtype=np.float32) * spread
    hidden += size.strength * (labels == 1).astype(np.float32) @ meaning * spread
    blocks = [_block(hidden, size, rng) for _ in range(size.blocks)]
    return l2_normalise(np.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0])


def _block(hidden: NDArray[np.float32], size: Size, rng: np.random.Generator) -> NDArray[np.float32]:
    weights = rng.standard_normal((HIDDEN, size.channels), dtype=np.float32) * (2 / HIDDEN**0.5)
    seen = hidden @ weights
    seen -= seen.std()  # Before the average some 15 % of the values are above 0.
    total = np.zeros_like(seen)
    for _ in range(size.averaged):
        total += np.maximum(seen + rng.standard_normal(seen.shape, dtype=np.float32) * seen.std(), 0)
    return total / size.averaged


def _draw_split(size: Size, rng: np.random.Generator) -> TaskSplit:
    first = np.arange(size.classes)[:, None] * size.images
    chosen = first + np.argsort(rng.random((size.classes, size.images)), axis=1)[:, : size.training]
    held = size.training // 5
    fit, held_out = np.sort(chosen[:, held:].ravel()), np.sort(chosen[:, :held].ravel())
    return TaskSplit(fit, held_out, np.union1d(fit, held_out))


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
