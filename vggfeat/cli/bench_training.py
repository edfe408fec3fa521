"""`vggfeat bench train`: what holds training up."""

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vggfeat.cli.options import PATH, Scale

if TYPE_CHECKING:
    from vggfeat.benchmarks.training import TrainingSpeeds
    from vggfeat.samples import LabelledImages

CLASSES = 8


@click.command("train")
@click.option("--root", type=PATH, metavar="ROOT",
              help="Training images, as for `vggfeat train`. [rendered ones of 500 pixels]")  # fmt: skip
@click.option("--net", type=click.Choice(["A", "A-LRN", "B", "C", "D", "E"]), default="D", show_default=True)
@click.option("--width", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="Factor on the channels of the net.")  # fmt: skip
@click.option("--scale", type=Scale(), default="256", show_default=True, help="S, smallest image side.")
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True, help="Images in a step.")
@click.option("--device", help="cpu, cuda, cuda:1, ... [a GPU if there is one]")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="Of the net. [bf16 on a GPU, else fp32]")
@click.option("--compile", "compiled", is_flag=True, help="Compile the net.")
@click.option("--micro-batch", type=click.IntRange(1), help="Images in one pass. [what fits]")
@click.option("--workers", type=click.IntRange(0, 256), help="Processes that decode images. [one a core, at most 16]")
@click.option("--images", type=click.IntRange(2 * CLASSES), default=512, show_default=True,
              help="How many to render.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.01), default=10.0, show_default=True, help="Of each measurement.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def bench_training(
    root: Path | None,
    net: str,
    width: float,
    scale: tuple[int, int],
    batch: int,
    device: str | None,
    precision: str | None,
    compiled: bool,
    micro_batch: int | None,
    workers: int | None,
    images: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure images per second of decoding, of the step of SGD, and of both together, on one device.

    Whichever of the first two is slower alone is what holds training up. The step is also set against the product of
    two large matrices, which is what the device can do.

    \b
    Example:
      vggfeat bench train --net D --root ILSVRC
    """
    from vggfeat.benchmarks.training import measure
    from vggfeat.datasets import ilsvrc
    from vggfeat.runtime.devices import default_device, default_workers
    from vggfeat.training.recipe import Recipe, TrainingSettings

    recipe = Recipe(net=net, width=width, scale=scale, batch=batch)
    run = TrainingSettings(
        device=device or default_device(),
        workers=default_workers() if workers is None else workers,
        precision=precision,  # type: ignore[arg-type]
        micro_batch=micro_batch,
        compile=compiled,
    )
    with tempfile.TemporaryDirectory() if root is None else nullcontext(root) as place:
        data = _rendered(Path(place), images) if root is None else ilsvrc.read(root).train
        speeds = measure(data, recipe, run, seconds=seconds, progress=lambda name: click.echo(f"{name} ...", err=True))
    if as_json:
        about = {"recipe": recipe.describe(), "workers": run.workers, "compile": compiled, "images": len(data)}
        click.echo(json.dumps(about | speeds.describe(), indent=2))
        return
    click.echo(f"net {net}, width {width:g}, batch {batch}, {run.workers} workers; {speeds.device}, {speeds.precision}")
    for line in _lines(speeds):
        click.echo(line)


def _rendered(place: Path, images: int) -> "LabelledImages":
    """Render images of the sizes that ILSVRC-2012 has on average."""
    from vggfeat import synthetic
    from vggfeat.datasets import ilsvrc
    from vggfeat.runtime.devices import default_workers

    click.echo(f"rendering {images} images ...", err=True)
    size = synthetic.Settings(image_side=500, classes=CLASSES, train=-(-images // CLASSES), val=CLASSES)
    synthetic.write("ilsvrc", place, size=size, workers=default_workers())
    return ilsvrc.read(place).train


def _lines(speeds: "TrainingSpeeds") -> list[str]:
    rows = [
        ("decoding alone", speeds.decoding, "files to pixels"),
        ("loading alone", speeds.loading, "files to batches on the device"),
        ("step alone", speeds.step, f"{speeds.micro_batch} at a time, {100 * speeds.share:.0f} % of the matrix rate"),
        ("both", speeds.both, f"{100 * speeds.waiting:.0f} % of the time spent waiting for images"),
    ]
    lines = [f"  {name:15} {rate:9.1f} images/s  {note}" for name, rate, note in rows]
    return [
        *lines,
        f"  {'matrix product':15} {speeds.matrix_multiply_adds / 1e9:9.1f} G multiply-adds/s; "
        f"an image in training takes {speeds.image_multiply_adds / 1e9:.3g} G",
        f"held up by: {speeds.bottleneck}",
    ]
