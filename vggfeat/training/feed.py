"""What the training loop learns from: batches, the few facts that it needs about their images, and their colours."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, ImageError, StoreError, TrainingError
from vggfeat.images.decode import Request
from vggfeat.images.pool import Decoder
from vggfeat.runtime.distributed import World
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors, make_folders
from vggfeat.samples import ClassificationSet, LabelledImages
from vggfeat.training.crops import EpochOrder, colour_axes
from vggfeat.training.data import BatchStream, LabelledBatch, Labels, lost_classes, training_batches, validation_batches
from vggfeat.training.recipe import Recipe


class Feed(Protocol):
    """Batches of this process's share, and facts about them."""

    classes: tuple[str, ...]
    """In the order of the net's outputs."""
    images: int
    """In the training set."""
    validation_images: int
    fingerprint: dict[str, Any]
    """What tells this data set from another, ready for JSON."""

    def prepare(self, folder: Path, progress: Callable[[int, int], None]) -> tuple[float, ...]:
        """Return the mean RGB pixel, 0 to 255; `folder` may keep it. `progress` is given images done and in all."""

    def training(self, first_step: int) -> AbstractContextManager[Iterator[LabelledBatch]]:
        """Hand out endless batches, from that of `first_step` on."""

    def validation(self) -> AbstractContextManager[Iterator[LabelledBatch]]:
        """Hand out all validation images once."""

    def unreadable(self) -> list[tuple[str, str]]:
        """List (path, reason) of what this process could not read so far."""

    def lost(self, unreadable: Collection[str]) -> list[str]:
        """Name the classes, of training or of validation, of which no image is left without these paths."""


class ImageFeed:
    """A `Feed` of image files.

    Parameters
    ----------
    data : ClassificationSet
    recipe : Recipe
    world : World
    decoder : Decoder
    labels : (Labels, Labels), optional
        Of training and of validation images; None for their classes.
    """

    def __init__(
        self,
        data: ClassificationSet,
        recipe: Recipe,
        world: World,
        decoder: Decoder,
        labels: tuple[Labels, Labels] | None = None,
    ) -> None:
        if recipe.batch < world.size:
            raise ConfigError(f"batch: expected an image for each of {world.size} processes, found {recipe.batch}")
        self.classes, self.images, self.validation_images = data.classes, len(data.train), len(data.val)
        self.fingerprint = {"train": data.train.fingerprint(), "validation": data.val.fingerprint()}
        self._data, self._recipe, self._world, self._decoder = data, recipe, world, decoder
        self._labels = labels or (None, None)
        self._mean = self._colours = np.zeros(0)
        self._streams: dict[str, BatchStream] = {}
        self._unreadable: dict[str, str] = {}

    def prepare(self, folder: Path, progress: Callable[[int, int], None]) -> tuple[float, ...]:
        """Measure the mean pixel and the colours in the first process, or read what an earlier run has measured."""

        def measure() -> tuple[list[float], list[list[float]]]:
            measured = pixel_statistics(self._data.train, self._decoder, cache=folder, progress=progress)
            return measured.mean.tolist(), measured.covariance.tolist()

        mean, covariance = self._world.on_main(measure)
        self._mean, self._colours = np.array(mean), colour_axes(np.array(covariance))
        return tuple(mean)

    def training(self, first_step: int) -> BatchStream:
        """Hand out random crops."""
        self._streams["training"] = training_batches(
            self._data.train,
            self._recipe,
            mean=self._mean,
            colours=self._colours,
            decoder=self._decoder,
            world=self._world,
            first_step=first_step,
            labels=self._labels[0],
        )
        return self._streams["training"]

    def validation(self) -> BatchStream:
        """Hand out centre crops at the validation scale."""
        self.unreadable()  # Collect what the validation before has found.
        self._streams["validation"] = validation_batches(
            self._data.val,
            self._recipe,
            mean=self._mean,
            decoder=self._decoder,
            world=self._world,
            labels=self._labels[1],
        )
        return self._streams["validation"]

    def unreadable(self) -> list[tuple[str, str]]:
        """List each image once."""
        for batches in self._streams.values():
            self._unreadable.update(batches.unreadable)
        return sorted(self._unreadable.items())

    def lost(self, unreadable: Collection[str]) -> list[str]:
        """Name them with the list that they are lost in."""
        found = []
        for name, images in (("training", self._data.train), ("validation", self._data.val)):
            rows = [row for row, path in enumerate(images.paths) if path in unreadable]
            found += [f"{cls} ({name})" for cls in lost_classes(images, rows)]
        return found


@dataclass(frozen=True, kw_only=True)
class StatisticsSettings:
    """Which pixels are counted."""

    most: int = 20_000
    """Images at most, drawn from the list without repetition. With so many, the mean of the paper's training set is
    met to about 0.3 of 255, and biases take up the rest."""
    side: int = 256
    """S. Images that are much larger are reduced as for training; smaller ones would have a smaller covariance,
    because averaging over neighbours takes contrast away."""
    seed: int = 0
    """Of the drawing."""


class PixelStatistics(NamedTuple):
    """What the colours of the training images are like."""

    mean: NDArray[np.float64]
    """(3,) RGB, 0 to 255 (VGG paper, Sect. 2.1)."""
    covariance: NDArray[np.float64]
    """(3, 3) of RGB values from 0 to 255, over all pixels (Krizhevsky et al. 2012, Sect. 4.1)."""
    images: int
    """Images that were counted."""


def pixel_statistics(
    images: LabelledImages,
    decoder: Decoder,
    settings: StatisticsSettings = StatisticsSettings(),
    *,
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PixelStatistics:
    """Measure the mean pixel and the covariance of the colours. Every image weighs the same, whatever its size.

    Parameters
    ----------
    images : LabelledImages
    decoder : Decoder
    settings : StatisticsSettings
    cache : Path
        Folder for the result, a JSON file named after the list and the settings; made if missing. One writer at a time.
    progress : callable
        Called with the numbers of images done and of all.

    Raises
    ------
    TrainingError
        If no image can be read.
    StoreError
        If the cache can't be written.
    """
    key = hashlib.sha256(json.dumps([images.fingerprint(), asdict(settings)]).encode()).hexdigest()[:16]
    path = cache / f"statistics-{key}.json"
    found = read_statistics(path)
    if found is None:
        found = _measure(images, decoder, settings, progress)
        save_statistics(path, found)
    return found


def _measure(
    images: LabelledImages, decoder: Decoder, settings: StatisticsSettings, progress: Callable[[int, int], None]
) -> PixelStatistics:
    total = min(settings.most, len(images))
    rows = np.sort(EpochOrder(len(images), settings.seed).take(0, total)[1])
    places = (images.place(row) for row in rows.tolist())
    answers = decoder.stream(Request(file, (None,), span, settings.side) for file, span in places)
    first, second, counted = np.zeros(3), np.zeros((3, 3)), 0
    for done, answer in enumerate(answers, start=1):
        if not isinstance(answer, ImageError):
            values = answer.regions[0].reshape(-1, 3).astype(np.float64)  # (pixels, 3)
            first += values.mean(axis=0)
            second += values.T @ values / len(values)
            counted += 1
        progress(done, total)
    if not counted:
        raise TrainingError(f"{images.root}: expected images to take the mean pixel of, found none that can be read")
    mean = first / counted
    return PixelStatistics(mean, second / counted - np.outer(mean, mean), counted)


def read_statistics(path: Path) -> PixelStatistics | None:
    """Return what an earlier run has measured; None if the file is missing or damaged: it is measured again.

    Raises
    ------
    StoreError
        If it can't be read.
    """
    try:
        with disk_errors(path, "reading the pixel statistics", "make it readable, or remove it"):
            kept = json.loads(path.read_bytes())
        if kept.pop("sha256") != _digest(kept):
            return None
        mean, covariance = np.array(kept["mean"], dtype=float), np.array(kept["covariance"], dtype=float)
        if mean.shape != (3,) or covariance.shape != (3, 3) or not np.isfinite(covariance).all():
            return None
        return PixelStatistics(mean, covariance, int(kept["images"]))
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _digest(kept: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def save_statistics(path: Path, measured: PixelStatistics) -> None:
    """Write what `read_statistics` reads; StoreError if the disk refuses."""
    kept: dict[str, Any] = {
        "mean": measured.mean.tolist(),
        "covariance": measured.covariance.tolist(),
        "images": measured.images,
    }
    with disk_errors(path, "writing the pixel statistics", "free some space or choose another folder"):
        make_folders(DISK, path.parent)
        # What a killed run left.
        path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)
        with atomic_write(DISK, path) as sink:
            sink.write(json.dumps({**kept, "sha256": _digest(kept)}, indent=1).encode())
