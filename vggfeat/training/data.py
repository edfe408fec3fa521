"""Batches for training and validation: drawn, decoded and cut in the background, resampled on the device.

N = images of a list, n = images of a batch that are this process's share, C = side of the crop.
"""

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from itertools import count, islice, tee
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vggfeat.errors import ImageError
from vggfeat.images.decode import DecodedImage, Request
from vggfeat.images.pool import Decoder
from vggfeat.runtime.distributed import World, share
from vggfeat.samples import LabelledImages
from vggfeat.training.crops import (
    GROUP_BYTES,
    CropGroup,
    Crops,
    Draws,
    EpochOrder,
    centred,
    draw,
    group_crops,
    place_crops,
    resample,
)
from vggfeat.training.recipe import Recipe
from vggfeat.training.statistics import Unreadable, check_readable, lost_classes, unreadable_image

NO_TARGET = -100
"""Target of an image that counts nowhere, because it can't be read."""
_CLOSING_SECONDS = 5.0
T = TypeVar("T")


class Labels(Protocol):
    """What is to be learnt of images, given their crops."""

    def unreadable(self, count: int) -> NDArray[Any]:
        """Return the targets, (count, ...), of as many images that can't be read."""

    def of(
        self, rows: NDArray[np.int64], sizes: NDArray[np.int64], orientations: NDArray[np.int64], crops: Crops
    ) -> NDArray[Any]:
        """Return the targets, (n, ...), of crops of the images of n rows.

        `rows` (n,): of the list.
        `sizes` (n, 2): height and width of the upright images before any reduction.
        `orientations` (n,): by which EXIF orientation each was turned.
        `crops`: of the decoded images.
        """


class ClassLabels:
    """The class of each image, whatever its crop; `targets` (N,) are those of `LabelledImages`."""

    def __init__(self, targets: NDArray[np.int64]) -> None:
        self._targets = targets

    def unreadable(self, count: int) -> NDArray[np.int64]:
        """Return (count,) times `NO_TARGET`."""
        return np.full(count, NO_TARGET)

    def of(
        self, rows: NDArray[np.int64], sizes: NDArray[np.int64], orientations: NDArray[np.int64], crops: Crops
    ) -> NDArray[np.int64]:
        """Return (n,) numbers of classes."""
        return self._targets[rows]


class LabelledBatch(NamedTuple):
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


class Prefetch(Generic[T]):
    """An iterator over what a generator yields, run by a thread up to `depth` items ahead. End it with `close`.

    An error of the generator is raised where its items are taken.
    """

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self._items, self._depth = items, depth
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = self._over = False
        self._error: BaseException | None = None
        # A daemon, so that a program which forgets to close can end.
        self._thread = threading.Thread(target=self._run, name="vggfeat-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._over or self._closed)
            if self._ready and not self._closed:
                self._changed.notify_all()
                return self._ready.popleft()
        if self._error is not None and not self._closed:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Stop the work: the item in the making is finished and dropped. May be called twice, also half-way."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(_CLOSING_SECONDS)

    def _run(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                    if self._closed:
                        return
                    self._ready.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # It belongs to the thread that waits for the items.
            self._error = error
        finally:
            self._items.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()


class _BatchPlan(NamedTuple):
    step: int
    rows: NDArray[np.int64]
    """(n,) of the list."""
    draws: Draws


class _Prepared(NamedTuple):
    step: int
    targets: Tensor
    shift: Tensor
    """(n, 3) added to every pixel."""
    groups: list[CropGroup]
    images: Tensor | None
    """As in `LabelledBatch`; None where a GPU is still to resample the groups."""


class BatchStream:
    """An iterator of `LabelledBatch`, used in a `with` statement: decoding goes on in the background until its end.

    `recipe`: for the side of the crop, and whether JPEGs are decoded at reduced size.
    `mean` (3,): mean RGB pixel, 0 to 255, that is subtracted.
    `colours` (3, 3): from `crops.colour_axes`; None for no colour shift.
    `decoder`: may serve others at the same time; close it after the batches.
    `device`: where images are resampled and handed out.
    `labels`: None for the classes of the list.
    `depth`: batches that may wait.
    """

    def __init__(
        self, images: LabelledImages, plans: Iterator[_BatchPlan], recipe: Recipe, *, mean: ArrayLike,
        colours: ArrayLike | None, decoder: Decoder, device: torch.device, labels: Labels | None, depth: int = 2,
    ) -> None:  # fmt: skip
        self._labels = labels or ClassLabels(images.targets)
        self._images, self._side, self._reduced = images, recipe.crop, recipe.reduced
        self._mean = np.asarray(mean, dtype=np.float64)
        self._colours = np.zeros((3, 3)) if colours is None else np.asarray(colours, dtype=np.float64)
        self._device, self._decoder = device, decoder
        self._cuda = device.type == "cuda"
        self._unreadable: dict[int, Unreadable] = {}
        self.seen = self.unread = 0
        self._prefetch = Prefetch(self._prepare_all(plans), depth)

    @property
    def unreadable(self) -> list[Unreadable]:
        """Images that could not be read so far, each once, in the order of their rows."""
        return [found for _, found in sorted(self._unreadable.copy().items())]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the work in the background; the decoder stays open."""
        self._prefetch.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LabelledBatch:
        start = time.perf_counter()
        prepared = next(self._prefetch)
        waited = time.perf_counter() - start
        images = self._resample(prepared) if prepared.images is None else prepared.images
        return LabelledBatch(prepared.step, images, prepared.targets.to(self._device, non_blocking=True), waited)

    def _prepare_all(self, plans: Iterator[_BatchPlan]) -> Generator[_Prepared, None, None]:
        asked, plans = tee(plans)
        # One stream for all batches, so that the decoder does not run dry between two.
        answers = self._decoder.stream(request for plan in asked for request in self._requests(plan))
        for plan in plans:
            yield self._prepare(plan, list(islice(answers, len(plan.rows))))

    def _requests(self, plan: _BatchPlan) -> Iterator[Request]:
        for row, scale in zip(plan.rows.tolist(), plan.draws.scale.tolist(), strict=True):
            file, span = self._images.place(row)
            yield Request(file, (None,), span, scale if self._reduced else None)

    def _prepare(self, plan: _BatchPlan, answers: list[DecodedImage | ImageError]) -> _Prepared:
        self._note_unreadable(plan, answers)
        good = np.flatnonzero([isinstance(answer, DecodedImage) for answer in answers])
        decoded = [answer for answer in answers if isinstance(answer, DecodedImage)]
        pixels = [one.regions[0] for one in decoded]
        crops = place_crops(plan.draws.part(good), _sizes(one.shape for one in pixels), self._side)
        targets = self._labels.unreadable(len(answers))
        turned = np.array([one.orientation for one in decoded], dtype=np.int64)
        targets[good] = self._labels.of(plan.rows[good], _sizes(one.size for one in decoded), turned, crops)
        shift = plan.draws.alphas @ self._colours.T - self._mean  # (n, 3)
        # On a CPU one image at a time is fastest, because it stays in the cache.
        groups = group_crops(pixels, crops, most=GROUP_BYTES if self._cuda else 1)
        in_batch = torch.from_numpy(good)
        prepared = _Prepared(
            plan.step,
            torch.from_numpy(targets),
            torch.from_numpy(shift).float(),
            [group._replace(rows=in_batch[group.rows]) for group in groups],
            None,
        )
        if self._cuda:  # It resamples in the order of its steps, when the batch is taken.
            return prepared._replace(
                targets=prepared.targets.pin_memory(),
                shift=prepared.shift.pin_memory(),
                groups=[group.pinned() for group in prepared.groups],
            )
        return prepared._replace(groups=[], images=self._resample(prepared))

    def _resample(self, prepared: _Prepared) -> Tensor:
        shape = (len(prepared.targets), 3, self._side, self._side)
        images = torch.empty(shape, device=self._device, memory_format=torch.channels_last).zero_()
        shift = prepared.shift.to(self._device, non_blocking=True)
        for group in prepared.groups:
            moved = group.to(self._device)
            images[moved.rows] = resample(moved) + shift[moved.rows][:, :, None, None]
        return images

    def _note_unreadable(self, plan: _BatchPlan, answers: list[DecodedImage | ImageError]) -> None:
        for row, answer in zip(plan.rows.tolist(), answers, strict=True):
            if isinstance(answer, ImageError):
                self.unread += 1
                self._unreadable.setdefault(row, unreadable_image(self._images.paths[row], answer))
        self.seen += len(answers)
        first, lost = next(iter(self._unreadable.values()), None), partial(lost_classes, self._images, self._unreadable)
        check_readable(str(self._images.root), self.seen, self.unread, first, lost)


def training_batches(
    images: LabelledImages, recipe: Recipe, *, mean: ArrayLike, colours: ArrayLike | None, decoder: Decoder,
    world: World | None = None, first_step: int = 0, labels: Labels | None = None, depth: int = 2,
) -> BatchStream:  # fmt: skip
    """Hand out endless batches of random crops, in a new order in every epoch.

    What a batch holds depends on the images, the recipe and the step alone, not on the number of processes or workers,
    nor on where the sequence starts (`first_step`, the updates done before). Each process of `world` gets a contiguous
    part of each batch. The other arguments are those of `BatchStream`.

    Raises TrainingError while iterating, if more than 1 % of the images seen, and more than ten, can't be read.
    """
    world = world or World()
    part, order = world.rows(recipe.batch), EpochOrder(len(images), recipe.seed)

    def plans() -> Iterator[_BatchPlan]:
        for step in count(first_step):
            epochs, rows = order.take(step * recipe.batch + part.start, step * recipe.batch + part.stop)
            yield _BatchPlan(step, rows, draw(recipe, epochs, rows))

    return BatchStream(
        images, plans(), recipe, mean=mean, colours=colours, decoder=decoder, device=world.device, labels=labels,
        depth=depth,
    )  # fmt: skip


def validation_batches(
    images: LabelledImages, recipe: Recipe, *, mean: ArrayLike, decoder: Decoder, world: World | None = None,
    labels: Labels | None = None,
) -> BatchStream:  # fmt: skip
    """Hand out this process's contiguous share of a list once: centre crops at the validation scale, in order."""
    world = world or World()
    size = max(1, recipe.batch // world.size)
    rows = np.arange(len(images))[share(len(images), world.rank, world.size)]
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    scale = recipe.validation_scale
    plans = (_BatchPlan(step, part, centred(scale, len(part))) for step, part in enumerate(parts))
    return BatchStream(
        images, plans, recipe, mean=mean, colours=None, decoder=decoder, device=world.device, labels=labels
    )


def _sizes(shapes: Iterable[tuple[int, ...]]) -> NDArray[np.int64]:
    return np.array([shape[:2] for shape in shapes], dtype=np.int64).reshape(-1, 2)
