"""`vggfeat extract`: images in, one feature file out."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.config import EXTRACT
from vggfeat.cli.data import ListOptions
from vggfeat.cli.extraction import FeatureOptions, StoreOptions, load_noted_net, note_all, stem
from vggfeat.cli.options import (
    DEVICE,
    LAYOUT,
    NET,
    PATH,
    QUIET,
    DecodingOptions,
    JobOptions,
    LimitOptions,
    json_option,
    net_files,
    refuse_options,
    with_options,
)
from vggfeat.cli.output import TRY_AGAIN, make_folder, say, say_json
from vggfeat.cli.plan import PlanRunOptions
from vggfeat.cli.progress import Progress, duration
from vggfeat.cli.signals import is_main
from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.devices import ready_device
from vggfeat.runtime.storage import is_remote
from vggfeat.runtime.targets import anything, check_target
from vggfeat.samples import is_rendered

if TYPE_CHECKING:
    from vggfeat.datasets.levels import Layout
    from vggfeat.extract import Summary

OF_PLAN = ("name", "layout", "out", "shard_rows", "overwrite", "extend", *(one.name for one in fields(ListOptions)),
           *(one.name for one in fields(FeatureOptions)), *(one.name for one in fields(LimitOptions)))  # fmt: skip
"""What a plan has decided."""
OF_RUN = tuple(one.name for options in (PlanRunOptions, StoreOptions) for one in fields(options))
"""What nothing but a plan has a use for."""


@click.command()
@click.option("--dataset", "name", metavar="NAME", help="A name of `vggfeat data list`.")
@click.option("--root", "place", help="Where the data set is. [$VGGFEAT_DATA/NAME, data/NAME; of a plan: as planned]")
@LAYOUT
@with_options(ListOptions, "listing")
@click.option("--weights", metavar=NET,
              help="The net. [the one in weights/; of a plan: that of its SHA-256]")  # fmt: skip
@click.option("--out", type=PATH, help="The feature file. [NAME.h5]")
@with_options(FeatureOptions, "features")
@DEVICE
@with_options(DecodingOptions, "decoding")
@with_options(JobOptions, "job")
@click.option(
    "--extend", is_flag=True, help="Compute only what is new, where images have come since the file was made."
)
@with_options(PlanRunOptions, "planned")
@with_options(StoreOptions, "stores")
@EXTRACT.option()
@json_option("Print the summary as JSON.")
@QUIET
def extract(
    name: str | None,
    place: str | None,
    layout: "Layout | None",
    listing: ListOptions,
    weights: str | None,
    out: Path | None,
    features: FeatureOptions,
    device: str | None,
    decoding: DecodingOptions,
    job: JobOptions,
    extend: bool,
    planned: PlanRunOptions,
    stores: StoreOptions,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compute dense multi-scale features of a data set and keep them in one HDF5 file.

    Every image is rescaled so that its smallest side is Q, run densely through the net, and so is its mirror; the
    layer is averaged over space, then over the two. One vector per image, scale and region is stored, not
    normalised. Images that can't be read are counted by reason and listed in OUT.failures.jsonl. A run that was
    stopped resumes when the same command is given again. Several GPUs or machines with a common disk: give the same
    command to torchrun; the file is the same, byte by byte.

    With --plan: compute shards of a run that `vggfeat plan` has made, all or a share of them, on any number of
    machines that know nothing of each other, or in a cluster of Ray.

    \b
    Examples:
      vggfeat extract --dataset voc2007 --root VOCdevkit --weights D.safetensors
      vggfeat extract --dataset folder --root holiday/ --weights vgg16-397923af.pth --out holiday.h5
      vggfeat extract --dataset manifest --root list.csv --weights random:A:0:0.25 --scales 256
      torchrun --nproc-per-node 4 -m vggfeat extract --dataset voc2007 --root VOCdevkit --weights D.safetensors
      vggfeat extract --dataset folder --root holiday/ --weights vgg16-397923af.pth --out holiday.h5 --extend
      vggfeat extract --plan /disk/run --take 17/1000
      vggfeat extract --plan /disk/run --engine ray --address auto --nets 8:64

    \b
    Exit codes: 0 done, 3 done but more than --allow-failed images failed; others: vggfeat --help.
    """
    if planned.run is not None:
        refuse_options(click.get_current_context(), OF_PLAN, "the plan has decided it")
        task = planned.task(weights, device, place, decoding, stores, again=job.retry_failed)
        return planned.extract(task, job.allow_failed, as_json=as_json, quiet=quiet)
    if name is None:
        raise ConfigError("--dataset NAME, or --plan RUN: expected one of them, found none; see vggfeat extract --help")
    refuse_options(click.get_current_context(), OF_RUN, "expected --plan RUN with it, found none")
    root = _local(place)
    from vggfeat.datasets.catalogue import open_dataset
    from vggfeat.extract import extract_features
    from vggfeat.runtime.distributed import open_world

    target = out or Path(f"{stem(name, root)}.h5")
    check_target(target, inputs=[*net_files(weights), *([root] if root else [])], ours=anything)
    dataset = open_dataset(name, root, layout, listing.settings())
    note_all(dataset.notes)
    device = ready_device(device)
    settings = features.settings(name, device)
    backbone = load_noted_net(weights, rendered=is_rendered(dataset.root))
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
            run=replace(job.settings(str(world.device), decoding.processes()), extend=extend),
            decode=decoding.settings(),
            progress=bar.update_failed,
            world=world,
        )
    if not is_main():
        return 0
    show_summary(summary, as_json)
    return 3 if len(summary.failures) > job.allow_failed else 0


def _local(root: str | None) -> Path | None:
    if root is not None and is_remote(root):
        raise ConfigError(f"--root: expected a folder of this machine, found {root}; plan a run: vggfeat plan --help")
    return None if root is None else Path(root)


def show_summary(summary: "Summary", as_json: bool = False) -> None:
    """Print what a run has left behind."""
    if as_json:
        say_json(_summary_json(summary))
        return
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
