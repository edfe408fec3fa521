"""The engine that needs no other program: this process."""

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from vggfeat.engines.engine import Progress, ShardTask, Share
from vggfeat.errors import ConfigError
from vggfeat.extract_plan import ShardResult
from vggfeat.runtime.devices import ready_device


@dataclass(frozen=True)
class LocalEngine:
    """Computes in this process, one shard after the other."""

    def compute(
        self, task: ShardTask, shards: Sequence[int], progress: Progress | None = None
    ) -> Generator[ShardResult, None, None]:
        """Compute shards; see `Engine`."""
        task = on_own_gpu(replace(task, device=ready_device(task.device)), os.environ)
        yield from task.open().compute(shards, progress)


def torchrun_share(environ: Mapping[str, str]) -> Share | None:
    """Return the share of a process that torchrun has started; None without torchrun.

    The processes do not talk to each other: one that dies takes none with it.

    Raises
    ------
    ConfigError
        If WORLD_SIZE and RANK are no numbers of such processes.
    """
    size, rank = environ.get("WORLD_SIZE", "1"), environ.get("RANK", "0")
    if not (size.isdecimal() and rank.isdecimal() and int(rank) < int(size)):
        raise ConfigError(f"WORLD_SIZE, RANK: expected a count and a number below it, found {size!r} and {rank!r}")
    return Share(int(rank) + 1, int(size)) if int(size) > 1 else None


def on_own_gpu(task: ShardTask, environ: Mapping[str, str]) -> ShardTask:
    """Return the task on the GPU that torchrun has meant for this process, which is that of LOCAL_RANK."""
    local = environ.get("LOCAL_RANK")
    return replace(task, device=f"cuda:{local}") if local is not None and task.device == "cuda" else task
