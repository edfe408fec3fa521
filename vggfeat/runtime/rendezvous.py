"""Rendezvous of a run's processes at a store of PyTorch, which torchrun or the first process keeps.

On one machine they meet and talk on the loopback interface, as far as this is the one who decides.

A collective operation blocks until all processes have come, and PyTorch says neither who is missing nor that somebody
is. So threads of their own exchange signs of life through that store, and one process names those behind. The threads
need nothing of the work: a process that is stopped, or whose machine is out of reach, falls silent; one that computes
does not.
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
from vggfeat.runtime.system import torchrun_number

T = TypeVar("T")
LONGEST_START = timedelta(minutes=30)
"""Between the first process that is there and the last."""
LONGEST_SILENCE = timedelta(seconds=10)
"""Of a process that waits for others, before it says for which."""
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.5
"""Seconds between two looks whether all are there."""
_WORD = re.compile("[0-9a-f]{32}")
MOST_NAMED = 10
"""Processes that a note names."""
_GONE = "gone"


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
    rank, port = torchrun_number(environ, "RANK", 0, size - 1), torchrun_number(environ, "MASTER_PORT", 1, 65535)
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


class _Sign(NamedTuple):
    """What was last read of a process."""

    text: str
    since: float
    """When it was first read."""


class Watch:
    """The signs of life of all processes, as one of them exchanges them; begun by `start`, ended by `close`.

    The store, which is `where` in words, is of this run and of nobody else in this process: an exchange may block. A
    process may be silent, or waited for, `silence` seconds before it is named: `say` is called with a sentence, in
    another thread.
    """

    def __init__(
        self, store: Any, rank: int, size: int, *, silence: float, where: str, say: Callable[[str], None]
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._silence, self._where, self._say = silence, where, say
        self._keys = [f"sign {other}" for other in range(size)]
        self._signs: list[_Sign] = []
        self._reached = self._count = 0  # Collective operations that this process has come to; own signs.
        self._waiting_since: float | None = None
        self._named: set[int] = set()
        self._looked = self._answered = time.monotonic()
        self._mute = False
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=action, name=f"vggfeat-{name}", daemon=True)
            for name, action in (("signs", self._exchange), ("watch", self._watch))
        ]

    def start(self) -> "Watch":
        """Begin to exchange."""
        for thread in self._threads:
            thread.start()
        return self

    def close(self) -> None:
        """Tell the others that this process has left; it is no longer waited for."""
        self._ended.set()
        for thread in self._threads:
            thread.join(1.0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this, all processes come to the same place, and wait for those that have not."""
        self._reached += 1
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def _exchange(self) -> None:
        with contextlib.suppress(RuntimeError):  # The store ends with the run.
            while not self._ended.is_set():
                self._count += 1
                self._store.set(self._keys[self._rank], f"{self._count} {self._reached}")
                if self._store.check(self._keys):
                    self._note_signs([text.decode(errors="replace") for text in self._store.multi_get(self._keys)])
                self._answered = time.monotonic()
                self._ended.wait(self._silence / 5)
            self._store.set(self._keys[self._rank], _GONE)

    def _note_signs(self, texts: list[str]) -> None:
        now, old = time.monotonic(), self._signs or [_Sign("", 0.0)] * self._size
        self._signs = [
            before if before.text == text else _Sign(text, now) for before, text in zip(old, texts, strict=True)
        ]

    def _watch(self) -> None:
        while not self._ended.wait(self._silence / 5):
            now = time.monotonic()
            if now - self._looked > self._silence / 2:  # This process was stopped itself.
                self._answered = now
                self._signs = [_Sign(sign.text, now) for sign in self._signs]
            self._looked = now
            if now - self._answered > self._silence:
                self._name_store()
            else:
                self._mute = False
                self._name_processes(now)

    def _name_store(self) -> None:
        if not self._mute:
            self._say(f"{self._where} has not answered for {self._silence:.0f} s: process 0 or torchrun may be stopped")
        self._mute = True

    def _name_processes(self, now: float) -> None:
        """Name those that are silent; the first process names those as well that it has waited for."""
        silent = {
            rank for rank, sign in enumerate(self._signs) if sign.text != _GONE and now - sign.since > self._silence
        }
        if any(rank not in silent for rank in range(self._rank)):
            return  # One before this speaks.
        behind = set() if self._rank else self._behind(now) - silent
        for ranks, more in (
            (silent - self._named, f", not heard of for {self._silence:.0f} s: stopped, or out of reach"),
            (behind - self._named, ""),
        ):
            if ranks:
                self._say(f"waiting for {named(sorted(ranks), self._size)}{more}")
        self._named = silent | behind

    def _behind(self, now: float) -> set[int]:
        since = self._waiting_since
        if since is None or now - since < self._silence:
            return set()
        return {rank for rank, sign in enumerate(self._signs) if _reached(sign.text) < self._reached}


def named(ranks: list[int], size: int) -> str:
    """Name processes: "processes 1, 3 of 4"; ten, and how many more."""
    shown = ", ".join(map(str, ranks[:MOST_NAMED]))
    more = f" and {len(ranks) - MOST_NAMED} more" if len(ranks) > MOST_NAMED else ""
    return f"process{'es' * (len(ranks) > 1)} {shown}{more} of {size}"


def _reached(text: str) -> float:
    _, _, count = text.partition(" ")
    return int(count) if count.isascii() and count.isdigit() and len(count) < 20 else float("inf")


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
    comes with a word of its own, and the first accepts it with that word and its own.
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
                common.set(f"accepted {other}", f"{theirs} {word}")
        return common.check([f"{word} {other}" for other in range(1, point.size)])

    def accepted() -> bool:
        return len(found := words(f"accepted {rank}")) == 2 and found[0] == word

    if rank == 0:
        wait_for(all_here, LONGEST_START, _note_of(point, missing))
        return word
    common.set(f"here {rank}", word)
    wait_for(accepted, LONGEST_START, _note_of(point, lambda: [0]))
    _, name = words(f"accepted {rank}")
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
