"""Class posteriors of several scales, modes and nets become one: their average (VGG paper, Sect. 4.2 to 4.4).

Files are gone through one after the other and in blocks of rows, so that one table (N, K) is the only large thing in
memory. N = images, S = scales of a file, K = classes.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, StoreError
from vggfeat.samples import DataSet
from vggfeat.store.layout import POSTERIORS, Status
from vggfeat.store.reader import FeatureFile
from vggfeat.table import Paths, class_numbers, match_rows

BLOCK_BYTES = 1 << 25
"""Posteriors of a file that are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class FusedPart:
    """What one file gave."""

    file: str
    """Name of the file, without its folder."""
    scales: tuple[int, ...]
    """Q that were taken, in pixels."""
    share: float
    """What each of them counts, from 0 to 1."""
    failed: int
    """Images without posteriors in it."""
    provenance: Mapping[str, Any]
    """What the file says of its making."""

    @property
    def net(self) -> str:
        """A, A-LRN, B, C, D or E."""
        return str(self.provenance.get("net"))

    @property
    def mode(self) -> str:
        """Mode: crop, dense or multi-crop."""
        return str(self.provenance.get("mode"))

    @property
    def sha256(self) -> str:
        """Of the weights: what tells nets apart."""
        return str(self.provenance.get("weights_sha256"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Fused:
    """Class posteriors of images with one true class each."""

    posteriors: NDArray[np.float32]
    """(N, K), rows sum to 1; -inf in rows of images that failed in one of the files."""
    targets: NDArray[np.int64]
    """(N,) true classes."""
    ids: tuple[str, ...]
    """N unique names of images."""
    paths: tuple[str, ...]
    """N paths of images, relative to the root of the data."""
    classes: tuple[str, ...]
    """K names, in the order of the columns."""
    words: Mapping[str, str]
    """Class name -> what people call it; empty if the files don't say."""
    failed: Mapping[str, str]
    """Id -> reason, of every image that failed, in row order."""
    parts: tuple[FusedPart, ...]
    """What was averaged, file by file."""
    dataset: Mapping[str, Any]
    """Name and fingerprint of the data set, and how its copy is laid out."""

    @property
    def ok(self) -> NDArray[np.bool_]:
        """(N,) False where an image failed."""
        return np.isfinite(self.posteriors[:, 0])

    def top(self, k: int) -> NDArray[np.int64]:
        """Return the k classes of the highest posteriors, (N, min(k, K)), best first.

        Of equal posteriors the lower number comes first, as in `vggfeat.metrics.top_k_error`; -1 in failed rows.
        """
        k = min(k, len(self.classes))
        found = np.full((len(self.ids), k), -1, dtype=np.int64)
        step = max(1, BLOCK_BYTES // (8 * len(self.classes)))
        for start in range(0, len(found), step):
            order = np.argsort(-self.posteriors[start : start + step], axis=1, kind="stable")
            found[start : start + step] = order[:, :k]
        found[~self.ok] = -1
        return found


def fuse(files: Paths, *, scales: Sequence[int] | None = None) -> Fused:
    """Average the posteriors of files: over scales, then over the modes of a net, then over nets.

    So every net counts the same, whether it has one file or several, and dense and multi-crop count the same for a
    net, whatever scales they have. Nets are told apart by the SHA-256 of their weights.

    Parameters
    ----------
    files : path, or sequence of paths
        Files that `vggfeat.classification.extract.cache_posteriors` wrote, of the same images in any order; rows
        are matched by id and take the order of the first file.
    scales : sequence of int, optional
        Take only these Q of every file; all that it has, by default.

    Returns
    -------
    Fused

    Raises
    ------
    StoreError
        If a file is damaged or holds no posteriors, or files differ in images, classes or labels.
    ConfigError
        If no file is given, a scale is not in a file, or a net has the same mode and scale twice.
    """
    paths = [Path(path) for path in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    if not paths:
        raise ConfigError("posteriors: expected at least one file, found none")
    heads = [_head(path, scales) for path in paths]
    shares = _shares(heads)
    sum_ = _Sum()
    for head, share in zip(heads, shares, strict=True):
        with FeatureFile(head.path) as file:
            file.check()
            sum_.add(file, head.scales, share)
    return sum_.result()


@dataclass(frozen=True, kw_only=True)
class _Head:
    path: Path
    net: str
    mode: str
    scales: tuple[int, ...]


def _head(path: Path, scales: Sequence[int] | None) -> _Head:
    with FeatureFile(path) as file:
        if file.key.get("layer") != POSTERIORS:
            found = f"features of {file.key.get('layer')}"
            raise StoreError(f"{path}: expected class posteriors, found {found}; make them with `vggfeat classify`")
        wanted = file.scales if scales is None else tuple(scales)
        missing = [q for q in wanted if q not in file.scales]
        if missing or not wanted:
            stored = ", ".join(map(str, file.scales))
            raise ConfigError(f"scales: expected some of {stored} ({path}), found {missing or 'none'}")
        told = file.key
        return _Head(path=path, net=str(told.get("weights_sha256")), mode=str(told.get("mode")), scales=wanted)


def _shares(heads: Sequence[_Head]) -> list[float]:
    """Return what a scale of each file counts: nets count the same, modes within a net, scales within a mode."""
    used = Counter((head.net, head.mode, q) for head in heads for q in head.scales)
    for head in heads:
        twice = [q for q in head.scales if used[head.net, head.mode, q] > 1]
        if twice:
            raise ConfigError(
                f"{head.path}: expected each net, mode and scale once, found {head.mode} at Q = {twice[0]} of its net "
                "twice; leave a file out"
            )
    nets = {head.net for head in heads}
    modes = {net: {head.mode for head in heads if head.net == net} for net in nets}
    count = Counter((head.net, head.mode) for head in heads for _ in head.scales)
    return [1 / (len(nets) * len(modes[head.net]) * count[head.net, head.mode]) for head in heads]


class _Sum:
    """A table that files are added to, one after the other."""

    def __init__(self) -> None:
        self._first: DataSet | None = None
        self._name = ""
        self._reasons: dict[int, str] = {}
        self._parts: list[FusedPart] = []
        self._words: dict[str, str] = {}

    def add(self, file: FeatureFile, scales: Sequence[int], share: float) -> None:
        classes = len(file.dataset.classes)
        if file.shape.dims[1:] != (1, classes):
            raise StoreError(f"{file.path}: expected posteriors of {classes} classes, found {file.channels} channels")
        order = self._matched(file)
        places = [file.scales.index(q) for q in scales]
        step = max(1, BLOCK_BYTES // file.shape.row_bytes)
        for start in range(0, len(order), step):
            values = file.read(order[start : start + step])
            for place in places:
                self._table[start : start + step] += np.float32(share) * values[:, place, 0]
        failed = np.flatnonzero(file.status[order] != Status.DONE).tolist()
        for row in failed:
            self._reasons.setdefault(row, file.reasons[order[row]])
        self._words = self._words or _texts(file.provenance.get("words"))
        self._parts.append(
            FusedPart(
                file=file.path.name,
                scales=tuple(scales),
                share=share,
                failed=len(failed),
                provenance={name: value for name, value in file.provenance.items() if name != "words"},
            )
        )

    def _matched(self, file: FeatureFile) -> NDArray[np.int64]:
        """Find the rows of a file that the rows of the table are, and check that the images are the same."""
        done = file.status == Status.DONE
        if self._first is None:
            self._first, self._name = file.dataset, str(file.path)
            self._done, self._sha256 = done, file.sha256
            self._table = np.zeros((len(file), file.channels), np.float32)
            return np.arange(len(file))
        order = match_rows(self._first, file.dataset, self._name, str(file.path))
        differing = np.flatnonzero(self._done & done[order] & (self._sha256 != file.sha256[order]).any(axis=1))
        if len(differing):
            raise StoreError(
                f"{self._name} and {file.path}: expected posteriors of the same images, found that the image "
                f"{self._first.ids[differing[0]]!r} had other bytes; make both from one copy of the data"
            )
        return order

    def result(self) -> Fused:
        assert self._first is not None  # `fuse` adds at least one.
        data = self._first
        failed = sorted(self._reasons)
        self._table[failed] = -np.inf
        return Fused(
            posteriors=self._table,
            targets=class_numbers(data.labels),
            ids=data.ids,
            paths=data.paths,
            classes=data.classes,
            words=self._words,
            failed={data.ids[row]: self._reasons[row] for row in failed},
            parts=tuple(self._parts),
            dataset={
                "name": data.name,
                "fingerprint": data.fingerprint(),
                "layout": self._parts[0].provenance.get("layout"),
            },
        )


def _texts(words: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in words.items()} if isinstance(words, Mapping) else {}
