"""What an engine is: it is given shards, and yields what became of each. The simplest computes them in this process."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from vggfeat.errors import ConfigError
from vggfeat.extract_plan import ShardResult, ShardWorker
from vggfeat.forward.rerun import find_net
from vggfeat.images.fetch import FetchSettings, fetched
from vggfeat.runtime.devices import default_workers, ready_device
from vggfeat.runtime.storage import StorageSettings, open_storage
from vggfeat.runtime.system import processes_of_all, torchrun_number
from vggfeat.store.plan import Plan, read_plan

Progress = Callable[[float], None]
"""Called with the images of the shard at work that are done."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a process needs to compute shards of a run; plain data, so that it travels to other machines."""

    run: str
    """Folder, or address, of the run."""
    weights: str | None = None
    """As for `vggfeat extract --weights`; None for the file that has the SHA-256 of the plan."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; None for a GPU if there is one."""
    workers: int | None = None
    """Processes that decode images; None for one a core, at most 16."""
    timeout: float = 30.0
    """Seconds an image."""
    root: str | None = None
    """Where the images are, if not where the plan says."""
    mixed: bool = False
    """Whether machines may be of different kinds, so that features differ in their last bits."""
    retry_failed: bool = False
    """Compute shards again that have rows which failed."""
    storage: StorageSettings = field(default_factory=StorageSettings)

    def plan(self) -> Plan:
        """Read the plan."""
        return read_plan(open_storage(self.run, self.storage))

    def open(self) -> ShardWorker:
        """Read the plan, load the net and put it on the device; raises as these do."""
        plan = self.plan()
        plan.storage.check_writable()
        backbone = find_net(plan.where, plan.key | plan.provenance, self.weights)
        fetching = FetchSettings(storage=self.storage, max_bytes=plan.key["decode"]["max_bytes"])
        return ShardWorker(
            plan, backbone, device=ready_device(self.device),
            workers=default_workers() if self.workers is None else self.workers, timeout=self.timeout,
            mixed=self.mixed, retry_failed=self.retry_failed, root=self.root, fetch=partial(fetched, settings=fetching),
        )  # fmt: skip


class Engine(Protocol):
    """Computes shards, in whatever order and wherever it likes."""

    def compute(
        self, task: ShardTask, shards: Sequence[int], progress: Progress | None = None
    ) -> Generator[ShardResult, None, None]:
        """Yield what became of each shard once it is kept; one that another has finished meanwhile is left out.

        Whoever closes the generator before its end, by a signal or an error, has the work ended in order.
        """


@dataclass(frozen=True)
class LocalEngine:
    """Computes in this process, one shard after the other."""

    def compute(
        self, task: ShardTask, shards: Sequence[int], progress: Progress | None = None
    ) -> Generator[ShardResult, None, None]:
        """Compute shards; see `Engine`."""
        device, own_gpu = ready_device(task.device), os.environ.get("LOCAL_RANK")
        if device == "cuda" and own_gpu is not None:  # Torchrun has meant that one for this process.
            device = f"cuda:{own_gpu}"
        yield from replace(task, device=device).open().compute(shards, progress)


@dataclass(frozen=True)
class Share:
    """Every so-many-th shard, from one on: what one of many processes takes that know nothing of each other."""

    number: int
    """Number of the part, from 1."""
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(f"take: expected NUMBER/COUNT with a number from 1 to the count, found {self}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, shards: int) -> range:
        """Return its shards, of so many, counted from 0."""
        return range(self.number - 1, shards, self.count)


def torchrun_share(environ: Mapping[str, str]) -> Share | None:
    """Return the share of a process that torchrun has started; None without torchrun.

    The processes do not talk to each other: one that dies takes none with it.

    ConfigError if WORLD_SIZE and RANK are no numbers of such processes.
    """
    size = processes_of_all(environ)
    rank = torchrun_number(environ, "RANK", 0, size - 1, "0")
    return Share(rank + 1, size) if size > 1 else None
