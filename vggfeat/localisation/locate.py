"""Images become guesses: classes, and for each class a box that many windows agreed on.

N = images, K = classes, T = classes of an image that are located, n = boxes of a class before merging.

Appendix A of the VGG paper: box nets and the classification net are run densely over the whole image at one or more
Q; each window's box of a class is rated by the class posterior that the classification net gives the same window; the
boxes of all scales and box nets are put together, and only then merged.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.errors import ConfigError, ImageError
from vggfeat.forward import MAX_RESCALED_PIXELS, Size
from vggfeat.images.decode import DecodedImage
from vggfeat.localisation.boxes import boxes_from_map
from vggfeat.localisation.guesses import (
    Ask,
    LocaliseSettings,
    Located,
    class_places,
    failed,
    net_frames,
    wanted_classes,
)
from vggfeat.localisation.maps import CentreCrop, DenseMaps
from vggfeat.localisation.merging import merge
from vggfeat.localisation.nets import BoxNet
from vggfeat.nets.transforms import rescaled_size
from vggfeat.weights import Backbone


class _Work(NamedTuple):
    image: DecodedImage
    ask: Ask
    posteriors: dict[int, Tensor]
    """Smallest side -> (K, h, w) log posteriors."""
    found: list[tuple[NDArray[np.float64], NDArray[np.float64]]]
    """Boxes (T, n, 4) and their posteriors (T, n), of each net and scale."""


class Localiser:
    """Box nets and a classification net on a device, ready to locate the objects of images.

    Parameters
    ----------
    nets : sequence of BoxNet
    classifier : Backbone, optional
        Rates the boxes; its channels are the K classes, in this order or in that of `channels`. None: every window
        counts the same, and all labels are given.
    classes : sequence of str
        K names, those of the classes that are asked for and returned.
    settings : LocaliseSettings
    device : str
    channels : (K,) int64, optional
        Channel of the classification net's fc8 for every class.

    Raises
    ------
    ConfigError
        If a box net with outputs for each class lacks one of them, there are not as many scales as box nets, or the
        device can't do it.
    """

    def __init__(
        self,
        nets: Sequence[BoxNet],
        classifier: Backbone | None,
        classes: Sequence[str],
        settings: LocaliseSettings,
        *,
        device: str = "cpu",
        channels: NDArray[np.int64] | None = None,
    ) -> None:
        if len(nets) != len(settings.scales):
            raise ConfigError(f"scales: expected those of {len(nets)} box nets, found {len(settings.scales)}")
        self.nets, self.settings = tuple(nets), settings
        self.places = tuple(class_places(net, classes) for net in nets)
        models = [net.backbone.model for net in nets] + ([classifier.model] if classifier else [])
        least = max(model.min_side for model in models)
        self._maps = [
            DenseMaps(net.backbone, settings.maps(scales, least), device)
            for net, scales in zip(nets, settings.scales, strict=True)
        ]
        self._channels = None if channels is None else torch.from_numpy(channels)
        self._classifier: DenseMaps | None = None
        if classifier is not None:
            every = sorted({scale for scales in settings.scales for scale in scales})
            self._classifier = DenseMaps(classifier, settings.maps(every, least), device, posteriors=True)
        self.largest_side = max(side for maps in self._maps for side in maps.sides)

    def locate(
        self,
        images: Iterable[DecodedImage | ImageError],
        asks: Iterable[Ask],
        progress: Callable[[float], None] | None = None,
    ) -> list[Located]:
        """Locate the classes of some images, all of which are held in memory.

        Parameters
        ----------
        images : N of DecodedImage or ImageError
            Each whole, as its only region.
        asks : N of Ask
        progress : callable, optional
            Called now and then with the number of images done.

        Returns
        -------
        list of N Located
            An image that fails has a reason.
        """
        rows: list[_Work | Located] = [self._started(image, ask) for image, ask in zip(images, asks, strict=True)]
        passes = len(self._maps) + (self._classifier is not None)
        done = 0

        def count(share: float) -> None:
            if progress is not None:
                progress(len(rows) * (done + share) / passes)

        if self._classifier is not None:
            self._rate(rows, self._classifier, count)
            done += 1
        rows = [self._labelled(row) if isinstance(row, _Work) else row for row in rows]
        for number in range(len(self._maps)):
            self._predict(rows, number, count)
            done += 1
        return [self._merged(row) if isinstance(row, _Work) else row for row in rows]

    def _started(self, image: DecodedImage | ImageError, ask: Ask) -> "_Work | Located":
        if isinstance(image, ImageError):
            return failed(f"{image.reason}: {image}")
        if ask.labels is not None and len(ask.labels) and (ask.labels < 0).all():
            return failed("no-label: the system that guesses the classes failed for it", image.size)
        height, width, _ = image.regions[0].shape
        height, width = rescaled_size(height, width, self.largest_side)
        if height * width > MAX_RESCALED_PIXELS:
            text = f"{width}x{height} pixels at Q = {self.largest_side}, more than {MAX_RESCALED_PIXELS}"
            return failed(f"elongated: it would become {text}", image.size)
        return _Work(image, ask, {}, [])

    def _rate(self, rows: list[_Work | Located], maps: DenseMaps, count: Callable[[float], None]) -> None:
        for work, side, _, values in _over(rows, maps, count):
            work.posteriors[side] = values if self._channels is None else values[self._channels]

    def _labelled(self, work: _Work) -> "_Work | Located":
        """Settle which classes are guessed."""
        if work.ask.labels is not None:
            return work
        best = np.argsort(-self._whole(work), kind="stable")[: self.settings.top]
        return work._replace(ask=work.ask._replace(labels=best))

    def _whole(self, work: _Work) -> NDArray[np.float64]:
        """Posteriors (K,) of the image: class scores averaged over space, then soft-max, then averaged over scales.

        The mean of log posteriors differs from that of scores by a number that is the same for all classes.
        """
        pooled = [torch.softmax(values.double().mean((1, 2)), 0) for values in work.posteriors.values()]
        return torch.stack(pooled).mean(0).numpy()

    def _predict(self, rows: list[_Work | Located], number: int, count: Callable[[float], None]) -> None:
        net, places = self.nets[number], self.places[number]
        for work, side, rescaled, values in _over(rows, self._maps[number], count):
            wanted = wanted_classes(work.ask)
            h, w = values.shape[1:]
            if side in work.posteriors:
                # Of nets that round differently, one may have a position more at the end; the others are the same.
                h, w = min(h, work.posteriors[side].shape[1]), min(w, work.posteriors[side].shape[2])
            frames = net_frames(net, (h, w), rescaled)
            boxes = boxes_from_map(values[:, :h, :w], places[wanted], frames, rescaled, work.image.size)
            scores = np.ones(boxes.shape[:2])
            if side in work.posteriors:
                scores = work.posteriors[side][wanted, :h, :w].double().exp().flatten(1).numpy()
            work.found.append((boxes, scores))

    def _merged(self, work: _Work) -> Located:
        wanted = wanted_classes(work.ask)
        assert work.ask.labels is not None
        boxes, scores = (np.concatenate(parts, axis=1) for parts in zip(*work.found, strict=True))
        best = merge(boxes, scores, self.settings.merging)
        whole = self._whole(work)[wanted] if work.posteriors else np.full(len(wanted), np.nan)
        guesses = int((np.asarray(work.ask.labels) >= 0).sum())
        return Located(wanted, guesses, best.boxes, best.scores, best.windows, whole, "", work.image.size)


class CropLocaliser:
    """A box net on a device that sees the centre crop alone: protocol 1 of Appendix A, for a class that is known.

    Parameters
    ----------
    net : BoxNet
    classes : sequence of str
        K names.
    settings : LocaliseSettings
        Of one scale.
    device : str

    Raises
    ------
    ConfigError
        As `Localiser`, and if there is more than one scale.
    """

    def __init__(self, net: BoxNet, classes: Sequence[str], settings: LocaliseSettings, *, device: str = "cpu") -> None:
        if len(settings.scales) != 1 or len(settings.scales[0]) != 1:
            raise ConfigError(f"scales: expected one, for the centre crop, found {settings.scales}")
        self.net, self.places = net, class_places(net, classes)
        least = max(net.backbone.model.min_side, net.window)
        self._crop = CentreCrop(net.backbone, settings.maps(settings.scales[0], least), device, net.window)
        self.largest_side = self._crop.sides[0]

    def locate(
        self,
        images: Iterable[DecodedImage | ImageError],
        asks: Iterable[Ask],
        progress: Callable[[float], None] | None = None,
    ) -> list[Located]:
        """Locate the true class of some images; see `Localiser.locate`. There are no guesses."""
        held = list(images)
        rows = self._crop.rows(held, progress)
        found = []
        for image, row, ask in zip(held, rows, asks, strict=True):
            if row.features is None or isinstance(image, ImageError):
                found.append(failed(row.reason, row.size))
                continue
            wanted = wanted_classes(ask)
            offset, rescaled = self._crop.place(image.regions[0].shape[:2])
            frames = net_frames(self.net, (1, 1), rescaled, offset)
            numbers = torch.from_numpy(row.features[0, 0]).reshape(-1, 1, 1)
            boxes = boxes_from_map(numbers, self.places[wanted], frames, rescaled, row.size)[:, 0]
            ones = np.ones(len(wanted))
            found.append(Located(wanted, 0, boxes, ones, ones.astype(np.int64), np.nan * ones, "", row.size))
        return found


def _over(
    rows: list[_Work | Located], maps: DenseMaps, count: Callable[[float], None]
) -> Iterable[tuple[_Work, int, Size, Tensor]]:
    """Run a net over the images that have not failed; those whose map is no use fail."""
    numbers = [number for number, row in enumerate(rows) if isinstance(row, _Work)]
    images = [row.image.regions[0] for row in rows if isinstance(row, _Work)]
    for done, found in enumerate(maps.maps(images), start=1):
        number = numbers[found.image]
        work = rows[number]
        if isinstance(work, _Work) and found.map is not None and bool(torch.isfinite(found.map).all()):
            yield work, maps.sides[found.scale], found.rescaled, found.map
        elif isinstance(work, _Work):
            reason = "non-finite: the fc8 map has NaN or infinity"
            if found.map is None:
                reason = f"out-of-memory: it does not fit into the memory of {maps.device}, even in strips"
            rows[number] = failed(reason, work.image.size)
        count(done / (len(numbers) * len(maps.sides)))
