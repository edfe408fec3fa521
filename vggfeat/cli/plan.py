"""Runs of many shards: `vggfeat plan` makes one, `vggfeat extract --plan` computes it, `vggfeat merge` ends it."""

import os
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vggfeat.cli.commands import argument, command, flag, json_option, option, refuse_options
from vggfeat.cli.data import ListOptions
from vggfeat.cli.options import NET, FeatureOptions, LimitOptions, StoreOptions, load_noted_net, net_files, note_all
from vggfeat.cli.output import Progress, make_folder, say, say_json, show
from vggfeat.errors import ConfigError
from vggfeat.runtime.addresses import is_address
from vggfeat.runtime.output_paths import anything, check_folder, check_target
from vggfeat.runtime.rendered import RENDERED, is_rendered
from vggfeat.runtime.storage import is_remote, open_storage, root_text
from vggfeat.wording import counted

if TYPE_CHECKING:
    from vggfeat.datasets.levels import Layout
    from vggfeat.listing import Listing
    from vggfeat.store.plan import Plan


@command()
def plan(
    *,
    name: str | None = option("--dataset", metavar="NAME", help="Name of the data set, see `vggfeat data list`; or tar "
        "or parquet."),
    root: str | None = option(
        help="Folder or address of the data set. [$VGGFEAT_DATA/NAME, data/NAME; with --extend: as planned]"),
    layout: "Layout | None",
    listing: ListOptions,
    weights: str | None = option(metavar=NET, help="The net. [the only one in weights/]"),
    out: str | None = option(metavar="RUN", help="A folder that is new or empty."),
    extend: str | None = option(metavar="RUN",
        help="Append the new images of the data set to this run."),
    shard_rows: int = option(type=click.IntRange(1, 1 << 20), default=4096, help="Images in a shard."),
    store: str = option(type=["scales", "mean"], default="scales",
        help="What is stored: the features of every scale, or their mean, which suffices for joining by the mean."),
    dtype: str = option(type=["float32", "float16"], default="float32",
        help="Type of the stored values; float16 keeps 11 bits of precision."),
    features: FeatureOptions,
    device: str = option(default="cpu",
        help="Device that will compute the shards, cpu or cuda; it decides the default of --batch-pixels."),
    limits: LimitOptions,
    stores: StoreOptions,
    as_json: bool = json_option("Print what was planned as JSON."),
    quiet: bool,
) -> None:  # fmt: skip
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
        refuse_options(_DECIDED, "the plan that is extended has decided it")
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
    root = root and root_text(root)
    options = listing.given(layout) | ({"root": root if is_address(root) else os.path.abspath(root)} if root else {})
    if name == "folder" and not (root and is_address(root)) and (place := resolve_root(name, root)).is_dir():
        root = str(place)
    if root is not None and name in KINDS and (name != "folder" or is_address(root) or os.path.isdir(root)):
        streamed = list_images(name, root, storage=stores.settings(), layout=layout, listing=listing.settings())
        note_all(streamed.notes)
        return replace(streamed, options=options)
    if root is not None and is_address(root):
        known = ", ".join(KINDS)
        raise ConfigError(f"--dataset: expected one of {known} at an address, found {name}; copy it to this machine")
    dataset = open_dataset(name, root, layout, listing.settings())
    note_all(dataset.notes)
    return replace(listing_of(dataset, {"images": RENDERED} if is_rendered(dataset.root) else {}), options=options)


def _tell(done: "Plan", before: int | None, as_json: bool, weights: str | None = None) -> None:
    if as_json:
        say_json({"run": done.where, "images": done.rows, "shards": done.shards, "new": done.rows - (before or 0)})
        return
    new = "" if before is None else f", {done.rows - before} of them new"
    images, shards = counted(done.rows, "image{s}"), counted(done.shards, "shard{s}")
    say(f"{done.where}: {images}{new}, in {shards} of up to {done.settings.shard_rows}")
    say(f"next: vggfeat extract --plan {shlex.quote(done.where)}{_net_option(done, weights)}")


def _net_option(plan: "Plan", given: str | None) -> str:
    """Return the option that names the net, where it is not found by its SHA-256; the plan keeps no folder of it."""
    from vggfeat.forward.rerun import find_weights

    name = str(plan.provenance["weights"])
    if find_weights(plan.key["weights_sha256"], name):
        return ""
    return f" --weights {shlex.quote(given or (name if ':' in name else f'FOLDER/{name}'))}"


@command()
def merge(
    *,
    run: str = argument(),
    out: Path = option(required=True, help="The feature file."),
    overwrite: bool = flag(help="Replace an output that is damaged or was made with other settings."),
    as_json: bool = json_option("Print what was written as JSON."),
    quiet: bool,
) -> None:  # fmt: skip
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
    show(as_json, facts, [f"{out}: {counted(len(features), 'image{s}')} of the set {facts['root']}"])
