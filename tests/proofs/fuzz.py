"""Damaged files and trees for every reader: read, or refused by its own error with the path in it, in little memory.

    python -m tests.proofs fuzz [--full] [--cases N] [--seed S] [READER ...]

Cases are read in child processes with limits on memory and time; a child that dies is a case that failed. A case is
known by reader, seed and number. Where checksums guard a file, what is read must be what was written; of the cases
there, some carry checksums that were made to fit. Full: 10,000 cases a reader. Short: 25.
"""

import contextlib
import json
import os
import random
import resource
import select
import signal
import time
import traceback
import warnings
from pathlib import Path

from . import mutants
from .common import Options, Report, scratch
from .readers import READERS, Reader, sample

MOST_SECONDS = 10
MOST_MEMORY = 64 << 20
"""Bytes that reading may take beyond 8 times the files."""
LIMIT = 1 << 30
"""Bytes of address space that a child may take beyond what it starts with."""
PER_CHILD = 500


def run(options: Options) -> Report:
    report = Report()
    for name in options.words or READERS:
        begun = time.monotonic()
        counts = {"read": 0, "told": 0, "refused": 0, "failed": 0, "slowest_s": 0.0, "most_mib": 0.0}
        with scratch() as folder:
            fuzz(name, options.cases or (10_000 if options.full else 25), options.seed, folder, counts, report)
        report.figures[name] = counts | {"seconds": round(time.monotonic() - begun)}
    return report


def fuzz(name: str, cases: int, seed: int, folder: Path, counts: dict, report: Report) -> None:
    reader = READERS[name]
    tree = sample(reader, folder / "sound")
    wanted = reader.read(folder / "sound")
    assert wanted is not None
    start = 0
    while start < cases:
        numbers = range(start, min(start + PER_CHILD, cases))
        done = 0
        for line in child(name, tree, wanted, numbers, seed, folder):
            outcome, seconds, memory = line
            judge(name, numbers[done], outcome, counts, report)
            counts["slowest_s"] = max(counts["slowest_s"], round(seconds, 2))
            counts["most_mib"] = max(counts["most_mib"], round(memory / 2**20, 1))
            done += 1
        if done < len(numbers):
            judge(name, numbers[done], "ended its process, or took too long", counts, report)
            done += 1
        start = numbers[0] + done


def judge(name: str, number: int, outcome: str, counts: dict, report: Report) -> None:
    if outcome in ("read", "told", "refused"):
        counts[outcome] += 1
    else:
        counts["failed"] += 1
        report.failures.append(f"{name}, case {number}: {outcome}")


def child(name: str, tree: mutants.Tree, wanted: str, numbers: range, seed: int, folder: Path):
    """Read cases in a child; yield an outcome for each, until it ends."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException), os.fdopen(writing, "w") as out:
            os.close(reading)
            work(name, tree, wanted, numbers, seed, folder / "case", out)
        os._exit(0)
    os.close(writing)
    waiting = b""
    try:
        while select.select([reading], [], [], 2 * MOST_SECONDS)[0] and (found := os.read(reading, 1 << 16)):
            *lines, waiting = (waiting + found).split(b"\n")
            yield from map(json.loads, lines)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def work(name, tree, wanted, numbers, seed, place, out) -> None:
    warnings.simplefilter("error")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills: a handler of Python's would wait for the library
    mutants.remove(place)  # what a child left that died
    for number in numbers:
        size, exact = make(name, tree, random.Random(f"{seed}:{name}:{number}"), place)
        signal.alarm(MOST_SECONDS)
        before, begun = forget_peak(), time.perf_counter()
        outcome = attempt(READERS[name], place, wanted if exact else None)
        seconds, memory = time.perf_counter() - begun, max(0, status("VmHWM") - before)
        signal.alarm(0)
        if memory > MOST_MEMORY + 8 * size:
            outcome = f"took {memory} bytes for {size} bytes of files"
        mutants.remove(place)
        print(json.dumps((outcome, seconds, memory)), file=out, flush=True)


def make(name: str, tree: mutants.Tree, rng: random.Random, place: Path) -> tuple[int, bool]:
    """Write a damaged sample; return its bytes, and whether its checksums are as they were."""
    reader, changed, exact = READERS[name], dict(tree), READERS[name].exact
    files = [path for path in tree if path.endswith(reader.damaged)] if reader.damaged else []
    in_tree = reader.tree and (not files or rng.random() < 0.15)
    if files and not in_tree:
        path, other = rng.choice(files), rng.choice(files)
        if reader.reseal and rng.random() < 0.5:
            changed[path], exact = reader.reseal(rng, path, tree[path]), False
        else:
            changed[path] = mutants.mutate(rng, tree[path], tree[other], text=path.endswith(reader.texts or ("\0",)))
    place.mkdir()
    mutants.write(place, changed)
    if in_tree:
        for _ in range(rng.choice((1, 1, 3))):
            with contextlib.suppress(OSError):  # a second blow may find nothing left
                mutants.hurt_tree(rng, place, list(tree))
    return sum(map(len, changed.values())), exact


def attempt(reader: Reader, place: Path, wanted: str | None) -> str:
    """Read a sample, and say what came of it."""
    try:
        found = reader.read(place)
    except reader.error as error:
        lines = str(error).splitlines()
        return "refused" if len(lines) == 1 and place.name in lines[0] else f"refused without its name: {error}"[:300]
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"[:300]
    if found is None:
        return "told"
    return "read" if wanted in (None, found) else "read as something else than was written"


def forget_peak() -> int:
    """Let the kernel measure the peak of memory again; return what is in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10
