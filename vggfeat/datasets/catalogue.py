"""The front door to data sets: a name opens a reader, and a copy is checked against the official numbers."""

import difflib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggfeat.datasets import caltech, folder, voc
from vggfeat.datasets.facts import FACTS, Archive, Count, Facts
from vggfeat.errors import ConfigError, DatasetError, StoreError
from vggfeat.samples import DataSet, Label

__all__ = [
    "FACTS",
    "Archive",
    "Count",
    "DatasetReport",
    "Facts",
    "Problem",
    "check",
    "lookup",
    "open_dataset",
    "resolve_root",
    "write_splits",
]  # fmt: skip


class Problem(NamedTuple):
    """An image that can't be there."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetReport:
    """A copy of a data set beside its official numbers."""

    name: str
    """Name of the data set."""
    root: str
    """Where the copy was looked for."""
    problem: str | None
    """Why it can't be read, or None."""
    counts: tuple[Count, ...]
    """Found beside expected, by split and class."""
    missing: tuple[Problem, ...]
    """Image files that are listed but absent, empty or no regular files."""
    notes: tuple[str, ...]
    """What the reader says of this copy."""
    archives: tuple[Archive, ...]
    """Where the official files are published."""

    @property
    def complete(self) -> bool:
        """Whether the copy can be read, all its images are there and no verified number disagrees."""
        return self.problem is None and not self.missing and all(count.agrees for count in self.counts)


def lookup(name: str) -> Facts:
    """Look up the facts of a data set.

    Raises
    ------
    ConfigError
        If there is none of this name; the message suggests the nearest.
    """
    if name in FACTS:
        return FACTS[name]
    near = difflib.get_close_matches(str(name), FACTS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"data set: expected one of {', '.join(FACTS)}, found {name!r}{hint}")


def resolve_root(name: str, root: Path | str | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """Say where a data set lies: in `root`, else in $VGGFEAT_DATA/NAME, else in data/NAME.

    Parameters
    ----------
    name : str
        A name of `FACTS`.
    root : Path or str, optional
        Taken as it is.
    environ : mapping, optional
        By default the environment of the process.
    """
    lookup(name)
    if root is not None:
        return Path(root)
    base = (os.environ if environ is None else environ).get("VGGFEAT_DATA", "")
    return Path(base or "data") / name


def open_dataset(name: str, root: Path | str | None = None) -> DataSet:
    """Read a data set by its name.

    Parameters
    ----------
    name : str
        A name of `FACTS`.
    root : Path or str, optional
        Its folder, see `resolve_root`; for manifest the CSV file, or the folder that holds a manifest.csv.

    Raises
    ------
    ConfigError
        If there is no data set of this name.
    DatasetError
        If it is not there, or not in its official layout.
    """
    where = resolve_root(name, root)
    if not os.path.exists(where):
        raise DatasetError(
            f"{name}: expected it at {where}, found nothing there; give its place with --root, or set VGGFEAT_DATA "
            f"to the folder that holds {name}; `vggfeat data check {name}` says where it is published"
        )
    if name in ("voc2007", "voc2012"):
        return voc.read(where, int(name[3:]))
    if name == "voc2012-action":
        return voc.read_actions(where)
    if name in ("caltech101", "caltech256"):
        return caltech.read(where, int(name[7:]))
    if name == "folder":
        return folder.read(where)
    return folder.read_manifest(where / "manifest.csv" if where.is_dir() else where)


def check(name: str, root: Path | str | None = None) -> DatasetReport:
    """Compare a copy of a data set with the official numbers, and look for its image files.

    No image is decoded, and nothing is downloaded.

    Parameters
    ----------
    name : str
        A name of `FACTS`.
    root : Path or str, optional
        See `open_dataset`.

    Raises
    ------
    ConfigError
        If there is no data set of this name. A copy that can't be read is no error here: the report says why.
    """
    known = lookup(name)
    where = resolve_root(name, root)
    problem: str | None = None
    data: DataSet | None = None
    try:
        data = open_dataset(name, root)
    except DatasetError as error:
        problem = str(error)
    return DatasetReport(
        name=name,
        root=str(where),
        problem=problem,
        counts=known.counts if data is None else tuple(_compare(known, data)),
        missing=() if data is None else tuple(_missing(data)),
        notes=() if data is None else data.notes,
        archives=known.archives,
    )


def write_splits(dataset: DataSet, directory: Path | str) -> tuple[Path, ...]:
    r"""Write the ids of every split to a text file of its own.

    Parameters
    ----------
    dataset : DataSet
        Any data set with splits.
    directory : Path or str
        Made if it is not there; receives SPLIT.txt per split, UTF-8, one id per line, "\n" behind each.

    Returns
    -------
    tuple of Path
        The files, in the order of the splits.

    Raises
    ------
    DatasetError
        If there are no splits, an id holds a line break, or a split's name can't name a file. Ids and names are looked
        at before anything is written.
    StoreError
        If the folder can't be written.
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
    return tuple(_write(Path(directory), f"{split}.txt", text) for split, text in texts.items())


def _write(directory: Path, name: str, text: str) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StoreError(f"{directory / name}: can't be written: {error.strerror or error}; mend it") from error
    return directory / name


def _compare(known: Facts, data: DataSet) -> Iterator[Count]:
    """Everything that was counted, then what was expected of splits or classes that are not there."""
    expected = {(count.split, count.what): count for count in known.counts}
    for split, what, found in _tally(known.unit, data):
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


def _missing(data: DataSet) -> Iterator[Problem]:
    for path in dict.fromkeys(data.paths):
        try:
            status = os.stat(Path(data.root) / path)
        except OSError as error:
            yield Problem(path, error.strerror or type(error).__name__)
            continue
        if not stat.S_ISREG(status.st_mode):
            yield Problem(path, "not a regular file")
        elif status.st_size == 0:
            yield Problem(path, "empty")
