"""Mean pixel and covariance of the colours of a training set, measured once and kept."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ImageError, TrainingError
from vggfeat.images.decode import Request
from vggfeat.images.pool import Decoder
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors
from vggfeat.samples import LabelledImages
from vggfeat.training.sampling import Order


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
    settings: StatisticsSettings | None = None,
    *,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PixelStatistics:
    """Measure the mean pixel and the covariance of the colours. Every image weighs the same, whatever its size.

    Parameters
    ----------
    images : LabelledImages
    decoder : Decoder
    settings : StatisticsSettings, optional
    cache : Path, optional
        Folder for the result, a JSON file named after the list and the settings; made if missing. One writer at a time.
    progress : callable, optional
        Called with the numbers of images done and of all.

    Raises
    ------
    TrainingError
        If no image can be read.
    StoreError
        If the cache can't be written.
    """
    settings = settings or StatisticsSettings()
    path = None if cache is None else cache / f"statistics-{_key(images, settings)}.json"
    if path is not None and (found := _load(path)) is not None:
        return found
    measured = _measure(images, decoder, settings, progress)
    if path is not None:
        _save(path, measured)
    return measured


def _measure(
    images: LabelledImages,
    decoder: Decoder,
    settings: StatisticsSettings,
    progress: Callable[[int, int], None] | None,
) -> PixelStatistics:
    total = min(settings.most, len(images))
    rows = np.sort(Order(len(images), settings.seed).take(0, total)[1])
    places = (images.place(row) for row in rows.tolist())
    answers = decoder.stream(Request(file, (None,), span, settings.side) for file, span in places)
    first, second, counted = np.zeros(3), np.zeros((3, 3)), 0
    for done, answer in enumerate(answers, start=1):
        if not isinstance(answer, ImageError):
            values = answer.regions[0].reshape(-1, 3).astype(np.float64)
            first += values.mean(axis=0)
            second += values.T @ values / len(values)
            counted += 1
        if progress is not None:
            progress(done, total)
    if not counted:
        raise TrainingError(f"{images.root}: expected images to take the mean pixel of, found none that can be read")
    mean = first / counted
    return PixelStatistics(mean, second / counted - np.outer(mean, mean), counted)


def _key(images: LabelledImages, settings: StatisticsSettings) -> str:
    text = json.dumps([images.fingerprint(), asdict(settings)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _load(path: Path) -> PixelStatistics | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        mean, covariance = np.array(kept["mean"], dtype=float), np.array(kept["covariance"], dtype=float)
        if mean.shape != (3,) or covariance.shape != (3, 3) or not np.isfinite(covariance).all():
            return None
        return PixelStatistics(mean, covariance, int(kept["images"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        # Missing or damaged: it is measured again.
        return None


def _save(path: Path, measured: PixelStatistics) -> None:
    kept = {
        "mean": measured.mean.tolist(),
        "covariance": measured.covariance.tolist(),
        "images": measured.images,
    }
    with disk_errors(path, "writing the pixel statistics", "free some space or choose another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        # What a killed run left.
        path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)
        with atomic_write(DISK, path) as sink:
            sink.write(json.dumps(kept, indent=1).encode())
