"""Feature files of the same samples as one table of descriptors in memory, and as arrays for use elsewhere.

N = samples, n = some of them, K = classes, D = length of a descriptor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_choice
from vggfeat.descriptor_stream import DescriptorSet, Paths, open_aligned
from vggfeat.descriptors import Join, Normalisation
from vggfeat.errors import ConfigError, StoreError
from vggfeat.samples import DataSet, Task
from vggfeat.store.export import Table
from vggfeat.wording import short_repr

Failed = Literal["raise", "drop"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DescriptorTable(DescriptorSet):
    """Descriptors of a data set, a row for every sample, failed ones included."""

    descriptors: NDArray[np.float32]
    """(N, D); finite, zeros in rows that failed."""

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

    def _replace(self, **changes: Any) -> Self:
        """Return a copy with other arrays; what is no part of the tuple stays with it."""
        made = super()._replace(**changes)
        made.groups, made.columns = self.groups, self.columns
        return made


def read_descriptors(
    paths: Paths,
    *,
    join: Join | None = None,
    normalisation: Normalisation = "blocks",
    regions: Sequence[str] | None = None,
) -> DescriptorTable:
    """Read feature files of the same samples and fuse them by stacking (VGG paper, Appendix B: D and E).

    Parameters
    ----------
    paths : path, or sequence of paths
        One feature file or several, or runs in shards. Rows are matched by id and take the order of the first.
    join : "mean", "max" or "stack", optional
        Over the scales of each file; by default as the paper joins them for the data set in the (first) file: stacked
        for Caltech, the mean for all others.
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
    join: Join | None = None,
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

    ConfigError if there is no such split, or an empty list is given.
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
