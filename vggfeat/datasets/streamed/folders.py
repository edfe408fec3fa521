"""A tree of images at an address, or of this machine, read by the rules of `vggfeat.datasets.folder` in a stream."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vggfeat.datasets.catalogue import RENDERED_NOTE
from vggfeat.datasets.files import IMAGE_SUFFIXES, is_image, listed
from vggfeat.datasets.folder import LEFT_OUT, Arranged, arrange, empty_folders, lonely_notes
from vggfeat.datasets.levels import Layout, class_name_notes
from vggfeat.datasets.streamed.spool import Spool
from vggfeat.datasets.streamed.trees import Some, Tree
from vggfeat.errors import DatasetError
from vggfeat.listing import BATCH_ROWS, Listing, row_schema
from vggfeat.runtime.rendered import RENDERED, is_rendered
from vggfeat.runtime.storage import Entry, LocalStorage, StorageSettings, open_storage
from vggfeat.samples import Task

if TYPE_CHECKING:
    import pyarrow as pa


class _Seen:
    """What is remembered of all files: one image of each folder, and how many are no images."""

    def __init__(self) -> None:
        self.example: dict[str, str] = {}
        self.others = Some()

    def images(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Yield the images; hidden names and __MACOSX are passed over."""
        for entry in entries:
            folder, _, name = entry.path.rpartition("/")
            if any(part.startswith(".") or part == "__MACOSX" for part in entry.path.split("/")):
                continue
            if is_image(name):
                self.example.setdefault(folder, entry.path)
                yield entry
                continue
            self.others.add(entry.path)


def list_folder(root: str, settings: StorageSettings, layout: Layout | None = None) -> Listing:
    """List a tree of images. Memory grows with the number of its folders.

    Raises
    ------
    DatasetError
        As `vggfeat.datasets.folder.read`.
    StoreError
        If the store can't be listed.
    """
    storage, seen, spool = open_storage(root, settings), _Seen(), Spool()
    tree = Tree(Path(storage.root)) if isinstance(storage, LocalStorage) else None
    images = seen.images(tree.entries() if tree else storage.entries())
    while some := list(islice(images, BATCH_ROWS)):
        spool.add(_batch(some))
    if not spool.rows:
        endings = " ".join(IMAGE_SUFFIXES)
        raise DatasetError(f"{storage.root}: expected images ({endings}), found {seen.others.count} other file(s)")
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


def _notes(arranged: Arranged, seen: _Seen, tree: Tree | None) -> Iterator[str]:
    """Say what `vggfeat.datasets.folder.read` says; of folders without images a store knows nothing."""
    yield from arranged.level.notes
    yield from class_name_notes(arranged.classes)
    filled = {name: {arranged.classes_of[row] or "" for row in rows} for name, rows in arranged.splits.items() if rows}
    yield from lonely_notes(arranged.classes, filled)
    told = [str(seen.others)]
    if tree is not None:
        empty = empty_folders(tree.folders, seen.example, arranged.level)
        told += [listed(empty), str(tree.repeated), str(tree.unnameable)]
    yield from (f"{what}: {names}." for what, names in zip(LEFT_OUT, told, strict=False) if names)


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
