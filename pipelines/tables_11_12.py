"""Tables 11 and 12 of the VGG paper: linear SVMs on features of nets D and E (Appendix B).

    vggfeat reproduce voc2007_d --root VOCdevkit --weights D.safetensors
    vggfeat reproduce voc2007_de --root VOCdevkit --weights D.safetensors --weights E.safetensors
    vggfeat reproduce caltech101_e --twin

Expected: the number of the row, in per cent, plus or minus its spread: the paper's own deviation where it gives one,
else our judgement of the choices that it leaves open. The paper does not name its rule of average precision on
VOC-2007: 11-point here. Its numbers of VOC-2012 and of the actions are the server's on test: without a submission ours
are on val. How boxes are cropped it does not say: ours are cropped exactly. Its Caltech splits are not published: ours
are drawn by a published rule.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steps import Options, must_run, read_results, report_row
from vggfeat.cli.signals import is_main
from vggfeat.datasets.catalogue import DATASETS
from vggfeat.errors import ConfigError

TWIN_WEIGHTS = "random:{net}:0:0.015625"
TWIN_SCALES = "224,240"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of the paper."""

    name: str
    table: int
    dataset: str
    """A name of `vggfeat data list`."""
    nets: str
    """Nets whose descriptors are stacked, in order."""
    expected: float
    """Mean average precision, or mean class recall over three splits; per cent."""
    spread: float
    regions: str

    @property
    def title(self) -> str:
        """What the row is called in messages."""
        return f"Table {self.table}, {self.dataset}, {' & '.join(self.nets)}, {self.regions}"

    @property
    def promise(self) -> str:
        """What a faithful run is expected to give."""
        return f"{self.title}: {self.expected} +- {self.spread} %"


def _rows() -> Iterator[Row]:
    """Yield a row for each number in the data sets' records."""
    for record in DATASETS.values():
        if record.paper is None:
            continue
        for number in record.paper.rows:
            nets, regions = "".join(number.nets), ",".join(number.regions)
            # All rows of Table 12 are of the same nets, and differ in regions.
            ending = regions.replace(",", "_") if record.paper.table == 12 else nets.lower()
            yield Row(
                name=f"{record.name.replace('-', '_')}_{ending}",
                table=record.paper.table,
                dataset=record.name,
                nets=nets,
                expected=number.percent,
                spread=number.spread,
                regions=regions,
            )


ROWS = tuple(_rows())
"""In the order of `vggfeat data list`."""


def run(row: Row, options: Options) -> None:
    """Extract with every net, train and test the SVMs, and compare with the paper."""
    if not options.twin and len(options.weights) != len(row.nets):
        expected, found = ", ".join(row.nets), len(options.weights)
        raise ConfigError(f"--weights: expected one for each of {expected}, found {found}; or try --twin")
    if options.twin:
        must_run("data", "synth", row.dataset, "--root", options.data(row.dataset), "--size", "tiny")
    files = [_extract(row, number, options) for number in range(len(row.nets))]
    if not is_main():
        return
    folder = options.out / row.name
    must_run("svm", *files, "--regions", row.regions, "--out", folder)
    results = read_results(folder)
    ours = 100 * results["headline"]
    report_row(
        f"{ours:.1f} %",
        f"{row.expected} % ({row.title})",
        comparable=any(number["same_nets_and_regions"] for number in results["paper"]),
        within=abs(ours - row.expected) <= row.spread,
        spread=row.spread,
    )


def _extract(row: Row, number: int, options: Options) -> Path:
    """Make the feature file of one net: one for all rows that use it on this data set; `svm` picks the regions."""
    net = row.nets[number]
    file = options.out / f"{row.dataset}-{net}.h5"
    weights = TWIN_WEIGHTS.format(net=net) if options.twin else options.weights[number]
    chosen = ["--regions", "image,box" if row.table == 12 else "image", *options.device_and_precision()]
    if options.twin:
        chosen += ["--scales", TWIN_SCALES]
    if options.twin or options.root:
        chosen += ["--root", str(options.data(row.dataset))]
    must_run("extract", "--dataset", row.dataset, "--weights", weights, "--out", file, *chosen)
    return file
