"""`vggfeat bench extract`: how fast extraction is, and what holds it up."""

import json
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vggfeat.cli.options import Numbers, Words

if TYPE_CHECKING:
    from vggfeat.benchmarks.speeds import FormSpeeds, Speeds

WAYS = {"float32": "PyTorch's defaults", "autocast": "torch.autocast", "bfloat16": "the net in bfloat16"}
"""What the table says of each way to run the plain baseline."""


@click.command("extract")
@click.option("--net", type=click.Choice(["A", "A-LRN", "B", "C", "D", "E"]), default="D", show_default=True)
@click.option("--width", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="Factor on the channels of the net.")  # fmt: skip
@click.option("--scales", type=Numbers(int), default="256,384,512,640,768", show_default=True,
              help="Q, smallest image sides in pixels.")  # fmt: skip
@click.option("--layer", type=click.Choice(["pool5", "fc6", "fc7", "fc8"]), default="fc7", show_default=True)
@click.option(
    "--precision", type=Words(), default="fp32,bf16", show_default=True, help="Any of fp32, tf32, bf16, fp16."
)
@click.option("--batching", type=Words(), default="size", show_default=True, help="size, padded, or both.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the nets, which takes minutes at first.")
@click.option("--device", help="cpu, cuda, cuda:1, ... [a GPU if there is one]")
@click.option("--threads", type=click.IntRange(1, 1024), help="Cores of the CPU for the net. [all]")
@click.option("--workers", type=click.IntRange(0, 256), help="Processes that decode images. [one a core, at most 16]")
@click.option("--batch-pixels", type=click.IntRange(1), help="Pixels in one pass. [2^20 on the CPU, 2^22 on a GPU]")
@click.option("--images", type=click.IntRange(1), help="JPEG files to make. [24 on the CPU, 256 on a GPU]")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True,
              help="How often a run from files to file goes through them; for a GPU, 10 and more.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of images and weights.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Times that all is measured.")
@click.option("--seconds", type=click.FloatRange(0.01), default=2.0, show_default=True,
              help="Least time of each measurement.")  # fmt: skip
@click.option("--no-plain", "alone", is_flag=True, help="Without the plain baseline.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, every round included.")
def bench_extraction(
    net: str,
    width: float,
    scales: tuple[int, ...],
    layer: str,
    precision: tuple[str, ...],
    batching: tuple[str, ...],
    compiled: bool,
    device: str | None,
    threads: int | None,
    workers: int | None,
    batch_pixels: int | None,
    images: int | None,
    repeat: int,
    seed: int,
    rounds: int,
    seconds: float,
    alone: bool,
    as_json: bool,
) -> None:
    """Measure images per second of every stage of extraction alone, and from JPEG files to the feature file.

    The images are made on the fly, with the sides of VOC-2007's; the weights are random. All combinations of
    --precision and --batching are measured, each as `vggfeat extract` runs it, but for the four images that this
    computes again in float32 after a run in another precision. The stage that is the slowest alone is what holds a form
    up. Figures are medians of the rounds, after a run that does not count.

    Beside them stands a plain loop as one would write it with torchvision, the baseline: one image and scale at a
    time, decoded by the same process, the mirror as a second pass. It is in PyTorch's float32, whose convolutions are
    TF32 on a GPU, and in bf16 if that is among the precisions, by torch.autocast or with the net in bfloat16,
    whichever is faster. The ratio of a form is to the baseline of its own precision.

    \b
    Examples:
      vggfeat bench extract --net D --images 6
      vggfeat bench extract --device cuda --precision bf16 --batching size,padded --repeat 20
    """
    from vggfeat.benchmarks.ceilings import with_threads
    from vggfeat.benchmarks.extraction import BenchSettings, default_images, measure
    from vggfeat.benchmarks.speeds import Form
    from vggfeat.runtime.devices import default_batch_pixels, default_workers, ready_device
    from vggfeat.weights import random_backbone

    device = ready_device(device)
    settings = BenchSettings(
        scales=scales,
        forms=tuple(dict.fromkeys(Form(*words) for words in product(precision, batching))),
        layer=layer,
        images=images or default_images(device),
        repeat=repeat,
        seed=seed,
        device=device,
        workers=default_workers() if workers is None else workers,
        batch_pixels=batch_pixels or default_batch_pixels(device),
        compiled=compiled,
        rounds=rounds,
        seconds=seconds,
        plain=not alone,
    )
    with tempfile.TemporaryDirectory() as place, with_threads(threads) as used:
        backbone = random_backbone(f"random:{net}:{seed}:{width!r}")
        found = measure(backbone, settings, Path(place), lambda name: click.echo(f"{name} ...", err=True))
    if as_json:
        about = {"format": "vggfeat-bench-extract", "net": net, "width": width, "threads": used}
        click.echo(json.dumps(about | settings.describe() | found.describe(), indent=2))
        return
    click.echo(f"net {net}, width {width:g}, Q = {', '.join(map(str, scales))}, {layer}; {found.device}")
    click.echo(
        f"files: {settings.images}, {repeat} times; processes that decode: {settings.workers}; "
        f"pixels in a pass: {settings.batch_pixels}"
    )
    for line in _lines(found):
        click.echo(line)


def _lines(found: "Speeds") -> list[str]:
    from vggfeat.benchmarks.speeds import plain_name
    from vggfeat.results.text import align

    alone = [
        ("decoding alone", found.decoding, "files to pixels"),
        ("resizing alone", found.resizing, "pixels to images of all scales on the device"),
        ("writing alone", found.writing, "features to the file, read back"),
    ]
    stages = [f"  {name:14} {rates.median:9.4g} images/s  {note}" for name, rates, note in alone]
    header = ["", "network", "share", "files to file", "share", "ratio", "least cosine", "held up by"]
    rows = [_cells(found, one) for one in found.forms]
    for plain in found.plain:
        rate, cosine = plain.together.median, f"{plain.least_cosine:.8f}"
        share = _percent(found.share(plain.precision, rate))
        rows.append([plain_name(plain.precision), "-", "-", f"{rate:.4g}", share, "1.00", cosine, "-"])
    rates = ", ".join(f"{name} {rate / 1e9:.4g} G" for name, rate in found.matrix_multiply_adds.items())
    return [
        *stages,
        "",
        *align([header, *rows], left=1),
        "",
        f"images/s; share: of the matrix rate, {rates} multiply-adds/s; "
        f"an image takes {found.image_multiply_adds / 1e9:.4g} G",
        "least cosine: to the features of fp32, size",
        *_told_of_plain(found),
    ]


def _told_of_plain(found: "Speeds") -> list[str]:
    if not found.plain:
        return []
    ways = ", ".join(f"{one.precision} by {WAYS[one.way]}" for one in found.plain)
    loop = "one image and scale at a time, decoded by the same process"
    return [
        "ratio: of files to file, to the plain baseline of the same precision",
        f"plain baseline: {found.plain[0].module}; {ways}",
        f"  {loop}",
    ]


def _cells(found: "Speeds", one: "FormSpeeds") -> list[str]:
    network, together, ratio = one.network.median, one.together.median, found.ratio(one)
    return [
        str(one.form),
        f"{network:.4g}",
        _percent(found.share(one.form.precision, network)),
        f"{together:.4g}",
        _percent(found.share(one.form.precision, together)),
        "-" if ratio is None else f"{ratio:.2f}",
        f"{one.least_cosine:.8f}",
        found.limit(one),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
