"""`vggfeat svm --solver stream` by several processes, as torchrun starts them, each a fork away: `svm_ranks.py FOLDER`.

Prints one JSON object of what was seen.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

if __name__ == "__main__":
    for _name in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{_name}_NUM_THREADS", "1")

import numpy as np

from feature_files import data_set, write_file
from rank_runs import ranks, wait
from tests.proofs.common import Run
from vggfeat.descriptor_stream import score, stream_descriptors
from vggfeat.errors import StoreError
from vggfeat.protocols import run_protocol
from vggfeat.results.svm import svm_record
from vggfeat.runtime.distributed import open_world
from vggfeat.svm import LinearModel, Split, SvmProblemSet, SvmSettings, blocks, stream, stream_steps
from vggfeat.svm.stream_passes import Passes

N, K = 72, 3
T = TypeVar("T")


def make_features(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((N, K)) < 0.4, 1, -1)
    signal = (labels > 0) @ rng.standard_normal((K, 24))
    features = np.maximum(signal + rng.standard_normal((N, 24)), 0).reshape(N, 1, 1, 24)
    parts = np.split(np.random.default_rng(0).permutation(N), [28, 52])
    splits = {name: np.sort(rows) for name, rows in zip(("train", "val", "test"), parts, strict=True)}
    made = data_set(tuple(f"image-{row:03}" for row in range(N)), labels, tuple("abc"), splits)
    return write_file(path, features, made)


def command(file: Path, out: Path) -> list[str]:
    return ["svm", str(file), "--solver", "stream", "--grid", "0.01,1", "--quiet", "--out", str(out)]


def start(count: int, begin: Callable[[int], T]) -> list[T]:
    """Begin as many processes, each with its rank."""
    with ranks(count) as next_is:
        begun = []
        for rank in range(count):
            next_is(rank)
            begun.append(begin(rank))
        return begun


def commands(folder: Path, *words: list[str]) -> dict:
    """Run a command in each process, and list what was written."""
    ended = wait(start(len(words), lambda rank: Run(words[rank], folder)))
    found = {name: [getattr(one, name) for one in ended] for name in ("code", "out", "err")}
    out = folder / "results"
    found["files"] = sorted(path.name for path in out.glob("*"))
    shutil.rmtree(out, ignore_errors=True)
    return found


def solve(file: Path) -> dict:
    """Train and score with the other processes; return digests of what was found."""
    with (
        open_world("cpu", os.environ, lost=StoreError, advice="start again") as world,
        stream_descriptors(file, world=world) as stream,
    ):
        problems = SvmProblemSet(stream.descriptors, SvmSettings(solver="stream", jobs=1))
        rows, labels = np.arange(0, N, 2), stream.dataset.labels[::2]
        model = problems.fit(rows, labels, [0.1, 1.0, 1000.0])
        split = Split(rows=rows, labels=labels, held_out=np.arange(N - 1, 0, -2))
        sweep = problems.sweep([split], [0.01, 10.0])[0]
        return {
            "converged": bool(model.converged.all() and sweep.converged.all()),
            "passes": problems.solver.passes,
            "found": [hashlib.sha256(one.tobytes()).hexdigest() for one in (*model_numbers(model), *sweep)],
            "scores": hashlib.sha256(score(stream, np.arange(N), model).tobytes()).hexdigest(),
        }


def model_numbers(model: LinearModel) -> list[np.ndarray]:
    return [model.coef, model.intercept, model.gap]


def solved(count: int, folder: Path, file: Path, passes: int | None = None) -> list:
    """Solve by some processes, each a fork; the second is killed after so many passes."""

    def begin(rank: int) -> int:
        child = os.fork()
        if child == 0:
            try:
                if rank == 1 and passes is not None:
                    kill_after(passes)
                (folder / f"told {rank}").write_text(json.dumps(solve(file)))
                os._exit(0)
            except StoreError as error:
                (folder / f"told {rank}").write_text(json.dumps(str(error)))
            finally:
                os._exit(1)
        return child

    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in start(count, begin)]
    files = [folder / f"told {rank}" for rank in range(count)]
    told = [json.loads(file.read_text()) if file.exists() else None for file in files]
    for file in files:
        file.unlink(missing_ok=True)
    return [codes, told]


def kill_after(passes: int) -> None:
    run = Passes.run

    def hooked(self, asked):
        if self.count == passes:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, asked)

    Passes.run = hooked


def main(folder: Path) -> dict:
    file, other = make_features(folder / "x.h5", 1), make_features(folder / "y.h5", 2)
    blocks.MOST_ROWS = 8  # 9 blocks
    stream_steps._CHEAP = 4  # Some problems are solved by Hessians, others by conjugate gradients.
    found = {f"solved by {count}": solved(count, folder, file) for count in (1, 2, 3)}
    found["killed"] = solved(3, folder, file, passes=4)
    out = folder / "results"
    found["command"] = commands(folder, *[command(file, out)] * 2)
    found["other features"] = commands(folder, command(file, out), command(other, out))
    return found


if __name__ == "__main__":
    assert all((run_protocol, svm_record, stream))  # Loaded before any fork.
    print(json.dumps(main(Path(sys.argv[1]))))
