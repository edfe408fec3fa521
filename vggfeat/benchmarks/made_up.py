"""What benchmarks measure with: made-up descriptors at the sizes of the paper's tasks, and JPEG files made on the fly.

Like those of photographs, descriptors are not negative, of unit length, correlated (all of them are seen through a few
hundred hidden properties), and tell the classes with errors; and some classes are far more frequent than others. The
files have the sides that VOC-2007's have and as much to decode: noise whose amplitude falls as one over the frequency,
as it does in photographs (Field 1987), more bright than coloured.
N = images, D = length of a descriptor, K = classes, H, W = sides in pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from vggfeat.descriptors import l2_normalise
from vggfeat.errors import ConfigError
from vggfeat.samples import DataSet, Task

HIDDEN = 256
"""Properties behind the features."""
SHARES_OF_VOC = (0.40, 0.14, 0.11, 0.10, *np.linspace(0.09, 0.04, 16).tolist())
"""Part of the images that show a class: VOC-2007's most frequent one (person) is in 40 %, most are in some 5 %."""
SHAPES = {(375, 500): 0.5, (500, 375): 0.15, (333, 500): 0.12, (500, 333): 0.04}
"""Height and width, and the share of them: about VOC-2007's. The others have a longer side of 500 mostly."""
LONGEST = 500
"""Pixels of the longest side."""
QUALITY = 90
"""Gives 80 to 100 kB at 500 x 375."""
FALL = 1.2
"""Power of the frequency by which the amplitude falls."""
CONTRAST = 52.0
"""Deviation of the brightness, of 255."""
HUE = 14.0
"""The same of each of the two differences of colour."""


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


def make_jpegs(folder: Path, count: int, seed: int, longest: int = LONGEST) -> tuple[str, ...]:
    """Write images into a folder, and return their names.

    Parameters
    ----------
    folder : Path
    count : int
        Files, from 1.
    seed : int
        Another number, other images; equal ones give the same bytes with the same Pillow and NumPy.
    longest : int
        Pixels of the longest side.
    """
    rng = np.random.default_rng(seed)
    names = []
    for number, (height, width) in enumerate(shapes(count, rng)):
        names.append(f"{number:06d}.jpg")
        sides = (-(-height * longest // LONGEST), -(-width * longest // LONGEST))
        Image.fromarray(photograph(rng, *sides)).save(folder / names[-1], "JPEG", quality=QUALITY)
    return tuple(names)


@contextmanager
def images_on_disk(count: int, seed: int, longest: int = LONGEST) -> Iterator[DataSet]:
    """Lend so many files."""
    with TemporaryDirectory() as folder:
        yield listed(Path(folder), make_jpegs(Path(folder), count, seed, longest))


def listed(folder: Path, names: Sequence[str], repeat: int = 1) -> DataSet:
    """Return a data set that goes through the files of a folder so many times."""
    return DataSet(
        name="folder",
        task=Task.UNLABELLED,
        classes=(),
        ids=tuple(f"{time}/{name}" for time in range(repeat) for name in names),
        paths=tuple(names) * repeat,
        labels=np.zeros((len(names) * repeat, 0), dtype=np.int8),
        root=str(folder),
    )


def shapes(count: int, rng: Generator) -> list[tuple[int, int]]:
    """Return heights and widths in the shares of `SHAPES`, rounded down, in random order; the rest are odd ones."""
    found = [shape for shape, share in SHAPES.items() for _ in range(int(share * count))]
    found += [_odd(rng) for _ in range(count - len(found))]
    return [found[place] for place in rng.permutation(count)]


def photograph(rng: Generator, height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 3) RGB."""
    grey, blue, red = _planes(rng, height, width)
    light = 118 + CONTRAST * grey
    pixels = np.stack([light + HUE * red, light - HUE * (red + blue) / 2, light + HUE * blue], axis=-1)
    return np.clip(pixels, 0, 255).round().astype(np.uint8)


def _odd(rng: Generator) -> tuple[int, int]:
    longer = 500 if rng.random() < 0.8 else int(rng.integers(200, 500))
    shorter = int(longer * rng.uniform(0.45, 1))
    return (shorter, longer) if rng.random() < 0.7 else (longer, shorter)


def _planes(rng: Generator, height: int, width: int) -> Iterator[NDArray[np.float64]]:
    """Yield three (H, W) planes of mean 0 and deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    for _ in range(3):
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**FALL
        plane = np.fft.irfft2(spectrum, (height, width))
        yield plane / plane.std()
