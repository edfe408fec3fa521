"""A lock that keeps two runs off one output, and that no dead process can hold."""

import contextlib
import fcntl
import os
import time
from pathlib import Path

_held: set[int] = set()


def _leave_to_parent() -> None:
    # A lock lives as long as any copy of its descriptor, so a worker process must not keep one.
    for fd in _held:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


class Lock:
    """An exclusive lock on a file, free again the moment its process is gone, however that ended.

    Parameters
    ----------
    path : Path
        Lock file; made if missing. It holds the number of the process, for messages only.

    Raises
    ------
    BlockingIOError
        If another process holds it; `holder` reads that process's number.
    OSError
        If the file can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._fd: int | None = _locked(path)
        _held.add(self._fd)
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go. In a forked child, and the second time, this does nothing."""
        if self._fd in _held:
            _held.discard(self._fd)
            os.close(self._fd)
        self._fd = None


def holder(path: Path) -> str:
    """Name the process that wrote its number into a lock file: "process 123", or "another process"."""
    for _ in range(20):
        with contextlib.suppress(OSError, ValueError):
            return f"process {int(path.read_bytes()[:20])}"
        time.sleep(0.01)  # It has the lock, and writes its number in a moment.
    return "another process"


def _locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # The last holder has just removed this file; lock the one of that name now.


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
