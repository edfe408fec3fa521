"""The images below a folder of this machine, by the rules of `vggfeat.datasets.files.walk`, without holding their list.

Held are the names of all folders, and of the files of one folder up to `MOST_NAMES`; beyond that they are sorted on the
disk, in $TMPDIR.
"""

import heapq
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO

from vggfeat.datasets.files import check_locale, is_image, is_utf8, listed
from vggfeat.errors import DatasetError
from vggfeat.listing import BATCH_ROWS, STATS, sizes_of
from vggfeat.runtime.durable import disk_errors
from vggfeat.runtime.storage import Entry

MOST_NAMES = 1 << 20
_SHOWN = 5
_READ = 1 << 20


@dataclass(eq=False)
class Some:
    """The first names of many, and how many there are."""

    names: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, name: str) -> None:
        """Count a name."""
        self.count += 1
        if len(self.names) < _SHOWN:
            self.names.append(name)

    def __str__(self) -> str:
        more = self.count - len(self.names)
        return listed(self.names) + (f" and {more} more" if more else "")


class Tree:
    """A folder of this machine.

    Parameters
    ----------
    root : Path

    Raises
    ------
    DatasetError
        If a folder can't be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repeated, self.unnameable = Some(), Some()
        self.folders: dict[str, set[str]] = {}
        """Each folder, and the names of those in it."""
        self._find_folders()

    def _find_folders(self) -> None:
        seen: set[tuple[int, int]] = set()
        # Links wait until all real folders are read, so that a folder keeps its own name and not that of a link.
        folders, links = deque([""]), deque[str]()
        while folders or links:
            folder = (folders or links).popleft()
            with _reading(self.root / folder):
                status = os.stat(self.root / folder)
            if (status.st_dev, status.st_ino) in seen:
                self.repeated.add(folder)
                continue
            seen.add((status.st_dev, status.st_ino))
            self.folders[folder] = set()
            above, _, name = folder.rpartition("/")
            if folder:
                self.folders[above].add(name)
            entries = self._entries(folder, self.unnameable)
            for name, link in sorted((entry.name, entry.is_symlink()) for entry in entries if _is_folder(entry)):
                (links if link else folders).append(_below(folder, name))

    def _entries(self, folder: str, unnameable: Some | None = None) -> Iterator["os.DirEntry[str]"]:
        with _reading(self.root / folder), os.scandir(self.root / folder) as found:
            for entry in found:
                check_locale(self.root / folder, (entry.name,))
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if is_utf8(entry.name):
                    yield entry
                elif unnameable is not None:
                    unnameable.add(_below(folder, entry.name))

    def entries(self) -> Iterator[Entry]:
        """Yield all files, images and others, in the order of their whole paths; -1 bytes where they can't be found."""
        paths = self._paths("")
        with ThreadPoolExecutor(STATS, "vggfeat-sizes") as pool:
            while some := list(islice(paths, BATCH_ROWS)):
                yield from map(Entry, some, sizes_of([os.path.join(self.root, path) for path in some], pool))

    def _paths(self, folder: str) -> Iterator[str]:
        # With its slash, a folder stands where its files stand in an order of whole paths.
        folders = [f"{name}/" for name in self.folders[folder]]
        files = (entry.name for entry in self._entries(folder) if not _is_folder(entry))
        for name in in_order(chain(folders, files)):
            if name.endswith("/"):
                yield from self._paths(_below(folder, name[:-1]))
            else:
                yield _below(folder, name)


def in_order(names: Iterator[str]) -> Iterator[str]:
    """Yield names of files by code point; more than `MOST_NAMES` are sorted on the disk."""
    runs: list[Iterator[str]] = []
    while some := sorted(islice(names, MOST_NAMES)):
        if len(some) < MOST_NAMES and not runs:
            return iter(some)
        with disk_errors(Path(tempfile.gettempdir()), "sorting names of files", "make room there, or set TMPDIR"):
            runs.append(_kept(some))
    return heapq.merge(*runs)


def _kept(names: list[str]) -> Iterator[str]:
    """Write names to a file without a name, and yield them again."""
    file = tempfile.TemporaryFile(prefix="vggfeat-names-")  # noqa: SIM115  closed when all is read
    file.write("\0".join(names).encode())
    file.seek(0)
    return _read(file)


def _read(file: IO[bytes]) -> Iterator[str]:
    rest = b""
    with file:
        while data := file.read(_READ):
            *whole, rest = (rest + data).split(b"\0")
            yield from (name.decode() for name in whole)
    yield rest.decode()


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir() and not (is_image(entry.name) and entry.is_symlink())
    except OSError:  # A link that leads in a circle, or to where this user may not look.
        return False


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{folder}: expected a folder that can be read: {error.strerror}") from error
