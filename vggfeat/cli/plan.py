"""Runs of many shards: `vggfeat plan` makes one, `vggfeat extract --plan` computes it, `vggfeat merge` ends it."""

import os
import shlex
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.data import ListOptions
from vggfeat.cli.extraction import EngineOptions, FeatureOptions, StoreOptions, load_noted_net, note_all
from vggfeat.cli.options import (
    LAYOUT,
    NET,
    PATH,
    QUIET,
    DecodingOptions,
    LimitOptions,
    Parsed,
    json_option,
    net_files,
    option,
    refuse_options,
    with_options,
)
from vggfeat.cli.output import make_folder, say, say_json, say_note
from vggfeat.cli.progress import Progress
from vggfeat.errors import ConfigError, counted
from vggfeat.runtime.addresses import is_address
from vggfeat.runtime.storage import is_remote, open_storage
from vggfeat.runtime.targets import anything, check_folder, check_target
from vggfeat.samples import RENDERED, is_rendered

if TYPE_CHECKING:
    from vggfeat.datasets.levels import Layout
    from vggfeat.engines.engine import ShardTask
    from vggfeat.listing import Listing
    from vggfeat.store.plan import Plan


def _share(text: str) -> tuple[int, int]:
    number, count = map(int, text.split("/"))
    if not 1 <= number <= count:
        raise ValueError
    return number, count


@dataclass(frozen=True, kw_only=True)
class PlanRunOptions(EngineOptions):
    """Which shards of a plan are computed, and where."""

    run: str | None = option("--plan", metavar="RUN", help="Compute shards of this run; `vggfeat plan` makes one.")
    take: tuple[int, int] | None = option(
        "--take", type=Parsed("NUMBER/COUNT", "a number from 1 to a count, such as 17/1000", _share),
        help="With --plan: of every COUNT shards the one of this NUMBER, from 1. [all; under torchrun its share]",
    )  # fmt: skip
    mixed: bool = option(
        "--mixed", is_flag=True,
        help="With --plan: let machines of another kind take part, if their features agree with those that are there.",
    )  # fmt: skip

    def task(
        self, weights: str | None, device: str | None, root: str | None, decoding: DecodingOptions,
        stores: StoreOptions, *, again: bool,
    ) -> "ShardTask":  # fmt: skip
        """Return what every process must know."""
        from vggfeat.engines.engine import ShardTask

        return ShardTask(
            run=str(self.run), weights=weights, device=device, workers=decoding.workers, timeout=decoding.time_limit,
            root=root if root is None or is_remote(root) else os.path.abspath(root), mixed=self.mixed, again=again,
            storage=stores.settings(),
        )  # fmt: skip

    def extract(self, task: "ShardTask", allow_failed: int, *, as_json: bool, quiet: bool) -> int:
        """Compute the shards that are asked for, and print what became of them; returns the exit code."""
        from vggfeat.engines.engine import Share, torchrun_share

        engine, share = self.chosen_engine(), torchrun_share(os.environ)
        if share is not None and self.take is not None:
            raise ConfigError("--take: expected it or torchrun, found both; leave one out")
        share = share or (Share(*self.take) if self.take else None)
        plan = task.plan()
        own = range(plan.shards) if share is None else share.of(plan.shards)
        present = plan.present()
        found = _Found(plan, "" if share is None else f" {share}", own, [shard for shard in own if shard in present])
        pending = list(own) if task.again else [shard for shard in own if shard not in present]
        with Progress(f"extract {plan.name}{found.share}", "images", quiet=quiet) as bar:
            found.show(bar)
            if pending:  # else no net is loaded
                plan.storage.check_writable()
                with closing(engine.compute(task, pending, found.progress(bar))) as results:
                    for result in results:
                        found.add(result)
                        found.show(bar)
        found.tell(as_json)
        return 3 if found.failed.total() > allow_failed else 0


class _Found:
    """What became of the shards of a process."""

    def __init__(self, plan: "Plan", share: str, own: range, before: list[int]) -> None:
        self.plan, self.share, self.own, self.before = plan, share, own, before
        self.rows = sum(len(plan.rows_of(shard)) for shard in own)
        self.done = sum(len(plan.rows_of(shard)) for shard in before)
        self.failed: Counter[str] = Counter()
        self.shards = 0
        self.precision: Any = None

    def add(self, result: Any) -> None:
        """Count a shard."""
        self.shards += 1
        self.done += result.rows if result.shard not in self.before else 0
        self.failed.update(result.reasons)
        self.precision = result.precision or self.precision

    def show(self, bar: Any, more: float = 0) -> None:
        """Show how far it is."""
        bar.update_failed(min(self.done + more, self.rows), self.rows, self.failed.total())

    def progress(self, bar: Any) -> Any:
        """Return what is called with the images of the shard at work that are done."""
        return lambda more: self.show(bar, more)

    def tell(self, as_json: bool) -> None:
        """Print it."""
        if as_json:
            say_json({
                "run": self.plan.where, "share": self.share.strip() or None, "shards": len(self.own),
                "computed": self.shards, "before": len(self.before), "images": self.rows,
                "failed": self.failed.total(), "failed_by_reason": dict(self.failed.most_common()),
            })  # fmt: skip
            return
        told = [f"{self.shards} of {len(self.own)} shards computed"]
        if self.before:
            told.append(f"{len(self.before)} done before")
        if self.failed:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.failed.most_common())
            told.append(f"{counted(self.failed.total(), 'image{s} failed')} ({reasons})")
        share = f" share{self.share}," if self.share else ""
        say(f"{self.plan.where}:{share} {', '.join(told)}")
        if self.precision is not None:
            say_note(_agreement(self.precision))


def _agreement(precision: Any) -> str:
    from vggfeat.forward.rerun import LEAST_COSINE

    if precision.least is None:
        return "no image could be computed again in float32, so nothing is known of the difference"
    advice = "" if precision.least >= LEAST_COSINE else f", below {LEAST_COSINE}: with this net take --precision fp32"
    images = counted(precision.images, "image{s}")
    return f"computed again in float32, the least cosine of {images} is {precision.least:.6f}{advice}"


@click.command()
@click.option("--dataset", "name", metavar="NAME", help="A name of `vggfeat data list`, or tar or parquet.")
@click.option(
    "--root",
    help="Where the data set is, a folder or address. [$VGGFEAT_DATA/NAME, data/NAME; with --extend as planned]",
)
@LAYOUT
@with_options(ListOptions, "listing")
@click.option("--weights", metavar=NET, help="The net. [the one in weights/]")
@click.option("--out", metavar="RUN", help="A folder that is new or empty.")
@click.option("--extend", metavar="RUN", help="Plan what is new in the data set of this run, behind what it has.")
@click.option(
    "--shard-rows", type=click.IntRange(1, 1 << 20), default=4096, show_default=True, help="Images of a shard."
)
@click.option("--store", type=click.Choice(["scales", "mean"]), default="scales", show_default=True,
              help="Keep the features of every scale, or their mean, all that joining by mean needs.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
              help="How values are kept; float16 has 11 bits of each.")  # fmt: skip
@with_options(FeatureOptions, "features")
@click.option("--device", default="cpu", show_default=True,
              help="What will compute the shards, cpu or cuda, which decides --batch-pixels.")  # fmt: skip
@with_options(LimitOptions, "limits")
@with_options(StoreOptions, "stores")
@json_option("Print what was planned as JSON.")
@QUIET
def plan(
    name: str | None,
    root: str | None,
    layout: "Layout | None",
    listing: ListOptions,
    weights: str | None,
    out: str | None,
    extend: str | None,
    shard_rows: int,
    store: str,
    dtype: str,
    features: FeatureOptions,
    device: str,
    limits: LimitOptions,
    stores: StoreOptions,
    as_json: bool,
    quiet: bool,
) -> None:
    """Plan the extraction of a data set of any size, as shards that any number of machines can compute.

    The list of images is walked once and written in parts, with the size of every file; nothing is computed. The
    folder RUN then has all that `vggfeat extract --plan RUN` needs. Given again, the same command changes nothing.
    Images that have come since are planned with --extend: finished shards stay as they are.

    \b
    Examples:
      vggfeat plan --dataset folder --root photos/ --weights D.safetensors --out /disk/run
      vggfeat plan --dataset folder --root photos/ --weights D.safetensors --store mean --dtype float16 --out /disk/run
      vggfeat plan --dataset folder --root s3://bucket/images --weights D.safetensors --out s3://bucket/run
      vggfeat plan --dataset tar --root 's3://bucket/train-{0000..0146}.tar' --weights D.safetensors --out s3://bucket/run
      vggfeat plan --dataset parquet --root hf://datasets/ylecun/mnist --weights D.safetensors --out /disk/run
      vggfeat plan --extend /disk/run
    """
    from vggfeat.extract_plan import add_to_plan, make_plan
    from vggfeat.store.plan import FORMAT, PLAN, PlanSettings, read_plan

    if extend is not None:
        refuse_options(click.get_current_context(), _DECIDED, "the plan that is extended has decided it")
        old = read_plan(open_storage(extend, stores.settings(), writing=True))
        layout, listing = listing.as_planned(old.options, layout)
        found = _listing(old.name, root or old.options.get("root", old.root), layout, listing, stores)
        with Progress(f"plan {old.name}", "images", quiet=quiet) as bar:
            done = add_to_plan(old, found, bar.update_count)
        _tell(done, old.rows, as_json)
        return
    if name is None or out is None:
        raise ConfigError("--dataset and --out: expected both, or --extend RUN, found one of them missing")
    if not is_remote(out):
        check_folder(out, [PLAN], kinds=(FORMAT,), inputs=[*net_files(weights), *([root] if root else [])])
    storage = open_storage(out, stores.settings(), writing=True)
    found = _listing(name, root, layout, listing, stores)
    net = load_noted_net(weights, rendered=bool(found.marks))
    settings = PlanSettings(shard_rows=shard_rows, store=store, dtype=dtype)  # type: ignore[arg-type]
    with Progress(f"plan {name}", "images", quiet=quiet) as bar:
        done = make_plan(
            found, net, storage, features.settings(name, device), plan=settings,
            decode=limits.settings(), progress=bar.update_count,
        )  # fmt: skip
    _tell(done, None, as_json, weights)


_DECIDED = ("name", "weights", "out", "shard_rows", "store", "dtype", "device",
            *(one.name for one in fields(FeatureOptions)), *(one.name for one in fields(LimitOptions)))  # fmt: skip


def _listing(
    name: str, root: str | None, layout: "Layout | None", listing: ListOptions, stores: StoreOptions
) -> "Listing":
    from vggfeat.datasets.catalogue import open_dataset, resolve_root
    from vggfeat.datasets.streamed import KINDS, list_images
    from vggfeat.listing import listing_of

    if root is None and name in ("tar", "parquet"):
        raise ConfigError(f"--root: expected it with --dataset {name}: the files, their folder or address; found none")
    told = listing.told(layout) | ({"root": root if is_address(root) else os.path.abspath(root)} if root else {})
    if name == "folder" and not (root and is_address(root)) and (place := resolve_root(name, root)).is_dir():
        root = str(place)
    if root is not None and name in KINDS and (name != "folder" or is_address(root) or os.path.isdir(root)):
        streamed = list_images(name, root, storage=stores.settings(), layout=layout, listing=listing.settings())
        note_all(streamed.notes)
        return replace(streamed, options=told)
    if root is not None and is_address(root):
        known = ", ".join(KINDS)
        raise ConfigError(f"--dataset: expected one of {known} at an address, found {name}; copy it to this machine")
    dataset = open_dataset(name, root, layout, listing.settings())
    note_all(dataset.notes)
    return replace(listing_of(dataset, {"images": RENDERED} if is_rendered(dataset.root) else {}), options=told)


def _tell(done: "Plan", before: int | None, as_json: bool, weights: str | None = None) -> None:
    if as_json:
        say_json({"run": done.where, "images": done.rows, "shards": done.shards, "new": done.rows - (before or 0)})
        return
    new = "" if before is None else f", {done.rows - before} of them new"
    images, shards = counted(done.rows, "image{s}"), counted(done.shards, "shard{s}")
    say(f"{done.where}: {images}{new}, in {shards} of up to {done.settings.shard_rows}")
    say(f"next: vggfeat extract --plan {shlex.quote(done.where)}{_net_option(done, weights)}")


def _net_option(plan: "Plan", given: str | None) -> str:
    """Return the option that names the net, where it is not found by its SHA-256."""
    from vggfeat.forward.rerun import find_weights

    name = str(plan.provenance["weights"])
    return "" if find_weights(plan.key["weights_sha256"], name) else f" --weights {shlex.quote(given or name)}"


@click.command()
@click.argument("run")
@click.option("--out", type=PATH, required=True, help="The feature file.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is damaged or of other settings.")
@json_option("Print what was written as JSON.")
@QUIET
def merge(run: str, out: Path, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Make one feature file of a finished run, for sets of up to some millions of images.

    The file is the one that `vggfeat extract --shard-rows` makes of the same images with as many rows a shard.

    \b
    Example:
      vggfeat merge /disk/run --out small.h5
    """
    from vggfeat.store.sharded import ShardedFeatures
    from vggfeat.store.sharded import merge as write

    check_target(out, inputs=[run], ours=anything)
    make_folder(out.parent)
    open_storage(out.parent, writing=True)
    with ShardedFeatures(run) as features, Progress("merge", "images", quiet=quiet) as bar:
        write(features, out, overwrite=overwrite, progress=bar.update_failed)
        facts = {"file": str(out), "images": len(features), "root": features.root}
    if as_json:
        say_json(facts)
        return
    say(f"{out}: {counted(len(features), 'image{s}')} of the set {facts['root']}")
