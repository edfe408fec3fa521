"""The nearest rows of a feature file by the cosine of their descriptors: exact, every row is looked at, or by an index.

Features are read in blocks, so that a file larger than the memory will do. A quick pass in float32 keeps some more
rows than are asked for; their cosines are then computed like those of all descriptors. N = rows, S = scales, R =
regions, C = channels, D = length of a descriptor.

An image that is not in a feature file gets the features that it would have there: same net, same settings.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import convert_fields, whole_number
from vggfeat.descriptor_stream import region_numbers, take_regions
from vggfeat.descriptors import Join, Normalisation, join_features, l2_normalise, mean_of_scales
from vggfeat.errors import ConfigError, StoreError
from vggfeat.forward.rerun import rerun_net
from vggfeat.images.decode import Request
from vggfeat.images.image_bytes import shown
from vggfeat.images.pool import Decoder
from vggfeat.samples import Box
from vggfeat.search_index import SearchIndex, load_index, make_index
from vggfeat.store.layout import Status
from vggfeat.store.reader import FeatureFile, Features
from vggfeat.store.sharded import ShardedFeatures, check_scales
from vggfeat.weights import Backbone

BLOCK_BYTES = 1 << 23
"""Features in memory at a time; larger blocks are slower, because they no longer fit into the caches."""
SPARE = 100
"""Rows that the quick pass keeps beyond those asked for: it errs by some 1e-6, less than lies between so many rows."""
TRAINED_ON = 5000
"""Rows from which the directions of an index are taken."""


@dataclass(frozen=True, kw_only=True)
class DescriptorSettings:
    """How features become descriptors; the same for the query and for all rows."""

    join: Join = "mean"
    """How scales are joined."""
    normalisation: Normalisation = "blocks"
    """As `vggfeat.descriptors`; a cosine divides by the length of the whole in any case."""
    regions: tuple[str, ...] | None = None
    """Which of the stored regions to stack; None for all."""

    def __post_init__(self) -> None:
        convert_fields(self)

    def describe(self, file: Features, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn features (n, S, R, C) of a file into descriptors (n, D).

        Raises ConfigError if a region is not in the file, or named twice.
        """
        check_scales(file, self.join)
        chosen = take_regions(features, region_numbers(file, self.regions))
        return join_features(chosen, self.join, self.normalisation)


class Neighbour(NamedTuple):
    """A row that is near the query."""

    row: int
    id: str
    path: str
    """Path of the image, relative to the root of the data set."""
    box: Box | None
    """Box of the sample, where it has one."""
    cosine: float
    """Cosine, from -1 to 1; features after a ReLU are not negative, so from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What was found."""

    nearest: tuple[Neighbour, ...]
    """Best first; of equal cosines the earlier row."""
    rows: int
    """Rows that were looked at."""
    failed: int
    """Rows without features, which are never found."""


def query_of_row(file: Features, name: str, settings: DescriptorSettings) -> tuple[int, NDArray[np.float32]]:
    """Return the row of a sample and its descriptor (D,).

    Raises StoreError if there is no sample of this name, or its image failed.
    """
    if name not in file.dataset.ids:
        raise StoreError(
            f"{file.path}: expected a sample {name!r}, found none of this name, nor an image file; "
            "give an id of the file or the path of an image"
        )
    row = file.dataset.ids.index(name)
    features = file.read([row])
    if np.isnan(features).any():  # Of a run in shards this reads one shard, and the status all.
        raise StoreError(f"{file.path}: expected features of {name!r}, found none, because: {file.reasons[row]}")
    return row, settings.describe(file, features)[0]


def nearest(
    file: Features,
    query: NDArray[np.float32],
    settings: DescriptorSettings | None = None,
    *,
    top: int = 20,
    without: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Neighbours:
    """Find the rows nearest to a descriptor.

    Parameters
    ----------
    file : Features
        Open; every byte of it is compared with its checksum before anything is handed back.
    query : (D,) float32
        Made by `settings.describe`.
    settings : DescriptorSettings, optional
    top : int
        How many, from 1.
    without : sequence of int
        Rows that are not to be found, such as that of the query itself.
    progress : callable, optional
        Called with the rows looked at and all of them.

    Raises
    ------
    StoreError
        If the file is damaged.
    ConfigError
        If the query has another length than the descriptors of the file, or no length at all, or `top` is no whole
        number from 1.
    """
    settings = settings or DescriptorSettings()
    top = whole_number("top", top, 1)
    unit = _unit(file, query, settings)
    eligible = file.status == Status.DONE
    eligible[list(without)] = False
    with ThreadPoolExecutor(1) as aside:
        # Hashing keeps one core busy and the products another.
        checked = aside.submit(file.check)
        rows = _scan(file, eligible, unit, settings, top + SPARE, progress)
        checked.result()
    failed = int((file.status != Status.DONE).sum())
    return Neighbours(nearest=_best(file, rows, unit, settings, top), rows=int(eligible.sum()), failed=failed)


def nearest_by_index(
    file: Features,
    query: NDArray[np.float32],
    index: SearchIndex,
    settings: DescriptorSettings | None = None,
    *,
    top: int = 20,
    without: Sequence[int] = (),
) -> Neighbours:
    """Find the rows nearest to a descriptor among the candidates of an index, whose cosines are exact.

    Only the features of the candidates are read: of a run in shards their shards, compared with their SHA-256; the rows
    of a file are not compared with its checksums. Parameters, returned value and errors are those of `nearest`.
    """
    settings = settings or DescriptorSettings()
    top = whole_number("top", top, 1)
    unit = _unit(file, query, settings)
    rows = np.setdiff1d(index.candidates(unit, top + SPARE + len(without)), list(without))
    found = _best(file, rows, unit, settings, top)
    return Neighbours(nearest=found, rows=len(index) - len(without), failed=index.failed)


def open_index(
    file: Features, path: Path, settings: DescriptorSettings, progress: Callable[[int, int], None] | None = None
) -> SearchIndex:
    """Read the index of a file's descriptors, or make it, which reads all of them, if `path` is free.

    Raises StoreError if the file is damaged, or the index, or that is of other features or settings; ConfigError if the
    library faiss is not installed.
    """
    own = file.plan.token if isinstance(file, ShardedFeatures) else None
    if isinstance(file, FeatureFile):
        own = file.features_sha256
    wanted = file.regions if settings.regions is None else settings.regions
    about = {"features": own, "rows": len(file), "join": settings.join, "normalisation": settings.normalisation,
             "regions": list(wanted)}  # fmt: skip
    if path.exists():
        return load_index(path, about)
    file.check()
    done = np.flatnonzero(file.status == Status.DONE)
    some = done[np.unique(np.linspace(0, max(len(done) - 1, 0), TRAINED_ON).astype(int))] if len(done) else done
    index = make_index(_units(file, some, settings), _blocks(file, done, settings, progress), about, len(file))
    index.save(path)
    return index


def _blocks(
    file: Features, done: NDArray[np.int64], settings: DescriptorSettings, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    step = max(1, BLOCK_BYTES // file.shape.row_bytes)
    for start in range(0, len(done), step):
        rows = done[start : start + step]
        yield rows, _units(file, rows, settings)
        if progress is not None:
            progress(start + len(rows), len(done))


def _units(file: Features, rows: NDArray[np.int64], settings: DescriptorSettings) -> NDArray[np.float32]:
    """Return the descriptors (n, D) of rows at length 1."""
    return l2_normalise(settings.describe(file, file.read(rows)))


def _unit(file: Features, query: NDArray[np.float32], settings: DescriptorSettings) -> NDArray[np.float32]:
    length = settings.describe(file, np.zeros((0, *file.shape.dims), np.float32)).shape[1]
    if query.shape != (length,):
        raise ConfigError(f"query: expected a descriptor of {length} values, found shape {query.shape}")
    if not np.isfinite(query).all() or not query.any():
        raise ConfigError("query: expected finite values that are not all 0, found others: it has no direction")
    return l2_normalise(query[None])[0]


def _scan(
    file: Features,
    eligible: NDArray[np.bool_],
    unit: NDArray[np.float32],
    settings: DescriptorSettings,
    count: int,
    progress: Callable[[int, int], None] | None,
) -> NDArray[np.int64]:
    """Return the ascending rows of the `count` best cosines, to rounding."""
    best, values = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    step = max(1, BLOCK_BYTES // file.shape.row_bytes)
    for start in range(0, len(file), step):
        rows = np.flatnonzero(eligible[start : start + step]) + start
        if len(rows):
            best = np.concatenate([best, rows])
            values = np.concatenate([values, _quick(file.read(rows), unit, settings, file)])
            if len(best) > count:
                kept = np.argpartition(-values, count - 1)[:count]
                best, values = best[kept], values[kept]
        if progress is not None:
            progress(min(start + step, len(file)), len(file))
    return np.sort(best)


def _quick(
    features: NDArray[np.float32], unit: NDArray[np.float32], settings: DescriptorSettings, file: Features
) -> NDArray[np.float32]:
    """(n,) cosines without the descriptors: products with the query, divided by the lengths of blocks or wholes."""
    if len(features[0]) > 1 or settings.regions is not None:
        features = replace(settings, normalisation="none").describe(file, features)
    regions = len(settings.regions or file.regions)
    blocks = features.reshape(len(features), regions, -1)
    products = np.stack([blocks[:, r] @ part for r, part in enumerate(unit.reshape(regions, -1))], axis=1)
    squares = np.einsum("nrl,nrl->nr", blocks, blocks)
    if settings.normalisation == "blocks":
        products = np.divide(products, np.sqrt(squares), out=np.zeros_like(products), where=squares > 0)
        squares = (squares > 0).astype(np.float32)
    lengths = np.sqrt(squares.sum(axis=1))
    return np.divide(products.sum(axis=1), lengths, out=np.zeros_like(lengths), where=lengths > 0)


def _best(
    file: Features, rows: NDArray[np.int64], unit: NDArray[np.float32], settings: DescriptorSettings, top: int
) -> tuple[Neighbour, ...]:
    descriptors = settings.describe(file, file.read(rows))
    if settings.normalisation == "none":
        descriptors = l2_normalise(descriptors)
    # Rounding alone leads beyond 1.
    cosines = np.clip(descriptors.astype(np.float64) @ unit, -1, 1)
    found = []
    for place in np.argsort(-cosines, kind="stable")[:top].tolist():
        sample = file.dataset[int(rows[place])]
        found.append(Neighbour(int(rows[place]), sample.id, sample.path, sample.box, float(cosines[place])))
    return tuple(found)


def row_of_image(file: Features, image: Path) -> int | None:
    """Find the row whose image file has the same bytes; None if there is none.

    Raises StoreError if the image can't be read.
    """
    try:
        with image.open("rb") as content:
            digest = np.frombuffer(hashlib.file_digest(content, "sha256").digest(), np.uint8)
    except OSError as error:
        raise StoreError(f"{image}: expected an image, found: {error.strerror or error}") from None
    same = np.flatnonzero((file.sha256 == digest).all(axis=1))
    return int(same[0]) if len(same) else None


def extract_query(
    file: Features,
    image: Path,
    backbone: Backbone,
    device: str | None = None,
    *,
    regions: tuple[str, ...] | None = None,
) -> NDArray[np.float32]:
    """Compute the features of an image as those in a file were computed.

    Parameters
    ----------
    file : Features
    image : Path
    backbone : Backbone
        The net that made the file, of `vggfeat.forward.rerun.find_net`.
    device : str, optional
        cpu, cuda, cuda:1, ..., mps; a CUDA GPU if there is one by default.
    regions : tuple of str, optional
        Regions that will be compared; all of the file by default.

    Returns
    -------
    (1, S, R, C) float32
        NaN in regions that are not compared.

    Raises
    ------
    ConfigError
        If boxes are to be compared, which an image alone doesn't have.
    StoreError
        If the image gives no features.
    """
    wanted = file.regions if regions is None else regions
    if set(wanted) != {"image"}:
        raise ConfigError(
            f"{image}: expected an id of {file.path}, because features of {', '.join(wanted)} are compared and an "
            "image alone has no box, found an image; give --regions image, or an id"
        )
    runner, decode = rerun_net(str(file.path), file.provenance, file.scales, backbone, device)
    place = os.path.abspath(image)
    with Decoder(1, decode) as decoder:
        (row,) = runner.rows(decoder.stream([Request(place, (None,))]))
    if row.features is None:
        found = row.failure and row.failure.without(shown(place))
        raise StoreError(f"{image}: expected an image to look for, found: {found}")
    features = np.full((1, *file.shape.dims), np.nan, dtype=np.float32)
    kept = row.features if file.store == "scales" else mean_of_scales(row.features[None])
    features[0, :, file.regions.index("image")] = kept[:, 0]
    return features
