"""Trains a net of the VGG paper's Tables 3 and 4 and measures it as they do, at full size or as a small twin.

The nets form a chain (Sect. 3.1): A and A-LRN start from random weights, B to E at S = 256 from A, S = 384 from
S = 256 of the same net, and S in [256;512] from S = 384.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

from vggfeat.cli.options import PATH, make_folder
from vggfeat.cli.signals import is_main
from vggfeat.cli.steps import must_run, parse_options
from vggfeat.errors import ConfigError, VggfeatError
from vggfeat.reclassify import (
    TWIN_SIDES,
    WEIGHTS,
    Net,
    check_net,
    compare,
    fuse_posteriors,
    net_name,
    render_twin,
    save_posteriors,
)

TWIN = ("--width", "0.03125", "--batch", "12", "--steps", "2", "--workers", "0", "--device", "cpu")
"""A net of a thirty-second of the width, two steps: it shows that the commands run, and learns nothing."""


class Errors(NamedTuple):
    """Errors on the 50,000 validation images of ILSVRC-2012, by dense evaluation of whole images."""

    sides: tuple[int, ...]
    """Q, smallest image sides at test; over several, posteriors are averaged."""
    top1: float
    """Per cent."""
    top5: float
    """Per cent."""


@dataclass(frozen=True, kw_only=True)
class TrainedRow:
    """One trained net of the paper."""

    net: str
    """A, A-LRN, B, C, D or E."""
    scale: str
    """S, the smallest image side in training: 256, 384, or 256:512 for another one each time (Sect. 3.1)."""
    single: Errors
    """Table 3."""
    multi: Errors | None = None
    """Table 4; None for A and A-LRN, which do not occur there."""

    @property
    def name(self) -> str:
        """What its pipeline and its folder are called."""
        return net_name(self.net, self.scale)


def starts_from(net: str, scale: str) -> tuple[str, str] | None:
    """Return net and scale of the weights that training starts from; None for random ones (Sect. 3.1)."""
    if scale == "256":
        return None if net in ("A", "A-LRN") else ("A", "256")
    return net, {"384": "256", "256:512": "384"}[scale]


def retrain(row: TrainedRow, arguments: Sequence[str] | None = None) -> dict[int, dict[str, Any]]:
    """Train one net of the chain, and show its errors by dense evaluation beside the paper's.

    Parameters
    ----------
    row : TrainedRow
    arguments : sequence of str, optional
        Command line; that of the process by default. What it doesn't know goes to `vggfeat train`.

    Returns
    -------
    dict
        Number of a table -> results.json of its row; nothing in a process of torchrun that is not its first.
    """
    try:
        options = _parse(row, arguments)
        if options["weights"]:
            check_net(options["weights"], row.net)
        if options["twin"]:
            render_twin(options["root"])
        weights = options["weights"] or _train(row.net, row.scale, options)
    except (click.ClickException, VggfeatError) as error:
        click.echo(f"vggfeat: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    return _classify(row, weights, options)


def _parse(row: TrainedRow, arguments: Sequence[str] | None) -> dict[str, Any]:
    options = parse_options(
        arguments,
        help=f"Table 3, net {row.net}, S = {row.scale}. Further options are those of `vggfeat train`.",
        params=[
            click.Option(["--root"], type=PATH, help="ILSVRC-2012, in any of its layouts."),
            click.Option(["--out"], type=PATH, help="Folder for the nets. [retrained]"),
            click.Option(["--weights"], type=PATH, help="Train nothing: measure this net."),
            click.Option(["--init-from"], type=PATH, help="Weights to start from. [in --out]"),
            click.Option(["--device"], help="cpu, cuda, cuda:1, ..."),
            click.Option(["--twin"], is_flag=True, help="Rendered images, narrow nets, two steps: no data."),
        ],
        more=True,
    )
    options["out"] = options["out"] or Path("retrained-twin" if options["twin"] else "retrained")
    if options["twin"]:
        options["root"] = options["out"] / "data"
    elif options["root"] is None:
        raise ConfigError("--root: expected the place of ILSVRC-2012, found none; or try --twin")
    make_folder(options["out"])
    return options


def _train(net: str, scale: str, options: dict[str, Any]) -> Path:
    """Train one net and return its weights; a twin trains what stands before it in the chain as well."""
    folder: Path = options["out"] / net_name(net, scale)
    chosen = ["--root", options["root"], "--net", net, "--scale", scale, "--out", folder, "--resume", *options["more"]]
    before = starts_from(net, scale)
    if options["device"]:
        chosen += ["--device", options["device"]]
    if options["twin"]:
        chosen += TWIN
    if before is not None:
        chosen += ["--init-from", options["init_from"] or _weights_before(before, options)]
    must_run("train", *chosen)
    return folder / WEIGHTS


def _weights_before(before: tuple[str, str], options: dict[str, Any]) -> Path:
    weights: Path = options["out"] / net_name(*before) / WEIGHTS
    if options["twin"] and not weights.is_file():
        return _train(*before, options)
    if not weights.is_file():
        raise ConfigError(
            f"{weights}: expected the net to start from, found none; run pipelines/{net_name(*before)}.py first, or "
            "name the weights with --init-from"
        )
    return weights


def _classify(row: TrainedRow, weights: Path, options: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Run the net once over the scales of both tables; the first process reads each off the saved posteriors."""
    tables = {3: row.single} | ({} if row.multi is None else {4: row.multi})
    sides = {
        table: TWIN_SIDES[: len(errors.sides)] if options["twin"] else errors.sides for table, errors in tables.items()
    }
    net = Net(net=row.net, scale=row.scale, sides=max(sides.values(), key=len))
    files = save_posteriors(net, weights, "dense", net.sides, options)
    if not is_main():
        return {}
    results, near = {}, True
    for table, errors in tables.items():
        results[table] = fuse_posteriors(files, sides[table], files[0].parent / f"table-{table}")
        near &= compare(results[table], table, errors.top1, errors.top5)
    if not near:
        raise SystemExit(1)
    return results
