"""Compute the shards of a plan that are asked for by an engine, and count what became of them."""

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from vggfeat.engines.engine import Engine, ShardTask, Share
from vggfeat.extract_plan import ShardResult
from vggfeat.forward.rerun import PrecisionCheck
from vggfeat.store.plan import Plan

Progress = Callable[[float, int, int], None]
"""Called with images done, those found finished included, images in all, and images failed so far."""


@dataclass(kw_only=True)
class Computed:
    """What became of the shards of a process."""

    own: range
    """The shards that were asked for."""
    before: frozenset[int]
    """Those of them that were finished already."""
    rows: int
    """Images in all of them."""
    done: int
    """Images in those that are finished by now."""
    failed: Counter[str] = field(default_factory=Counter)
    """Images that failed, of those computed, by reason."""
    shards: int = 0
    """Shards computed."""
    again: int = 0
    """Shards computed that were finished already."""
    precision: PrecisionCheck | None = None
    """How near features are to those of float32, where that was looked at."""

    @property
    def left_alone(self) -> int:
        """Shards that were finished already, and stayed as they were."""
        return len(self.before) - self.again

    def add(self, result: ShardResult) -> None:
        """Count a shard."""
        finished = result.shard in self.before
        self.shards += 1
        self.again += finished
        self.done += 0 if finished else result.rows
        self.failed.update(result.reasons)
        self.precision = result.precision or self.precision


def compute_plan(
    plan: Plan, task: ShardTask, engine: Engine, share: Share | None = None, progress: Progress | None = None
) -> Computed:
    """Compute the shards of a plan that are not there yet, and, if the task says so, those with failures again.

    Parameters
    ----------
    plan : Plan
        That of the task.
    task : ShardTask
    engine : Engine
    share : Share, optional
        Of all shards, those to compute; the others are not looked at.
    progress : callable, optional

    Raises
    ------
    VggfeatError
        As the engine does: the shards that were reported are kept.
    """
    own = range(plan.shards) if share is None else share.of(plan.shards)
    before = plan.present().intersection(own)
    found = Computed(
        own=own,
        before=frozenset(before),
        rows=sum(len(plan.rows_of(shard)) for shard in own),
        done=sum(len(plan.rows_of(shard)) for shard in before),
    )

    def report(more: float = 0) -> None:
        if progress is not None:
            progress(min(found.done + more, found.rows), found.rows, found.failed.total())

    report()
    pending = [shard for shard in own if task.retry_failed or shard not in before]
    if pending:  # else no net is loaded
        plan.storage.check_writable()
        with closing(engine.compute(task, pending, report)) as results:
            for result in results:
                found.add(result)
                report()
    return found
