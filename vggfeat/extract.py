"""The main job: a data set and a net become one feature file, in shards that survive a crash.

One stream: image files are decoded by workers, the net makes rows of them block by block, and every block is written as
a shard; in the end all shards become the file. Class posteriors go the same way (`vggfeat.classification.extract`).
Of several processes each makes every so-many-th pending shard. A shard depends on its own rows alone, so that it has
the same bytes whoever makes it, and nothing must be agreed upon in between.
"""

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vggfeat.checks import check_given, convert_fields
from vggfeat.errors import ConfigError
from vggfeat.forward.features import ExtractionSettings, check_boxes, feature_runner
from vggfeat.forward.rerun import check_precision, some_of
from vggfeat.forward.runner import BatchRunner
from vggfeat.forward.settings import describe_conditions, describe_made, describe_net, hash_image, hash_sizes
from vggfeat.forward.shards import shard_blocks
from vggfeat.images.decode import DecodeSettings, Request, row_requests
from vggfeat.images.image_bytes import shown
from vggfeat.runtime.devices import default_device, default_workers
from vggfeat.runtime.distributed import World
from vggfeat.runtime.output_paths import check_name
from vggfeat.runtime.rendered import RENDERED, is_rendered
from vggfeat.samples import DataSet, LabelledImages
from vggfeat.store.failures import tally
from vggfeat.store.identity import IMAGE_SIZES, RunTicket
from vggfeat.store.kept import Kept, gone_from, same_rows
from vggfeat.store.layout import Shape, Status
from vggfeat.store.writer import FeatureWriter
from vggfeat.summary import Summary, summarise
from vggfeat.weights import Backbone
from vggfeat.wording import counted

log = logging.getLogger(__name__)
_SHOWN = 10
MIRROR = {"mirror": "features of the image and of its mirror are averaged"}
"""What the provenance of features says besides."""
Progress = Callable[[float, int, int], None]
"""Called with images done (resumed ones included), images in all, and images failed so far.

On a CPU, done are also images whose shard is still being computed.
"""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How the work is cut up and guarded; nothing here changes a feature by more than rounding."""

    device: str = field(default_factory=default_device)
    """cpu, cuda, cuda:1, ..., mps; a CUDA GPU if there is one by default."""
    workers: int = field(default_factory=default_workers)
    """Processes that decode images, one a core by default, at most 16; 0 decodes in this process, without a time
    limit."""
    shard_rows: int | None = None
    """Images between two points from which a killed run resumes: 32 on the CPU, 256 on a GPU by default."""
    overwrite: bool = False
    """Replace a finished feature file that is damaged or of other settings, and throw away unfinished parts of it."""
    retry_failed: bool = False
    """Compute shards again in which an image failed, of a finished file too, which is replaced in the end; and of that
    those whose image files have changed, where sizes tell that some have."""
    extend: bool = False
    """Replace a finished file of a list that is another by now: rows of the same id, path, box and image keep their
    features."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.workers < 0 or (self.shard_rows is not None and self.shard_rows < 1):
            found = f"workers {self.workers}, shard_rows {self.shard_rows}"
            raise ConfigError(f"run: expected workers of at least 0 and shard_rows of at least 1, found {found}")

    def rows(self) -> int:
        """Return `shard_rows` or its default."""
        return self.shard_rows or (32 if self.device.startswith("cpu") else 256)


def extract_features(
    dataset: DataSet,
    backbone: Backbone,
    out: str | os.PathLike[str],
    settings: ExtractionSettings | None = None,
    *,
    run: RunSettings | None = None,
    decode: DecodeSettings = DecodeSettings(),  # noqa: B008  frozen
    progress: Progress | None = None,
    world: World = World(),  # noqa: B008  frozen
) -> Summary:
    """Extract the features of a data set into one HDF5 file, or finish the run that was doing so.

    Parameters
    ----------
    dataset : DataSet
    backbone : Backbone
    out : path
        The feature file. Unfinished work is next to it in `out` + ".parts".
    settings : ExtractionSettings, optional
        By default those of the paper for the data set, see `ExtractionSettings.for_dataset`.
    run : RunSettings, optional
    decode : DecodeSettings, optional
        Limits for an image. `largest_side` is set to the largest scale here.
    progress : callable, optional
        Of several processes only the first calls it; it knows of the failures of the others when they have finished.
    world : World, optional
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
    check_given("dataset", dataset, DataSet, "what vggfeat.open_dataset makes of a folder")
    check_given("backbone", backbone, Backbone, "what vggfeat.load_backbone makes of a weights file")
    run = run or RunSettings()
    settings = settings or ExtractionSettings.for_dataset(dataset.name, run.device)
    check_boxes(dataset, settings.regions)
    runner = feature_runner(backbone, settings, run.device)
    job = Job(dataset=dataset, images=dataset, runner=runner, provenance=MIRROR)
    return run_job(job, Path(out), run=run, decode=decode, progress=progress, world=world)


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A list of images, and the net that makes rows of them."""

    dataset: DataSet
    images: DataSet | LabelledImages
    """Says where the image of each row is."""
    runner: BatchRunner
    """The net on its device, with its settings."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What else the provenance says; no value depends on it."""
    check_precision: bool = True
    """Whether some rows of a faster precision are compared with float32 in the end."""

    def requests(self, rows: Iterable[int]) -> Iterator[Request]:
        """Say what is to be decoded for some rows."""
        return row_requests(self.dataset, rows, self.runner.regions, self.images)


def run_job(
    job: Job,
    out: Path,
    *,
    run: RunSettings,
    decode: DecodeSettings,
    progress: Progress | None = None,
    world: World = World(),  # noqa: B008  frozen
) -> Summary:
    """Write what a net makes of images into one HDF5 file, or finish the run that was doing so.

    Parameters, returned value and errors are those of `extract_features`.
    """
    check_name(out)
    begun = time.monotonic()
    decode = replace(decode, largest_side=max(job.runner.sides))
    key = describe_run(job, decode)
    with _opened_writer(job, out, key, run, decode, world) as writer:
        resumed = writer.done_rows + sum(len(writer.rows(shard)) - len(writer.left(shard)) for shard in writer.pending)
        extended = _extension_notes(writer, job) if run.extend else ()
        try:
            if not writer.complete:
                write_shards(job, writer, run.workers, decode, progress, world)

            def finish() -> dict[str, Any]:
                _finish(job, writer, key, run.workers, decode)
                seconds, halvings = time.monotonic() - begun, job.runner.halvings
                summary = summarise(out, resumed=resumed, seconds=seconds, halvings=halvings)
                return replace(summary, notes=(*extended, *summary.notes)).to_json()

            summary = Summary.from_json(world.on_main(finish))
            log.log(logging.WARNING if summary.failures else logging.INFO, "%s: %s", out, summary.tally())
            return summary
        except BaseException as error:
            so_far = tally(
                total=writer.total_rows, done=writer.done_rows, resumed=resumed, reasons=writer.failures.values()
            )
            error.add_note(f"{out}: {so_far}")
            raise


@contextmanager
def _opened_writer(
    job: Job, out: Path, key: dict[str, Any], run: RunSettings, decode: DecodeSettings, world: World
) -> Iterator[FeatureWriter]:
    """Open the feature file in the first process, then in the others; none proceeds before all have it."""
    runner = job.runner
    shape = Shape(scales=runner.settings.scales, regions=runner.regions, channels=runner.head.channels)
    opened = partial(
        FeatureWriter.open, out, job.dataset, key, shape, shard_rows=run.rows(), overwrite=run.overwrite,
        retry_failed=run.retry_failed, extend=run.extend,
    )  # fmt: skip
    with ExitStack() as stack:
        held: list[FeatureWriter] = []

        def begin() -> dict[str, Any] | None:
            held.append(stack.enter_context(opened()))
            if held[0].kept is not None:
                _keep_rows(held[0], held[0].kept, job, decode)
            if run.retry_failed and not held[0].complete:
                held[0].note_retry()
            return held[0].share()._asdict() if world.size > 1 else None

        ticket = world.on_main(begin)
        if not held:
            held.append(stack.enter_context(opened(ticket=RunTicket(**(ticket or {})))))
        world.barrier()
        yield held[0]


def _keep_rows(writer: FeatureWriter, kept: Kept, job: Job, decode: DecodeSettings) -> None:
    """Keep the rows of the finished file that have features and whose images have not changed since."""
    rows = same_rows(kept.file, job.dataset)
    kept.rows = np.where((rows >= 0) & (kept.file.status[rows] == Status.DONE), rows, -1)
    now = {before: row for row, before in enumerate(rows.tolist())}
    places = [job.images.place(now[row]) for row in range(len(kept.file)) if row in now]
    if len(places) < len(kept.file) or hash_sizes(places) != kept.file.key.get(IMAGE_SIZES):
        for row in itertools.chain.from_iterable(map(writer.rows, writer.pending)):
            digest = kept.file.sha256[kept.rows[row]].tobytes() if kept.rows[row] >= 0 else b""
            if digest and hash_image(job.images.place(row), decode.max_bytes) != digest:
                kept.rows[row] = -1
    writer.append_kept()


def _extension_notes(writer: FeatureWriter, job: Job) -> tuple[str, ...]:
    """Say what of a file that is extended is kept, computed and dropped."""
    if writer.kept is None:
        return ()
    new = sum(len(writer.left(shard)) for shard in range(-(-writer.total_rows // len(writer.rows(0)))))
    old = counted(writer.total_rows - new, "image{s}")
    sentence = f"extended: the features of {old} are kept, those of {new} are computed"
    gone = gone_from(writer.kept.file, job.dataset)
    more = f", and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
    left = counted(len(gone), "image{s} {have} gone from the list, and {are} dropped")
    dropped = f"{left}: {', '.join(map(shown, gone[:_SHOWN]))}{more}"
    return (sentence, dropped) if gone else (sentence,)


def write_shards(
    job: Job, writer: FeatureWriter, workers: int, decode: DecodeSettings, progress: Progress | None, world: World
) -> None:
    """Compute and write the pending shards, and wait until the other processes have written theirs.

    Afterwards only the first process still holds the writer, which knows what all have made. StoreError if the disk
    refuses.
    """
    runner, pending, is_main = job.runner, writer.pending, world.is_main
    shards = pending[world.rank :: world.size]
    theirs = sorted(set(pending) - set(shards)) if is_main else []

    def report(done: float = 0) -> None:
        if progress is not None and is_main:
            progress(writer.done_rows + done, writer.total_rows, len(writer.failures))

    def poll() -> None:
        writer.poll(theirs)
        report()

    poll()
    parts = ((shard, list(job.requests(writer.left(shard)))) for shard in shards)
    for shard, block in shard_blocks(runner, parts, writer.shape, len(writer.rows(0)), workers, decode, report):
        writer.append(shard, block)
        poll()
    if not is_main:
        writer.close()  # The first takes the folder away, which a network disk refuses while a file in it is open.
    world.barrier(poll)
    for made, halvings in world.gather((list(writer.made.items()), runner.halvings))[1:]:
        if is_main:
            writer.merge_ranks(dict(made))
            runner.halvings += halvings
    report()


def _finish(job: Job, writer: FeatureWriter, key: dict[str, Any], workers: int, decode: DecodeSettings) -> None:
    if writer.complete:
        writer.verify()
        return
    provenance = {**key, **describe_made(job.runner.backbone, job.runner.settings, job.runner.sides), **job.provenance}
    if is_rendered(job.images.root):
        provenance["images"] = RENDERED
    if job.check_precision and job.runner.settings.precision != "fp32":
        # A run that is killed and resumed finds the same.
        rows = some_of(np.setdiff1d(np.arange(writer.total_rows), list(writer.failures)))
        features = [writer.features(row) for row in rows]
        check = check_precision(job.runner, job.requests(rows.tolist()), features, workers, decode)
        provenance["float32_cosine"] = check._asdict()
    writer.finish(provenance)


def describe_run(job: Job, decode: DecodeSettings) -> dict[str, Any]:
    """Return everything that decides the values of the rows; a run is continued only if all of it is equal.

    Data set, scales, regions and channels are not here, because the store compares them itself; nor is the name of the
    weights, whose SHA-256 says more.
    """
    places = map(job.images.place, range(len(job.dataset)))
    return {
        **describe_net(job.runner.backbone, job.runner.settings),
        **describe_conditions(job.runner.device, decode, places),
    }
