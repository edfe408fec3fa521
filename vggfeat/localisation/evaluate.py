"""The images of a validation list are located group by group, in a journal that survives a crash; errors are counted.

N = images of the list, G = guesses of an image, K = classes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from vggfeat.datasets.ilsvrc_boxes import Boxes
from vggfeat.errors import ConfigError
from vggfeat.extract import Progress, RunSettings
from vggfeat.forward.settings import describe_conditions, hash_image
from vggfeat.images.decode import DecodeSettings, Request
from vggfeat.images.image_bytes import shown
from vggfeat.images.pool import Decoder
from vggfeat.images.upright import annotated_orientation, stored_size, turn_back
from vggfeat.localisation.locate import CropLocaliser, LocalisationRequest, LocalisedImage, Localiser
from vggfeat.localisation.maps import LocaliseSettings
from vggfeat.localisation.nets import BoxNet
from vggfeat.metrics import Localised, inclusive_pixels, localisation_error
from vggfeat.runtime.distributed import World
from vggfeat.runtime.durable import DISK, disk_errors
from vggfeat.runtime.journal import Journal, Loose
from vggfeat.samples import LabelledImages
from vggfeat.store.failures import tally, write_failures
from vggfeat.store.identity import IMAGE_SIZES, differences, higher_limit, other_process
from vggfeat.weights import Backbone
from vggfeat.wording import counted, with_bytes

Protocol = Literal["gt", "dense"]
"""gt: the box of the true class, from the centre crop (protocol 1 of Appendix A, Table 8). dense: up to five guesses
from the complete image (protocol 2, Tables 9 and 10)."""
JOURNAL_FORMAT = "vggfeat localised images, 3"
MAY_CHANGE: Loose = {IMAGE_SIZES: lambda before, now: True, "decode": higher_limit}
"""What a retry of failed images may change: the images, and how many pixels are allowed them."""


class LocalisationSystem(NamedTuple):
    """What locates: nets, and where labels come from."""

    protocol: Protocol
    nets: tuple[BoxNet, ...]
    classifier: Backbone | None
    """Rates the boxes, and chooses the labels if none are given."""
    channels: NDArray[np.int64] | None
    """(K,) channel of its fc8 for every class of the data."""
    labels: NDArray[np.int64] | None
    """(N, G) labels of another system, best first, -1 for none."""
    labels_from: str
    """Where the labels come from, in words and fingerprints: part of what decides the results."""
    settings: LocaliseSettings

    def localiser(self, classes: Sequence[str], device: str) -> Localiser | CropLocaliser:
        """Bring the nets to a device."""
        if self.protocol == "gt":
            if len(self.nets) != 1:
                raise ConfigError(f"boxes: expected one box net for the centre crop, found {len(self.nets)}")
            return CropLocaliser(self.nets[0], classes, self.settings, device=device)
        if self.classifier is None and self.labels is None:
            raise ConfigError("labels: expected a classification net or the posteriors of one, found neither")
        return Localiser(self.nets, self.classifier, classes, self.settings, device=device, channels=self.channels)

    def requests(self, images: LabelledImages, rows: range) -> list[LocalisationRequest]:
        """Say what is to be located on the images of some rows."""
        labels = None if self.protocol == "gt" else self.labels
        top = self.settings.top
        return [
            LocalisationRequest(None if labels is None else labels[row, :top], int(images.targets[row])) for row in rows
        ]


def locate_images(
    images: LabelledImages,
    system: LocalisationSystem,
    out: Path,
    *,
    run: RunSettings,
    decode: DecodeSettings,
    progress: Progress | None = None,
    world: World = World(),  # noqa: B008  frozen
) -> list[dict[str, Any]]:
    """Locate the objects of every image of a list, or finish the run that was doing so.

    Several processes take a group each, turn by turn, and the first writes what all have found, so that the file is
    the same whatever their number.

    Parameters
    ----------
    images : LabelledImages
        N.
    system : LocalisationSystem
    out : Path
        The journal, a line an image; see `vggfeat.runtime.journal`. Images that failed are listed next to it, as those
        of a feature file are.
    run : RunSettings
        Its shards are the groups of images that are in memory together, with their maps: 32 on the CPU, 128 on a GPU by
        default.
    decode : DecodeSettings
        `largest_side` is set to the largest Q here.
    progress : callable, optional
    world : World
        The processes that do it together; all give the same arguments, but for the device's number.

    Returns
    -------
    list of N dict
        row, path, size, orientation, sha256, reason, guesses, classes, boxes, scores, windows, posteriors; see
        `LocalisedImage`. Empty in other processes than the first.

    Raises
    ------
    StoreError
        If the file is of another run, the processes are not of one kind, or the disk refuses.
    ConfigError
        If settings, nets and device do not go together.
    """
    localiser = system.localiser(images.classes, run.device)
    decode = replace(decode, largest_side=localiser.largest_side)
    key = json.loads(json.dumps(_without_names(describe_run(images, system, run, decode))))
    with _Kept(out, images, progress, world) as kept:
        first_key, groups_left = world.on_main(lambda: kept.open(key, run, decode))
        pending = [range(start, stop) for start, stop in groups_left]
        if first_key != key:
            raise other_process(out, differences(key, first_key))
        with Decoder(run.workers, decode) as decoder:
            places = (images.place(row) for group in pending[world.rank :: world.size] for row in group)
            decoded = decoder.stream(Request(file, (None,), span) for file, span in places)
            for turn in range(0, len(pending), world.size):
                groups = pending[turn : turn + world.size]
                rows = groups[world.rank] if world.rank < len(groups) else range(0)
                kept.report(0)
                found = localiser.locate((next(decoded) for _ in rows), system.requests(images, rows), kept.report)
                own = [_record(row, images, one) for row, one in zip(rows, found, strict=True)]
                for records in world.gather(own):
                    kept.add(records)
        return kept.finish()


class _Kept:
    """What the first process keeps of a run: its journal, and what has failed. Others keep nothing.

    An error that leaves the `with` block gets a note of how far the run has come.
    """

    def __init__(self, out: Path, images: LabelledImages, progress: Progress | None, world: World) -> None:
        self.out, self.images, self.progress, self.world = out, images, progress, world
        self.journal: Journal | None = None
        self.failures: dict[int, str] = {}
        self.resumed = 0

    def open(
        self, key: dict[str, Any], run: RunSettings, decode: DecodeSettings
    ) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """Open the journal; return its key, and from where to where the groups are that it lacks."""

        def to_retry(record: dict[str, Any], changed: set[str]) -> bool:
            if record["reason"] or IMAGE_SIZES not in changed:
                return bool(record["reason"])
            return hash_image(self.images.place(record["row"]), decode.max_bytes).hex() != record["sha256"]

        self.journal = Journal(
            self.out, JOURNAL_FORMAT, key, len(self.images), _group_size(run), overwrite=run.overwrite,
            retry=to_retry if run.retry_failed else None, loose=MAY_CHANGE,
        )  # fmt: skip
        self._note_failures(self.journal.records)
        self.resumed = self.journal.done
        return key, [(group.start, group.stop) for group in self.journal.pending]

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Write what a process has found of a group."""
        if self.journal is not None and records:
            self.journal.add(records)
            self._note_failures(records)

    def report(self, located: float) -> None:
        """Report progress, while every process has located so many images of its group."""
        if self.journal is not None and self.progress is not None:
            done = min(self.journal.done + self.world.size * located, len(self.images))
            self.progress(done, len(self.images), len(self.failures))

    def finish(self) -> list[dict[str, Any]]:
        """List the failures, and return the records of all images."""
        self.report(0)
        if self.journal is None:
            return []
        with disk_errors(self.out, "listing the failures", "fix it and give the same command again"):
            write_failures(self.out, self.images, self.failures, files=DISK)
        return self.journal.records

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.journal is None:
            return
        if error is not None:
            reasons = self.failures.values()
            so_far = tally(total=len(self.images), done=self.journal.done, resumed=self.resumed, reasons=reasons)
            error.add_note(f"{self.out}: {so_far}")
        self.journal.__exit__(kind, error, trace)

    def _note_failures(self, records: Sequence[dict[str, Any]]) -> None:
        self.failures |= {record["row"]: record["reason"] for record in records if record["reason"]}


def _group_size(run: RunSettings) -> int:
    return run.shard_rows or (32 if run.device.startswith("cpu") else 128)


def _record(row: int, images: LabelledImages, located: LocalisedImage) -> dict[str, Any]:
    return {
        "row": row,
        "path": with_bytes(images.paths[row]),
        "size": list(located.size),
        "orientation": located.orientation,
        "sha256": located.sha256.hex(),
        "reason": located.reason.replace(f"{shown(str(images.place(row).file))}: ", ""),
        "guesses": located.guesses,
        "classes": located.classes.tolist(),
        "boxes": np.round(located.boxes, 2).tolist(),
        "scores": [float(f"{score:.6g}") for score in located.scores.tolist()],
        "windows": located.windows.tolist(),
        "posteriors": [None if np.isnan(value) else float(f"{value:.6g}") for value in located.posteriors.tolist()],
    }


def describe_run(
    images: LabelledImages, system: LocalisationSystem, run: RunSettings, decode: DecodeSettings
) -> dict[str, Any]:
    """Return everything that decides the results, ready for JSON; a run is resumed only if all of it is equal.

    The names of weights files are in it and do not count: their SHA-256 says more.
    """
    return {
        "protocol": system.protocol,
        "box_nets": [net.describe() for net in system.nets],
        "classifier": None if system.classifier is None else system.classifier.describe(),
        "labels": system.labels_from,
        **system.settings.describe(),
        "images": images.fingerprint(),
        "group": _group_size(run),
        **describe_conditions(torch.device(run.device), decode, map(images.place, range(len(images)))),
    }


def _without_names(about: Any) -> Any:
    if isinstance(about, dict):
        return {key: _without_names(value) for key, value in about.items() if key != "weights"}
    return [_without_names(value) for value in about] if isinstance(about, list) else about


class LocalisationErrors(NamedTuple):
    """What the guesses of N images are worth."""

    guessed: Localised
    """Results of the guesses, best first; of protocol gt there are none."""
    true_class: Localised
    """Result of the box of the true class alone, its label given."""
    labels: NDArray[np.int64]
    """(N, G) guessed classes, -1 for none."""
    boxes: NDArray[np.int64]
    """(N, G, 4) their boxes in inclusive pixels of the annotated images."""
    targets: NDArray[np.int64]
    """(N,) true classes."""
    failed: dict[str, str]
    """Path -> reason of images that count as wrong because they gave nothing."""
    notes: tuple[str, ...]

    def classification_error(self, guesses: int) -> float:
        """Share of all N images, those of the blacklist too, whose class is not among the first so many labels."""
        return float((self.labels[:, :guesses] != self.targets[:, None]).all(axis=1).mean())


def count_errors(
    records: Sequence[dict[str, Any]], images: LabelledImages, boxes: Boxes, top: int
) -> LocalisationErrors:
    """Count the errors of what `locate_images` returns, by the official rules.

    Parameters
    ----------
    records : N of dict
    images : LabelledImages
    boxes : Boxes
        Of the same images. Those of the blacklist, and those without a box of their class, are left out of the
        localisation errors, and of no others.
    top : int
        G.

    Returns
    -------
    LocalisationErrors

    Raises
    ------
    ConfigError
        If no image has a box.
    """
    counted = boxes.has & ~boxes.excluded
    if not counted.any():
        raise ConfigError("boxes: expected at least one image with a box of its class, found none")
    labels = np.full((len(records), top), -1, dtype=np.int64)
    placed = np.zeros((len(records), top + 1, 4))
    known = np.full((len(records), 1), -1, dtype=np.int64)
    for row, record in enumerate(records):
        found = _as_annotated(record, boxes.sizes[row], images)
        guesses, target = record["guesses"], int(images.targets[row])
        labels[row, :guesses] = record["classes"][:guesses]
        placed[row, :guesses] = found[:guesses]
        if target in record["classes"]:
            known[row], placed[row, top] = target, found[record["classes"].index(target)]
    pixels = inclusive_pixels(placed)
    objects = [inclusive_pixels(boxes.of(row)) for row in range(len(records))]
    return LocalisationErrors(
        guessed=localisation_error(images.targets, objects, labels, pixels[:, :top], counted=counted),
        true_class=localisation_error(images.targets, objects, known, pixels[:, top:], counted=counted),
        labels=labels,
        boxes=pixels[:, :top],
        targets=images.targets,
        failed={record["path"]: record["reason"] for record in records if record["reason"]},
        notes=(*boxes.notes, *_notes(records, boxes, images)),
    )


def _as_annotated(record: dict[str, Any], annotated: NDArray[np.int64], images: LabelledImages) -> NDArray[np.float64]:
    """Return the boxes (T, 4) of an image as the annotation has them: not turned, and in the pixels of its size.

    The official script compares them so, and reads them so from a submission.
    """
    size, orientation = _annotated_frame(record, annotated)
    found = np.array(record["boxes"], dtype=np.float64).reshape(-1, 4)
    turned = turn_back(found, orientation, (record["size"][0], record["size"][1]))
    if images.shards is None or not (annotated.all() and all(size)):
        return turned
    return turned * np.array([annotated[1] / size[1], annotated[0] / size[0]] * 2)  # A packed copy is smaller.


def _annotated_frame(record: dict[str, Any], annotated: NDArray[np.int64]) -> tuple[tuple[int, int], int]:
    """Return height and width of an image as its annotation sees it, and by which orientation it is turned then."""
    upright = (int(record["size"][0]), int(record["size"][1]))
    orientation = annotated_orientation(record["orientation"], upright, (int(annotated[0]), int(annotated[1])))
    return stored_size(upright, orientation), orientation


def _notes(records: Sequence[dict[str, Any]], boxes: Boxes, images: LabelledImages) -> Iterator[str]:
    if images.shards is not None:
        yield "the images are of a packed copy: their boxes were brought to the sizes that the annotations declare"
        return
    frames = [_annotated_frame(record, size) for record, size in zip(records, boxes.sizes, strict=True)]
    sizes = np.array([size for size, _ in frames]).reshape(-1, 2)
    other = (sizes != boxes.sizes).any(axis=1) & sizes.all(axis=1) & boxes.sizes.all(axis=1)
    if other.any():
        first = images.paths[int(np.argmax(other))]
        odd = counted(other.sum(), "image{s} {are} not of the size that the annotation declares")
        yield f"{odd}, for instance {first}"
