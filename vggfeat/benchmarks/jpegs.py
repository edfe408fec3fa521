"""JPEG files made on the fly, with the sides that VOC-2007's have and as much to decode.

Noise whose amplitude falls as one over the frequency, as it does in photographs (Field 1987), more bright than
coloured. H, W = sides in pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from vggfeat.samples import DataSet, Task

SHAPES = {(375, 500): 0.5, (500, 375): 0.15, (333, 500): 0.12, (500, 333): 0.04}
"""Height and width, and the share of them: about VOC-2007's. The others have a longer side of 500 mostly."""
QUALITY = 90
"""Gives 80 to 100 kB at 500 x 375."""
FALL = 1.2
"""Power of the frequency by which the amplitude falls."""
CONTRAST = 52.0
"""Deviation of the brightness, of 255."""
HUE = 14.0
"""The same of each of the two differences of colour."""


def make_jpegs(folder: Path, count: int, seed: int) -> tuple[str, ...]:
    """Write images into a folder, and return their names.

    Parameters
    ----------
    folder : Path
    count : int
        Files, from 1.
    seed : int
        Another number, other images; equal ones give the same bytes with the same Pillow and NumPy.
    """
    rng = np.random.default_rng(seed)
    names = []
    for number, shape in enumerate(shapes(count, rng)):
        names.append(f"{number:06d}.jpg")
        Image.fromarray(photograph(rng, *shape)).save(folder / names[-1], "JPEG", quality=QUALITY)
    return tuple(names)


@contextmanager
def images_on_disk(count: int, seed: int) -> Iterator[DataSet]:
    """Lend so many files."""
    with TemporaryDirectory() as folder:
        yield listed(Path(folder), make_jpegs(Path(folder), count, seed))


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
