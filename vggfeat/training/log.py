"""The log of a run: a JSON object a line, and TensorBoard's files where that is installed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vggfeat.runtime.durable import Files, atomic_write, disk_errors

ADVICE = "make room, then go on with --resume"


class Log:
    """Lines of training and validation figures in log.jsonl, for one process to write.

    Every line has `kind` (train, validation or note) and `step`.

    Parameters
    ----------
    folder : Path
    step : int
        Where the run goes on; lines of later steps, which will be done again, are dropped.
    files : Files
        Carries out what changes the disk.
    """

    def __init__(self, folder: Path, step: int, files: Files) -> None:
        self.path = folder / "log.jsonl"
        kept = [line for line in read_log(self.path) if line["step"] <= step] if step else []
        with disk_errors(self.path, "writing the log", ADVICE):
            with atomic_write(files, self.path) as file:
                file.write("".join(f"{json.dumps(line)}\n" for line in kept).encode())
            self._file = self.path.open("a", encoding="utf-8")
        self._board = _open_board(folder / "tensorboard", step)
        self._last = {line["kind"]: line["step"] for line in kept}

    def has(self, kind: str, step: int) -> bool:
        """Say whether the last line of a kind is that of a step."""
        return self._last.get(kind) == step

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add a line. Numbers go to TensorBoard as well."""
        line = {"kind": kind, "step": step, **{key: _rounded(value) for key, value in values.items()}}
        with disk_errors(self.path, "writing the log", ADVICE):
            self._file.write(f"{json.dumps(line)}\n")
            self._file.flush()
        self._last[kind] = step
        if self._board is not None:
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; a line that a killed process has not finished is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    yield line


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=step)
