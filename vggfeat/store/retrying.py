"""Only what failed, or has changed, is computed anew; the rest of a finished file becomes shards of the new run.

A shard is computed anew as a whole, because what stands beside an image in a batch changes its last bits: so the new
file is that of a run in which nothing failed, if its shards have the size that they had.
"""

from collections.abc import Callable

import numpy as np

from vggfeat.store.parts import FeatureWriter
from vggfeat.store.reader import FeatureFile
from vggfeat.store.shards import Block, Status


def begin_retry(parts: FeatureWriter, unchanged: Callable[[int, bytes], bool]) -> None:
    """Commit the pending shards of which the finished file has all rows, and note that the others are tried again.

    Parameters
    ----------
    parts : FeatureWriter
        Opened to `retry`.
    unchanged : callable
        Given a row and the SHA-256 of the bytes that it was computed from, says whether the image still has these.
        Asked only if image files have other sizes by now.

    Raises
    ------
    StoreError
        If the disk fails.
    """
    if parts.complete:
        return
    if parts.earlier is not None:
        with FeatureFile(parts.out) as file:
            for shard in parts.pending:
                rows = parts.rows(shard)
                taken = slice(rows.start, rows.stop)
                if (file.status[taken] != Status.DONE).any():
                    continue
                sums = np.asarray(file.sha256[taken])
                if parts.earlier.other_images and not all(map(unchanged, rows, map(bytes, sums))):
                    continue
                block = Block(
                    features=file.read(list(rows)),
                    status=file.status[taken],
                    reasons=("",) * len(rows),
                    sizes=np.asarray(file.sizes[taken]),
                    sha256=sums,
                )
                parts.append(shard, block)
    parts.note_retry()
