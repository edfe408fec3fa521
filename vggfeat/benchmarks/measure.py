"""What all benchmarks share: rates measured in turns, the machine that they hold for, and a report of one form.

A benchmark measures its subjects and their peers in turns, so that whatever else the machine does hurts all of them
alike, and returns a `Report`: a row for each, with its share of what the machine can do or its ratio to a peer.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from vggfeat.results.text import align
from vggfeat.runtime.devices import library_version

# PyTorch is loaded where it is needed: what it takes would be counted as memory of the SVM solvers.
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
    """Of the command: extract, roofline, svm or train."""
    settings: Mapping[str, Any]
    machine: Mapping[str, Any] | None
    """Of `machine`; None if nothing was measured."""
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

    Parameters
    ----------
    act : callable
        Returns how much it has done: images.
    device : torch.device
        Is waited for before and after.
    seconds : float
    warm_up : int
        Calls that are not counted: buffers fill, kernels are chosen and compiled.
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
