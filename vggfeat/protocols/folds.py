"""Rows are divided for the choice of C and for tests without official splits, by a rule that needs no chance.

Above `LARGE` rows each unit goes where the first bytes of its hash say, without a look at its classes: dealing them one
by one takes minutes there, and in so many rows the parts of a class are equal by the law of large numbers.

Units, not rows, are divided: rows of one image (people in VOC's action task) and images of one group (a person, a
video, a session) are never on both sides. The order of units is that of the SHA-256 of "seed/folds/name" or
"seed/held-out/name", where a unit's name is its path, or its group after "group:". Why not scikit-learn's
StratifiedGroupKFold: it takes one class a row, and its folds depend on the order of the rows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError
from vggfeat.samples import DataSet, rank_by_hash

LARGE = 1_000_000
"""Rows from which on parts are drawn by hash alone."""


class _Units(NamedTuple):
    """What stays together, in order of its hash, from 0 to U - 1."""

    of_row: NDArray[np.int64]
    """(n,) number of each row's unit."""
    images: NDArray[np.int64]
    """(U,)"""
    holds: NDArray[np.int64]
    """(U, K) images with a positive row of a class."""


def k_folds(
    paths: Sequence[str],
    positive: NDArray[np.bool_],
    folds: int,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Deal units to folds, stratified by class as far as images of several classes and large groups allow.

    The class with the fewest images left is dealt first, its largest units first, each to the fold that has the fewest
    images of that class, then the fewest of all; units without a positive come last.

    Takes the path of the image of each of n rows, (n, K) which rows are positives of which class, and the group of each
    row if there are groups; returns the fold of each row, (n,) from 0. ConfigError if there are fewer than 2 folds, or
    fewer units than folds.
    """
    if len(paths) >= LARGE and folds >= 2:
        return (folds * _uniform(f"{seed}/folds", paths, groups)).astype(np.int64)
    units = _units(f"{seed}/folds", paths, positive, groups)
    count = len(units.images)
    if folds < 2 or count < folds:
        what = "images" if groups is None else "groups"
        raise ConfigError(f"folds: expected 2 up to the number of {what} ({count}), found {folds}")
    fold = np.full(count, -1, dtype=np.int64)
    of_class = np.zeros((folds, positive.shape[1]), dtype=np.int64)
    sizes = np.zeros(folds, dtype=np.int64)
    for k, unit in _rarest_first(units):
        fewest = of_class[:, k] if k is not None else np.zeros(folds)
        chosen = int(np.lexsort((np.arange(folds), sizes, fewest))[0])
        fold[unit] = chosen
        of_class[chosen] += units.holds[unit]
        sizes[chosen] += units.images[unit]
    return fold[units.of_row]


def hold_out(
    paths: Sequence[str],
    positive: NDArray[np.bool_],
    fraction: float,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> NDArray[np.bool_]:
    """Choose a part of the rows to hold out, the same proportion of every class as far as possible.

    Of each class units are held out, the largest first and equal ones by hash, as long as they bring it nearer to the
    rounded fraction of its images: at least one unit where it has two, and never so many that a class is left without
    an image to train on.

    Takes paths, positives and groups as `k_folds`; returns (n,), True for held-out rows. ConfigError if the fraction is
    not above 0 and below 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"held_out: expected a fraction above 0 and below 1, found {fraction}")
    if len(paths) >= LARGE:
        return _uniform(f"{seed}/held-out", paths, groups) < fraction
    units = _units(f"{seed}/held-out", paths, positive, groups)
    total, held = units.holds.sum(axis=0), np.zeros(len(units.images), dtype=bool)
    wanted = np.where(total > 1, np.maximum(1, np.rint(fraction * total)), 0)
    taken = np.zeros(positive.shape[1], dtype=np.int64)
    bare_wanted, bare_taken = round(fraction * int(units.images[~units.holds.any(axis=1)].sum())), 0

    def spares(unit: int) -> bool:
        """Say whether each class of a unit keeps an image without it."""
        return bool((taken + units.holds[unit] < total)[units.holds[unit] > 0].all())

    for k, unit in _rarest_first(units):
        if k is None:
            held[unit] = bare_taken + units.images[unit] / 2 <= bare_wanted
            bare_taken += units.images[unit] * held[unit]
        elif taken[k] + units.holds[unit, k] / 2 <= wanted[k] and spares(unit):
            held[unit] = True
            taken += units.holds[unit]
    for k in np.flatnonzero((taken == 0) & (total > 1)).tolist():
        # Every unit is more than twice what is wanted: the smallest will do.
        within = np.flatnonzero(units.holds[:, k]).tolist()
        for unit in sorted(within, key=lambda unit: units.images[unit])[:1]:
            if not taken[k] and spares(unit):
                held[unit] = True
                taken += units.holds[unit]
    return held[units.of_row]


def names_of(dataset: DataSet, rows: NDArray[np.int64]) -> tuple[list[str], list[str] | None]:
    """Return the paths of rows, and their groups where there are some."""
    columns = (dataset.paths, dataset.groups)
    paths, groups = (None if column is None else [column[row] for row in rows.tolist()] for column in columns)
    return paths or [], groups


def unit_names(paths: Sequence[str], groups: Sequence[str] | None) -> list[str]:
    """Name the unit of each of n rows: its path, or "group:" and its group.

    Groups that share an image are one unit, called by the first of them.
    """
    if groups is None:
        return list(paths)
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for path, group in zip(paths, groups, strict=True):
        pair = sorted((root(f"image:{path}"), root(f"group:{group}")))  # "group:" is before "image:"
        parent[pair[1]] = pair[0]
    return [root(f"group:{group}") for group in groups]


def _uniform(prefix: str, paths: Sequence[str], groups: Sequence[str] | None) -> NDArray[np.float64]:
    """Return a number from 0 up to 1 for the unit of each row, (n,), from the first six bytes of its hash."""
    names = (f"{prefix}/{name}".encode("utf-8", "surrogateescape") for name in unit_names(paths, groups))
    first = (int.from_bytes(hashlib.sha256(name).digest()[:6], "big") for name in names)
    return np.fromiter(first, dtype=np.float64, count=len(paths)) / 2**48


def _units(prefix: str, paths: Sequence[str], positive: NDArray[np.bool_], groups: Sequence[str] | None) -> _Units:
    image = {path: place for place, path in enumerate(dict.fromkeys(paths))}
    image_of_row = np.array([image[path] for path in paths], dtype=np.int64)
    shown = np.zeros((len(image), positive.shape[1]), dtype=bool)
    np.logical_or.at(shown, image_of_row, positive)
    names = unit_names(paths, groups)
    number = {name: place for place, name in enumerate(rank_by_hash(prefix, list(dict.fromkeys(names))))}
    of_row = np.array([number[name] for name in names], dtype=np.int64)
    of_image = np.zeros(len(image), dtype=np.int64)
    of_image[image_of_row] = of_row
    holds = np.zeros((len(number), positive.shape[1]), dtype=np.int64)
    np.add.at(holds, of_image, shown)
    return _Units(of_row, np.bincount(of_image, minlength=len(number)), holds)


def _rarest_first(units: _Units) -> Iterator[tuple[int | None, int]]:
    """Yield (class, unit): all units of the class with the fewest images left, the largest first, then (None, rest)."""
    left = np.ones(len(units.images), dtype=bool)
    while True:
        remaining = units.holds[left].sum(axis=0)
        if not remaining.any():
            break
        k = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
        within = np.flatnonzero(left & (units.holds[:, k] > 0))
        for unit in within[np.argsort(-units.holds[within, k], kind="stable")].tolist():
            left[unit] = False
            yield k, unit
    rest = np.flatnonzero(left)
    yield from ((None, unit) for unit in rest[np.argsort(-units.images[rest], kind="stable")].tolist())
