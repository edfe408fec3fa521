"""The images of a validation list are located one group after the other, in a file that survives a crash, and judged.

N = images of the list, G = guesses of an image, K = classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.datasets.ilsvrc_boxes import Boxes
from vggfeat.errors import ConfigError, ImageError
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.localisation.guesses import Ask, LocaliseSettings, Located
from vggfeat.localisation.locate import CropLocaliser, Localiser
from vggfeat.localisation.nets import BoxNet
from vggfeat.metrics import Localised, inclusive_pixels, localisation_error
from vggfeat.runtime.journal import Journal
from vggfeat.samples import LabelledImages
from vggfeat.weights import Backbone

Protocol = Literal["gt", "dense"]
"""gt: the box of the true class, from the centre crop (protocol 1 of Appendix A, Table 8). dense: up to five guesses
from the whole image (protocol 2, Tables 9 and 10)."""
Progress = Callable[[float, int], None]
"""Called with images done, earlier runs included, and images in all."""
JOURNAL_FORMAT = "vggfeat localised images, 1"


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the work is cut up and guarded; nothing here changes a box by more than rounding."""

    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    workers: int = 2
    """Processes that decode images; 0 decodes in this process, without a time limit."""
    group: int | None = None
    """Images between two points from which a killed run goes on: 32 on the CPU, 128 on a GPU by default. So many
    are held in memory, with their maps."""
    overwrite: bool = False
    """Throw away what a run of other settings has left."""

    def __post_init__(self) -> None:
        if self.workers < 0 or (self.group is not None and self.group < 1):
            raise ConfigError(
                f"run: expected workers of at least 0 and a group of at least 1, found {self.workers} and {self.group}"
            )

    def step(self) -> int:
        """Return `group` or its default."""
        return self.group or (32 if self.device.startswith("cpu") else 128)


class System(NamedTuple):
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


def locate_list(
    images: LabelledImages,
    system: System,
    out: Path,
    run: EvaluationSettings,
    decode: DecodeSettings,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Locate the objects of every image of a list, or finish the run that was doing so.

    Parameters
    ----------
    images : LabelledImages
        N.
    system : System
    out : Path
        The file of a line an image; see `vggfeat.runtime.journal`.
    run : EvaluationSettings
    decode : DecodeSettings
        `largest_side` is set to the largest Q here.
    progress : callable, optional

    Returns
    -------
    list of N dict
        row, path, size, reason, guesses, classes, boxes, scores, windows, posteriors; see `Located`.

    Raises
    ------
    StoreError
        If the file is of another run, or the disk refuses.
    ConfigError
        If settings, nets and device do not go together.
    """
    localiser = _localiser(images.classes, system, run.device)
    limits = DecodeSettings(**(asdict(decode) | {"largest_side": localiser.largest_side}))
    key = _without_names(describe_run(images, system, run, limits))
    with Journal(out, JOURNAL_FORMAT, key, len(images), run.step(), overwrite=run.overwrite) as journal:
        rows = range(len(journal.records), len(images))
        with Decoder(run.workers, limits) as decoder:
            answers = decoder.stream(_requests(images, rows))
            for start in range(rows.start, rows.stop, run.step()):
                group = range(start, min(start + run.step(), rows.stop))
                journal.add(_located(images, system, localiser, group, answers, progress))
        return journal.records


def describe_run(
    images: LabelledImages, system: System, run: EvaluationSettings, decode: DecodeSettings
) -> dict[str, Any]:
    """Return everything that decides the results, ready for JSON; a run is continued only if all of it is equal.

    The names of weights files are in it and do not count: their SHA-256 says more.
    """
    free = ("timeout", "memory", "largest_side")
    return {
        "protocol": system.protocol,
        "box_nets": [net.describe() for net in system.nets],
        "classifier": None if system.classifier is None else system.classifier.describe(),
        "labels": system.labels_from,
        **system.settings.describe(),
        "decode": {name: value for name, value in asdict(decode).items() if name not in free},
        "images": images.fingerprint(),
        "group": run.step(),
        "device": run.device.partition(":")[0],
        "versions": {name: version(name) for name in ("vggfeat", "torch", "pillow", "numpy")},
    }


def _without_names(about: Any) -> Any:
    if isinstance(about, dict):
        return {key: _without_names(value) for key, value in about.items() if key != "weights"}
    return [_without_names(value) for value in about] if isinstance(about, list) else about


def _localiser(classes: Sequence[str], system: System, device: str) -> Localiser | CropLocaliser:
    if system.protocol == "gt":
        if len(system.nets) != 1:
            raise ConfigError(f"boxes: expected one box net for the centre crop, found {len(system.nets)}")
        return CropLocaliser(system.nets[0], classes, system.settings, device=device)
    if system.classifier is None and system.labels is None:
        raise ConfigError("labels: expected a classification net or the posteriors of one, found neither")
    return Localiser(system.nets, system.classifier, classes, system.settings, device=device, channels=system.channels)


def _requests(images: LabelledImages, rows: range) -> Iterator[Request]:
    for row in rows:
        place = images.place(row)
        yield Request(place.file, (None,), place.span)


def _located(
    images: LabelledImages,
    system: System,
    localiser: Localiser | CropLocaliser,
    rows: range,
    answers: Iterator[DecodedImage | ImageError],
    progress: Progress | None,
) -> list[dict[str, Any]]:
    def show(done: float) -> None:
        if progress is not None:
            progress(rows.start + done, len(images))

    labels = None if system.protocol == "gt" else system.labels
    top = system.settings.top
    asks = [Ask(None if labels is None else labels[row, :top], int(images.targets[row])) for row in rows]
    show(0)
    found = localiser.locate((next(answers) for _ in rows), asks, show)
    show(len(rows))
    return [_record(row, images, located) for row, located in zip(rows, found, strict=True)]


def _record(row: int, images: LabelledImages, located: Located) -> dict[str, Any]:
    return {
        "row": row,
        "path": images.paths[row].encode("utf-8", "backslashreplace").decode(),
        "size": list(located.size),
        "reason": located.reason.replace(f"{images.place(row).file}: ", ""),
        "guesses": located.guesses,
        "classes": located.classes.tolist(),
        "boxes": np.round(located.boxes, 2).tolist(),
        "scores": [float(f"{score:.6g}") for score in located.scores.tolist()],
        "windows": located.windows.tolist(),
        "posteriors": [None if np.isnan(value) else float(f"{value:.6g}") for value in located.posteriors.tolist()],
    }


class Judged(NamedTuple):
    """What the guesses of N images are worth."""

    guessed: Localised
    """Of the guesses, best first; of protocol gt there are none."""
    true_class: Localised
    """Of the box of the true class alone, its label given."""
    labels: NDArray[np.int64]
    """(N, G) guessed classes, -1 for none."""
    boxes: NDArray[np.int64]
    """(N, G, 4) their boxes in inclusive pixels."""
    targets: NDArray[np.int64]
    """(N,) true classes."""
    failed: dict[str, str]
    """Path -> reason of images that count as wrong because they gave nothing."""
    notes: tuple[str, ...]

    def classification_error(self, guesses: int) -> float:
        """Share of all N images, those of the blacklist too, whose class is not among the first so many labels."""
        return float((self.labels[:, :guesses] != self.targets[:, None]).all(axis=1).mean())


def judge(records: Sequence[dict[str, Any]], images: LabelledImages, boxes: Boxes, top: int) -> Judged:
    """Judge what `locate_list` returns by the official rules.

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
    Judged

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
        factors = _factors(record["size"], boxes.sizes[row], images)
        found = np.array(record["boxes"], dtype=np.float64).reshape(-1, 4) * factors
        guesses, target = record["guesses"], int(images.targets[row])
        labels[row, :guesses] = record["classes"][:guesses]
        placed[row, :guesses] = found[:guesses]
        if target in record["classes"]:
            known[row], placed[row, top] = target, found[record["classes"].index(target)]
    pixels = inclusive_pixels(placed)
    objects = [inclusive_pixels(boxes.of(row)) for row in range(len(records))]
    return Judged(
        guessed=localisation_error(images.targets, objects, labels, pixels[:, :top], counted=counted),
        true_class=localisation_error(images.targets, objects, known, pixels[:, top:], counted=counted),
        labels=labels,
        boxes=pixels[:, :top],
        targets=images.targets,
        failed={record["path"]: record["reason"] for record in records if record["reason"]},
        notes=(*boxes.notes, *_notes(records, boxes, images)),
    )


def _factors(found: Sequence[int], annotated: NDArray[np.int64], images: LabelledImages) -> NDArray[np.float64]:
    """Return what brings boxes from the pixels of a packed copy to those of the annotation."""
    if images.shards is None or not (annotated.all() and all(found)):
        return np.ones(4)
    return np.array([annotated[1] / found[1], annotated[0] / found[0]] * 2)


def _notes(records: Sequence[dict[str, Any]], boxes: Boxes, images: LabelledImages) -> Iterator[str]:
    if images.shards is not None:
        yield "the images are of a packed copy: their boxes were brought to the sizes that the annotations declare"
        return
    sizes = np.array([record["size"] for record in records]).reshape(-1, 2)
    other = (sizes != boxes.sizes).any(axis=1) & sizes.all(axis=1) & boxes.sizes.all(axis=1)
    if other.any():
        first = images.paths[int(np.argmax(other))]
        yield f"{other.sum()} images are not of the size that their annotation declares, for instance {first}"
