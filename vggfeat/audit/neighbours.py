"""What other images say of one: pairs that are nearly equal, nearest neighbours, and labels that may be wrong.

Every row is compared with every other by cosine. Blocks of the product of the table with itself are all that is in
memory next to the table; each pair is computed once.

Labels are doubted by SVMs that never saw an image, and ranked by how far the scores contradict them (the margin). As in
confident learning (Northcutt et al., arXiv 1911.00068; the library cleanlab), which works on probabilities, a
contradiction is a confident one where the score of another class reaches the mean score of the images that are labelled
so. N = rows, n = rows of a block or labelled rows, P = pairs, H = neighbours, K = classes, G = values of C.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptors import l2_normalise
from vggfeat.metrics import average_precision, mean_class_recall, mean_defined
from vggfeat.protocols.folds import k_folds, names_of, unit_names
from vggfeat.samples import DataSet, Label, Task
from vggfeat.svm import Split, SvmProblemSet, SvmSettings, fittable_classes

BLOCK = 2048
"""Rows of a block: its cosines take 16 MiB, and the product runs at full speed."""

ROUNDING = 1e-6
"""How far the cosine of two equal rows may lie from 1."""

Progress = Callable[[int, int], None]
"""Called with the number of pairs compared and that of all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of rows, those across splits first, then by descending cosine."""

    rows: NDArray[np.int64]
    """(P, 2), the lower row first."""
    cosine: NDArray[np.float64]
    """(P,)"""
    across: NDArray[np.bool_]
    """(P,) whether each of the two is in a split that the other is not in."""
    total: int
    """All pairs; P may be less."""
    total_across: int
    """All pairs across splits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What came of comparing all rows."""

    pairs: Pairs
    distance: NDArray[np.float64]
    """(N,) 1 - the mean cosine with the nearest rows of other images; NaN where there is no other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """Part of the square of all pairs: rows from `top` on against rows from `left` on."""

    top: int
    left: int
    cosine: NDArray[np.float32]
    """(n, m), -inf for pairs of one image."""


def compare_rows(
    descriptors: NDArray[np.float32],
    *,
    threshold: float,
    image: NDArray[np.int64],
    side: NDArray[np.int64],
    apart: NDArray[np.bool_],
    neighbours: int = 5,
    most: int = 10000,
    block: int = BLOCK,
    progress: Progress | None = None,
) -> Comparison:
    """Compare all rows by the cosine of their descriptors.

    Parameters
    ----------
    descriptors : (N, D) float32
    threshold : float
        Least cosine of a pair that is handed out.
    image : (N,) int64
        Number of each row's image: rows of one image are no pair and no neighbours.
    side : (N,) int64
        Number of the row of `apart` that holds for each row.
    apart : (U, U) bool
        Whether two sides are different ones.
    neighbours : int
        H, nearest rows whose mean cosine counts.
    most : int
        Pairs that are kept, the first of the order of `Pairs`; all are counted.
    block : int
        Rows of a block.
    progress : callable, optional

    Notes
    -----
    Takes N N D multiplications and additions, next to the table 8 block (D + block) bytes and 24 bytes for each kept
    pair and each neighbour.
    """
    count = len(descriptors)
    best = np.full((count, neighbours), -np.inf, dtype=np.float32)
    kept = _Kept(most)
    for part in _blocks(descriptors, image, block, progress):
        kept.add(part, threshold, side, apart)
        _keep_best(best, part.top, part.cosine)
        if part.left > part.top:
            _keep_best(best, part.left, np.ascontiguousarray(part.cosine.T))
    known = np.isfinite(best)
    sums = np.where(known, best, 0).sum(axis=1, dtype=np.float64)
    some = np.maximum(1, known.sum(axis=1))
    return Comparison(pairs=kept.pairs(), distance=np.where(known.any(axis=1), 1 - sums / some, np.nan))


def _blocks(
    descriptors: NDArray[np.float32], image: NDArray[np.int64], block: int, progress: Progress | None
) -> Iterator[_Block]:
    count, done = len(descriptors), 0
    starts = range(0, count, block)
    for top in starts:
        first = l2_normalise(descriptors[top : top + block])
        for left in starts[top // block :]:
            second = first if left == top else l2_normalise(descriptors[left : left + block])
            cosine = first @ second.T
            np.copyto(cosine, -np.inf, where=image[top : top + block, None] == image[left : left + block])
            yield _Block(top=top, left=left, cosine=cosine)
            done += cosine.size if left > top else len(first) * (len(first) + 1) // 2
            if progress is not None:
                progress(done, count * (count + 1) // 2)


def _keep_best(best: NDArray[np.float32], start: int, cosine: NDArray[np.float32]) -> None:
    """Take into `best` (N, H) what is larger among the cosines (n, m) of the rows from `start` on."""
    rows, count = best[start : start + len(cosine)], best.shape[1]
    if cosine.shape[1] > count:
        cosine = np.partition(cosine, -count, axis=1)[:, -count:]
    rows[:] = np.sort(np.concatenate([rows, cosine], axis=1), axis=1)[:, -count:]


class _Kept:
    """Pairs as they are found, no more than can be used."""

    def __init__(self, most: int) -> None:
        self.most, self.total, self.total_across = most, 0, 0
        self.rows = np.empty((0, 2), dtype=np.int64)
        self.cosine = np.empty(0, dtype=np.float32)
        self.across = np.empty(0, dtype=np.bool_)
        self.least = np.float32(-np.inf), np.float32(-np.inf)
        """Cosines from which a pair across splits, and another, can still be among the first."""

    def add(self, part: _Block, threshold: float, side: NDArray[np.int64], apart: NDArray[np.bool_]) -> None:
        near = part.cosine >= threshold - ROUNDING  # (n, m)
        if part.top == part.left:
            near = np.triu(near, 1)
        if not near.any():
            return
        height, width = near.shape
        across = apart[np.ix_(side[part.top : part.top + height], side[part.left : part.left + width])]
        self.total += int(near.sum())
        self.total_across += int((near & across).sum())
        # Of features that are all alike every pair is near; those that come after the last kept one are not listed.
        first, second = np.nonzero(near & (part.cosine >= np.where(across, *self.least)))
        self.rows = np.concatenate([self.rows, np.stack([first + part.top, second + part.left], axis=1)])
        self.cosine = np.concatenate([self.cosine, part.cosine[first, second]])
        self.across = np.concatenate([self.across, across[first, second]])
        if len(self.rows) > 4 * self.most:
            self._sort()
            last = self.cosine[-1]
            self.least = (last, np.float32(np.inf)) if self.across[-1] else (np.float32(-np.inf), last)

    def _sort(self) -> None:
        order = np.lexsort((self.rows[:, 1], self.rows[:, 0], -self.cosine, ~self.across))[: self.most]
        self.rows, self.cosine, self.across = self.rows[order], self.cosine[order], self.across[order]

    def pairs(self) -> Pairs:
        self._sort()
        # Rounding alone leads beyond 1.
        cosine = np.clip(self.cosine.astype(np.float64), -1, 1)
        return Pairs(
            rows=self.rows, cosine=cosine, across=self.across, total=self.total, total_across=self.total_across
        )


GRID = (0.25, 1.0, 4.0, 16.0)
"""Values of C, on descriptors of unit length. What is found depends little on it, so a few do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFold:
    """Scores of rows by SVMs that were trained without them, without copies of them, and without their groups."""

    rows: NDArray[np.int64]
    """(n,) ascending rows that have labels and a descriptor."""
    scores: NDArray[np.float64]
    """(n, K); NaN in classes that a fold can't be trained for."""
    C: float
    """The value of the best measure over all folds."""
    folds: int
    problems: int
    """SVMs that were trained: folds times classes times values of C."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A label that the scores contradict."""

    row: int
    label: str
    """What the label says: the class; where images have several, the class in question."""
    claim: str
    """What the scores say: another class; where images have several, "absent" or "present"."""
    margin: float
    """How far the scores contradict, below 0: the score of the label's class less that of the claimed one; where images
    have several classes, on a scale that is 1 at the mean of the images of the same label, -1 at that of the
    others."""
    confident: bool
    """Whether the image scores as those do that are labelled as claimed, on average or more."""


def out_of_fold(
    dataset: DataSet,
    descriptors: NDArray[np.float32],
    ok: NDArray[np.bool_],
    image: NDArray[np.int64],
    *,
    folds: int = 5,
    grid: Sequence[float] = GRID,
    seed: int = 0,
    svm: SvmSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OutOfFold | None:
    """Score every labelled row by SVMs that never saw its image.

    Parameters
    ----------
    dataset : DataSet
        Of N rows.
    descriptors : (N, D) float32
    ok : (N,) bool
        Which rows have a descriptor.
    image : (N,) int64
        Rows of one image, or of copies of it, stay in one fold, as rows of one group do.
    folds, grid, seed, svm
        Of the cross-validation; one C is taken for all classes.
    progress : callable, optional
        Called with the number of solved SVMs and that of all.

    Returns
    -------
    OutOfFold or None
        None where there are no labels, or too few to train on.
    """
    labels = dataset.labels
    rows = np.flatnonzero(ok & ~(labels == Label.WITHHELD).any(axis=1))
    if dataset.task == Task.SINGLE_LABEL:
        rows = rows[(labels[rows] == Label.POSITIVE).sum(axis=1) == 1]
    names, groups = [str(number) for number in image[rows]], names_of(dataset, rows)[1]
    folds = min(folds, len(set(unit_names(names, groups))))
    if folds < 2:
        return None
    signs = np.where(labels[rows] == Label.UNLISTED, 0, labels[rows]).astype(np.int8)
    fold = k_folds(names, signs == 1, folds, seed, groups)
    usable = np.all([fittable_classes(signs[fold != part]) for part in range(folds)], axis=0)
    if not usable.any():
        return None
    parts = [_part(rows, signs[:, usable], fold, number) for number in range(folds)]
    sweeps = SvmProblemSet(descriptors, svm).sweep(parts, grid, progress=progress)
    scores = np.full((len(grid), len(rows), len(usable)), np.nan)  # (G, n, K)
    for number, sweep in enumerate(sweeps):
        scores[np.ix_(np.arange(len(grid)), fold == number, usable)] = sweep.scores.swapaxes(1, 2)
    best = int(np.argmax([_measure(one, signs, usable, dataset.task) for one in scores]))
    problems = folds * int(usable.sum()) * len(grid)
    return OutOfFold(rows=rows, scores=scores[best], C=float(grid[best]), folds=folds, problems=problems)


def _part(rows: NDArray[np.int64], signs: NDArray[np.int8], fold: NDArray[np.int64], number: int) -> Split:
    return Split(rows=rows[fold != number], labels=signs[fold != number], held_out=rows[fold == number])


def _measure(scores: NDArray[np.float64], signs: NDArray[np.int8], usable: NDArray[np.bool_], task: Task) -> float:
    """Return mean class recall where an image has one class, else mean average precision, over the usable classes."""
    scores, signs = scores[:, usable], signs[:, usable]
    if task == Task.SINGLE_LABEL:
        judged = (signs == 1).any(axis=1)
        return mean_class_recall(signs[judged].argmax(axis=1), scores[judged].argmax(axis=1), signs.shape[1])
    columns = range(signs.shape[1])
    return mean_defined(np.array([average_precision(signs[:, k], scores[:, k], "area") for k in columns]))


def suspects(dataset: DataSet, found: OutOfFold) -> list[Suspect]:
    """Return the labels that the scores contradict, the worst first."""
    judge = _single if dataset.task == Task.SINGLE_LABEL else _several
    claims = judge(dataset.labels[found.rows], found.scores, dataset.classes)
    named = (replace(one, row=int(found.rows[one.row])) for one in claims)
    return sorted(named, key=lambda one: (one.margin, one.row))


def _single(labels: NDArray[np.int8], scores: NDArray[np.float64], classes: Sequence[str]) -> Iterator[Suspect]:
    given, everyone = (labels == Label.POSITIVE).argmax(axis=1), np.arange(len(labels))
    own = scores[everyone, given]  # (n,)
    usable = np.flatnonzero(np.isfinite(scores).all(axis=0))
    means = {k: own[given == k].mean() for k in usable.tolist()}
    claim = usable[scores[:, usable].argmax(axis=1)]  # (n,)
    margin = own - scores[everyone, claim]
    for row in np.flatnonzero(margin < 0).tolist():  # NaN where the label's class has no score
        k = int(claim[row])
        yield Suspect(
            row=row,
            label=classes[given[row]],
            claim=classes[k],
            margin=float(margin[row]),
            confident=bool(scores[row, k] >= means[k]),
        )


def _several(labels: NDArray[np.int8], scores: NDArray[np.float64], classes: Sequence[str]) -> Iterator[Suspect]:
    for k in np.flatnonzero(np.isfinite(scores).all(axis=0)).tolist():
        column, sign = scores[:, k], np.where(np.abs(labels[:, k]) == 1, labels[:, k], 0)
        with_it, without = column[sign == 1], column[sign == -1]
        high, low = with_it.mean(), without.mean()
        if high - low <= 2 * np.sqrt(with_it.var() / len(with_it) + without.var() / len(without)):
            continue  # These descriptors can't tell the class: two standard errors are chance.
        margin = sign * (2 * column - high - low) / (high - low)
        for row in np.flatnonzero(margin < 0).tolist():
            claim = "absent" if sign[row] == 1 else "present"
            value = float(margin[row])
            yield Suspect(row=row, label=classes[k], claim=claim, margin=value, confident=value <= -1)
