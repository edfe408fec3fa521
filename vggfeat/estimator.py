"""Descriptors inside other programs: a scikit-learn transformer from images to vectors."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin

from vggfeat.descriptors import join_features
from vggfeat.errors import ConfigError, ImageError
from vggfeat.forward.features import ExtractionSettings, feature_runner
from vggfeat.forward.runner import BatchRunner
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request, region_of
from vggfeat.images.pool import Decoder
from vggfeat.runtime.devices import default_device
from vggfeat.weights import load_backbone


class Extractor(TransformerMixin, BaseEstimator):
    """Turn images into L2-normalised descriptors, as Appendix B of the VGG paper does.

    Nothing is learnt from the images: `fit` only loads the net. It works inside a `Pipeline`, clones, and pickles
    without the net.

    Parameters
    ----------
    weights : str, path or None
        As for `vggfeat extract --weights`.
    scales : sequence of int
        Q, smallest image sides in pixels.
    join : "mean", "max" or "stack"
        Over scales.
    normalisation : "blocks", "whole" or "none"
        See `vggfeat.descriptors`.
    layer : "fc7", "fc6", "fc8" or "pool5"
    precision : "fp32", "tf32", "bf16" or "fp16"
    interpolation : "bilinear" or "bicubic"
    device : str or None
        A GPU if there is one, by default.
    workers : int
        Processes that decode image files; 0 decodes in this process, without limits of time and memory.
    chunk : int
        Images decoded and run at a time.
    batch_pixels : int
        Pixels in one pass of the net, mirrors included: bounds the memory.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.svm import LinearSVC
    >>> model = make_pipeline(Extractor("vgg16-397923af.pth"), LinearSVC())
    >>> model.fit(paths, labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        scales: Sequence[int] = (256, 384, 512),
        *,
        join: str = "mean",
        normalisation: str = "blocks",
        layer: str = "fc7",
        precision: str = "fp32",
        interpolation: str = "bilinear",
        device: str | None = None,
        workers: int = 0,
        chunk: int = 32,
        batch_pixels: int = 1 << 20,
    ) -> None:
        self.weights = weights
        self.scales = scales
        self.join = join
        self.normalisation = normalisation
        self.layer = layer
        self.precision = precision
        self.interpolation = interpolation
        self.device = device
        self.workers = workers
        self.chunk = chunk
        self.batch_pixels = batch_pixels

    def fit(self, X: Any = None, y: Any = None) -> Self:  # noqa: N803
        """Load the net. X and y are not looked at.

        Raises
        ------
        ConfigError, WeightsError
            If a parameter is not allowed or the net can't be loaded.
        """
        self._load()
        return self

    def transform(self, X: Iterable[str | os.PathLike[str] | Image.Image]) -> NDArray[np.float32]:  # noqa: N803
        """Compute descriptors.

        Parameters
        ----------
        X : n paths, PIL images, or both
            An image in memory of more than 8 bits has to be as `PIL.Image.open` returned it: copies, crops and pickles
            no longer say what is black and white.

        Returns
        -------
        (n, D) float32
            Rows in the order of X, of unit length unless `normalisation` is "none".

        Raises
        ------
        ImageError
            For the first image that gives no pixels, or whose values can't be known, by its number and name. Nothing
            is skipped or replaced.
        ConfigError
            If an item is neither a path nor a PIL image.
        ResourceError
            If the system gives no process to decode in.
        """
        if isinstance(X, (str, os.PathLike, Image.Image)):
            raise ConfigError(f"X: expected a list of paths or PIL images, found a single {type(X).__name__}")
        runner = self._load()
        decode = DecodeSettings(largest_side=max(runner.sides))
        blocks = [np.empty((0, *self._feature_shape(runner)), dtype=np.float32)]
        with Decoder(self.workers, decode) as decoder:
            for start, chunk in _chunks(X, self.chunk):
                rows = runner.rows(_images(chunk, decoder, decode))
                for index, row in enumerate(rows, start=start):
                    if row.features is None:
                        reason, _, text = row.reason.partition(": ")
                        raise ImageError(reason, f"image {index}: {text}")
                blocks.append(np.stack([row.features for row in rows if row.features is not None]))
        return join_features(np.concatenate(blocks), self.join, self.normalisation)  # type: ignore[arg-type]

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Name the D columns: vggfeat0, vggfeat1, ..."""
        scales, _, channels = self._feature_shape(self._load())
        length = channels * (scales if self.join == "stack" else 1)
        return np.array([f"vggfeat{index}" for index in range(length)], dtype=object)

    def _load(self) -> BatchRunner:
        if self.chunk < 1:
            raise ConfigError(f"chunk: expected at least 1, found {self.chunk}")
        join_features(np.zeros((0, 1, 1, 1), np.float32), self.join, self.normalisation)  # type: ignore[arg-type]
        settings = ExtractionSettings(
            scales=tuple(int(scale) for scale in self.scales),
            layer=self.layer,
            precision=self.precision,  # type: ignore[arg-type]
            interpolation=self.interpolation,  # type: ignore[arg-type]
            batch_pixels=self.batch_pixels,
        )
        wanted = (str(self.weights), settings, self.device)
        if getattr(self, "_loaded", (None,))[0] != wanted:
            self._loaded = (
                wanted,
                feature_runner(load_backbone(self.weights), settings, self.device or default_device()),
            )
        return self._loaded[1]

    def _feature_shape(self, runner: BatchRunner) -> tuple[int, int, int]:
        return len(runner.sides), 1, runner.head.channels

    def __getstate__(self) -> dict[str, Any]:
        # The net is found again by its name; a copy of 500 MB in every pickle helps nobody.
        return {name: value for name, value in super().__getstate__().items() if name != "_loaded"}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        return tags


def _chunks(items: Iterable[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    chunk: list[Any] = []
    start = 0
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield start, chunk
            start, chunk = start + size, []
    if chunk:
        yield start, chunk


def _images(chunk: Sequence[Any], decoder: Decoder, settings: DecodeSettings) -> Iterator[DecodedImage | ImageError]:
    for item in chunk:
        if not isinstance(item, str | os.PathLike | Image.Image):
            advice = "; give PIL.Image.fromarray of it, 0 to 255 as uint8" if hasattr(item, "__array__") else ""
            raise ConfigError(f"X: expected paths or PIL images, found {type(item).__name__}{advice}")
    paths = [os.path.abspath(item) for item in chunk if not isinstance(item, Image.Image)]
    files = decoder.stream(Request(path, (None,)) for path in paths)
    for item in chunk:
        if not isinstance(item, Image.Image):
            yield next(files)
            continue
        try:
            yield region_of(item, settings)
        except ImageError as error:
            yield error
