"""A copy of a data set is compared with its official numbers, and its splits are written as text."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggfeat.datasets.catalogue import lookup, open_dataset, resolve_root
from vggfeat.datasets.levels import Layout
from vggfeat.datasets.manifest import ListSettings
from vggfeat.datasets.record import Archive, Count, DatasetRecord
from vggfeat.errors import DatasetError
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors, make_folders
from vggfeat.runtime.output_paths import check_target
from vggfeat.samples import DataSet, Label


class MissingImage(NamedTuple):
    """An image file that is listed but absent, empty or no regular file."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetReport:
    """A copy of a data set and its official numbers."""

    name: str
    """Name of the data set."""
    root: str
    """Folder where the copy was expected."""
    problem: str | None
    """Why it can't be read, or None."""
    counts: tuple[Count, ...]
    """Found and expected, by split and class."""
    missing: tuple[MissingImage, ...]
    notes: tuple[str, ...]
    """Notes of the reader."""
    archives: tuple[Archive, ...]
    """Archives in which the official files are published."""

    @property
    def complete(self) -> bool:
        """Whether the copy can be read, all its images are there and no verified number disagrees."""
        return self.problem is None and not self.missing and all(count.agrees for count in self.counts)


def check_copy(
    name: str, root: Path | str | None = None, layout: Layout | None = None, listing: ListSettings | None = None
) -> DatasetReport:
    """Compare a copy of a data set with the official numbers, and list missing image files.

    No image is decoded, and nothing is downloaded.

    Parameters
    ----------
    name : str
        A name of `DATASETS`.
    root, layout, listing : optional
        See `open_dataset`.

    Raises
    ------
    ConfigError
        If there is no data set of this name, or the settings don't fit it. A copy that can't be read is no error here:
        the report says why.
    """
    record = lookup(name)
    where = resolve_root(name, root)
    problem: str | None = None
    data: DataSet | None = None
    try:
        data = open_dataset(name, root, layout, listing)
    except DatasetError as error:
        problem = str(error)
    return DatasetReport(
        name=name,
        root=str(where),
        problem=problem,
        counts=record.counts if data is None else tuple(_compare(record, data)),
        missing=() if data is None else tuple(_missing(data)),
        notes=() if data is None else data.notes,
        archives=record.archives,
    )


def write_splits(
    dataset: DataSet, directory: Path | str, *, overwrite: bool = False, inputs: Sequence[Path] = ()
) -> tuple[Path, ...]:
    r"""Write the ids of every split to a text file of its own.

    Parameters
    ----------
    dataset : DataSet
        Any data set with splits.
    directory : Path or str
        Made if it is not there; receives SPLIT.txt per split, UTF-8, one id per line, "\n" behind each.
    overwrite : bool
        Replace files that have other content.
    inputs : sequence of Path
        Files and folders of the data set, in which nothing is replaced.

    Returns
    -------
    tuple of Path
        The files, in the order of the splits.

    Raises
    ------
    DatasetError
        If there are no splits, an id holds a line break, or a split's name can't name a file. Ids and names are
        checked before anything is written.
    StoreError
        If the folder can't be written, or has files of these names with other content.
    """
    if not dataset.splits:
        raise DatasetError(f"{dataset.name}: expected splits to write, found none")
    texts: dict[str, str] = {}
    for split, rows in dataset.splits.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", split):
            raise DatasetError(f"{dataset.name}: expected a split name of letters, digits and _ . -, found {split!r}")
        ids = [dataset.ids[row] for row in rows]
        broken = next((name for name in ids if name.splitlines() != [name]), None)
        if broken is not None:
            raise DatasetError(f"{dataset.name}: expected ids of one line, found {broken!r}; rename the file")
        texts[split] = "".join(f"{name}\n" for name in ids)
    contents = {Path(directory) / f"{split}.txt": text.encode() for split, text in texts.items()}
    targets = {
        path: check_target(
            path, inputs=inputs, overwrite=overwrite, ours=partial(_holds, content), called="the same list"
        )
        for path, content in contents.items()
    }
    for path, content in contents.items():
        with disk_errors(path, "writing", "fix it"):
            make_folders(DISK, targets[path].parent)
            with atomic_write(DISK, targets[path]) as file:
                file.write(content)
    return tuple(contents)


def _holds(content: bytes, path: Path) -> bool:
    return path.stat().st_size == len(content) and path.read_bytes() == content


def _compare(record: DatasetRecord, data: DataSet) -> Iterator[Count]:
    """Everything that was counted, then what was expected of splits or classes that are not there."""
    expected = {(count.split, count.what): count for count in record.counts}
    for split, what, found in _tally(record.unit, data):
        official = expected.pop((split, what), None)
        yield official._replace(found=found) if official else Count(split, what, found, None)
    for official in expected.values():
        yield official._replace(found=0)


def _tally(unit: str, data: DataSet) -> Iterator[tuple[str, str, int | None]]:
    yield "all", "classes", len(data.classes)
    for split, rows in _all_splits(data).items():
        yield split, unit, len(rows)
        if unit != "images":
            yield split, "images", len({data.paths[row] for row in rows})
        labels = data.labels[rows]
        published = (labels != Label.WITHHELD).any(axis=0)
        positives = (labels == Label.POSITIVE).sum(axis=0)
        for column, cls in enumerate(data.classes):
            yield split, cls, int(positives[column]) if published[column] else None


def _all_splits(data: DataSet) -> dict[str, np.ndarray]:
    splits = {"all": np.arange(len(data)), **data.splits}
    if "train" in splits and "val" in splits:
        splits["trainval"] = np.union1d(splits["train"], splits["val"])
    return splits


def _missing(data: DataSet) -> Iterator[MissingImage]:
    for path in dict.fromkeys(data.paths):
        try:
            status = os.stat(Path(data.root) / path)
        except OSError as error:
            yield MissingImage(path, error.strerror or type(error).__name__)
            continue
        if not stat.S_ISREG(status.st_mode):
            yield MissingImage(path, "not a regular file")
        elif status.st_size == 0:
            yield MissingImage(path, "empty")
