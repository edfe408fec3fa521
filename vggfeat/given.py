"""Descriptors that another program made, matched to the images of a data set: a table like that of feature files.

Any net will do (timm, CLIP, DINO ...): a row an image, with a name. N = samples of the data set, M = rows of the file,
D = length of a descriptor.
"""

import csv
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_given
from vggfeat.descriptors import Normalisation, l2_normalise
from vggfeat.errors import StoreError
from vggfeat.formats.npz import UNREADABLE, Wanted, read_arrays
from vggfeat.samples import DataSet
from vggfeat.table import DescriptorTable
from vggfeat.wording import counted, quoted

GIVEN = "given"
"""What stands in results where it is not known how descriptors were made."""
MISSING = "no-descriptor"
"""Reason of a sample that the file has no descriptor of."""
ID_COLUMNS = ("id", "path")
"""Names of the column with the names of images, the first that is there."""
DESCRIPTOR_COLUMN = "descriptor"
MOST_BYTES = 1 << 37
"""Of the arrays of an .npz file."""
NAMED = 3
"""Names that a message gives as examples."""


class Given(NamedTuple):
    """What a file holds."""

    names: list[str]
    """M names of images."""
    descriptors: NDArray[np.float32]
    """(M, D)"""


class Matched(NamedTuple):
    """Which descriptor belongs to which sample."""

    row_of: NDArray[np.int64]
    """(N,) row of the file, -1 where there is none."""
    strangers: list[str]
    """Names in the file that no sample has."""


def read_given(
    path: str | os.PathLike[str], dataset: DataSet, *, normalisation: Normalisation = "whole"
) -> DescriptorTable:
    """Read descriptors of another program and match them to a data set by name.

    Parameters
    ----------
    path : path
        .parquet with the columns `id` (or `path`) and `descriptor` (lists of equal length); .npz with the arrays `ids`
        (M,) and `descriptors` (M, D); or .npy (M, D) with the names in a .csv file of the same name next to it, in the
        first column or in that called id or path. Pickled objects are not read.
    dataset : DataSet
        A name is an id of it, or the path of an image: below its root or absolute, with or without its ending.
    normalisation : "whole", "blocks" or "none"
        L2, or not at all; a given descriptor has no blocks.

    Returns
    -------
    DescriptorTable
        Rows of the data set; samples without a descriptor have failed, for the reason `MISSING`.

    Raises
    ------
    StoreError
        If the file can't be read, has a value that is not finite, or names an image twice or by half; or if no name is
        one of the data set.
    ConfigError
        If a path is given for the data set.
    """
    check_given("dataset", dataset, DataSet, "what vggfeat.open_dataset makes of a folder")
    place = Path(path)
    given = _read(place)
    _check(place, given)
    matched = match_names(given.names, dataset, str(place))
    there = matched.row_of >= 0
    descriptors = np.zeros((len(dataset), given.descriptors.shape[1]), dtype=np.float32)
    descriptors[there] = given.descriptors[matched.row_of[there]]
    about = {
        "file": place.name,
        "sha256": _digest(place),
        "net": GIVEN,
        "scales": GIVEN,
        "descriptors": len(given.names),
        "used": int(there.sum()),
        "strangers": len(matched.strangers),
        "first_strangers": matched.strangers[:NAMED],
    }
    return DescriptorTable(
        dataset=dataset,
        descriptors=descriptors if normalisation == "none" else l2_normalise(descriptors),
        ok=there,
        settings={
            "join": GIVEN,
            "normalisation": normalisation,
            "length": descriptors.shape[1],
            "files": [],
            "given": about,
        },
        reasons=dict.fromkeys(np.flatnonzero(~there).tolist(), f"{MISSING}: none in {place.name}"),
    )


def notes(table: DescriptorTable) -> list[str]:
    """Say in a sentence each what did not match in a table of `read_given`."""
    about, data = table.settings["given"], table.dataset
    missing, found = np.flatnonzero(~table.ok), []
    if len(missing):
        first = _some([data.ids[row] for row in missing[:NAMED].tolist()], len(missing))
        found.append(
            f"{len(missing)} of {len(data)} samples of {data.name} have no descriptor in {about['file']}: {first}"
        )
    if about["strangers"]:
        first = _some(about["first_strangers"], about["strangers"])
        found.append(
            f"in {about['file']} {counted(about['strangers'], 'name{s} {are} no image{s}')} of {data.name}: {first}"
        )
    return found


def _some(names: Sequence[str], count: int) -> str:
    return ", ".join(map(quoted, names[:NAMED])) + (", ..." if count > NAMED else "")


def match_names(names: Sequence[str], dataset: DataSet, where: str) -> Matched:
    """Find the sample, or the samples of one image, that each name means; messages begin with `where`.

    StoreError if a name means several images, two names mean one sample, or no name means any.
    """
    known = _known_names(dataset)
    row_of = np.full(len(dataset), -1, dtype=np.int64)
    strangers = []
    found = [_lookup(name, known, dataset.root) for name in names]
    sure = {row for rows, exact in found if exact for row in rows}
    for number, (name, (rows, exact)) in enumerate(zip(names, found, strict=True)):
        if not exact and sure & set(rows) and _ending(name) != _ending(dataset.paths[rows[0]]):
            rows = []  # a.png is another image than a.jpg where a.jpg is in the file as well
        if len({dataset.paths[row] for row in rows}) > 1:
            raise StoreError(
                f"{where}: expected names that mean one image each, found {quoted(name)}, which may be "
                f"{' or '.join(quoted(dataset.paths[row]) for row in rows[:2])}; write its ending as well"
            )
        for row in rows:
            if row_of[row] >= 0:
                raise StoreError(
                    f"{where}: expected one descriptor for an image, found two for {quoted(dataset.ids[row])}, named "
                    f"{quoted(names[row_of[row]])} and {quoted(name)}; leave one out"
                )
            row_of[row] = number
        if not rows:
            strangers.append(name)
    if (row_of < 0).all():
        first = quoted(names[0]) if len(names) else "none"
        raise StoreError(
            f"{where}: expected names of images of {dataset.name} such as {quoted(dataset.ids[0])} or "
            f"{quoted(dataset.paths[0])}, found {first} and no other that is one; write ids, or paths below its root"
        )
    return Matched(row_of, strangers)


def _known_names(dataset: DataSet) -> list[Mapping[str, list[int]]]:
    """Return names -> rows: by id, by path, and by path without its ending, in the order in which they count."""
    forms: list[Callable[[int], str]] = [
        lambda row: dataset.ids[row],
        lambda row: dataset.paths[row],
        lambda row: _stem(dataset.paths[row]),
    ]
    known: list[Mapping[str, list[int]]] = []
    for form in forms:
        rows: dict[str, list[int]] = {}
        for row in range(len(dataset)):
            rows.setdefault(form(row), []).append(row)
        known.append(rows)
    return known


def _lookup(name: str, known: Sequence[Mapping[str, list[int]]], root: str) -> tuple[list[int], bool]:
    """Return the rows that a name means, and whether with its ending: as it is, below the root, then without."""
    plain = os.path.normpath(name.replace("\\", "/")) if name else ""
    below = os.path.relpath(plain, os.path.abspath(root)) if root and os.path.isabs(plain) else plain
    for one in dict.fromkeys((name, plain, below, _stem(below))):
        for rows in known:
            if one in rows:
                return rows[one], one in (name, plain, below)
    return [], False


def _stem(path: str) -> str:
    """Return a path without its ending."""
    return os.path.splitext(path)[0]


def _ending(path: str) -> str:
    return os.path.splitext(path)[1]


def _check(path: Path, given: Given) -> None:
    if not given.descriptors.shape[1] or not len(given.names):
        raise StoreError(f"{path}: expected descriptors, found an array of shape {given.descriptors.shape}")
    if len(given.names) != len(given.descriptors):
        raise StoreError(
            f"{path}: expected a name for each of {len(given.descriptors)} descriptors, found {len(given.names)}"
        )
    wrong = np.flatnonzero(~np.isfinite(given.descriptors).all(axis=1))
    if len(wrong):
        raise StoreError(
            f"{path}: expected finite numbers, found others in {counted(len(wrong), 'descriptor{s}')}, the first is "
            f"that of {quoted(given.names[wrong[0]])}; leave these out, or compute them again"
        )


def _read(path: Path) -> Given:
    readers = {".parquet": _read_parquet, ".npz": _read_npz, ".npy": _read_npy}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise StoreError(f"{path}: expected a file named .parquet, .npz or .npy, found another; see `vggfeat svm -h`")
    if not path.is_file():
        raise StoreError(f"{path}: expected a file of descriptors, found none")
    try:
        names, descriptors = reader(path)
        return Given(names, _float32(descriptors))
    except UNREADABLE as error:
        raise StoreError(
            f"{path}: expected descriptors that can be read, found others ({type(error).__name__}: {error}); "
            "write them again"
        ) from None


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # What float32 can't hold is refused as infinite.
        return np.ascontiguousarray(values, dtype=np.float32)


def _read_npz(path: Path) -> tuple[list[str], NDArray[Any]]:
    wanted = {"ids": Wanted("U", (None,)), "descriptors": Wanted("f", (None, None))}
    with path.open("rb") as file:
        found = read_arrays(file, wanted, MOST_BYTES)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"expected the arrays ids and descriptors, found no {missing[0]}")
    return found["ids"].tolist(), found["descriptors"]


def _read_npy(path: Path) -> tuple[list[str], NDArray[Any]]:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.ndim != 2 or values.dtype.kind != "f":
        raise ValueError(f"expected numbers of shape (images, length), found {values.dtype} of shape {values.shape}")
    table = path.with_suffix(".csv")
    if not table.is_file():
        raise ValueError(f"expected the names of the images in {table}, found no such file")
    with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [line for line in csv.reader(file) if line]
    head = lines[0] if lines else []
    column = next((head.index(name) for name in ID_COLUMNS if name in head), None)
    if column is not None:
        lines = lines[1:]
    return [line[column or 0] for line in lines], values


def _read_parquet(path: Path) -> tuple[list[str], NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        content = pq.ParquetFile(file)
        names = content.schema_arrow.names
        key = next((name for name in ID_COLUMNS if name in names), None)
        if key is None or DESCRIPTOR_COLUMN not in names:
            raise ValueError(f"expected the columns id (or path) and descriptor, found {', '.join(names)[:200]}")
        table = content.read([key, DESCRIPTOR_COLUMN])
    ids, lists = table[key].to_pylist(), table[DESCRIPTOR_COLUMN].combine_chunks()
    if not all(isinstance(name, str) for name in ids):
        raise ValueError(f"expected names in the column {key}, found {table[key].type}")
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if lists.null_count or not any(is_kind(lists.type) for is_kind in kinds):
        raise ValueError(f"expected a list of numbers in each row of {DESCRIPTOR_COLUMN}, found {lists.type}")
    flat = lists.flatten()
    if flat.null_count or not pa.types.is_floating(flat.type):
        raise ValueError(f"expected numbers without gaps in {DESCRIPTOR_COLUMN}, found {lists.type}")
    lengths = np.unique(np.asarray(lists.value_lengths())) if len(lists) else np.zeros(1, np.int64)
    if len(lengths) > 1:
        raise ValueError(f"expected lists of one length, found {lengths[0]} and {lengths[-1]}")
    return ids, flat.to_numpy(zero_copy_only=False).reshape(len(ids), int(lengths[0]))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
