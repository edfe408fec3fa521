"""The folder of a run: who may write there, whether it can be resumed, and the files in it: log, curves, lists."""

import contextlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from vggfeat.errors import TrainingError
from vggfeat.runtime.checksums import ENTRY, sealed, sealed_line, short_checksum, unsealed, unsealed_line
from vggfeat.runtime.durable import Files, append, atomic_write, disk_errors, is_temporary, make_folders
from vggfeat.runtime.figures import ABOVE, BLUE, GREY, ORANGE, fonts_for, own_style, png_bytes
from vggfeat.runtime.locks import Lock, holder
from vggfeat.training.checkpoints import READ_ADVICE, Checkpoint, Checkpoints, remove_unfinished

log = logging.getLogger(__name__)
ADVICE = "make room or choose another folder"

LOG_ADVICE = "make room, then go on with --resume"
FEW_POINTS = 10
"""Of a curve, which are marked one by one."""


class RunFolder:
    """A folder that one run writes to: run.json, log.jsonl, checkpoints/, curves.png, weights.safetensors.

    `files`: carries out what changes the disk.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self.path, self.files = path, files
        self.checkpoints = Checkpoints(path / "checkpoints", files)
        self._lock: Lock | None = None

    def begin(self, identity: Mapping[str, Any], resume: bool) -> tuple[Checkpoint | None, list[str]]:
        """Lock the folder, and find what to resume from.

        Parameters
        ----------
        identity : mapping
            What must be equal for a run to be resumed, ready for JSON.
        resume : bool
            Whether to resume a run that is there; in a folder that is empty, or without a checkpoint, it begins, and
            a note says so.

        Returns
        -------
        checkpoint : Checkpoint or None
        notes : list of str
            Sentences about damaged checkpoints, or that there is none, and about a log that names no run.

        Raises
        ------
        TrainingError
            If another process is training there, it holds anything without `resume`, or a run of other settings, or
            its log is of another run; or, with `resume`, if there is no such folder.
        StoreError
            If the disk refuses.
        """
        with disk_errors(self.path, "making the folder", ADVICE):
            if resume and not os.path.lexists(self.path):
                raise TrainingError(
                    f"{self.path}: expected the folder of a run to resume, found none; look at its name, or leave "
                    "--resume out to begin a run"
                )
            make_folders(self.files, self.path)
        self._lock_folder()
        with disk_errors(self.path, "reading the folder", READ_ADVICE):
            present = {entry.name for entry in self.path.iterdir() if not is_temporary(entry.name)} - {"LOCK"}
        if present and not resume:
            raise TrainingError(
                f"{self.path}: expected an empty folder, found {min(present)}; --resume goes on with a run, "
                "another folder begins one"
            )
        if present and not present & {"run.json", "checkpoints"}:
            raise TrainingError(f"{self.path}: expected a run to go on with, found other files; give another folder")
        remove_unfinished(self.files, self.path)
        self._compare(self.path / "run.json", _read_json(self.path / "run.json"), identity)
        found, notes = self.checkpoints.newest()
        if found is not None:
            self._compare(found.path, found.about.get("run"), identity)
        notes += self._check_log(short_checksum(identity))
        if found is None and resume:
            notes.append(
                f"{self.path}: no checkpoint to resume from was found: training begins at step 0{self._keep_log()}"
            )
        self.write("run.json", json.dumps(sealed(identity), indent=2).encode())
        return found, notes

    def write(self, name: str, content: bytes) -> None:
        """Write a file durably, in the place of any of that name."""
        with disk_errors(self.path / name, "writing", ADVICE), atomic_write(self.files, self.path / name) as file:
            file.write(content)

    def add_unreadable(self, found: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Add (path, reason) of images to those that unreadable.jsonl has, and return all.

        An image that was mended since stays there: the steps before did without it.
        """
        path = self.path / "unreadable.jsonl"
        known = dict(_read_pairs(path))
        both = {**known, **dict(found)}
        if both != known:
            lines = [sealed_line({"path": name, "reason": reason}) for name, reason in sorted(both.items())]
            self.write(path.name, b"".join(lines))
        return tuple(sorted(both.items()))

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self.files.remove(self.path / "LOCK")
            self._lock.release()
            self._lock = None

    def _check_log(self, run: str) -> list[str]:
        """Refuse the log of another run; return a sentence if it is of a version that named none."""
        log = self.path / "log.jsonl"
        runs = {line.get("run") for line in read_log(log)}
        if others := runs - {run, None}:
            raise TrainingError(
                f"{log}: expected lines of the run {run} that run.json describes, found some of {others.pop()!r:.40}; "
                "put the log of this run there, or move it away"
            )
        if None not in runs:
            return []
        return [f"{log}: its lines so far name no run, as those of earlier versions; they are taken to be of this one"]

    def _keep_log(self) -> str:
        """Give the log of a run that begins once more another name, and say which."""
        log = self.path / "log.jsonl"
        lines = (_read_text(log) or "").splitlines()
        if len(lines) == sum(line["kind"] == "note" for line in read_log(log)):
            return ""
        kept = next(path for n in count(1) if not os.path.lexists(path := self.path / f"log.{n}.jsonl"))
        with disk_errors(log, "renaming the log", LOG_ADVICE):
            self.files.rename(log, kept)
            self.files.sync_folder(self.path)
        return f"; the log so far is now {kept.name}"

    def _lock_folder(self) -> None:
        try:
            with disk_errors(self.path, "locking", ADVICE):
                self._lock = Lock(self.path / "LOCK")
        except Exception as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise TrainingError(
                f"{self.path}: expected no other process to train there, found {holder(self.path / 'LOCK')}; "
                "wait for it, stop it, or give another folder"
            ) from None

    def _compare(self, where: Path, found: Any, expected: Mapping[str, Any]) -> None:
        if found is not None:
            advice = "give the settings and the images of that run, or another folder"
            check_equal(where, found, json.loads(json.dumps(expected)), advice)


def check_equal(where: object, found: Any, expected: Mapping[str, Any], advice: str) -> None:
    """Raise TrainingError if what a run was described by is another, and name the first difference."""
    saved, wanted = dict(_flat(found)), dict(_flat(expected))
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            raise TrainingError(
                f"{where}: {name}: expected {wanted.get(name, 'nothing')}, found {saved.get(name, 'nothing')}; {advice}"
            )


def what_is_kept(folder: Path) -> str:
    """Say what a run that was stopped has left in its folder, and how it is resumed; nothing if there is none."""
    newest = max((path.stem for path in (folder / "checkpoints").glob("step-*.safetensors")), default="")
    if newest:
        step = int(newest.removeprefix("step-"))
        return f"{folder}: the checkpoint of step {step} is kept, and the same command with --resume resumes from there"
    if (folder / "run.json").is_file():
        return f"{folder}: no checkpoint was made yet; the same command with --resume begins at step 0 again"
    return ""


class Log:
    """Lines of training and validation figures in log.jsonl, for one process to write.

    Every line has `kind` (train, validation or note), `step`, and `run`, by which run.json knows its own: the
    `vggfeat.runtime.checksums.short_checksum` of what that holds.

    Numbers go to TensorBoard as well, where that is installed, and to Python's logging: a record has `kind`, `step` and
    `figures` (name -> number), for handlers that pass them on. Where a run resumes at `step`, lines of later steps,
    which will be done again, are dropped.
    """

    def __init__(self, folder: Path, run: str, step: int, files: Files) -> None:
        self.path, self.run, self.files = folder / "log.jsonl", run, files
        kept = [line | {"run": run} for line in read_log(self.path) if line["step"] <= step] if step else []
        with disk_errors(self.path, "writing the log", LOG_ADVICE), atomic_write(files, self.path) as file:
            file.write(b"".join(map(sealed_line, kept)))
        self._board = _open_board(folder / "tensorboard", step)
        self._last = {line["kind"]: line["step"] for line in kept}

    def has(self, kind: str, step: int) -> bool:
        """Say whether the last line of a kind is that of a step."""
        return self._last.get(kind) == step

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add a line."""
        rounded = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in values.items()}
        line = {"kind": kind, "step": step, "run": self.run, **rounded}
        with disk_errors(self.path, "writing the log", LOG_ADVICE):
            append(self.files, self.path, sealed_line(line))
            self._last[kind] = step
            figures = {key: value for key, value in values.items() if isinstance(value, (int, float))}
            for key, value in figures.items() if self._board is not None else ():
                self._board.add_scalar(f"{kind}/{key}", value, step)
        log.info("%s, step %d: %s", kind, step, line, extra={"kind": kind, "step": step, "figures": figures})

    def close(self) -> None:
        """Close what TensorBoard reads; the log has nothing that is still to be written."""
        if self._board is not None:
            with contextlib.suppress(OSError):  # It writes what it could not write before.
                self._board.close()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; one that is damaged, or that a killed process has not finished, is left out.

    Raises StoreError if it can't be read.
    """
    for text in (_read_text(path) or "").splitlines():
        line = unsealed_line(text)
        if line is not None and isinstance(line.get("step"), int):
            yield line


def draw_curves(lines: Sequence[dict[str, Any]], title: str, errors: Mapping[str, str]) -> bytes:
    """Draw a log; equal logs give equal bytes.

    Parameters
    ----------
    lines : sequence of dict
        Of `read_log`.
    title : str
        One line above all.
    errors : mapping of str to str
        Names of up to two errors in the log, and what they are called; the first is in training lines as well.

    Returns
    -------
    bytes
        A PNG file of 1320 by 540 pixels.
    """
    from matplotlib.figure import Figure

    train = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    fonts = fonts_for([title])
    with own_style(fonts):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        figure.suptitle(fonts.shown(title))
        left, right = figure.subplots(1, 2)
        _curve(left, train, "loss", "loss of the training batches", BLUE)
        left.set(ylabel="loss", ylim=(0, None))
        rates = left.twinx()
        _curve(rates, train, "lr", "learning rate", GREY, drawstyle="steps-pre")
        rates.set(yscale="log" if all(line["lr"] for line in train) else "linear", ylabel="learning rate")
        _mark_rates(rates, {line["lr"] for line in train})
        first = next(iter(errors))
        _curve(right, train, first, f"{errors[first]}, training batches", GREY)
        for key, color in zip(errors, (BLUE, ORANGE), strict=False):
            _curve(right, validation, key, f"{errors[key]}, validation", color, marker=".")
        right.set(ylim=(0, 100), ylabel="error, %")
        for axes in (left, right):
            axes.set(xlabel="step", xlim=(0, None))
        left.legend(handles=[*left.get_lines(), *rates.get_lines()], ncols=3, **ABOVE)
        right.legend(ncols=3, **ABOVE)
        return png_bytes(figure)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _flat(value[key], f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _read_text(path: Path) -> str | None:
    """Read a file of a run; None if there is none."""
    with disk_errors(path, "reading", READ_ADVICE):
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None


def _read_json(path: Path) -> Any:
    # A damaged run.json is no harm: every checkpoint holds the same.
    try:
        found = json.loads(_read_text(path) or "null")
        return unsealed(found) if isinstance(found, dict) and ENTRY in found else found
    except (ValueError, RecursionError):
        return None


def _read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    try:
        for line in (_read_text(path) or "").splitlines():
            found = unsealed(json.loads(line))
            yield str(found["path"]), str(found["reason"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(
            f"{path}: expected a path and a reason in each line, found {type(error).__name__}: {error}; remove the "
            "file, what can't be read is found again"
        ) from None


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # TensorBoard hides figures of this step and of later ones; those of the step itself are not written again.
    return SummaryWriter(folder, purge_step=step + 1)


def _curve(axes: Any, lines: Sequence[dict[str, Any]], key: str, label: str, color: str, **style: Any) -> None:
    factor = 100 if key.endswith("error") else 1
    steps = [line["step"] for line in lines]
    # A line of one point shows nothing: a run shorter than `log_every` has no more.
    style = {"marker": "." if len(lines) < FEW_POINTS else "", **style}
    axes.plot(steps, [factor * line[key] for line in lines], label=label, color=color, linewidth=1.3, **style)


def _mark_rates(axes: Any, rates: Collection[float]) -> None:
    """Write learning rates as plain numbers, for a log axis marks with powers in TeX: few at each, many at decades."""
    axes.minorticks_off()
    if len(rates) < FEW_POINTS:
        axes.set_yticks(sorted(rates))
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
