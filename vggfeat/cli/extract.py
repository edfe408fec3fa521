"""`vggfeat extract`: images in, one feature file out."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.config import EXTRACT
from vggfeat.cli.data import ListOptions
from vggfeat.cli.options import (
    LAYOUT,
    PATH,
    TRY_AGAIN,
    DecodingOptions,
    ForwardOptions,
    JobOptions,
    Numbers,
    Words,
    load_net,
    make_folder,
    net_files,
    with_options,
)
from vggfeat.cli.output import say, say_json, say_note
from vggfeat.cli.signals import is_main
from vggfeat.errors import StoreError

if TYPE_CHECKING:
    from vggfeat.datasets.levels import Layout
    from vggfeat.extract import Summary

PHOTOGRAPHS = (
    "small has seen rendered images only, so that features of photographs say little; a net that has seen photographs: "
    "vggfeat weights fetch vgg16-caffe"
)


@click.command()
@click.option("--dataset", "name", required=True, metavar="NAME", help="A name of `vggfeat data list`.")
@click.option("--root", type=PATH, help="Where the data set is. [$VGGFEAT_DATA/NAME, data/NAME]")
@LAYOUT
@with_options(ListOptions, "listing")
@click.option("--weights", metavar="FILE|NAME|small|random:NET:SEED:WIDTH", help="The net. [the one in weights/]")
@click.option("--out", type=PATH, help="The feature file. [NAME.h5]")
@click.option("--scales", type=Numbers(int), help="Q, smallest image sides in pixels. [the paper's for the data set]")
@click.option("--regions", type=Words(), help="image, box, or image,box. [the paper's for the data set]")
@click.option(
    "--layer", default="fc7", show_default=True, help="A map of the net: of a VGG relu1_1 to pool5, fc6 to fc8."
)
@with_options(ForwardOptions, "forward")
@click.option("--device", help="cpu, cuda, cuda:1, ..., mps [a CUDA GPU if there is one]")
@click.option("--batching", type=click.Choice(["size", "padded"]), default="size", show_default=True,
              help="Which images run together: of equal size, or of similar size, padded with zeros.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True,
              help="Compile the net first, for a minute or two; `vggfeat bench extract` shows if it pays.")  # fmt: skip
@with_options(DecodingOptions, "decoding")
@with_options(JobOptions, "job")
@EXTRACT.option()
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--quiet", is_flag=True, help="No progress.")
def extract(
    name: str,
    root: Path | None,
    layout: "Layout | None",
    listing: ListOptions,
    weights: str | None,
    out: Path | None,
    scales: tuple[int, ...] | None,
    regions: tuple[str, ...] | None,
    layer: str,
    forward: ForwardOptions,
    device: str | None,
    batching: str,
    compiled: bool,
    decoding: DecodingOptions,
    job: JobOptions,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compute dense multi-scale features of a data set and keep them in one HDF5 file.

    Every image is rescaled so that its smallest side is Q, run densely through the net, and so is its mirror; the
    layer is averaged over space, then over the two. One vector per image, scale and region is stored, not
    normalised. Images that can't be read are counted by reason and listed in OUT.failures.jsonl. A run that was
    stopped resumes when the same command is given again. Several GPUs or machines with a common disk: give the same
    command to torchrun; the file is the same, byte by byte.

    \b
    Examples:
      vggfeat extract --dataset voc2007 --root VOCdevkit --weights D.safetensors
      vggfeat extract --dataset folder --root holiday/ --weights vgg16-397923af.pth --out holiday.h5
      vggfeat extract --dataset manifest --root list.csv --weights random:A:0:0.25 --scales 256
      torchrun --nproc-per-node 4 -m vggfeat extract --dataset voc2007 --root VOCdevkit --weights D.safetensors

    \b
    Exit codes: 0 done, 3 done but more than --allow-failed images failed; others: vggfeat --help.
    """
    from vggfeat.cli.progress import Progress
    from vggfeat.datasets.catalogue import DATASETS, open_dataset
    from vggfeat.extract import extract_features
    from vggfeat.forward.features import ExtractionSettings
    from vggfeat.runtime.devices import ready_device
    from vggfeat.runtime.distributed import open_world
    from vggfeat.runtime.rendered import is_rendered
    from vggfeat.runtime.targets import anything, check_target
    from vggfeat.weights.load import BUNDLED

    target = out or Path(f"{_stem(name, root)}.h5")
    check_target(target, inputs=[*net_files(weights), *([root] if root else [])], ours=anything)
    dataset = open_dataset(name, root, layout, listing.settings())
    for note in dataset.notes:
        say_note(note)
    record = DATASETS[name]
    device = ready_device(device)
    settings = ExtractionSettings(
        scales=scales or record.scales,
        regions=regions or record.regions,  # type: ignore[arg-type]
        layer=layer,
        batching=batching,  # type: ignore[arg-type]
        compiled=compiled,
        **forward.given(device),
    )
    backbone = load_net(weights)
    if backbone.source == BUNDLED and not is_rendered(dataset.root):
        say_note(PHOTOGRAPHS)
    if not backbone.trained:
        say_note(f"{backbone.source} is an untrained net: good for trials, not for results")
    make_folder(target.parent)
    with (
        open_world(device, os.environ, lost=StoreError) as world,
        Progress(f"extract {name}", "images", quiet=quiet or not is_main()) as bar,
    ):
        summary = extract_features(
            dataset,
            backbone,
            target,
            settings,
            run=job.settings(str(world.device), decoding.processes()),
            decode=decoding.settings(),
            progress=bar.update_failed,
            world=world,
        )
    if not is_main():
        return 0
    show_summary(summary, as_json)
    return 3 if len(summary.failures) > job.allow_failed else 0


def show_summary(summary: "Summary", as_json: bool = False) -> None:
    """Print what a run has left behind."""
    if as_json:
        say_json(_summary_json(summary))
        return
    from vggfeat.cli.progress import duration
    from vggfeat.results.text import SHOWN_FAILURES, failures_by_reason

    say(f"{summary.path}: {summary.tally()}, in {duration(summary.seconds)}")
    for note in summary.notes:
        say(f"note: {note}")
    for told in failures_by_reason(summary.failures, SHOWN_FAILURES, str(summary.failures_file)):
        say(told)
    if summary.failures:
        say(TRY_AGAIN)


def _summary_json(summary: "Summary") -> dict[str, Any]:
    failed = len(summary.failures)
    counts = {"done": summary.total - failed, "failed": failed, "failed_by_reason": summary.failed_by_reason}
    return summary.to_json() | counts


def _stem(name: str, root: Path | None) -> str:
    # A user's own images are better known by their folder than by the word "folder".
    if name in ("folder", "manifest") and root is not None:
        place = root.resolve()
        return (place.stem if place.is_file() else place.name) or name
    return name
