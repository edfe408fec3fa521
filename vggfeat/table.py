"""Feature files of the same samples become one table of descriptors: matched by id, joined, normalised, stacked.

N = samples, n = some of them, K = classes, D = length of a descriptor.

Features are read in slices, and every row goes straight to its place, so that the table is the only large thing in
memory.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptors import Join, Normalisation, fuse, join_features
from vggfeat.errors import ConfigError, StoreError, check_choice
from vggfeat.samples import DataSet, Task
from vggfeat.short_repr import short_repr
from vggfeat.store.export import Table
from vggfeat.store.layout import Status
from vggfeat.store.reader import Features
from vggfeat.store.sharded import check_scales, open_features

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One file or several."""
Failed = Literal["raise", "drop"]
CHUNK_BYTES = 1 << 26
"""Features that are in memory at a time, of all files together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DescriptorTable:
    """Descriptors of a data set, a row for every sample, failed ones included."""

    dataset: DataSet
    """Ids, labels, classes and splits, as stored in the first file."""
    descriptors: NDArray[np.float32]
    """(N, D); finite, zeros in rows that failed."""
    ok: NDArray[np.bool_]
    """(N,); False where an image failed in one of the files."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Join, normalisation, and the provenance of every file; ready for JSON."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Row that failed -> why, by the first file that says it."""
    sha256: NDArray[np.uint8] | None = None
    """(N, 32) digest of the image file's bytes, zeros where they were not read; None if no file says it."""

    __repr__ = short_repr


class _Arrays(NamedTuple):
    descriptors: NDArray[np.float32]
    """(n, D)"""
    labels: NDArray[np.int64] | NDArray[np.int8]
    """Single-label sets: (n,) int64 class numbers, -1 = not known. Others: (n, K) int8 of 1, -1, 0 = ignored,
    2 = withheld, 3 = not listed."""
    ids: list[str]
    """n names of samples."""
    classes: tuple[str, ...]
    """K names."""

    def __repr__(self) -> str:
        return short_repr(self)


class LoadedFeatures(_Arrays):
    """Aligned arrays for use elsewhere: entry i of each is of the same sample.

    As a tuple it has four: descriptors, labels, ids, classes.
    """

    groups: list[str] | None = None
    """n names of what the images are of (patient, site, specimen); None where nothing is known of it."""
    columns: Mapping[str, list[str]] = MappingProxyType({})
    """Further columns of the list that named the images, name -> n texts."""


def read_descriptors(
    paths: Paths,
    *,
    join: Join = "mean",
    normalisation: Normalisation = "blocks",
    regions: Sequence[str] | None = None,
) -> DescriptorTable:
    """Read feature files of the same samples and fuse them by stacking (VGG paper, Appendix B: D and E).

    Parameters
    ----------
    paths : path, or sequence of paths
        One feature file or several, or runs in shards. Rows are matched by id and take the order of the first.
    join : "mean", "max" or "stack"
        Over the scales of each file.
    normalisation : "blocks", "whole" or "none"
        See `vggfeat.descriptors`.
    regions : sequence of str, optional
        Which of the stored regions to stack, in this order; all by default.

    Raises
    ------
    StoreError
        If a file is damaged, or the files differ in samples, classes, labels or the images' bytes; the first
        difference is named.
    ConfigError
        If no file is given, a region is not in a file, or a setting is not allowed.

    Notes
    -----
    Needs 4 N D bytes for the table, and some 300 MB besides.
    """
    with open_aligned(paths, join, normalisation, regions) as aligned:
        descriptors = aligned.descriptors(np.arange(len(aligned.dataset)))
        return DescriptorTable(descriptors=descriptors, **aligned.about(regions))


def load_features(
    path: Paths,
    join: Join = "mean",
    split: str | Sequence[str] | None = None,
    *,
    normalisation: Normalisation = "blocks",
    regions: Sequence[str] | None = None,
    failed: Failed = "raise",
) -> LoadedFeatures:
    """Load descriptors, labels and ids, row by row of the same samples. PyTorch is not needed.

    Parameters
    ----------
    path, join, normalisation, regions
        As for `read_descriptors`.
    split : str or sequence of str, optional
        Names of splits stored in the (first) file, for instance "train"; several are united. Only their rows come
        into memory. All rows by default.
    failed : "raise" or "drop"
        What to do where an image could not be read: raise an error, or leave the row out.

    Returns
    -------
    LoadedFeatures
        Rows keep the order of the (first) file.

    Raises
    ------
    ConfigError
        If a split is not in the file, no file is given or a setting is not allowed.
    StoreError
        If a file is damaged, files do not match, or an image failed and `failed` is "raise".
    """
    check_choice("failed", failed, get_args(Failed))
    with open_aligned(path, join, normalisation, regions) as aligned:
        data = aligned.dataset
        rows = rows_with_descriptors(str(aligned.files[0].path), data, rows_of(data, split), aligned.ok, failed)
        labels = data.labels[rows]
        loaded = LoadedFeatures(
            descriptors=aligned.descriptors(rows),
            labels=class_numbers(labels) if data.task == Task.SINGLE_LABEL else labels,
            ids=[data.ids[row] for row in rows],
            classes=data.classes,
        )
        loaded.groups = None if data.groups is None else [data.groups[row] for row in rows]
        loaded.columns = {name: [texts[row] for row in rows] for name, texts in data.columns.items()}
        return loaded


def rows_with_descriptors(
    where: str, dataset: DataSet, rows: NDArray[np.int64], ok: NDArray[np.bool_], failed: Failed
) -> NDArray[np.int64]:
    """Return those of some rows that are `ok` (N,); StoreError if others are there and are not to be dropped."""
    missing = rows[~ok[rows]]
    if len(missing) and failed == "raise":
        raise StoreError(
            f"{where}: expected a descriptor in each of {len(rows)} rows, found {len(missing)} whose image failed at "
            f"extraction, the first is {dataset.ids[missing[0]]!r}; pass failed='drop' to leave them out"
        )
    return rows[ok[rows]]


def class_numbers(labels: NDArray[np.int8]) -> NDArray[np.int64]:
    """Turn the labels (n, K) of a single-label set into (n,) numbers of the positive class, -1 where none is known."""
    positive = labels == 1
    return np.where(positive.any(axis=1), np.argmax(positive, axis=1), -1)


def rows_of(dataset: DataSet, split: str | Sequence[str] | None) -> NDArray[np.int64]:
    """Return the ascending rows of a split, of the union of several, or all rows.

    Raises
    ------
    ConfigError
        If there is no such split, or an empty list is given.
    """
    if split is None:
        return np.arange(len(dataset), dtype=np.int64)
    names = [split] if isinstance(split, str) else list(split)
    unknown = [name for name in names if name not in dataset.splits]
    if unknown or not names:
        known = f"one of {', '.join(dataset.splits)}" if dataset.splits else "no name, as the file has no splits"
        raise ConfigError(f"split: expected {known}, found {repr(unknown[0]) if unknown else 'an empty list'}")
    return np.unique(np.concatenate([dataset.splits[name] for name in names]))


def to_table(table: DescriptorTable, rows: NDArray[np.int64]) -> Table:
    """Return some rows of a table for `vggfeat.store.export`, splits renumbered to them.

    Consecutive rows share their memory with `table`; others are copied.
    """
    data = table.dataset
    place = np.full(len(data), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    consecutive = bool(len(rows)) and bool((np.diff(rows) == 1).all())
    return Table(
        ids=[data.ids[row] for row in rows],
        paths=[data.paths[row] for row in rows],
        descriptors=table.descriptors[rows[0] : rows[0] + len(rows)] if consecutive else table.descriptors[rows],
        labels=data.labels[rows],
        classes=data.classes,
        splits={name: np.sort(place[members][place[members] >= 0]) for name, members in data.splits.items()},
        groups=None if data.groups is None else [data.groups[row] for row in rows],
        columns={name: [texts[row] for row in rows] for name, texts in data.columns.items()},
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Aligned:
    """Open feature files of the same samples, and how their features become descriptors."""

    files: Sequence[Features]
    """At least one."""
    orders: Sequence[NDArray[np.int64]]
    """For each file (N,): its row of every sample."""
    ok: NDArray[np.bool_]
    """(N,) False where an image failed in one of the files."""
    regions: Sequence[Sequence[int]]
    """For each file: numbers of the regions to stack."""
    join: Join
    normalisation: Normalisation

    @property
    def dataset(self) -> DataSet:
        """That of the first file, which gives the samples their order."""
        return self.files[0].dataset

    @property
    def length(self) -> int:
        """D; no rows have one too, so wrong settings are refused before anything is read."""
        return self._fuse(np.empty(0, dtype=np.int64)).shape[1]

    def descriptors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the descriptors (n, D) of some rows, zeros where an image failed."""
        descriptors = np.empty((len(rows), self.length), dtype=np.float32)
        step = max(1, CHUNK_BYTES // sum(file.shape.row_bytes for file in self.files))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            descriptors[part] = self._fuse(rows[part])
        return descriptors

    def about(self, regions: Sequence[str] | None) -> dict[str, Any]:
        """Return what a `DescriptorTable` holds besides its descriptors."""
        files = [_describe(file, regions) for file in self.files]
        made = {"join": self.join, "normalisation": self.normalisation, "length": self.length, "files": files}
        known = {"reasons": self.reasons(), "sha256": self.files[0].sha256}
        return {"dataset": self.dataset, "ok": self.ok, "settings": made, **known}

    def reasons(self) -> dict[int, str]:
        """Return row that failed -> why, by the first file that says it."""
        found = {}
        for row in np.flatnonzero(~self.ok).tolist():
            given = (file.reasons[order[row]] for file, order in zip(self.files, self.orders, strict=True))
            found[row] = next(filter(None, given), "")
        return found

    def _fuse(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = []
        for file, order, regions in zip(self.files, self.orders, self.regions, strict=True):
            features = file.read(order[rows])  # (n, S, R, C)
            # Before anything is computed: what a file holds in a row that failed is no number.
            features[~self.ok[rows]] = 0
            parts.append(join_features(features[:, :, regions], self.join, self.normalisation))
        return fuse(parts, self.normalisation)


@contextmanager
def open_aligned(
    paths: Paths, join: Join, normalisation: Normalisation, regions: Sequence[str] | None
) -> Iterator[Aligned]:
    """Open feature files, compare them with their checksums, and match their rows; closed when the block ends."""
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not paths:
        raise ConfigError("features: expected at least one feature file, found none")
    real = [os.path.realpath(path) for path in paths]
    twice = next((path for path, place in zip(paths, real, strict=True) if real.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(f"features: expected files of different nets, found {twice} twice")
    with ExitStack() as stack:
        first, *others = files = [stack.enter_context(open_features(path)) for path in paths]
        for file in files:
            check_scales(file, join)
            file.check()
        orders, ok = [np.arange(len(first.dataset))], first.status == Status.DONE
        for file in others:
            orders.append(match_rows(first.dataset, file.dataset, str(first.path), str(file.path)))
            ok = ok & (file.status[orders[-1]] == Status.DONE)
            _check_images(first, file, orders[-1], ok)
        numbers = [_region_numbers(file, regions) for file in files]
        yield Aligned(files=files, orders=orders, ok=ok, regions=numbers, join=join, normalisation=normalisation)


def match_rows(first: DataSet, other: DataSet, first_name: str, other_name: str) -> NDArray[np.int64]:
    """Find the row of `other` for every row of `first`.

    Both have N samples, in any order; returns (N,). Messages call them `first_name` and `other_name`.

    Raises
    ------
    StoreError
        If an id is missing on either side, or classes, labels or groups differ; the first one is named.
    """
    position = {name: row for row, name in enumerate(other.ids)}
    where, known = f"{first_name} and {other_name}", set(first.ids)
    for names, others, owner in ((first.ids, position, first_name), (other.ids, known, other_name)):
        alone = next((name for name in names if name not in others), None)
        if alone is not None:
            raise StoreError(f"{where}: expected the same samples, found {alone!r} in {owner} only")
    for number, (mine, yours) in enumerate(zip_longest(first.classes, other.classes), start=1):
        if mine != yours:
            raise StoreError(f"{where}: expected the same classes, found {mine!r} and {yours!r} as number {number}")
    order = np.array([position[name] for name in first.ids], dtype=np.int64)
    differing = np.argwhere(first.labels != other.labels[order])
    if len(differing):
        row, k = differing[0].tolist()
        raise StoreError(
            f"{where}: expected the same labels, found {first.labels[row, k]} and {other.labels[order[row], k]} "
            f"for {first.ids[row]!r}, class {first.classes[k]}"
        )
    _check_groups(first, other, order, where)
    return order


def _check_groups(first: DataSet, other: DataSet, order: NDArray[np.int64], where: str) -> None:
    mine = first.groups or ("",) * len(first)
    yours = [other.groups[row] for row in order] if other.groups else [""] * len(first)
    differing = next((row for row, pair in enumerate(zip(mine, yours, strict=True)) if len(set(pair)) > 1), None)
    if differing is not None:
        raise StoreError(
            f"{where}: expected the same groups, found {mine[differing]!r} and {yours[differing]!r} for "
            f"{first.ids[differing]!r}; extract both from one list"
        )


def _check_images(first: Features, other: Features, order: NDArray[np.int64], ok: NDArray[np.bool_]) -> None:
    differing = np.flatnonzero(ok & (first.sha256 != other.sha256[order]).any(axis=1))
    if len(differing):
        raise StoreError(
            f"{first.path} and {other.path}: expected features of the same images, found that the image "
            f"{first.dataset.ids[differing[0]]!r} had other bytes; extract both from one copy of the data set"
        )


def _region_numbers(file: Features, regions: Sequence[str] | None) -> list[int]:
    wanted = file.regions if regions is None else tuple(regions)
    unknown = [name for name in wanted if name not in file.regions]
    if unknown or not wanted or len(set(wanted)) != len(wanted):
        raise ConfigError(f"regions: expected some of {', '.join(file.regions)} ({file.path}), found {wanted}")
    return [file.regions.index(name) for name in wanted]


def _describe(file: Features, regions: Sequence[str] | None) -> dict[str, Any]:
    return {
        "file": file.path.name,
        "scales": list(file.scales),
        "regions": list(file.regions if regions is None else regions),
        "channels": file.channels,
        "failed": int((file.status != Status.DONE).sum()),
        "provenance": file.provenance,
    }
