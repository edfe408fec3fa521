"""The stages of extraction one by one and all together, each as something that can be timed.

N = pictures of a batch, S = scales, C = channels, H, W = picture sides in pixels.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vggfeat.benchmarks.jpegs import listed
from vggfeat.benchmarks.operations import layer_costs
from vggfeat.caching import CacheSettings, cache_rows
from vggfeat.computing import Work, to_block
from vggfeat.errors import ConfigError, PictureError
from vggfeat.extraction import Extraction, requests
from vggfeat.images.decoding import DecodeSettings, Picture
from vggfeat.images.pool import Decoder
from vggfeat.passes import Row
from vggfeat.passes.running import exact_float32
from vggfeat.samples import DataSet, Place
from vggfeat.store.parts import Parts
from vggfeat.store.shards import Shape
from vggfeat.transforms import normalise, pad, rescale, rescaled_size
from vggfeat.weights import Backbone


class Batch(NamedTuple):
    """Pictures that go through the net together, as it takes them: on its device, rescaled and normalised."""

    images: Tensor
    """(N, 3, H, W), float32."""
    sides: Tensor | None
    """(N, 2), height and width of each where they differ, else None."""


class Stages:
    """Pictures and a net, in memory; every method does one stage for all pictures.

    Parameters
    ----------
    backbone : Backbone
    extraction : Extraction
        In float32; decides scales, layer and device.
    files : DataSet
    decoder : Decoder
    cache : CacheSettings
        Of the runs from files to file.
    repeat : int
        How many times writing, and these runs, go through the files.
    """

    def __init__(
        self,
        backbone: Backbone,
        extraction: Extraction,
        files: DataSet,
        decoder: Decoder,
        cache: CacheSettings,
        repeat: int,
    ) -> None:
        self.backbone, self.extraction, self.files, self.decoder = backbone, extraction, files, decoder
        self.cache = cache
        self.often = listed(Path(files.root), files.paths, repeat)
        self.pictures = list(self._decoded())
        self.rows = self.compute(extraction)
        """Of the pictures, by this extraction."""

    def decode(self) -> None:
        """Turn the files into pixels."""
        for _ in self._decoded():
            pass

    def resize(self) -> None:
        """Upload every picture, rescale it to all sizes and normalise it."""
        one = self.extraction
        with torch.inference_mode():
            for picture in self.pictures:
                uploaded = one.uploaded(picture.regions[0])
                height, width = uploaded.shape[1:]
                for side in one.sides:
                    size = rescaled_size(height, width, side)
                    normalise(rescale(uploaded, size, one.settings.interpolation), one.mean, one.std)

    def batches(self, extraction: Extraction) -> list[Batch]:
        """Return the batches that an extraction makes of the pictures, shard by shard."""
        found, step = [], self.cache.rows()
        with torch.inference_mode():
            for start in range(0, len(self.pictures), step):
                pixels = [one.regions[0] for one in self.pictures[start : start + step]]
                places, sizes = extraction.places([[one.shape[:2]] for one in pixels])
                for batch in extraction.batches(sizes):
                    chosen = [(extraction.uploaded(pixels[places[i][0]]), sizes[i]) for i in batch]
                    found.append(_batch(extraction, chosen))
        return found

    def write(self) -> None:
        """Commit the features in shards, and join these to a file that is read back."""
        one = self.extraction
        shape = Shape(scales=one.settings.scales, regions=one.regions, channels=one.channels)
        with self.out() as out, Parts.open(
            out, self.often, {"benchmark": "writing"}, shape, shard_rows=self.cache.rows()
        ) as parts:  # fmt: skip
            for shard in parts.pending:
                rows = [self.rows[row % len(self.rows)] for row in parts.rows(shard)]
                parts.commit(shard, to_block(rows, shape, [""] * len(rows)))
            parts.consolidate({})

    def run(self, extraction: Extraction) -> None:
        """Go from files to a feature file, as `vggfeat extract` does once the net is there."""
        work = Work(
            dataset=self.often,
            backbone=self.backbone,
            passes=extraction,
            place=lambda row: Place(self.often.file_of(row), None),
        )
        with self.out() as out:
            cache_rows(work, out, cache=self.cache, decode=DecodeSettings())

    def compute(self, extraction: Extraction) -> list[Row]:
        """Return the rows of the pictures, computed shard by shard.

        Raises
        ------
        ConfigError
            If one fails.
        """
        step = self.cache.rows()
        starts = range(0, len(self.pictures), step)
        rows = [row for start in starts for row in extraction.rows(self.pictures[start : start + step])]
        for row in rows:
            if row.reason:
                raise ConfigError(f"{extraction.settings.precision}: expected features of every picture: {row.reason}")
        return rows

    def multiply_adds(self) -> float:
        """Return those of a picture and its mirror at all scales, the mean over the pictures."""
        total = 0
        for picture in self.pictures:
            for side in self.extraction.sides:
                layers = layer_costs(
                    self.backbone.model, *rescaled_size(*picture.size, side), self.extraction.settings.layer
                )
                total += 2 * sum(layer.multiply_adds for layer in layers)
        return total / len(self.pictures)

    @contextmanager
    def out(self) -> Iterator[Path]:
        """Lend the name of a new file, which is removed in the end."""
        folder = Path(tempfile.mkdtemp(dir=self.files.root))
        try:
            yield folder / "features.h5"
        finally:
            shutil.rmtree(folder)

    def _decoded(self) -> Iterator[Picture]:
        for picture in self.decoder.stream(requests(self.files, range(len(self.files)), ("image",))):
            if isinstance(picture, PictureError):
                raise picture
            yield picture


def run_network(extraction: Extraction, batches: Sequence[Batch]) -> None:
    """Run the net alone: mirrors, precision, the layers, the means over space and mirror."""
    settings = extraction.settings
    with torch.inference_mode(), exact_float32(settings.precision):
        for images, sides in batches:
            if sides is None:
                extraction.read(images, settings.batch_pixels)
            else:
                extraction.read_padded(images, sides)


def _batch(extraction: Extraction, pictures: Sequence[tuple[Tensor, tuple[int, int]]]) -> Batch:
    mean, std = extraction.mean, extraction.std
    rescaled = [rescale(picture, size, extraction.settings.interpolation) for picture, size in pictures]
    if len({size for _, size in pictures}) == 1:
        return Batch(normalise(torch.stack(rescaled), mean, std), None)
    sides = extraction.on_device(torch.tensor([size for _, size in pictures]))
    return Batch(pad([normalise(one, mean, std) for one in rescaled]), sides)
