"""`vggfeat bench extract`: how fast extraction is, and what holds it up."""

import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click

from vggfeat.cli.options import Numbers, Words, option, with_options
from vggfeat.cli.output import say, say_json

NETS = click.Choice(["A", "A-LRN", "B", "C", "D", "E"])
LAYERS = click.Choice(["pool5", "fc6", "fc7", "fc8"])
WIDTH = click.FloatRange(0, min_open=True)
THREADS = click.IntRange(1, 1024)
SECONDS = click.FloatRange(0.01)
DEVICE_HELP = "cpu, cuda, cuda:1, ... [a GPU if there is one]"
WORKERS_HELP = "Processes that decode images. [one a core, at most 16]"
WAYS = {"float32": "PyTorch's defaults", "autocast": "torch.autocast", "bfloat16": "the net in bfloat16"}
"""What the table calls each way to run the plain baseline."""


@dataclass(frozen=True, kw_only=True)
class ExtractionBenchOptions:
    """What `bench extract` measures, and how long."""

    net: str = option("--net", type=NETS, default="D")
    width: float = option("--width", type=WIDTH, default=1.0, help="Factor on the channels of the net.")
    scales: tuple[int, ...] = option(
        "--scales", type=Numbers(int), default="256,384,512,640,768", help="Q, smallest image sides in pixels."
    )
    layer: str = option("--layer", type=LAYERS, default="fc7")
    precision: tuple[str, ...] = option(
        "--precision", type=Words(), default="fp32,bf16", help="Any of fp32, tf32, bf16, fp16."
    )
    batching: tuple[str, ...] = option("--batching", type=Words(), default="size", help="size, padded, or both.")
    compiled: bool = option("--compile", is_flag=True, help="Compile the nets, which takes minutes at first.")
    device: str | None = option("--device", help=DEVICE_HELP)
    threads: int | None = option("--threads", type=THREADS, help="Cores of the CPU for the net. [all]")
    workers: int | None = option("--workers", type=click.IntRange(0, 256), help=WORKERS_HELP)
    batch_pixels: int | None = option(
        "--batch-pixels", type=click.IntRange(1), help="Pixels in one pass. [2^20 on the CPU, 2^22 on a GPU]"
    )
    images: int | None = option(
        "--images", type=click.IntRange(1), help="JPEG files to make. [24 on the CPU, 256 on a GPU]"
    )
    repeat: int = option(
        "--repeat", type=click.IntRange(1), default=1,
        help="How often a run from files to file goes through them; for a GPU, 10 and more.",
    )  # fmt: skip
    seed: int = option("--seed", type=click.IntRange(0), default=0, help="Of images and weights.")
    rounds: int = option("--rounds", type=click.IntRange(1), default=3, help="Times that all is measured.")
    seconds: float = option("--seconds", type=SECONDS, default=2.0, help="Least time of each measurement.")
    no_plain: bool = option("--no-plain", is_flag=True, help="Without the plain baseline.")
    as_json: bool = option("--json", is_flag=True, help="Print as JSON, every round included.")


@click.command("extract")
@with_options(ExtractionBenchOptions, "options")
def bench_extraction(options: ExtractionBenchOptions) -> None:
    """Measure images per second of every stage of extraction alone, and from JPEG files to the feature file.

    The images are made on the fly, with the sides of VOC-2007's; the weights are random. All combinations of
    --precision and --batching are measured, each as `vggfeat extract` runs it, but for the four images that this
    computes again in float32 after a run in another precision. The stage that is the slowest alone is what holds a form
    up. Figures are medians of the rounds, after a run that does not count.

    Next to them is a plain loop as one would write it with torchvision, the baseline: one image and scale at a
    time, decoded by the same process, the mirror as a second pass. It is in PyTorch's float32, whose convolutions are
    TF32 on a GPU, and in bf16 if that is among the precisions, by torch.autocast or with the net in bfloat16,
    whichever is faster. The ratio of a form is to the baseline of its own precision.

    \b
    Examples:
      vggfeat bench extract --net D --images 6
      vggfeat bench extract --device cuda --precision bf16 --batching size,padded --repeat 20
    """
    from vggfeat.benchmarks.ceilings import with_threads
    from vggfeat.benchmarks.extraction import default_images, measure
    from vggfeat.benchmarks.stages import BenchSettings, Form
    from vggfeat.runtime.devices import default_batch_pixels, default_workers, ready_device
    from vggfeat.weights import random_backbone

    device = ready_device(options.device)
    same = ("scales", "layer", "repeat", "seed", "compiled", "rounds", "seconds")
    settings = BenchSettings(
        forms=tuple(dict.fromkeys(Form(*words) for words in product(options.precision, options.batching))),
        images=options.images or default_images(device),
        device=device,
        workers=default_workers() if options.workers is None else options.workers,
        batch_pixels=options.batch_pixels or default_batch_pixels(device),
        plain=not options.no_plain,
        **{name: getattr(options, name) for name in same},
    )
    with tempfile.TemporaryDirectory() as place, with_threads(options.threads) as used:
        backbone = random_backbone(f"random:{options.net}:{options.seed}:{options.width!r}")
        found = measure(backbone, settings, Path(place), lambda name: say(f"{name} ...", err=True))
    if options.as_json:
        about = {"format": "vggfeat-bench-extract", "net": options.net, "width": options.width, "threads": used}
        say_json(about | settings.describe() | found)
        return
    scales = ", ".join(map(str, options.scales))
    say(f"net {options.net}, width {options.width:g}, Q = {scales}, {options.layer}; {found['device']}")
    say(
        f"files: {settings.images}, {options.repeat} times; processes that decode: {settings.workers}; "
        f"pixels in a pass: {settings.batch_pixels}"
    )
    for line in _lines(found):
        say(line)


def _lines(found: dict[str, Any]) -> list[str]:
    from vggfeat.results.text import align

    notes = {
        "decoding": "files to pixels",
        "resizing": "pixels to images of all scales on the device",
        "writing": "features to the file, read back",
    }
    stages = [f"  {f'{name} alone':14} {found[name]['median']:9.4g} images/s  {note}" for name, note in notes.items()]
    header = ["", "network", "share", "files to file", "share", "ratio", "least cosine", "held up by"]
    rates = ", ".join(f"{name} {rate / 1e9:.4g} G" for name, rate in found["matrix_multiply_adds"].items())
    return [
        *stages,
        "",
        *align([header, *map(_cells, found["forms"]), *map(_plain_cells, found["plain"])], left=1),
        "",
        f"images/s; share: of the matrix rate, {rates} multiply-adds/s; "
        f"an image takes {found['image_multiply_adds'] / 1e9:.4g} G",
        "least cosine: to the features of fp32, size",
        *_plain_notes(found["plain"]),
    ]


def _plain_notes(plain: list[dict[str, Any]]) -> list[str]:
    if not plain:
        return []
    ways = ", ".join(f"{one['precision']} by {WAYS[one['way']]}" for one in plain)
    return [
        "ratio: of files to file, to the plain baseline of the same precision",
        f"plain baseline: {plain[0]['module']}; {ways}",
        "  one image and scale at a time, decoded by the same process",
    ]


def _cells(one: dict[str, Any]) -> list[str]:
    return [
        f"{one['precision']}, {one['batching']}",
        f"{one['network']['median']:.4g}",
        f"{100 * one['network_share']:.0f} %",
        f"{one['together']['median']:.4g}",
        f"{100 * one['together_share']:.0f} %",
        "-" if one["ratio"] is None else f"{one['ratio']:.2f}",
        f"{one['least_cosine']:.8f}",
        one["limit"],
    ]


def _plain_cells(one: dict[str, Any]) -> list[str]:
    share, cosine = f"{100 * one['together_share']:.0f} %", f"{one['least_cosine']:.8f}"
    return [f"plain baseline, {one['precision']}", "-", "-", f"{one['together']['median']:.4g}", share, "1.00", cosine,
            "-"]  # fmt: skip
