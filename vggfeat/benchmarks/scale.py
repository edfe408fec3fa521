"""What a run of any size costs outside the net: planning, a worker's bookkeeping, and starting again.

The list is made up, and so are the features; plan, shards and what reads them are those of every run. A stage runs in a
process of its own, so that its peak of memory is its own.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.engines.engine import ShardTask
from vggfeat.errors import ConfigError, ResourceError
from vggfeat.extract_plan import shard_requests
from vggfeat.listing import BATCH_ROWS, Listing
from vggfeat.runtime.storage import open_storage
from vggfeat.runtime.system import peak_memory
from vggfeat.samples import Task
from vggfeat.store.layout import Block, Shape, Status
from vggfeat.store.plan import Plan, PlanSettings, read_plan, shard_path
from vggfeat.store.planning import write_plan
from vggfeat.store.shard_files import write_shard

if TYPE_CHECKING:
    import pyarrow as pa

STAGES = ("plan", "work", "restart")
SAMPLED = 8
"""Shards that a worker computes; what more of them take follows."""
_CLASSES = 1000


def measure_scale(rows: int, shard_rows: int, channels: int = 4096, scratch: Path | None = None) -> dict[str, Any]:
    """Plan a made-up list, compute some of its shards with an empty forward pass, and start again with all done.

    `channels`: values of an image, kept as a mean in float16. `scratch`: where the run is for a while; some 20 bytes an
    image. What is returned is ready for JSON: seconds, those of all cores at work, and peak of memory in MiB, of each
    stage. Raises ConfigError if there is no row; ResourceError if a stage ends before its time.
    """
    if min(rows, shard_rows, channels) < 1:
        raise ConfigError(f"rows, shard_rows, channels: expected at least 1, found {rows}, {shard_rows}, {channels}")
    found: dict[str, Any] = {"rows": rows, "shard_rows": shard_rows, "channels": channels}
    with tempfile.TemporaryDirectory(prefix="vggfeat-scale-", dir=scratch) as folder:
        for stage in STAGES:
            found[stage] = _apart(stage, folder, rows, shard_rows, channels)
    seconds = found["plan"]["seconds"]
    work = found["work"]
    found["plan"]["rows_per_second"] = round(rows / seconds)
    work["seconds_per_million"] = round(work["seconds"] * 1e6 / work["rows"], 1)
    return found


def _apart(stage: str, *arguments: object) -> dict[str, Any]:
    """Run a stage in a process of its own."""
    words = [sys.executable, "-m", __name__, stage, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2][:300]
        raise ResourceError(
            f"bench scale: expected the stage {stage} to end well, found exit code {done.returncode}: {last}"
        )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _stage(stage: str, folder: str, rows: int, shard_rows: int, channels: int) -> dict[str, Any]:
    begun, spent = time.perf_counter(), time.process_time()
    more = {"plan": _plan, "work": _work, "restart": _restart}[stage](folder, rows, shard_rows, channels)
    seconds, busy = time.perf_counter() - begun, time.process_time()
    peak = peak_memory() / 2**20
    return {"seconds": round(seconds, 3), "cpu_seconds": round(busy - spent, 3), "peak_mib": round(peak), **more}


def _plan(folder: str, rows: int, shard_rows: int, channels: int) -> Mapping[str, Any]:
    listing = _listing(rows)
    draft = Plan(
        storage=open_storage(folder), key={}, provenance={},
        shape=Shape(scales=(256,), regions=("image",), channels=channels),
        settings=PlanSettings(shard_rows=shard_rows, store="mean", dtype="float16"), name=listing.name,
        task=listing.task, classes=listing.classes, root=listing.root, splits={}, columns=(), grouped=False,
        boxed=False, boxes_as_stored=False, image_sizes="", parts=(),
    )  # fmt: skip
    made = write_plan(draft, listing)
    size = sum(entry.size for entry in made.storage.entries("plan"))
    return {"shards": made.shards, "bytes_per_row": round(size / rows, 1)}


def _work(folder: str, rows: int, shard_rows: int, channels: int) -> Mapping[str, Any]:
    plan = read_plan(open_storage(folder))
    done = 0
    for shard in range(0, plan.shards, max(1, plan.shards // SAMPLED)):
        count = len(shard_requests(plan, shard, plan.root))
        random = np.random.default_rng(shard)
        block = Block(
            features=random.random((count, *plan.shape.dims), dtype=np.float32),
            status=np.full(count, Status.DONE, np.uint8),
            reasons=("",) * count,
            sizes=np.full((count, 2), 256, np.int32),
            sha256=np.zeros((count, 32), np.uint8),
        )
        write_shard(plan, shard, block, {"device": "none"})
        done += count
    return {"rows": done}


def _restart(folder: str, rows: int, shard_rows: int, channels: int) -> Mapping[str, Any]:
    plan = ShardTask(run=folder).plan()
    return {"pending": len(set(range(plan.shards)) - plan.present())}


def _listing(rows: int) -> Listing:
    classes = tuple(f"class-{number:04d}" for number in range(_CLASSES))
    return Listing(
        name="folder", task=Task.SINGLE_LABEL, classes=classes, root="/nowhere", batches=lambda: _batches(rows)
    )


def _batches(rows: int) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa

    numbers = pa.list_(pa.int32())
    for start in range(0, rows, BATCH_ROWS):
        places = range(start, min(start + BATCH_ROWS, rows))
        names = [f"class-{place % _CLASSES:04d}/{place:012d}.jpg" for place in places]
        labels = pa.ListArray.from_arrays(
            np.arange(len(names) + 1, dtype=np.int32), np.array([place % _CLASSES for place in places], np.int32)
        ).cast(numbers)
        sizes = np.full(len(names), 100_000, np.int64)
        yield pa.RecordBatch.from_pydict({"id": names, "file": names, "size": sizes, "labels": labels})


def name_all(folder: str) -> None:
    """Give every shard of a plan its name, without content: what a restart finds where all is done."""
    plan = read_plan(open_storage(folder))
    for shard in range(plan.shards):
        path = Path(folder, shard_path(shard))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


if __name__ == "__main__":
    stage, folder, *counts = sys.argv[1:]
    if stage == "restart":
        name_all(folder)
    print(json.dumps(_stage(stage, folder, *map(int, counts))))
