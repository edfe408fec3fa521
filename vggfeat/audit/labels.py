"""Labels that may be wrong: what SVMs that never saw an image say of it, against what its label says.

Labels are ranked by how far the scores contradict them (the margin). As in confident learning (Northcutt et al., arXiv
1911.00068; the library cleanlab), which works on probabilities, a contradiction is a confident one where the score of
another class reaches the mean score of the images that are labelled so. N = rows, n = labelled rows, K = classes, G =
values of C.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vggfeat.metrics import average_precision, mean_class_recall, mean_defined
from vggfeat.protocols.folds import k_folds, names_of, unit_names
from vggfeat.samples import DataSet, Label, Task
from vggfeat.svm import Split, SvmProblemSet, SvmSettings, fittable_classes

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
