"""Descriptors and maps inside other programs: a scikit-learn transformer from images to vectors.

N, n = images, D = length of a descriptor, C = channels of a map, H, W = image sides in pixels, h, w = sides of a map.
"""

import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from vggfeat.checks import check_choice, whole_number
from vggfeat.descriptors import join_features
from vggfeat.errors import ImageError
from vggfeat.estimator.inputs import Kept, images_of, inputs, progress_bar
from vggfeat.forward.features import ExtractionSettings, feature_runner, maps_of_image
from vggfeat.forward.runner import BatchRunner, Row
from vggfeat.images.decode import DecodedImage, DecodeSettings
from vggfeat.images.fetch import FetchSettings
from vggfeat.runtime.devices import default_device
from vggfeat.runtime.storage import StorageSettings
from vggfeat.weights import load_backbone

Errors = Literal["raise", "nan"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """An image that gave no descriptor."""

    index: int
    """Its row."""
    name: str
    """Path, address, or what kind of image it is."""
    reason: str
    """"word: message", the word out of `vggfeat.images.decode.REASONS`."""


class Extractor(TransformerMixin, BaseEstimator):
    """Turn images into L2-normalised descriptors, as Appendix B of the VGG paper does.

    Nothing is learnt from the images: `fit` only loads the net. It works inside a `Pipeline` and a
    `ColumnTransformer`, clones, and pickles without the net.

    The net and the decoding processes stay between calls: `close`, the end of a `with` statement and the end of the
    object end the processes. Several threads may call `transform` and `maps` of one extractor at the same time;
    `set_params` and `close` only while no other thread is in a call.

    Parameters
    ----------
    weights : str, path or None
        As for `vggfeat extract --weights`.
    scales : int, or sequence of int
        Q, smallest image sides in pixels.
    join : "mean", "max" or "stack"
        Over scales.
    normalisation : "blocks", "whole" or "none"
        See `vggfeat.descriptors`.
    layer : str
        A map of the net, of a VGG net relu1_1, ..., pool1, ..., pool5, fc6, fc7 or fc8; averaged over space and mirror.
    errors : "raise" or "nan"
        What an image that can't be read does: raise an error, or give a row of NaN and an entry in `failures_`.
    progress : bool
        Show how far it is, on standard error or in a notebook.
    precision : "fp32", "winograd", "tf32", "bf16" or "fp16"
        See `vggfeat.forward.settings.ForwardSettings`.
    interpolation : "bilinear" or "bicubic"
    device : str or None
        A GPU if there is one, by default.
    workers : int
        Processes that decode image files; 0 decodes in this process, without limits of time and memory.
    chunk : int
        Images run at a time.
    batch_pixels : int
        Pixels in one pass of the net, mirrors included: bounds the memory.
    allow_private : bool
        Read http(s) addresses of this machine and of the own network too. Lists of others may lead there.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from vggfeat.svm import LinearOneVsRestCV
    >>> model = make_pipeline(Extractor("vgg16-397923af.pth"), LinearOneVsRestCV())
    >>> model.fit(paths, labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        scales: int | Sequence[int] = (256, 384, 512),
        *,
        join: str = "mean",
        normalisation: str = "blocks",
        layer: str = "fc7",
        errors: str = "raise",
        progress: bool = False,
        precision: str = "fp32",
        interpolation: str = "bilinear",
        device: str | None = None,
        workers: int = 0,
        chunk: int = 32,
        batch_pixels: int = 1 << 20,
        allow_private: bool = False,
    ) -> None:
        self.weights = weights
        self.scales = scales
        self.join = join
        self.normalisation = normalisation
        self.layer = layer
        self.errors = errors
        self.progress = progress
        self.precision = precision
        self.interpolation = interpolation
        self.device = device
        self.workers = workers
        self.chunk = chunk
        self.batch_pixels = batch_pixels
        self.allow_private = allow_private

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding processes; a later call starts them again. May be called twice."""
        self._kept().close()

    @property
    def failures_(self) -> list[Failure]:
        """The images without a descriptor in the last `transform` of this thread, by index."""
        return list(getattr(self._kept().calls, "failures", ()))

    def fit(self, X: Any = None, y: Any = None) -> Self:  # noqa: N803
        """Load the net. X and y are not looked at.

        Raises
        ------
        ConfigError, WeightsError
            If a parameter is not allowed or the net can't be loaded.
        """
        self._load()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Compute descriptors.

        Parameters
        ----------
        X : iterable of n images, array (n, H, W, 3), tensor (n, 3, H, W), column of a table, or array (n, 1)
            A generator is read as far as it is needed. Each image is one of these; all give the same row:

            - a path, or an address (https://..., s3://...) that fsspec can read, with the extra `remote`
            - the bytes of an image file, or a file object open for reading bytes, read from where it stands
            - a PIL image; one of more than 8 bits has to be as `PIL.Image.open` returned it: copies, crops and
              pickles no longer say what is black and white
            - an array (H, W, 3), RGB, or (H, W), grey: uint8; or floats that are whole 255ths from 0 to 1
            - a tensor (3, H, W) or (1, H, W), of PyTorch for instance, on any device: the same values

        Returns
        -------
        (n, D) float32
            Rows in the order of X, of unit length unless `normalisation` is "none"; NaN where an image failed, if
            `errors` is "nan".

        Raises
        ------
        ImageError
            For the first image that gives no pixels, or whose values can't be known, by its number and name, if
            `errors` is "raise". Nothing is skipped or replaced.
        ConfigError
            If an item is nothing of the above, or X is a single image.
        ResourceError
            If the system gives no process to decode in.
        """
        failures = self._kept().calls.failures = list[Failure]()
        images, runner = images_of(X), self._load()
        total = len(X) if isinstance(X, Sized) else None
        blocks, done = [self._descriptors(runner, [])], 0
        with progress_bar(total, shown=self.progress) as advance:
            for rows, names in self._rows(images, runner):
                for place, (row, name) in enumerate(zip(rows, names, strict=True), start=done):
                    if row.failure and self.errors == "raise":
                        raise ImageError(row.failure.reason, f"image {place}: {row.failure.message}")
                    if row.failure:
                        failures.append(Failure(place, name, str(row.failure)))
                blocks.append(self._descriptors(runner, rows))
                done += len(rows)
                advance(done)
        if failures:
            log.warning("%d of %d images gave no descriptor, the first: %s", len(failures), done, failures[0])
        return np.concatenate(blocks)

    def maps(
        self, image: Any, layers: Sequence[str] = ("pool5",), *, scale: int | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Compute maps of one image, not averaged, all in one pass and without its mirror.

        For maps that carry gradients, call the net itself: `vggfeat.load_backbone(...).model(images, layers)`.

        Parameters
        ----------
        image : as an image of `transform`
        layers : sequence of str
            Maps of the net; see `layer`.
        scale : int, optional
            Q, the smallest side in pixels that it is rescaled to; by default it is taken as large as it is.

        Returns
        -------
        dict of str to (C, h, w) float32
            In the order of `layers`. Of a VGG net and an image (H, W): relu1_n is (64, H, W), pool1 and relu2_n
            have half the sides and so on to pool5, (512, H // 32, W // 32); fc6, fc7 and fc8 are 6 shorter than that.
            Where the weights ask for pooling that rounds up, H // 32 is rounded up.

        Raises
        ------
        ImageError
            If the image gives no pixels, or is too long for its scale.
        ConfigError
            If the net has no such layer, or the image is too small for it.
        ResourceError
            If the maps don't fit into memory.
        """
        runner, decode = self._load(), DecodeSettings()
        (found,) = self._decoded(iter([image]), decode, deque())
        if isinstance(found, ImageError):
            raise found
        return maps_of_image(runner, found.regions[0], layers, scale)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Name the D columns: vggfeat0, vggfeat1, ..."""
        length = self._descriptors(self._load(), []).shape[1]
        return np.array([f"vggfeat{index}" for index in range(length)], dtype=object)

    def _rows(self, images: Any, runner: BatchRunner) -> Iterator[tuple[list[Row], list[str]]]:
        """Yield rows and the names of their images, chunk by chunk."""
        names: deque[str] = deque()
        with closing(self._decoded(images, DecodeSettings(largest_side=max(runner.sides)), names)) as decoded:
            while rows := runner.rows(islice(decoded, self.chunk)):
                yield rows, [names.popleft() for _ in rows]

    def _decoded(
        self, images: Any, settings: DecodeSettings, names: deque[str]
    ) -> Generator[DecodedImage | ImageError, None, None]:
        """Yield the pixels of images, in their order; their names are appended when they are drawn."""
        decoder = self._kept().decoder(self.workers, settings)
        reached = StorageSettings(allow_private=self.allow_private)
        fetch = FetchSettings(storage=reached, max_bytes=settings.max_bytes)

        def drawn() -> Iterator[Any]:
            for one in inputs(images, settings, fetch):
                names.append(one.name)
                yield one.found

        yield from decoder.stream(drawn())

    def _descriptors(self, runner: BatchRunner, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Return the descriptors (n, D) of some rows, NaN where there are no features."""
        shape = (len(runner.sides), 1, runner.head.channels)
        features = [row.features for row in rows if row.features is not None]
        stacked = np.stack(features) if features else np.empty((0, *shape), np.float32)  # (m, S, 1, C)
        joined = join_features(stacked, self.join, self.normalisation)  # type: ignore[arg-type]
        if len(features) == len(rows):
            return joined
        out = np.full((len(rows), joined.shape[1]), np.nan, np.float32)
        out[[row.features is not None for row in rows]] = joined
        return out

    def _load(self) -> BatchRunner:
        for name, least in (("chunk", 1), ("workers", 0), ("batch_pixels", 1)):
            whole_number(name, getattr(self, name), least)
        check_choice("errors", self.errors, get_args(Errors))
        join_features(np.zeros((0, 1, 1, 1), np.float32), self.join, self.normalisation)  # type: ignore[arg-type]
        settings = ExtractionSettings(
            scales=self.scales,  # type: ignore[arg-type]
            layer=self.layer,
            precision=self.precision,  # type: ignore[arg-type]
            interpolation=self.interpolation,  # type: ignore[arg-type]
            batch_pixels=self.batch_pixels,
        )

        def make() -> BatchRunner:
            runner = feature_runner(load_backbone(self.weights), settings, self.device or default_device())
            log.info("loaded %r on %s", runner.backbone, runner.device)
            return runner

        return self._kept().runner((str(self.weights), settings, self.device), make)

    def _kept(self) -> Kept:
        kept: Kept | None = self.__dict__.get("_between_calls")
        if kept is not None and kept.process == os.getpid():
            return kept
        if kept is not None:  # a copy that a fork made, whose processes and threads are the parent's
            self.__dict__.pop("_between_calls", None)
        return self.__dict__.setdefault("_between_calls", Kept(self))

    def __getstate__(self) -> dict[str, Any]:
        # The net is found again by its name; a copy of 500 MB in every pickle helps nobody.
        return {name: value for name, value in super().__getstate__().items() if name != "_between_calls"}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        return tags
