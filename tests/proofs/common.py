"""What the families share: how they report, and a small real `vggfeat extract` that is run in forked processes.

The process that forks has loaded everything and computed nothing, so that a run is a fork away, and safe.
"""

import contextlib
import hashlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from crash_runs import FILES, FOLDERS, Hooked
from feature_rows import memory_folder
from image_files import draw
from vggfeat import extract as caching
from vggfeat.cli import entry_point, output
from vggfeat.cli import main as cli_main
from vggfeat.datasets import catalogue as front
from vggfeat.runtime.durable import DISK
from vggfeat.weights import load_backbone

NET = "random:A:0:0.03125"
LATE = ("matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib.font_manager", "matplotlib.style",
        "vggfeat.protocols.apply", "vggfeat.protocols.rules", "vggfeat.results.predictions", "vggfeat.results.svm",
        "vggfeat.store.export", "vggfeat.table")  # fmt: skip


def load_all() -> None:
    """Load what a run would load late, so that a fork has it."""
    torch.set_num_threads(1)
    load_backbone(NET)
    Image.preinit()
    assert all((caching, cli_main, front, output))


def load_late() -> None:
    """Load what commands other than extract load late, matplotlib above all."""
    for name in LATE:
        importlib.import_module(name)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a family is run."""

    full: bool = False
    seed: int = 0
    cases: int | None = None
    """Of a family that counts cases; by default its own number."""
    folder: Path | None = None
    """Of images, where the family takes some."""
    words: tuple[str, ...] = ()
    """What else was given, for instance names of readers."""


@dataclass
class Report:
    """What a family has seen."""

    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """A sentence for each broken promise; without any, the promise was kept."""

    def check(self, kept: bool, sentence: str) -> None:
        """Note a promise that was not kept."""
        if not kept:
            self.failures.append(sentence)

    def count(self, name: str, by: int = 1) -> None:
        self.figures[name] = self.figures.get(name, 0) + by


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a new folder, in memory where that can be had: thousands of runs are to be killed there."""
    with memory_folder() as folder:
        yield folder


@dataclass
class Ended:
    """How a run ended."""

    code: int
    """Exit code; negative, the number of the signal that ended it."""
    out: str
    err: str
    seconds: float

    @property
    def told(self) -> dict[str, Any]:
        """The summary that --json prints."""
        return json.loads(self.out)

    @property
    def clean(self) -> bool:
        """Whether it said one line, or nothing, and no traceback."""
        lines = [line for line in self.err.splitlines() if line and not line.startswith("note: ")]
        return len(lines) <= 1 and "Traceback" not in self.err


class Run:
    """A run of `vggfeat` in a forked child, in a process group of its own."""

    def __init__(self, words: list[str], folder: Path, files: Hooked | None = None) -> None:
        self._said = [folder / f"said.{kind}.{time.monotonic_ns()}" for kind in ("out", "err")]
        self._begun, self._ended = time.monotonic(), 0.0
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                os.setpgid(0, 0)
                for path, fd in zip(self._said, (1, 2), strict=True):
                    os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), fd)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
                code = child(words, files)
            finally:
                with contextlib.suppress(BaseException):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)

    def wait(self) -> Ended:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        seconds = (self._ended or time.monotonic()) - self._begun
        out, err = (path.read_text(errors="backslashreplace") if path.exists() else "" for path in self._said)
        for path in self._said:
            path.unlink(missing_ok=True)
        return Ended(code, out, err, seconds)

    def said(self) -> str:
        """Return what it has printed on standard error so far."""
        return self._said[1].read_text(errors="backslashreplace") if self._said[1].exists() else ""

    def ended(self) -> bool:
        if not self._ended and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            self._ended = time.monotonic()
        return bool(self._ended)

    def outlived(self) -> bool:
        """Say whether a process of its group is alive; after `wait`."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.01)
        return True


def child(words: list[str], files: Hooked | None) -> int:
    torch.set_num_threads(1)
    # A shell starts background jobs with Ctrl-C ignored, and nohup the end of the terminal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if files is not None:
        for name in FILES + FOLDERS:
            setattr(DISK, name, getattr(files, name))
    try:
        entry_point(words)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1


class Job:
    """Some images, one a shard, of which the command makes a feature file.

    Parameters
    ----------
    folder : Path
        For all that it writes.
    images : int
    options : str
        Further words of the command.
    """

    def __init__(self, folder: Path, images: int, *options: str) -> None:
        load_all()
        self.folder, self.images, self.options = folder, images, options
        self.root, self.out = folder / "in", folder / "work" / "x.h5"
        self.out.parent.mkdir()
        for number in range(images):
            draw(self.root / "ab"[number % 2] / f"{number:03d}.png", number)
        whole = folder / "whole.h5"
        done = self.start(whole).wait()
        assert done.code == 0, done.err
        self.wanted, self.seconds = digest(whole), done.seconds

    def words(self, out: Path | None = None) -> list[str]:
        words = ["extract", "--dataset", "folder", "--root", self.root, "--weights", NET, "--scales", "224"]
        words += ["--device", "cpu", "--workers", "0", "--shard-rows", "1", "--quiet", "--json"]
        return [str(word) for word in (*words, "--out", out or self.out, *self.options)]

    def start(self, out: Path | None = None, files: Hooked | None = None) -> Run:
        return Run(self.words(out), self.folder, files)

    @property
    def parts(self) -> Path:
        return self.out.with_name(f"{self.out.name}.parts")

    def named(self) -> set[str]:
        """Return the shards that have their name."""
        return {path.name for path in self.parts.glob("s*.h5")}

    def clear(self) -> None:
        """Take everything away, for the next run."""
        self.out.unlink(missing_ok=True)
        if self.parts.exists():
            for path in self.parts.iterdir():
                path.unlink()
            self.parts.rmdir()

    def finish(self, report: Report, where: str, kept: int) -> None:
        """Give the command again: it must keep `kept` rows, and end with the file of an undisturbed run alone."""
        done = self.start().wait()
        if done.code != 0:
            report.failures.append(f"{where}: giving the command again ended with {done.code}: {done.err[-300:]}")
        else:
            report.check(done.told["resumed"] >= kept, f"{where}: {kept} rows were kept, {done.told['resumed']} found")
            report.check(digest(self.out) == self.wanted, f"{where}: the file has other bytes")
            left = sorted(path.name for path in self.out.parent.iterdir())
            report.check(left == [self.out.name], f"{where}: left behind: {left}")
        self.clear()

    def calls(self) -> list[str]:
        """Return the names of the calls that change the disk, in the order of an undisturbed run."""
        log = self.folder / "calls"

        def hook(number, name, call, arguments):
            with open(log, "a") as file:
                print(name, file=file)
            return call(*arguments)

        self.start(files=Hooked(hook)).wait()
        self.clear()
        names = log.read_text().split()
        log.unlink()
        return names
