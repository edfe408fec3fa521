"""Feature files become one table of descriptors: joined, normalised, fused over nets, rows matched by id.

N = samples, K = classes, D = length of a descriptor.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptors import Join, Normalisation, fuse, join_features
from vggfeat.errors import ConfigError, StoreError
from vggfeat.export import Table
from vggfeat.samples import DataSet, Task
from vggfeat.store import FeatureFile

CHUNK_BYTES = 1 << 27


@dataclass(frozen=True, kw_only=True, eq=False)
class DescriptorTable:
    """Descriptors of a data set, a row for every sample, failed ones included."""

    dataset: DataSet
    """Ids, labels, classes and splits, as stored in the first file."""
    descriptors: NDArray[np.float32]
    """(N, D); zeros in rows that failed."""
    ok: NDArray[np.bool_]
    """(N,); False where a picture failed in one of the files."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Join, normalisation, and the provenance of every file; ready for JSON."""


class LoadedFeatures(NamedTuple):
    """Aligned arrays for use elsewhere."""

    descriptors: NDArray[np.float32]
    """(n, D)"""
    labels: NDArray[np.int64] | NDArray[np.int8]
    """Single-label sets: (n,) int64 class numbers, -1 = not known. Others: (n, K) int8 of 1, -1, 0 = ignored,
    2 = withheld, 3 = not listed."""
    ids: list[str]
    """n names of samples."""
    classes: tuple[str, ...]
    """K names."""


def read_descriptors(
    paths: Sequence[str | os.PathLike[str]], *, join: Join = "mean", normalisation: Normalisation = "blocks"
) -> DescriptorTable:
    """Read feature files of the same samples and fuse them by stacking (Appendix B: D and E).

    Parameters
    ----------
    paths : at least one feature file
        Rows are matched by id and take the order of the first file.
    join : "mean", "max" or "stack"
        Over the scales of each file.
    normalisation : "blocks", "whole" or "none"
        See `vggfeat.descriptors`.

    Raises
    ------
    StoreError
        If a file is damaged, or the files hold different samples or labels; the first difference is named.
    ConfigError
        If no file is given or a setting is not allowed.
    """
    if not paths:
        raise ConfigError("features: expected at least one feature file, found none")
    parts, files = [], []
    dataset, ok = None, np.ones(0, dtype=bool)
    for path in paths:
        with FeatureFile(Path(path)) as file:
            order = None
            if dataset is None:
                dataset, ok = file.dataset, np.ones(len(file.dataset), dtype=bool)
            else:
                order = match_rows(dataset, file.dataset, f"{path} against {paths[0]}")
            part, done = _join_file(file, join, normalisation)
            parts.append(part if order is None else part[order])
            ok &= done if order is None else done[order]
            files.append({"file": Path(path).name, **_describe(file)})
    assert dataset is not None
    descriptors = fuse(parts, normalisation)
    descriptors[~ok] = 0
    settings = {"join": join, "normalisation": normalisation, "length": descriptors.shape[1], "files": files}
    return DescriptorTable(dataset=dataset, descriptors=descriptors, ok=ok, settings=settings)


def match_rows(first: DataSet, other: DataSet, where: str) -> NDArray[np.int64]:
    """Find the row of `other` for every row of `first`.

    Raises
    ------
    StoreError
        If an id is missing on either side, or classes or labels differ; the first one is named.
    """
    position = {name: row for row, name in enumerate(other.ids)}
    for name in first.ids:
        if name not in position:
            raise StoreError(f"{where}: expected the same samples, found none with id {name!r} in the second file")
    if len(other) != len(first):
        extra = sorted(position.keys() - set(first.ids))[0]
        raise StoreError(f"{where}: expected the same samples, found {extra!r} in the second file only")
    order = np.array([position[name] for name in first.ids], dtype=np.int64)
    if other.classes != first.classes:
        raise StoreError(f"{where}: expected the same classes, found {first.classes[:3]}... and {other.classes[:3]}...")
    differing = np.flatnonzero((other.labels[order] != first.labels).any(axis=1))
    if len(differing):
        raise StoreError(f"{where}: expected the same labels, found others for {first.ids[differing[0]]!r}")
    return order


def load_features(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    join: Join = "mean",
    split: str | Sequence[str] | None = None,
    *,
    normalisation: Normalisation = "blocks",
    failed: Literal["raise", "drop"] = "raise",
) -> LoadedFeatures:
    """Load descriptors, labels and ids, row by row the same samples. PyTorch is not needed.

    Parameters
    ----------
    path : path, or several
        Feature files; several are fused by stacking.
    join : "mean", "max" or "stack"
        Over scales.
    split : str or sequence of str, optional
        Names of splits stored in the file, for instance "train"; several are united. All rows by default.
    normalisation : "blocks", "whole" or "none"
    failed : "raise" or "drop"
        What to do with pictures that could not be read.

    Returns
    -------
    LoadedFeatures
        descriptors (n, D) float32; labels (n,) int64 or (n, K) int8; ids; classes.

    Raises
    ------
    ConfigError
        If a split is not in the file.
    StoreError
        If a file is damaged, files do not match, or a picture failed and `failed` is "raise".
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    table = read_descriptors(paths, join=join, normalisation=normalisation)
    rows = rows_of(table.dataset, split)
    missing = rows[~table.ok[rows]]
    if len(missing) and failed == "raise":
        raise StoreError(
            f"{paths[0]}: {len(missing)} of {len(rows)} pictures failed at extraction, the first is "
            f"{table.dataset.ids[missing[0]]!r}; pass failed='drop' to leave them out"
        )
    rows = rows[table.ok[rows]]
    labels = table.dataset.labels[rows]
    targets = class_numbers(labels) if table.dataset.task == Task.SINGLE_LABEL else labels
    ids = [table.dataset.ids[row] for row in rows]
    return LoadedFeatures(table.descriptors[rows], targets, ids, table.dataset.classes)


def class_numbers(labels: NDArray[np.int8]) -> NDArray[np.int64]:
    """Turn the labels (n, K) of a single-label set into (n,) numbers of the positive class, -1 where none is known."""
    positive = labels == 1
    return np.where(positive.any(axis=1), np.argmax(positive, axis=1), -1)


def rows_of(dataset: DataSet, split: str | Sequence[str] | None) -> NDArray[np.int64]:
    """Return the ascending rows of a split, of the union of several, or all rows."""
    if split is None:
        return np.arange(len(dataset), dtype=np.int64)
    names = [split] if isinstance(split, str) else list(split)
    for name in names:
        if name not in dataset.splits:
            raise ConfigError(
                f"split: expected one of {', '.join(dataset.splits) or 'none: the file has no splits'}, found {name!r}"
            )
    return np.unique(np.concatenate([dataset.splits[name] for name in names]))


def to_table(table: DescriptorTable, rows: NDArray[np.int64]) -> Table:
    """Return some rows of a table for `vggfeat.export`, splits renumbered to them."""
    data = table.dataset
    place = np.full(len(data), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    splits = {name: place[members][place[members] >= 0] for name, members in data.splits.items()}
    return Table(
        ids=[data.ids[row] for row in rows],
        paths=[data.paths[row] for row in rows],
        descriptors=table.descriptors[rows],
        labels=data.labels[rows],
        classes=data.classes,
        splits=splits,
    )


def _join_file(
    file: FeatureFile, join: Join, normalisation: Normalisation
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    count, *row = file.features.shape
    step = max(1, CHUNK_BYTES // (4 * int(np.prod(row))))
    joined: NDArray[np.float32] | None = None
    for start in range(0, count, step):
        stop = min(start + step, count)
        chunk = join_features(file.read(np.arange(start, stop)), join, normalisation)
        if joined is None:
            joined = np.empty((count, chunk.shape[1]), dtype=np.float32)
        joined[start:stop] = chunk
    if joined is None:
        raise StoreError(f"{file.path}: expected at least one sample, found none")
    return joined, file.status == 1


def _describe(file: FeatureFile) -> dict[str, Any]:
    return {
        "scales": list(file.scales),
        "regions": list(file.regions),
        "channels": file.channels,
        "failed": int((file.status != 1).sum()),
        "provenance": file.provenance,
    }
