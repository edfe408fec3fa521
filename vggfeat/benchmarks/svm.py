"""The SVM stage of a protocol by vggfeat's solver and by scikit-learn's `LinearSVC`, on the same arrays, timed.

N = images, K = classes, G = values of C, P = problems (pairs of class and C), n = rows.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.benchmarks.features import Problem
from vggfeat.benchmarks.peer import PeerForm, Solutions, Tried, fastest, objectives, peak_memory, solve, try_forms
from vggfeat.metrics import average_precision, class_recall
from vggfeat.svm import Split, SvmProblemSet, SvmSettings
from vggfeat.svm.liblinear import LOST

GRID = tuple(2.0**power for power in range(-5, 7))
"""12 values of C, 1/32 to 64."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One solver on the choice of C and the last fits of all splits."""

    solver: str
    choice_seconds: float
    fit_seconds: float
    solved: int
    """Problems that were really solved; if they are fewer, the seconds are extrapolated from them."""
    problems: int
    worst_gap: float
    """The largest relative duality gap of those solved: computed here from weights and rows, except for vggfeat's
    choice of C, whose weights are not kept: there it is what the solver says."""
    converged: int
    """How many of those solved reached the tolerance of the solver, each of its own kind, and have a gap below 0.5."""
    memory: int
    """Peak resident bytes, of all its processes together; the data are within."""
    excess: float | None = None
    """Largest excess of an objective over that of vggfeat's solver on the same problem, relative; below 0 if none."""
    lead: float | None = None
    """Largest excess of vggfeat's solver over this one."""
    same_choices: int | None = None
    """Choices of C that agree with those by vggfeat's solver; None if not every problem was solved."""
    choices: int = 0
    """How many choices of C there are: one a class, or one a split."""

    @property
    def total_seconds(self) -> float:
        """Choice and last fits."""
        return self.choice_seconds + self.fit_seconds


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that was measured on one problem."""

    size: str
    note: str
    shape: tuple[int, int]
    classes: int
    grid: tuple[float, ...]
    splits: int
    threads: int
    device: str
    tried: tuple[Tried, ...]
    """Forms of the peer on one class, to find the fastest."""
    own: Timing
    peers: tuple[Timing, ...]
    """`LinearSVC` in its fastest form; and in the fastest one on rows reduced by QR, where that is possible."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times longer each peer takes in all."""
        return tuple(peer.total_seconds / self.own.total_seconds for peer in self.peers)

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        tried = [{"form": str(one.form), "seconds": one.seconds, "objective": one.objective} for one in self.tried]
        versions = {name: version(name) for name in ("vggfeat", "numpy", "scikit-learn", "torch")}
        return {
            "format": "vggfeat-bench-svm",
            "version": 1,
            **asdict(self),
            "tried": tried,
            "total_seconds": [one.total_seconds for one in (self.own, *self.peers)],
            "ratios": list(self.ratios),
            "versions": versions,
        }


class _Measured(NamedTuple):
    """The peer on problems of the same rows."""

    problems: int
    """All of them."""
    found: Solutions
    """Of all, or of a sample."""
    seconds: float
    """For all, extrapolated if need be."""
    gap: NDArray[np.float64]
    """Relative duality gap of each solution."""
    theirs: NDArray[np.float64]
    """Objective of each solution."""
    ours: NDArray[np.float64]
    """Objective of vggfeat's solution of the same problem."""


def compare(
    problem: Problem,
    *,
    threads: int,
    device: str | None = None,
    sample: int | None = None,
    alone: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Measure both solvers.

    Parameters
    ----------
    problem : Problem
    threads : int
        Cores that either may use.
    device : str, optional
        Of vggfeat's solver, as in `SvmSettings`. The peer always runs on the CPU.
    sample : int, optional
        How many problems of each stage the peer solves, spread over classes and C; its seconds are extrapolated.
        None = all.
    alone : bool, optional
        Leave the peer out.
    clock : callable, optional
        Seconds, for vggfeat's solver.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(threads):
        solver, costs, own = _run_own(problem, SvmSettings(device=device), clock)
        tried = [] if alone else _try_peer(problem)
        forms = [form for reduced in (False, True) if (form := fastest(tried, reduced=reduced)) is not None]
        peers = tuple(_run_peer(problem, solver, costs, form, threads, sample) for form in forms)
    return Comparison(
        size=problem.name,
        note=problem.note,
        shape=problem.descriptors.shape,
        classes=problem.labels.shape[1],
        grid=GRID,
        splits=len(problem.splits),
        threads=threads,
        device=device or "cpu (NumPy)",
        tried=tuple(tried),
        own=own,
        peers=peers,
    )


def _try_peer(problem: Problem) -> list[Tried]:
    """Try the forms of the peer on the class of middling frequency."""
    first = problem.splits[0].fit
    middle = int(np.argsort((problem.labels == 1).sum(axis=0))[problem.labels.shape[1] // 2])
    return try_forms(problem.descriptors[first], problem.labels[first, middle])


def _run_own(
    problem: Problem, settings: SvmSettings, clock: Callable[[], float]
) -> tuple[SvmProblemSet, list[NDArray[np.float64]], Timing]:
    """Time vggfeat's solver; return it, and C (K,) as chosen for each split."""
    SvmProblemSet(np.eye(4, 3), settings).fit(np.arange(4), [[1], [1], [-1], [-1]], 1.0)  # warm-up
    labels, splits = problem.labels, problem.splits
    begun = clock()
    solver = SvmProblemSet(problem.descriptors, settings)
    sweeps = solver.sweep(
        [Split(rows=split.fit, labels=labels[split.fit], held_out=split.held_out) for split in splits], GRID
    )
    solved = clock()
    costs = [_choose(problem, split.held_out, sweep.scores) for split, sweep in zip(splits, sweeps, strict=True)]
    chosen = clock()
    models = [solver.fit(split.refit, labels[split.refit], cost) for split, cost in zip(splits, costs, strict=True)]
    ended = clock()
    checked = [
        objectives(problem.descriptors[split.refit], labels[split.refit], cost, model.coef, model.intercept)[1].max()
        for split, cost, model in zip(splits, costs, models, strict=True)
    ]
    count = sum(sweep.gap.size for sweep in sweeps) + sum(len(model.gap) for model in models)
    timing = Timing(
        solver=f"vggfeat, newton, {settings.device or 'CPU'}",
        choice_seconds=solved - begun,
        fit_seconds=ended - chosen,
        solved=count,
        problems=count,
        worst_gap=float(max(*checked, *(sweep.gap.max() for sweep in sweeps))),
        converged=int(sum(sweep.converged.sum() for sweep in sweeps) + sum(model.converged.sum() for model in models)),
        memory=peak_memory(),
    )
    return solver, costs, timing


def _run_peer(
    problem: Problem,
    solver: SvmProblemSet,
    costs: list[NDArray[np.float64]],
    form: PeerForm,
    threads: int,
    sample: int | None,
) -> Timing:
    """Time the peer, with every last fit at the C that vggfeat's solver has chosen for its class."""
    classes = np.arange(problem.labels.shape[1])
    tiled, grid = np.tile(classes, len(GRID)), np.repeat(GRID, len(classes))
    choices, fits, same = [], [], []
    for split, chosen in zip(problem.splits, costs, strict=True):
        choices.append(_measure(problem, solver, split.fit, tiled, grid, form, threads, sample))
        fits.append(_measure(problem, solver, split.refit, classes, chosen, form, threads, sample))
        if len(choices[-1].found.intercept) == len(grid):
            theirs = _choose(problem, split.held_out, _grid_scores(problem, split.held_out, choices[-1].found))
            same.append(int((theirs == chosen)[: 1 if problem.single else None].sum()))
    measured = choices + fits
    return Timing(
        solver=f"LinearSVC, {form}",
        choice_seconds=sum(one.seconds for one in choices),
        fit_seconds=sum(one.seconds for one in fits),
        solved=sum(len(one.found.intercept) for one in measured),
        problems=sum(one.problems for one in measured),
        worst_gap=float(max(one.gap.max() for one in measured)),
        converged=int(sum((one.found.converged & (one.gap < LOST)).sum() for one in measured)),
        memory=max(one.found.memory for one in measured) or peak_memory(),
        excess=float(max((one.theirs / one.ours - 1).max() for one in measured)),
        lead=float(max((one.ours / one.theirs - 1).max() for one in measured)),
        same_choices=sum(same) if len(same) == len(costs) else None,
        choices=len(costs) * (1 if problem.single else len(classes)),
    )


def _measure(
    problem: Problem,
    solver: SvmProblemSet,
    rows: NDArray[np.int64],
    classes: NDArray[np.int64],
    costs: NDArray[np.float64],
    form: PeerForm,
    threads: int,
    sample: int | None,
) -> _Measured:
    """Solve P problems, classes (P,) at costs (P,), or a sample that is spread over all classes and values of C."""
    count = len(costs)
    if sample is not None and sample < count:
        spread = np.linspace(0, count - 1, sample).round().astype(np.int64)
        classes, costs = classes[spread], costs[spread]
    x, signs = problem.descriptors[rows], problem.labels[rows][:, classes]
    found = solve(x, signs, costs, form, threads)
    theirs, gap = objectives(x, signs, costs, found.coef, found.intercept)
    model = solver.fit(rows, signs, costs)
    ours, _ = objectives(x, signs, costs, model.coef, model.intercept)
    return _Measured(count, found, found.preparing + found.solving * count / len(costs), gap, theirs, ours)


def _grid_scores(problem: Problem, held_out: NDArray[np.int64], found: Solutions) -> NDArray[np.float64]:
    """Score held-out rows (m,) by solutions for every value of C and class, (G, K, m)."""
    scores = problem.descriptors[held_out].astype(np.float64) @ found.coef.T + found.intercept
    return scores.T.reshape(len(GRID), -1, len(held_out))


def _choose(problem: Problem, held_out: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose C by scores (G, K, m) as the protocols do, the smallest of the best: (K,)."""
    truth = problem.labels[held_out]
    if problem.single:
        numbers = (truth == 1).argmax(axis=1)
        recalls = [class_recall(numbers, line.argmax(axis=0), len(line)).mean() for line in scores]
        return np.full(truth.shape[1], GRID[int(np.argmax(np.round(recalls, 12)))])
    curve = [[average_precision(truth[:, k], line[k]) for k in range(len(line))] for line in scores]
    return np.array(GRID)[np.round(curve, 12).argmax(axis=0)]
