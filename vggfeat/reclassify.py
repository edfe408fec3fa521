"""Runs the commands behind a row of the VGG paper's Tables 5 and 6, at full size or as a small twin.

Posteriors of every net and mode are saved once, and rows are fused from the files: what one row has computed, the
others take. Weights are those that the pipelines of Tables 3 and 4 leave in the same folder, or any of the same nets.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from vggfeat.cli.options import PATH, make_folder
from vggfeat.cli.signals import is_main
from vggfeat.cli.steps import must_run, parse_options
from vggfeat.errors import ConfigError, VggfeatError
from vggfeat.nets.vgg import VGG, initialise
from vggfeat.synthetic import Settings, write
from vggfeat.weights import load_backbone, save_weights

WEIGHTS = "weights.safetensors"
SPREAD = 0.5
"""How far a faithful run may lie from the paper's number, in points: our judgement of the choices that it leaves open
(rescaling, colours of the decoder, chance of the training)."""
TWIN_IMAGES = Settings(image_side=96, classes=6, train=2, val=6)
TWIN_WIDTH = 1 / 32
TWIN_SIDES = (224, 240)
TWIN = ("--workers", "0", "--device", "cpu")


@dataclass(frozen=True, kw_only=True)
class Net:
    """A net of the paper, and where it is tested."""

    net: str
    """A, A-LRN, B, C, D or E."""
    scale: str
    """S, the smallest image side in training: 256, 384, or 256:512 for another one each time (Sect. 3.1)."""
    sides: tuple[int, ...]
    """Q, smallest image sides at test; over several, posteriors are averaged."""

    @property
    def name(self) -> str:
        """What the pipeline that trains it, and its folder, are called."""
        return net_name(self.net, self.scale)


@dataclass(frozen=True, kw_only=True)
class ClassifiedRow:
    """One row of Table 5 or 6."""

    name: str
    """Of its folder."""
    table: int
    nets: tuple[Net, ...]
    """Posteriors of several are averaged."""
    mode: str
    """dense, multi-crop, or both, averaged."""
    top1: float
    """Top-1 error on the 50,000 validation images of ILSVRC-2012, per cent."""
    top5: float
    """Top-5 error, per cent."""


def net_name(net: str, scale: str) -> str:
    """Return what the pipeline that trains a net is called."""
    return f"ilsvrc_{net}_{scale}".lower().replace("-", "_").replace(":", "_")


def reclassify(row: ClassifiedRow, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Classify with every net, fuse, and compare with the paper.

    Parameters
    ----------
    row : ClassifiedRow
    arguments : sequence of str, optional
        Command line; that of the process by default.

    Returns
    -------
    dict
        results.json of the row; nothing in a process of torchrun that is not its first.
    """
    try:
        options = _parse(row, arguments)
        weights = [_weights_of(number, row, options) for number in range(len(row.nets))]
    except (click.ClickException, VggfeatError) as error:
        click.echo(f"vggfeat: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    files = [
        file
        for net, path in zip(row.nets, weights, strict=True)
        for file in save_posteriors(net, path, row.mode, TWIN_SIDES if options["twin"] else net.sides, options)
    ]
    if not is_main():
        return {}
    results = fuse_posteriors(files, None, options["out"] / row.name)
    if not compare(results, row.table, row.top1, row.top5):
        raise SystemExit(1)
    return results


def render_twin(root: Path) -> None:
    """Render the few images that twins train and are tested on."""
    write("ilsvrc", root, seed=0, size=TWIN_IMAGES, workers=1)


def save_posteriors(net: Net, weights: Path, mode: str, sides: Sequence[int], options: dict[str, Any]) -> list[Path]:
    """Run a net over the validation images, unless that was done.

    Returns
    -------
    list of Path
        The files of its posteriors; nothing in a process of torchrun that is not its first.
    """
    folder: Path = options["out"] / f"{net.name}-classified"
    chosen = ["--weights", weights, "--root", options["root"], "--mode", mode, "--scales", _joined(sides)]
    for name in ("device", "precision"):
        if options.get(name):
            chosen += [f"--{name}", options[name]]
    must_run("classify", *chosen, "--out", folder, *(TWIN if options["twin"] else ()))
    if not is_main():
        return []
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return [folder / part["file"] for part in results["posteriors"]]


def fuse_posteriors(files: Sequence[Path], sides: Sequence[int] | None, out: Path) -> dict[str, Any]:
    """Fuse saved posteriors, of some scales or of all, and return the results."""
    chosen = [argument for file in files for argument in ("--posteriors", file)]
    must_run("classify", *chosen, *(("--scales", _joined(sides)) if sides else ()), "--out", out)
    results: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return results


def compare(results: dict[str, Any], table: int, top1: float, top5: float) -> bool:
    """Show our errors beside the paper's, and say whether they are as near as they should be, if that can be said."""
    ours = [100 * results[name] for name in ("top1_error", "top5_error")]
    shown = f"top-1 error, top-5 error: ours {ours[0]:.1f} %, {ours[1]:.1f} %"
    paper = f"paper {top1} %, {top5} % (Table {table})"
    if not any(row["table"] == table for row in results["paper"]):
        click.echo(f"{shown}, not to be compared: these are not the paper's images, nets and scales; {paper}")
        return True
    within = max(abs(ours[0] - top1), abs(ours[1] - top5)) <= SPREAD
    click.echo(f"{shown}, {paper}: {'within' if within else 'OUTSIDE'} {SPREAD} points")
    return within


def check_net(weights: Path | str, net: str) -> None:
    """Check that a file holds the net that a row of the paper is about.

    Raises
    ------
    WeightsError
        If it can't be loaded.
    ConfigError
        If it is another net.
    """
    found = load_backbone(weights).model.config
    if found != net:
        raise ConfigError(f"{weights}: expected weights of net {net}, found net {found}")


def _parse(row: ClassifiedRow, arguments: Sequence[str] | None) -> dict[str, Any]:
    nets = ", ".join(f"{net.net} ({net.scale})" for net in row.nets)
    options = parse_options(
        arguments,
        help=f"Table {row.table}, {nets}, {row.mode}: top-1 error {row.top1} %, top-5 error {row.top5} %.",
        params=[
            click.Option(
                ["--weights"], multiple=True, help=f"Once for each of {nets}, in this order. [those in --out]"
            ),
            click.Option(["--root"], type=PATH, help="ILSVRC-2012, in any of its layouts."),
            click.Option(["--out"], type=PATH, help="Folder for nets and results. [retrained]"),
            click.Option(["--device"], help="cpu, cuda, cuda:1, ..."),
            click.Option(["--precision"], default="fp32", show_default=True),
            click.Option(["--twin"], is_flag=True, help="Few rendered images and narrow random nets: no data."),
        ],
    )
    options["out"] = options["out"] or Path("reclassified-twin" if options["twin"] else "retrained")
    if options["twin"]:
        options["root"] = options["out"] / "images"
    elif options["root"] is None:
        raise ConfigError("--root: expected the place of ILSVRC-2012, found none; or try --twin")
    if len(options["weights"]) not in (0, len(row.nets)):
        raise ConfigError(f"--weights: expected one for each of {nets}, or none, found {len(options['weights'])}")
    make_folder(options["out"])
    if options["twin"]:
        render_twin(options["root"])
    return options


def _weights_of(number: int, row: ClassifiedRow, options: dict[str, Any]) -> Path:
    net = row.nets[number]
    path = options["out"] / net.name / WEIGHTS
    if options["weights"]:
        path = Path(options["weights"][number])
    elif options["twin"]:
        _make_twin(net, path)
    elif not path.is_file():
        raise ConfigError(
            f"{path}: expected the weights of net {net.net}, found none; run pipelines/{net.name}.py first, or name "
            "the weights with --weights"
        )
    check_net(path, net.net)
    return path


def _make_twin(net: Net, path: Path) -> None:
    """Make a narrow net with random weights, which claims to be trained at its S."""
    model = VGG(net.net, TWIN_IMAGES.classes, width=TWIN_WIDTH)
    initialise(model, torch.Generator().manual_seed(sum(map(ord, net.scale))))
    lowest, _, highest = net.scale.partition(":")
    make_folder(path.parent)
    save_weights(
        path, model, mean=(124, 117, 104), training={"recipe": {"scale": [int(lowest), int(highest or lowest)]}}
    )


def _joined(sides: Sequence[int]) -> str:
    return ",".join(map(str, sides))
