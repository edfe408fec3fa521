"""Only what failed is tried again: the rest of a finished feature file becomes shards of the run that replaces it.

A shard with a failed row is computed anew as a whole, because what stands beside a picture in a batch changes its last
bits: so the new file is that of a run in which nothing failed.
"""

import numpy as np

from vggfeat.store.parts import Parts
from vggfeat.store.reading import FeatureFile
from vggfeat.store.shards import Block, Status


def take_finished(parts: Parts) -> None:
    """Commit the pending shards of which a finished file has all rows, if one is to be gone on with.

    Raises
    ------
    StoreError
        If the file is damaged, or the disk fails.
    """
    if not parts.retries_file:
        return
    with FeatureFile(parts.out) as file:
        file.check()
        for shard in parts.pending:
            rows = parts.rows(shard)
            taken = slice(rows.start, rows.stop)
            if (file.status[taken] == Status.DONE).all():
                block = Block(
                    features=file.read(list(rows)),
                    status=file.status[taken],
                    reasons=("",) * len(rows),
                    sizes=np.asarray(file.sizes[taken]),
                    sha256=np.asarray(file.sha256[taken]),
                )
                parts.commit(shard, block)
