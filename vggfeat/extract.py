"""The main job: a data set and a net become one feature file, in shards that survive a crash.

Class posteriors (`vggfeat.classification`) go the same way: `run_job` writes whatever a net makes of images.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, ImageError, out_of_memory
from vggfeat.forward.features import Extraction, ExtractionSettings, check_boxes, requests
from vggfeat.forward.precision import IMAGES, LEAST_COSINE, PrecisionCheck, compare
from vggfeat.images.decode import DecodeSettings, read_bytes
from vggfeat.images.pool import Decoder
from vggfeat.runtime.distributed import World
from vggfeat.samples import Box, DataSet, Place
from vggfeat.shard_stream import Progress, Work, compute
from vggfeat.store.failures import count_reasons, failures_path, tally
from vggfeat.store.identity import IMAGE_SIZES, RunTicket, resolved
from vggfeat.store.layout import Shape, Status
from vggfeat.store.reader import FeatureFile
from vggfeat.store.writer import FeatureWriter
from vggfeat.weights import Backbone


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How the work is cut up and guarded; nothing here changes a feature by more than rounding."""

    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    workers: int = 2
    """Processes that decode images; 0 decodes in this process, without a time limit."""
    shard_rows: int | None = None
    """Images between two points from which a killed run goes on: 32 on the CPU, 256 on a GPU by default."""
    overwrite: bool = False
    """Replace a finished feature file that is damaged or of other settings, and throw away unfinished parts of it."""
    retry_failed: bool = False
    """Compute shards anew in which an image failed, of a finished file too, which is replaced in the end; and of that
    those whose image files have changed, where sizes tell that some have."""

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
    """Images that themselves, or whose boxes, had to grow more than eightfold to reach the largest scale."""
    failures_file: Path | None = None
    """Where they are listed, a JSON object a line; None if none failed."""
    notes: tuple[str, ...] = ()
    """What a user should know, a sentence each."""

    @property
    def failed_by_reason(self) -> dict[str, int]:
        """Return how many failed for each reason, the most frequent first."""
        return count_reasons(reason for _, reason in self.failures)

    def tally(self) -> str:
        """Say in a line what became of the samples."""
        reasons = (reason for _, reason in self.failures)
        return tally(total=self.total, done=self.total, resumed=self.resumed, reasons=reasons)


def extract_features(
    dataset: DataSet,
    backbone: Backbone,
    out: Path,
    settings: ExtractionSettings,
    *,
    cache: RunSettings = RunSettings(),
    decode: DecodeSettings = DecodeSettings(),  # noqa: B008  frozen
    progress: Progress | None = None,
    world: World = World(),  # noqa: B008  frozen
) -> Summary:
    """Extract the features of a data set into one HDF5 file, or finish the run that was doing so.

    Parameters
    ----------
    dataset : DataSet
    backbone : Backbone
    out : Path
        The feature file. Unfinished work stands beside it in `out` + ".parts".
    settings : ExtractionSettings
    cache : RunSettings
    decode : DecodeSettings
        Limits for an image. `largest_side` is set to the largest scale here.
    progress : callable, optional
        Of several processes only the first calls it; it knows of the failures of the others when they have finished.
    world : World
        The processes that do it together (`vggfeat.runtime.distributed.open_world`); all give the same arguments, but
        for the device's number. The file has the same bytes whatever their number, and a run may be
        resumed with another number.

    Returns
    -------
    Summary
        The same in all processes.

    Raises
    ------
    StoreError
        If a file or parts of other weights, settings or images stand in the way (the difference is named), another
        run is writing them, the processes are not of one kind, or the disk refuses.
    ConfigError
        If the settings do not go together, or with this device or data set.
    """
    extraction = Extraction(backbone, settings, cache.device)
    check_boxes(dataset, settings.regions)
    work = Work(
        dataset=dataset,
        backbone=backbone,
        passes=extraction,
        exact=lambda: Extraction(backbone, replace(settings, precision="fp32", compiled=False), cache.device),
        place=lambda row: Place(dataset.file_of(row), None),
        told={"mirror": "features of the image and of its mirror are averaged"},
    )
    return run_job(work, out, cache=cache, decode=decode, progress=progress, world=world)


def run_job(
    work: Work,
    out: Path,
    *,
    cache: RunSettings,
    decode: DecodeSettings,
    progress: Progress | None = None,
    world: World = World(),  # noqa: B008  frozen
) -> Summary:
    """Write what a net makes of images into one HDF5 file, or finish the run that was doing so.

    Parameters, returned value and errors are those of `extract_features`.
    """
    begun = time.monotonic()
    decode = replace(decode, largest_side=max(work.passes.sides))
    key = describe_run(work, decode)
    with _opened(work, out, key, cache, decode, world) as parts:
        resumed = parts.done_rows
        with _counted(out, parts, resumed):
            if not parts.complete:
                ahead = int(work.passes.device.type != "cpu")
                compute(parts, work, decode, cache.workers, progress, world, ahead)

            def finish() -> Summary:
                _finish(parts, key, work, decode, cache.workers)
                return _summarise(out, work, resumed, time.monotonic() - begun)

            return world.on_main(finish)


@contextmanager
def _opened(
    work: Work, out: Path, key: dict[str, Any], cache: RunSettings, decode: DecodeSettings, world: World
) -> Iterator[FeatureWriter]:
    """Open the parts in the first process, then in the others; none goes on before all have them."""
    shape = Shape(scales=work.passes.settings.scales, regions=work.passes.regions, channels=work.passes.channels)
    opened = partial(
        FeatureWriter.open, out, work.dataset, key, shape, shard_rows=cache.rows(), overwrite=cache.overwrite,
        retry=cache.retry_failed,
    )  # fmt: skip
    with ExitStack() as stack:
        held: list[FeatureWriter] = []

        def begin() -> RunTicket | None:
            held.append(stack.enter_context(opened()))
            if cache.retry_failed and not held[0].complete:
                _reuse_shards(held[0], work, decode)
            return held[0].share() if world.size > 1 else None

        ticket = world.on_main(begin)
        if not held:
            held.append(stack.enter_context(opened(ticket=ticket)))
        world.barrier()
        yield held[0]


def _reuse_shards(writer: FeatureWriter, work: Work, decode: DecodeSettings) -> None:
    """Take the shards from the finished file in which no row failed and no image has changed since."""
    for shard, block in writer.reusable():
        digests = zip(writer.rows(shard), map(bytes, block.sha256), strict=True)
        if not writer.images_changed or all(
            hash_image(work.place(row), decode.max_bytes) == digest for row, digest in digests
        ):
            writer.append(shard, block)
    writer.note_retry()


def _finish(parts: FeatureWriter, key: dict[str, Any], work: Work, decode: DecodeSettings, workers: int) -> None:
    if parts.complete:
        parts.verify()
    else:
        parts.finish(_provenance(key, work) | _compared(parts, work, decode, workers))


def _compared(parts: FeatureWriter, work: Work, decode: DecodeSettings, workers: int) -> dict[str, Any]:
    """Compute some rows again in float32, if the run was faster than that, and return what the provenance says of it.

    A run that is killed and goes on finds the same, because the rows are taken evenly from all that are done.
    """
    if work.exact is None or work.passes.settings.precision == "fp32":
        return {}
    done = np.setdiff1d(np.arange(parts.total_rows), list(parts.failures))
    rows = np.unique(done[np.linspace(0, len(done) - 1, IMAGES).astype(int)]) if len(done) else done
    features = [parts.features(row) for row in rows]
    try:
        with Decoder(min(workers, 1), decode) as decoder:
            images = decoder.stream(requests(work.dataset, rows.tolist(), work.passes.regions, work.place))
            found = compare(work.exact(), images, features)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        found = PrecisionCheck(None, 0)  # Two nets are more than one.
    return {"float32_cosine": found._asdict()}


def describe_run(work: Work, decode: DecodeSettings) -> dict[str, Any]:
    """Return everything that decides the values of the rows; a run is continued only if all of it is equal.

    Data set, scales, regions and channels are not here, because the store compares them itself; nor is the name of the
    weights, whose SHA-256 says more.
    """
    return {
        **{name: value for name, value in work.backbone.describe().items() if name != "weights"},
        **{name: value for name, value in work.passes.settings.describe().items() if name not in ("scales", "regions")},
        **describe_conditions(work.passes.device, decode, map(work.place, range(len(work.dataset)))),
    }


def describe_conditions(device: torch.device, decode: DecodeSettings, places: Iterable[Place]) -> dict[str, Any]:
    """Return what else decides the values of a run than net and settings: files, decoding, machine and libraries."""
    free = ("timeout", "memory", "largest_side")
    return {
        "decode": {name: value for name, value in asdict(decode).items() if name not in free},
        "machine": _machine(device),
        IMAGE_SIZES: _hash_sizes(places),
        "versions": {name: version(name) for name in ("vggfeat", "torch", "pillow", "numpy")},
    }


def _machine(device: torch.device) -> dict[str, Any]:
    # Sums are split by threads and instruction sets, so that both change the last bits.
    if device.type == "cuda":
        return {"device": "cuda", "name": torch.cuda.get_device_name(device)}
    return {"device": "cpu", "name": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def _provenance(key: dict[str, Any], work: Work) -> dict[str, Any]:
    return {
        **key,
        **work.passes.settings.describe(),
        "weights": work.backbone.source,
        "sides": list(work.passes.sides),
        **work.told,
    }


@contextmanager
def _counted(out: Path, parts: FeatureWriter, resumed: int) -> Iterator[None]:
    """Tell whatever ends a run before its time how far it has come."""
    try:
        yield
    except BaseException as error:
        reasons = parts.failures.values()
        told = tally(total=parts.total_rows, done=parts.done_rows, resumed=resumed, reasons=reasons)
        error.add_note(f"{out}: {told}")
        raise


def _summarise(out: Path, work: Work, resumed: int, seconds: float) -> Summary:
    with FeatureFile(out) as file:
        failed = np.flatnonzero(file.status != Status.DONE)
        failures = tuple((file.dataset.ids[row], file.reasons[row]) for row in failed)
        enlarged = int((8 * _smallest_sides(file) < max(work.passes.sides)).sum())
        total = len(file.dataset)
        compared = file.provenance.get("float32_cosine")
    return Summary(
        path=out,
        total=total,
        resumed=resumed,
        failures=failures,
        seconds=seconds,
        halvings=work.passes.halvings,
        enlarged=enlarged,
        failures_file=failures_path(resolved(out)) if failures else None,
        notes=(*_notes(work, enlarged), *_told_of_precision(work.passes.settings.precision, compared)),
    )


def _smallest_sides(file: FeatureFile) -> NDArray[np.int64]:
    """Return the smallest side of all regions, for every row that is done."""
    done = np.flatnonzero(file.status == Status.DONE)
    sizes = np.asarray(file.sizes, dtype=np.int64)[done]
    smallest = [sizes.min(axis=1)] if "image" in file.regions else []
    if "box" in file.regions and file.dataset.boxes is not None:
        boxes = [Box(*box).within(*size) for box, size in zip(file.dataset.boxes[done], sizes[:, ::-1], strict=True)]
        edges = np.array(boxes, dtype=np.int64).reshape(-1, 4)
        smallest.append((edges[:, 2:] - edges[:, :2]).min(axis=1))
    return np.min(smallest, axis=0)


def _notes(work: Work, enlarged: int) -> Iterator[str]:
    for scale, side in zip(work.passes.settings.scales, work.passes.sides, strict=True):
        if side != scale:
            yield f"Q = {scale} is too short for one 7x7 window of the net: images were enlarged to {side} instead"
    if enlarged:
        yield f"{enlarged} images were enlarged more than eightfold to reach Q = {max(work.passes.sides)}"
    if work.passes.halvings:
        yield f"{work.passes.halvings} batches did not fit into memory and were halved; --batch-pixels sets their size"


def _told_of_precision(precision: str, compared: dict[str, Any] | None) -> Iterator[str]:
    if compared is None:
        return
    if compared["least"] is None:
        yield f"{precision}: no image could be computed again in float32, so nothing is known of the difference"
        return
    again = f"{precision}: computed again in float32, the least cosine of a vector of {compared['images']} images is"
    advice = "" if compared["least"] >= LEAST_COSINE else f", below {LEAST_COSINE}: with this net take --precision fp32"
    yield f"{again} {compared['least']:.6f}{advice}"


def hash_image(place: Place, max_bytes: int) -> bytes:
    """Return the SHA-256 of an image's bytes; nothing if they can't be read."""
    try:
        return hashlib.sha256(read_bytes(place.file, max_bytes, place.span)).digest()
    except ImageError:
        return b""


def _hash_sizes(places: Iterable[Place]) -> str:
    digest = hashlib.sha256()
    for file, span in places:
        try:
            size = span[1] if span else os.stat(file).st_size
        except (OSError, ValueError):
            size = -1
        digest.update(f"{size}\n".encode())
    return digest.hexdigest()
