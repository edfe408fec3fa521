"""`vggfeat bench roofline`: what features of an image take at least."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from vggfeat.cli.bench_extraction import DEVICE_HELP, LAYERS, NETS, SECONDS, THREADS, WIDTH
from vggfeat.cli.options import Numbers, Sides, option, with_options
from vggfeat.cli.output import say, say_json

if TYPE_CHECKING:
    from vggfeat.benchmarks.roofline import Cost, Roofline


@dataclass(frozen=True, kw_only=True)
class RooflineOptions:
    """What `bench roofline` counts and measures."""

    net: str = option("--net", type=NETS, default="D")
    width: float = option("--width", type=WIDTH, default=1.0, help="Factor on the channels of the net.")
    scales: tuple[int, ...] = option(
        "--scales", type=Numbers(int), default="256,384,512,640,768", help="Q, smallest image sides in pixels."
    )
    shape: tuple[int, int] = option("--shape", type=Sides(), default="375x500", help="Of the image, in pixels.")
    layer: str = option("--layer", type=LAYERS, default="fc7")
    pool: str = option(
        "--pool", type=click.Choice(["floor", "ceil"]), default="floor",
        help="Rounding of the pooling: floor in torchvision's nets, ceil in the authors'.",
    )  # fmt: skip
    precision: str = option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]), default="fp32")
    device: str | None = option("--device", help=DEVICE_HELP)
    threads: int | None = option("--threads", type=THREADS, help="Cores of the CPU. [all]")
    batch_pixels: int | None = option(
        "--batch-pixels", type=click.IntRange(1),
        help="Pixels in one pass, which share the weights read. [2^20 on the CPU, 2^22 on a GPU]",
    )  # fmt: skip
    seconds: float = option("--seconds", type=SECONDS, default=2.0, help="Of each measurement.")
    counted: bool = option("--no-measure", is_flag=True, help="Operations and bytes only.")
    as_json: bool = option("--json", is_flag=True, help="Print as JSON, with every layer at every scale.")


@click.command("roofline")
@with_options(RooflineOptions, "options")
def bench_roofline(options: RooflineOptions) -> None:
    """Count multiply-adds and bytes of the dense features of one image and its mirror, and the least time for them.

    The least time of a layer is that of its multiply-adds at the rate of a large matrix product, or of its bytes at the
    rate of a memory copy, whichever is longer; both rates are measured first. Bytes: maps are read and written in the
    precision of the net, weights once a pass.

    \b
    Examples:
      vggfeat bench roofline --net D
      vggfeat bench roofline --net D --precision bf16 --device cuda --json
    """
    from vggfeat.benchmarks.ceilings import with_threads
    from vggfeat.benchmarks.roofline import empty_net, measure_ceilings, roofline
    from vggfeat.forward.features import ExtractionSettings
    from vggfeat.runtime.devices import default_batch_pixels, ready_device

    device = ready_device(options.device)
    settings = ExtractionSettings(
        scales=options.scales,
        layer=options.layer,
        precision=options.precision,  # type: ignore[arg-type]
        batch_pixels=options.batch_pixels or default_batch_pixels(device),
    )
    model = empty_net(options.net, options.width, options.pool)  # type: ignore[arg-type]
    found = roofline(model, settings, options.shape)  # What can't be counted is refused before anything is measured.
    if not options.counted:
        with with_threads(options.threads):
            ceilings = measure_ceilings(device, options.precision, options.seconds)
        found = roofline(model, settings, options.shape, ceilings)
    if options.as_json:
        names = ("net", "width", "pool", "layer", "precision", "shape")
        about = {name: value for name, value in asdict(options).items() if name in names}
        about |= {"format": "vggfeat-bench-roofline", "batch_pixels": settings.batch_pixels}
        say_json(about | found.describe())
        return
    height, width = options.shape
    say(
        f"net {options.net}, width {options.width:g}, up to {options.layer}, {options.precision}; "
        f"an image of {height} x {width}, mirrored"
    )
    for line in _lines(found):
        say(line)


def _lines(found: "Roofline") -> list[str]:
    from vggfeat.results.text import align

    header = ["", "G multiply-adds", "MB", "MB, all separate", "multiply-adds/byte"]
    if found.ceilings is not None:
        header += ["bound", "least ms", "ms, all separate"]
    rows = [_cells(cost) for cost in (*found.layers, *found.scales, found.total)]
    table = align([header, *rows], left=1)
    rules = (1, 1 + len(found.layers), 1 + len(found.layers) + len(found.scales))
    for rule in reversed(rules):
        table.insert(rule, "")
    return [*_ceilings(found), *table, "", *_last_lines(found)]


def _ceilings(found: "Roofline") -> list[str]:
    most = found.ceilings
    if most is None:
        return [""]
    return [
        f"{most.device}: matrix product {most.multiply_adds / 1e9:.4g} G multiply-adds/s, "
        f"memory copy {most.bytes / 1e9:.3g} GB/s; below {most.ridge:.3g} multiply-adds/byte the memory bounds",
        "",
    ]


def _last_lines(found: "Roofline") -> list[str]:
    lines = ["all separate: ReLU and pooling as operations of their own; else they happen inside the convolution."]
    total = found.total
    if found.ceilings is not None:
        lines.append(
            f"at most {1 / total.seconds:.4g} images/s, bound by {total.bound}; all separate "
            f"{1 / total.separate_seconds:.4g}"
        )
    return lines


def _cells(cost: "Cost") -> list[str]:
    counted = [
        cost.name,
        _number(cost.multiply_adds / 1e9),
        _number(cost.bytes / 1e6),
        _number(cost.separate_bytes / 1e6),
        f"{cost.intensity:.3g}",
    ]
    if not cost.bound:
        return counted
    return [*counted, cost.bound, _number(1e3 * cost.seconds), _number(1e3 * cost.separate_seconds)]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
