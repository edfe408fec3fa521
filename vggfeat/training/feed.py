"""What the loop learns from: batches, and the few facts that it needs about their images."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vggfeat.errors import ConfigError
from vggfeat.images.pool import Decoder
from vggfeat.runtime.distributed import World
from vggfeat.samples import ClassificationSet
from vggfeat.training.batches import Batch, TrainingBatches, ValidationBatches
from vggfeat.training.crops import colour_axes
from vggfeat.training.labels import Labels
from vggfeat.training.sampling import CropSettings
from vggfeat.training.settings import Recipe
from vggfeat.training.statistics import pixel_statistics


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
        """Return the mean RGB pixel, 0 to 255; `folder` may keep it. `progress` is told images done and in all."""

    def training(self, first_step: int) -> AbstractContextManager[Iterator[Batch]]:
        """Hand out endless batches, from that of `first_step` on."""

    def validation(self) -> AbstractContextManager[Iterator[Batch]]:
        """Hand out all validation images once."""

    def unreadable(self) -> list[tuple[str, str]]:
        """List (path, reason) of what this process could not read so far."""


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
        self._live: dict[str, TrainingBatches | ValidationBatches] = {}
        self._unreadable: dict[str, str] = {}

    def prepare(self, folder: Path, progress: Callable[[int, int], None]) -> tuple[float, ...]:
        """Measure the mean pixel and the colours in the first process, or read what an earlier run has measured."""

        def measure() -> tuple[list[float], list[list[float]]]:
            measured = pixel_statistics(self._data.train, self._decoder, cache=folder, progress=progress)
            return measured.mean.tolist(), measured.covariance.tolist()

        mean, covariance = self._world.on_main(measure)
        self._mean, self._colours = np.array(mean), colour_axes(np.array(covariance))
        return tuple(mean)

    def training(self, first_step: int) -> TrainingBatches:
        """Hand out random crops."""
        recipe, world = self._recipe, self._world
        crops = CropSettings(
            scale=recipe.scale,
            side=recipe.crop,
            mirror=recipe.mirror,
            colour=recipe.colour_shift,
            reduced=recipe.reduced,
        )
        batches = TrainingBatches(
            self._data.train,
            crops,
            mean=self._mean,
            colours=self._colours,
            seed=recipe.seed,
            batch=recipe.batch,
            rank=world.rank,
            world=world.size,
            first_step=first_step,
            device=world.device,
            decoder=self._decoder,
            labels=self._labels[0],
        )
        self._watch("training", batches)
        return batches

    def validation(self) -> ValidationBatches:
        """Hand out centre crops at the validation scale."""
        recipe, world = self._recipe, self._world
        batches = ValidationBatches(
            self._data.val,
            recipe.validation_scale,
            side=recipe.crop,
            mean=self._mean,
            batch=max(1, recipe.batch // world.size),
            rank=world.rank,
            world=world.size,
            reduced=recipe.reduced,
            device=world.device,
            decoder=self._decoder,
            labels=self._labels[1],
        )
        self._watch("validation", batches)
        return batches

    def unreadable(self) -> list[tuple[str, str]]:
        """List each image once."""
        for batches in self._live.values():
            self._unreadable.update((one.path, one.reason) for one in batches.unreadable)
        return sorted(self._unreadable.items())

    def _watch(self, name: str, batches: TrainingBatches | ValidationBatches) -> None:
        self.unreadable()  # Of the batches that these take the place of.
        self._live[name] = batches
