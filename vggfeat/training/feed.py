"""What the trainer is fed with: the batches of image files that one process learns from and validates with."""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from vggfeat.errors import ConfigError
from vggfeat.images.pool import Decoder
from vggfeat.runtime.distributed import World
from vggfeat.samples import ClassificationSet
from vggfeat.training.crops import colour_axes
from vggfeat.training.data import BatchStream, Labels, training_batches, validation_batches
from vggfeat.training.recipe import Recipe
from vggfeat.training.statistics import lost_classes, pixel_statistics


class ImageFeed:
    """Batches of this process's share of image files, and facts about them.

    `classes` are in the order of the net's outputs, `fingerprint` is what tells this data set from another, ready for
    JSON. `labels` are those of training and of validation images, None for their classes. `mean` is the mean RGB pixel,
    0 to 255, of a net whose layers may not learn another; None to measure it.
    """

    def __init__(
        self,
        data: ClassificationSet,
        recipe: Recipe,
        world: World,
        decoder: Decoder,
        *,
        labels: tuple[Labels, Labels] | None = None,
        mean: tuple[float, ...] | None = None,
    ) -> None:
        if recipe.batch < world.size:
            raise ConfigError(f"batch: expected an image for each of {world.size} processes, found {recipe.batch}")
        self.classes, self.images, self.validation_images = data.classes, len(data.train), len(data.val)
        self.fingerprint = {"train": data.train.fingerprint(), "validation": data.val.fingerprint()}
        self._data, self._recipe, self._world, self._decoder = data, recipe, world, decoder
        self._labels, self._given_mean = labels or (None, None), mean
        self._mean = self._colours = np.zeros(0)
        self._streams: dict[str, BatchStream] = {}
        self._unreadable: dict[str, str] = {}

    def prepare(self, folder: Path, progress: Callable[[int, int], None]) -> tuple[float, ...]:
        """Return the mean RGB pixel, 0 to 255; the first process measures it and the colours, or an earlier run has.

        `folder` may keep them; `progress` is given images done and in all.
        """

        def measure() -> tuple[list[float], list[list[float]]]:
            measured = pixel_statistics(self._data.train, self._decoder, cache=folder, progress=progress)
            return measured.mean.tolist(), measured.covariance.tolist()

        measured_mean, covariance = self._world.on_main(measure)
        mean = measured_mean if self._given_mean is None else self._given_mean
        self._mean, self._colours = np.array(mean), colour_axes(np.array(covariance))
        return tuple(mean)

    def training(self, first_step: int) -> BatchStream:
        """Hand out endless batches of random crops, from that of `first_step` on."""
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
        """Hand out all validation images once: centre crops at the validation scale."""
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
        """List (path, reason) of what this process could not read so far, each image once."""
        for batches in self._streams.values():
            self._unreadable.update(batches.unreadable)
        return sorted(self._unreadable.items())

    def lost(self, unreadable: Collection[str]) -> list[str]:
        """Name the classes, and their list, of which no image is left without these paths."""
        found = []
        for name, images in (("training", self._data.train), ("validation", self._data.val)):
            rows = [row for row, path in enumerate(images.paths) if path in unreadable]
            found += [f"{cls} ({name})" for cls in lost_classes(images, rows)]
        return found
