"""Rows are divided for the choice of C and for tests without official splits; and what the training saw of the test.

Above `LARGE` rows each unit goes where the first bytes of its hash say, without a look at its classes: dealing them one
by one takes minutes there, and in so many rows the parts of a class are equal by the law of large numbers.

Units, not rows, are divided: rows of one image (people in VOC's action task) and images of one group (a person, a
video, a session) are never on both sides. The order of units is that of the SHA-256 of "seed/folds/name" or
"seed/held-out/name", where a unit's name is its path, or its group after "group:". Why not scikit-learn's
StratifiedGroupKFold: it takes one class a row, and its folds depend on the order of the rows.

Where official splits share images, the figures may be too good, which notes say, as of labels that contradict each
other. N = rows of the table, K = classes. Bytes of images are compared by their SHA-256.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError
from vggfeat.samples import DataSet, Label, rank_by_hash
from vggfeat.wording import counted

if TYPE_CHECKING:
    from vggfeat.descriptor_stream import DescriptorSet

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
    paths: Sequence[str], positive: NDArray[np.bool_], folds: int, seed: int = 0, groups: Sequence[str] | None = None
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


MOST_NAMED = 3
"""Examples in a note."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitPlan:
    """Which rows a run chooses C on, fits on, and is tested on."""

    name: str
    """Name of the run."""
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    """Parts by which C is chosen: at least one pair of rows to fit and rows to measure on, without a row in common."""
    fit_rows: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    chosen: str
    """In words, which rows C is chosen by."""
    fitted: str
    """In words, which rows are fitted."""
    tested: str
    """In words, which rows are tested."""


def shared_path_note(
    dataset: DataSet, fit_rows: NDArray[np.int64], test_rows: NDArray[np.int64], fitted: str, tested: str
) -> list[str]:
    """Say which images are on both sides by their paths, with several samples each."""
    paths = dataset.paths
    shared = {paths[row] for row in fit_rows.tolist()} & {paths[row] for row in test_rows.tolist()}
    if not shared:
        return []
    return [
        f"{counted(len(shared), 'image{s} {are}')} in {fitted} and, with other samples, in "
        f"{tested} as well, the first is {min(shared)}: the figures may be too good."
    ]


def leak_notes(table: "DescriptorSet", pairs: Sequence[SplitPlan]) -> list[str]:
    """Say which groups, and which bytes under another name, are on both sides of a test."""
    return [*_group_notes(table.dataset, pairs), *_byte_notes(table, pairs)]


def _group_notes(dataset: DataSet, pairs: Sequence[SplitPlan]) -> list[str]:
    if dataset.groups is None:
        return []
    groups, shared, where = np.array(dataset.groups, dtype=np.str_), set(), []
    for pair in pairs:
        both = set(groups[pair.fit_rows].tolist()) & set(groups[pair.test_rows].tolist())
        where += [pair] * bool(both)
        shared |= both
    if not shared:
        return []
    named = ", ".join(sorted(shared)[:MOST_NAMED])
    return [
        f"{counted(len(shared), 'group{s} {are}')} both in {_fitted(where, pairs)} and in {_tested(where, pairs)}, "
        f"among them {named}: the figures may be too good."
    ]


def _byte_notes(table: "DescriptorSet", pairs: Sequence[SplitPlan]) -> list[str]:
    contents, paths = contents_of(table), table.dataset.paths
    twins: dict[int, int] = {}
    where = []
    for pair in pairs:
        found = _twins(contents, paths, pair)
        where += [pair] * bool(found)
        twins |= found
    if not twins:
        return []
    named = ", ".join(f"{paths[row]} as {paths[other]}" for row, other in sorted(twins.items())[:MOST_NAMED])
    return [
        f"In {_tested(where, pairs)} {counted(len(twins), 'sample{s} {have}')} the same bytes as images in "
        f"{_fitted(where, pairs)}, among them {named}: the figures may be too good."
    ]


def _twins(contents: NDArray[np.int64], paths: Sequence[str], pair: SplitPlan) -> dict[int, int]:
    """Return tested row -> a fitted row of the same bytes, but of another path."""
    found = {}
    for row in pair.test_rows[np.isin(contents[pair.test_rows], contents[pair.fit_rows])].tolist():
        others = pair.fit_rows[contents[pair.fit_rows] == contents[row]].tolist()
        other = next((other for other in others if paths[other] != paths[row]), None)
        if other is not None:
            found[row] = other
    return found


def _fitted(where: Sequence[SplitPlan], pairs: Sequence[SplitPlan]) -> str:
    return where[0].fitted if len(pairs) == 1 else f"the training of {len(where)} of {len(pairs)} runs"


def _tested(where: Sequence[SplitPlan], pairs: Sequence[SplitPlan]) -> str:
    return where[0].tested if len(pairs) == 1 else "the test"


def contents_of(table: "DescriptorSet") -> NDArray[np.int64]:
    """Return a number for the bytes of each row's image, (N,); one that is not known has a number of its own."""
    count = len(table.dataset)
    if table.sha256 is None or not count:
        return np.arange(count)
    _, numbers = np.unique(np.ascontiguousarray(table.sha256).view("V32").ravel(), return_inverse=True)
    known = table.sha256.any(axis=1)
    return np.where(known, numbers, count + np.arange(count))


def label_notes(table: "DescriptorSet") -> list[str]:
    """Say which images occur with the same bytes, and the same box if they have one, but contradictory labels."""
    dataset, differing = table.dataset, []
    for rows in repeated(contents_of(table), dataset.boxes):
        labels = dataset.labels[rows]
        for k in contradicted(labels)[:1].tolist():
            one, other = (dataset.ids[rows[(labels[:, k] == sign).argmax()]] for sign in (1, -1))
            differing.append(f"{one} and {other} ({dataset.classes[k]})")
    return [
        f"{counted(len(differing), 'image{s} occur{v}')} more than once, with contradictory labels: "
        f"{'; '.join(differing[:MOST_NAMED])}."
    ] * bool(differing)


def contradicted(labels: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return the numbers of the classes that rows (n, K) are positive as well as negative for."""
    return np.flatnonzero((labels == Label.POSITIVE).any(axis=0) & (labels == Label.NEGATIVE).any(axis=0))


def repeated(contents: NDArray[np.int64], boxes: NDArray[np.float64] | None = None) -> list[NDArray[np.int64]]:
    """Return the rows of each image, or of each box in it, that there are several of."""
    order = np.argsort(contents, kind="stable")
    repeated = [rows for rows in np.split(order, np.flatnonzero(np.diff(contents[order])) + 1) if len(rows) > 1]
    if boxes is None:
        return repeated
    of_box: dict[tuple[int, bytes], list[int]] = {}
    for rows in repeated:
        for row in rows.tolist():
            of_box.setdefault((int(contents[row]), boxes[row].tobytes()), []).append(row)
    return [np.array(rows) for rows in of_box.values() if len(rows) > 1]
