"""`vggfeat extract`: images in, one feature file out; or the shards of a run, by one of the engines.

Another engine gets its options here, and its line in `vggfeat.engines.ENGINES`.
"""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vggfeat.cli.commands import COUNT, Parsed, command, flag, json_option, names_of, option, refuse_options
from vggfeat.cli.config import EXTRACT
from vggfeat.cli.data import ListOptions
from vggfeat.cli.options import (
    NET,
    DecodingOptions,
    FeatureOptions,
    JobOptions,
    LimitOptions,
    StoreOptions,
    load_noted_net,
    net_files,
    note_all,
    stem,
)
from vggfeat.cli.output import TRY_AGAIN, Progress, duration, make_folder, say, say_json, say_note, show
from vggfeat.cli.signals import is_main
from vggfeat.engines import ENGINES
from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.devices import ready_device
from vggfeat.runtime.output_paths import anything, check_target
from vggfeat.runtime.rendered import is_rendered
from vggfeat.runtime.storage import is_remote, root_text
from vggfeat.wording import counted

if TYPE_CHECKING:
    from vggfeat.datasets.levels import Layout
    from vggfeat.engines.compute import Computed
    from vggfeat.engines.engine import Engine, ShardTask
    from vggfeat.extract import Summary
    from vggfeat.forward.rerun import PrecisionCheck


def _nets(text: str) -> tuple[int, int | None]:
    least, colon, most = text.partition(":")
    found = int(least), int(most) if most else None if colon else int(least)
    if not 1 <= found[0] <= (found[0] if found[1] is None else found[1]):
        raise ValueError
    return found


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Who computes shards: this process, or a cluster."""

    title: ClassVar[str] = "Shards of a plan"
    engine: str = option(type=list(ENGINES), default="local",
        help="With --plan, who computes: "
        f"{'; '.join(f'{name}, {entry.words}' for name, entry in ENGINES.items())}.")  # fmt: skip
    address: str | None = option(metavar="HOST:PORT|auto",
        help="With --engine ray: address of the cluster's head; this machine must be one of its nodes. [$RAY_ADDRESS, "
        "else this machine alone]")  # fmt: skip
    nets: tuple[int, int | None] | None = option("--nets", "--gpus",
        type=Parsed("LEAST[:MOST]", "one or two numbers from 1 on, such as 8:64, or 8:", _nets),
        help="With --engine ray: number of nets at the start, and the most; each takes a GPU, or CPU cores where there "
        "is none. [1:, as many as there is room for]")  # fmt: skip
    cores: int | None = option(type=COUNT,
        help="With --engine ray: CPU cores for each net. [its share of the smallest node]")  # fmt: skip

    def chosen_engine(self) -> "Engine":
        """Return the engine; ConfigError for options that it has not, and under torchrun, where it is one itself."""
        entry = ENGINES[self.engine]
        self._check_options()
        if not entry.torchrun and os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError(
                f"--engine {self.engine}: expected it or torchrun, found both; give the command to one process"
            )
        return entry.make(**{name: getattr(self, name) for name in entry.options})

    def _check_options(self) -> None:
        for one in fields(EngineOptions):
            owners = [name for name, other in ENGINES.items() if one.name in other.options]
            if owners and self.engine not in owners and getattr(self, one.name) != one.default:
                raise ConfigError(
                    f"{names_of(one.name, one)[0]}: expected --engine {' or '.join(owners)} with it, found the engine "
                    f"{self.engine}; leave one out"
                )


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
        type=Parsed("NUMBER/COUNT", "a number from 1 to a count, such as 17/1000", _share),
        help="With --plan: compute part NUMBER (from 1) of the shards, divided into COUNT parts. [all shards; under "
        "torchrun the share of the process]")  # fmt: skip
    mixed: bool = flag(
        help="With --plan: let machines of another kind take part, if their features agree with those that are "
        "there.")  # fmt: skip

    def task(
        self, weights: str | None, device: str | None, root: str | None, decoding: DecodingOptions,
        stores: StoreOptions, *, retry_failed: bool,
    ) -> "ShardTask":  # fmt: skip
        """Return what every process must know."""
        from vggfeat.engines.engine import ShardTask

        return ShardTask(
            run=str(self.run), weights=weights, device=device, workers=decoding.workers, timeout=decoding.time_limit,
            root=root if root is None or is_remote(root) else os.path.abspath(root_text(root)), mixed=self.mixed,
            retry_failed=retry_failed,
            storage=stores.settings(),
        )  # fmt: skip

    def extract(self, task: "ShardTask", allow_failed: int, *, as_json: bool, quiet: bool) -> int:
        """Compute the shards that are asked for, and print what became of them; returns the exit code."""
        from vggfeat.engines.compute import compute_plan
        from vggfeat.engines.engine import Share, torchrun_share

        engine, share = self.chosen_engine(), torchrun_share(os.environ)
        if share is not None and self.take is not None:
            raise ConfigError("--take: expected it or torchrun, found both; leave one out")
        share = share or (Share(*self.take) if self.take else None)
        plan = task.plan()
        named = "" if share is None else f" {share}"
        with Progress(f"extract {plan.name}{named}", "images", quiet=quiet) as bar:
            found = compute_plan(plan, task, engine, share, bar.update_failed)
        _tell(plan.where, str(share or ""), found, as_json)
        return 3 if found.failed.total() > allow_failed else 0


def _tell(where: str, share: str, found: "Computed", as_json: bool) -> None:
    """Print what became of the shards; what was found finished and computed again counts as computed alone."""
    if as_json:
        say_json({
            "run": where, "share": share or None, "shards": len(found.own),
            "computed": found.shards, "before": found.left_alone, "images": found.rows,
            "failed": found.failed.total(), "failed_by_reason": dict(found.failed.most_common()),
        })  # fmt: skip
        return
    again = "" if not found.again else " again" if found.again == found.shards else f" ({found.again} of them again)"
    lines = [f"{found.shards} of {len(found.own)} shards computed{again}"]
    if found.left_alone:
        lines.append(f"{found.left_alone} done before")
    if found.failed:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.failed.most_common())
        lines.append(f"{counted(found.failed.total(), 'image{s} failed')} ({reasons})")
    say(f"{where}:{f' share {share},' if share else ''} {', '.join(lines)}")
    if found.precision is not None:
        say_note(_agreement(found.precision))


def _agreement(precision: "PrecisionCheck") -> str:
    from vggfeat.forward.rerun import LEAST_COSINE

    if precision.least is None:
        return "no image could be computed again in float32, so nothing is known of the difference"
    advice = "" if precision.least >= LEAST_COSINE else f", below {LEAST_COSINE}: with this net take --precision fp32"
    images = counted(precision.images, "image{s}")
    return f"computed again in float32, the least cosine of {images} is {precision.least:.6f}{advice}"


OF_PLAN = ("name", "layout", "out", "shard_rows", *(one.name for one in fields(ListOptions)),
           *(one.name for one in fields(FeatureOptions)), *(one.name for one in fields(LimitOptions)))  # fmt: skip
"""What a plan has decided."""
OF_RUN = tuple(one.name for options in (PlanRunOptions, StoreOptions) for one in fields(options))
"""What nothing but a plan has a use for."""


@command(config=EXTRACT.option)
def extract(
    *,
    name: str | None = option("--dataset", metavar="NAME", help="Name of the data set, see `vggfeat data list`."),
    place: str | None = option("--root",
        help="Folder or address of the data set. [$VGGFEAT_DATA/NAME, data/NAME; with --plan: as planned]"),
    layout: "Layout | None",
    listing: ListOptions,
    weights: str | None = option(metavar=NET, help="The net. [the only one in weights/; with --plan: the one with the "
        "plan's SHA-256]"),
    out: Path | None = option(help="The feature file. [NAME.h5]"),
    features: FeatureOptions,
    device: str | None,
    decoding: DecodingOptions,
    job: JobOptions,
    extend: bool = flag(help="Compute only the features of new images, and keep those that the file has."),
    planned: PlanRunOptions,
    stores: StoreOptions,
    as_json: bool = json_option("Print the summary as JSON."),
    quiet: bool,
) -> int:  # fmt: skip
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
        refuse_options(OF_PLAN, "the plan has decided it")
        refuse_options(["extend"], "a run is extended by `vggfeat plan --extend RUN`")
        refuse_options(["overwrite"], "finished shards of a run stay as they are")
        task = planned.task(weights, device, place, decoding, stores, retry_failed=job.retry_failed)
        return planned.extract(task, job.allow_failed, as_json=as_json, quiet=quiet)
    if name is None:
        raise ConfigError("--dataset NAME, or --plan RUN: expected one of them, found none; see vggfeat extract --help")
    refuse_options(OF_RUN, "expected --plan RUN with it, found none")
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
    _show(summary, as_json)
    return 3 if len(summary.failures) > job.allow_failed else 0


def _local(root: str | None) -> Path | None:
    if root is not None and is_remote(root):
        raise ConfigError(f"--root: expected a folder of this machine, found {root}; plan a run: vggfeat plan --help")
    return None if root is None else Path(root_text(root))


def _show(summary: "Summary", as_json: bool) -> None:
    """Print what a run has left behind."""
    from vggfeat.results.record import SHOWN_FAILURES, failures_by_reason

    failed = len(summary.failures)
    counts = {"done": summary.total - failed, "failed": failed, "failed_by_reason": summary.failed_by_reason}
    lines = [f"{summary.path}: {summary.tally()}, in {duration(summary.seconds)}"]
    lines += [f"note: {note}" for note in summary.notes]
    lines += failures_by_reason(summary.failures, SHOWN_FAILURES, str(summary.failures_file))
    show(as_json, summary.to_json() | counts, lines + [TRY_AGAIN] * bool(failed))
