"""Features of the operating system that vggfeat uses, and what is done where one is missing.

Linux has all of it. macOS ends no process with its parent, and its fsync leaves bytes in the disk's cache. Windows has
other locks, renames and removes no open file, syncs no folder, and gives a process neither limits nor an open socket:
there, images are decoded and weights of other libraries are read in this process. What counts is which functions there
are; the name of the system is asked for once, where Linux alone has an answer.
"""

import contextlib
import ctypes
import errno
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, reduce
from importlib import import_module
from operator import or_
from pathlib import Path
from typing import Any

from vggfeat.errors import ConfigError

log = logging.getLogger(__name__)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def _flags(*names: str) -> int:
    return reduce(or_, (getattr(os, name, 0) for name in names))


fcntl, resource, _msvcrt = map(_module, ("fcntl", "resource", "msvcrt"))

OPENED = _flags("O_CLOEXEC", "O_BINARY")
"""Of every file that is opened: its bytes are taken as they are, and programs that we start do not get it."""
NO_LINK = _flags("O_NOFOLLOW")
NO_WAIT = _flags("O_NONBLOCK", "O_NOCTTY")
"""For files of strangers: a pipe that nobody writes to, and a terminal, are opened like files."""
HAS_GUARDED_PROCESSES = all((fcntl, resource, hasattr(os, "fork"), hasattr(os, "killpg"), hasattr(socket, "send_fds")))
"""Whether processes can be had that get a socket, and limits of memory and time."""
_MOST_PROCESSES = 65536
_LOCKED_BYTE = (1 << 31) - 2
"""Where Windows locks: what is locked can't be read, so it lies beyond the content."""
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)
_PR_SET_PDEATHSIG = 1


@cache
def note_unguarded(what: str) -> None:
    """Log, once for each kind of work, what is lost where `HAS_GUARDED_PROCESSES` is False."""
    log.warning(
        "%s in this process, because this system has no processes with limits: a file that was made to do harm can "
        "fill the memory, hang or end it",
        what,
    )


def sync(fd: int) -> None:
    """Wait until the bytes of an open file are on the disk."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # Disks of a network know no such call, and have fsync.
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | OPENED)
    try:
        sync(fd)
    except OSError as error:
        # Some network file systems have no such call, and nothing stronger.
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def free_bytes(folder: Path) -> int:
    """Return how many bytes an ordinary user can still write there."""
    return shutil.disk_usage(folder).free


def set_mode(fd: int, mode: int) -> None:
    """Give an open file permissions, where the system has them."""
    if hasattr(os, "fchmod"):
        os.fchmod(fd, mode)


def lock(fd: int, *, shared: bool = False) -> None:
    """Lock an open file, or change its lock, without waiting.

    Windows shares no locks: the lock of the process that was first stays, and those that join it have none of their
    own.

    BlockingIOError if another process has it; OSError if the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    elif not shared:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        try:
            _msvcrt.locking(fd, _msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None
        finally:
            os.lseek(fd, 0, os.SEEK_SET)


def has_name(fd: int, path: Path) -> bool:
    """Say whether an open file still has its name; on Windows, nobody can take it while the file is open."""
    if fcntl is None:
        return True
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    return False


def close_on_windows(fd: int) -> None:
    """Close an open file on Windows, which renames and removes no other; with its lock. `fd` is still to be closed."""
    if fcntl is None:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, fd, inheritable=False)
        os.close(nothing)


def machine_name() -> str:
    """Return the name of this machine in its network."""
    return os.uname().nodename if hasattr(os, "uname") else socket.gethostname()


def cores() -> int:
    """Return how many cores this process may use, or how many there are where the system doesn't say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_here() -> int:
    """Return how many processes torchrun has started on this machine; ConfigError if LOCAL_WORLD_SIZE is no count."""
    return torchrun_number(os.environ, "LOCAL_WORLD_SIZE", 1, _MOST_PROCESSES, "1")


def processes_of_all(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many processes torchrun has started on all machines; ConfigError if WORLD_SIZE is no count."""
    return torchrun_number(environ, "WORLD_SIZE", 1, _MOST_PROCESSES, "1")


def torchrun_number(environ: Mapping[str, str], name: str, least: int, most: int, default: str = "") -> int:
    """Read a whole number that torchrun tells its processes; ConfigError if it is none, or out of its range."""
    text = environ.get(name, default)
    if re.fullmatch("[0-9]{1,5}", text) and least <= int(text) <= most:
        return int(text)
    found = repr(text) if text else "none"
    raise ConfigError(f"{name}: expected {least} to {most}, found {found}; let torchrun start the command")


def c_function(name: str) -> Any:
    """Return a function of the C library; None where it has none of that name."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except TypeError:  # Windows opens no library without a name.
        return None


def end_with_parent() -> None:
    """Let this process be killed when the one that started it ends, where the system can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def memory_in_use() -> int | None:
    """Return the bytes of address space that this process has; None where the system doesn't say (all but Linux)."""
    if sys.platform != "linux":
        return None
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * int(resource.getpagesize())


def peak_memory() -> int:
    """Return the largest number of bytes that this process has held in memory; 0 where the system doesn't say."""
    status = Path("/proc/self/status")
    if status.exists():  # What the system call says includes the parent's, from before the program was started.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if resource is None:
        return 0
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class ForkSafeLock:
    """A lock of the threads of this process; the thread that holds it may take it again.

    A fork waits for a short turn of another thread to end, so that the child finds what was changed as it was before;
    it does not wait for a `long` one. Either way the lock is free in the child.
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
    def held(self) -> Iterator[None]:
        """Wait for the turns of other threads, and hold the lock within."""
        with self._lock:
            yield

    def _renew(self) -> None:
        self._lock = threading.RLock()
