"""One root, a folder of this machine or of an object store, and what is read and written below it.

A name is taken once, by content that is complete: of two that write the same name the first wins, and both go on. So
nobody needs a lock, and doing something twice is doing it once. Paths are relative to the root, with forward slashes.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from vggfeat.checks import convert_fields
from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.durable import (
    DISK,
    Files,
    PositionedFile,
    atomic_write,
    check_regular,
    create_temporary,
    disk_errors,
    is_temporary,
    make_folders,
    sweep,
)
from vggfeat.runtime.system import NO_WAIT, OPENED

_ADVICE = "nothing that was finished is lost; fix it and give the same command again"
_LOCAL = re.compile(r"file:(//|(?=/))", re.IGNORECASE)
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_SCHEMES = re.compile(r"(^|::)[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z][A-Za-z0-9+.-]+)*(?=://)")


class Entry(NamedTuple):
    """One file below a root."""

    path: str
    size: int
    """Bytes."""
    etag: str = ""
    """What an object store calls this content; empty where nothing tells two contents of one size apart."""


class MissingFileError(StoreError):
    """There is no file of that name."""


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """How patient one is with a store."""

    attempts: int = 5
    """Times that a request is made before it counts as failed."""
    wait: float = 0.5
    """Seconds before the second attempt, at most; twice as long before each further one."""
    timeout: float = 30.0
    """Seconds of wall clock for one request; a long one has more, by a least rate of 256 KiB a second."""
    allow_private: bool = False
    """Whether http(s) addresses of the own network may be read."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.attempts < 1 or not (self.timeout > 0 and self.wait >= 0):
            found = f"attempts {self.attempts}, wait {self.wait}, timeout {self.timeout}"
            raise ConfigError(f"storage: expected at least one attempt and a time limit above 0, found {found}")


class Storage(Protocol):
    """Files below one root.

    Every method raises StoreError if the store refuses, after the retries of its settings, and ConfigError for a path
    that leads out of the root.
    """

    root: str
    """A folder, or the address of one: s3://bucket/run."""

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a file, or `length` bytes of it from `start` on, fewer at its end; MissingFileError if there is none."""

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """Yield all files below a folder, at any depth, as they are found, in the order of their whole paths.

        A folder that does not exist has none. What is not complete yet is left out.
        """

    def exists(self, path: str) -> bool:
        """Say whether there is a file of that name."""

    def size(self, path: str) -> int:
        """Return the bytes of a file; MissingFileError if there is none."""

    def write_new(self, path: str, data: bytes) -> bool:
        """Make a file in one step, for good; False if the name is taken already, and then nothing is changed."""

    def replace(self, path: str, data: bytes) -> None:
        """Make a file, or replace it, in one step, for good."""

    def check_writable(self) -> None:
        """Check before the work that files can be made here: on a disk by making one, of a store by its kind."""


class LocalStorage:
    """A folder of this machine, or of a disk that machines share; it need not exist before something is written."""

    def __init__(self, root: str, files: Files = DISK) -> None:
        self.root = os.path.abspath(root)
        self._files = files

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a file, or a part of it."""
        place = self._place(path)
        with disk_errors(place, "reading", _ADVICE):
            try:
                fd = os.open(place, os.O_RDONLY | OPENED | NO_WAIT)
            except (FileNotFoundError, NotADirectoryError):
                raise MissingFileError(f"{place}: expected a file, found none") from None
            try:
                check_regular(place, os.fstat(fd))
                with os.fdopen(fd, "rb", closefd=False) as file:
                    file.seek(start)
                    return file.read(length)
            finally:
                os.close(fd)

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """Yield all files below a folder; links to files count as files, links to folders are not followed."""
        place = self._place(folder) if folder else Path(self.root)
        with disk_errors(place, "listing", _ADVICE):
            yield from _entries(place, f"{folder.rstrip('/')}/" if folder else "")

    def exists(self, path: str) -> bool:
        """Say whether there is a file of that name."""
        place = self._place(path)
        with disk_errors(place, "reading", _ADVICE):
            return place.is_file()

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        place = self._place(path)
        with disk_errors(place, "reading", _ADVICE):
            try:
                state = os.stat(place)
            except (FileNotFoundError, NotADirectoryError):
                raise MissingFileError(f"{place}: expected a file, found none") from None
            check_regular(place, state)
            return state.st_size

    def write_new(self, path: str, data: bytes) -> bool:
        """Make a file by a temporary name and a rename.

        Of two that do so at the same moment, the later may take the name from the earlier: files are complete at
        every moment, and the two are equal wherever equal input gives equal bytes.
        """
        place = self._place(path)
        if self.exists(path):
            sweep(self._files, place)  # what one has left that was killed after it had lost
            return False
        self.replace(path, data)
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Make a file, or replace it, by a temporary name and a rename."""
        place = self._place(path)
        with disk_errors(place, "writing", _ADVICE):
            make_folders(self._files, place.parent)
            with atomic_write(self._files, place) as sink:
                sink.write(data)

    def check_writable(self) -> None:
        """Check that files can be made in the folder, or, if there is none yet, where it would be made."""
        place = Path(self.root)
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        with disk_errors(place, "writing", _ADVICE):
            sweep(self._files, place / "writable")
            made, fd = create_temporary(self._files, place / "writable")
            os.close(fd)
            self._files.remove(made)

    def _place(self, path: str) -> Path:
        check_below(self.root, path)
        return Path(self.root, path)


class RangeFile(PositionedFile):
    """A file of a storage as a file object: every read is one request; put a buffer before it where reads are small.

    StoreError here and in every read, as the storage does.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        super().__init__()
        self._storage, self._path = storage, path
        self.size = self._size = storage.size(path)

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer from the position: all of it, or what the file still has."""
        view = memoryview(buffer).cast("B")
        data = self._storage.read(self._path, self._at, max(0, min(view.nbytes, self.size - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_storage(
    root: str | os.PathLike[str], settings: StorageSettings = StorageSettings(), *, writing: bool = False
) -> Storage:
    """Open what is below a root, which need not exist.

    Parameters
    ----------
    root : str or path
        A folder, or its address: file:///data/run, s3://bucket/run.
    settings : StorageSettings
        Count for what is not on this machine.
    writing : bool
        Whether something is going to be written there.

    Raises
    ------
    ConfigError
        If there is nothing that opens such an address, or it is of a kind that can't be written to.
    StoreError
        If the disk can't be written to.
    """
    text = root_text(root)
    if is_remote(text):
        from vggfeat.runtime.remote_storage import RemoteStorage

        storage: Storage = RemoteStorage(text, settings)
    else:
        storage = LocalStorage(text)
    if writing:
        storage.check_writable()
    return storage


def is_remote(root: str | os.PathLike[str]) -> bool:
    """Say whether a root is an address that is not of this machine's disk."""
    return "://" in root_text(root)


def root_text(root: str | os.PathLike[str]) -> str:
    """Return a root as text; of s3://bucket, `Path` has made s3:/bucket. That of this machine is a path."""
    text = os.fspath(root)
    if (local := _LOCAL.match(text)) and not os.path.lexists(text):
        return text[local.end() :]
    shortened = _ONE_SLASH.match(text)
    if shortened and not os.path.lexists(text):
        text = f"{shortened[1]}://{text[shortened.end() :]}"
    return with_small_schemes(text)


def with_small_schemes(address: str) -> str:
    """Return an address with its schemes, which are the same in any case, in small letters, as libraries know them."""
    return _SCHEMES.sub(lambda found: found[0].lower(), address)


def check_below(root: str, path: str) -> None:
    """Check that a path leads nowhere else than below a root; ConfigError if it may."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ConfigError(f"{root}: expected a path below it, found {path!a}; take the / or .. out of it")


def place_below(root: str, file: str) -> str:
    """Return where a file of a list is: below the root of the list, unless it has an address of its own."""
    if is_remote(file):
        return file
    return joined(root, file) if is_remote(root) else os.path.join(root, file)


def joined(root: str, path: str) -> str:
    """Return what a message calls a file below a root."""
    return f"{root.rstrip('/')}/{path}"


def _entries(folder: Path, prefix: str) -> Iterator[Entry]:
    try:
        with os.scandir(folder) as found:
            members = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return
    # With its slash, a folder stands where its files stand in an order of whole paths.
    for name, is_folder in sorted(members, key=lambda member: f"{member[0]}/" if member[1] else member[0]):
        if is_folder:
            yield from _entries(folder / name, f"{prefix}{name}/")
        elif not is_temporary(name):
            with contextlib.suppress(OSError):  # It is gone, or a link that leads nowhere.
                if (folder / name).is_file():
                    yield Entry(f"{prefix}{name}", (folder / name).stat().st_size)
