"""A lock that keeps two runs off one output, and that no dead process can hold.

The processes of one run hold it together: the first takes it alone, does what must be done alone, and lets the others
in. As long as one of them lives, no other run can take it.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path

_LONGEST = 1 << 12

_held: set[int] = set()


def _leave_to_parent() -> None:
    # A lock lives as long as any copy of its descriptor, so a worker process must not keep one.
    for fd in _held:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


class Lock:
    """A lock on a file, free again the moment its process is gone, however that ended.

    Parameters
    ----------
    path : Path
        Lock file; made if missing. It holds the numbers of the processes, for messages only.
    joining : bool
        Hold it beside processes that share it, instead of alone.

    Raises
    ------
    BlockingIOError
        If another process holds it; `holder` reads that process's number.
    OSError
        If the file can't be opened.
    """

    def __init__(self, path: Path, *, joining: bool = False) -> None:
        self._fd: int | None = _locked(path, fcntl.LOCK_SH if joining else fcntl.LOCK_EX)
        _held.add(self._fd)
        with contextlib.suppress(OSError):
            if not joining:
                os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()}\n".encode())

    def share(self) -> None:
        """Let processes join it that ask for that.

        Raises
        ------
        BlockingIOError
            If another process has taken it alone, between the end of this kind of lock and the beginning of the other.
        """
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def release(self) -> None:
        """Let go. In a forked child, and the second time, this does nothing."""
        if self._fd in _held:
            _held.discard(self._fd)
            os.close(self._fd)
        self._fd = None


def holder(path: Path) -> str:
    """Name the processes that wrote their numbers into a lock file: "process 123", or "another process"."""
    for _ in range(20):
        with contextlib.suppress(OSError, ValueError):
            numbers = [str(int(line)) for line in path.read_bytes()[:_LONGEST].splitlines()]
            if numbers:
                return f"process {', '.join(numbers)}"
        time.sleep(0.01)  # It has the lock, and writes its number in a moment.
    return "another process"


def _locked(path: Path, how: int) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
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
