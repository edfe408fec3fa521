"""The SVM stage of a protocol by vggfeat's solver and by scikit-learn's `LinearSVC`, on the same arrays, timed.

C is chosen by held-out rows, then all classes are fitted again. N = images, K = classes, G = values of C, P = problems
(pairs of class and C), n = rows, D = length of a descriptor.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vggfeat.benchmarks.measure import Column, Report, Say, machine
from vggfeat.benchmarks.peer import PeerForm, Solutions, fastest, objectives, peak_memory, solve, try_forms
from vggfeat.benchmarks.problems import Problem
from vggfeat.metrics import average_precision, mean_class_recall
from vggfeat.svm import Split, SvmProblemSet, SvmSettings
from vggfeat.svm.liblinear import LOST

GRID = tuple(2.0**power for power in range(-5, 7))
"""12 values of C, 1/32 to 64."""
COLUMNS = {
    "solver": Column(""),
    "choice_seconds": Column("choice s", ".2f"),
    "fit_seconds": Column("fit s", ".2f"),
    "seconds": Column("all s", ".2f"),
    "ratio": Column("ratio", ".1f"),
    "worst_gap": Column("gap", ".1e"),
    "solved": Column("solved", ".0f"),
    "converged": Column("converged", ".0f"),
    "excess": Column("objective above", "+.1e"),
    "lead": Column("below", "+.1e"),
    "same_choices": Column("same C", ".0%"),
    "memory": Column("memory GB", ".2f", 1e9),
}
NOTES = (
    "gap: the largest relative duality gap; objective: how far it is above and below vggfeat's at most, relative",
    "same C: share of the choices that agree with vggfeat's; memory: the most that was held, data included",
)


class Costs(NamedTuple):
    """vggfeat's solver with its rows, and the C that it has chosen for every class of every split."""

    solver: SvmProblemSet
    chosen: list[NDArray[np.float64]]
    """(K,) for each split."""


class Measured(NamedTuple):
    """The peer on problems of the same rows."""

    problems: int
    """All of them."""
    found: Solutions
    """Of all, or of a sample."""
    gap: NDArray[np.float64]
    """Relative duality gap of each solution."""
    excess: NDArray[np.float64]
    """Of its objective over that of vggfeat's solution of the same problem, relative."""

    @property
    def seconds(self) -> float:
        """Return those for all problems, extrapolated if need be."""
        return self.found.preparing + self.found.solving * self.problems / len(self.found.intercept)


def measure(
    problem: Problem,
    *,
    threads: int,
    device: str | None = None,
    sample: int | None = None,
    peer: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    say: Say = lambda name: None,
) -> Report:
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
    peer : bool
        Measure `LinearSVC`: in its fastest form, and in the fastest one on rows reduced by QR, where that is possible.
    clock : callable
        Seconds, for vggfeat's solver.
    say : callable

    Returns
    -------
    Report
        Rows: the solvers; `ratio` of the seconds, to vggfeat's.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(threads):
        say("vggfeat")
        costs, own = run_own(problem, SvmSettings(device=device), clock)
        rows, forms = [own], []
        if peer:
            say("LinearSVC: which form is the fastest")
            forms = try_forms(*_middling_class(problem))
        for form in [fastest(forms, reduced=reduced) for reduced in (False, True)]:
            if form is not None:
                say(f"LinearSVC, {form}")
                row = run_peer(problem, costs, form, threads, sample)
                rows.append(row | {"ratio": row["seconds"] / own["seconds"]})
    trial = ", ".join(f"{one.form} {one.seconds:.2f} s" for one in forms)
    count, length = problem.descriptors.shape
    return Report(
        name="svm",
        settings={
            "task": problem.size.note, "rows": count, "length": length, "classes": problem.labels.shape[1],
            "values_of_C": len(GRID), "splits": len(problem.splits),
        },
        machine=machine(torch.device(device or "cpu"), threads),
        columns=COLUMNS,
        rows=rows,
        notes=[
            *NOTES,
            *(
                f"{row['solver']}: {row['solved']} of {row['problems']} problems solved, seconds extrapolated"
                for row in rows if row["solved"] < row["problems"]
            ),
            *([f"LinearSVC on one class, three values of C: {trial}"] if forms else []),
        ],
    )  # fmt: skip


def run_own(problem: Problem, settings: SvmSettings, clock: Callable[[], float]) -> tuple[Costs, dict[str, Any]]:
    """Time vggfeat's solver; the gap of its choice of C, whose weights are not kept, is what the solver says."""
    SvmProblemSet(np.eye(4, 3), settings).fit(np.arange(4), [[1], [1], [-1], [-1]], 1.0)  # warm-up
    labels, splits = problem.labels, problem.splits
    begun = clock()
    solver = SvmProblemSet(problem.descriptors, settings)
    sweeps = solver.sweep([Split(rows=one.fit, labels=labels[one.fit], held_out=one.held_out) for one in splits], GRID)
    solved = clock()
    chosen = [choose(problem, split.held_out, sweep.scores) for split, sweep in zip(splits, sweeps, strict=True)]
    refitted = clock()
    models = [solver.fit(split.refit, labels[split.refit], cost) for split, cost in zip(splits, chosen, strict=True)]
    ended = clock()
    gaps = [
        objectives(problem.descriptors[split.refit], labels[split.refit], cost, model.coef, model.intercept)[1]
        for split, cost, model in zip(splits, chosen, models, strict=True)
    ]
    converged = [sweep.converged for sweep in sweeps] + [model.converged for model in models]
    count = sum(one.size for one in converged)
    return Costs(solver, chosen), {
        "solver": f"vggfeat, newton, {settings.device or 'CPU'}",
        "choice_seconds": solved - begun,
        "fit_seconds": ended - refitted,
        "seconds": solved - begun + ended - refitted,
        "worst_gap": float(max(one.max() for one in (*gaps, *(sweep.gap for sweep in sweeps)))),
        "problems": count,
        "solved": count,
        "converged": int(sum(one.sum() for one in converged)),
        "memory": peak_memory(),
    }


def run_peer(problem: Problem, costs: Costs, form: PeerForm, threads: int, sample: int | None) -> dict[str, Any]:
    """Time the peer, with every last fit at the C that vggfeat's solver has chosen for its class."""
    classes = np.arange(problem.labels.shape[1])
    grid = np.repeat(GRID, len(classes))

    def solved(rows: NDArray[np.int64], classes: NDArray[np.int64], values: NDArray[np.float64]) -> Measured:
        if sample is None or sample >= len(values):
            return _solve(problem, costs.solver, rows, classes, values, form, threads)
        spread = np.linspace(0, len(values) - 1, sample).round().astype(np.int64)
        some = _solve(problem, costs.solver, rows, classes[spread], values[spread], form, threads)
        return some._replace(problems=len(values))

    choices = [solved(split.fit, np.tile(classes, len(GRID)), grid) for split in problem.splits]
    fits = [solved(one.refit, classes, chosen) for one, chosen in zip(problem.splits, costs.chosen, strict=True)]
    measured = choices + fits
    seconds = [sum(one.seconds for one in stage) for stage in (choices, fits)]
    return {
        "solver": f"LinearSVC, {form}",
        "choice_seconds": seconds[0],
        "fit_seconds": seconds[1],
        "seconds": sum(seconds),
        "worst_gap": float(max(one.gap.max() for one in measured)),
        "problems": sum(one.problems for one in measured),
        "solved": sum(len(one.gap) for one in measured),
        "converged": int(sum((one.found.converged & (one.gap < LOST)).sum() for one in measured)),
        "excess": float(max(one.excess.max() for one in measured)),
        "lead": float(min(one.excess.min() for one in measured)),
        "same_choices": _same_choices(problem, costs, choices) if sample is None else None,
        "memory": max(one.found.memory for one in measured) or peak_memory(),
    }


def _solve(
    problem: Problem,
    solver: SvmProblemSet,
    rows: NDArray[np.int64],
    classes: NDArray[np.int64],
    costs: NDArray[np.float64],
    form: PeerForm,
    threads: int,
) -> Measured:
    """Solve P problems, classes (P,) at costs (P,), by the peer, and compare with vggfeat's solver."""
    x, signs = problem.descriptors[rows], problem.labels[rows][:, classes]
    found = solve(x, signs, costs, form, threads)
    theirs, gap = objectives(x, signs, costs, found.coef, found.intercept)
    model = solver.fit(rows, signs, costs)
    ours, _ = objectives(x, signs, costs, model.coef, model.intercept)
    return Measured(len(costs), found, gap, theirs / ours - 1)


def _middling_class(problem: Problem) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return the rows of the first choice of C, and the signs of the class of middling frequency."""
    rows = problem.splits[0].fit
    middle = int(np.argsort((problem.labels == 1).sum(axis=0))[problem.labels.shape[1] // 2])
    return problem.descriptors[rows], problem.labels[rows, middle]


def _same_choices(problem: Problem, costs: Costs, choices: Sequence[Measured]) -> float:
    """Return the share of the choices of C that the peer makes as vggfeat's solver does."""
    same = []
    for split, chosen, one in zip(problem.splits, costs.chosen, choices, strict=True):
        held_out = problem.descriptors[split.held_out].astype(np.float64)
        scores = held_out @ one.found.coef.T + one.found.intercept  # (m, G * K)
        theirs = choose(problem, split.held_out, scores.T.reshape(len(GRID), -1, len(held_out)))
        same.append(theirs == chosen)
    return float(np.mean(same))


def choose(problem: Problem, held_out: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose C by scores (G, K, m) as the protocols do, the smallest of the best: (K,)."""
    truth = problem.labels[held_out]
    if problem.size.single:
        numbers = truth.argmax(axis=1)
        curve = [[mean_class_recall(numbers, line.argmax(axis=0), len(line))] * len(line) for line in scores]
    else:
        curve = [[average_precision(truth[:, k], line[k]) for k in range(len(line))] for line in scores]
    return np.array(GRID)[np.round(curve, 12).argmax(axis=0)]
