"""SIGINT, SIGTERM, SIGHUP and a second SIGINT at random moments: an end in time, nothing alive, nothing lost.

SIGINT ends with exit code 130, SIGTERM with 143 and SIGHUP with 129, each with one line, after a note of how far the
work has come where it had begun. Each within 10 seconds, with no process left and the lock free; then the command is
given again. A run that was over before the signal came is told apart by looking at it while it is held still.

Real starts of the command, which loads its libraries meanwhile, are told to end in their first 3 seconds; every other
one finds no compiled modules. In the interpreter's own first moments, before the command listens, a signal does what it
does to any program. Full: 30 moments each, and 60 starts.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .common import Ended, Job, Options, Report, Run, scratch

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "second SIGINT": 130}
MOST_SECONDS = 10
LAST_START = 3.0
"""Seconds."""


def run(options: Options) -> Report:
    report, rng = Report(), random.Random(options.seed)
    with scratch() as folder:
        job = Job(folder, 10, "--workers", "1")
        for name in CODES:
            for _ in range(200 if options.full else 5):
                if report.figures.get(name, 0) < (30 if options.full else 1):
                    stop(job, job.start, rng.uniform(0.02, job.seconds), name, rng, report)
            report.check(name in report.figures, f"{name}: every run was over before it came")
        for number in range(60 if options.full else 1):
            environ = fresh(folder / "none" if number % 2 else None)
            moment, name = rng.uniform(0, LAST_START), tuple(CODES)[number % len(CODES)]
            stop(job, lambda environ=environ: Start(job, environ), moment, name, rng, report, "start: ")
    return report


class Start(Run):
    """A run of `vggfeat` as a new process, in a process group of its own."""

    def __init__(self, job: Job, environ: dict[str, str]) -> None:
        self._said = [job.folder / f"said.{kind}.{time.monotonic_ns()}" for kind in ("out", "err")]
        self._begun, self._ended = time.monotonic(), 0.0
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
        self.pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "vggfeat", *job.words()],
            environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, fd, path, flags, 0o600) for fd, path in zip((1, 2), self._said, strict=True)
            ],
            setpgroup=0,
            # A shell starts background jobs with Ctrl-C ignored, and nohup the end of the terminal.
            setsigdef=(signal.SIGINT, signal.SIGHUP),
        )


def fresh(compiled: Path | None) -> dict[str, str]:
    """Return the environment of a start, in which compiled modules are looked for in `compiled` and none is written."""
    environ = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return environ if compiled is None else environ | {"PYTHONPYCACHEPREFIX": str(compiled)}


def stop(
    job: Job, start: Callable[[], Run], moment: float, name: str, rng: random.Random, report: Report, kind: str = ""
) -> None:
    running = start()
    time.sleep(moment)
    number = signal.SIGINT if name == "second SIGINT" else signal.Signals[name]
    state = held_still(running.pid, number)
    asked = time.monotonic()
    os.kill(running.pid, number)
    os.kill(running.pid, signal.SIGCONT)
    if name == "second SIGINT":
        time.sleep(rng.uniform(0, 0.03))
        os.kill(running.pid, number)
    ended = running.wait()
    seconds = time.monotonic() - asked
    where = f"{kind}{name} after {moment:.3f} s"
    if state == "over" or (ended.code == 0 and job.out.exists()):  # In its last moment Python hears nothing any more.
        if not kind:
            job.seconds = ended.seconds  # as long as a run takes now
        report.count(f"{kind}after the end")
        report.check(ended.code == 0, f"{where}: ended by itself with {ended.code}: {ended.err[-300:]}")
    elif state == "deaf":
        report.count(f"{kind}before it listened")
        report.check(ended.code != 0, f"{where}: went on")
    else:
        report.count(f"{kind}{name}")
        report.figures["slowest"] = round(max(report.figures.get("slowest", 0), seconds), 2)
        judge(ended, CODES[name], where, report)
    report.check(seconds < MOST_SECONDS, f"{where}: took {seconds:.1f} s")
    report.check(not running.outlived(), f"{where}: a process lives on")
    job.finish(report, where, len(job.named()))


def held_still(pid: int, number: int) -> str:
    """Stop a process where it is, and say whether it is over, still deaf to signals, or listens to this one.

    It is over when it has ended, and when it ignores the signal because nothing is left to be broken off.
    """
    os.kill(pid, signal.SIGSTOP)
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if found.si_code != os.CLD_STOPPED:
        return "over"
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    ignored, caught = (int(lines[name], 16) for name in ("SigIgn", "SigCgt"))
    if ignored >> (number - 1) & 1:
        return "over"
    # The last one that the command begins to listen to; Python itself listens to Ctrl-C from its start.
    return "listens" if caught >> (signal.SIGHUP - 1) & 1 else "deaf"


def judge(ended: Ended, expected: int, where: str, report: Report) -> None:
    report.check(ended.code == expected, f"{where}: expected {expected}, found {ended.code}: {ended.err[-300:]}")
    report.check(ended.clean, f"{where}: said {ended.err[-1500:]}")
    report.check("the same command resumes from there" in ended.err, f"{where}: said {ended.err!r}")
    if "images done" in ended.err:
        report.count("told how far it came")
