"""The streaming SVM solver on made-up descriptors on the disk, and the solver in memory on the same rows.

N = rows, D = length of a descriptor, K = classes.
"""

import os
import tempfile
import time
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vggfeat.benchmarks.measure import Column, Report, Say, machine
from vggfeat.benchmarks.peer import HIDDEN, SHARES_OF_VOC, objectives
from vggfeat.descriptors import l2_normalise
from vggfeat.runtime.system import peak_memory
from vggfeat.svm import SvmProblemSet, SvmSettings
from vggfeat.svm.blocks import Blocks, equal_blocks
from vggfeat.svm.solve import Problems, Solutions

COSTS = (0.0625, 0.25, 1.0, 4.0, 16.0)
CLASSES, STRENGTH = len(SHARES_OF_VOC), 0.3
AT_A_TIME = 4096
"""Rows that are made."""
COLUMNS = {
    "solver": Column(""),
    "seconds": Column("s", ".0f"),
    "cpu_seconds": Column("CPU s", ".0f"),
    "passes": Column("passes", ".0f"),
    "worst_gap": Column("gap", ".1e"),
    "solved": Column("solved", ".0f"),
    "converged": Column("converged", ".0f"),
    "excess": Column("objective above", "+.1e"),
    "lead": Column("below", "+.1e"),
    "memory": Column("memory GB", ".2f", 1e9),
}
NOTES = (
    "gap: the largest relative duality gap; memory: the most that was held up to then",
    "objective: how far it is above and below that of the streaming solver at most, relative",
)


def measure(
    rows: int, length: int, *, threads: int, seed: int = 0, peer: bool = True, say: Say = lambda name: None
) -> Report:
    """Solve all classes for all of `COSTS` on rows in a file of float16, which is removed in the end.

    `rows` and `length`: N, D. `threads`: of the streaming solver and of the BLAS. `seed`: of the descriptors. `peer`:
    solve the same in memory as well, which takes 24 N D bytes.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(threads), tempfile.TemporaryFile() as file:
        say("making descriptors")
        labels = write_rows(file, rows, length, seed)
        blocks = stored_blocks(file, (rows, length))
        say("stream")
        streamed, row = _solve(blocks, labels, SvmSettings(solver="stream", jobs=threads))
        found = [row]
        if peer:
            say("newton")
            x = np.concatenate([blocks.read(number) for number in range(len(blocks.ends))]).astype(np.float32)
            held, row = _solve(x, labels, SvmSettings())
            ratios = [_objectives(x, labels, held, g) / _objectives(x, labels, streamed, g) for g in range(len(COSTS))]
            found.append(row | {"excess": float(np.max(ratios)) - 1, "lead": float(np.min(ratios)) - 1})
    return Report(
        name="svm",
        settings={
            "task": "all rows", "rows": rows, "length": length, "classes": CLASSES, "values_of_C": list(COSTS),
            "stored": "float16", "seed": seed,
        },
        machine=machine("cpu", threads),
        columns=COLUMNS,
        rows=found,
        notes=NOTES if peer else NOTES[:1],
    )  # fmt: skip


def write_rows(file: BinaryIO, rows: int, length: int, seed: int) -> NDArray[np.int8]:
    """Write descriptors like those of `made_up.make_descriptors` as float16; return their labels (N, K)."""
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


def _solve(x: Any, labels: NDArray[np.int8], settings: SvmSettings) -> tuple[Solutions, dict[str, Any]]:
    """Solve all classes for all of `COSTS`; return what was found, and a row of the report."""
    problems = SvmProblemSet(x, settings)
    count = labels.shape[1]
    wanted = Problems(
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


def _objectives(x: NDArray[np.floating], labels: NDArray[np.int8], found: Solutions, g: int) -> NDArray[np.float64]:
    costs = np.full(labels.shape[1], COSTS[g])
    return objectives(x, labels, costs, found.coef[:, g], found.intercept[:, g])[0]
