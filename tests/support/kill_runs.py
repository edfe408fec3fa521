"""Kills `vggfeat extract` with SIGKILL at random moments until it has been killed often enough, then lets it finish.

    python tests/support/kill_runs.py KILLS SEED -- extract ...

The parent has loaded everything and computed nothing, so that a run is a fork away. It prints one JSON line.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from vggfeat import extract, table
from vggfeat.cli import run
from vggfeat.datasets import catalogue
from vggfeat.store import export

LOADED = torch, extract, catalogue, export, table
"""What the command imports late: seconds that a fork need not spend again."""


def start(arguments: list[str]) -> int:
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(run(arguments))
    return child


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def shards(out: Path) -> set[str]:
    return {path.name for path in Path(f"{out}.parts").glob("s*.h5")}


def main() -> None:
    kills, seed = int(sys.argv[1]), int(sys.argv[2])
    arguments = sys.argv[4:]
    out = Path(arguments[arguments.index("--out") + 1])
    whole = out.with_name("whole.h5")
    begun = time.monotonic()
    code = finish(start([*arguments[: arguments.index("--out")], "--out", str(whole)]))
    seconds = time.monotonic() - begun
    rng = random.Random(seed)
    killed = finished_early = lost = 0
    while killed < kills:
        before = shards(out)
        child = start(arguments)
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        if finish(child) == -signal.SIGKILL:
            killed += 1
            lost += len(before - shards(out)) if not out.exists() else 0
        else:
            finished_early += 1
            out.unlink()
    last = finish(start(arguments))
    report = {
        "seconds": seconds,
        "first": code,
        "killed": killed,
        "finished_early": finished_early,
        "lost_shards": lost,
        "last": last,
        "equal": out.read_bytes() == whole.read_bytes(),
        "left": sorted(path.name for path in out.parent.iterdir()),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
