"""Memory and open files of one long extraction: after a tenth of its images (2,000 at least), and after all of them.

The list names the same 200 files again and again, as that of `soak`, and nothing is killed. The most memory that the
command's own process has had may grow by less than 50 MiB from the tenth to the end, the making of the file included,
and the open files of it and its worker by none. Full: 100,000 images (or --cases). Short: 4,000, where the allocator
has not settled yet, and 100 MiB are allowed.
"""

import random
import subprocess
import time
from pathlib import Path

import numpy as np

from .common import Options, Report, scratch
from .images import children, memory
from .soak import FILES, MOST_GROWTH, open_files, render, shards, start, write_list

SETTLED = 10
"""Shards."""


def run(options: Options) -> Report:
    report = Report()
    with scratch() as folder:
        rounds = (options.cases or (100_000 if options.full else 4000)) // FILES
        render(folder / "in", random.Random(options.seed))
        write_list(folder / "in" / "all.csv", rounds)
        seen = watch(folder, start(folder, "all"), report)
        compare(seen, rounds, report)
    return report


def compare(seen: list[tuple[int, int, int]], rounds: int, report: Report) -> None:
    tenth = max(-(-rounds // 10), min(SETTLED, rounds // 2))
    first = next(look for look in seen if look[0] >= tenth)
    before, after = (most / 2**20 for most in (first[1], seen[-1][1]))
    # A file is open for a moment while a shard is written.
    early, late = (
        int(np.median([look[2] for look in seen if start <= look[0] < start + tenth]))
        for start in (first[0], rounds - tenth)
    )
    report.figures |= {
        "images": rounds * FILES,
        f"most MiB in the first {first[0] * FILES}": round(before),
        "most MiB in all": round(after),
        "open files": [early, late],
    }
    allowed = MOST_GROWTH if rounds > 10 * SETTLED else 2 * MOST_GROWTH
    report.check(after - before < allowed, f"memory grew from {before:.0f} to {after:.0f} MiB")
    report.check(late <= early, f"open files grew from {early} to {late}")


def watch(folder: Path, running: subprocess.Popen, report: Report) -> list[tuple[int, int, int]]:
    """Look at a run until it ends; return (finished shards, most bytes so far, open files) of each look."""
    seen = []
    while running.poll() is None:
        finished, most = len(shards(folder)), memory(running.pid)
        files = sum(open_files(process) for process in [running.pid, *children(running.pid)])
        if most and (finished or not seen):
            seen.append((finished, most, files))
        time.sleep(0.1)
    report.check(running.returncode == 3, f"expected exit code 3, found {running.returncode}")
    return seen
