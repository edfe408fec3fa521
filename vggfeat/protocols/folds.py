"""Rows are divided for the choice of C and for tests without official splits, by a rule that needs no chance.

Groups, not rows, are divided: rows of one image (people in VOC's action task) are never on both sides. The order
of groups is that of the SHA-256 of "seed/folds/path" or "seed/held-out/path".
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError
from vggfeat.samples import rank_by_hash


class _Groups(NamedTuple):
    """Images in order of their hash, from 0 to P - 1."""

    of_row: NDArray[np.int64]
    """(n,) number of each row's image."""
    holds: NDArray[np.bool_]
    """(P, K) whether an image has a positive row of a class."""


def k_folds(paths: Sequence[str], positive: NDArray[np.bool_], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Deal images to folds, stratified by class as far as images of several classes allow.

    The class with the fewest images left is dealt first, each of its images to the fold that has the fewest of
    that class, then the fewest of all; images without a positive come last.

    Takes the path of the image of each of n rows, and (n, K) which rows are positives of which class; returns the fold
    of each row, (n,) from 0. ConfigError if there are fewer than 2 folds, or fewer images than folds.
    """
    groups = _group(f"{seed}/folds", paths, positive)
    count = len(groups.holds)
    if folds < 2 or count < folds:
        raise ConfigError(f"folds: expected 2 up to the number of images ({count}), found {folds}")
    fold = np.full(count, -1, dtype=np.int64)
    of_class = np.zeros((folds, positive.shape[1]), dtype=np.int64)
    sizes = np.zeros(folds, dtype=np.int64)
    for k, group in _rarest_first(groups.holds):
        fewest = of_class[:, k] if k is not None else np.zeros(folds)
        chosen = int(np.lexsort((np.arange(folds), sizes, fewest))[0])
        fold[group] = chosen
        of_class[chosen] += groups.holds[group]
        sizes[chosen] += 1
    return fold[groups.of_row]


def hold_out(paths: Sequence[str], positive: NDArray[np.bool_], fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """Choose a part of the rows to hold out, the same proportion of every class as far as possible.

    Of each class the first images by hash are held out: the rounded fraction of its images, but at least one
    where it has two, and never so many that a class is left without an image to train on.

    Takes paths and positives as `k_folds`; returns (n,), True for held-out rows. ConfigError if the fraction is not
    above 0 and below 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"held_out: expected a fraction above 0 and below 1, found {fraction}")
    groups = _group(f"{seed}/held-out", paths, positive)
    images = groups.holds.sum(axis=0)
    wanted = np.where(images > 1, np.maximum(1, np.rint(fraction * images)), 0)
    bare = int((~groups.holds.any(axis=1)).sum())
    held = np.zeros(len(groups.holds), dtype=bool)
    taken = np.zeros(positive.shape[1], dtype=np.int64)
    bare_wanted = round(fraction * bare)
    for k, group in _rarest_first(groups.holds):
        if k is None:
            held[group] = bare_wanted > 0
            bare_wanted -= 1
        elif taken[k] < wanted[k] and (taken + groups.holds[group] < images)[groups.holds[group]].all():
            held[group] = True
            taken += groups.holds[group]
    return held[groups.of_row]


def _group(prefix: str, paths: Sequence[str], positive: NDArray[np.bool_]) -> _Groups:
    number = {path: place for place, path in enumerate(rank_by_hash(prefix, list(dict.fromkeys(paths))))}
    of_row = np.array([number[path] for path in paths], dtype=np.int64)
    holds = np.zeros((len(number), positive.shape[1]), dtype=bool)
    np.logical_or.at(holds, of_row, positive)
    return _Groups(of_row, holds)


def _rarest_first(holds: NDArray[np.bool_]) -> Iterator[tuple[int | None, int]]:
    """Yield (class, image): all images of the class with the fewest images left, and so on, then (None, rest)."""
    left = np.ones(len(holds), dtype=bool)
    while True:
        remaining = holds[left].sum(axis=0)
        if not remaining.any():
            break
        k = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
        for group in np.flatnonzero(left & holds[:, k]).tolist():
            left[group] = False
            yield k, group
    yield from ((None, group) for group in np.flatnonzero(left).tolist())
