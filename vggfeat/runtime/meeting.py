"""How the processes of a run meet: at a store of PyTorch that torchrun keeps, or the first of them.

On one machine they meet and talk on the loopback interface, as far as this is the one who decides.
"""

import contextlib
import functools
import ipaddress
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from vggfeat.errors import ConfigError
from vggfeat.runtime.watch import Watch, named

T = TypeVar("T")
LONGEST_START = timedelta(minutes=30)
"""Between the first process that is there and the last."""
LONGEST_SILENCE = timedelta(seconds=10)
"""Of a process that waits for others, before it says for which."""
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.5
"""Seconds between two looks whether all are there."""
_WORD = re.compile("[0-9a-f]{32}")


def wait_for(come: Callable[[], bool], longest: timedelta, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Look again and again, and heed signals in between; RuntimeError after the longest time."""
    # Python heeds signals between its own steps only, and a blocking wait of PyTorch is a single one.
    pause, end = FIRST_PAUSE, time.monotonic() + longest.total_seconds()
    while not come():
        if time.monotonic() > end:
            raise RuntimeError("connection timed out")
        meanwhile()
        time.sleep(pause)
        pause = min(1.2 * pause, LONGEST_PAUSE)


class Point(NamedTuple):
    """Where the processes meet, and which of them this is."""

    address: str
    port: int
    rank: int
    size: int
    hosts: bool
    """Whether this process keeps what they tell each other; under torchrun, that does."""
    one_machine: bool
    """Whether all are on this machine."""


def point_of(environ: Mapping[str, str], size: int) -> Point:
    """Read where the processes meet; ConfigError if that is not said."""
    rank, port = number(environ, "RANK", 0, size - 1), number(environ, "MASTER_PORT", 1, 65535)
    if not environ.get("MASTER_ADDR"):
        raise ConfigError("MASTER_ADDR: expected the machine of process 0, found none; let torchrun start the command")
    hosts = rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    one_machine = _is_loopback(environ["MASTER_ADDR"]) or environ.get("LOCAL_WORLD_SIZE") == str(size)
    return Point(environ["MASTER_ADDR"], port, rank, size, hosts, one_machine)


def _is_loopback(address: str) -> bool:
    try:
        found = {str(where[0]) for *_, where in socket.getaddrinfo(address, None)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(one.partition("%")[0]).is_loopback for one in found)


@contextmanager
def talking_on_loopback() -> Iterator[None]:
    """Let Gloo and NCCL listen on the loopback interface, unless the user has named another."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    chosen = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if names and name not in os.environ]
    os.environ.update(dict.fromkeys(chosen, names[0] if names else ""))
    try:
        yield
    finally:
        for name in chosen:
            os.environ.pop(name, None)


def number(environ: Mapping[str, str], name: str, least: int, most: int, default: str = "") -> int:
    """Read a whole number; ConfigError if it is none, or out of its range."""
    text = environ.get(name, default)
    if re.fullmatch("[0-9]{1,5}", text) and least <= int(text) <= most:
        return int(text)
    found = repr(text) if text else "none"
    raise ConfigError(f"{name}: expected {least} to {most}, found {found}; let torchrun start the command")


def join(point: Point, backend: str, longest: timedelta, stack: ExitStack) -> tuple[Watch, Any]:
    """Begin a process group, and return another one of the same processes for what is on the CPU.

    The watch over them ends with `stack`.
    """
    where = "" if point.rank == 0 else f" at {point.address}, port {point.port}"
    # It blocks until process 0 is there.
    note = _note_of(point, lambda: [0] * (point.rank > 0), where)
    try:
        common = _heeding_signals(lambda: _meeting_point(point), note)
    except (dist.DistError, OSError) as error:
        if not point.hosts:
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"MASTER_ADDR, MASTER_PORT: expected this machine and a free port of it, found {point.address}, "
            f"{point.port}: {reason}; choose others, or let torchrun start the command"
        ) from None
    name = _agree(common, point)
    store = dist.PrefixStore(name, common)
    watch = Watch(
        dist.PrefixStore(name, common.clone()), point.rank, point.size, silence=LONGEST_SILENCE.total_seconds(),
        where=f"the meeting point at {point.address}, port {point.port},", say=lambda sentence: _say(point, sentence),
    ).start()  # fmt: skip
    stack.callback(watch.close)

    def begin() -> Any:
        dist.init_process_group(backend, store=store, rank=point.rank, world_size=point.size, timeout=longest)
        return dist.new_group(backend="gloo", timeout=longest)

    # A thread has no GPU of its own choice, which NCCL asks for.
    return watch, begin() if backend == "nccl" else _heeding_signals(begin)


def _heeding_signals(action: Callable[[], T], meanwhile: Callable[[], None] = lambda: None) -> T:
    """Do in another thread what blocks until all have come, one of which may die meanwhile."""
    ended: Future[T] = Future()

    def run() -> None:
        try:
            ended.set_result(action())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name="vggfeat-joining", daemon=True).start()
    wait_for(ended.done, LONGEST_START, meanwhile)
    return ended.result()


def _agree(common: "dist.Store", point: Point) -> str:
    """Meet the other processes, and return a name that no group before has had.

    torchrun's meeting point outlives the processes, and so still knows where those were that have died. Each process
    comes with a word of its own, and the first welcomes it with that word and its own.
    """
    word, rank = uuid.uuid4().hex, point.rank

    def words(key: str) -> list[str]:
        # Of whoever has reached the store: what is no word of a process is not there.
        return _WORD.findall(common.get(key).decode("ascii", "replace")[:99]) if common.check([key]) else []

    def missing() -> list[int]:
        return [other for other in range(1, point.size) if not common.check([f"{word} {other}"])]

    def all_here() -> bool:
        for other in range(1, point.size):
            for theirs in words(f"here {other}"):
                common.set(f"welcome {other}", f"{theirs} {word}")
        return common.check([f"{word} {other}" for other in range(1, point.size)])

    def welcome() -> bool:
        return len(found := words(f"welcome {rank}")) == 2 and found[0] == word

    if rank == 0:
        wait_for(all_here, LONGEST_START, _note_of(point, missing))
        return word
    common.set(f"here {rank}", word)
    wait_for(welcome, LONGEST_START, _note_of(point, lambda: [0]))
    _, name = words(f"welcome {rank}")
    common.set(f"{name} {rank}", "")
    return name


def _note_of(point: Point, missing: Callable[[], Sequence[int]], where: str = "") -> Callable[[], None]:
    """Return what says, once and not before a while has passed, for which processes this one waits."""
    due, said = time.monotonic() + LONGEST_SILENCE.total_seconds(), threading.Event()

    def note() -> None:
        if not said.is_set() and time.monotonic() >= due:
            said.set()
            if ranks := missing():
                _say(point, f"waiting for {named(list(ranks), point.size)}{where}")

    return note


def _say(point: Point, sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"note: {'' if point.rank == 0 else f'process {point.rank}: '}{sentence}\n")
        sys.stderr.flush()


@functools.cache
def _meeting_point(point: Point) -> "dist.Store":
    # Once a process: a second one of the first process would be mistaken for the one that it is closing. Who is missing
    # is seen, and named, in `_agree`.
    return dist.TCPStore(
        point.address, point.port, is_master=point.hosts, timeout=LONGEST_START, wait_for_workers=False,
        multi_tenant=point.hosts, master_listen_fd=_listen(point) if point.hosts else None,
    )  # fmt: skip


def _listen(point: Point) -> int | None:
    """Listen where the others will come, if that is on the loopback interface; PyTorch would listen on all of them."""
    if not _is_loopback(point.address):
        return None
    family, kind, _, _, where = socket.getaddrinfo(point.address, point.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(1024)
        return listening.detach()
