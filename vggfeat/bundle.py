"""Makes the small net that comes with the package, and measures what it is good for."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click

from vggfeat.cli.options import PATH, make_folder
from vggfeat.cli.progress import Progress
from vggfeat.cli.steps import must_run, parse_options
from vggfeat.errors import VggfeatError, WeightsError
from vggfeat.runtime.devices import default_workers
from vggfeat.synthetic import SIZES, Settings, write
from vggfeat.weights import load_backbone, save_weights

MOST_BYTES = 6_000_000
"""What the package can carry."""
TWIN = ("--width", "0.03125", "--batch", "12", "--steps", "2", "--workers", "0", "--device", "cpu")
SCALES = "224,256"
PARTITIONS = 10
"""Seeds of the folds that a folder is tested with."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A set of images and a training on it, which starts from the weights of the stage before."""

    name: str
    """Of its folder."""
    images: Settings
    """Counts and sides of the rendered ILSVRC-2012."""
    training: str
    """Options of `vggfeat train`, as one types them."""


@dataclass(frozen=True, kw_only=True)
class SmallNet:
    """How the small net is made."""

    stages: tuple[Stage, ...]
    seed: int
    """Of the rendered images."""


def make_small_net(net: SmallNet, arguments: Sequence[str] | None = None) -> Path:
    """Render images, train on them, write the net in float16, and measure transfer beside the same net untrained.

    Parameters
    ----------
    net : SmallNet
    arguments : sequence of str, optional
        Command line; that of the process by default. What it doesn't know goes to `vggfeat train`.

    Returns
    -------
    Path
        The weights file.
    """
    try:
        options = _parse(arguments)
        weights = _made(net, options)
    except (click.ClickException, VggfeatError) as error:
        click.echo(f"vggfeat: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    out = options["out"]
    small = ("--size", "tiny", "--scales", "224") if options["twin"] else ()
    must_run("demo", "--weights", weights, "--out", out / "demo", *small)
    if options["folder"] is not None:
        _measure(weights, options["folder"], out)
    click.echo(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB; into the package: vggfeat/weights/small.safetensors")
    return weights


def _parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    options = parse_options(
        arguments,
        help="Make the small net of the package. Further options are those of `vggfeat train`.",
        params=[
            click.Option(["--out"], type=PATH, help="Folder for all of it. [small-net]"),
            click.Option(["--folder"], type=PATH, help="Images of your own to test it on."),
            click.Option(["--twin"], is_flag=True, help="A small set, a narrow net, two steps."),
        ],
        more=True,
    )
    options["out"] = options["out"] or Path("small-net-twin" if options["twin"] else "small-net")
    make_folder(options["out"])
    return options


def _made(net: SmallNet, options: dict[str, Any]) -> Path:
    out: Path = options["out"]
    before: Path | None = None
    for stage in net.stages:
        before = _trained(stage, net.seed, before, options)
    trained = load_backbone(before)
    told = [{**asdict(stage), "images": asdict(stage.images)} for stage in net.stages]
    facts = {**trained.facts, "made_by": {"pipeline": "pipelines/small_backbone.py", "seed": net.seed, "stages": told}}
    weights = out / "small.safetensors"
    save_weights(weights, trained.model, mean=trained.mean, classes=trained.classes, dtype="float16", **facts)
    if weights.stat().st_size > MOST_BYTES:
        raise WeightsError(f"{weights}: expected at most {MOST_BYTES} bytes, found {weights.stat().st_size}")
    return weights


def _trained(stage: Stage, seed: int, before: Path | None, options: dict[str, Any]) -> Path:
    images = SIZES["tiny"]["ilsvrc"] if options["twin"] else stage.images
    workers = 1 if options["twin"] else default_workers()
    # Stages with the same images share them.
    data, out = options["out"] / f"images-{images.classes}", options["out"] / stage.name
    with Progress("rendering", "images") as bar:
        write("ilsvrc", data, seed=seed, size=images, workers=workers, progress=bar.update)
    chosen = [*shlex.split(stage.training), *(TWIN if options["twin"] else ()), *options["more"]]
    start = () if before is None else ("--init-from", before)
    must_run("train", "--root", data, "--out", out, "--resume", *start, *chosen)
    return out / "weights.safetensors"


def _measure(weights: Path, folder: Path, out: Path) -> None:
    """Test trained and untrained weights of the same net on images in class folders.

    A single partition into folds can favour either net by some points, so that the mean over several is told.
    """
    model = load_backbone(weights).model
    for name, spec in (("trained", str(weights)), ("untrained", f"random:{model.config}:0:{model.width!r}")):
        features = out / f"folder-{name}.h5"
        must_run("extract", "--dataset", "folder", "--root", folder, "--weights", spec, "--scales", SCALES,
                 "--out", features, "--allow-failed", 1000)  # fmt: skip
        found = [_headline(features, seed, out / f"folder-{name}-{seed}.svm") for seed in range(PARTITIONS)]
        spread = f"{100 * mean(found):.1f} % +- {100 * stdev(found):.1f}"
        click.echo(f"{name}: mean class recall {spread} over {PARTITIONS} partitions into folds")


def _headline(features: Path, seed: int, folder: Path) -> float:
    must_run("svm", "--features", features, "--protocol", "k-fold", "--seed", seed, "--out", folder)
    return float(json.loads((folder / "results.json").read_text(encoding="utf-8"))["headline"])
