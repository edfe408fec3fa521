"""The whole audit of a table: copies, near copies, doubtful labels, odd images, small classes.

N = rows, K = classes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vggfeat.audit.neighbours import GRID, OutOfFold, Pairs, Suspect, compare_rows, out_of_fold, suspects
from vggfeat.checks import check_given, convert_fields
from vggfeat.errors import ConfigError, StoreError
from vggfeat.protocols.folds import contents_of, contradicted, repeated
from vggfeat.samples import DataSet, Label
from vggfeat.svm import SvmSettings
from vggfeat.table import DescriptorTable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and all."""


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What counts as a problem.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    near: float = 0.98
    """Least cosine of near duplicates. With the net of the package, copies of half the size or of JPEG quality 50 lie
    above it (95 and 100 % of 150), and no pair of different rendered images does (of 11,175; the highest is 0.965).
    Other nets differ, so the list begins with the most alike."""
    fewest: int = 10
    """Images that a class should have."""
    neighbours: int = 5
    """Nearest images whose mean distance tells an outlier."""
    folds: int = 5
    """Folds of the cross-validation that finds doubtful labels."""
    grid: tuple[float, ...] = GRID
    """Values of C for it."""
    labels: bool = True
    """Whether labels are doubted: the only step that trains."""
    seed: int = 0
    """Seed of the folds."""
    most: int = 10000
    """Pairs of near duplicates, and doubted labels, that are kept; all are counted."""
    svm: SvmSettings = field(default_factory=SvmSettings)
    """Settings of the solver."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if not 0 < self.near <= 1:
            raise ConfigError(f"near: expected a cosine above 0, at most 1, found {self.near}")
        for name, least in (("fewest", 0), ("neighbours", 1), ("folds", 2), ("most", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Rows whose image files have the same bytes, under different names."""

    rows: tuple[int, ...]
    across: bool
    """Whether two of them are in different splits."""
    labels_differ: bool
    """Whether two of them have different labels."""


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """An image that is like no other."""

    row: int
    distance: float
    """1 - the mean cosine with its nearest images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """What was found. Rows are those of the table; lists begin with the worst."""

    settings: AuditSettings
    copies: tuple[Copies, ...]
    """Those across splits first, then those with different labels."""
    copies_known: bool
    """False where the table doesn't tell the bytes of its images."""
    near: Pairs
    """Other images that are nearly equal."""
    suspects: tuple[Suspect, ...]
    """Labels that the scores contradict."""
    contradicted: int
    """All of them; the list may be shorter."""
    confident: int
    """Those of them that are contradicted with confidence."""
    training: OutOfFold | None
    """What labels were doubted by; None where they were not."""
    outliers: tuple[Outlier, ...]
    """Images further from their nearest ones than `far`."""
    far: float
    """The third quartile of all distances and three times the distance between the quartiles on top (Tukey)."""
    few: tuple[tuple[str, int], ...]
    """Classes with fewer images than `AuditSettings.fewest`, and how many they have."""
    failed: tuple[int, ...]
    """Rows without a descriptor."""
    seconds: dict[str, float]
    """Stage -> time."""


def audit_table(
    table: DescriptorTable,
    settings: AuditSettings | None = None,
    *,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Audit:
    """Look for copies, doubtful labels, outliers and small classes.

    Parameters
    ----------
    table : DescriptorTable
        Of N rows; copies are found where it has the digests of the image files.
    clock : callable
        Seconds, for `Audit.seconds`.

    Raises
    ------
    StoreError
        If no row has a descriptor.
    ConfigError
        If a path is given for a table.
    FitError
        If there is too little memory to train.

    Notes
    -----
    All rows are compared with all others (see `compare_rows`), and folds times classes times values of C linear SVMs
    are trained.
    """
    check_given("table", table, DescriptorTable, "what vggfeat.read_descriptors makes of feature files")
    settings = settings or AuditSettings()
    dataset, report = table.dataset, progress or (lambda doing, done, total: None)
    if not table.ok.any():
        raise StoreError(f"{dataset.name}: expected images with descriptors, found none; extract them again")
    begun = clock()
    sides, apart = _sides(dataset)
    copies = tuple(_copies(table, sides, apart))
    image = _images(dataset, copies)
    rows = np.flatnonzero(table.ok)
    compared = compare_rows(
        # Without failed rows it is the table itself, which is not copied.
        table.descriptors if table.ok.all() else table.descriptors[rows],
        threshold=settings.near,
        image=image[rows],
        side=sides[rows],
        apart=apart,
        neighbours=settings.neighbours,
        most=settings.most,
        progress=lambda done, total: report("comparing", done, total),
    )
    halfway = clock()
    training = None
    if settings.labels:
        training = out_of_fold(
            table.dataset, table.descriptors, table.ok, image, folds=settings.folds, grid=settings.grid,
            seed=settings.seed, svm=settings.svm, progress=lambda done, total: report("training", done, total),
        )  # fmt: skip
    doubted = [] if training is None else suspects(dataset, training)
    far = _far(compared.distance)
    return Audit(
        settings=settings,
        copies=copies,
        copies_known=table.sha256 is not None,
        near=replace(compared.pairs, rows=rows[compared.pairs.rows]),
        suspects=tuple(doubted[: settings.most]),
        contradicted=len(doubted),
        confident=sum(one.confident for one in doubted),
        training=training,
        outliers=_outliers(compared.distance, rows, far),
        far=far,
        few=_few(dataset, table.ok, settings.fewest),
        failed=tuple(np.flatnonzero(~table.ok).tolist()),
        seconds={"comparing": halfway - begun, "training": clock() - halfway},
    )


def _sides(dataset: DataSet) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each row the number of its set of splits, (N,), and which two sets leave two rows apart, (U, U).

    Rows are apart where each is in a split in which the other is not: train and test, but not train and trainval.
    """
    within = np.zeros((len(dataset), max(1, len(dataset.splits))), dtype=np.int64)
    for number, members in enumerate(dataset.splits.values()):
        within[members, number] = 1
    sets, side = np.unique(within, axis=0, return_inverse=True)
    only = sets @ (1 - sets.T) > 0  # (U, U) splits of the one without the other
    return side.reshape(-1).astype(np.int64), only & only.T


def _copies(table: DescriptorTable, sides: NDArray[np.int64], apart: NDArray[np.bool_]) -> list[Copies]:
    dataset, there, found = table.dataset, np.flatnonzero(table.ok), []
    for group in repeated(contents_of(table)[there]):
        rows = there[group].tolist()
        if len({dataset.paths[row] for row in rows}) > 1:  # Else several samples, of one image: people, with boxes.
            across = bool(apart[np.ix_(sides[rows], sides[rows])].any())
            found.append(Copies(rows=tuple(rows), across=across, labels_differ=labels_differ(dataset, rows)))
    return sorted(found, key=lambda one: (not one.across, not one.labels_differ, one.rows))


def labels_differ(dataset: DataSet, rows: Sequence[int]) -> bool:
    """Say whether two of some rows are positive and negative of one class; boxes may hold different things."""
    rows = list(rows)
    if dataset.boxes is not None and not np.isnan(dataset.boxes[rows]).any():
        return False
    return len(contradicted(dataset.labels[rows])) > 0


def _images(dataset: DataSet, copies: tuple[Copies, ...]) -> NDArray[np.int64]:
    """Return the number of each row's image, (N,): rows of one path, and copies, have one number."""
    numbers: dict[str, int] = {}
    image = np.array([numbers.setdefault(path, len(numbers)) for path in dataset.paths], dtype=np.int64)
    for group in copies:
        image[list(group.rows)] = image[group.rows[0]]
    return image


def _far(distance: NDArray[np.float64]) -> float:
    known = distance[np.isfinite(distance)]
    if not len(known):
        return float("inf")
    low, high = np.quantile(known, (0.25, 0.75))
    return float(high + 3 * (high - low))


def _outliers(distance: NDArray[np.float64], rows: NDArray[np.int64], far: float) -> tuple[Outlier, ...]:
    # Of copies alone nothing is far: a distance of rounding errors is none.
    outside = np.flatnonzero(distance > max(far, 1e-6))
    order = outside[np.argsort(-distance[outside], kind="stable")]
    return tuple(Outlier(row=int(rows[place]), distance=float(distance[place])) for place in order)


def _few(dataset: DataSet, ok: NDArray[np.bool_], fewest: int) -> tuple[tuple[str, int], ...]:
    counts = (dataset.labels[ok] == Label.POSITIVE).sum(axis=0).tolist()
    found = [(name, count) for name, count in zip(dataset.classes, counts, strict=True) if count < fewest]
    return tuple(sorted(found, key=lambda one: one[1]))
