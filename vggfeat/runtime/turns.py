"""Turns of threads with what belongs to the whole process, also where the process is forked in the meantime."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A lock of the threads of this process; the thread that holds it may take it again.

    Parameters
    ----------
    long : bool
        Whether a turn may take long. A fork waits for a short turn of another thread to end, so that the child finds
        what was changed as it was before; it does not wait for a long one. Either way the lock is free in the child.
    """

    def __init__(self, *, long: bool = False) -> None:
        self._lock = threading.RLock()
        if not hasattr(os, "register_at_fork"):
            return
        if long:
            os.register_at_fork(after_in_child=self._renew)
        else:
            free = self._lock.release
            os.register_at_fork(before=self._lock.acquire, after_in_parent=free, after_in_child=free)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turns of other threads, and hold the lock within."""
        with self._lock:
            yield

    def _renew(self) -> None:
        self._lock = threading.RLock()
