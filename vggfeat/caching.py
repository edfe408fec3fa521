"""The main job: a data set and a net become one feature file, in shards that survive a crash."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vggfeat.errors import ConfigError, PictureError
from vggfeat.extraction import Extraction, ExtractionSettings, Row, check_boxes, requests
from vggfeat.images.decoding import DecodeSettings, Picture
from vggfeat.images.pool import Decoder
from vggfeat.samples import DataSet
from vggfeat.store.parts import Parts
from vggfeat.store.reading import FeatureFile
from vggfeat.store.shards import Block, Shape, Status
from vggfeat.weights import Backbone

Progress = Callable[[float, int, int], None]
"""Called with pictures done (resumed ones included), pictures in all, and pictures failed so far."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """How the work is cut up and guarded; nothing here changes a feature by more than rounding."""

    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    workers: int = 2
    """Processes that decode pictures; 0 decodes in this process, without a time limit."""
    shard_rows: int | None = None
    """Pictures between two points from which a killed run goes on: 32 on the CPU, 256 on a GPU by default."""
    overwrite: bool = False
    """Replace a finished feature file of other settings, and throw away unfinished parts of it."""

    def __post_init__(self) -> None:
        if self.workers < 0 or (self.shard_rows is not None and self.shard_rows < 1):
            found = f"workers {self.workers}, shard_rows {self.shard_rows}"
            raise ConfigError(f"cache: expected workers of at least 0 and shard_rows of at least 1, found {found}")

    def rows(self) -> int:
        """Return `shard_rows` or its default."""
        return self.shard_rows or (32 if self.device.startswith("cpu") else 256)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run has left behind."""

    path: Path
    """The feature file."""
    total: int
    """Samples in the data set."""
    resumed: int
    """Samples that an earlier run had finished."""
    failures: tuple[tuple[str, str], ...]
    """(id, reason) of every sample that failed, in row order, earlier runs included."""
    seconds: float
    """Time of this run."""
    halvings: int
    """Batches that did not fit into memory and were halved."""
    enlarged: int
    """Pictures whose smallest side had to grow more than eightfold to reach the largest scale."""
    notes: tuple[str, ...] = ()
    """What a user should know, a sentence each."""


def cache_features(
    dataset: DataSet,
    backbone: Backbone,
    out: Path,
    settings: ExtractionSettings,
    *,
    cache: CacheSettings = CacheSettings(),
    decode: DecodeSettings = DecodeSettings(),  # noqa: B008  frozen
    progress: Progress | None = None,
) -> Summary:
    """Extract the features of a data set into one HDF5 file, or finish the run that was doing so.

    Parameters
    ----------
    dataset : DataSet
    backbone : Backbone
    out : Path
        The feature file. Unfinished work stands beside it in `out` + ".parts".
    settings : ExtractionSettings
    cache : CacheSettings
    decode : DecodeSettings
        Limits for a picture. `largest_side` is set to the largest scale here.
    progress : callable, optional

    Returns
    -------
    Summary

    Raises
    ------
    StoreError
        If a file or parts of other weights, settings or pictures stand in the way (the difference is named), another
        process is writing them, or the disk refuses.
    ConfigError
        If the settings do not go together, or with this device or data set.
    """
    begun = time.monotonic()
    extraction = Extraction(backbone, settings, cache.device)
    decode = replace(decode, largest_side=max(extraction.sides))
    key = describe_run(dataset, backbone, extraction, decode)
    shape = Shape(scales=settings.scales, regions=settings.regions, channels=extraction.channels)
    check_boxes(dataset, settings.regions)
    with Parts.open(out, dataset, key, shape, shard_rows=cache.rows(), overwrite=cache.overwrite) as parts:
        resumed = parts.done_rows
        if parts.complete:
            with FeatureFile(out) as file:
                file.check()
        else:
            _run_shards(parts, dataset, extraction, decode, cache.workers, progress)
            parts.consolidate(_provenance(key, backbone, extraction))
    return _summarise(out, extraction, resumed, time.monotonic() - begun)


def describe_run(
    dataset: DataSet, backbone: Backbone, extraction: Extraction, decode: DecodeSettings
) -> dict[str, Any]:
    """Return everything that decides the values of the features; a run is continued only if all of it is equal.

    Data set, scales, regions and channels are not here, because the store compares them itself; nor is the name of the
    weights, whose SHA-256 says more.
    """
    free = ("timeout", "memory", "largest_side")
    limits = {name: value for name, value in asdict(decode).items() if name not in free}
    return {
        **{name: value for name, value in backbone.describe().items() if name != "weights"},
        **{name: value for name, value in extraction.settings.describe().items() if name not in ("scales", "regions")},
        "decode": limits,
        "machine": _machine(extraction.device),
        "picture_sizes_sha256": _hash_sizes(dataset),
        "versions": {name: version(name) for name in ("vggfeat", "torch", "pillow", "numpy")},
    }


def _machine(device: torch.device) -> dict[str, Any]:
    # Sums are split by threads and instruction sets, so that both change the last bits.
    if device.type == "cuda":
        return {"device": "cuda", "name": torch.cuda.get_device_name(device)}
    return {"device": "cpu", "name": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def _run_shards(
    parts: Parts,
    dataset: DataSet,
    extraction: Extraction,
    decode: DecodeSettings,
    workers: int,
    progress: Progress | None,
) -> None:
    shards = list(parts.pending)
    rows = (row for shard in shards for row in parts.rows(shard))
    with Decoder(workers, decode) as decoder:
        pictures = decoder.stream(requests(dataset, rows, extraction.settings.regions))
        for shard in shards:

            def show(done: float, begun: int = parts.done_rows) -> None:
                if progress is not None:
                    progress(begun + done, parts.total_rows, parts.failed_rows)

            show(0)
            found = extraction.rows(_take(pictures, len(parts.rows(shard))), show)
            paths = [dataset.file_of(row) for row in parts.rows(shard)]
            parts.commit(shard, to_block(found, parts.shape, paths))
    if progress is not None:
        progress(parts.done_rows, parts.total_rows, parts.failed_rows)


def _take(pictures: Iterator[Picture | PictureError], count: int) -> Iterator[Picture | PictureError]:
    for _ in range(count):
        yield next(pictures)


def to_block(rows: Sequence[Row], shape: Shape, paths: Sequence[str]) -> Block:
    """Turn the rows of a shard into what the store keeps.

    The path of the picture is left out of the reason: the row has it, and a place on one machine says nothing later.
    """
    features = np.full((len(rows), *shape.dims), np.nan, dtype=np.float32)
    for index, row in enumerate(rows):
        if row.features is not None:
            features[index] = row.features
    return Block(
        features=features,
        status=np.array([Status.FAILED if row.reason else Status.DONE for row in rows], dtype=np.uint8),
        reasons=tuple(row.reason.replace(f"{path}: ", "") for row, path in zip(rows, paths, strict=True)),
        sizes=np.array([row.size for row in rows], dtype=np.int32).reshape(-1, 2),
        sha256=np.frombuffer(b"".join(row.sha256 for row in rows), dtype=np.uint8).reshape(-1, 32),
    )


def _provenance(key: dict[str, Any], backbone: Backbone, extraction: Extraction) -> dict[str, Any]:
    return {
        **key,
        **extraction.settings.describe(),
        "weights": backbone.source,
        "sides": list(extraction.sides),
        "mirror": "features of the picture and of its mirror are averaged",
        "halved_batches": extraction.halvings,
    }


def _summarise(out: Path, extraction: Extraction, resumed: int, seconds: float) -> Summary:
    with FeatureFile(out) as file:
        failed = np.flatnonzero(file.status != Status.DONE)
        failures = tuple((file.dataset.ids[row], file.reasons[row]) for row in failed)
        smallest = np.asarray(file.sizes).min(axis=1, initial=2**31 - 1)
        enlarged = int(((smallest * 8 < max(extraction.sides)) & (file.status == Status.DONE)).sum())
        total = len(file.dataset)
    return Summary(
        path=out,
        total=total,
        resumed=resumed,
        failures=failures,
        seconds=seconds,
        halvings=extraction.halvings,
        enlarged=enlarged,
        notes=tuple(_notes(extraction, enlarged)),
    )


def _notes(extraction: Extraction, enlarged: int) -> Iterator[str]:
    for scale, side in zip(extraction.settings.scales, extraction.sides, strict=True):
        if side != scale:
            yield f"Q = {scale} is too short for one 7x7 window of the net: pictures were enlarged to {side} instead"
    if enlarged:
        yield f"{enlarged} pictures were enlarged more than eightfold to reach Q = {max(extraction.sides)}"
    if extraction.halvings:
        yield f"{extraction.halvings} batches did not fit into memory and were halved; --batch-pixels sets their size"


def _hash_sizes(dataset: DataSet) -> str:
    digest = hashlib.sha256()
    for row in range(len(dataset)):
        try:
            size = os.stat(dataset.file_of(row)).st_size
        except (OSError, ValueError):
            size = -1
        digest.update(f"{size}\n".encode())
    return digest.hexdigest()
