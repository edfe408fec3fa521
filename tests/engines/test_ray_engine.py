"""Shards computed by actors of a cluster of Ray, several raylets on the loopback interface, of which parts are killed.

The bytes of a run are those of a single process, whatever has died. The long form runs the command itself, and kills a
node and the driver as well.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ray_clusters import actors_of, cluster, on_loopback, signal_actor
from vggfeat.cli import run as command
from vggfeat.datasets.catalogue import open_dataset
from vggfeat.engines.engine import LocalEngine, ShardTask
from vggfeat.engines.ray_engine import RayEngine
from vggfeat.errors import WeightsError
from vggfeat.extract_plan import make_plan
from vggfeat.forward.features import ExtractionSettings
from vggfeat.listing import listing_of
from vggfeat.runtime.storage import open_storage
from vggfeat.store.plan import PlanSettings
from vggfeat.weights import random_backbone

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the engine of Ray needs ray")
NET = "random:A:0:0.03125"
IMAGES, ROWS = 40, 2
SHARDS = IMAGES // ROWS


@pytest.fixture(scope="module", autouse=True)
def loopback():
    with on_loopback():
        yield


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A run of 20 shards, with an image that fails, of which nothing is computed."""
    folder = tmp_path_factory.mktemp("ray")
    for number in range(IMAGES - 1):
        place = folder / "images" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (60, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place)
    (folder / "images" / "a" / "bad.png").write_bytes(b"no image")
    listing = listing_of(open_dataset("folder", folder / "images"))
    settings = ExtractionSettings(scales=(224,))
    make_plan(listing, random_backbone(NET), open_storage(folder / "run"), settings, plan=PlanSettings(shard_rows=ROWS))
    return folder / "run"


@pytest.fixture(scope="module")
def one_process(planned):
    """What a process with one thread, as an actor with one core is, makes of it."""
    import torch

    run, threads = planned.with_name("one"), torch.get_num_threads()
    shutil.copytree(planned, run)
    torch.set_num_threads(1)
    try:
        list(LocalEngine().compute(task_of(run), range(SHARDS)))
    finally:
        torch.set_num_threads(threads)
    return contents(run)


@pytest.fixture(scope="module")
def small_cluster():
    with cluster(1) as started:
        yield started


def task_of(run):
    return ShardTask(run=str(run), weights=NET, device="cpu", workers=0)


def contents(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_an_actor_that_dies_costs_its_shard(planned, one_process, small_cluster, tmp_path):
    run = shutil.copytree(planned, tmp_path / "run")
    (node,) = small_cluster.worker_nodes
    listening = signal.getsignal(signal.SIGTERM)
    results = RayEngine(address=small_cluster.address, cores=1).compute(task_of(run), range(SHARDS))
    found = [next(results)]
    killed = signal_actor(node)
    found += results
    assert killed not in actors_of(node)
    assert contents(run) == one_process
    assert len({result.shard for result in found}) == len(found)
    assert len(found) >= SHARDS - 1  # one that was kept in the moment of the kill is left out
    assert signal.getsignal(signal.SIGTERM) == listening


def test_an_actors_error_is_raised_as_it_is(planned, small_cluster):
    task = replace(task_of(planned), weights="random:A:1:0.03125")
    with pytest.raises(WeightsError, match=r"expected the weights that .* was made with"):
        list(RayEngine(address=small_cluster.address, cores=1).compute(task, [0]))


def extract(run, started, *more):
    words = ["--plan", str(run), "--weights", NET, "--workers", "0", "--engine", "ray", "--address", started.address]
    line = [sys.executable, "-m", "vggfeat", "extract", *words, "--nets", "2", "--cores", "1", *more]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(run):
    return len([path for path in run.rglob("part-*.parquet") if path.parent.parent.name == "features"])


@pytest.mark.long
def test_whatever_dies_the_same_command_ends_with_the_same_bytes(planned, one_process, tmp_path):
    """One cluster of three raylets for all, since each takes seconds to start; the node dies last."""
    with cluster(1, 1) as started:
        for victim in ("actor", "straggler", "driver", "SIGINT", "SIGTERM", "node"):
            run = shutil.copytree(planned, tmp_path / victim)
            process = extract(run, started)
            while finished(run) < 3 and process.poll() is None:
                time.sleep(0.05)
            node = next(iter(started.worker_nodes))
            if victim == "actor":
                signal_actor(node)
            elif victim == "straggler":
                signal_actor(node, signal.SIGSTOP)  # the other actor does its shards; Ray ends it afterwards
            elif victim == "node":
                started.remove_node(node, allow_graceful=False)
            else:
                os.killpg(process.pid, getattr(signal, victim, signal.SIGKILL))
            out, err = process.communicate(timeout=300)
            ends = {"driver": -signal.SIGKILL, "SIGINT": 130, "SIGTERM": 143}
            assert process.returncode == ends.get(victim, 3), (victim, err)
            assert "Traceback" not in err
            kept = finished(run)
            if victim in ends:
                assert 3 <= kept < SHARDS
                assert out == ""
                process = extract(run, started)
                out, err = process.communicate(timeout=300)
                assert process.returncode in (0, 3), (victim, err)  # the shard of the bad image may be there
                assert f"{kept} done before" in out
            assert len(out.splitlines()) == 1
            assert contents(run) == one_process, victim


@pytest.mark.parametrize(("words", "said"), [
    (["--address", "somewhere"], "expected auto, or HOST:PORT of the head of a cluster of Ray, found 'somewhere'"),
    (["--address", "127.0.0.1:9"], "expected the head of a cluster of Ray at 127.0.0.1:9, found: Connection refused"),
])  # fmt: skip
def test_no_cluster_is_one_line(planned, words, said, capsys):
    assert command(["extract", "--plan", str(planned), "--engine", "ray", "--quiet", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
