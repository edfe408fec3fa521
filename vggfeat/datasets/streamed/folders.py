"""A tree of images at an address, or of this machine, read by the rules of `vggfeat.datasets.folder` in a stream."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from vggfeat.datasets.files import IMAGE_SUFFIXES, is_image, listed
from vggfeat.datasets.folder import Arranged, arrange
from vggfeat.datasets.levels import Layout, class_name_notes
from vggfeat.datasets.streamed.spool import Spool
from vggfeat.errors import DatasetError
from vggfeat.listing import BATCH_ROWS, Listing, row_schema
from vggfeat.runtime.storage import Entry, StorageSettings, open_storage
from vggfeat.samples import Task

if TYPE_CHECKING:
    import pyarrow as pa


class _Seen:
    """What is remembered of all files: one image of each folder, and how many are no images."""

    def __init__(self) -> None:
        self.example: dict[str, str] = {}
        self.others: list[str] = []
        self.other_count = 0

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
            self.other_count += 1
            if len(self.others) < 5:
                self.others.append(entry.path)

    @property
    def notes(self) -> tuple[str, ...]:
        more = self.other_count - len(self.others)
        text = listed(self.others) + (f" and {more} more" if more else "")
        return (f"Not images by their endings, and ignored: {text}.",) if self.others else ()


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
    images = seen.images(storage.entries())
    while some := list(islice(images, BATCH_ROWS)):
        spool.add(_batch(some))
    if not spool.rows:
        endings = " ".join(IMAGE_SUFFIXES)
        raise DatasetError(f"{storage.root}: expected images ({endings}), found {seen.other_count} other file(s)")
    arranged = arrange(storage.root, list(seen.example.values()), layout)
    return Listing(
        name="folder",
        task=Task.SINGLE_LABEL if arranged.classes else Task.UNLABELLED,
        classes=arranged.classes,
        root=storage.root,
        batches=lambda: _labelled(spool, arranged, list(seen.example)),
        splits=tuple(arranged.splits),
        notes=(*arranged.level.notes, *class_name_notes(arranged.classes), *seen.notes),
    )


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
