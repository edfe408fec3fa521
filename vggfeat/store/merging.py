"""A run in shards becomes one feature file: for sets of up to some millions of images."""

from collections.abc import Callable
from pathlib import Path

from vggfeat.errors import ConfigError
from vggfeat.store.sharded import ShardedFeatures
from vggfeat.store.writer import FeatureWriter


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
