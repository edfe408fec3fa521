"""A tree of images at an address, or of this machine, read by the rules of `vggfeat.datasets.folder` in a stream.

Of a tree of this machine are held the names of all folders, and of the files of one folder up to `MOST_NAMES`; beyond
that they are sorted on the disk, in $TMPDIR.
"""

import heapq
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vggfeat.datasets.catalogue import RENDERED_NOTE
from vggfeat.datasets.files import (
    IMAGE_SUFFIXES,
    check_locale,
    is_folder,
    is_hidden,
    is_image,
    is_utf8,
    listed,
    no_folder,
    path_in,
    walk_folders,
)
from vggfeat.datasets.folder import LEFT_OUT, Arranged, arrange, empty_folders, lonely_notes
from vggfeat.datasets.levels import Layout, class_name_notes
from vggfeat.datasets.streamed.spool import Spool
from vggfeat.errors import DatasetError
from vggfeat.listing import BATCH_ROWS, STATS, Listing, row_schema, sizes_of
from vggfeat.runtime.durable import disk_errors
from vggfeat.runtime.rendered import RENDERED, is_rendered
from vggfeat.runtime.storage import Entry, LocalStorage, StorageSettings, open_storage
from vggfeat.samples import Task
from vggfeat.wording import counted

if TYPE_CHECKING:
    import pyarrow as pa

MOST_NAMES = 1 << 20
_SHOWN = 5
_READ = 1 << 20


class _Seen:
    """What is remembered of all files: one image of each folder, and how many are no images."""

    def __init__(self) -> None:
        self.example: dict[str, str] = {}
        self.others = Some()

    def images(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Yield the images; hidden names and __MACOSX are passed over."""
        for entry in entries:
            folder, _, name = entry.path.rpartition("/")
            if any(map(is_hidden, entry.path.split("/"))):
                continue
            if is_image(name):
                self.example.setdefault(folder, entry.path)
                yield entry
                continue
            self.others.add(entry.path)


def list_folder(root: str, settings: StorageSettings, layout: Layout | None = None) -> Listing:
    """List a tree of images. Memory grows with the number of its folders.

    Raises DatasetError as `vggfeat.datasets.folder.read`. Raises StoreError if the store can't be listed.
    """
    storage, seen, spool = open_storage(root, settings), _Seen(), Spool()
    tree = Tree(Path(storage.root)) if isinstance(storage, LocalStorage) else None
    images = seen.images(tree.entries() if tree else storage.entries())
    while some := list(islice(images, BATCH_ROWS)):
        spool.add(_batch(some))
    if not spool.rows:
        endings = " ".join(IMAGE_SUFFIXES)
        raise DatasetError(
            f"{storage.root}: expected images ({endings}), found {counted(seen.others.count, 'other file{s}')}"
        )
    arranged = arrange(storage.root, list(seen.example.values()), layout)
    rendered = tree is not None and is_rendered(tree.root)
    return Listing(
        name="folder",
        task=Task.SINGLE_LABEL if arranged.classes else Task.UNLABELLED,
        classes=arranged.classes,
        root=storage.root,
        batches=lambda: _labelled(spool, arranged, list(seen.example)),
        splits=tuple(arranged.splits),
        notes=(*_notes(arranged, seen, tree), *([RENDERED_NOTE] if rendered else [])),
        marks={"images": RENDERED} if rendered else {},
    )


def _notes(arranged: Arranged, seen: _Seen, tree: "Tree | None") -> Iterator[str]:
    """Say what `vggfeat.datasets.folder.read` says; of folders without images a store knows nothing."""
    yield from arranged.level.notes
    yield from class_name_notes(arranged.classes)
    filled = {name: {arranged.classes_of[row] or "" for row in rows} for name, rows in arranged.splits.items() if rows}
    yield from lonely_notes(arranged.classes, filled)
    left_out = [str(seen.others)]
    if tree is not None:
        empty = empty_folders(tree.folders, seen.example, arranged.level)
        left_out += [listed(empty), str(tree.repeated), str(tree.unnameable)]
    yield from (f"{what}: {names}." for what, names in zip(LEFT_OUT, left_out, strict=False) if names)


def _batch(entries: list[Entry]) -> "pa.RecordBatch":
    import pyarrow as pa

    schema = row_schema()
    columns = {"file": "path", "size": "size", "etag": "etag"}
    arrays = [
        pa.array([getattr(entry, value) for entry in entries], schema.field(name).type)
        for name, value in columns.items()
    ]
    return pa.RecordBatch.from_arrays([arrays[0], *arrays], ["id", *columns])


def _labelled(spool: Spool, arranged: Arranged, folders: list[str]) -> Iterator["pa.RecordBatch"]:
    """Yield all rows with the class and the splits of their folders."""
    import pyarrow as pa

    number = {cls: k for k, cls in enumerate(arranged.classes)}
    labels = {folder: [number[cls]] if cls else [] for folder, cls in zip(folders, arranged.classes_of, strict=True)}
    splits: dict[str, list[str]] = {folder: [] for folder in folders}
    for name, rows in arranged.splits.items():
        for row in rows:
            splits[folders[row]].append(name)
    schema = row_schema()
    for batch in spool.read():
        places = [path.rpartition("/")[0] for path in batch["file"].to_pylist()]
        for name, known in (("labels", labels), ("splits", splits)):
            column = pa.array([known[place] for place in places], schema.field(name).type)
            batch = batch.append_column(name, column)
        yield batch


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

    Raises DatasetError if a folder can't be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repeated, self.unnameable = Some(), Some()
        self.folders: dict[str, set[str]] = {}
        """Each folder, and the names of those in it."""
        self._find_folders()

    def _find_folders(self) -> None:
        def look(folder: str) -> Iterator[tuple[str, bool]]:
            folders = (entry for entry in self._entries(folder, self.unnameable) if is_folder(entry))
            for name, link in sorted((entry.name, entry.is_symlink()) for entry in folders):
                yield path_in(folder, name), link

        for folder in walk_folders(self.root, look, self.repeated.add):
            self.folders[folder] = set()
            above, _, name = folder.rpartition("/")
            if folder:
                self.folders[above].add(name)

    def _entries(self, folder: str, unnameable: Some | None = None) -> Iterator["os.DirEntry[str]"]:
        with _reading(self.root / folder), os.scandir(self.root / folder) as found:
            for entry in found:
                check_locale(self.root / folder, (entry.name,))
                if is_hidden(entry.name):
                    continue
                if is_utf8(entry.name):
                    yield entry
                elif unnameable is not None:
                    unnameable.add(path_in(folder, entry.name))

    def entries(self) -> Iterator[Entry]:
        """Yield all files, images and others, in the order of their whole paths; -1 bytes where they can't be found."""
        paths = self._paths("")
        with ThreadPoolExecutor(STATS, "vggfeat-sizes") as pool:
            while some := list(islice(paths, BATCH_ROWS)):
                yield from map(Entry, some, sizes_of([os.path.join(self.root, path) for path in some], pool))

    def _paths(self, folder: str) -> Iterator[str]:
        # With its slash, a folder stands where its files stand in an order of whole paths.
        folders = [f"{name}/" for name in self.folders[folder]]
        files = (entry.name for entry in self._entries(folder) if not is_folder(entry))
        for name in in_order(chain(folders, files)):
            if name.endswith("/"):
                yield from self._paths(path_in(folder, name[:-1]))
            else:
                yield path_in(folder, name)


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


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise no_folder(folder, error) from error
