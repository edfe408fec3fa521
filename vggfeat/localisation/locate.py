"""Images become guesses: classes, and for each class a box that many windows agreed on.

N = images, K = classes, T = classes of an image that are located, of which the first G are guesses, h, w = positions of
a dense map, n = boxes of a class before merging.

Appendix A of the VGG paper: box nets and the classification net are run densely over the complete image at one or more
Q; each window's box of a class is rated by the class posterior that the classification net gives the same window; the
boxes of all scales and box nets are put together, and only then merged.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.errors import ConfigError, ImageError
from vggfeat.forward.batching import Size
from vggfeat.forward.runner import MAX_RESCALED_PIXELS, BatchRunner
from vggfeat.images.decode import DecodedImage
from vggfeat.localisation.boxes import boxes_from_map, merge, window_frames
from vggfeat.localisation.maps import LocaliseSettings, crop_place, crop_runner, dense_maps, map_runner
from vggfeat.localisation.nets import BoxNet, check_windows, last_map
from vggfeat.nets.transforms import rescaled_size
from vggfeat.samples import Box
from vggfeat.weights import Backbone

Progress = Callable[[float], None]
"""Called now and then with the number of images done."""


class LocalisationRequest(NamedTuple):
    """Which classes of an image are to be located."""

    labels: NDArray[np.int64] | None = None
    """Classes to guess, best first, -1 for none; None: the classification net's own, from its dense map."""
    truth: int | None = None
    """The true class, which is located as well, whether it is guessed or not."""


class Guess(NamedTuple):
    """A class, and where it is on an image."""

    label: int
    """Number of the class."""
    posterior: float
    """Posterior of the whole image, from 0 to 1; NaN without a classification net."""
    box: Box
    """Box in pixels of the upright image."""
    windows: int
    """How many windows fed the box."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalisedImage:
    """What became of one image."""

    size: Size
    """Height and width of the upright image; (0, 0) if it could not be read."""
    sha256: bytes = bytes(32)
    """SHA-256 of the image file; zeros if it could not be read."""
    orientation: int = 1
    """EXIF orientation by which it was turned."""
    reason: str = ""
    """Empty, or "reason: message" of the failure; then T is 0."""
    classes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(T,) the guesses, best first, and then the true class if it is asked for and not among them."""
    guesses: int = 0
    """G."""
    boxes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    """(T, 4) edges, in pixels of the upright image."""
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(T,) sum of the class posteriors of the windows that fed the box."""
    windows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(T,) how many windows these were."""
    posteriors: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(T,) posterior of the class for the complete image; NaN without a classification net."""

    def ranked(self) -> list[Guess]:
        """Return the guesses, best first."""
        columns = (self.classes, self.posteriors, self.boxes, self.windows)
        rows = zip(*(column[: self.guesses].tolist() for column in columns), strict=True)
        return [Guess(label, posterior, Box(*box), windows) for label, posterior, box, windows in rows]


def class_places(net: BoxNet, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of every class among those of a box net; zeros if its outputs are those of all classes.

    Raises ConfigError if the net lacks one.
    """
    if net.kind == "scr":
        return np.zeros(len(classes), dtype=np.int64)
    known = {name: place for place, name in enumerate(net.classes)}
    missing = [name for name in classes if name not in known]
    if missing:
        raise ConfigError(
            f"{net.backbone.source}: expected boxes of every class, found {len(known)} classes without {missing[0]!r} "
            f"({len(missing)} are missing); take a box net of the same classes"
        )
    return np.array([known[name] for name in classes], dtype=np.int64)


def _net_frames(net: BoxNet, positions: tuple[int, int], rescaled: Size, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Return what the outputs of a net are relative to, (h, w, 4) or (1, 1, 4), in pixels of the rescaled image."""
    if net.frame == "image":
        return torch.tensor([[[0.0, 0.0, rescaled[1], rescaled[0]]]], dtype=torch.float64, device="cpu")
    return window_frames(positions, offset, side=net.window, stride=last_map(net.backbone.model).stride)


def _wanted_classes(labels: NDArray[np.int64] | None, truth: int | None) -> NDArray[np.int64]:
    """Return the classes to locate, (T,): the guesses, and the true class if it is not among them."""
    guesses = np.zeros(0, np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
    guesses = guesses[guesses >= 0]
    return guesses if truth is None or truth in guesses else np.append(guesses, truth)


@dataclass(eq=False)
class _Work:
    """An image on its way through the nets."""

    image: DecodedImage
    labels: NDArray[np.int64] | None
    truth: int | None
    failure: str = ""
    posteriors: dict[int, Tensor] = field(default_factory=dict)
    """Smallest side -> log posteriors (K, h, w)."""
    boxes: list[NDArray[np.float64]] = field(default_factory=list)
    """(T, h w, 4) of each net and scale."""
    scores: list[NDArray[np.float64]] = field(default_factory=list)
    """(T, h w) posteriors of their windows."""

    @property
    def wanted(self) -> NDArray[np.int64]:
        return _wanted_classes(self.labels, self.truth)

    def image_posteriors(self) -> NDArray[np.float64]:
        """Posteriors (K,) of the image: class scores averaged over space, then soft-max, then averaged over scales.

        The mean of log posteriors differs from that of scores by a number that is the same for all classes.
        """
        pooled = [torch.softmax(values.double().mean((1, 2)), 0) for values in self.posteriors.values()]
        return torch.stack(pooled).mean(0).numpy()


class Localiser:
    """Box nets and a classification net on a device, ready to locate the objects of images.

    `classifier`: rates the boxes; its channels are the K classes, in this order or in that of `channels`. None: every
    window counts the same, and all labels are given.
    `classes`: K names, those of the classes that are asked for and returned.
    `channels` (K,) int64: channel of the classification net for every class.
    Raises ConfigError if a box net with outputs for each class lacks one of them, there are not as many scales as box
    nets, or the device can't do it, or the windows of the nets are not the same.
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
        self.settings, self._nets = settings, tuple(nets)
        self._places = [class_places(net, classes) for net in nets]
        models = [net.backbone.model for net in nets] + ([classifier.model] if classifier else [])
        check_windows(models)
        least = max(model.min_side for model in models)
        self._maps = [
            map_runner(net.backbone, settings.maps(scales, least), device)
            for net, scales in zip(nets, settings.scales, strict=True)
        ]
        self._channels = None if channels is None else torch.from_numpy(channels)
        self._classifier: BatchRunner | None = None
        if classifier is not None:
            every = sorted({scale for scales in settings.scales for scale in scales})
            self._classifier = map_runner(classifier, settings.maps(every, least), device, posteriors=True)
        self.largest_side = max(side for maps in self._maps for side in maps.sides)

    def locate(
        self,
        images: Iterable[DecodedImage | ImageError],
        requests: Iterable[LocalisationRequest],
        progress: Progress | None = None,
    ) -> list[LocalisedImage]:
        """Locate the classes of some images, all of which are held in memory.

        `images`: N, each uncut, as its only region.
        Returns N results; that of an image that fails has a reason.
        """
        rows = [
            LocalisedImage(size=(0, 0), reason=f"{image.reason}: {image}")
            if isinstance(image, ImageError)
            else _Work(image, request.labels, request.truth, self._refusal(image, request))
            for image, request in zip(images, requests, strict=True)
        ]
        work = [row for row in rows if isinstance(row, _Work)]
        passes = len(self._maps) + (self._classifier is not None)
        done = 0

        def report(share: float) -> None:
            if progress is not None:
                progress(len(rows) * (done + share) / passes)

        if self._classifier is not None:
            for one, side, _, values in _run_net(self._classifier, work, report):
                one.posteriors[side] = values if self._channels is None else values[self._channels]
            done += 1
        for one in work:
            if not one.failure and one.labels is None:
                one.labels = np.argsort(-one.image_posteriors(), kind="stable")[: self.settings.top]
        for net, places, maps in zip(self._nets, self._places, self._maps, strict=True):
            for one, side, rescaled, values in _run_net(maps, work, report):
                _add_boxes(one, net, places, side, rescaled, values)
            done += 1
        return [self._merge(row) if isinstance(row, _Work) else row for row in rows]

    def _refusal(self, image: DecodedImage, request: LocalisationRequest) -> str:
        """Return why an image can't be located, or nothing."""
        if request.labels is not None and len(request.labels) and (request.labels < 0).all():
            return "no-label: the system that guesses the classes failed for it"
        height, width, _ = image.regions[0].shape
        height, width = rescaled_size(height, width, self.largest_side)
        if height * width > MAX_RESCALED_PIXELS:
            size = f"{width}x{height} pixels at Q = {self.largest_side}"
            return f"elongated: it would become {size}, more than {MAX_RESCALED_PIXELS}"
        return ""

    def _merge(self, work: _Work) -> LocalisedImage:
        size, sha256, turned = work.image.size, work.image.sha256, work.image.orientation
        if work.failure or work.labels is None:
            return LocalisedImage(size=size, sha256=sha256, orientation=turned, reason=work.failure)
        wanted = work.wanted
        best = merge(np.concatenate(work.boxes, axis=1), np.concatenate(work.scores, axis=1), self.settings.merging)
        return LocalisedImage(
            size=size,
            sha256=sha256,
            orientation=turned,
            classes=wanted,
            guesses=int((np.asarray(work.labels) >= 0).sum()),
            boxes=best.boxes,
            scores=best.scores,
            windows=best.windows,
            posteriors=work.image_posteriors()[wanted] if work.posteriors else np.full(len(wanted), np.nan),
        )


def _run_net(
    runner: BatchRunner, work: Sequence[_Work], report: Callable[[float], None]
) -> Iterator[tuple[_Work, int, Size, Tensor]]:
    """Run a net over the images that have not failed: image, side, rescaled size, map; those without a map fail."""
    alive = [one for one in work if not one.failure]
    for done, found in enumerate(dense_maps(runner, [one.image.regions[0] for one in alive]), start=1):
        one = alive[found.image]
        if not one.failure and found.map is None:
            one.failure = f"out-of-memory: it does not fit into the memory of {runner.device}, even in strips"
        elif not one.failure and found.map is not None:
            if bool(torch.isfinite(found.map).all()):
                yield one, runner.sides[found.scale], found.rescaled, found.map
            else:
                one.failure = f"non-finite: the {runner.head.name} has NaN or infinity"
        report(done / (len(alive) * len(runner.sides)))


def _add_boxes(work: _Work, net: BoxNet, places: NDArray[np.int64], side: int, rescaled: Size, outputs: Tensor) -> None:
    wanted = work.wanted
    h, w = outputs.shape[1:]
    posteriors = work.posteriors.get(side)  # (K, h, w)
    if posteriors is not None:
        # Of nets that round differently, one may have a position more at the end; the others are the same.
        h, w = min(h, posteriors.shape[1]), min(w, posteriors.shape[2])
    frames = _net_frames(net, (h, w), rescaled)
    boxes = boxes_from_map(outputs[:, :h, :w], places[wanted], frames, rescaled, work.image.size)  # (T, h w, 4)
    scores = np.ones(boxes.shape[:2])
    if posteriors is not None:
        scores = posteriors[wanted, :h, :w].double().exp().flatten(1).numpy()
    work.boxes.append(boxes)
    work.scores.append(scores)


class CropLocaliser:
    """A box net on a device that sees the centre crop alone: protocol 1 of Appendix A, for a class that is known.

    `classes`: K names. `settings`: of one scale.
    Raises ConfigError as `Localiser`, and if there is more than one scale.
    """

    def __init__(self, net: BoxNet, classes: Sequence[str], settings: LocaliseSettings, *, device: str = "cpu") -> None:
        if len(settings.scales) != 1 or len(settings.scales[0]) != 1:
            raise ConfigError(f"scales: expected one, for the centre crop, found {settings.scales}")
        self._net, self._places = net, class_places(net, classes)
        least = max(net.backbone.model.min_side, net.window)
        self._runner = crop_runner(net.backbone, settings.maps(settings.scales[0], least), device, net.window)
        self.largest_side = self._runner.sides[0]

    def locate(
        self,
        images: Iterable[DecodedImage | ImageError],
        requests: Iterable[LocalisationRequest],
        progress: Progress | None = None,
    ) -> list[LocalisedImage]:
        """Locate the true class of some images; see `Localiser.locate`. There are no guesses."""
        held = list(images)
        rows = self._runner.rows(held, progress)
        found = []
        for image, row, request in zip(held, rows, requests, strict=True):
            if row.features is None or isinstance(image, ImageError):
                found.append(LocalisedImage(size=row.size, sha256=row.sha256, reason=str(row.failure or "")))
                continue
            wanted = _wanted_classes(request.labels, request.truth)
            offset, rescaled = crop_place(self._runner, image.regions[0].shape[:2], self._net.window)
            frames = _net_frames(self._net, (1, 1), rescaled, offset)
            outputs = torch.from_numpy(row.features[0, 0]).reshape(-1, 1, 1)
            found.append(
                LocalisedImage(
                    size=row.size,
                    sha256=row.sha256,
                    orientation=image.orientation,
                    classes=wanted,
                    boxes=boxes_from_map(outputs, self._places[wanted], frames, rescaled, row.size)[:, 0],
                    scores=np.ones(len(wanted)),
                    windows=np.ones(len(wanted), dtype=np.int64),
                    posteriors=np.full(len(wanted), np.nan),
                )
            )
        return found
