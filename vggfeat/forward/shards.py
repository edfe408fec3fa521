"""Images become shards: decoded ahead in worker processes, run through the net, each shard one block of the store."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from vggfeat.errors import ImageError
from vggfeat.forward.runner import BatchRunner, Launched, Row
from vggfeat.images.decode import DecodeSettings, Request
from vggfeat.images.image_bytes import shown
from vggfeat.images.pool import Decoder
from vggfeat.store.layout import Block, Shape, Status


def shard_blocks(
    runner: BatchRunner,
    shards: Iterable[tuple[int, Sequence[Request]]],
    shape: Shape,
    most: int,
    workers: int,
    decode: DecodeSettings,
    progress: Callable[[float], None] | None = None,
    fetched: Callable[[Iterator[Request]], Iterator[Request | ImageError]] = iter,
) -> Iterator[tuple[int, Block]]:
    """Compute shards, one after the other, in one stream of images, and yield each as soon as it is there.

    Who makes a shard, and what becomes of it, does not matter here: it has the same bits whoever asks. Their numbers
    and images are drawn no further ahead than images are decoded; the largest has `most`. `progress` is as for
    `BatchRunner.rows`, but not called on a GPU, whose work lies ahead of what is done. `fetched` gets the bytes of
    images that are not on this machine, in order.
    """
    ahead = shards_ahead(runner.device)
    shards, decoded = itertools.tee(shards)
    queue: deque[tuple[int, Sequence[Request], Launched]] = deque()

    def oldest() -> tuple[int, Block]:
        shard, requests, launched = queue.popleft()
        return shard, to_block(runner.finish(launched), shape, requests)

    with Decoder(workers, decode, ahead=images_ahead(ahead, most)) as decoder:
        images = decoder.stream(fetched(itertools.chain.from_iterable(requests for _, requests in decoded)))
        for shard, requests in shards:
            launched = runner.launch(itertools.islice(images, len(requests)), None if ahead else progress)
            queue.append((shard, requests, launched))
            if len(queue) > ahead:
                yield oldest()
        yield from (oldest() for _ in range(len(queue)))


def shards_ahead(device: torch.device) -> int:
    """Return how many shards are launched before the rows of one are waited for: one on a GPU, so that it has work."""
    return int(device.type != "cpu")


def images_ahead(shards: int, rows: int) -> int:
    """Return how many images are decoded before they are asked for, so that a launch finds those of its shard."""
    return (1 + shards) * rows if shards else 0


def to_block(rows: Sequence[Row], shape: Shape, requests: Iterable[Request]) -> Block:
    """Turn the rows of a shard into what the store keeps.

    The name of the file is left out of the reason: the row has it, and a place on one machine says nothing later.
    """
    features = np.full((len(rows), *shape.dims), np.nan, dtype=np.float32)
    for index, row in enumerate(rows):
        if row.features is not None:
            features[index] = row.features
    failures = [
        row.failure and row.failure.without(shown(request.name)) for row, request in zip(rows, requests, strict=True)
    ]
    return Block(
        features=features,
        status=np.array([Status.FAILED if failure else Status.DONE for failure in failures], dtype=np.uint8),
        reasons=tuple(str(failure or "") for failure in failures),
        sizes=np.array([row.size for row in rows], dtype=np.int32).reshape(-1, 2),
        sha256=np.frombuffer(b"".join(row.sha256 for row in rows), dtype=np.uint8).reshape(-1, 32),
    )
