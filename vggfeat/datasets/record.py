"""The form of a record: all that is known of a data set before a copy is at hand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from vggfeat.descriptors import Join
from vggfeat.metrics.classes import Rule
from vggfeat.samples import DataSet, Task

ProtocolName = Literal["auto", "voc", "voc-server", "caltech", "given-splits", "k-fold"]
"""See `vggfeat.protocols.rules`."""


class Archive(NamedTuple):
    """A file to download and unpack."""

    file: str
    algorithm: str
    checksum: str
    page: str
    """Address of the page where it is published."""
    splits: tuple[str, ...] = ()
    """Official splits that it holds; empty if the splits are drawn."""


class Count(NamedTuple):
    """One number to compare."""

    split: str
    """A split, "trainval" for the union of train and val, or "all"."""
    what: str
    """"images", "people", "classes", or a class name: the number of its positives."""
    found: int | None
    """None before a copy was read, and for classes whose labels are not published."""
    expected: int | None
    """None where no official number is known."""
    verified: bool = True
    """False for numbers that were not checked against the data: they never make a copy incomplete."""

    @property
    def agrees(self) -> bool:
        """Whether nothing contradicts this number."""
        return self.expected is None or not self.verified or self.found == self.expected


class PaperRow(NamedTuple):
    """One number of the VGG paper."""

    nets: tuple[str, ...]
    """Nets whose descriptors are stacked."""
    percent: float
    deviation: float | None = None
    """Standard deviation over splits, in per cent; None where the paper gives none."""
    tolerance: float = 0.0
    """Where the paper gives no deviation: our judgement of the choices that it leaves open, in per cent."""
    regions: tuple[str, ...] = ("image",)

    @property
    def spread(self) -> float:
        """How far a faithful run may be off, in per cent."""
        return self.deviation or self.tolerance

    @property
    def text(self) -> str:
        """The number as the paper prints it."""
        return f"{self.percent}" if self.deviation is None else f"{self.percent} +- {self.deviation}"


@dataclass(frozen=True, kw_only=True)
class PaperNumbers:
    """What the VGG paper reports for a data set."""

    table: int
    """11 or 12."""
    measure: str
    """Metric, split and judge, in words."""
    rows: tuple[PaperRow, ...]

    @property
    def title(self) -> str:
        """Table and measure in one line."""
        return f"Table {self.table}, {self.measure}"


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetRecord:
    """All that is known of a data set before a copy is at hand."""

    name: str
    """Name on the command line and in feature files."""
    title: str
    """Name in texts."""
    reader: Callable[[Path], DataSet]
    """Reads a copy; raises DatasetError if it is not in its official layout."""
    task: Task | None
    """None where the copy decides."""
    unit: Literal["images", "people"] = "images"
    """What a row is."""
    scales: tuple[int, ...] = (256, 384, 512)
    """Default smallest sides Q, in pixels."""
    regions: tuple[str, ...] = ("image",)
    """Default regions: the whole image, the box, or both."""
    join: Join = "mean"
    """Default way to join scales."""
    protocol: ProtocolName = "auto"
    """Protocol by which C is chosen and figures are made; auto where the copy decides."""
    average_precision: Rule | None = None
    """Official rule of average precision under that protocol; None if another metric is official, or none."""
    counts: tuple[Count, ...] = ()
    """Official numbers; `found` is None."""
    archives: tuple[Archive, ...] = ()
    """Files to download; empty for your own images."""
    server_file: str | None = None
    """Path of the scores of a class in the evaluation server's archive, with {name} for the class; None if no server
    judges the test."""
    paper: PaperNumbers | None = None
    """Numbers of the VGG paper, App. B."""

    def archive_of(self, split: str) -> Archive | None:
        """Return the archive that holds an official split, or None."""
        return next((archive for archive in self.archives if split in archive.splits), None)
