"""Features in shards, read like a feature file, or made one: `open_features` opens either.

What is in memory is a row's status, size and digest, the data set, and one shard. Every shard is compared with its
SHA-256 when it is first used. N = rows, S = scales that are kept, R = regions, C = channels.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.storage import is_remote, joined, open_storage, root_text
from vggfeat.samples import DataSet
from vggfeat.store.checksummed_parquet import merkle_root
from vggfeat.store.identity import IMAGE_SIZES
from vggfeat.store.layout import FACTS, Block, Status, join_rows
from vggfeat.store.plan import PLAN, Plan, read_plan, shard_path
from vggfeat.store.reader import FeatureFile, Features, count_reasons
from vggfeat.store.shard_files import Shard, features_of, open_shard, read_shard
from vggfeat.store.writer import FeatureWriter
from vggfeat.wording import counted

_SHOWN = 5


class _Rows(NamedTuple):
    """What is known of all rows but their features."""

    facts: dict[str, Any]
    """`FACTS` of the layout, by their names."""
    digests: list[str]
    """SHA-256 of the shards."""


class ShardedFeatures(Features):
    """The features of a run of many shards, all of which are finished, by its folder or address.

    StoreError if there is no plan, or a shard is missing.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.plan = plan = read_plan(open_storage(root))
        self.path = Path(plan.where)
        self.dataset_name, self.shape, self.store = plan.name, plan.stored_shape, plan.settings.store
        self.key = plan.key | {IMAGE_SIZES: plan.image_sizes}
        if plan.settings.dtype != "float32":
            self.key["dtype"] = plan.settings.dtype
        self.provenance = self.key | plan.provenance
        self._features: tuple[int, NDArray[np.float32]] | None = None
        self._one_at_a_time = Lock()
        missing = missing_shards(plan)
        if missing:
            raise StoreError(
                f"{plan.where}: expected all {counted(plan.shards, 'shard{s}')}, found {len(missing)} missing, the "
                f"first is {shard_path(missing[0])}; finish the run: vggfeat extract --plan {plan.where}"
            )

    def __len__(self) -> int:
        return self.plan.rows

    def __repr__(self) -> str:
        return f"ShardedFeatures({self.plan.where!r}: {len(self)} rows in {self.plan.shards} shards)"

    def close(self) -> None:
        """Let go of what is in memory."""
        self._features = None

    @property
    def scales(self) -> tuple[int, ...]:
        """Smallest image sides Q, in pixels, that features were computed at."""
        return self.plan.shape.scales

    def _fact(self, name: str) -> Any:
        return self._rows.facts[name]

    @property
    def status(self) -> NDArray[np.uint8]:
        """(N,) values of `vggfeat.store.layout.Status`; a copy, as what the object goes by is in memory."""
        return super().status.copy()

    @cached_property
    def dataset(self) -> DataSet:
        """The data set that the features are of, all of it in memory."""
        return self.plan.data_set()

    @cached_property
    def root(self) -> str:
        """The Merkle root over all shards, 64 hex digits: the identity of the set."""
        return merkle_root(self._rows.digests)

    def shards(self) -> Iterator[Shard]:
        """Read the shards one after the other; nothing but the one that is handed out is in memory.

        StoreError while iterating, if one is damaged or missing.
        """
        for number in range(self.plan.shards):
            yield read_shard(self.plan, number)

    def read(self, rows: Any = None) -> NDArray[np.float32]:
        """Read features (n, S, R, C) of some rows into memory; as `FeatureFile.read`."""
        wanted = self._numbers(rows)
        out = np.empty((len(wanted), *self.shape.dims), np.float32)
        shards, held = self.plan.shards_of(wanted), self._features
        for shard in sorted(np.unique(shards).tolist(), key=lambda one: held is None or one != held[0]):
            places = np.flatnonzero(shards == shard)
            out[places] = self._features_of(shard)[wanted[places] - self.plan.rows_of(shard).start]
        return out

    def block(self, rows: range) -> Block:
        """Read all that the run has computed of consecutive rows."""
        part = slice(rows.start, rows.stop)
        return Block(features=self.read(part), **{name: values[part] for name, values in self._rows.facts.items()})

    def problems(self) -> Iterator[str]:
        """Read everything and yield, a sentence each, what does not fit what is said of it."""
        yield from examine(self.plan).problems

    def check(self) -> None:
        """Compare with its SHA-256 every shard that was not yet read; StoreError at the first that is damaged."""
        _ = self._rows

    @cached_property
    def _rows(self) -> _Rows:
        """Read all shards for the first time."""
        digests, machines = [], []
        facts: dict[str, list[Any]] = {name: [] for name in FACTS}
        for shard in self.shards():
            for name, parts in facts.items():
                parts.append(getattr(shard.block, name))
            digests.append(shard.sha256)
            if shard.machine not in machines:
                machines.append(shard.machine)
        machine = machines[0] if len(machines) == 1 else {"device": "mixed", "kinds": machines}
        self.key["machine"] = self.provenance["machine"] = machine
        return _Rows({name: join_rows(parts) for name, parts in facts.items()}, digests)

    def _features_of(self, shard: int) -> NDArray[np.float32]:
        """Read the features of a shard, unless they are those that were read last; threads wait for each other."""
        with self._one_at_a_time:
            if self._features is None or self._features[0] != shard:
                self._features = None  # Before the next is read, so that there is one.
                self._features = shard, features_of(open_shard(self.plan, shard), self.plan)
            return self._features[1]


def open_features(path: str | os.PathLike[str]) -> Features:
    """Open a feature file, or the folder of a run in shards.

    StoreError if it is missing, not complete, damaged, or of a version that this program does not know.
    """
    return ShardedFeatures(path) if is_run(path) else FeatureFile(root_text(path))


def is_run(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is that of a run in shards: a folder with a plan, or an address."""
    return is_remote(path) or os.path.isfile(os.path.join(root_text(path), PLAN))


def missing_shards(plan: Plan) -> list[int]:
    """Return the shards that nobody has finished, ascending."""
    present = plan.present()
    return [shard for shard in range(plan.shards) if shard not in present]


def check_scales(file: Features, join: str) -> None:
    """Check that what is kept can be joined so; ConfigError if only the mean over the scales is."""
    if file.store == "mean" and join != "mean":
        raise ConfigError(
            f"join: expected mean, because {file.path} keeps the mean over the scales alone, found {join}; plan with "
            "--store scales"
        )


class Examined(NamedTuple):
    """What there is of a run, finished or not."""

    done: int
    """Rows with features."""
    failed: int
    reasons: dict[str, int]
    """Failed rows by reason, the most frequent first."""
    shards: int
    """That are finished and sound."""
    missing: list[int]
    machines: list[dict[str, Any]]
    """What has computed them."""
    problems: list[str]
    """A sentence for each shard, or part of the plan, that is damaged or of another plan."""
    root: str | None
    """Merkle root, if all shards are there and sound."""


def examine(plan: Plan, each: Callable[[Shard], None] = lambda shard: None) -> Examined:
    """Read all there is of a run, shard by shard; `each` is called with every sound one."""
    counts: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    digests, machines, problems = [], [], []
    present = plan.present()
    for number in sorted(present):
        try:
            shard = read_shard(plan, number)
        except StoreError as error:
            problems.append(str(error))
            continue
        each(shard)
        counts.update(shard.block.status.tolist())
        reasons.update(count_reasons(filter(None, shard.block.reasons)))
        digests.append(shard.sha256)
        if shard.machine not in machines:
            machines.append(shard.machine)
    problems.extend(_other_problems(plan))
    return Examined(
        done=counts[Status.DONE], failed=counts[Status.FAILED], reasons=count_reasons(reasons.elements()),
        shards=len(digests), missing=[shard for shard in range(plan.shards) if shard not in present],
        machines=machines, problems=problems, root=merkle_root(digests) if len(digests) == plan.shards else None,
    )  # fmt: skip


def _other_problems(plan: Plan) -> Iterator[str]:
    """Name the parts of the plan that nobody can read, and what lies among the shards and is none of this plan's."""
    for number in range(len(plan.parts)):
        try:
            plan.part(number)
        except StoreError as error:
            yield str(error)
    own = {shard_path(shard) for shard in range(plan.shards)}
    strange = [entry.path for entry in plan.storage.entries("features") if entry.path not in own]
    for path in strange[:_SHOWN]:
        yield f"{joined(plan.where, path)}: expected shards of the plan alone, found another file; move it away"
    if len(strange) > _SHOWN:
        yield f"{plan.where}: {len(strange) - _SHOWN} more such files"


def merge(
    run: ShardedFeatures,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int, int], None] = lambda done, total, failed: None,
) -> Path:
    """Write the feature file of a finished run; one that was stopped is resumed.

    It has the bytes of the file that `vggfeat extract` makes with as many rows a shard, but for what that one says of a
    precision faster than float32: how near it came.

    Parameters
    ----------
    run : ShardedFeatures
    out : Path
    overwrite : bool
        Replace a feature file that is damaged or of other settings.
    progress : callable
        Called with rows done, of how many, and how many of them failed.

    Raises
    ------
    ConfigError
        If the run keeps the mean over the scales alone, of which a feature file has every one.
    StoreError
        If a shard is damaged, another file stands in the way, or the disk refuses.
    """
    if run.store != "scales":
        raise ConfigError(
            f"{run.path}: expected features of every scale, found their mean alone, which a feature file can't hold; "
            "plan with --store scales, or take the run as it is: svm, similar and export read it"
        )
    run.check()
    shard_rows = run.plan.settings.shard_rows
    with FeatureWriter.open(out, run.dataset, run.key, run.shape, shard_rows=shard_rows, overwrite=overwrite) as writer:
        for shard in writer.pending:
            writer.append(shard, run.block(writer.rows(shard)))
            progress(writer.done_rows, writer.total_rows, len(writer.failures))
        if writer.complete:
            writer.verify()
        else:
            writer.finish(run.provenance)
        return writer.out
