"""The shards of a run, computed and committed by one process or by several that share them.

A process makes every so-many-th pending shard. A shard depends on its own rows alone, so that it has the same bytes
whoever makes it, and nothing must be agreed upon in between.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vggfeat.errors import ImageError
from vggfeat.forward import BatchRunner, Row
from vggfeat.forward.features import requests
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request, shown
from vggfeat.images.pool import Decoder
from vggfeat.runtime.distributed import World
from vggfeat.samples import DataSet, Place
from vggfeat.store.layout import Block, Shape, Status
from vggfeat.store.writer import FeatureWriter
from vggfeat.weights import Backbone

Progress = Callable[[float, int, int], None]
"""Called with images done (resumed ones included), images in all, and images failed so far.

On a CPU, done are also images whose shard is still being computed.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """A list of images, and the net that makes rows of them."""

    dataset: DataSet
    backbone: Backbone
    passes: BatchRunner
    """The net on its device, with its settings."""
    place: Callable[[int], Place]
    """Where the image of a row lies."""
    exact: Callable[[], BatchRunner] | None = None
    """Makes the same in float32, which the rows are compared with in the end; None if they need not be."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What else the provenance says; no value depends on it."""


def compute(
    parts: FeatureWriter,
    work: Work,
    decode: DecodeSettings,
    workers: int,
    progress: Progress | None,
    world: World,
    ahead: int,
) -> None:
    """Compute and commit the pending shards, and wait until the other processes have done theirs.

    Parameters
    ----------
    parts : FeatureWriter
        Open in all processes; afterwards only the first still holds it, and knows what all have made.
    work : Work
    decode : DecodeSettings
    workers : int
        Processes that decode images.
    progress : callable, optional
    world : World
        The processes that share the shards.
    ahead : int
        Shards that a GPU is given before the rows of one are waited for and written, so that it has work meanwhile.

    Raises
    ------
    StoreError
        If the disk refuses.
    """
    pending = parts.pending
    shards = pending[world.rank :: world.size]
    theirs = sorted(set(pending) - set(shards)) if world.is_main else []
    rows = [row for shard in shards for row in parts.rows(shard)]
    launched: deque[tuple[int, Callable[[], list[Row]]]] = deque()

    def show(done: float = 0) -> None:
        if progress is not None and world.is_main:
            progress(parts.done_rows + done, parts.total_rows, len(parts.failures))

    def look() -> None:
        parts.poll(theirs)
        show()

    def commit() -> None:
        shard, finish = launched.popleft()
        names = [_name(work.place(row)) for row in parts.rows(shard)]
        parts.append(shard, to_block(finish(), parts.shape, names))

    with Decoder(workers, decode, ahead=images_ahead(ahead, len(parts.rows(0)))) as decoder:
        images = decoder.stream(requests(work.dataset, rows, work.passes.regions, work.place))
        for shard in shards:
            look()
            taken = _take(images, len(parts.rows(shard)))
            launched.append((shard, work.passes.launch(taken, None if ahead else show)))
            if len(launched) > ahead:
                commit()
        while launched:
            commit()
    if not world.is_main:
        parts.close()  # The first takes the folder away, which a network disk refuses while a file in it is open.
    world.barrier(look)
    for made, halvings in world.gather((parts.made, work.passes.halvings))[1:]:
        if world.is_main:
            parts.merge_ranks(made)
            work.passes.halvings += halvings
    show()


def images_ahead(shards: int, rows: int) -> int:
    """Return how many images are decoded before they are asked for, so that a launch finds those of its shard."""
    return (1 + shards) * rows if shards else 0


def _name(place: Place) -> str:
    """Return what a message calls an image."""
    return " ".join(shown(Request(place.file, (), place.span).name).split())


def _take(images: Iterator[DecodedImage | ImageError], count: int) -> Iterator[DecodedImage | ImageError]:
    for _ in range(count):
        yield next(images)


def to_block(rows: Sequence[Row], shape: Shape, names: Sequence[str]) -> Block:
    """Turn the rows of a shard into what the store keeps.

    The name of the file is left out of the reason: the row has it, and a place on one machine says nothing later.
    """
    features = np.full((len(rows), *shape.dims), np.nan, dtype=np.float32)
    for index, row in enumerate(rows):
        if row.features is not None:
            features[index] = row.features
    return Block(
        features=features,
        status=np.array([Status.FAILED if row.reason else Status.DONE for row in rows], dtype=np.uint8),
        reasons=tuple(row.reason.replace(f"{name}: ", "") for row, name in zip(rows, names, strict=True)),
        sizes=np.array([row.size for row in rows], dtype=np.int32).reshape(-1, 2),
        sha256=np.frombuffer(b"".join(row.sha256 for row in rows), dtype=np.uint8).reshape(-1, 32),
    )
