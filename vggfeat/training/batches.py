"""Batches for training and validation: drawn, decoded and cut in the background, resampled on the device.

n = images of a batch that are this process's share, C = side of the crop.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from itertools import count, islice, tee
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vggfeat.errors import ImageError, TrainingError
from vggfeat.images.decode import DecodedImage, Request
from vggfeat.images.pool import Decoder
from vggfeat.runtime.distributed import share
from vggfeat.samples import LabelledImages
from vggfeat.training.crops import GROUP_BYTES, Crops, Group, group, place_crops, resample
from vggfeat.training.labels import ClassLabels, Labels
from vggfeat.training.prefetch import Ahead
from vggfeat.training.sampling import CropSettings, Draws, Order, centred, draw

MOST_UNREADABLE = 0.01
"""Share of images that may be unreadable before training stops."""
LEAST_SEEN = 1000
"""The share is taken of so many where fewer have been seen: ten images may always be unreadable."""


class Unreadable(NamedTuple):
    """An image that was passed over."""

    path: str
    """As in `LabelledImages.paths`."""
    reason: str
    """"reason: message" as the decoder found it, without the path."""


class Batch(NamedTuple):
    """One process's share of what one step sees."""

    step: int
    """Number of the batch, from 0; in training the number of updates before it."""
    images: Tensor
    """(n, 3, C, C) float32 on the device, in channels-last order in memory: RGB, 0 to 255, plus the colour shift, minus
    the mean pixel. All zeros where the target is `NO_TARGET`."""
    targets: Tensor
    """On the device: (n,) int64 numbers of classes, or `NO_TARGET`, unless other `Labels` were given."""
    waited: float
    """Seconds that the taker waited for it, because decoding was behind."""


class _Work(NamedTuple):
    step: int
    rows: NDArray[np.int64]
    draws: Draws


class _Prepared(NamedTuple):
    step: int
    targets: Tensor
    shift: Tensor
    groups: list[Group]
    images: Tensor | None


class _Batches:
    """What training and validation share: an iterator of `Batch`, used in a `with` statement or ended by `close`."""

    def __init__(
        self, images: LabelledImages, plan: Iterator[_Work], *, side: int, reduced: bool, mean: ArrayLike,
        colours: ArrayLike | None, device: str | torch.device, decoder: Decoder, ahead: int, labels: Labels | None,
    ) -> None:  # fmt: skip
        self._labels = labels or ClassLabels(images.targets)
        self._images, self._side, self._reduced = images, side, reduced
        self._mean = np.asarray(mean, dtype=np.float64)
        self._colours = np.zeros((3, 3)) if colours is None else np.asarray(colours, dtype=np.float64)
        self._device, self._decoder = torch.device(device), decoder
        self._named: dict[int, Unreadable] = {}
        self.seen = self.passed_over = 0
        self._ahead = Ahead(self._prepare(plan), ahead)

    @property
    def unreadable(self) -> list[Unreadable]:
        """Images that could not be read so far, each once, in the order of their rows."""
        return [found for _, found in sorted(self._named.copy().items())]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the work in the background; the decoder stays open."""
        self._ahead.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        prepared = next(self._ahead)
        waited = time.perf_counter() - start
        images = self._finished(prepared) if prepared.images is None else prepared.images
        return Batch(prepared.step, images, self._moved(prepared.targets), waited)

    def _prepare(self, plan: Iterator[_Work]) -> Generator[_Prepared, None, None]:
        drawn, works = tee(plan)
        # One stream for all batches, so that the decoder does not run dry between two.
        answers = self._decoder.stream(request for work in drawn for request in self._requests(work))
        for work in works:
            yield self._prepared(work, list(islice(answers, len(work.rows))))

    def _requests(self, work: _Work) -> Iterator[Request]:
        for row, scale in zip(work.rows.tolist(), work.draws.scale.tolist(), strict=True):
            file, span = self._images.place(row)
            yield Request(file, (None,), span, scale if self._reduced else None)

    def _prepared(self, work: _Work, answers: list[DecodedImage | ImageError]) -> _Prepared:
        for row, answer in zip(work.rows.tolist(), answers, strict=True):
            if isinstance(answer, ImageError):
                self._pass_over(row, answer)
        self.seen += len(answers)
        first = next(iter(self._named.values()), None)
        check_readable(str(self._images.root), self.seen, self.passed_over, first)
        good = np.flatnonzero([isinstance(answer, DecodedImage) for answer in answers])
        images = [answer for answer in answers if isinstance(answer, DecodedImage)]
        crops = place_crops(work.draws.part(good), _sizes(one.regions[0].shape for one in images), self._side)
        targets = self._labels.unreadable(len(answers))
        targets[good] = self._labels.of(work.rows[good], _sizes(one.size for one in images), crops)
        shift = work.draws.alphas @ self._colours.T - self._mean
        prepared = _Prepared(
            step=work.step,
            targets=self._pinned(torch.from_numpy(targets)),
            shift=self._pinned(torch.from_numpy(shift).float()),
            groups=self._grouped([one.regions[0] for one in images], good, crops),
            images=None,
        )
        # On the CPU resampling is done ahead as well; a GPU gets it in the order of its steps.
        return prepared if self._cuda else prepared._replace(groups=[], images=self._finished(prepared))

    def _grouped(self, images: list[NDArray[np.uint8]], numbers: NDArray[np.int64], crops: Crops) -> list[Group]:
        # On a CPU one image at a time is fastest, because it stays in the cache.
        groups = group(images, crops, most=GROUP_BYTES if self._cuda else 1)
        in_batch = torch.from_numpy(numbers)
        return [one._replace(rows=in_batch[one.rows]).each(self._pinned) for one in groups]

    def _finished(self, prepared: _Prepared) -> Tensor:
        shape = (len(prepared.targets), 3, self._side, self._side)
        images = torch.empty(shape, device=self._device, memory_format=torch.channels_last).zero_()
        shift = self._moved(prepared.shift)
        for one in prepared.groups:
            there = one.each(self._moved)
            images[there.rows] = resample(there) + shift[there.rows][:, :, None, None]
        return images

    @property
    def _cuda(self) -> bool:
        return self._device.type == "cuda"

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._cuda else tensor

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)

    def _pass_over(self, row: int, error: ImageError) -> None:
        self.passed_over += 1
        self._named.setdefault(row, named(self._images.paths[row], error))


def _sizes(shapes: Iterable[tuple[int, ...]]) -> NDArray[np.int64]:
    return np.array([shape[:2] for shape in shapes], dtype=np.int64).reshape(-1, 2)


def named(path: str, error: ImageError) -> Unreadable:
    """Return what is told of an image that was passed over; `path` as in `LabelledImages.paths`."""
    message = str(error)
    # The message begins with the whole path, which is said already, and which is another on every machine.
    return Unreadable(path, f"{error.reason}: {message.partition(f'{path}: ')[2] or message}")


def check_readable(where: str, seen: int, passed_over: int, first: Unreadable | None) -> None:
    """Check that few enough images were passed over.

    Raises
    ------
    TrainingError
        If it is more than 1 % of those seen, and more than ten; the message names the first.
    """
    if first is not None and passed_over > MOST_UNREADABLE * max(seen, LEAST_SEEN):
        raise TrainingError(
            f"{where}: expected at most {MOST_UNREADABLE:.0%} of the images to be unreadable, found {passed_over} of "
            f"{seen}, the first is {first.path} ({first.reason}); mend or remove them"
        )


class TrainingBatches(_Batches):
    """Endless batches of random crops, in a new order in every epoch.

    What a batch holds depends on the images, the settings, the seed and the step alone, not on the number of
    processes or workers, nor on where the sequence starts. Use it in a `with` statement; while it lives, decoding goes
    on in the background.

    Parameters
    ----------
    images : LabelledImages
    crops : CropSettings
    mean : array-like (3,)
        Mean RGB pixel, 0 to 255, that is subtracted.
    colours : array-like (3, 3), optional
        From `augmentation.colour_axes`; None for no colour shift.
    seed : int
        Of the run.
    batch : int
        Images of a step, those of all processes together (VGG paper, Sect. 3.1: 256).
    rank, world : int
        Number of this process, and how many there are: it gets a contiguous part of each batch.
    first_step : int
        Steps that were done before.
    device : str or torch.device
        Where images are resampled and handed out.
    decoder : Decoder
        May serve others at the same time; close it after the batches.
    ahead : int
        Batches that may wait.
    labels : Labels, optional
        None for the classes of the list.

    Raises
    ------
    TrainingError
        While iterating, if more than 1 % of the images seen, and more than ten, can't be read.
    """

    def __init__(
        self, images: LabelledImages, crops: CropSettings, *, mean: ArrayLike, colours: ArrayLike | None, seed: int,
        batch: int, rank: int = 0, world: int = 1, first_step: int = 0, device: str | torch.device = "cpu",
        decoder: Decoder, ahead: int = 2, labels: Labels | None = None,
    ) -> None:  # fmt: skip
        order, part = Order(len(images), seed), share(batch, rank, world)

        def plan() -> Iterator[_Work]:
            for step in count(first_step):
                epochs, rows = order.take(step * batch + part.start, step * batch + part.stop)
                yield _Work(step, rows, draw(crops, seed, epochs, rows))

        super().__init__(
            images, plan(), side=crops.side, reduced=crops.reduced, mean=mean, colours=colours, device=device,
            decoder=decoder, ahead=ahead, labels=labels,
        )  # fmt: skip


class ValidationBatches(_Batches):
    """One pass over this process's share of a list: centre crops at one scale, in the order of the list.

    Parameters
    ----------
    images : LabelledImages
    scale : int
        Q, the smallest side in pixels after rescaling.
    side : int
        C.
    batch : int
        Images in a batch of this process; the last may be smaller.
    reduced : bool
        As in `CropSettings`.
    mean, rank, world, device, decoder, ahead, labels
        As for `TrainingBatches`; the share is a contiguous part of the whole list.
    """

    def __init__(
        self, images: LabelledImages, scale: int, *, side: int = 224, mean: ArrayLike, batch: int = 256,
        rank: int = 0, world: int = 1, reduced: bool = True, device: str | torch.device = "cpu", decoder: Decoder,
        ahead: int = 2, labels: Labels | None = None,
    ) -> None:  # fmt: skip
        rows = np.arange(len(images))[share(len(images), rank, world)]
        parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        self._count = len(parts)
        super().__init__(
            images, (_Work(step, part, centred(scale, len(part))) for step, part in enumerate(parts)), side=side,
            reduced=reduced, mean=mean, colours=None, device=device, decoder=decoder, ahead=ahead, labels=labels,
        )  # fmt: skip

    def __len__(self) -> int:
        return self._count
