"""Several processes that do one job: who takes what, and how they agree.

torchrun starts the processes, on one machine or several, and tells each its place by RANK, LOCAL_RANK and WORLD_SIZE.
"""

import functools
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vggfeat.errors import ConfigError, VggfeatError
from vggfeat.runtime.devices import checked_device

T = TypeVar("T")
LONGEST_START = timedelta(minutes=30)
"""Between the first process that is there and the last."""
LONGEST_WAIT = timedelta(days=100)
"""For the slowest process. One that has gone is noticed at once, so that this is no more than "for ever"."""
LONGEST_TALK = timedelta(minutes=2)
"""For an exchange when all are there; one that dies in its first moments may be missed for so long."""
LONGEST_SILENCE = timedelta(seconds=30)
"""Of a process that waits for others to start, before it says for which."""
MOST_PROCESSES, MOST_NAMED = 65536, 10
"""Of a run, and of those that a note names."""
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.5
"""Seconds between two looks whether all are there."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. With a single process every method is trivial."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None
    """Group of the same processes for what is on the CPU, so that agreeing never waits for a GPU."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes what there is one of."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """Return which rows of a batch are this process's."""
        return share(batch, self.rank, self.size)

    def any(self, flag: bool) -> bool:
        """Say whether the flag is set in one of the processes; the answer is the same in all."""
        if self.size == 1:
            return flag
        found = torch.tensor([int(flag)])
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return bool(found.item())

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_reduce_min(self, value: int) -> int:
        """Return the smallest of the processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor([value])
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.control)
        return int(found.item())

    def broadcast(self, tensor: Tensor) -> None:
        """Set a tensor to what it is in the first process."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something in the first process only; all return its result, or raise its error.

        The result goes through pickle between our own processes, so it must be plain data.
        """
        if self.size == 1:
            return action()
        told: list[Any] = [None, None]
        if self.is_main:
            try:
                told[0] = action()
            except VggfeatError as error:
                told[1] = error
        self.barrier()
        dist.broadcast_object_list(told, src=0, group=self.control)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank; they too must be plain data."""
        if self.size == 1:
            return [value]
        self.barrier()
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def barrier(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until all processes are here, however long that takes; `meanwhile` is called again and again.

        A signal ends the wait, as it would end any other work.
        """
        if self.size == 1:
            return
        settings = dist.AllreduceOptions()
        settings.timeout, settings.asyncOp = LONGEST_WAIT, True
        work = self.control.allreduce([torch.zeros(1)], settings)
        _wait_for(work.is_completed, LONGEST_WAIT, meanwhile)
        work.wait()


def _wait_for(come: Callable[[], bool], longest: timedelta, meanwhile: Callable[[], None] = lambda: None) -> None:
    # Python heeds signals between its own steps only, and a blocking wait of PyTorch is a single one.
    pause, end = FIRST_PAUSE, time.monotonic() + longest.total_seconds()
    while not come():
        if time.monotonic() > end:
            raise RuntimeError("connection timed out")
        meanwhile()
        time.sleep(pause)
        pause = min(1.2 * pause, LONGEST_PAUSE)


def share(count: int, rank: int, world: int) -> slice:
    """Return the part of `count` things that is one process's; those of all, in the order of ranks, are the whole."""
    return slice(count * rank // world, count * (rank + 1) // world)


@contextmanager
def open_world(
    device: str, environ: Mapping[str, str], *, lost: type[VggfeatError], sums: bool = False
) -> Iterator[World]:
    """Join the processes that torchrun has started, and leave them at the end; without torchrun, be alone.

    Parameters
    ----------
    device : str
        cpu, cuda, cuda:1, ...; cuda becomes the GPU of LOCAL_RANK.
    environ : mapping
        `os.environ`: WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as torchrun sets them.
    lost : class of error
        What is raised if another process has gone.
    sums : bool
        Whether `sum` and `broadcast` will be asked for, which on GPUs takes NCCL.

    Raises
    ------
    ConfigError
        If the device is not there, or a variable of `environ` is missing or wrong.
    VggfeatError
        Of class `lost`, if another process has gone.
    """
    size = _number(environ, "WORLD_SIZE", 1, MOST_PROCESSES, "1")
    if size == 1:
        yield World(device=checked_device(device))
        return
    point = _point(environ, size)
    local = _number(environ, "LOCAL_RANK", 0, size - 1, "0")
    place = checked_device(f"cuda:{local}" if device == "cuda" else device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    nccl = sums and place.type == "cuda"
    try:
        control = _join(point, "nccl" if nccl else "gloo", LONGEST_START if sums else LONGEST_TALK)
        yield World(rank=point.rank, size=size, device=place, control=control)
    # After an interrupt, groups stay as they are: to end one waits for all that was asked of it.
    except Exception as error:
        if dist.is_initialized() and not nccl:  # NCCL would wait for what the lost process can't do any more.
            dist.destroy_process_group()
        if not (isinstance(error, RuntimeError) and _lost(error)):
            raise
        told = lost(
            f"process {point.rank} of {size}: expected all processes of the run, lost touch with one; its own "
            "message says why; what is finished is kept: start all again (training: with --resume)"
        )
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        raise told from error
    else:
        dist.destroy_process_group()


class _Point(NamedTuple):
    """Where the processes meet, and which of them this is."""

    address: str
    port: int
    rank: int
    size: int
    hosts: bool
    """Whether this process keeps what they tell each other; under torchrun, that does."""


def _point(environ: Mapping[str, str], size: int) -> _Point:
    rank, port = _number(environ, "RANK", 0, size - 1), _number(environ, "MASTER_PORT", 1, 65535)
    if not environ.get("MASTER_ADDR"):
        raise ConfigError("MASTER_ADDR: expected the machine of process 0, found none; let torchrun start the command")
    hosts = rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return _Point(environ["MASTER_ADDR"], port, rank, size, hosts)


def _number(environ: Mapping[str, str], name: str, least: int, most: int, default: str = "") -> int:
    text = environ.get(name, default)
    if re.fullmatch("[0-9]{1,5}", text) and least <= int(text) <= most:
        return int(text)
    found = repr(text) if text else "none"
    raise ConfigError(f"{name}: expected {least} to {most}, found {found}; let torchrun start the command")


def _join(point: _Point, backend: str, longest: timedelta) -> Any:
    """Begin a process group, and return another one of the same processes for what is on the CPU."""
    where = "" if point.rank == 0 else f" at {point.address}, port {point.port}"
    # It blocks until process 0 is there.
    note = _note_of(point, lambda: [0] * (point.rank > 0), where)
    try:
        common = _heeding_signals(lambda: _meeting_point(point), note)
    except dist.DistError as error:
        if not point.hosts:
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"MASTER_ADDR, MASTER_PORT: expected this machine and a free port of it, found {point.address}, "
            f"{point.port}: {reason}; choose others, or let torchrun start the command"
        ) from None
    store = dist.PrefixStore(_agree(common, point), common)

    def begin() -> Any:
        dist.init_process_group(backend, store=store, rank=point.rank, world_size=point.size, timeout=longest)
        return dist.new_group(backend="gloo", timeout=longest)

    # A thread has no GPU of its own choice, which NCCL asks for.
    return begin() if backend == "nccl" else _heeding_signals(begin)


def _heeding_signals(action: Callable[[], T], meanwhile: Callable[[], None] = lambda: None) -> T:
    """Do in another thread what blocks until all have come, one of which may die meanwhile."""
    ended: Future[T] = Future()

    def run() -> None:
        try:
            ended.set_result(action())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name="vggfeat-joining", daemon=True).start()
    _wait_for(ended.done, LONGEST_START, meanwhile)
    return ended.result()


def _agree(common: "dist.Store", point: _Point) -> str:
    """Meet the other processes, and return a name that no group before has had.

    torchrun's meeting point outlives the processes, and so still knows where those were that have died. Each process
    comes with a word of its own, and the first welcomes it with that word and its own.
    """
    word, rank = uuid.uuid4().hex, point.rank

    def missing() -> list[int]:
        return [other for other in range(1, point.size) if not common.check([f"{word} {other}"])]

    def all_here() -> bool:
        for other in range(1, point.size):
            if common.check([f"here {other}"]):
                common.set(f"welcome {other}", f"{common.get(f'here {other}').decode()} {word}")
        return common.check([f"{word} {other}" for other in range(1, point.size)])

    def welcome() -> bool:
        return common.check([f"welcome {rank}"]) and common.get(f"welcome {rank}").decode().startswith(word)

    if rank == 0:
        _wait_for(all_here, LONGEST_START, _note_of(point, missing))
        return word
    common.set(f"here {rank}", word)
    _wait_for(welcome, LONGEST_START, _note_of(point, lambda: [0]))
    name = common.get(f"welcome {rank}").decode().split()[1]
    common.set(f"{name} {rank}", "")
    return name


def _note_of(point: _Point, missing: Callable[[], Sequence[int]], where: str = "") -> Callable[[], None]:
    """Return what says, once and not before a while has passed, for which processes this one waits."""
    due, said = time.monotonic() + LONGEST_SILENCE.total_seconds(), threading.Event()

    def note() -> None:
        if not said.is_set() and time.monotonic() >= due:
            said.set()
            if not (names := [str(rank) for rank in missing()]):
                return
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            who = f"process{'es' * (len(names) > 1)} {', '.join(names[:MOST_NAMED])}{more} of {point.size}{where}"
            speaker = "" if point.rank == 0 else f"process {point.rank}: "
            sys.stderr.write(f"note: {speaker}waiting for {who}\n")
            sys.stderr.flush()

    return note


@functools.cache
def _meeting_point(point: _Point) -> "dist.Store":
    # Once a process: a second one of the first process would be mistaken for the one that it is closing. Who is missing
    # is seen, and told, in `_agree`.
    return dist.TCPStore(
        point.address, point.port, is_master=point.hosts, timeout=LONGEST_START, wait_for_workers=False,
        multi_tenant=point.hosts,
    )  # fmt: skip


def _lost(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(sign in text for sign in ("gloo", "nccl", "connection"))
