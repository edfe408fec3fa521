"""Features computed again: of further images by the net and settings of an earlier run, and in float32 to compare.

What a run said of itself is its provenance, which may come from anybody. S = scales, R = regions, C = values each.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, ImageError, StoreError, WeightsError, out_of_memory
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.forward.runner import BatchRunner
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.runtime.devices import default_device, has_precision
from vggfeat.weights import Backbone, load_backbone
from vggfeat.weights.importing import hash_file
from vggfeat.weights.sources import BUNDLED, find_file, weights_folder


def find_net(where: str, provenance: Mapping[str, Any], weights: str | None = None) -> Backbone:
    """Load the net of an earlier run.

    Parameters
    ----------
    where : str
        What the run has made, for messages.
    provenance : mapping
        What it says of itself.
    weights : str, optional
        As for `vggfeat extract --weights`; by default the file that has the SHA-256: in the weights folder, in the
        current folder under the name that it had, or the net of the package. Nothing is loaded before its bytes are
        known to be those, and random weights are not built.

    Raises
    ------
    WeightsError
        If it is another net, or none is found.
    """
    wanted = str(provenance.get("weights_sha256"))
    name = f"{provenance.get('weights')} (net {provenance.get('net')})"[:100]
    found = weights or find_weights(wanted, str(provenance.get("weights")))
    if found is None:
        raise WeightsError(
            f"{where}: expected the weights that it was made with, {name}, in {weights_folder()}/, found no file "
            "of these bytes; give them with --weights"
        )
    backbone = load_backbone(found)
    if backbone.sha256 != wanted:
        raise WeightsError(
            f"{found}: expected the weights that {where} was made with, {name}, found another net "
            f"({backbone.model.config}); features of two nets can't be compared"
        )
    return backbone


def find_weights(sha256: str, name: str) -> str | None:
    """Find the file of weights with a SHA-256; a name that leads to another folder is not followed."""
    package = find_file(BUNDLED)
    own = [Path(name)] if name == Path(name).name else []
    for path in (*own, *sorted(weights_folder().glob("*")), package):
        if os.path.isfile(path) and hash_file(path) == sha256:
            return BUNDLED if path == package else str(path)
    return None


def rerun_net(
    where: str,
    provenance: Mapping[str, Any],
    scales: Sequence[int],
    net: Backbone,
    device: str | None = None,
    *,
    exact: bool = False,
) -> tuple[BatchRunner, DecodeSettings]:
    """Make a net ready for whole images, and say how they are decoded, as it was in an earlier run.

    Parameters
    ----------
    where, provenance
        As for `find_net`.
    scales : sequence of int
        Q.
    net : Backbone
    device : str, optional
        cpu, cuda, cuda:1, ..., mps; a CUDA GPU if there is one by default.
    exact : bool
        In fp32, whatever the precision of the run was. It stands anyway for one that the device has not.

    Raises
    ------
    StoreError
        If the provenance doesn't say.
    """
    device = device or default_device()
    settings = _settings(where, provenance, scales, device)
    runner = feature_runner(net, replace(settings, precision="fp32") if exact else settings, device)
    limits = provenance.get("decode", {})
    known = ("max_pixels", "max_bytes", "allow_truncated")
    known_limits = {name: limits[name] for name in known if isinstance(limits, dict) and name in limits}
    # Every net has its own limit to how far a large image is reduced, so each decodes for itself.
    return runner, DecodeSettings(largest_side=max(runner.sides), **known_limits)


def _settings(where: str, provenance: Mapping[str, Any], scales: Sequence[int], device: str) -> ExtractionSettings:
    try:
        same = {name: provenance[name] for name in ("layer", "precision", "interpolation", "batch_pixels")}
        settings = ExtractionSettings(scales=tuple(scales), regions=("image",), **same)
    except (KeyError, TypeError, ConfigError) as error:
        raise StoreError(
            f"{where}: expected one that says how its features were extracted, found one that doesn't ({error}); "
            "extract them again"
        ) from None
    return settings if has_precision(device, settings.precision) else replace(settings, precision="fp32")


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
    """Compute images again by a runner in float32, and compare with their features (S, R, C), or None."""
    pairs = zip(exact.rows(images), features, strict=True)
    found = [cosines(row.features, other) for row, other in pairs if row.features is not None and other is not None]
    return PrecisionCheck(float(min(values.min() for values in found)) if found else None, len(found))


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each pair of vectors, (S, R, C) to (S, R); 1 for two vectors of zeros."""
    left, right = np.asarray(one, np.float64), np.asarray(other, np.float64)
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    equal = (left == right).all(axis=-1)
    return np.where(equal, 1.0, (left * right).sum(axis=-1) / np.where(lengths > 0, lengths, 1.0))
