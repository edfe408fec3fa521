"""Shards of rows, computed in one stream of images.

Who makes a shard, and what becomes of it, is no business of this module: it gives the same bits whoever asks.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from vggfeat.errors import ImageError
from vggfeat.forward.runner import BatchRunner, Row
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
    """Compute shards, one after the other, in one stream of images.

    Parameters
    ----------
    shards : iterable of (int, sequence of Request)
        Number and images of each; drawn no further ahead than images are decoded.
    shape : Shape
        Of a row.
    most : int
        Images of the largest shard.
    workers : int
        Processes that decode.
    progress : callable, optional
        As for `BatchRunner.blocks`; not called on a GPU, whose work lies ahead of what is done.
    fetched : callable
        Gets the bytes of images that are not on this machine, in order.

    Yields
    ------
    int, Block
        Each shard as soon as it is there.
    """
    ahead = shards_ahead(runner.device)
    decoded, launched, named = itertools.tee(shards, 3)
    with Decoder(workers, decode, ahead=images_ahead(ahead, most)) as decoder:
        images = decoder.stream(fetched(itertools.chain.from_iterable(requests for _, requests in decoded)))
        lengths = (len(requests) for _, requests in launched)
        blocks = runner.blocks(images, lengths, ahead=ahead, progress=None if ahead else progress)
        for (shard, requests), block in zip(named, blocks, strict=True):
            yield shard, to_block(block, shape, requests)


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
    names = [" ".join(shown(request.name).split()) for request in requests]
    return Block(
        features=features,
        status=np.array([Status.FAILED if row.reason else Status.DONE for row in rows], dtype=np.uint8),
        reasons=tuple(row.reason.replace(f"{name}: ", "") for row, name in zip(rows, names, strict=True)),
        sizes=np.array([row.size for row in rows], dtype=np.int32).reshape(-1, 2),
        sha256=np.frombuffer(b"".join(row.sha256 for row in rows), dtype=np.uint8).reshape(-1, 32),
    )
