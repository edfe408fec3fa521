"""`vggfeat report`: folders of results in, one page out."""

from pathlib import Path

import click

from vggfeat.cli.options import NET, PATH, QUIET, WorkerOptions, json_option, with_options
from vggfeat.cli.output import make_folder, say, say_json
from vggfeat.cli.progress import Progress
from vggfeat.errors import ConfigError, counted
from vggfeat.runtime.devices import ready_device


@click.command()
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=PATH, default=Path("report.html"), show_default=True,
              help="The page.")  # fmt: skip
@click.option("--root", "images", type=PATH, metavar="ROOT",
              help="Where the images are: what `extract --root` was given. [a page without images]")  # fmt: skip
@click.option("--explain", is_flag=True,
              help="With --root: draw where the scores of the worst mistakes come from, by the net.")  # fmt: skip
@click.option("--weights", multiple=True, metavar=NET,
              help="With --explain: the nets of the features. [by SHA-256, in weights/]")  # fmt: skip
@click.option("--device", help="With --explain: cpu, cuda, cuda:1, ..., mps [a CUDA GPU if there is one]")
@click.option("--resamples", type=click.IntRange(100, 100000), default=1000, show_default=True,
              help="Of the paired bootstrap between runs.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
@with_options(WorkerOptions, "workers")
@json_option("Print headlines and differences as JSON.")
@QUIET
def report(
    runs: tuple[Path, ...],
    out: Path,
    images: Path | None,
    explain: bool,
    weights: tuple[str, ...],
    device: str | None,
    resamples: int,
    seed: int,
    workers: WorkerOptions,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show the results in folders of `svm`, `train` and others as one page, a file that can be opened and mailed.

    It holds the headline by its rule next to the paper's number, a table of classes that sorts, curves, confusions,
    the images that explain each class, failures, settings and times; nothing is loaded from elsewhere. Runs of the
    same classes stand side by side, with their differences and what other test images could change (a paired
    bootstrap).

    \b
    Examples:
      vggfeat report voc2007.svm --root VOCdevkit
      vggfeat report photos.svm --root photos --explain
      vggfeat report D.svm E.svm DE.svm --root VOCdevkit --out voc2007.html
      vggfeat report nets/A-256 nets/A-384
    """
    from vggfeat.metrics.bootstrap import BootstrapSettings
    from vggfeat.results.evidence import ExplainSettings
    from vggfeat.results.page import PageSettings, check_page_place, make_page, page_json, write_page

    if not explain and (weights or device):
        raise ConfigError("--weights, --device: expected with --explain, found without; leave them out, or give it")
    settings = PageSettings(
        images=images,
        bootstrap=BootstrapSettings(resamples=resamples, seed=seed),
        workers=workers.processes(),
        explain=ExplainSettings(weights=weights, device=ready_device(device)) if explain else None,
    )
    check_page_place(out, runs)
    make_folder(out.parent)
    with Progress("report", "parts", quiet=quiet) as bar:
        page = make_page(runs, settings, progress=bar.update_stage)
    write_page(out, page.content)
    found = page_json(page)
    if as_json:
        say_json({"page": str(out), **found})
        return
    for group in found["groups"]:
        for run in group["runs"]:
            say(f"{run['name']}: {group['measure']} {_value(run)} {run['tested']}")
        for one in group["differences"]:
            say(f"{one['second']} - {one['first']}: {_difference(one)}")
    if page.missing:
        missing = counted(page.missing, "image{s} {are} missing, damaged or outside")
        say(f"note: {missing} {images}; the page says which")
    say(f"{out}: {len(page.content) / 1e6:.1f} MB, {counted(page.images, 'image{s}')}")


def _value(run: dict) -> str:
    if run["headline"] is None:
        return "- %"
    deviation = "" if run["deviation"] is None else f" +- {100 * run['deviation']:.1f}"
    return f"{100 * run['headline']:.1f} %{deviation}"


def _difference(one: dict) -> str:
    if "reason" in one:
        return f"not compared: {one['reason']}"
    low, high = (100 * end for end in one["interval"])
    return (
        f"{100 * one['mean']:+.1f} points, {100 * one['level']:g} % interval {low:+.1f} to {high:+.1f} "
        f"({one['resamples']} resamples of {counted(one['images'], 'test image{s}')})"
    )
