"""Damages small files of weights and loads each: it must load, or be refused by a WeightsError.

    python tests/support/fuzz_weights.py [--format caffe|...|all] [--cases 10000] [--seed 0] [--only CASE]

Files are loaded in child processes, with a limit on memory and on time; a child that dies is one that failed. A case
is known by format, seed and number: `--only` loads it here, and shows what it raises.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from fuzz_files import SAMPLES, Corpus
from reading import load_here
from vggfeat.errors import WeightsError
from vggfeat.weights.sniff import recognise
from vggfeat.weights.tensor_files import load_own

KINDS = {"caffe": "caffe", "matconvnet": "matconvnet", "keras": "keras", "torchvision": "pytorch", "timm": "timm"}
LOAD = {name: partial(load_here, kind=kind) for name, kind in KINDS.items()} | {"safetensors": load_own}
MOST_SECONDS = 10
MOST_MEMORY = 64 << 20
"""Bytes that loading may take beyond 8 times the file: what libraries need once lies within."""
LIMIT = 1 << 30
"""Bytes of address space that a child may take beyond what it starts with; past them, allocations fail."""
PER_CHILD = 250
"""Cases, so that what one leaves behind can't carry far."""


@dataclass
class Counts:
    """What became of the cases of a format."""

    loaded: int = 0
    refused: int = 0
    failed: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)
    """Seconds, case."""
    most: tuple[int, int] = (0, 0)
    """Bytes, case."""

    def add(self, number, outcome, seconds, memory, size):
        self.slowest = max(self.slowest, (seconds, number))
        self.most = max(self.most, (memory, number))
        if memory > MOST_MEMORY + 8 * size:
            outcome = f"took {memory} bytes for a file of {size}"
        if outcome in ("loaded", "refused"):
            setattr(self, outcome, getattr(self, outcome) + 1)
        else:
            self.failed.append(f"case {number}: {outcome}")


def fuzz(name, cases, seed, folder):
    """Run the cases of a format, all of them unless interrupted."""
    corpus, counts, start = Corpus(name, folder), Counts(), 0
    for sample in corpus.samples:  # what is damaged below must be sound
        (folder / "sound").write_bytes(sample)
        recognise(folder / "sound")
        LOAD[name](folder / "sound")
    with contextlib.suppress(KeyboardInterrupt):  # then what was done counts
        while start < cases:
            start = run_child(corpus, range(start, min(start + PER_CHILD, cases)), seed, folder, counts)
    return counts


def run_child(corpus, numbers, seed, folder, counts):
    """Load cases in a child until it ends; return the number of the next case."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), os.fdopen(writing, "w") as out:
            os.close(reading)
            work(corpus, numbers, seed, folder / "case", out)
        os._exit(0)
    os.close(writing)
    try:
        done = listen(reading, numbers, counts)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)  # does nothing to a child that has ended
        status = os.waitpid(child, 0)[1]
    if done == len(numbers):
        return numbers.stop
    code = os.waitstatus_to_exitcode(status)
    how = f"died of {signal.Signals(-code).name}" if code < 0 else "ended too early"
    counts.add(numbers[done], how, 0.0, 0, 0)
    return numbers[done] + 1


def listen(reading, numbers, counts):
    """Count the outcomes that a child reports, one line each; return how many came."""
    waiting, done = b"", 0
    while done < len(numbers):
        if not select.select([reading], [], [], 2 * MOST_SECONDS)[0] or not (found := os.read(reading, 1 << 16)):
            break
        *lines, waiting = (waiting + found).split(b"\n")
        for line in lines:
            counts.add(*json.loads(line))
            done += 1
    return done


def work(corpus, numbers, seed, path, out):
    """In the child: load each case, and report it."""
    warnings.simplefilter("error")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain there about each case
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills: Python's own handlers wait for the library to come back
    for number in numbers:
        content = corpus.case(random.Random(f"{seed}:{corpus.name}:{number}"))
        path.write_bytes(content)
        signal.alarm(MOST_SECONDS)
        before, begun = forget_peak(), time.perf_counter()
        outcome = load(corpus.name, path)
        report = number, outcome, time.perf_counter() - begun, max(0, status("VmHWM") - before), len(content)
        signal.alarm(0)
        print(json.dumps(report), file=out, flush=True)


def load(name, path):
    """Load a file by the reader of its format, and say what came of it."""
    with contextlib.suppress(WeightsError):
        recognise(path)
    try:
        LOAD[name](path)
    except WeightsError as error:
        return "refused" if str(path) in str(error) else f"refused without its name: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:500]
    return "loaded"


def forget_peak():
    """Let the kernel measure the peak of memory again; return what is in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=[*SAMPLES, "all"], default="all")
    parser.add_argument("--cases", type=int, default=10_000, help="for each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="load this case alone, in this process")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = False
    for name in SAMPLES if options.format == "all" else [options.format]:
        with tempfile.TemporaryDirectory() as folder:
            if options.only is not None:
                path = Path(folder) / "case"
                path.write_bytes(
                    Corpus(name, Path(folder)).case(random.Random(f"{options.seed}:{name}:{options.only}"))
                )
                print(LOAD[name](path))
                continue
            begun = time.perf_counter()
            counts = fuzz(name, options.cases, options.seed, Path(folder))
            seconds = time.perf_counter() - begun
        cases = counts.loaded + counts.refused + len(counts.failed)
        failed |= bool(counts.failed) or cases < options.cases
        (slowest, slow), (most, large) = counts.slowest, counts.most
        print(
            f"{name}: {cases} cases in {seconds:.0f} s: {counts.loaded} loaded, {counts.refused} refused, "
            f"{len(counts.failed)} failed; slowest {slowest:.2f} s (case {slow}), most memory {most / 2**20:.1f} MiB "
            f"(case {large})",
            *counts.failed[:20],
            sep="\n  ",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
