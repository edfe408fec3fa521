"""A run in shards whose features follow from their place, with one image that failed."""

import numpy as np

from feature_rows import make_block
from vggfeat.listing import listing_of
from vggfeat.runtime.storage import open_storage
from vggfeat.samples import DataSet, Task
from vggfeat.store.layout import Shape
from vggfeat.store.plan import Plan, PlanSettings
from vggfeat.store.planning import write_plan
from vggfeat.store.shard_files import write_shard

SHAPE = Shape(scales=(256, 384), regions=("image",), channels=5)
ROWS, SHARD_ROWS = 23, 4
FAILED = 9


def make_run(folder, store="scales", dtype="float32"):
    names = tuple(f"{row:03d}.png" for row in range(ROWS))
    labels = np.where(np.arange(ROWS)[:, None] % 3 == np.arange(3), 1, -1).astype(np.int8)
    listing = listing_of(
        DataSet(
            name="folder", task=Task.SINGLE_LABEL, classes=("a", "b", "c"), ids=names, paths=names, labels=labels,
            splits={"train": np.arange(0, ROWS, 2)}, root="/nowhere",
        )
    )  # fmt: skip
    settings = PlanSettings(shard_rows=SHARD_ROWS, store=store, dtype=dtype)
    plan = Plan(
        storage=open_storage(folder), key={"weights_sha256": "ab" * 32}, provenance={}, shape=SHAPE, settings=settings,
        name="folder", task=Task.SINGLE_LABEL, classes=("a", "b", "c"), root="/nowhere", splits={}, columns=(),
        grouped=False, boxed=False, boxes_as_stored=False, image_sizes="", parts=(),
    )  # fmt: skip
    plan = write_plan(plan, listing)
    for shard in range(plan.shards):
        block = make_block(plan.rows_of(shard), plan.stored_shape, {FAILED: "empty: no"})
        write_shard(plan, shard, block, {"device": "cpu"})
    return folder
