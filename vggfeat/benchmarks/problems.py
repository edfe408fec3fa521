"""Made-up descriptors that resemble those of photographs, at the sizes of the paper's tasks.

Like real ones they are not negative, of unit length, correlated (all of them are seen through a few hundred hidden
properties), and tell the classes with errors; and some classes are far more frequent than others.
N = images, D = length of a descriptor, K = classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptors import l2_normalise
from vggfeat.errors import ConfigError

HIDDEN = 256
"""Properties behind the features."""
SHARES_OF_VOC = (0.40, 0.14, 0.11, 0.10, *np.linspace(0.09, 0.04, 16).tolist())
"""Part of the images that show a class: VOC-2007's most frequent one (person) is in 40 %, most are in some 5 %."""


class TaskSplit(NamedTuple):
    """Rows for a choice of C and a fit."""

    fit: NDArray[np.int64]
    """To train on when C is chosen."""
    held_out: NDArray[np.int64]
    """To measure on then."""
    refit: NDArray[np.int64]
    """To train on with the chosen C."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a problem is."""

    note: str
    """What is behind the numbers of rows."""
    classes: int
    """K."""
    images: int
    """Multi-label: all; single-label: of each class."""
    blocks: int = 1
    """D / channels: nets times stacked scales."""
    averaged: int = 1
    """Scales that are averaged in each block."""
    channels: int = 4096
    splits: int = 1
    training: int = 0
    """Single-label: images of a class in a split's training part, of which a fifth is held out. 0: multi-label."""
    strength: float = 0.5
    """Of the classes, against what else images differ by."""
    sample: int | None = None
    """How many problems of each stage the peer solves by default; None = all."""

    @property
    def single(self) -> bool:
        """Say whether an image has one class; then one C serves all classes."""
        return self.training > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a protocol gives to the solver."""

    size: Size
    seed: int
    descriptors: NDArray[np.float32]
    """(N, D)"""
    labels: NDArray[np.int8]
    """(N, K) of 1 and -1."""
    splits: tuple[TaskSplit, ...]


SIZES = {
    "tiny": Size(note="for trials of the command itself", classes=5, images=200, averaged=2, channels=64),
    "voc": Size(
        note="VOC-2007: C on train (2501) and val (2510), refit on both", classes=20, images=5011, averaged=5,
        strength=0.3,
    ),
    "caltech101": Size(
        note="Caltech-101: 3 splits of 30 training images a class, a fifth of them held out for C", classes=102,
        images=60, blocks=3, splits=3, training=30, sample=24,
    ),
    "caltech256": Size(
        note="Caltech-256, two nets: 3 splits of 60 training images a class, a fifth held out for C", classes=257,
        images=64, blocks=6, splits=3, training=60, sample=24,
    ),
    "caltech256-part": Size(
        note="a part of Caltech-256, two nets: 64 of its 257 classes, 1 of its 3 splits", classes=64, images=64,
        blocks=6, training=60, strength=0.4, sample=24,
    ),
}  # fmt: skip


def make_problem(name: str, seed: int = 0) -> Problem:
    """Make one of `SIZES`.

    Raises
    ------
    ConfigError
        If there is no such size.
    """
    if name not in SIZES:
        raise ConfigError(f"size: expected one of {', '.join(SIZES)}, found {name!r}")
    size, rng = SIZES[name], np.random.default_rng(seed)
    if size.single:
        numbers = np.repeat(np.arange(size.classes), size.images)
        labels = np.where(np.eye(size.classes)[numbers] == 1, 1, -1).astype(np.int8)
        splits = tuple(_draw_split(size, rng) for _ in range(size.splits))
    else:
        shares = np.resize(SHARES_OF_VOC, size.classes)
        labels = np.where(rng.random((size.images, size.classes)) < shares, 1, -1).astype(np.int8)
        half, rows = size.images // 2, np.arange(size.images)
        splits = (TaskSplit(rows[:half], rows[half:], rows),)
    descriptors = make_descriptors(labels, size, rng)
    return Problem(size=size, seed=seed, descriptors=descriptors, labels=labels, splits=splits)


def make_descriptors(labels: NDArray[np.int8], size: Size, rng: np.random.Generator) -> NDArray[np.float32]:
    """Make descriptors (N, D) of images with labels (N, K), as the features of a layer after its ReLU are joined."""
    spread = (1 + np.arange(HIDDEN, dtype=np.float32)) ** -0.5  # A few properties count more than most.
    meaning = rng.standard_normal((size.classes, HIDDEN), dtype=np.float32)
    hidden = rng.standard_normal((len(labels), HIDDEN), dtype=np.float32) * spread
    hidden += size.strength * (labels == 1).astype(np.float32) @ meaning * spread
    blocks = [_block(hidden, size, rng) for _ in range(size.blocks)]
    return l2_normalise(np.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0])


def _block(hidden: NDArray[np.float32], size: Size, rng: np.random.Generator) -> NDArray[np.float32]:
    weights = rng.standard_normal((HIDDEN, size.channels), dtype=np.float32) * (2 / HIDDEN**0.5)
    seen = hidden @ weights
    seen -= seen.std()  # Before the average some 15 % of the values are above 0.
    total = np.zeros_like(seen)
    for _ in range(size.averaged):
        total += np.maximum(seen + rng.standard_normal(seen.shape, dtype=np.float32) * seen.std(), 0)
    return total / size.averaged


def _draw_split(size: Size, rng: np.random.Generator) -> TaskSplit:
    first = np.arange(size.classes)[:, None] * size.images
    chosen = first + np.argsort(rng.random((size.classes, size.images)), axis=1)[:, : size.training]
    held = size.training // 5
    fit, held_out = np.sort(chosen[:, held:].ravel()), np.sort(chosen[:, :held].ravel())
    return TaskSplit(fit, held_out, np.union1d(fit, held_out))
