"""The main job: a data set and a net become one feature file, in shards that survive a crash.

Class posteriors (`vggfeat.classification`) go the same way: `cache_rows` writes whatever a net makes of pictures.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vggfeat.errors import ConfigError, PictureError
from vggfeat.extraction import Extraction, ExtractionSettings, check_boxes, requests
from vggfeat.images.decoding import DecodeSettings, Picture, Request
from vggfeat.images.pool import Decoder
from vggfeat.passes import Passes, Row
from vggfeat.samples import DataSet, Place
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
    extraction = Extraction(backbone, settings, cache.device)
    check_boxes(dataset, settings.regions)
    work = Work(
        dataset=dataset,
        backbone=backbone,
        passes=extraction,
        place=lambda row: Place(dataset.file_of(row), None),
        told={"mirror": "features of the picture and of its mirror are averaged"},
    )
    return cache_rows(work, out, cache=cache, decode=decode, progress=progress)


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """A list of pictures, and the net that makes rows of them."""

    dataset: DataSet
    backbone: Backbone
    passes: Passes
    """The net on its device, with its settings."""
    place: Callable[[int], Place]
    """Where the picture of a row lies."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What else the provenance says; no value depends on it."""


def cache_rows(
    work: Work,
    out: Path,
    *,
    cache: CacheSettings,
    decode: DecodeSettings,
    progress: Progress | None = None,
) -> Summary:
    """Write what a net makes of pictures into one HDF5 file, or finish the run that was doing so.

    Parameters, returned value and errors are those of `cache_features`.
    """
    begun = time.monotonic()
    decode = replace(decode, largest_side=max(work.passes.sides))
    key = describe_run(work, decode)
    shape = Shape(scales=work.passes.settings.scales, regions=work.passes.regions, channels=work.passes.channels)
    with Parts.open(out, work.dataset, key, shape, shard_rows=cache.rows(), overwrite=cache.overwrite) as parts:
        resumed = parts.done_rows
        if parts.complete:
            with FeatureFile(out) as file:
                file.check()
        else:
            _run_shards(parts, work, decode, cache.workers, progress)
            parts.consolidate(_provenance(key, work))
    return _summarise(out, work, resumed, time.monotonic() - begun)


def describe_run(work: Work, decode: DecodeSettings) -> dict[str, Any]:
    """Return everything that decides the values of the rows; a run is continued only if all of it is equal.

    Data set, scales, regions and channels are not here, because the store compares them itself; nor is the name of the
    weights, whose SHA-256 says more.
    """
    free = ("timeout", "memory", "largest_side")
    limits = {name: value for name, value in asdict(decode).items() if name not in free}
    return {
        **{name: value for name, value in work.backbone.describe().items() if name != "weights"},
        **{name: value for name, value in work.passes.settings.describe().items() if name not in ("scales", "regions")},
        "decode": limits,
        "machine": _machine(work.passes.device),
        "picture_sizes_sha256": _hash_sizes(work),
        "versions": {name: version(name) for name in ("vggfeat", "torch", "pillow", "numpy")},
    }


def _machine(device: torch.device) -> dict[str, Any]:
    # Sums are split by threads and instruction sets, so that both change the last bits.
    if device.type == "cuda":
        return {"device": "cuda", "name": torch.cuda.get_device_name(device)}
    return {"device": "cpu", "name": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def _run_shards(parts: Parts, work: Work, decode: DecodeSettings, workers: int, progress: Progress | None) -> None:
    shards = list(parts.pending)
    rows = (row for shard in shards for row in parts.rows(shard))
    with Decoder(workers, decode) as decoder:
        pictures = decoder.stream(requests(work.dataset, rows, work.passes.regions, work.place))
        for shard in shards:

            def show(done: float, begun: int = parts.done_rows) -> None:
                if progress is not None:
                    progress(begun + done, parts.total_rows, parts.failed_rows)

            show(0)
            found = work.passes.rows(_take(pictures, len(parts.rows(shard))), show)
            names = [_name(work.place(row)) for row in parts.rows(shard)]
            parts.commit(shard, to_block(found, parts.shape, names))
    if progress is not None:
        progress(parts.done_rows, parts.total_rows, parts.failed_rows)


def _name(place: Place) -> str:
    return Request(place.file, (), place.span).name


def _take(pictures: Iterator[Picture | PictureError], count: int) -> Iterator[Picture | PictureError]:
    for _ in range(count):
        yield next(pictures)


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


def _provenance(key: dict[str, Any], work: Work) -> dict[str, Any]:
    return {
        **key,
        **work.passes.settings.describe(),
        "weights": work.backbone.source,
        "sides": list(work.passes.sides),
        **work.told,
        "halved_batches": work.passes.halvings,
    }


def _summarise(out: Path, work: Work, resumed: int, seconds: float) -> Summary:
    with FeatureFile(out) as file:
        failed = np.flatnonzero(file.status != Status.DONE)
        failures = tuple((file.dataset.ids[row], file.reasons[row]) for row in failed)
        smallest = np.asarray(file.sizes).min(axis=1, initial=2**31 - 1)
        enlarged = int(((smallest * 8 < max(work.passes.sides)) & (file.status == Status.DONE)).sum())
        total = len(file.dataset)
    return Summary(
        path=out,
        total=total,
        resumed=resumed,
        failures=failures,
        seconds=seconds,
        halvings=work.passes.halvings,
        enlarged=enlarged,
        notes=tuple(_notes(work, enlarged)),
    )


def _notes(work: Work, enlarged: int) -> Iterator[str]:
    for scale, side in zip(work.passes.settings.scales, work.passes.sides, strict=True):
        if side != scale:
            yield f"Q = {scale} is too short for one 7x7 window of the net: pictures were enlarged to {side} instead"
    if enlarged:
        yield f"{enlarged} pictures were enlarged more than eightfold to reach Q = {max(work.passes.sides)}"
    if work.passes.halvings:
        yield f"{work.passes.halvings} batches did not fit into memory and were halved; --batch-pixels sets their size"


def _hash_sizes(work: Work) -> str:
    digest = hashlib.sha256()
    for row in range(len(work.dataset)):
        file, span = work.place(row)
        try:
            size = span[1] if span else os.stat(file).st_size
        except (OSError, ValueError):
            size = -1
        digest.update(f"{size}\n".encode())
    return digest.hexdigest()
