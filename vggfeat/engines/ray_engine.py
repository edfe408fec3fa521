"""The engine for a cluster of Ray: actors, each with a net, whose pool grows with the cluster and shrinks at the end.

They are plain actors, not Ray Data: tried on one cluster, Ray Data held the end of a run for its slowest actor, because
it gives no task twice, and reported an actor's error as a traceback. All that lasts is in the run itself, so that
whatever dies, actor, node or this process, costs the shards that it was at.
"""

import contextlib
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from vggfeat.engines.engine import Progress, ShardTask
from vggfeat.engines.handout import Handout
from vggfeat.errors import ConfigError, ResourceError, VggfeatError, without_number
from vggfeat.extract_plan import ShardResult
from vggfeat.forward.rerun import find_weights
from vggfeat.runtime.storage import joined
from vggfeat.runtime.system import cores
from vggfeat.store.plan import Plan, shard_path
from vggfeat.wording import install_extra

MOST_DEATHS = 3
"""Actors that may end at one shard, or before any has done something, until the run is given up."""
_PATIENCE = 600.0
"""Seconds to wait for a node that can hold a net, which a cluster may be about to start."""
_TICK = 1.0
_MOST_DECODERS = 16
_FINISHED = "finished"
# Read when ray is loaded: no reports home, no advice on variables, no line of a node's log on standard output; two
# minutes, not fourteen, to reach a head that does not answer; and under `uv run` no environment made anew on each node.
LOADED_WITH = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
    "RAY_NUM_REDIS_GET_RETRIES": "3", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}  # fmt: skip
# Without it, a cluster of this machine alone would listen to the network. Ray reads it on all systems.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_OBJECT_STORE = 100 << 20


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Computes in actors of a cluster of Ray, one net an actor, on GPUs if the cluster has some."""

    address: str | None = None
    """HOST:PORT of the head of a cluster, this machine being one of its nodes; auto for the one that runs here; None
    for $RAY_ADDRESS, or, without it, a cluster of this machine alone, on the loopback interface, until all is done."""
    least: int = 1
    """Nets that are asked for at once; more are as soon as these are there."""
    most: int | None = None
    """Nets at a time; None for as many as the cluster has room for."""
    cores: int | None = None
    """CPU cores of a net: threads on a CPU, decoding processes beside a GPU. None: its share of the smallest node."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= (self.least if self.most is None else self.most) or (self.cores or 1) < 1:
            raise ConfigError(
                f"nets: expected at least 1, at most no fewer, and at least 1 core, found {self.least}:{self.most}, "
                f"{self.cores} cores"
            )

    def compute(
        self, task: ShardTask, shards: Sequence[int], progress: Progress | None = None
    ) -> Generator[ShardResult, None, None]:
        """Compute shards; see `Engine`. Progress is called now and then with 0: only finished shards count.

        ConfigError if ray is missing, or there is no such cluster; ResourceError if the cluster has no room for a net,
        or its processes end again and again; VggfeatError of the first actor that could not go on.
        """
        plan = task.plan()
        with _connected(self.address or os.environ.get("RAY_ADDRESS")):
            task, needs = self._fitted(_portable(task, plan))
            pool = _Pool(plan, task, shards, needs, self.least, self.most or len(shards))
            try:
                yield from pool.results(progress)
            finally:
                pool.close()

    def _fitted(self, task: ShardTask) -> tuple[ShardTask, dict[str, Any]]:
        """Choose device, cores and decoding processes by what the nodes have; also return what an actor asks for."""
        nodes = _nodes()
        device = task.device or ("cuda" if any(node.get("GPU", 0) >= 1 for node in nodes) else "cpu")
        kind = "GPU" if device.startswith("cuda") else "node"
        shares = [
            int(node["CPU"] // node.get("GPU", 1)) for node in nodes if node.get(kind, 1) >= 1 <= node.get("CPU", 0)
        ]
        own = self.cores or max(1, min(shares, default=1))
        if kind == "GPU" and self.cores is None:
            own = min(own, _MOST_DECODERS)
        workers = min(own, _MOST_DECODERS) if task.workers is None else task.workers
        return replace(task, device=device, workers=workers), {"num_cpus": own, "num_gpus": int(kind == "GPU")}


class ShardActor:
    """What runs in a process of the cluster. Errors that a user can mend are handed back: Ray would wrap them."""

    def __init__(self, task: ShardTask) -> None:
        self._task = task

    def open(self) -> VggfeatError | None:
        """Load the net."""
        try:
            self._worker = self._task.open()
        except VggfeatError as error:
            return error
        return None

    def compute(self, shards: Sequence[int]) -> Iterator[ShardResult | VggfeatError]:
        """Compute shards."""
        try:
            yield from self._worker.compute(shards)
        except VggfeatError as error:
            yield error


class _Seat:
    """An actor, and the thread that waits for it, so that a signal finds the main thread in code of Python."""

    def __init__(self, actor: Any, events: "queue.SimpleQueue[tuple[_Seat, object]]") -> None:
        self.actor, self.events = actor, events
        self.ready = self.busy = False
        self.chunks: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        threading.Thread(target=self._follow, daemon=True).start()

    def give(self, chunk: list[int]) -> None:
        """Let it compute shards; with none, nothing waits for it any more."""
        self.busy = bool(chunk)
        self.chunks.put(chunk)

    def _follow(self) -> None:
        import ray

        try:
            self._report(ray.get(self.actor.open.remote()))
            while chunk := self.chunks.get():
                for reference in self.actor.compute.options(num_returns="streaming").remote(chunk):
                    self._report(ray.get(reference))
                self._report(_FINISHED)
        except Exception as error:
            self._report(error)

    def _report(self, event: object) -> None:
        self.events.put((self, event))


class _Pool:
    """The actors of a run, and what each is given; each needs CPUs and GPUs, as Ray names them."""

    def __init__(
        self, plan: Plan, task: ShardTask, shards: Sequence[int], needs: dict[str, Any], least: int, most: int
    ) -> None:
        import ray

        self.plan, self.needs, self.least, self.most = plan, needs, least, most
        self.handout = Handout(shards)
        self.events: queue.SimpleQueue[tuple[_Seat, object]] = queue.SimpleQueue()
        self.seats: set[_Seat] = set()
        self._deaths: Counter[int] = Counter()
        self._in_a_row = 0
        self._since = time.monotonic()
        kind = ray.remote(ShardActor).options(max_restarts=0, scheduling_strategy="SPREAD", **needs)
        self._start = lambda: kind.remote(task)

    def results(self, progress: Progress | None) -> Iterator[ShardResult]:
        """Yield what became of each shard, until all are settled."""
        while not self.handout.done:
            self._resize()
            try:
                seat, event = self.events.get(timeout=_TICK)
            except queue.Empty:
                self._check_room()
                if progress is not None:
                    progress(0.0)
                continue
            if seat in self.seats:
                yield from self._react(seat, event)

    def close(self) -> None:
        """End all actors, whatever they do: what is not kept by now is another's."""
        for seat in list(self.seats):
            self._end(seat)

    def _resize(self) -> None:
        """Give work to those that are free, end those that find none, and ask for more while there is work."""
        ready = [seat for seat in self.seats if seat.ready]
        for seat in ready:
            if not seat.busy:
                chunk = self.handout.take(seat, len(ready))
                if chunk:
                    seat.give(chunk)
                else:
                    self._end(seat)
        waiting = len(self.handout.waiting)
        if not waiting:
            for seat in [seat for seat in self.seats if not seat.ready]:
                self._end(seat)
        wanted = min(self.most, max(self.least, 2 * len(ready)), len(ready) + waiting)
        while len(self.seats) < wanted:
            self.seats.add(_Seat(self._start(), self.events))

    def _react(self, seat: _Seat, event: object) -> Iterator[ShardResult]:
        from ray.exceptions import RayError, RayTaskError

        if isinstance(event, RayError) and not isinstance(event, RayTaskError):
            self._bury(seat, event)
            return
        if isinstance(event, BaseException):
            raise event
        self._in_a_row = 0
        if isinstance(event, ShardResult):
            if self.handout.settle(event.shard):
                yield event
        elif event == _FINISHED:
            self.handout.finish(seat)
            seat.busy = False
        else:
            seat.ready = True

    def _bury(self, seat: _Seat, error: BaseException) -> None:
        """Take back what a dead actor had; give up if they die again and again."""
        shard = self.handout.lose(seat)
        self._end(seat)
        said = " ".join(str(error).split())
        _, missing, name = said.rpartition("ModuleNotFoundError")
        if missing:
            raise ConfigError(f"Ray: expected this version of vggfeat on every node, found one without{name[:100]}")
        self._in_a_row += 1
        if shard is not None:
            self._deaths[shard] += 1
        if self._deaths[shard] >= MOST_DEATHS if shard is not None else self._in_a_row >= MOST_DEATHS * self.least:
            what = "a net" if shard is None else joined(self.plan.where, shard_path(shard))
            raise ResourceError(
                f"{what}: expected an actor of Ray that stays until it is there, found that {MOST_DEATHS} have ended; "
                f"look at the memory of the nodes: {said[:300]}"
            )

    def _end(self, seat: _Seat) -> None:
        import ray

        self.seats.discard(seat)
        seat.give([])
        with contextlib.suppress(Exception):  # It is dead, or the cluster is.
            ray.kill(seat.actor)

    def _check_room(self) -> None:
        """Give up when no net has a place, and no node that could hold one has come."""
        now = time.monotonic()
        if any(seat.ready for seat in self.seats) or any(self._holds(node) for node in _nodes()):
            self._since = now
        elif now - self._since > _PATIENCE:
            asked = f"{self.needs['num_cpus']} CPUs" + (" and a GPU" if self.needs["num_gpus"] else "")
            raise ResourceError(
                f"Ray: expected a node with {asked} for a net, found none within {_PATIENCE:g} s; start one, or choose "
                "others with --cores and --device"
            )

    def _holds(self, node: dict[str, float]) -> bool:
        return node.get("CPU", 0) >= self.needs["num_cpus"] and node.get("GPU", 0) >= self.needs["num_gpus"]


def _portable(task: ShardTask, plan: Plan) -> ShardTask:
    """Return the task with names that do not depend on the folder that a process runs in."""
    found = plan.key | plan.provenance
    weights = task.weights or find_weights(str(found.get("weights_sha256")), str(found.get("weights")))
    if weights is not None and os.path.isfile(weights):
        weights = os.path.abspath(weights)
    return replace(task, run=plan.where, weights=weights)


def _nodes() -> list[dict[str, float]]:
    """Return what each living node has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster; one that the program is connected to already is taken as it is."""
    ray = _load(alone=address is None)
    if ray.is_initialized():
        yield
        return
    if address is not None:
        _check_address(address)
    # In a thread of its own, because in the main thread Ray would take SIGTERM for itself; it lives until all is shut
    # down, because what it starts ends with it.
    with ThreadPoolExecutor(1) as starter:
        try:
            starter.submit(_connect, ray, address).result()
            _take_back_sigterm()
            yield
        finally:
            starter.submit(ray.shutdown).result()


def _load(*, alone: bool) -> Any:
    for name, value in (LOADED_WITH | (_LOOPBACK if alone else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ConfigError(f"engine ray: the package ray is missing; {install_extra('ray')}") from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    own = {"num_cpus": cores(), "object_store_memory": _OBJECT_STORE, "include_dashboard": False}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL,
            **(own if address is None else {}),
        )  # fmt: skip
    except Exception as error:  # Each cause has a class of its own.
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"Ray: expected a cluster at {address or 'this machine'}, found: {said}") from None


def _take_back_sigterm() -> None:
    """Let SIGTERM mean again what it did: the core of Ray, in C++, prints a trace for it, and aborts."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _check_address(address: str) -> None:
    """Look whether somebody answers there: Ray would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise ConfigError(f"address: expected auto, or HOST:PORT of the head of a cluster of Ray, found {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"address: expected the head of a cluster of Ray at {address}, found: {without_number(error)}; ray start "
            "--head starts one"
        ) from None
