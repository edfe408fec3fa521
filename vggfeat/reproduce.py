"""Runs the two commands behind a row of the VGG paper's Tables 11 and 12, at full size or as a small twin."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vggfeat.cli.options import PATH, make_folder
from vggfeat.cli.signals import is_main
from vggfeat.cli.steps import must_run, parse_options
from vggfeat.errors import ConfigError

TWIN_WEIGHTS = "random:{net}:{seed}:0.03125"
TWIN_SCALES = "224,240"


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One number of the paper."""

    table: int
    """11 or 12."""
    dataset: str
    """A name of `vggfeat data list`."""
    nets: tuple[str, ...]
    """Nets whose descriptors are stacked, in order."""
    expected: float
    """The paper's number, in per cent."""
    spread: float
    """How far a faithful run may lie from it, in per cent: the paper's own deviation where it gives one, else our
    judgement of the choices that it leaves open."""
    regions: str = "image"
    """image, or image,box."""


def reproduce(row: PaperRow, arguments: Sequence[str] | None = None) -> float:
    """Extract with every net, train and test the SVMs, and compare with the paper.

    Parameters
    ----------
    row : PaperRow
    arguments : sequence of str, optional
        Command line; that of the process by default.

    Returns
    -------
    float
        Our number, in per cent; not a number in a process of torchrun that is not its first.
    """
    try:
        options = _parse(row, arguments)
    except (click.ClickException, ConfigError) as error:
        click.echo(f"vggfeat: {error}", err=True)
        raise SystemExit(2) from None
    if options["twin"]:
        must_run("data", "synth", row.dataset, "--root", options["root"], "--size", "tiny")
    files = [_extract(row, number, options) for number in range(len(row.nets))]
    if not is_main():
        return math.nan
    folder = options["out"] / _name(row)
    chosen = [argument for file in files for argument in ("--features", str(file))]
    must_run("svm", *chosen, "--regions", row.regions, "--out", str(folder))
    results = json.loads((folder / "results.json").read_text())
    ours = 100 * results["headline"]
    _compare(row, ours, comparable=any(number["same_nets_and_regions"] for number in results["paper"]))
    return ours


def _parse(row: PaperRow, arguments: Sequence[str] | None) -> dict[str, Any]:
    options = parse_options(
        arguments,
        help=f"Table {row.table}, {row.dataset}, net {' & '.join(row.nets)}: {row.expected} %.",
        params=[
            click.Option(["--weights"], multiple=True, help=f"Once for each of {', '.join(row.nets)}, in this order."),
            click.Option(["--root"], type=PATH, help="The data set."),
            click.Option(["--out"], type=PATH, help="Folder for features and results."),
            click.Option(["--device"], help="cpu, cuda, cuda:1, ..."),
            click.Option(["--precision"], default="fp32", show_default=True),
            click.Option(["--twin"], is_flag=True, help="Rendered images and small random nets: minutes, no data."),
        ],
    )
    options["out"] = options["out"] or Path("reproduced-twin" if options["twin"] else "reproduced")
    options["features"] = options["out"] / "features"
    make_folder(options["features"])
    if options["twin"]:
        options["root"] = options["out"] / "data" / row.dataset
        options["weights"] = tuple(TWIN_WEIGHTS.format(net=net, seed=0) for net in row.nets)
    elif len(options["weights"]) != len(row.nets):
        found = len(options["weights"])
        raise ConfigError(f"--weights: expected one for each of {', '.join(row.nets)}, found {found}; or try --twin")
    return options


def _name(row: PaperRow) -> str:
    return f"{row.dataset}-{''.join(row.nets)}{'-box' if 'box' in row.regions else ''}"


def _extract(row: PaperRow, number: int, options: dict[str, Any]) -> Path:
    # One file for all rows that use the net on this data set; `svm` picks the regions.
    regions = "image,box" if row.table == 12 else "image"
    file: Path = options["features"] / f"{row.dataset}-{row.nets[number]}.h5"
    chosen = ["--dataset", row.dataset, "--weights", options["weights"][number], "--out", file]
    for name in ("root", "device", "precision"):
        if options[name]:
            chosen += [f"--{name}", options[name]]
    chosen += ["--regions", regions]
    if options["twin"]:
        chosen += ["--scales", TWIN_SCALES]
    must_run("extract", *chosen)
    return file


def _compare(row: PaperRow, ours: float, *, comparable: bool) -> None:
    paper = f"paper {row.expected} % (Table {row.table}, {row.dataset}, {' & '.join(row.nets)}, {row.regions})"
    if not comparable:
        click.echo(f"ours {ours:.1f} %, not to be compared: these are not the paper's images and nets; {paper}")
        return
    within = abs(ours - row.expected) <= row.spread
    click.echo(f"ours {ours:.1f} %, {paper}: {'within' if within else 'OUTSIDE'} {row.spread} points")
    if not within:
        raise SystemExit(1)
