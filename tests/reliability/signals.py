"""SIGINT, SIGTERM, SIGHUP and a second SIGINT at random moments: an end in time, nothing alive, nothing lost.

SIGINT ends with exit code 130, SIGTERM with 143 and SIGHUP with 129, each with one line, after a note of how far the
work has come where it had begun. Each within 10 seconds, with no process left and the lock free; then the command is
given again. Full: 30 moments each.
"""

import os
import random
import signal
import time

from .common import Ended, Job, Options, Report, scratch

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "second SIGINT": 130}
MOST_SECONDS = 10


def run(options: Options) -> Report:
    report, rng = Report(), random.Random(options.seed)
    with scratch() as folder:
        job = Job(folder, 10, "--workers", "1")
        for name in CODES:
            for _ in range(200 if options.full else 5):
                if report.figures.get(name, 0) < (30 if options.full else 1):
                    stop(job, name, rng, report)
            report.check(name in report.figures, f"{name}: every run was finished before it came")
    return report


def stop(job: Job, name: str, rng: random.Random, report: Report) -> None:
    running = job.start()
    moment = rng.uniform(0.02, job.seconds)
    time.sleep(moment)
    asked = time.monotonic()
    number = signal.SIGINT if name == "second SIGINT" else signal.Signals[name]
    os.kill(running.pid, number)
    if name == "second SIGINT":
        time.sleep(rng.uniform(0, 0.03))
        os.kill(running.pid, number)
    ended = running.wait()
    seconds = time.monotonic() - asked
    where = f"{name} after {moment:.3f} s"
    report.figures["slowest"] = round(max(report.figures.get("slowest", 0), seconds), 2)
    if ended.code == 0:
        job.seconds = ended.seconds  # as long as a run takes now
        report.count("finished before it came")
    else:
        judge(ended, name, where, report)
    report.check(seconds < MOST_SECONDS, f"{where}: took {seconds:.1f} s")
    report.check(not running.outlived(), f"{where}: a process lives on")
    job.finish(report, where, len(job.named()))


def judge(ended: Ended, name: str, where: str, report: Report) -> None:
    report.count(name)
    expected = CODES[name]
    report.check(ended.code == expected, f"{where}: expected {expected}, found {ended.code}: {ended.err[-300:]}")
    report.check(ended.clean, f"{where}: said {ended.err[-1500:]}")
    report.check("the same command goes on from there" in ended.err, f"{where}: said {ended.err!r}")
    if "pictures done" in ended.err:
        report.count("told how far it came")
