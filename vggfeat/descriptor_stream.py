"""Descriptors of feature files that are not in memory: read block by block, as often as somebody goes through them.

N = samples, D = length of a descriptor.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptors import Join, Normalisation
from vggfeat.samples import DataSet
from vggfeat.short_repr import short_repr
from vggfeat.store.sharded import open_features
from vggfeat.svm import LinearModel, arrays
from vggfeat.svm.blocks import Blocks, check_same, equal_blocks, scores_of
from vggfeat.table import DescriptorTable, Paths, open_aligned

if TYPE_CHECKING:
    from vggfeat.runtime.distributed import World


@dataclass(frozen=True, kw_only=True, eq=False)
class DescriptorStream:
    """What a `DescriptorTable` holds, without the table: its descriptors are blocks of rows, read when asked for."""

    dataset: DataSet
    descriptors: Blocks
    """Of (N, D) float32; finite, zeros in rows that failed. To be read while the files are open."""
    ok: NDArray[np.bool_]
    """(N,); False where an image failed in one of the files."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As of a `DescriptorTable`."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    sha256: NDArray[np.uint8] | None = None

    __repr__ = short_repr


Described = DescriptorTable | DescriptorStream
"""Samples with their descriptors, in memory or not."""


@contextmanager
def stream_descriptors(
    paths: Paths,
    *,
    join: Join = "mean",
    normalisation: Normalisation = "blocks",
    regions: Sequence[str] | None = None,
    world: "World | None" = None,
) -> Iterator[DescriptorStream]:
    """Open feature files for going through their descriptors, as `vggfeat.table.read_descriptors` makes them.

    The files are compared with their checksums once, stay open inside the `with` statement, and must not change there.

    Parameters
    ----------
    paths, join, normalisation, regions
        As of `read_descriptors`.
    world : World, optional
        Processes that go through the rows together: each calls this, trains the same with the solver stream, and reads
        some of the rows.

    Raises
    ------
    StoreError, ConfigError
        As `read_descriptors`; ConfigError, in all processes, if they have not the same features.
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


def score(samples: Described, rows: NDArray[np.int64], model: LinearModel, jobs: int = 1) -> NDArray[np.float64]:
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


def memory_for(paths: Paths, *, join: Join = "mean", regions: Sequence[str] | None = None) -> Memory:
    """Return whether there is the memory for the table of some feature files."""
    return Memory(table_bytes(paths, join=join, regions=regions), arrays.free_memory())


def table_bytes(paths: Paths, *, join: Join = "mean", regions: Sequence[str] | None = None) -> int:
    """Return the memory that the table of some feature files takes, without reading it."""
    total = 0
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        with open_features(path) as file:
            scales = len(file.scales) if join == "stack" else 1
            total += 4 * len(file) * scales * len(regions or file.regions) * file.channels
    return total
