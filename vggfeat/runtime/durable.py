"""Durable files: every call that changes the disk goes through `Files`, and a file appears complete or not at all.

Rename is atomic only for bytes that are synced first, and durable only once its folder is synced. Until it is complete,
a file is `.NAME.MACHINE.RANDOM.tmp`, which no other writer has, whatever its process. The writer holds a lock on it;
what killed writers of a file have left is removed by the next.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from vggfeat.errors import StoreError
from vggfeat.runtime import system
from vggfeat.runtime.system import NO_LINK, NO_WAIT, OPENED

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | OPENED | NO_LINK
_READ = os.O_RDONLY | OPENED | NO_LINK | NO_WAIT
_SWEEP = os.O_RDWR | OPENED | NO_LINK | NO_WAIT
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})\.[0-9a-f]{8}\.tmp", re.DOTALL)
_ABANDONED = 24 * 3600.0
"""Seconds without a write after which nobody on another machine is at work on a temporary file."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_position = threading.Lock()


def _read_at(fd: int, view: memoryview, offset: int) -> int:
    """Read some bytes from `offset` into `view`; return how many. Where the system can, the position stays."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    with _position:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, view.nbytes)
    view[: len(data)] = data
    return len(data)


def _write_at(fd: int, data: memoryview, offset: int) -> int:
    """Write some of `data` at `offset`; return how many bytes. Where the system can, the position stays."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _position:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


class Files:
    """The calls that change the disk, one each, so that a test can make any of them fail."""

    @staticmethod
    def create(path: Path) -> int:
        """Open a new file for reading and writing; one that exists is an error."""
        return os.open(path, _NEW, 0o666)

    write = staticmethod(_write_at)
    truncate = staticmethod(os.ftruncate)
    sync = staticmethod(system.sync)
    sync_folder = staticmethod(system.sync_folder)
    rename = staticmethod(os.replace)
    remove = staticmethod(os.unlink)
    make_folder = staticmethod(os.mkdir)
    remove_folder = staticmethod(os.rmdir)
    free = staticmethod(system.free_bytes)


DISK = Files()


class PositionedFile(io.RawIOBase):
    """A file object to read from, of `_size` bytes, with a position of its own, which no forked process shares."""

    _at = _size = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    seekable = readable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at


class DiskFile(PositionedFile):
    """A file on the disk, open for reading; OSError if there is none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_RDONLY | OPENED)
        self._size = os.fstat(self._fd).st_size

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer from the position: all of it, or what the file still has."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < view.nbytes:  # One call of the system takes 2 GiB at most, and HDF5 does not ask twice.
            count = _read_at(self._fd, view[done:], self._at)
            if not count:
                break
            done, self._at = done + count, self._at + count
        return done

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._fd)
        super().close()


class LatchedFile(PositionedFile):
    """An open file that remembers its first error and from then on only pretends to work.

    HDF5 crashes the interpreter when a write fails under it, so it must not learn of a failure before it has
    closed. `raise_first_error` reports it afterwards. The caller closes `fd`, which is of an empty file.
    """

    def __init__(self, files: Files, fd: int) -> None:
        super().__init__()
        self._files, self._fd = files, fd
        self._error: BaseException | None = None

    def raise_first_error(self) -> None:
        """Raise the error of the first call that failed, if any did."""
        if self._error is not None:
            raise self._error

    writable = PositionedFile.readable

    def write(self, data: Any) -> int:
        """Write all of `data`, or pretend to."""
        view = memoryview(data).cast("B")
        self._attempt(lambda: write_all(self._files, self._fd, view, self._at))
        self._at += view.nbytes
        self._size = max(self._size, self._at)
        return view.nbytes

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or pretend to."""
        wanted = self._at if size is None else size
        self._attempt(lambda: self._files.truncate(self._fd, wanted))
        self._size = wanted
        return wanted

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer` from the position; 0 bytes after an error."""
        view = memoryview(buffer).cast("B")
        count = self._attempt(lambda: _read_at(self._fd, view, self._at))
        self._at += count
        return count

    def _attempt(self, action: Callable[[], int | None]) -> int:
        if self._error is None:
            try:
                return action() or 0
            except BaseException as error:  # An interrupt here would unwind through HDF5 just as an OSError would.
                self._error = error
        return 0


def write_all(files: Files, fd: int, view: memoryview, offset: int) -> None:
    """Write all bytes of `view` at `offset`, in as many calls as it takes; OSError if the system takes none."""
    while view.nbytes:
        count = files.write(fd, view, offset)
        if count <= 0:
            raise OSError(errno.EIO, "the disk took no bytes")
        view, offset = view[count:], offset + count


@contextmanager
def atomic_write(files: Files, path: Path, *, temp: Path | None = None) -> Iterator[LatchedFile]:
    """Yield a new file that takes the name `path` durably if the block ends well; else nothing is left.

    Parameters
    ----------
    files : Files
        Carries out the calls.
    path : Path
        Final name. A file or link there is replaced in one step, and the new file has the permissions of the old one.
    temp : Path, optional
        Name until then, on the same file system, which its owner removes if a killed process has left it. By default
        a name next to `path` that no other writer has.

    Raises
    ------
    OSError
        The first call that failed, after clearing up.
    StoreError
        If a folder, pipe or device has the name.
    """
    _check_replaceable(path)
    if temp is None:
        sweep(files, path)
        temp, fd = create_temporary(files, path)
    else:
        fd = files.create(temp)
    try:
        keep_mode(fd, path)
        sink = LatchedFile(files, fd)
        yield sink
        sink.raise_first_error()
        files.sync(fd)
        system.close_on_windows(fd)
        files.rename(temp, path)
    except BaseException:
        system.close_on_windows(fd)
        with contextlib.suppress(OSError):
            files.remove(temp)
        raise
    finally:
        os.close(fd)
    files.sync_folder(path.parent)


def keep_mode(fd: int, path: Path) -> None:
    """Give an open file the permissions of the file that it will replace, if there is one: 0600 stays 0600."""
    with contextlib.suppress(OSError):  # There is none, or the file system has no permissions.
        state = os.lstat(path)
        if stat.S_ISREG(state.st_mode):
            system.set_mode(fd, stat.S_IMODE(state.st_mode) & 0o777)


def _check_replaceable(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise StoreError(f"{path}: expected a file to replace, or none, found a folder, pipe or device; move it")


def temporary_path(path: Path) -> Path:
    """Name for the content of `path` until it is complete, next to it; no other process takes that name."""
    return path.with_name(f".{path.name}.{_machine()}.{secrets.token_hex(4)}.tmp")


def create_temporary(files: Files, path: Path) -> tuple[Path, int]:
    """Create and lock the file that is to become `path`; nobody sweeps it until it is closed."""
    while True:
        temp = temporary_path(path)
        fd = files.create(temp)
        with contextlib.suppress(OSError):  # A sweeper has it, or this file system has no locks.
            system.lock(fd)
        if system.has_name(fd, temp):
            return temp, fd
        os.close(fd)  # It was swept in the moment before it was locked.


def is_temporary(name: str) -> bool:
    """Say whether a file name is one of those that files have until they are complete."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(files: Files, path: Path) -> None:
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


def _remove_abandoned(files: Files, temp: Path, *, here: bool) -> None:
    fd = os.open(temp, _SWEEP)
    try:
        state = os.fstat(fd)
        system.lock(fd)
        if stat.S_ISREG(state.st_mode) and (here or time.time() - state.st_mtime > _ABANDONED):
            system.close_on_windows(fd)
            files.remove(temp)
    finally:
        os.close(fd)


@cache
def _machine() -> str:
    """Name this running system: processes in different containers of one kernel share it, and their locks."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        name = system.machine_name()
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def make_folders(files: Files, folder: Path) -> None:
    """Make a folder with those above it, each durably; one that is there is fine.

    OSError if the disk refuses, or something else has the name.
    """
    if folder.is_dir():
        return
    make_folders(files, folder.parent)
    with contextlib.suppress(FileExistsError):  # Another process was faster.
        files.make_folder(folder)
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    files.sync_folder(folder.parent)


def open_bounded(path: Path) -> io.BufferedReader:
    """Open for reading a file that we wrote; StoreError if it is no regular file.

    No link is followed, and no pipe or device is waited for.
    """
    check_regular(path, os.lstat(path))
    fd = os.open(path, _READ)
    try:
        check_regular(path, os.fstat(fd))  # Another may have come in between.
    except BaseException:
        os.close(fd)
        raise
    return os.fdopen(fd, "rb")


def read_bounded(path: Path, most: int) -> bytes:
    """Read a file that we wrote; StoreError if it is no regular file, or has more than `most` bytes."""
    with open_bounded(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise StoreError(f"{path}: expected at most {most} bytes, found {size}; move it away")
        return file.read()


def check_regular(path: Path, state: os.stat_result) -> None:
    """Check by what the system says of `path` that it is a regular file; StoreError if it is not."""
    if not stat.S_ISREG(state.st_mode):
        raise StoreError(f"{path}: expected a regular file, found a link, folder, pipe or device; move it away")


@contextmanager
def disk_errors(where: Path, doing: str, advice: str) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError of one line: where, doing what, the cause, what to do."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno in _FULL:
            cause = f"the disk is full ({cause})"
        raise StoreError(f"{where}: {doing} failed: {cause}; {advice}") from error


def append(files: Files, path: Path, data: bytes) -> None:
    """Add bytes to the end of a file; they are on the disk when this returns, and none is there if it fails.

    Raises the first OSError. (A buffered file would try again when it is closed, and that error would take its place.)
    """
    fd = os.open(path, os.O_WRONLY | OPENED | NO_LINK)
    try:
        size = os.fstat(fd).st_size
        try:
            write_all(files, fd, memoryview(data), size)
            files.sync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                files.truncate(fd, size)
            raise
    finally:
        with contextlib.suppress(OSError):  # All is synced, or there is an error already.
            os.close(fd)
