"""What the training has seen of the test, so that figures may be too good, and labels that contradict each other.

N = rows of the table, K = classes. Bytes of images are compared by their SHA-256.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptor_stream import Described
from vggfeat.errors import counted
from vggfeat.samples import DataSet, Label

MOST_NAMED = 3
"""Examples in a note."""


class Pair(NamedTuple):
    """Rows that are trained on, and rows that are tested on then."""

    fit_rows: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    fitted: str
    """In words, which rows are fitted."""
    tested: str


def shared_path_note(dataset: DataSet, pair: Pair) -> list[str]:
    """Say which images are on both sides by their paths, with several samples each."""
    paths = dataset.paths
    shared = {paths[row] for row in pair.fit_rows.tolist()} & {paths[row] for row in pair.test_rows.tolist()}
    if not shared:
        return []
    return [
        f"{counted(len(shared), 'image{s} {are}')} in {pair.fitted} and, with other samples, in "
        f"{pair.tested} as well, the first is {min(shared)}: the figures may be too good."
    ]


def leak_notes(table: Described, pairs: Sequence[Pair]) -> list[str]:
    """Say which groups, and which bytes under another name, are on both sides of a test."""
    return [*_group_notes(table.dataset, pairs), *_byte_notes(table, pairs)]


def _group_notes(dataset: DataSet, pairs: Sequence[Pair]) -> list[str]:
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


def _byte_notes(table: Described, pairs: Sequence[Pair]) -> list[str]:
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


def _twins(contents: NDArray[np.int64], paths: Sequence[str], pair: Pair) -> dict[int, int]:
    """Return tested row -> a fitted row of the same bytes, but of another path."""
    found = {}
    for row in pair.test_rows[np.isin(contents[pair.test_rows], contents[pair.fit_rows])].tolist():
        others = pair.fit_rows[contents[pair.fit_rows] == contents[row]].tolist()
        other = next((other for other in others if paths[other] != paths[row]), None)
        if other is not None:
            found[row] = other
    return found


def _fitted(where: Sequence[Pair], pairs: Sequence[Pair]) -> str:
    return where[0].fitted if len(pairs) == 1 else f"the training of {len(where)} of {len(pairs)} runs"


def _tested(where: Sequence[Pair], pairs: Sequence[Pair]) -> str:
    return where[0].tested if len(pairs) == 1 else "the test"


def contents_of(table: Described) -> NDArray[np.int64]:
    """Return a number for the bytes of each row's image, (N,); one that is not known has a number of its own."""
    count = len(table.dataset)
    if table.sha256 is None or not count:
        return np.arange(count)
    _, numbers = np.unique(np.ascontiguousarray(table.sha256).view("V32").ravel(), return_inverse=True)
    known = table.sha256.any(axis=1)
    return np.where(known, numbers, count + np.arange(count))


def label_notes(table: Described) -> list[str]:
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
