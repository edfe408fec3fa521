"""Class posteriors of several scales, modes and nets become one, their average, whose errors are counted.

VGG paper, Sect. 4.2 to 4.4. Files are read one after the other and in blocks of rows, so that one table (N, K) is the
only large thing in memory. N = images, S = scales of a file, K = classes.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import as_tuple
from vggfeat.descriptor_stream import Paths, match_rows
from vggfeat.errors import ConfigError, FitError, StoreError
from vggfeat.metrics import GUESSES, confusion, top_k_error
from vggfeat.store.layout import POSTERIORS, Status
from vggfeat.store.reader import FeatureFile
from vggfeat.table import class_numbers

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
    chosen = [_choose_scales(path, scales) for path in paths]
    with FeatureFile(paths[0]) as file:
        data, done, sha256 = file.dataset, file.status == Status.DONE, file.sha256
    posteriors = np.zeros((len(data), len(data.classes)), np.float32)
    parts: list[FusedPart] = []
    reasons: dict[int, str] = {}
    words: dict[str, str] = {}
    for path, one, share in zip(paths, chosen, _shares(chosen), strict=True):
        with FeatureFile(path) as file:
            file.check()
            if file.shape.dims[1:] != (1, len(file.dataset.classes)):
                expected = f"posteriors of {len(file.dataset.classes)} classes"
                raise StoreError(f"{path}: expected {expected}, found {file.channels} channels")
            order = match_rows(data, file.dataset, str(paths[0]), str(path))
            both_done = done & (file.status[order] == Status.DONE)
            differing = np.flatnonzero(both_done & (sha256 != file.sha256[order]).any(axis=1))
            if len(differing):
                raise StoreError(
                    f"{paths[0]} and {path}: expected posteriors of the same images, found that the image "
                    f"{data.ids[differing[0]]!r} had other bytes; make both from one copy of the data"
                )
            _add_posteriors(posteriors, file, order, one.scales, share)
            failed = np.flatnonzero(file.status[order] != Status.DONE).tolist()
            for row in failed:
                reasons.setdefault(row, file.reasons[order[row]])
            provenance = dict(file.provenance)
        names = provenance.pop("words", None)
        if not words and isinstance(names, Mapping):
            words = {str(name): str(text) for name, text in names.items()}
        parts.append(
            FusedPart(file=path.name, scales=one.scales, share=share, failed=len(failed), provenance=provenance)
        )
    posteriors[sorted(reasons)] = -np.inf
    return Fused(
        posteriors=posteriors,
        targets=class_numbers(data.labels),
        ids=data.ids,
        paths=data.paths,
        classes=data.classes,
        words=words,
        failed={data.ids[row]: reasons[row] for row in sorted(reasons)},
        parts=tuple(parts),
        dataset={"name": data.name, "fingerprint": data.fingerprint(), "layout": parts[0].provenance.get("layout")},
    )


class _Chosen(NamedTuple):
    """What is taken of a file."""

    path: Path
    net: str
    """SHA-256 of the weights."""
    mode: str
    scales: tuple[int, ...]


def _choose_scales(path: Path, scales: Sequence[int] | None) -> _Chosen:
    with FeatureFile(path) as file:
        layer = file.key.get("layer")
        if layer != POSTERIORS:
            raise StoreError(
                f"{path}: expected class posteriors, found features of {layer}; make them with `vggfeat classify`"
            )
        wanted = file.scales if scales is None else as_tuple(scales)
        missing = [q for q in wanted if q not in file.scales]
        if missing or not wanted:
            stored = ", ".join(map(str, file.scales))
            raise ConfigError(f"scales: expected some of {stored} ({path}), found {missing or 'none'}")
        return _Chosen(path, str(file.key.get("weights_sha256")), str(file.key.get("mode")), tuple(wanted))


def _shares(chosen: Sequence[_Chosen]) -> list[float]:
    """Return what a scale of each file counts: nets count the same, modes within a net, scales within a mode."""
    used = Counter((one.net, one.mode, q) for one in chosen for q in one.scales)
    for one in chosen:
        twice = [q for q in one.scales if used[one.net, one.mode, q] > 1]
        if twice:
            raise ConfigError(
                f"{one.path}: expected each net, mode and scale once, found {one.mode} at Q = {twice[0]} of its net "
                "twice; leave a file out"
            )
    scales = Counter((one.net, one.mode) for one in chosen for _ in one.scales)
    modes = Counter(net for net, _ in scales)
    return [1 / (len(modes) * modes[one.net] * scales[one.net, one.mode]) for one in chosen]


def _add_posteriors(
    table: NDArray[np.float32], file: FeatureFile, order: NDArray[np.int64], scales: Sequence[int], share: float
) -> None:
    """Add rows of a file, (N, S, 1, K), to the table (N, K), block by block."""
    places = [file.scales.index(q) for q in scales]
    step = max(1, BLOCK_BYTES // file.shape.row_bytes)
    for start in range(0, len(order), step):
        values = file.read(order[start : start + step])
        for place in places:
            table[start : start + step] += np.float32(share) * values[:, place, 0]


@dataclass(frozen=True, kw_only=True)
class ClassErrors:
    """What became of the images of one class."""

    name: str
    images: int
    failed: int
    """Images that could not be read; they count as wrong."""
    top1_error: float
    """Error from 0 to 1; NaN where there is no image of the class."""
    top5_error: float
    """The same with five guesses."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationErrors:
    """Errors on a set of images; failed images count as wrong."""

    top1_error: float
    """Share of images whose true class is not the best guess, from 0 to 1."""
    top5_error: float
    """Share of images whose true class is not among the five best guesses, from 0 to 1."""
    classes: tuple[ClassErrors, ...]
    """K, in the order of the columns."""
    confusion: NDArray[np.int64]
    """(K, K) images; row = true class, column = best guess. Failed images are in no cell."""

    def pairs(self) -> list[tuple[int, int, int]]:
        """Return (true class, guessed class, images) of every confusion that occurs, the commonest first.

        Of equal ones, that of the lower true class comes first, then that of the lower guess.
        """
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        true, guessed = np.nonzero(wrong)
        order = np.argsort(-wrong[true, guessed], kind="stable")
        return [(int(true[n]), int(guessed[n]), int(wrong[true[n], guessed[n]])) for n in order]


def evaluate(fused: Fused) -> ClassificationErrors:
    """Compute the errors of fused posteriors.

    Raises FitError if an image has no true class.

    Notes
    -----
    The flat error of ILSVRC's `eval_clsloc.m` over all images; its blacklist is for localisation alone.
    """
    if (fused.targets < 0).any():
        name = fused.ids[int(np.argmin(fused.targets))]
        raise FitError(f"errors: expected a true class for every image, found none for {name}")
    missed: NDArray[np.int64] = np.zeros((len(fused.classes), 2), dtype=np.int64)
    classes = []
    ok = fused.ok
    for k, name in enumerate(fused.classes):
        # Class by class, so that no table of double precision of all images is made.
        rows = np.flatnonzero(fused.targets == k)
        errors = [top_k_error(fused.targets[rows], fused.posteriors[rows], guesses) for guesses in (1, GUESSES)]
        missed[k] = [round(error * len(rows)) if len(rows) else 0 for error in errors]
        classes.append(
            ClassErrors(
                name=name, images=len(rows), failed=int((~ok[rows]).sum()), top1_error=errors[0], top5_error=errors[1]
            )
        )
    top1, top5 = (missed.sum(axis=0) / len(fused.ids)).tolist()
    return ClassificationErrors(
        top1_error=top1,
        top5_error=top5,
        classes=tuple(classes),
        confusion=confusion(fused.targets, fused.top(1)[:, 0], len(fused.classes)),
    )
