"""Trains a net of the VGG paper's Tables 3 and 4, at full size or as a small twin.

The nets form a chain (Sect. 3.1): A and A-LRN start from random weights, B to E at S = 256 from A, S = 384 from
S = 256 of the same net, and S in [256;512] from S = 384.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

from vggfeat.cli.steps import leads, must_run, parse_options
from vggfeat.cli.types import make_folder
from vggfeat.errors import ConfigError
from vggfeat.weights import load_backbone

TWIN_DATA = "tiny"
TWIN = ("--width", "0.03125", "--batch", "12", "--steps", "2", "--workers", "0", "--device", "cpu")
"""A net of a thirty-second of the width, two steps: it shows that the commands run, and learns nothing."""
WEIGHTS = "weights.safetensors"


class Errors(NamedTuple):
    """Errors on the 50,000 validation pictures of ILSVRC-2012, by dense evaluation of whole pictures."""

    sides: tuple[int, ...]
    """Q, smallest picture sides at test; over several, posteriors are averaged."""
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
    """S, the smallest picture side in training: 256, 384, or 256:512 for another one each time (Sect. 3.1)."""
    single: Errors
    """Table 3."""
    multi: Errors | None = None
    """Table 4; None for A and A-LRN, which do not occur there."""

    @property
    def name(self) -> str:
        """What its pipeline and its folder are called."""
        return _name(self.net, self.scale)


def starts_from(net: str, scale: str) -> tuple[str, str] | None:
    """Return net and scale of the weights that training starts from; None for random ones (Sect. 3.1)."""
    if scale == "256":
        return None if net in ("A", "A-LRN") else ("A", "256")
    return net, {"384": "256", "256:512": "384"}[scale]


def retrain(row: TrainedRow, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train one net of the chain and show its centre-crop errors beside the paper's.

    Parameters
    ----------
    row : TrainedRow
    arguments : sequence of str, optional
        Command line; that of the process by default. What it doesn't know goes to `vggfeat train`.

    Returns
    -------
    dict
        What the weights file says of the training; nothing in a process of torchrun that is not its first.
    """
    try:
        options = _parse(row, arguments)
        if options["twin"]:
            must_run("data", "synth", "ilsvrc", "--root", options["root"], "--size", TWIN_DATA)
        weights = _train(row.net, row.scale, options)
    except (click.ClickException, ConfigError) as error:
        click.echo(f"vggfeat: {error}", err=True)
        raise SystemExit(2) from None
    # The other processes of torchrun may be here before the first has written the file.
    return _compare(row, weights, twin=options["twin"]) if leads() else {}


def _parse(row: TrainedRow, arguments: Sequence[str] | None) -> dict[str, Any]:
    options = parse_options(
        arguments,
        help=f"Table 3, net {row.net}, S = {row.scale}. Further options are those of `vggfeat train`.",
        params=[
            click.Option(["--root"], type=click.Path(path_type=Path), help="ILSVRC-2012, in any of its layouts."),
            click.Option(["--out"], type=click.Path(path_type=Path), help="Folder for the nets. [retrained]"),
            click.Option(["--init-from"], type=click.Path(path_type=Path), help="Weights to start from. [in --out]"),
            click.Option(["--twin"], is_flag=True, help="Rendered pictures, narrow nets, two steps: no data."),
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
    folder: Path = options["out"] / _name(net, scale)
    chosen = ["--data", options["root"], "--net", net, "--scale", scale, "--out", folder, "--resume", *options["more"]]
    before = starts_from(net, scale)
    if options["twin"]:
        chosen += TWIN
    if before is not None:
        chosen += ["--init-from", options["init_from"] or _weights_before(before, options)]
    must_run("train", *chosen)
    return folder / WEIGHTS


def _weights_before(before: tuple[str, str], options: dict[str, Any]) -> Path:
    weights: Path = options["out"] / _name(*before) / WEIGHTS
    if options["twin"] and not weights.is_file():
        return _train(*before, options)
    if not weights.is_file():
        raise ConfigError(
            f"{weights}: expected the net to start from, found none; run pipelines/{_name(*before)}.py first, or "
            "name the weights with --init-from"
        )
    return weights


def _name(net: str, scale: str) -> str:
    return f"ilsvrc_{net}_{scale}".lower().replace("-", "_").replace(":", "_")


def _compare(row: TrainedRow, weights: Path, *, twin: bool) -> dict[str, Any]:
    training: dict[str, Any] = load_backbone(weights).facts["training"]
    found = training["validation"]
    ours = ", ".join(f"{100 * found[name]:.1f} %" for name in ("top1_error", "top5_error"))
    click.echo(f"top-1 error, top-5 error: ours {ours} (centre crop at Q = {training['validation_scale']})")
    for table, errors in ((3, row.single), (4, row.multi)):
        if errors is not None:
            sides = ", ".join(map(str, errors.sides))
            click.echo(f"paper {errors.top1} %, {errors.top5} % (dense at Q = {sides}, Table {table})")
    if twin:
        click.echo("not to be compared: rendered pictures, a narrow net, two steps")
    else:
        click.echo("a centre crop is expected to lie above dense evaluation, which this run doesn't make")
    return training
