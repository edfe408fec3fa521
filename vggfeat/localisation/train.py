"""Box regression: a classification net learns to answer with boxes (VGG paper, Appendix A).

n = images, k = boxes of an image, K = classes. Targets are those of `localisation.labels`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vggfeat.datasets.ilsvrc_boxes import Boxes, select_images
from vggfeat.errors import DatasetError, TrainingError
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.localisation.boxes import NO_TARGET, decode, overlaps, own_numbers
from vggfeat.localisation.labels import BoxLabels
from vggfeat.localisation.nets import facts_of, first_box_weights
from vggfeat.localisation.settings import BoxRecipe
from vggfeat.metrics import LEAST_OVERLAP
from vggfeat.nets.vgg import VGG
from vggfeat.runtime.distributed import World, open_world
from vggfeat.samples import ClassificationSet
from vggfeat.training.feed import ImageFeed
from vggfeat.training.settings import Recipe, TrainingSettings
from vggfeat.training.state import Hooks, Outcome, Validation
from vggfeat.training.train import learn
from vggfeat.weights import Backbone


class BoxData(NamedTuple):
    """Images, and the boxes of each list."""

    images: ClassificationSet
    train: Boxes
    val: Boxes

    def usable(self) -> "BoxData":
        """Return what there are boxes for, and what is not on the blacklist.

        Raises
        ------
        DatasetError
            If that is nothing.
        """
        rows = [np.flatnonzero(boxes.has & ~boxes.excluded) for boxes in (self.train, self.val)]
        if not all(map(len, rows)):
            raise DatasetError(
                f"{self.images.train.root}: expected images with boxes to train on and to validate, found "
                f"{len(rows[0])} and {len(rows[1])}; unpack the annotations of this set"
            )
        images = replace(
            self.images,
            train=select_images(self.images.train, rows[0]),
            val=select_images(self.images.val, rows[1]),
        )
        return BoxData(images, self.train.select(rows[0]), self.val.select(rows[1]))


@dataclass(frozen=True, kw_only=True)
class BoxValidation(Validation):
    """What a validation of a box net has shown: protocol 1 of Appendix A, the class given, from the centre crop."""

    localisation_error: float
    """Share of the images whose box overlaps each of theirs by less than half (intersection over union)."""
    mean_overlap: float
    """Intersection over union with the box that is met best, averaged over the images."""


@dataclass(frozen=True)
class BoxRegression:
    """Four numbers and Euclidean loss; for per-class regression, only those of the image's class have a loss."""

    box: BoxRecipe
    classes: tuple[str, ...]
    """K names."""
    started_from: Backbone

    channels: ClassVar[tuple[str, ...]] = ()
    errors: ClassVar[Mapping[str, str]] = {"localisation_error": "boxes that miss"}
    rated: ClassVar[tuple[str, ...]] = ("boxes that overlap by half", "overlaps", "images")

    @property
    def recipe(self) -> Recipe:
        """What does not depend on the task."""
        return self.box.training

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `load_box_net` reads."""
        return facts_of(self.box, self.classes)

    def first_weights(self) -> tuple[VGG, list[str]]:
        """Put a new last layer on the net that is started from."""
        return first_box_weights(self.box, len(self.classes), self.started_from)

    def no_targets(self, count: int) -> Tensor:
        """Return (count, 5) float32."""
        return torch.full((count, 5), NO_TARGET)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Euclidean loss to the nearest of an image's targets, boxes that overlap by half, and images."""
        own, numbers, counted = self._read(outputs, targets)
        gaps = ((own[:, None] - numbers.nan_to_num()) / self.box.unit).square().sum(-1) / 2
        nearest = gaps.where(~numbers[..., 0].isnan(), torch.inf).min(1).values
        loss = nearest.where(counted, 0.0).sum()
        hits = (_best_overlaps(own.detach(), numbers) >= LEAST_OVERLAP) & counted
        return loss, hits.sum(), counted.sum()

    def rate(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return sums in (3,) float64."""
        own, numbers, counted = self._read(outputs, targets)
        found = _best_overlaps(own.double(), numbers.double()).where(counted, 0.0)
        return torch.stack([(found >= LEAST_OVERLAP).sum().double(), found.sum(), counted.sum().double()])

    def validation(self, step: int, sums: list[float]) -> BoxValidation:
        """Return error and mean overlap."""
        hits, overlap, images = sums
        return BoxValidation(
            step=step,
            localisation_error=1 - hits / images,
            mean_overlap=overlap / images,
            images=int(images),
        )

    def read_validation(self, told: dict[str, Any]) -> BoxValidation:
        """Return what was told."""
        return BoxValidation(**told)

    def _read(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers of each image's class, (n, 4), those of its boxes, (n, k, 4), and whether it counts."""
        classes, numbers = targets[:, 0], targets[:, 1:].unflatten(1, (-1, 4))
        return self.box.unit * own_numbers(outputs, classes.clamp(min=0).long()), numbers, classes != NO_TARGET


class BoxFeed(ImageFeed):
    """Crops, and boxes in them. The mean pixel is that of the net that is started from.

    Parameters
    ----------
    data : BoxData
        Of usable images.
    recipe : BoxRecipe
    mean : 3 numbers
        RGB, 0 to 255.
    world, decoder
        As for `ImageFeed`.
    """

    def __init__(
        self, data: BoxData, recipe: BoxRecipe, mean: tuple[float, float, float], world: World, decoder: Decoder
    ) -> None:
        self._boxes = (
            BoxLabels(data.images.train, data.train, recipe, training=True),
            BoxLabels(data.images.val, data.val, recipe, training=False),
        )
        super().__init__(data.images, recipe.training, world, decoder, self._boxes)
        self.fingerprint |= {"boxes": data.train.fingerprint(), "validation_boxes": data.val.fingerprint()}
        self._own_mean = mean

    def prepare(self, folder: Path, progress: Callable[[int, int], None]) -> tuple[float, ...]:
        """Measure the colours, but keep the mean: layers that were trained with it may not learn any more."""
        super().prepare(folder, progress)
        self._mean = np.array(self._own_mean)
        return self._own_mean

    def unreadable(self) -> list[tuple[str, str]]:
        """List each image once, with those of another shape than their annotation says."""
        return sorted({**self._boxes[0].unlike, **self._boxes[1].unlike, **dict(super().unreadable())}.items())


def train_boxes(
    recipe: BoxRecipe,
    data: BoxData,
    out: Path,
    *,
    started_from: Backbone,
    resume: bool = False,
    run: TrainingSettings = TrainingSettings(),  # noqa: B008  frozen
    decode: DecodeSettings = DecodeSettings(),  # noqa: B008  frozen
    hooks: Hooks = Hooks(),  # noqa: B008  frozen
) -> Outcome:
    """Train a box net on images that have boxes, or go on with the run that was doing so.

    Parameters
    ----------
    recipe : BoxRecipe
    data : BoxData
        Images without boxes, and those on the blacklist, are left out.
    out : Path
        Folder of the run, new or empty.
    started_from : Backbone
        Classification net; see `localisation.settings.box_recipe_for`.
    resume, run, decode, hooks
        As for `vggfeat.training.train.train`.

    Returns
    -------
    Outcome
        Its validation is a `BoxValidation`.

    Raises
    ------
    ConfigError, TrainingError, StoreError
        As `vggfeat.training.train.train` does.
    DatasetError
        If no image has a box.
    """
    data = data.usable()
    task = BoxRegression(recipe, data.images.classes, started_from)
    with (
        open_world(run.device, os.environ, lost=TrainingError, sums=True) as world,
        Decoder(run.workers, decode) as decoder,
    ):
        feed = BoxFeed(data, recipe, started_from.mean, world, decoder)
        return learn(task, feed, out, world=world, resume=resume, run=run, hooks=hooks)


def _best_overlaps(own: Tensor, numbers: Tensor) -> Tensor:
    # In any frame: the ratio does not depend on its place and sides.
    frame = torch.tensor([-0.5, -0.5, 0.5, 0.5], device=own.device, dtype=own.dtype)
    return overlaps(decode(own, frame)[:, None], decode(numbers, frame)).amax(1)
