"""The SVM stage of a protocol by vggfeat's solver and by others, on the same arrays, timed; and the streaming solver.

C is chosen by held-out rows, then all classes are fitted again. The streaming solver has made-up descriptors on the
disk, and the one in memory gets the same rows. N = images, K = classes, G = values of C, P = problems (pairs of class
and C), n = rows, D = length of a descriptor.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.benchmarks.measure import Column, Report, Say, machine
from vggfeat.benchmarks.peer import (
    HIDDEN,
    SAME_PROBLEM,
    SHARES_OF_VOC,
    Form,
    PeerForm,
    Problem,
    Solutions,
    Trial,
    fastest,
    objectives,
    other_forms,
    solve,
    try_forms,
)
from vggfeat.descriptors import l2_normalise
from vggfeat.metrics import average_precision, mean_class_recall
from vggfeat.runtime.system import peak_memory
from vggfeat.svm import Split, SvmProblemSet, SvmSettings
from vggfeat.svm import solve as solving
from vggfeat.svm.blocks import Blocks, equal_blocks
from vggfeat.svm.liblinear import LOST

GRID = tuple(2.0**power for power in range(-5, 7))
"""12 values of C, 1/32 to 64."""
COLUMNS = {
    "solver": Column(""),
    "solves": Column("problem"),
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
NOTE = "gap: the largest relative duality gap; memory: the most that was held, data included"
PEER_NOTE = (
    "objective: how far it is above and below vggfeat's at most, relative; same C: share of choices that are vggfeat's"
)


class Measured(NamedTuple):
    """The peer on problems of the same rows."""

    seconds: float
    """Seconds for all problems, extrapolated if need be."""
    problems: int
    """All of them."""
    found: Solutions
    """Solutions of all problems, or of a sample."""
    gap: NDArray[np.float64] | None
    """Relative duality gap of each solution; None of another problem than vggfeat's."""
    excess: NDArray[np.float64] | None
    """Excess of its objective over that of vggfeat's solution of the same problem, relative."""

    def solved(self) -> int:
        """Count the solutions that are what the solver promises."""
        good = self.found.converged
        return int((good if self.gap is None else good & (self.gap < LOST)).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Peer:
    """Another solver, to be compared with vggfeat's on the same rows."""

    problem: Problem
    solver: SvmProblemSet
    form: Form
    threads: int
    sample: int | None
    """How many problems of each stage are solved, spread over classes and C; None = all."""

    def solve(self, rows: NDArray[np.int64], classes: NDArray[np.int64], costs: NDArray[np.float64]) -> Measured:
        """Solve P problems, classes (P,) at costs (P,), or a sample of them."""
        count = len(costs)
        if self.sample is not None and self.sample < count:
            spread = np.linspace(0, count - 1, self.sample).round().astype(np.int64)
            classes, costs = classes[spread], costs[spread]
        x, signs = self.problem.descriptors[rows], self.problem.labels[rows][:, classes]
        found = solve(x, signs, costs, self.form, self.threads)
        seconds = found.preparing + found.solving * count / len(costs)
        if self.form.solves != SAME_PROBLEM:
            return Measured(seconds, count, found, None, None)
        theirs, gap = objectives(x, signs, costs, found.coef, found.intercept)
        model = self.solver.fit(rows, signs, costs)
        ours, _ = objectives(x, signs, costs, model.coef, model.intercept)
        return Measured(seconds, count, found, gap, theirs / ours - 1)

    def row(self, chosen: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
        """Solve all stages, every last fit at the C (K,) that vggfeat's solver has chosen for the split."""
        splits, classes = self.problem.splits, np.arange(self.problem.labels.shape[1])
        tiled, grid = np.tile(classes, len(GRID)), np.repeat(GRID, len(classes))
        choices = [self.solve(split.fit, tiled, grid) for split in splits]
        fits = [self.solve(split.refit, classes, costs) for split, costs in zip(splits, chosen, strict=True)]
        measured = choices + fits
        choice_seconds, fit_seconds = (sum(one.seconds for one in stage) for stage in (choices, fits))
        gaps = [one.gap for one in measured if one.gap is not None]
        excess = [one.excess for one in measured if one.excess is not None]
        return {
            "solver": str(self.form),
            "solves": self.form.solves,
            "choice_seconds": choice_seconds,
            "fit_seconds": fit_seconds,
            "seconds": choice_seconds + fit_seconds,
            "worst_gap": float(np.concatenate(gaps).max()) if gaps else None,
            "problems": sum(one.problems for one in measured),
            "solved": sum(len(one.found.converged) for one in measured),
            "converged": sum(one.solved() for one in measured),
            "excess": float(np.concatenate(excess).max()) if excess else None,
            "lead": float(np.concatenate(excess).min()) if excess else None,
            "same_choices": self._same_choices(choices, chosen) if gaps else None,
            "memory": max(one.found.memory for one in measured) or peak_memory(),
        }

    def _same_choices(self, choices: Sequence[Measured], chosen: Sequence[NDArray[np.float64]]) -> float | None:
        """Return the share of the choices of C that are vggfeat's; None if not every problem was solved."""
        same = []
        for split, one, ours in zip(self.problem.splits, choices, chosen, strict=True):
            if len(one.found.converged) < one.problems:
                return None
            held_out = self.problem.descriptors[split.held_out].astype(np.float64)
            scores = held_out @ one.found.coef.T + one.found.intercept  # (m, G * K)
            theirs = choose(self.problem, split.held_out, scores.T.reshape(len(GRID), -1, len(held_out)))
            same.append(theirs == ours)
        return float(np.mean(same))


def measure(
    problem: Problem,
    *,
    threads: int,
    device: str | None = None,
    sample: int | None = None,
    peer: bool = True,
    say: Say = lambda name: None,
) -> Report:
    """Measure vggfeat's solver and others.

    `threads`: cores that each may use. `device`: of vggfeat's solver, as in `SvmSettings`. Others always run on the
    CPU. `sample`: how many problems of each stage the others solve, spread over classes and C; their seconds are
    extrapolated. By default those of the size. `peer`: measure `LinearSVC`, in its fastest form, and in the fastest one
    on rows reduced by QR, where that is possible; `SVC` on inner products, which solves another problem; and snapml,
    where it is installed. Rows of the report: the solvers; `ratio` of the seconds, to vggfeat's.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(threads):
        say("vggfeat")
        solver, chosen, own = run_own(problem, SvmSettings(device=device))
        rows, tried, forms = [own], dict[PeerForm, Trial](), list[Form]()
        if peer:
            say("LinearSVC: which form is the fastest")
            tried = try_forms(*_middling_class(problem))
            forms = [*filter(None, (fastest(tried, reduced=reduced) for reduced in (False, True))), *other_forms()]
        for form in forms:
            say(str(form))
            row = Peer(
                problem=problem, solver=solver, form=form, threads=threads, sample=sample or problem.size.sample
            ).row(chosen)
            rows.append(row | {"ratio": row["seconds"] / own["seconds"]})
    trial = {str(form): one.seconds for form, one in tried.items()}
    listed = "; ".join(f"{name} {value:.2f}" for name, value in trial.items())
    count, length = problem.descriptors.shape
    return Report(
        name="svm",
        settings={
            "task": problem.size.note, "rows": count, "length": length, "classes": problem.labels.shape[1],
            "values_of_C": len(GRID), "splits": len(problem.splits),
            "seed": problem.seed,
        },
        machine=machine(device or "cpu", threads),
        columns=COLUMNS,
        rows=rows,
        figures={"trial_seconds": trial},
        notes=[
            NOTE,
            *([PEER_NOTE] if peer else []),
            *(
                f"{row['solver']}: {row['solved']} of {row['problems']} problems solved, seconds extrapolated"
                for row in rows if row["solved"] < row["problems"]
            ),
            *([f"one class, three values of C, s: {listed}"] if trial else []),
        ],
    )  # fmt: skip


def run_own(problem: Problem, settings: SvmSettings) -> tuple[SvmProblemSet, list[NDArray[np.float64]], dict[str, Any]]:
    """Time vggfeat's solver; return it, the C (K,) that it has chosen for each split, and its row.

    The gap of its choice of C, whose weights are not kept, is what the solver says.
    """
    SvmProblemSet(np.eye(4, 3), settings).fit(np.arange(4), [[1], [1], [-1], [-1]], 1.0)  # warm-up
    labels, splits = problem.labels, problem.splits
    begun = time.perf_counter()
    solver = SvmProblemSet(problem.descriptors, settings)
    sweeps = solver.sweep([Split(rows=one.fit, labels=labels[one.fit], held_out=one.held_out) for one in splits], GRID)
    solved = time.perf_counter()
    chosen = [choose(problem, split.held_out, sweep.scores) for split, sweep in zip(splits, sweeps, strict=True)]
    refitted = time.perf_counter()
    models = [solver.fit(split.refit, labels[split.refit], cost) for split, cost in zip(splits, chosen, strict=True)]
    ended = time.perf_counter()
    gaps = [
        objectives(problem.descriptors[split.refit], labels[split.refit], cost, model.coef, model.intercept)[1]
        for split, cost, model in zip(splits, chosen, models, strict=True)
    ]
    converged = [sweep.converged for sweep in sweeps] + [model.converged for model in models]
    count = sum(one.size for one in converged)
    return (
        solver,
        chosen,
        {
            "solver": f"vggfeat, newton, {settings.device or 'CPU'}",
            "solves": SAME_PROBLEM,
            "choice_seconds": solved - begun,
            "fit_seconds": ended - refitted,
            "seconds": solved - begun + ended - refitted,
            "worst_gap": float(max(one.max() for one in (*gaps, *(sweep.gap for sweep in sweeps)))),
            "problems": count,
            "solved": count,
            "converged": int(sum(one.sum() for one in converged)),
            "memory": peak_memory(),
        },
    )


def _middling_class(problem: Problem) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return the rows of the first choice of C, and the signs of the class of middling frequency."""
    rows = problem.splits[0].fit
    middle = int(np.argsort((problem.labels == 1).sum(axis=0))[problem.labels.shape[1] // 2])
    return problem.descriptors[rows], problem.labels[rows, middle]


def choose(problem: Problem, held_out: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose C by scores (G, K, m) as the protocols do, the smallest of the best: (K,)."""
    truth = problem.labels[held_out]
    if problem.size.single:
        numbers = truth.argmax(axis=1)
        curve = [[mean_class_recall(numbers, line.argmax(axis=0), len(line))] * len(line) for line in scores]
    else:
        curve = [[average_precision(truth[:, k], line[k]) for k in range(len(line))] for line in scores]
    return np.array(GRID)[np.round(curve, 12).argmax(axis=0)]


COSTS = (0.0625, 0.25, 1.0, 4.0, 16.0)
CLASSES, STRENGTH = len(SHARES_OF_VOC), 0.3
AT_A_TIME = 4096
"""Rows that are made."""
STREAM_COLUMNS = {
    "solver": COLUMNS["solver"],
    "seconds": Column("s", ".0f"),
    "cpu_seconds": Column("CPU s", ".0f"),
    "passes": Column("passes", ".0f"),
    **{name: COLUMNS[name] for name in ("worst_gap", "solved", "converged", "excess", "lead", "memory")},
}
STREAM_NOTES = (
    "gap: the largest relative duality gap; memory: the most that was held up to then",
    "objective: how far it is above and below that of the streaming solver at most, relative",
)


def measure_stream(
    rows: int, length: int, *, threads: int, seed: int = 0, peer: bool = True, say: Say = lambda name: None
) -> Report:
    """Solve all classes for all of `COSTS` on rows in a file of float16, which is removed in the end.

    `rows` and `length`: N, D. `threads`: of the streaming solver and of the BLAS. `seed`: of the descriptors. `peer`:
    solve the same in memory as well, which takes 24 N D bytes.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads), tempfile.TemporaryFile() as file:
        say("making descriptors")
        labels = write_rows(file, rows, length, seed)
        blocks = stored_blocks(file, (rows, length))
        say("stream")
        streamed, row = _solve_stored(blocks, labels, SvmSettings(solver="stream", jobs=threads))
        found = [row]
        if peer:
            say("newton")
            x = np.concatenate([blocks.read(number) for number in range(len(blocks.ends))]).astype(np.float32)
            held, row = _solve_stored(x, labels, SvmSettings())
            ratios = [_objectives(x, labels, held, g) / _objectives(x, labels, streamed, g) for g in range(len(COSTS))]
            found.append(row | {"excess": float(np.max(ratios)) - 1, "lead": float(np.min(ratios)) - 1})
    return Report(
        name="svm",
        settings={
            "task": "all rows", "rows": rows, "length": length, "classes": CLASSES, "values_of_C": list(COSTS),
            "stored": "float16", "seed": seed,
        },
        machine=machine("cpu", threads),
        columns=STREAM_COLUMNS,
        rows=found,
        notes=STREAM_NOTES if peer else STREAM_NOTES[:1],
    )  # fmt: skip


def write_rows(file: BinaryIO, rows: int, length: int, seed: int) -> NDArray[np.int8]:
    """Write descriptors like those of `benchmarks.peer.make_descriptors` as float16; return their labels (N, K)."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((rows, CLASSES)) < SHARES_OF_VOC, 1, -1).astype(np.int8)
    spread = (1 + np.arange(HIDDEN, dtype=np.float32)) ** -0.5
    meaning = rng.standard_normal((CLASSES, HIDDEN), dtype=np.float32)
    weights = rng.standard_normal((HIDDEN, length), dtype=np.float32) * (2 / HIDDEN**0.5)
    for start in range(0, rows, AT_A_TIME):
        part = labels[start : start + AT_A_TIME]
        hidden = rng.standard_normal((len(part), HIDDEN), dtype=np.float32) * spread
        seen = (hidden + STRENGTH * (part == 1).astype(np.float32) @ meaning * spread) @ weights
        deviation = seen.std()
        noise = rng.standard_normal(seen.shape, dtype=np.float32) * deviation
        file.write(l2_normalise(np.maximum(seen + noise - deviation, 0)).astype(np.float16).data)
    file.flush()
    return labels


def stored_blocks(file: BinaryIO, shape: tuple[int, int]) -> Blocks:
    """Return the blocks of rows (N, D) that a file holds as float16."""

    def read(start: int, stop: int) -> NDArray[np.float16]:
        at, size = 2 * start * shape[1], 2 * (stop - start) * shape[1]
        return np.frombuffer(os.pread(file.fileno(), size, at), dtype=np.float16).reshape(-1, shape[1])

    return equal_blocks(shape, read)


def _solve_stored(x: Any, labels: NDArray[np.int8], settings: SvmSettings) -> tuple[solving.Solutions, dict[str, Any]]:
    """Solve all classes for all of `COSTS`; return what was found, and a row of the report."""
    problems = SvmProblemSet(x, settings)
    count = labels.shape[1]
    wanted = solving.Problems(
        rows=np.arange(len(labels)),
        signs=np.ascontiguousarray(labels.T),
        weights=np.ones((count, len(labels))),
        costs=np.repeat([COSTS], count, axis=0),
    )
    start, begun = time.perf_counter(), time.process_time()
    found = problems.solver.solve(wanted, lambda solved: None)
    row = {
        "solver": f"vggfeat, {settings.solver}",
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - begun,
        "passes": getattr(problems.solver, "passes", None),
        "worst_gap": float(found.gap.max()),
        "solved": found.gap.size,
        "converged": int(found.converged.sum()),
        "memory": peak_memory(),
    }
    return found, row


def _objectives(
    x: NDArray[np.floating], labels: NDArray[np.int8], found: solving.Solutions, g: int
) -> NDArray[np.float64]:
    costs = np.full(labels.shape[1], COSTS[g])
    return objectives(x, labels, costs, found.coef[:, g], found.intercept[:, g])[0]
