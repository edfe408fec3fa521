"""A cluster of Ray of several raylets on the loopback interface, and ways to kill its parts."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vggfeat.engines.ray_engine import LOADED_WITH

# Read when ray is loaded: else nodes would take the address of this machine, which others can reach.
_LOADED_WITH = {**LOADED_WITH, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Inherited by the nodes, whose actors else would have a thread a core of the node.
_INHERITED = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Set the variables that ray, which must not have been loaded yet, and the nodes of a cluster read."""
    before = dict(os.environ)
    os.environ |= _LOADED_WITH | _INHERITED
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


@contextlib.contextmanager
def cluster(*cores: int) -> Iterator[Any]:
    """Start a head without cores, and a node for each of these numbers of cores; within `on_loopback`."""
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    listening = signal.getsignal(signal.SIGTERM)  # a node takes it for itself
    small = {"object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
    started = Cluster()
    try:
        started.add_node(num_cpus=0, include_dashboard=False, **small)
        for count in cores:
            started.add_node(num_cpus=count, **small)
        yield started
    finally:
        started.shutdown()
        signal.signal(signal.SIGTERM, listening)


def actors_of(node: Any) -> list[int]:
    """Return the processes of a node that compute shards."""
    (raylet,) = node.all_processes["raylet"]
    return [pid for pid in _children(raylet.process.pid) if _title(pid).startswith("ray::ShardActor")]


def signal_actor(node: Any, number: int = signal.SIGKILL, patience: float = 60.0) -> int:
    """Send one a signal as soon as there is one, and return which."""
    end = time.monotonic() + patience
    while not (found := actors_of(node)):
        assert time.monotonic() < end, "no actor came"
        time.sleep(0.05)
    os.kill(found[0], number)
    return found[0]


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""
