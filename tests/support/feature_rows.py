"""A small data set with awkward names, and features whose every value follows from its place."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vggfeat.runtime.durable import DISK
from vggfeat.samples import DataSet, Task
from vggfeat.store.failures import failures_path
from vggfeat.store.layout import Block, Shape, Status
from vggfeat.store.writer import FeatureWriter

SHAPE = Shape(scales=(256, 384), regions=("image", "box"), channels=5)
KEY = {
    "weights_sha256": "ab" * 32,
    "network": "D",
    "layer": "fc7",
    "precision": "fp32",
    "interpolation": "bicubic",
    "batch": 8,
    "mean": [123.68, 116.779, 103.939],
    "mirror": True,
    "versions": {"torch": "2.11", "pillow": "13.0", "vggfeat": "0.1.0"},
}
PROVENANCE = {"device": "cpu", "note": "épreuve"}
ROWS = 23
SHARD_ROWS = 8
FAILED = {3: "truncated", 17: "not-an-image"}
ALONE = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Variables by which a process has one thread."""
ODD_NAMES = ("a\nb.jpg", "c,'d\".jpg", "é𝄞.jpg", "raw-\udcff.jpg", " space .jpg")


def make_dataset(rows=ROWS, **changes):
    names = tuple(ODD_NAMES[row] if row < len(ODD_NAMES) else f"{row:06d}.jpg" for row in range(rows))
    labels = np.where(np.arange(rows)[:, None] % 3 == np.arange(2), 1, -1).astype(np.int8)
    boxes = np.full((rows, 4), np.nan)
    boxes[1:2] = [0, 1, 20.5, 30]
    half = rows // 2
    columns = {
        "name": "voc2007",
        "task": Task.MULTI_LABEL,
        "classes": ("cat", "dining table"),
        "ids": tuple(f"id {name}" for name in names),
        "paths": names,
        "labels": labels,
        "boxes": boxes,
        "splits": {"train-1": np.arange(half), "test": np.arange(half, rows), "none": np.zeros(0, np.int64)},
    }
    return DataSet(**(columns | changes))


def feature(row, scale, region, channel):
    """Exact in float32: sums of small binary fractions."""
    return row + scale / 4 + region / 8 + channel / 64


def make_block(rows, shape=SHAPE, failed=None):
    failed = FAILED if failed is None else failed
    places = np.meshgrid(np.array(rows), *(np.arange(size) for size in shape.dims), indexing="ij")
    status = [Status.FAILED if row in failed else Status.DONE for row in rows]
    return Block(
        features=feature(*places).astype(np.float32),
        status=np.array(status, np.uint8),
        reasons=tuple(failed.get(row, "") for row in rows),
        sizes=np.array([(0, 0) if row in failed else (row + 1, 2 * row + 1) for row in rows], np.int32),
        sha256=np.array([[row % 256] * 32 for row in rows], np.uint8),
    )


def open_parts(out, dataset=None, *, key=KEY, shape=SHAPE, files=DISK, **settings):
    settings = {"shard_rows": SHARD_ROWS} | settings
    return FeatureWriter.open(out, make_dataset() if dataset is None else dataset, key, shape, files=files, **settings)


def finish(out, dataset=None, *, committed=lambda shard: None, **settings):
    """Begin or go on, to the end; calls `committed` after each shard."""
    with open_parts(out, dataset, **settings) as parts:
        if not parts.complete:
            for shard in parts.pending:
                parts.append(shard, make_block(parts.rows(shard), parts.shape))
                committed(shard)
            parts.finish(PROVENANCE)
    return out


def finished(out):
    """Names of the files that `finish` leaves."""
    return {out.name, failures_path(out).name}


@contextmanager
def memory_folder():
    """Give a new folder in memory if the system has such a place, where a sync costs nothing."""
    shared = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name)


def seen_by(module, seconds=300):
    """Run a module of tests.support in a process of its own, with a folder in memory, and return what it saw."""
    support = Path(__file__).parent
    with memory_folder() as folder:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", f"tests.support.{module}", str(folder)],
            cwd=support.parents[1],
            env=os.environ | ALONE | {"PYTHONPATH": str(support)},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def crash_run(mode, folder, *arguments, seconds=600):
    """Run a mode of crash_runs.py in a process of its own, which must end in peace, and return what it saw."""
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), str(tests.parents[1])])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(tests / "crash_runs.py"), mode, str(folder), *map(str, arguments)],
        env=os.environ | ALONE | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    assert done.stderr == ""
    return json.loads(done.stdout)
