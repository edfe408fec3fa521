"""A long extraction of images of which 3 % are hostile, killed now and then: flat memory, flat count of open files.

The list names the same 200 files again and again, one shard for each time, so that every shard must be that of a run
over the 200 alone. Memory and open files of the run and of its workers are looked at four times a second. In the last
run, from the second quarter of its looks after its first shard to the last quarter, the median of the memory may grow
by less than 50 MiB, and that of the open files by none. Full: 50,000 images (or --cases), killed after 60 seconds,
120, 180, ... Short: 2,000.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from image_files import draw
from vggfeat.store.layout import Status
from vggfeat.store.reader import FeatureFile

from .common import NET, Options, Report, scratch
from .images import children
from .mutants import mutate

FILES, HOSTILE = 200, 6
MOST_GROWTH = 50
"""MiB."""


def run(options: Options) -> Report:
    report = Report()
    with scratch() as folder:
        rounds = (options.cases or (50_000 if options.full else 2000)) // FILES
        render(folder / "in", random.Random(options.seed))
        write_list(folder / "in" / "one.csv", 1)
        write_list(folder / "in" / "all.csv", rounds)
        report.check(start(folder, "one").wait() == 3, "the run over 200 images did not end with exit code 3")
        kills, code, seen = 0, -signal.SIGKILL, []
        while code == -signal.SIGKILL:
            code, seen = watch(folder, start(folder, "all"), 60.0 * (1 + kills))
            kills += code == -signal.SIGKILL
        report.check(code == 3, f"expected exit code 3, found {code}")
        report.figures |= {"images": rounds * FILES, "kills": kills}
        grow(seen, report)
        compare(folder, rounds, report)
    return report


def render(place: Path, rng: random.Random) -> None:
    for number in range(FILES):
        path = place / f"{number:03d}.png"
        draw(path, number, (48, 48))
        if number < HOSTILE:
            path.write_bytes(mutate(rng, path.read_bytes()[: 300 * number], b"x", text=False))


def write_list(path: Path, rounds: int) -> None:
    lines = [f"{number:03d}.png,{turn}-{number}\n" for turn in range(rounds) for number in range(FILES)]
    path.write_text("path,id\n" + "".join(lines))


def start(folder: Path, name: str) -> subprocess.Popen:
    words = f"extract --dataset manifest --weights {NET} --scales 224 --device cpu --workers 1 --quiet".split()
    words += ["--shard-rows", FILES, "--root", folder / "in" / f"{name}.csv", "--out", folder / f"{name}.h5"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "vggfeat", *map(str, words)], **quiet)


def watch(folder: Path, running: subprocess.Popen, most: float) -> tuple[int, list[tuple[float, float, int]]]:
    """Look at a run from its first shard on until it ends or is killed; return its exit code and what was seen."""
    begun, before, seen = time.monotonic(), shards(folder), []
    while running.poll() is None:
        if shards(folder) - before:
            seen.append(look(running.pid))
        if time.monotonic() - begun > most:
            running.send_signal(signal.SIGKILL)
        time.sleep(0.25)
    return running.returncode, seen


def shards(folder: Path) -> set[str]:
    return {path.name for path in (folder / "all.h5.parts").glob("s*.h5")}


def look(pid: int) -> tuple[float, float, int]:
    """Return MiB of the run and of its workers, and the open files of both."""
    run, workers = resident(pid), [resident(child) for child in children(pid)]
    files = sum(open_files(process) for process in [pid, *children(pid)])
    return run, sum(workers), files


def resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    except OSError:
        return 0.0


def open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def grow(seen: list[tuple[float, float, int]], report: Report) -> None:
    """Compare the last quarter of what was seen with the second: in the first one, the libraries take what they need.

    Medians, because a shard is open while it is written.
    """
    report.figures["looks"] = len(seen)
    if len(seen) < 20:
        report.failures.append("the last run was too short to say whether it grew; give more --cases")
        return
    quarter = len(seen) // 4
    first, last = (np.median(part, axis=0) for part in (seen[quarter : 2 * quarter], seen[-quarter:]))
    for index, name in enumerate(("run", "worker")):
        growth = round(last[index] - first[index], 1)
        report.figures[f"{name} grew by, MiB"] = growth
        report.check(growth < MOST_GROWTH, f"{name} grew by {growth} MiB")
    report.figures |= {
        "run, MiB": round(last[0]),
        "worker, MiB": round(last[1]),
        "open files": [int(first[2]), int(last[2])],
    }
    report.check(last[2] <= first[2], f"open files grew from {first[2]} to {last[2]}")


def compare(folder: Path, rounds: int, report: Report) -> None:
    with FeatureFile(folder / "one.h5") as one, FeatureFile(folder / "all.h5") as many:
        wanted, status = one.read().tobytes(), one.status.tobytes()
        report.check(len(many) == rounds * FILES, f"expected {rounds * FILES} rows, found {len(many)}")
        report.figures["failed"] = int((many.status == Status.FAILED).sum())
        for turn in range(rounds):
            rows = slice(turn * FILES, (turn + 1) * FILES)
            same = many.read(rows).tobytes() == wanted and many.status[rows].tobytes() == status
            report.check(same, f"shard {turn} differs from that of a run over the 200 images alone")
