"""Statistics of a list of images: its colours, and which of its images and classes can't be read."""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import convert_fields
from vggfeat.errors import ImageError, StoreError, TrainingError
from vggfeat.images.decode import Request
from vggfeat.images.pool import Decoder
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors, make_folders
from vggfeat.samples import LabelledImages
from vggfeat.training.crops import EpochOrder
from vggfeat.wording import listed

MOST_UNREADABLE = 0.01
"""Share of images that may be unreadable before training stops."""
LEAST_SEEN = 1000
"""The share is taken of so many where fewer have been seen: ten images may always be unreadable."""
SHOWN_CLASSES = 10
"""Classes that a sentence names."""


class Unreadable(NamedTuple):
    """An image that was left out."""

    path: str
    """Path of the image, as in `LabelledImages.paths`."""
    reason: str
    """"reason: message" as the decoder found it, without the path."""


def unreadable_image(path: str, error: ImageError) -> Unreadable:
    """Return what is reported of an image that was left out; `path` as in `LabelledImages.paths`."""
    message = str(error)
    # The message begins with the full path, which is reported already, and which is another on every machine.
    return Unreadable(path, f"{error.reason}: {message.partition(f'{path}: ')[2] or message}")


def lost_classes(images: LabelledImages, unreadable: Collection[int]) -> list[str]:
    """Return the names of the classes of which no image is left without those of some rows."""
    of_class = partial(np.bincount, minlength=len(images.classes))
    left = of_class(images.targets) - of_class(images.targets[sorted(unreadable)])
    return [images.classes[k] for k in np.flatnonzero((left == 0) & (of_class(images.targets) > 0))]


def say_lost(classes: Sequence[str]) -> str:
    """Say of which classes no image that can be read is left; nothing if there are none."""
    return f"no image that can be read is left of {listed(classes, SHOWN_CLASSES)}" if classes else ""


def check_readable(
    where: str, seen: int, unreadable: int, first: Unreadable | None, lost: Callable[[], Sequence[str]] = tuple
) -> None:
    """Raise TrainingError if more than 1 % of the images seen, and more than ten, can't be read.

    The message names the first, and the classes that are `lost` with them.
    """
    if first is not None and unreadable > MOST_UNREADABLE * max(seen, LEAST_SEEN):
        raise TrainingError(
            f"{where}: expected at most {MOST_UNREADABLE:.0%} of the images to be unreadable, found {unreadable} of "
            f"{seen}, the first is {first.path} ({first.reason}){'; '.join(['', *filter(None, [say_lost(lost())])])}; "
            "mend or remove them"
        )


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
    """Seed of the sample."""

    def __post_init__(self) -> None:
        convert_fields(self)


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

    Raises StoreError if it can't be read.
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
