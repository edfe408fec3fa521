"""Box regression: a classification net learns to answer with boxes (VGG paper, Appendix A).

n = images, k = boxes of an image at most, K = classes. A *target* is the class, then the four coordinates of each box
in the frame of the crop (see `localisation.boxes`); coordinates of boxes that an image does not have are NaN, and the
class is `NO_TARGET` where there is nothing to be learnt.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.datasets.ilsvrc_boxes import Boxes, select_images
from vggfeat.errors import DatasetError, TrainingError
from vggfeat.images.decode import DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.images.upright import annotated_orientation, stored_size, turn_boxes
from vggfeat.localisation.boxes import areas, class_outputs, decode, encode, intersect, overlaps
from vggfeat.localisation.nets import BoxRecipe, init_box_net
from vggfeat.metrics import LEAST_OVERLAP
from vggfeat.nets.vgg import VGG
from vggfeat.runtime.distributed import World, open_world
from vggfeat.samples import ClassificationSet, LabelledImages
from vggfeat.training import data as training_data
from vggfeat.training.crops import Crops
from vggfeat.training.feed import ImageFeed
from vggfeat.training.objective import Validation
from vggfeat.training.recipe import Recipe, TrainingSettings
from vggfeat.training.train import learn
from vggfeat.training.trainer import Outcome, Progress
from vggfeat.weights import Backbone

NO_TARGET = float(training_data.NO_TARGET)
SHAPE_TOLERANCE = 0.02
"""How much the ratio of the sides may differ between an image and its annotation: shrunken copies are rounded."""


class BoxData(NamedTuple):
    """Images, and the boxes of each list."""

    images: ClassificationSet
    train: Boxes
    val: Boxes

    def usable(self) -> "BoxData":
        """Return what there are boxes for, and what is not on the blacklist.

        Raises DatasetError if that is nothing.
        """
        rows = [np.flatnonzero(boxes.has & ~boxes.excluded) for boxes in (self.train, self.val)]
        if not all(map(len, rows)):
            raise DatasetError(
                f"{self.images.train.root}: expected images with boxes to train on and to validate, found "
                f"{len(rows[0])} and {len(rows[1])}; unpack the annotations of this set"
            )
        images = replace(
            self.images, train=select_images(self.images.train, rows[0]), val=select_images(self.images.val, rows[1])
        )
        return BoxData(images, self.train.select(rows[0]), self.val.select(rows[1]))


class BoxTargets:
    """The boxes of each image, in the frame of its crop.

    `boxes`: of the same rows. `training`: whether `cut`, `least_inside` and `several` of the recipe count. In
    validation all boxes are kept, uncut.
    """

    def __init__(self, images: LabelledImages, boxes: Boxes, recipe: BoxRecipe, *, training: bool) -> None:
        self._images, self._boxes, self._recipe, self._training = images, boxes, recipe, training
        self._most = int(np.diff(boxes.first).max(initial=1))
        self._largest_only = training and recipe.several == "largest"
        self.unlike: dict[str, str] = {}
        """Images so far that are of another shape than their annotation says, and what it says."""

    def unreadable(self, count: int) -> NDArray[np.float32]:
        """Return targets without a class."""
        return np.full((count, 1 + 4 * (1 if self._largest_only else self._most)), NO_TARGET, np.float32)

    def of(
        self, rows: NDArray[np.int64], sizes: NDArray[np.int64], orientations: NDArray[np.int64], crops: Crops
    ) -> NDArray[np.float32]:
        """Return targets, (n, 1 + 4 k), float32; k is 1 where one box is the target."""
        windows = _rectangles(crops.offset, np.full_like(crops.offset, crops.side))  # (n, 1, 4)
        edges, annotated = self._upright(rows, sizes, orientations)
        boxes = torch.from_numpy(edges * (crops.rescaled / annotated)[:, None, [1, 0, 1, 0]])  # (n, k, 4)
        inside = intersect(boxes, windows)
        inside_areas = areas(inside)  # (n, k)
        if self._training:
            enough = (inside_areas > 0) & (inside_areas >= self._recipe.least_inside * areas(boxes))
            boxes = (inside if self._recipe.cut == "clipped" else boxes).where(enough[..., None], torch.nan)
            inside_areas = inside_areas.where(enough, torch.nan)
        frames = windows if self._recipe.frame == "window" else _rectangles(np.zeros_like(crops.offset), crops.rescaled)
        coordinates = encode(boxes, frames)
        # Frames are mirrored about their own centre.
        coordinates[..., 0] *= torch.from_numpy(np.where(crops.mirrored, -1.0, 1.0))[:, None]
        if self._largest_only:
            largest = inside_areas.nan_to_num(-1.0).argmax(1)
            coordinates = coordinates[torch.arange(len(rows)), largest][:, None]  # (n, 1, 4)
        targets = self.unreadable(len(rows))
        good = self._match_annotation(rows, sizes, annotated) & (~coordinates[..., 0].isnan()).any(1).numpy()
        targets[good, 0] = self._images.targets[rows[good]]
        targets[good, 1:] = coordinates[good].flatten(1)
        return targets

    def _upright(
        self, rows: NDArray[np.int64], sizes: NDArray[np.int64], orientations: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return boxes, (n, k, 4), NaN where there are no more, and annotated sides, (n, 2), turned as the images."""
        edges = np.full((len(rows), self._most, 4), np.nan)
        annotated = np.maximum(self._boxes.sizes[rows], 1)
        for number, (row, declared) in enumerate(zip(rows.tolist(), orientations.tolist(), strict=True)):
            own, (height, width) = self._boxes.of(row), annotated[number].tolist()
            found = (int(sizes[number, 0]), int(sizes[number, 1]))
            orientation = annotated_orientation(declared, found, (height, width))
            annotated[number] = stored_size((height, width), orientation)
            edges[number, : len(own)] = turn_boxes(own, orientation, (annotated[number, 0], annotated[number, 1]))
        return edges, annotated

    def _match_annotation(
        self, rows: NDArray[np.int64], sizes: NDArray[np.int64], annotated: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Say whose boxes can be trusted: not those of an image of another shape than the one annotated."""
        alike = np.abs(np.log(sizes[:, 0] * annotated[:, 1] / (sizes[:, 1] * annotated[:, 0]))) < SHAPE_TOLERANCE
        for number in np.flatnonzero(~alike).tolist():
            (height, width), found = annotated[number].tolist(), sizes[number].tolist()
            self.unlike[self._images.paths[rows[number]]] = (
                f"annotation: it says {width} x {height} pixels, the image has {found[1]} x {found[0]}"
            )
        return alike


def _rectangles(corner: NDArray[np.int64], size: NDArray[np.int64]) -> Tensor:
    """Edges, (n, 1, 4), of rectangles whose corner and size are (vertical, horizontal)."""
    edges = np.concatenate([corner[:, ::-1], (corner + size)[:, ::-1]], axis=1)
    return torch.from_numpy(edges.astype(np.float64))[:, None]


@dataclass(frozen=True, kw_only=True)
class BoxValidation(Validation):
    """What a validation of a box net has shown: protocol 1 of Appendix A, the class given, from the centre crop."""

    localisation_error: float
    """Share of the images whose box overlaps each of theirs by less than half (intersection over union)."""
    mean_overlap: float
    """Intersection over union with the box that is met best, averaged over the images."""


@dataclass(frozen=True)
class BoxRegression:
    """Four outputs and Euclidean loss; for per-class regression, only those of the image's class have a loss."""

    box: BoxRecipe
    classes: tuple[str, ...]
    """K names."""
    started_from: Backbone

    channels: ClassVar[tuple[str, ...]] = ()
    errors: ClassVar[Mapping[str, str]] = {"localisation_error": "boxes that miss"}
    rated: ClassVar[tuple[str, ...]] = ("boxes that overlap by half", "overlaps", "images")
    validated: ClassVar[type[Validation]] = BoxValidation

    @property
    def recipe(self) -> Recipe:
        """What does not depend on the objective."""
        return self.box.training

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `load_box_net` reads."""
        return self.box.metadata(self.classes)

    def first_weights(self) -> tuple[VGG, list[str]]:
        """Put a new last layer on the net that is started from."""
        return init_box_net(self.box, len(self.classes), self.started_from)

    def no_targets(self, count: int) -> Tensor:
        """Return (count, 5) float32."""
        return torch.full((count, 5), NO_TARGET)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Euclidean loss to the nearest of an image's targets, boxes that overlap by half, and images."""
        own, boxes, counted = self._read(outputs, targets)
        gaps = ((own[:, None] - boxes.nan_to_num()) / self.box.unit).square().sum(-1) / 2
        nearest = gaps.where(~boxes[..., 0].isnan(), torch.inf).min(1).values
        loss = nearest.where(counted, 0.0).sum()
        hits = (_best_overlaps(own.detach(), boxes) >= LEAST_OVERLAP) & counted
        return loss, hits.sum(), counted.sum()

    def rate(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return sums in (3,) float64."""
        own, boxes, counted = self._read(outputs, targets)
        found = _best_overlaps(own.double(), boxes.double()).where(counted, 0.0)
        return torch.stack([(found >= LEAST_OVERLAP).sum().double(), found.sum(), counted.sum().double()])

    def validation(self, step: int, sums: list[float]) -> BoxValidation:
        """Return error and mean overlap."""
        hits, overlap, images = sums
        return BoxValidation(
            step=step, localisation_error=1 - hits / images, mean_overlap=overlap / images, images=int(images)
        )

    def _read(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the answer for each image's class, (n, 4), its boxes, (n, k, 4), and whether it counts."""
        classes, boxes = targets[:, 0], targets[:, 1:].unflatten(1, (-1, 4))
        return self.box.unit * class_outputs(outputs, classes.clamp(min=0).long()), boxes, classes != NO_TARGET


class BoxFeed(ImageFeed):
    """Crops, and boxes in them. The mean pixel is that of the net that is started from.

    `data`: of usable images.
    `mean`: RGB, 0 to 255.
    `world`, `decoder`: as for `ImageFeed`.
    """

    def __init__(
        self, data: BoxData, recipe: BoxRecipe, mean: tuple[float, float, float], world: World, decoder: Decoder
    ) -> None:
        targets = (
            BoxTargets(data.images.train, data.train, recipe, training=True),
            BoxTargets(data.images.val, data.val, recipe, training=False),
        )
        super().__init__(data.images, recipe.training, world, decoder, labels=targets, mean=mean)
        self.fingerprint |= {"boxes": data.train.fingerprint(), "validation_boxes": data.val.fingerprint()}
        self._targets = targets

    def unreadable(self) -> list[tuple[str, str]]:
        """List each image once, with those of another shape than their annotation says."""
        return sorted({**self._targets[0].unlike, **self._targets[1].unlike, **dict(super().unreadable())}.items())


def train_boxes(
    recipe: BoxRecipe,
    data: BoxData,
    out: Path,
    *,
    started_from: Backbone,
    resume: bool = False,
    run: TrainingSettings = TrainingSettings(),  # noqa: B008  frozen
    progress: Progress = lambda done, total, note: False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Outcome:
    """Train a box net on images that have boxes, or resume the run that was doing so.

    Parameters
    ----------
    recipe : BoxRecipe
    data : BoxData
        Images without boxes, and those on the blacklist, are left out.
    out : Path
        Folder of the run, new or empty.
    started_from : Backbone
        Classification net; see `localisation.nets.box_recipe_for`.
    resume, run, progress, say
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
    objective = BoxRegression(recipe, data.images.classes, started_from)
    with (
        open_world(run.device, os.environ, lost=TrainingError, sums=True) as world,
        Decoder(run.workers, DecodeSettings()) as decoder,
    ):
        feed = BoxFeed(data, recipe, started_from.mean, world, decoder)
        return learn(objective, feed, out, world=world, resume=resume, run=run, progress=progress, say=say)


def _best_overlaps(own: Tensor, boxes: Tensor) -> Tensor:
    # In any frame: the ratio does not depend on its place and sides.
    frame = torch.tensor([-0.5, -0.5, 0.5, 0.5], device=own.device, dtype=own.dtype)
    return overlaps(decode(own, frame)[:, None], decode(boxes, frame)).amax(1)
