"""Feature files of the same samples become descriptors: matched by id, joined, normalised, stacked, block by block.

N = samples, n = some of them, D = length of a descriptor.

Features are read in slices, as often as somebody goes through them, and every row goes straight to its place, so that
what is made of them is the only large thing in memory.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import as_tuple
from vggfeat.datasets.catalogue import record_or_own
from vggfeat.descriptors import Join, Normalisation, fuse
from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.storage import root_text
from vggfeat.samples import DataSet
from vggfeat.store.layout import Status
from vggfeat.store.reader import Features
from vggfeat.store.sharded import check_scales, open_features
from vggfeat.svm import arrays
from vggfeat.svm.blocks import Blocks, check_same, equal_blocks, scores_of
from vggfeat.wording import short_repr

if TYPE_CHECKING:
    from vggfeat.runtime.distributed import World
    from vggfeat.svm import LinearModel

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One file or several."""
CHUNK_BYTES = 1 << 26
"""Features that are in memory at a time, of all files together."""


def path_list(paths: Paths) -> list[str | os.PathLike[str]]:
    """Return a list of paths; a single path becomes a list of one."""
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


@dataclass(frozen=True, kw_only=True, eq=False)
class DescriptorSet:
    """Samples with their descriptors, in memory or not, failed ones included."""

    dataset: DataSet
    """Ids, labels, classes and splits, as stored in the first file."""
    descriptors: NDArray[np.float32] | Blocks
    """(N, D) float32; finite, zeros in rows that failed."""
    ok: NDArray[np.bool_]
    """(N,); False where an image failed in one of the files."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Join, normalisation, and the provenance of every file; ready for JSON."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Row that failed -> why, by the first file that says it."""
    sha256: NDArray[np.uint8] | None = None
    """(N, 32) digest of the image file's bytes, zeros where they were not read; None if no file says it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DescriptorStream(DescriptorSet):
    """What a `vggfeat.table.DescriptorTable` holds, without the table: blocks of rows, read when they are asked for."""

    descriptors: Blocks
    """Blocks of (N, D) float32; finite, zeros in rows that failed. To be read while the files are open."""

    __repr__ = short_repr


@contextmanager
def stream_descriptors(
    paths: Paths,
    *,
    join: Join | None = None,
    normalisation: Normalisation = "blocks",
    regions: Sequence[str] | None = None,
    world: "World | None" = None,
) -> Iterator[DescriptorStream]:
    """Open feature files for going through their descriptors, as `vggfeat.table.read_descriptors` makes them.

    The files are compared with their checksums once, stay open inside the `with` statement, and must not change there.
    The processes of a world go through the rows together: each calls this, trains the same with the solver stream, and
    reads some of the rows. StoreError, ConfigError as `read_descriptors`; ConfigError, in all processes, if they have
    not the same features.
    """
    with open_aligned(paths, join, normalisation, regions) as aligned:
        shape, about = (len(aligned.dataset), aligned.length), aligned.about(regions)
        if world is not None:
            _check_same(world, about)
        blocks = equal_blocks(shape, lambda start, stop: aligned.descriptors(np.arange(start, stop)), world)
        yield DescriptorStream(descriptors=blocks, **about)


def _check_same(world: "World", about: Mapping[str, Any]) -> None:
    digest = hashlib.sha256(json.dumps(about["settings"], sort_keys=True, default=str).encode())
    for values in (about["ok"], about["sha256"]):
        digest.update(b"" if values is None else np.ascontiguousarray(values).data)
    check_same(world, digest.hexdigest(), "features: expected the same")


def score(samples: DescriptorSet, rows: NDArray[np.int64], model: "LinearModel", jobs: int = 1) -> NDArray[np.float64]:
    """Score ascending rows (m,) with a model: (m, K) float64, -inf where there is no descriptor.

    `jobs` threads go through a stream, -1 = one a core; they never change results.
    """
    x = samples.descriptors
    scores = scores_of(x, rows, model.coef, model.intercept, jobs) if isinstance(x, Blocks) else model.scores(x[rows])
    scores[~samples.ok[rows]] = -np.inf
    return scores


class Memory(NamedTuple):
    """What a table would take, and what there is."""

    needed: int
    """Bytes."""
    free: int | None
    """Bytes; None where the system doesn't say."""

    @property
    def exceeded(self) -> bool:
        """Whether the table would take more than half, and leave too little for what is computed with it."""
        return self.free is not None and self.needed > self.free / 2


def memory_for(paths: Paths, *, join: Join | None = None, regions: Sequence[str] | None = None) -> Memory:
    """Return whether there is the memory for the table of some feature files."""
    return Memory(table_bytes(paths, join=join, regions=regions), arrays.free_memory())


def table_bytes(paths: Paths, *, join: Join | None = None, regions: Sequence[str] | None = None) -> int:
    """Return the memory that the table of some feature files takes, without reading it."""
    total = 0
    for path in path_list(paths):
        with open_features(path) as file:
            join = join or paper_join(file)
            scales = len(file.scales) if join == "stack" else 1
            total += 4 * len(file) * scales * len(as_tuple(regions or file.regions)) * file.channels
    return total


@dataclass(frozen=True, kw_only=True, eq=False)
class Aligned:
    """Open feature files of the same samples, and how their features become descriptors."""

    files: Sequence[Features]
    """At least one."""
    orders: Sequence[NDArray[np.int64]]
    """For each file (N,): its row of every sample."""
    ok: NDArray[np.bool_]
    """(N,) False where an image failed in one of the files."""
    regions: Sequence[Sequence[int]]
    """For each file: numbers of the regions to stack."""
    join: Join
    normalisation: Normalisation

    @property
    def dataset(self) -> DataSet:
        """That of the first file, which gives the samples their order."""
        return self.files[0].dataset

    @property
    def length(self) -> int:
        """D; no rows have one too, so wrong settings are refused before anything is read."""
        return self._fuse(np.empty(0, dtype=np.int64)).shape[1]

    def descriptors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the descriptors (n, D) of some rows, zeros where an image failed."""
        descriptors = np.empty((len(rows), self.length), dtype=np.float32)
        step = max(1, CHUNK_BYTES // sum(file.shape.row_bytes for file in self.files))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            descriptors[part] = self._fuse(rows[part])
        return descriptors

    def about(self, regions: Sequence[str] | None) -> dict[str, Any]:
        """Return what is `DescriptorSet` besides the descriptors."""
        files = [_describe(file, regions) for file in self.files]
        made = {"join": self.join, "normalisation": self.normalisation, "length": self.length, "files": files}
        known = {"reasons": self.reasons(), "sha256": self.files[0].sha256}
        return {"dataset": self.dataset, "ok": self.ok, "settings": made, **known}

    def reasons(self) -> dict[int, str]:
        """Return row that failed -> why, by the first file that says it."""
        found = {}
        for row in np.flatnonzero(~self.ok).tolist():
            given = (file.reasons[order[row]] for file, order in zip(self.files, self.orders, strict=True))
            found[row] = next(filter(None, given), "")
        return found

    def _fuse(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = []
        for file, order, regions in zip(self.files, self.orders, self.regions, strict=True):
            features = file.read(order[rows])  # (n, S, R, C)
            # Before anything is computed: what a file holds in a row that failed is no number.
            features[~self.ok[rows]] = 0
            parts.append(take_regions(features, regions))
        return fuse(parts, self.join, self.normalisation)


@contextmanager
def open_aligned(
    paths: Paths, join: Join | None, normalisation: Normalisation, regions: Sequence[str] | None
) -> Iterator[Aligned]:
    """Open feature files, compare them with their checksums, and match their rows; closed when the block ends."""
    paths = path_list(paths)
    if not paths:
        raise ConfigError("features: expected at least one feature file, found none")
    real = [os.path.realpath(root_text(path)) for path in paths]
    twice = next((path for path, place in zip(paths, real, strict=True) if real.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(f"features: expected files of different nets, found {twice} twice")
    with ExitStack() as stack:
        first, *others = files = [stack.enter_context(open_features(path)) for path in paths]
        join = join or paper_join(first)
        for file in files:
            check_scales(file, join)
            file.check()
        orders, ok = [np.arange(len(first.dataset))], first.status == Status.DONE
        for file in others:
            orders.append(match_rows(first.dataset, file.dataset, str(first.path), str(file.path)))
            ok = ok & (file.status[orders[-1]] == Status.DONE)
            _check_images(first, file, orders[-1], ok)
        numbers = [region_numbers(file, regions) for file in files]
        yield Aligned(files=files, orders=orders, ok=ok, regions=numbers, join=join, normalisation=normalisation)


def paper_join(file: Features) -> Join:
    """Return how the paper joins scales for the data set of a file; the mean for others, and where only that is kept.

    VGG paper, Appendix B: the mean on VOC, stacked on Caltech.
    """
    return "mean" if file.store == "mean" else record_or_own(file.dataset_name).join


def match_rows(first: DataSet, other: DataSet, first_name: str, other_name: str) -> NDArray[np.int64]:
    """Find the row of `other` for every row of `first`.

    Both have N samples, in any order; returns (N,). Messages call them `first_name` and `other_name`.

    StoreError if an id is missing on either side, or classes, labels or groups differ; the first one is named.
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
    _check_groups(first, other, order, where)
    return order


def _check_groups(first: DataSet, other: DataSet, order: NDArray[np.int64], where: str) -> None:
    mine = first.groups or ("",) * len(first)
    yours = [other.groups[row] for row in order] if other.groups else [""] * len(first)
    differing = next((row for row, pair in enumerate(zip(mine, yours, strict=True)) if len(set(pair)) > 1), None)
    if differing is not None:
        raise StoreError(
            f"{where}: expected the same groups, found {mine[differing]!r} and {yours[differing]!r} for "
            f"{first.ids[differing]!r}; extract both from one list"
        )


def _check_images(first: Features, other: Features, order: NDArray[np.int64], ok: NDArray[np.bool_]) -> None:
    differing = np.flatnonzero(ok & (first.sha256 != other.sha256[order]).any(axis=1))
    if len(differing):
        raise StoreError(
            f"{first.path} and {other.path}: expected features of the same images, found that the image "
            f"{first.dataset.ids[differing[0]]!r} had other bytes; extract both from one copy of the data set"
        )


def region_numbers(file: Features, regions: Sequence[str] | None) -> list[int]:
    """Return the numbers of the regions to stack, all by default; ConfigError if one is not in the file, or twice."""
    wanted = file.regions if regions is None else as_tuple(regions)
    unknown = [name for name in wanted if name not in file.regions]
    if unknown or not wanted or len(set(wanted)) != len(wanted):
        raise ConfigError(f"regions: expected some of {', '.join(file.regions)} ({file.path}), found {wanted}")
    return [file.regions.index(name) for name in wanted]


def take_regions(features: NDArray[np.float32], numbers: Sequence[int]) -> NDArray[np.float32]:
    """Return some regions of features (n, S, R, C), in the order of their numbers; without a copy where that is all."""
    return features if list(numbers) == list(range(features.shape[2])) else features[:, :, numbers]


def _describe(file: Features, regions: Sequence[str] | None) -> dict[str, Any]:
    return {
        "file": file.path.name,
        "scales": list(file.scales),
        "regions": list(file.regions if regions is None else as_tuple(regions)),
        "channels": file.channels,
        "failed": int((file.status != Status.DONE).sum()),
        "provenance": file.provenance,
    }
