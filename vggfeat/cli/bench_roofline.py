"""`vggfeat bench roofline`: what features of an image take at least."""

import json
from typing import TYPE_CHECKING

import click

from vggfeat.cli.options import Numbers, Sides

if TYPE_CHECKING:
    from vggfeat.benchmarks.roofline import Cost, Roofline


@click.command("roofline")
@click.option("--net", type=click.Choice(["A", "A-LRN", "B", "C", "D", "E"]), default="D", show_default=True)
@click.option("--width", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="Factor on the channels of the net.")  # fmt: skip
@click.option("--scales", type=Numbers(int), default="256,384,512,640,768", show_default=True,
              help="Q, smallest image sides in pixels.")  # fmt: skip
@click.option("--shape", type=Sides(), default="375x500", show_default=True, help="Of the image, in pixels.")
@click.option("--layer", type=click.Choice(["pool5", "fc6", "fc7", "fc8"]), default="fc7", show_default=True)
@click.option("--pool", type=click.Choice(["floor", "ceil"]), default="floor", show_default=True,
              help="Rounding of the pooling: floor in torchvision's nets, ceil in the authors'.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1, ... [a GPU if there is one]")
@click.option("--threads", type=click.IntRange(1, 1024), help="Cores of the CPU. [all]")
@click.option("--batch-pixels", type=click.IntRange(1),
              help="Pixels in one pass, which share the weights read. [2^20 on the CPU, 2^22 on a GPU]")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.01), default=2.0, show_default=True, help="Of each measurement.")
@click.option("--no-measure", "counted", is_flag=True, help="Operations and bytes only.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, with every layer at every scale.")
def bench_roofline(
    net: str,
    width: float,
    scales: tuple[int, ...],
    shape: tuple[int, int],
    layer: str,
    pool: str,
    precision: str,
    device: str | None,
    threads: int | None,
    batch_pixels: int | None,
    seconds: float,
    counted: bool,
    as_json: bool,
) -> None:
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

    device = ready_device(device)
    settings = ExtractionSettings(
        scales=scales,
        layer=layer,
        precision=precision,  # type: ignore[arg-type]
        batch_pixels=batch_pixels or default_batch_pixels(device),
    )
    model = empty_net(net, width, pool)  # type: ignore[arg-type]
    roofline(model, settings, shape)  # What can't be counted is refused before anything is measured.
    ceilings = None
    if not counted:
        with with_threads(threads):
            ceilings = measure_ceilings(device, precision, seconds)
    found = roofline(model, settings, shape, ceilings)
    if as_json:
        about = {"net": net, "width": width, "pool": pool, "layer": layer, "precision": precision, "shape": list(shape)}
        told = {"format": "vggfeat-bench-roofline", **about, "batch_pixels": settings.batch_pixels}
        click.echo(json.dumps(told | found.describe(), indent=2))
        return
    click.echo(f"net {net}, width {width:g}, up to {layer}, {precision}; an image of {shape[0]} x {shape[1]}, mirrored")
    for line in _lines(found):
        click.echo(line)


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
    return [*_ceilings(found), *table, "", *_end(found)]


def _ceilings(found: "Roofline") -> list[str]:
    if found.ceilings is None:
        return [""]
    most = found.ceilings
    return [
        f"{most.device}: matrix product {most.multiply_adds / 1e9:.4g} G multiply-adds/s, "
        f"memory copy {most.bytes / 1e9:.3g} GB/s; below {most.ridge:.3g} multiply-adds/byte the memory bounds",
        "",
    ]


def _end(found: "Roofline") -> list[str]:
    lines = ["all separate: ReLU and pooling as operations of their own; else they happen inside the convolution."]
    if found.ceilings is None:
        return lines
    total = found.total
    return [
        *lines,
        f"at most {1 / total.seconds:.4g} images/s, bound by {total.bound}; all separate "
        f"{1 / total.separate_seconds:.4g}",
    ]


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
