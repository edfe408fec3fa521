"""A lock that keeps two runs off one output, and that no dead process can hold.

The processes of one run hold it together: the first takes it alone, does what must be done alone, and lets the others
in. As long as one of them lives, no other run can take it.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from vggfeat.errors import StoreError
from vggfeat.runtime.durable import check_regular, open_bounded

_LONGEST = 1 << 12
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LINE = re.compile(r"([0-9]{1,20})(?: ([A-Za-z0-9._-]{1,64}))?")

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
        Lock file; made if missing. It holds number and machine of each process, for messages only.
    joining : bool
        Hold it beside processes that share it, instead of alone.

    Raises
    ------
    BlockingIOError
        If another process holds it; `holder` reads which.
    OSError
        If the file can't be opened.
    StoreError
        If it is no regular file.
    """

    def __init__(self, path: Path, *, joining: bool = False) -> None:
        self._fd: int | None = _locked(path, fcntl.LOCK_SH if joining else fcntl.LOCK_EX)
        _held.add(self._fd)
        with contextlib.suppress(OSError):
            if not joining:
                os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()} {_machine()}\n".encode())

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


@contextlib.contextmanager
def sole_writer(what: Path, path: Path) -> Iterator[None]:
    """Turn the BlockingIOError of a lock file at `path` into a StoreError that names who writes `what`."""
    try:
        yield
    except BlockingIOError:
        raise StoreError(
            f"{what}: expected to be its only writer, found {holder(path)} at it; wait for it, or stop it"
        ) from None


def holder(path: Path) -> str:
    """Name the processes that wrote themselves into a lock file: "process 12, 13", or "another process".

    Those of another machine are named with it: "process 12 on node3".

    Raises
    ------
    StoreError
        If it is no regular file.
    """
    for _ in range(20):
        with contextlib.suppress(OSError, ValueError), open_bounded(path) as file:
            # A line that is cut would name another process.
            lines = [_LINE.fullmatch(line) for line in file.read(_LONGEST).decode("ascii").split("\n")[:-1]]
            if lines and all(lines):
                return _named([(line[1], line[2]) for line in lines if line])
        time.sleep(0.01)  # It has the lock, and writes itself down in a moment.
    return "another process"


def _named(processes: list[tuple[str, str | None]]) -> str:
    machines: dict[str, list[str]] = {}
    for number, machine in processes:
        machines.setdefault("" if machine in (None, _machine()) else f" on {machine}", []).append(number)
    return " and ".join(f"process {', '.join(numbers)}{where}" for where, numbers in machines.items())


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename)[:64] or "unknown"


def _locked(path: Path, how: int) -> int:
    while True:
        try:
            fd = os.open(path, _FLAGS, 0o666)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                check_regular(path, os.lstat(path))  # A link or a folder is told as such.
            raise
        try:
            check_regular(path, os.fstat(fd))
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
