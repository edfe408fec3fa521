"""What a faster precision costs: the cosine between the rows of a run and float32 ones, on the run's own images.

S = scales, R = regions, C = values per scale and region.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ImageError, out_of_memory
from vggfeat.forward.runner import BatchRunner
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request
from vggfeat.images.pool import Decoder

IMAGES = 4
"""How many images are computed again in float32."""
LEAST_COSINE = 0.9999
"""What every vector is expected to reach."""


class PrecisionCheck(NamedTuple):
    """How near the rows of a run are to those of float32."""

    least: float | None
    """The least cosine of all vectors (C,), -1 to 1; None if none could be compared."""
    images: int
    """How many were compared."""


def some_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the rows that are computed again, evenly from all."""
    return np.unique(rows[np.linspace(0, len(rows) - 1, IMAGES).astype(int)]) if len(rows) else rows


def check_precision(
    runner: BatchRunner,
    requests: Iterable[Request],
    features: Sequence[NDArray[np.float32] | None],
    workers: int,
    decode: DecodeSettings,
) -> PrecisionCheck:
    """Compute images again in float32, and compare with their features (S, R, C)."""
    try:
        with Decoder(min(workers, 1), decode) as decoder:
            return cosine_to_float32(runner.in_float32(), decoder.stream(requests), features)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return PrecisionCheck(None, 0)  # Two nets are more than one.


def cosine_to_float32(
    exact: BatchRunner, images: Iterable[DecodedImage | ImageError], features: Sequence[NDArray[np.float32] | None]
) -> PrecisionCheck:
    """Compute images again in float32, and compare.

    Parameters
    ----------
    exact : BatchRunner
        The same net and settings in float32.
    images : iterable of DecodedImage or ImageError
    features : sequence of (S, R, C) or None
        What the run made of them.

    Returns
    -------
    PrecisionCheck
    """
    pairs = zip(exact.rows(images), features, strict=True)
    found = [cosines(row.features, other) for row, other in pairs if row.features is not None and other is not None]
    return PrecisionCheck(float(min(values.min() for values in found)) if found else None, len(found))


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each pair of vectors, (S, R, C) to (S, R); 1 for two vectors of zeros."""
    left, right = np.asarray(one, np.float64), np.asarray(other, np.float64)
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    equal = (left == right).all(axis=-1)
    return np.where(equal, 1.0, (left * right).sum(axis=-1) / np.where(lengths > 0, lengths, 1.0))
