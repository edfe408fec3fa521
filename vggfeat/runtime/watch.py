"""Who is waited for: each process of a run writes down where it is, now and then, and one of them names those behind.

A collective operation blocks until all processes have come, and PyTorch says neither who is missing nor that somebody
is. So threads of their own exchange signs of life through the store in which the processes have met. They need nothing
of the work: a process that is stopped, or whose machine is out of reach, falls silent; one that computes does not.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

MOST_NAMED = 10
"""Processes that a note names."""
_GONE = "gone"


class _Sign(NamedTuple):
    """What was last read of a process."""

    text: str
    since: float
    """When it was first read."""


class Watch:
    """The signs of life of all processes, as one of them exchanges them; begun by `start`, ended by `close`.

    Parameters
    ----------
    store : torch.distributed.Store
        Of this run and of nobody else in this process: an exchange may block.
    rank, size : int
    silence : float
        Seconds that a process may be silent, or waited for, before it is named.
    where : str
        The store, in words.
    say : callable
        Called with a sentence, in another thread.
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

    @contextlib.contextmanager
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
