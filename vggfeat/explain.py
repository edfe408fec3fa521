"""Where in an image the score of a linear SVM comes from: an exact sum over positions, mirrors, scales and nets.

A descriptor is a mean over the positions of a dense map, joined over scales and divided by its length (Appendix B of
the VGG paper). For one image these divisions are numbers, so that the score of a class is

    b + sum over nets, scales, mirrors and positions (x, y) of v . f(x, y) / (2 positions)

with v the weights of the class for that net and scale, divided by the lengths. Nothing is approximated: the sum is the
score up to rounding. It says what the SVM has used, not what would change if the image did.

F = nets, S = scales, C = channels, K = classes, h, w = sides of a map, H, W = sides of the image.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vggfeat.descriptors import fuse, join_features
from vggfeat.errors import ConfigError, Failure, FitError, ImageError
from vggfeat.forward.features import dense_map, mirror
from vggfeat.forward.rerun import rerun_net
from vggfeat.forward.runner import BatchRunner, to_compute_layout, upload
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request
from vggfeat.images.image_bytes import shown
from vggfeat.images.pool import Decoder
from vggfeat.nets.transforms import rescaled_size
from vggfeat.predict import nets_of
from vggfeat.protocols.apply import SavedModel, open_model


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaleEvidence:
    """What one scale of one net adds to the scores."""

    net: str
    scale: int
    """Q, smallest image side in pixels."""
    sums: NDArray[np.float64]
    """(K,) the sum over its positions and both mirrors, for every class."""
    maps: tuple[NDArray[np.float64], NDArray[np.float64]]
    """(h, w) each, what every position adds to the score of the explained class: in the image, and in its mirror, as
    it is there."""
    heat: NDArray[np.float64]
    """(H, W) the same, spread evenly over the pixels that belong to each position; the sum is that of the maps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """A score and what it is made of."""

    image: NDArray[np.uint8]
    """(H, W, 3) as it was decoded, of several nets the largest; large images may be reduced."""
    classes: tuple[str, ...]
    """K names."""
    scores: NDArray[np.float64]
    """(K,) as `vggfeat svm --apply` gives them for the features in float32."""
    number: int
    """Number of the explained class."""
    bias: float
    """Its intercept."""
    scales: tuple[ScaleEvidence, ...]
    """F * S parts."""

    @property
    def total(self) -> float:
        """The intercept and all positions: the score, up to rounding."""
        return self.bias + float(sum(part.sum() for scale in self.scales for part in scale.maps))

    @property
    def heat(self) -> NDArray[np.float64]:
        """(H, W) what every pixel's positions add to the score; the sum is the score without the intercept."""
        return np.sum([scale.heat for scale in self.scales], axis=0)


def explain(
    image: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    name: str | None = None,
    weights: Sequence[str] = (),
    device: str | None = None,
    workers: int = 1,
) -> Evidence:
    """Say where in an image the score of a class comes from.

    Parameters
    ----------
    model : path
        As for `vggfeat.protocols.apply.open_model`.
    name : str, optional
        The class; by default the one with the highest score.
    weights : sequence of str, optional
        As for `vggfeat.predict.nets_of`.
    device : str, optional
        cpu, cuda, cuda:1, ..., mps; a CUDA GPU if there is one by default.
    workers : int
        Processes that decode the image; 0 decodes in this one, without limits of time and memory.

    Raises
    ------
    FitError
        If the model can't be read, or its features can't be made of an image alone.
    ConfigError
        If it has no such class.
    WeightsError
        If a net is not found, or another.
    ImageError
        If the image gives no pixels.
    """
    return Explainer(model, weights=weights, device=device, workers=workers).explain(image, name)


class Explainer:
    """A model and its nets, ready for several images; parameters and errors as those of `explain`."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        weights: Sequence[str] = (),
        device: str | None = None,
        workers: int = 1,
    ) -> None:
        self.saved, self.workers = open_model(model), workers
        self.classes: tuple[str, ...] = tuple(self.saved.about["classes"])
        self._nets = _nets(self.saved, weights, device)

    def explain(self, image: str | os.PathLike[str], name: str | None = None) -> Evidence:
        """Say where in an image the score of a class comes from; see `explain`."""
        if name is not None and name not in self.classes:
            raise ConfigError(f"class: expected one of {', '.join(self.classes)}, found {name!r}")
        runners = [runner for runner, _ in self._nets]
        images = [_decode(Path(image), decode, self.workers) for _, decode in self._nets]
        shown = max((one.regions[0] for one in images), key=np.size)
        features = [_features(runner, one) for runner, one in zip(runners, images, strict=True)]  # F times (1, S, 1, C)
        descriptor, views = _views(self.saved, features)
        scores = self.saved.model.scores(descriptor)[0]
        number = int(scores.argmax()) if name is None else self.classes.index(name)
        parts = [
            _scale(runner, one.regions[0], shown.shape[:2], index, view[:, index], feature[0, index, 0], number)
            for runner, one, view, feature in zip(runners, images, views, features, strict=True)
            for index in range(len(runner.sides))
        ]
        return Evidence(
            image=shown,
            classes=self.classes,
            scores=scores,
            number=number,
            bias=float(self.saved.model.intercept[number]),
            scales=tuple(parts),
        )


def _nets(saved: SavedModel, weights: Sequence[str], device: str | None) -> list[tuple[BatchRunner, DecodeSettings]]:
    """Return a runner in float32 for each net of a model, and how images are decoded for it."""
    made = saved.recipe["files"]
    if any(list(one["regions"]) != ["image"] for one in made):
        raise FitError(
            f"{saved.path}: expected a model on features of whole images, found one on boxes, which an image alone has "
            "not; train one with `vggfeat svm --regions image`"
        )
    return [
        rerun_net(str(saved.path), one["provenance"], one["scales"], net, device, exact=True)
        for one, net in zip(made, nets_of(saved, weights), strict=True)
    ]


def _decode(image: Path, settings: DecodeSettings, workers: int) -> DecodedImage:
    place = os.path.abspath(image)
    with Decoder(workers, settings) as decoder:
        (found,) = decoder.stream([Request(place, (None,))])
    if isinstance(found, ImageError):
        failure = Failure(found.reason, str(found)).without(shown(place))
        raise ImageError(failure.reason, f"{image}: expected an image to explain, found: {failure}")
    return found


def _features(runner: BatchRunner, image: DecodedImage) -> NDArray[np.float32]:
    (row,) = runner.rows([image])
    if row.features is None:
        assert row.failure
        raise ImageError(row.failure.reason, f"expected features of the image, found: {row.failure.message}")
    return row.features[None]


def _views(
    saved: SavedModel, features: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], list[NDArray[np.float64]]]:
    """Return the descriptor (1, D), and for each net the weights (K, S, C) with which its features give the scores.

    The sum over scales and channels of weights times features is the product of the SVM's weights with the descriptor.
    """
    machine, join, normalisation = saved.model, saved.recipe["join"], saved.recipe["normalisation"]
    descriptor = fuse(features, join, normalisation)
    plain = [join_features(one, join, "none")[0].astype(np.float64) for one in features]
    if descriptor.shape[1] != machine.coef.shape[1]:
        raise FitError(f"model: expected weights for {descriptor.shape[1]} values, found {machine.coef.shape[1]}")
    views, start = [], 0
    for one, joined in zip(features, plain, strict=True):
        part = slice(start, start + len(joined))
        start = part.stop
        length = np.linalg.norm(joined)
        # All that normalisation does to these values is to divide them by one number.
        factor = np.linalg.norm(descriptor[0, part].astype(np.float64)) / length if length else 0.0
        views.append(_per_scale(machine.coef[:, part] * factor, one[0, :, 0], join))
    return descriptor, views


def _per_scale(coef: NDArray[np.float64], features: NDArray[np.float32], join: str) -> NDArray[np.float64]:
    """Turn weights of joined features (K, C) or (K, S * C) into weights of the features (S, C) of each scale."""
    scales, channels = features.shape
    if join == "stack":
        return coef.reshape(len(coef), scales, channels)
    if join == "mean":
        return np.repeat(coef[:, None] / scales, scales, axis=1)
    largest = np.arange(scales)[:, None] == features.argmax(axis=0)  # (S, C) which scale gives the maximum
    return coef[:, None] * largest


def _scale(
    runner: BatchRunner,
    image: NDArray[np.uint8],
    size: tuple[int, ...],
    index: int,
    view: NDArray[np.float64],
    feature: NDArray[np.float32],
    number: int,
) -> ScaleEvidence:
    """Compute what a scale adds, spread over `size`: `view` (K, C) are its weights, `feature` (C,) is its feature."""
    maps = _evidence(runner, image, runner.sides[index], view[number])
    info = runner.model.maps[runner.settings.layer]  # type: ignore[attr-defined]
    sides = rescaled_size(image.shape[0], image.shape[1], runner.sides[index])
    straight, mirrored = (_spread(one, info.stride, info.window, sides) for one in maps)
    heat = straight + mirrored[:, ::-1]
    for axis in (0, 1):
        heat = _resampled(heat, size[axis], axis)
    return ScaleEvidence(
        net=runner.backbone.source,
        scale=runner.settings.scales[index],
        sums=view @ feature.astype(np.float64),
        maps=maps,
        heat=heat,
    )


def _evidence(
    runner: BatchRunner, image: NDArray[np.uint8], side: int, weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what every position of the image, and of its mirror, adds to a score: (h, w) each."""
    size, layer = rescaled_size(image.shape[0], image.shape[1], side), runner.settings.layer  # type: ignore[attr-defined]
    place = torch.device("cpu") if runner.device.type == "mps" else runner.device  # mps has no float64.
    vector = torch.from_numpy(weights).to(place)
    found = []
    with runner.computing():
        batch, _ = runner.prepare([(upload(image, runner.device), size)])
        for half in (batch, mirror(batch)):
            dense = dense_map(runner.model, to_compute_layout(half, runner.model), layer, runner.settings.batch_pixels)
            products = torch.tensordot(dense[0].to(place).to(torch.float64), vector, dims=([0], [0]))  # (h, w)
            found.append((products / (2 * products.numel())).cpu().numpy())
    return found[0], found[1]


def _spread(evidence: NDArray[np.float64], stride: int, window: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Spread positions (h, w) over the pixels of an image of a size: each over its window of cells, `stride` wide."""
    height, width = evidence.shape
    cells = np.zeros((height + window - 1, width + window - 1))
    for down in range(window):
        for right in range(window):
            cells[down : down + height, right : right + width] += evidence / window**2
    for axis in (0, 1):
        # Cells that the edge cuts off are as wide as what is left of them.
        widths = np.clip(size[axis] - stride * np.arange(cells.shape[axis]), 1, stride)
        shares = cells / np.expand_dims(widths, 1 - axis)
        spread = np.repeat(shares, widths, axis=axis)
        missing = max(0, size[axis] - spread.shape[axis])
        cells = np.pad(spread, [(0, missing) if one == axis else (0, 0) for one in (0, 1)])
    return cells


def _resampled(values: NDArray[np.float64], count: int, axis: int) -> NDArray[np.float64]:
    """Share the values along an axis out among `count` equal parts of it; the sum stays."""
    old = values.shape[axis]
    sums = np.concatenate([np.zeros_like(values.take([0], axis)), np.cumsum(values, axis=axis)], axis=axis)
    edges = np.linspace(0, old, count + 1)
    low = np.minimum(edges.astype(np.int64), old - 1)
    part = np.expand_dims(edges - low, 1 - axis)
    at_edges = sums.take(low, axis) * (1 - part) + sums.take(low + 1, axis) * part
    return np.diff(at_edges, axis=axis)
