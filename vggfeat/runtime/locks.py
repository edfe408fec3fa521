"""A lock that keeps two runs off one output, and that no dead process can hold.

The processes of one run hold it together: the first takes it alone, does what must be done alone, and lets the others
join. As long as one of them lives, no other run can take it.
"""

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from vggfeat.errors import StoreError
from vggfeat.runtime import system
from vggfeat.runtime.durable import DISK, Files, check_regular, open_bounded

_LONGEST = 1 << 12
"""Of what is read of a lock file."""
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | system.OPENED | system.NO_LINK | system.NO_WAIT
_LINE = re.compile(r"([0-9]{1,20})(?: ([A-Za-z0-9._-]{1,64}))?")
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_held: set[int] = set()


def _leave_to_parent() -> None:
    # A lock lives as long as any copy of its descriptor, so a worker process must not keep one.
    for fd in _held:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class Lock:
    """A lock on a file, free again the moment its process has ended, however that ended.

    The file is made if missing; it holds number and machine of each process, for messages only. With `joining` it is
    shared with the processes of the same run, instead of held alone. BlockingIOError if another process holds it,
    `sole_writer` says which; OSError if the file can't be opened; StoreError if it is no regular file, or on a file
    system without locks.
    """

    def __init__(self, path: Path, *, joining: bool = False) -> None:
        self._path = path
        self._fd: int | None = _lock(path, shared=joining)
        _held.add(self._fd)
        with contextlib.suppress(OSError):
            if not joining:
                os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()} {_machine()}\n".encode())

    def share(self) -> None:
        """Let other processes join.

        BlockingIOError if another process has taken it alone in the moment in which the kind of lock changes.
        """
        if self._fd is not None:
            flock(self._fd, self._path, shared=True)

    def remove(self, files: Files = DISK) -> None:
        """Remove the lock file, then release the lock: meanwhile nobody else can be at work on what it guards.

        OSError if the file can't be removed; the lock is held then.
        """
        if self._fd in _held:
            system.close_on_windows(self._fd)
            files.remove(self._path)
        self.release()

    def release(self) -> None:
        """Release it. In a forked child, and the second time, this does nothing."""
        if self._fd in _held:
            _held.discard(self._fd)
            os.close(self._fd)
        self._fd = None


def flock(fd: int, path: Path, *, shared: bool = False) -> None:
    """Lock an open file, or change its lock, without waiting.

    BlockingIOError if another process has it; StoreError if the file system has no locks.
    """
    try:
        system.lock(fd, shared=shared)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise StoreError(
            f"{path}: expected a file system that can lock a file, found one that refuses the lock ({error.strerror}); "
            "choose an output on another disk, or mount this one with locks (NFS: without nolock, and with its lock "
            "service running; Lustre: with flock)"
        ) from error


@contextlib.contextmanager
def sole_writer(what: Path, path: Path) -> Iterator[None]:
    """Turn the BlockingIOError of the lock file `path` into a StoreError that names the process that writes `what`."""
    try:
        yield
    except BlockingIOError:
        raise StoreError(
            f"{what}: expected to be its only writer, found {holder(path)} at it; wait for it, or stop it"
        ) from None


def holder(path: Path) -> str:
    """Name the processes that wrote themselves into a lock file: "process 12, 13", or "another process".

    Those of another machine are named with it: "process 12 on node3". StoreError if it is no regular file.
    """
    for _ in range(20):
        with contextlib.suppress(OSError, ValueError), open_bounded(path) as file:
            # The last line may be cut, and would name another process.
            lines = [_LINE.fullmatch(line) for line in file.read(_LONGEST).decode("ascii").split("\n")[:-1]]
            if lines and all(lines):
                machines: dict[str, list[str]] = {}
                for number, machine in [line.groups() for line in lines if line]:
                    where = "" if machine in (None, _machine()) else f" on {machine}"
                    machines.setdefault(where, []).append(number)
                return " and ".join(f"process {', '.join(numbers)}{where}" for where, numbers in machines.items())
        time.sleep(0.01)  # The holder has the lock, and will write its number in a moment.
    return "another process"


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", system.machine_name())[:64] or "unknown"


def _lock(path: Path, *, shared: bool) -> int:
    while True:
        try:
            fd = os.open(path, _FLAGS, 0o666)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                check_regular(path, os.lstat(path))  # Say so if it is a link or a folder.
            raise
        try:
            check_regular(path, os.fstat(fd))
            flock(fd, path, shared=shared)
            if system.has_name(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # The last holder has just removed this file: lock the one that has the name now.
