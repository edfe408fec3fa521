"""Names of files until they are complete: `.NAME.MACHINE.RANDOM.tmp`, which no other writer has, whatever its process.

The writer holds a lock on its file. What killed writers of a file have left is removed by the next.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vggfeat.runtime.durable import Files

_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})\.[0-9a-f]{8}\.tmp", re.DOTALL)
_ABANDONED = 24 * 3600.0
"""Seconds without a write after which nobody on another machine is at work on a temporary file."""


def temporary_path(path: Path) -> Path:
    """Name for the content of `path` until it is complete, next to it; no other process takes that name."""
    return path.with_name(f".{path.name}.{_machine()}.{secrets.token_hex(4)}.tmp")


def create_temporary(files: "Files", path: Path) -> tuple[Path, int]:
    """Create and lock the file that is to become `path`; nobody sweeps it until it is closed."""
    while True:
        temp = temporary_path(path)
        fd = files.create(temp)
        with contextlib.suppress(OSError):  # A sweeper has it, or this file system has no locks.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.lstat(temp)):
                return temp, fd
        os.close(fd)  # It was swept in the moment before it was locked.


def is_temporary(name: str) -> bool:
    """Say whether a file name is one of those that files have until they are complete."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(files: "Files", path: Path) -> None:
    """Remove the temporary files that killed writers of `path` have left; those of living writers stay.

    A lock shows a writer on this machine, and on others where the file system carries locks between them. Where it
    may not, only a file that nobody has written to for a day is removed.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            match = _TEMPORARY.fullmatch(name)
            if match and match["name"] == path.name:
                with contextlib.suppress(OSError):
                    _remove_abandoned(files, path.with_name(name), here=match["machine"] == _machine())


def _remove_abandoned(files: "Files", temp: Path, *, here: bool) -> None:
    fd = os.open(temp, _OPEN)
    try:
        state = os.fstat(fd)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISREG(state.st_mode) and (here or time.time() - state.st_mtime > _ABANDONED):
            files.remove(temp)
    finally:
        os.close(fd)


@cache
def _machine() -> str:
    """Name this running system: processes in different containers of one kernel share it, and their locks."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        name = os.uname().nodename
    return hashlib.sha256(name.encode()).hexdigest()[:8]
