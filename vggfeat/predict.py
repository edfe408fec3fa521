"""Images in, what a saved model says of them out, in one stream: decoded, extracted, joined and scored in memory.

N = images, K = classes, S = scales, C = channels of one feature.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_given
from vggfeat.datasets.files import walk
from vggfeat.datasets.folder import left_out_notes
from vggfeat.descriptor_stream import Paths, path_list
from vggfeat.descriptors import fuse
from vggfeat.errors import ConfigError, ImageError, WeightsError
from vggfeat.forward.rerun import find_net, rerun_net
from vggfeat.forward.runner import BatchRunner, Row
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request
from vggfeat.images.image_bytes import shown
from vggfeat.images.pool import Decoder
from vggfeat.protocols.apply import Predictions, PredictionSettings, SavedModel, check_made
from vggfeat.runtime.devices import default_workers
from vggfeat.samples import DataSet, Task
from vggfeat.weights import Backbone, load_backbone

CHUNK = 64
"""Images that are in memory at a time."""


def list_images(places: Paths) -> tuple[list[Path], tuple[str, ...]]:
    """Return images in the order given, each once, and notes on what else is in folders.

    A folder gives all images below it, sorted, and what it has besides is named as by `vggfeat.datasets.folder.read`.

    Parameters
    ----------
    places : path, or sequence of paths
        Files and folders.

    Raises
    ------
    ConfigError
        If there are none.
    DatasetError
        If a folder can't be read.
    """
    files: list[Path] = []
    besides: tuple[list[str], ...] = ([], [], [], [])
    for place in map(Path, path_list(places)):
        if not place.is_dir():
            files.append(place)
            continue
        found = walk(place)
        files += [place / name for name in found.images]
        empty = [] if found.images else [""]
        for names, more in zip(besides, (found.others, empty, found.repeated, found.unnameable), strict=True):
            names += [str(place / name) for name in more]
    notes = left_out_notes(*besides)
    if not files:
        reasons = (note.removesuffix(".") for note in notes)
        raise ConfigError(". ".join(("images: expected files, or folders with some, found none", *reasons)))
    return list(dict.fromkeys(files)), notes


def nets_of(saved: SavedModel, weights: Paths = ()) -> list[Backbone]:
    """Load the nets that a model's features come from, in its order.

    Parameters
    ----------
    saved : SavedModel
    weights : str or path, or sequence of them
        Nets as for `vggfeat extract --weights`, in any order; those that are not given are searched for by SHA-256, see
        `vggfeat.forward.rerun.find_net`.

    Raises
    ------
    WeightsError
        If one is not found, or one that is given is none of the model's.
    """
    check_given("saved", saved, SavedModel, "what vggfeat.protocols.open_model makes of a model's file")
    given = {net.sha256: net for net in map(load_backbone, path_list(weights))}
    made = [one["provenance"] for one in saved.recipe["files"]]
    known = {one["weights_sha256"]: f"{one.get('weights')} (net {one.get('net')})" for one in made}
    for digest, net in given.items():
        if digest not in known:
            names = " or ".join(known.values())[:200]
            raise WeightsError(
                f"{net.source}: expected the weights that {saved.path} was made with, {names}, found another net "
                f"({net.model.config})"
            )
    return [given.get(one["weights_sha256"]) or find_net(str(saved.path), one) for one in made]


def predict_images(
    saved: SavedModel,
    files: Sequence[str | os.PathLike[str]],
    nets: Sequence[Backbone],
    settings: PredictionSettings = PredictionSettings(),  # noqa: B008  frozen
    *,
    device: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Extract the features of images as those that a model was trained on, and score them.

    Parameters
    ----------
    saved : SavedModel
    files : sequence of paths
        Of `list_images`, each once. One that can't be read has a reason, and the others go on.
    nets : sequence of Backbone
        Of `nets_of`.
    settings : PredictionSettings, optional
    device, workers
        As those of `vggfeat.RunSettings`.
    progress : callable, optional
        Called with the images done and all of them.

    Returns
    -------
    Predictions
        Its ids are the files as they were given.

    Raises
    ------
    ConfigError
        If the model needs boxes, which an image alone doesn't have.
    FitError
        If the features would be made in another way than the model's, or probabilities are asked for that it lacks.
    DatasetError
        If a file is given twice.
    """
    check_given("saved", saved, SavedModel, "what vggfeat.protocols.open_model makes of a model's file")
    if any(list(one["regions"]) != ["image"] for one in saved.recipe["files"]):
        raise ConfigError(
            f"{saved.path}: expected a model of whole images, found one of boxes, which an image alone has not; list "
            "images and boxes in a manifest, and use extract and svm --apply"
        )
    workers = default_workers() if workers is None else workers
    streams = [_Net.of(saved, number, net, device) for number, net in enumerate(nets)]
    ids = tuple(os.fspath(path) for path in files)
    images = DataSet(
        name="images", task=Task.UNLABELLED, classes=(), ids=ids, paths=ids, labels=np.zeros((len(ids), 0), np.int8)
    )
    # What can be refused is refused before the first image.
    saved.predict(images, np.zeros((len(ids), len(saved.about["classes"]))), {}, settings)
    scores, reasons = _score(saved, files, streams, workers, progress)
    notes = [note for stream in streams for note in stream.notes]
    return saved.predict(images, scores, dict(zip(ids, reasons, strict=True)), settings, notes)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Net:
    """One net of a model, ready for images."""

    runner: BatchRunner
    decode: DecodeSettings
    notes: tuple[str, ...]

    @classmethod
    def of(cls, saved: SavedModel, number: int, net: Backbone, device: str | None) -> "_Net":
        made = saved.recipe["files"][number]
        runner, decode = rerun_net(str(saved.path), made["provenance"], made["scales"], net, device)
        settings = runner.settings
        same = {**net.describe(), **settings.describe(), "sides": list(runner.sides)}
        check_made(net.source, made, same, list(settings.scales), runner.head.channels)
        theirs = made["provenance"].get("precision")
        note = f"Images were computed in {settings.precision}, the model's features in {theirs}."
        return cls(runner=runner, decode=decode, notes=(note,) * (settings.precision != theirs))

    def features(self, images: Iterator[DecodedImage | ImageError]) -> tuple[NDArray[np.float32], list[Row]]:
        """Return the features (n, S, 1, C) of some images, zeros where they failed, and what became of them."""
        rows = self.runner.rows(images)
        features = np.zeros((len(rows), len(self.runner.sides), 1, self.runner.head.channels), dtype=np.float32)
        for place, row in enumerate(rows):
            if row.features is not None:
                features[place] = row.features
        return features, rows


def _score(
    saved: SavedModel,
    files: Sequence[str | os.PathLike[str]],
    nets: Sequence[_Net],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[NDArray[np.float64], list[str]]:
    """Return scores (N, K), -inf where an image failed, and N reasons, empty where none did."""
    requests = [Request(os.path.abspath(path), (None,)) for path in files]
    scores, reasons = np.full((len(files), len(saved.about["classes"])), -np.inf), [""] * len(files)
    with ExitStack() as stack:
        decoders = [stack.enter_context(Decoder(workers, net.decode)) for net in nets]
        streams = [decoder.stream(requests) for decoder in decoders]
        for start in range(0, len(files), CHUNK):
            parts = []
            for net, stream in zip(nets, streams, strict=True):
                part, rows = net.features(islice(stream, CHUNK))
                parts.append(part)
                for place, row in enumerate(rows, start=start):
                    if row.failure and not reasons[place]:
                        reasons[place] = str(row.failure.without(shown(requests[place].name)))
            end = start + len(parts[0])
            ok = np.array([not reason for reason in reasons[start:end]])
            descriptors = fuse(parts, saved.recipe["join"], saved.recipe["normalisation"])
            scores[start:end][ok] = saved.model.scores(descriptors)[ok]
            if progress is not None:
                progress(end, len(files))
    return scores, reasons
