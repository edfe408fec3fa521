"""The stages of extraction one by one and all together, each as something that can be timed.

N = images of a batch, S = scales, C = channels, H, W = image sides in pixels.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggfeat.benchmarks.jpegs import listed
from vggfeat.benchmarks.operations import layer_costs
from vggfeat.errors import ConfigError, ImageError, out_of_memory
from vggfeat.extract import RunSettings, run_job
from vggfeat.forward import Row
from vggfeat.forward.features import Extraction, requests
from vggfeat.images.decode import DecodedImage, DecodeSettings
from vggfeat.images.pool import Decoder
from vggfeat.nets.transforms import normalise, rescale, rescaled_size
from vggfeat.samples import DataSet, Place
from vggfeat.shard_stream import Work, to_block
from vggfeat.store.layout import Shape
from vggfeat.store.reader import FeatureFile
from vggfeat.store.writer import FeatureWriter
from vggfeat.weights import Backbone


class Batch(NamedTuple):
    """Images that go through the net together, as it takes them: on its device, rescaled and normalised."""

    images: Tensor
    """(N, 3, H, W), float32."""
    sides: Tensor | None
    """(N, 2), height and width of each where they differ, else None."""


class Stages:
    """Images and a net, in memory; every method does one stage for all images.

    Parameters
    ----------
    backbone : Backbone
    extraction : Extraction
        In float32, not compiled; decides scales, layer and device.
    files : DataSet
    decoder : Decoder
    cache : RunSettings
        Of the runs from files to file.
    repeat : int
        How many times `often` goes through the files.

    Raises
    ------
    ConfigError
        If a batch of the extraction does not fit into memory.
    """

    def __init__(
        self,
        backbone: Backbone,
        extraction: Extraction,
        files: DataSet,
        decoder: Decoder,
        cache: RunSettings,
        repeat: int,
    ) -> None:
        self.backbone, self.extraction, self.files, self.decoder = backbone, extraction, files, decoder
        self.cache = cache
        self.often = listed(Path(files.root), files.paths, repeat)
        self.images = list(self._decoded())
        self._batches: dict[str, list[Batch]] = {}
        self.expected = self.features(extraction)
        """(N, S, C), by this extraction."""
        self.rows = [
            Row(found[:, None], "", image.size, image.sha256)
            for found, image in zip(self.expected, self.images, strict=True)
        ]

    def decode(self) -> None:
        """Turn the files into pixels."""
        for _ in self._decoded():
            pass

    def resize(self) -> None:
        """Upload every image, rescale it to all sizes and normalise it."""
        one = self.extraction
        with torch.inference_mode():
            for image in self.images:
                uploaded = one.uploaded(image.regions[0])
                height, width = uploaded.shape[1:]
                for side in one.sides:
                    size = rescaled_size(height, width, side)
                    normalise(rescale(uploaded, size, one.settings.interpolation), one.mean, one.std)

    def batches(self, extraction: Extraction) -> list[Batch]:
        """Return the batches that an extraction makes of the images, shard by shard.

        Those of equal batching are the same tensors.

        Raises
        ------
        ConfigError
            If they do not fit into memory together.
        """
        found, step = self._batches.setdefault(extraction.settings.batching, []), self.cache.rows()
        if found:
            return found
        with fitting(extraction), torch.inference_mode():
            for start in range(0, len(self.images), step):
                pixels = [one.regions[0] for one in self.images[start : start + step]]
                places, sizes = extraction.places([[one.shape[:2]] for one in pixels])
                for batch in extraction.batches(sizes):
                    chosen = [(extraction.uploaded(pixels[places[i][0]]), sizes[i]) for i in batch]
                    found.append(Batch(*extraction.prepared(chosen)))
        return found

    def write(self, files: DataSet) -> None:
        """Commit the features of files in shards, and join these to a file that is read back."""
        one = self.extraction
        shape = Shape(scales=one.settings.scales, regions=one.regions, channels=one.channels)
        with self.out() as out, FeatureWriter.open(
            out, files, {"benchmark": "writing"}, shape, shard_rows=self.cache.rows()
        ) as parts:  # fmt: skip
            for shard in parts.pending:
                rows = [self.rows[row % len(self.rows)] for row in parts.rows(shard)]
                parts.append(shard, to_block(rows, shape, [""] * len(rows)))
            parts.finish({})

    def run(self, extraction: Extraction, files: DataSet) -> None:
        """Go from files to a feature file, as `vggfeat extract` does once the net is there.

        What that does after the last image of a run in bf16, fp16 or tf32 is left out: it computes four images
        again in float32, which is nothing beside a real data set and much beside a few files.

        Raises
        ------
        ConfigError
            If an image fails, or a batch does not fit into memory.
        """
        with self.out() as out:
            self._cache(extraction, files, out)

    def features(self, extraction: Extraction) -> NDArray[np.float32]:
        """Do what `run` does, once with every file, and return the features, (N, S, C)."""
        with self.out() as out:
            self._cache(extraction, self.files, out)
            with FeatureFile(out) as file:
                return file.read()[:, :, 0]

    def _cache(self, extraction: Extraction, files: DataSet, out: Path) -> None:
        work = Work(
            dataset=files,
            backbone=self.backbone,
            passes=extraction,
            place=lambda row: Place(files.file_of(row), None),
        )
        summary = run_job(work, out, cache=self.cache, decode=DecodeSettings())
        # Halves are other batches than those of the net alone.
        if extraction.halvings:
            raise ConfigError(_unfit(extraction, f"{extraction.halvings} that had to be halved"))
        for _, reason in summary.failures[:1]:
            raise ConfigError(f"{extraction.settings.precision}: expected features of every image: {reason}")

    def multiply_adds(self) -> float:
        """Return those of an image and its mirror at all scales, the mean over the images."""
        total = 0
        for image in self.images:
            for side in self.extraction.sides:
                layers = layer_costs(
                    self.backbone.model, *rescaled_size(*image.size, side), self.extraction.settings.layer
                )
                total += 2 * sum(layer.multiply_adds for layer in layers)
        return total / len(self.images)

    @contextmanager
    def out(self) -> Iterator[Path]:
        """Lend the name of a new file, which is removed in the end."""
        folder = Path(tempfile.mkdtemp(dir=self.files.root))
        try:
            yield folder / "features.h5"
        finally:
            shutil.rmtree(folder)

    def _decoded(self) -> Iterator[DecodedImage]:
        for image in self.decoder.stream(requests(self.files, range(len(self.files)), ("image",))):
            if isinstance(image, ImageError):
                raise image
            yield image


@contextmanager
def fitting(extraction: Extraction) -> Iterator[None]:
    """Turn what a library says when memory runs out into a ConfigError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ConfigError(_unfit(extraction, str(error).partition(". ")[0] or "no memory left")) from None


def run_network(extraction: Extraction, batches: Sequence[Batch]) -> None:
    """Run the net alone: mirrors, precision, the layers, the means over space and mirror.

    Raises
    ------
    ConfigError
        If a batch does not fit into memory.
    """
    pixels = extraction.settings.batch_pixels
    with fitting(extraction), extraction.computing():
        for images, sides in batches:
            if sides is None:
                extraction.read(images, pixels)
            else:
                extraction.read_padded(images, sides)


def _unfit(extraction: Extraction, found: str) -> str:
    kept = extraction.settings
    return (
        f"{kept.precision}, {kept.batching}: expected batches that fit into the memory of {extraction.device}, found "
        f"{found}; give a --batch-pixels below {kept.batch_pixels}, or fewer --images"
    )
