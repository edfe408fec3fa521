"""What all benchmarks share: rates measured in turns, the machine that they hold for, a report, and JPEG files.

A benchmark measures its subjects and their peers in turns, so that whatever else the machine does hurts all of them
alike, and returns a `Report`: a row for each, with its share of what the machine can do or its ratio to a peer.

The files, made on the fly, have the sides that VOC-2007's have and as much to decode: noise whose amplitude falls as
one over the frequency, as it does in photographs (Field 1987), more bright than coloured. H, W = sides in pixels.
"""

import io
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from vggfeat.results.record import align
from vggfeat.runtime.devices import library_version
from vggfeat.samples import DataSet, Task

if TYPE_CHECKING:
    import torch

LIBRARIES = ("vggfeat", "torch", "torchvision", "numpy", "scikit-learn", "h5py", "pillow")
Say = Callable[[str], None]
"""Called with the name of what is about to be measured."""


class Column(NamedTuple):
    """How one value of every row is printed."""

    heading: str
    form: str = ".4g"
    """Format of a number."""
    unit: float = 1.0
    """Numbers are divided by it: 1e9 for G."""

    def cell(self, value: Any) -> str:
        """Return a value as text; None, where a row has no such value, as a dash."""
        if value is None or isinstance(value, str):
            return value or "-"
        return format(value / self.unit, self.form)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a benchmark has found."""

    name: str
    """Name of the command: extract, roofline, svm or train."""
    settings: Mapping[str, Any]
    machine: Mapping[str, Any] | None
    """What `machine` returns; None if nothing was measured."""
    columns: Mapping[str, Column]
    """Key in the rows -> how it is printed; a column that no row has is left out."""
    rows: Sequence[Mapping[str, Any]]
    """One for each thing that was measured."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What holds for all rows."""
    notes: Sequence[str] = ()
    """Lines below the table."""

    def text(self) -> str:
        """Render as plain text."""
        given = [f"{name.replace('_', ' ')} {_text(value)}" for name, value in self.settings.items() if value != ""]
        columns = {key: one for key, one in self.columns.items() if any(row.get(key) is not None for row in self.rows)}
        cells = [[one.cell(row.get(key)) for key, one in columns.items()] for row in self.rows]
        table = align([[one.heading for one in columns.values()], *cells], left=1)
        place = [self.machine["device"]] if self.machine else []
        lines = ["; ".join(given), *place, "", *table, "", *self.notes]
        return "\n".join(lines)

    def content(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "format": f"vggfeat-bench-{self.name}",
            "version": 2,
            "settings": self.settings,
            "machine": self.machine,
            **self.figures,
            "rows": list(self.rows),
        }


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{value}"


def machine(device: "torch.device | str", threads: int | None = None) -> dict[str, Any]:
    """Return what figures depend on besides the settings, ready for JSON; by default with the threads of PyTorch."""
    name = str(device)
    gpu = name.startswith("cuda")
    if gpu or threads is None:
        import torch

        threads = threads or torch.get_num_threads()
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"{name}, {threads} thread{'s' * (threads != 1)}",
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: library_version(name) for name in LIBRARIES},
    }


def in_turns(subjects: Mapping[str, Callable[[], float]], rounds: int, say: Say) -> dict[str, list[float]]:
    """Measure the rate of every subject once a round, one after the other."""
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(1, rounds + 1):
        for name, measured in subjects.items():
            say(f"round {number} of {rounds}: {name}" if rounds > 1 else name)
            rates[name].append(measured())
    return rates


def rate(act: Callable[[], int], device: "torch.device", seconds: float, warm_up: int = 0) -> float:
    """Return how much an act does a second, repeated for so many seconds at least.

    `act`: returns how much it has done: images. `device`: is waited for before and after. `warm_up`: calls that are not
    counted: buffers fill, kernels are chosen and compiled.
    """
    for _ in range(warm_up):
        act()
    wait_for(device)
    done, start = 0, time.perf_counter()
    while not done or time.perf_counter() - start < seconds:
        done += act()
    wait_for(device)
    return done / (time.perf_counter() - start)


def wait_for(device: "torch.device") -> None:
    """Wait until a device has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def with_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use so many cores for a while; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def make_jpegs(folder: Path, count: int, seed: int, longest: int = LONGEST) -> tuple[str, ...]:
    """Write images into a folder, and return their names.

    `count`: files, from 1. `seed`: another number, other images; equal ones give the same bytes with the same Pillow
    and NumPy. `longest`: pixels of the longest side.
    """
    rng = np.random.default_rng(seed)
    names = []
    for number, (height, width) in enumerate(shapes(count, rng)):
        names.append(f"{number:06d}.jpg")
        sides = (-(-height * longest // LONGEST), -(-width * longest // LONGEST))
        encoded = io.BytesIO()
        Image.fromarray(photograph(rng, *sides)).save(encoded, "JPEG", quality=QUALITY)
        (folder / names[-1]).write_bytes(encoded.getbuffer())
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
