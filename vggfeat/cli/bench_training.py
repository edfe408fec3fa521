"""`vggfeat bench train`: what holds training up."""

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vggfeat.cli.bench_extraction import DEVICE_HELP, NETS, SECONDS, WIDTH, WORKERS_HELP
from vggfeat.cli.options import PATH, Scale, option, with_options
from vggfeat.cli.output import say, say_json

if TYPE_CHECKING:
    from vggfeat.benchmarks.training import TrainingSpeeds
    from vggfeat.samples import LabelledImages

CLASSES = 8


@dataclass(frozen=True, kw_only=True)
class TrainingBenchOptions:
    """What `bench train` measures, and how long."""

    root: Path | None = option(  # noqa: RUF009  a field
        "--root", type=PATH, metavar="ROOT",
        help="Training images, as for `vggfeat train`. [rendered ones of 500 pixels]",
    )  # fmt: skip
    net: str = option("--net", type=NETS, default="D")
    width: float = option("--width", type=WIDTH, default=1.0, help="Factor on the channels of the net.")
    scale: tuple[int, int] = option("--scale", type=Scale(), default="256", help="S, smallest image side.")
    batch: int = option("--batch", type=click.IntRange(1), default=256, help="Images in a step.")
    device: str | None = option("--device", help=DEVICE_HELP)
    precision: str | None = option(
        "--precision", type=click.Choice(["fp32", "bf16"]), help="Of the net. [bf16 on a GPU, else fp32]"
    )
    compile: bool = option("--compile", is_flag=True, help="Compile the net.")
    micro_batch: int | None = option("--micro-batch", type=click.IntRange(1), help="Images in one pass. [what fits]")
    workers: int | None = option("--workers", type=click.IntRange(0, 256), help=WORKERS_HELP)
    images: int = option("--images", type=click.IntRange(2 * CLASSES), default=512, help="How many to render.")
    seconds: float = option("--seconds", type=SECONDS, default=10.0, help="Of each measurement.")
    as_json: bool = option("--json", is_flag=True, help="Print as JSON.")


@click.command("train")
@with_options(TrainingBenchOptions, "options")
def bench_training(options: TrainingBenchOptions) -> None:
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

    recipe = Recipe(net=options.net, width=options.width, scale=options.scale, batch=options.batch)
    run = TrainingSettings(
        device=options.device or default_device(),
        workers=default_workers() if options.workers is None else options.workers,
        precision=options.precision,  # type: ignore[arg-type]
        micro_batch=options.micro_batch,
        compile=options.compile,
    )
    root = options.root
    with tempfile.TemporaryDirectory() if root is None else nullcontext(root) as place:
        data = _rendered(Path(place), options.images) if root is None else ilsvrc.read(root).train
        speeds = measure(data, recipe, run, seconds=options.seconds, report=lambda name: say(f"{name} ...", err=True))
    if options.as_json:
        about = {"recipe": recipe.describe(), "workers": run.workers, "compile": run.compile, "images": len(data)}
        say_json(about | speeds.describe())
        return
    say(
        f"net {recipe.net}, width {recipe.width:g}, batch {recipe.batch}, {run.workers} workers; "
        f"{speeds.device}, {speeds.precision}"
    )
    for line in _lines(speeds):
        say(line)


def _rendered(place: Path, images: int) -> "LabelledImages":
    """Render images of the sizes that ILSVRC-2012 has on average."""
    from vggfeat import synthetic
    from vggfeat.datasets import ilsvrc
    from vggfeat.runtime.devices import default_workers

    say(f"rendering {images} images ...", err=True)
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
