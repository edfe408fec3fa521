"""Feature files of the same samples, open side by side, rows matched by id.

N = samples, K = classes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, StoreError
from vggfeat.samples import DataSet
from vggfeat.store.reading import FeatureFile
from vggfeat.store.shards import Status

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One file or several."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Matched:
    """Open feature files of the same samples."""

    files: Sequence[FeatureFile]
    """At least one."""
    orders: Sequence[NDArray[np.int64]]
    """For each file (N,): its row of every sample."""
    dataset: DataSet
    """Of the first file, which gives the samples their order."""
    ok: NDArray[np.bool_]
    """(N,) False where an image failed in one of the files."""


@contextmanager
def open_matched(paths: Paths) -> Iterator[Matched]:
    """Open feature files, compare them with their checksums, and match their rows; closed when the block ends.

    Raises
    ------
    StoreError
        If a file is damaged, or the files differ in samples, classes, labels or the images' bytes; the first
        difference is named.
    ConfigError
        If no file is given, or one twice.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not paths:
        raise ConfigError("features: expected at least one feature file, found none")
    real = [os.path.realpath(path) for path in paths]
    twice = next((path for path, place in zip(paths, real, strict=True) if real.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(f"features: expected files of different nets, found {twice} twice")
    with ExitStack() as stack:
        first, *others = files = [stack.enter_context(FeatureFile(path)) for path in paths]
        for file in files:
            file.check()
        dataset = first.dataset
        orders, ok = [np.arange(len(dataset))], first.status == Status.DONE
        for file in others:
            orders.append(match_rows(dataset, file.dataset, str(first.path), str(file.path)))
            ok = ok & (file.status[orders[-1]] == Status.DONE)
            _check_images(first, file, orders[-1], ok)
        yield Matched(files=files, orders=orders, dataset=dataset, ok=ok)


def match_rows(first: DataSet, other: DataSet, first_name: str, other_name: str) -> NDArray[np.int64]:
    """Find the row of `other` for every row of `first`.

    Parameters
    ----------
    first, other : DataSet
        Of N samples each, in any order.
    first_name, other_name : str
        What messages call them.

    Returns
    -------
    (N,) int64

    Raises
    ------
    StoreError
        If an id is missing on either side, or classes or labels differ; the first one is named.
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
    return order


def _check_images(first: FeatureFile, other: FeatureFile, order: NDArray[np.int64], ok: NDArray[np.bool_]) -> None:
    differing = np.flatnonzero(ok & (first.sha256 != other.sha256[order]).any(axis=1))
    if len(differing):
        raise StoreError(
            f"{first.path} and {other.path}: expected features of the same images, found that the image "
            f"{first.dataset.ids[differing[0]]!r} had other bytes; extract both from one copy of the data set"
        )
