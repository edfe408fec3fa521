"""Tables of descriptors with known faults in them: copies, near copies, wrong labels, an image like no other."""

import numpy as np

from vggfeat.descriptors import l2_normalise
from vggfeat.samples import DataSet, Task
from vggfeat.table import DescriptorTable

SINGLE, SEVERAL = Task.SINGLE_LABEL, Task.MULTI_LABEL


def planted_table(task=SINGLE, *, rows=240, classes=4, length=48, wrong=12, noise=0.2, seed=0):
    """Return a table whose classes are easy to tell, and the rows whose label was changed."""
    rng = np.random.default_rng(seed)
    truth = np.full((rows, classes), -1, np.int8)
    truth[np.arange(rows), np.arange(rows) % classes] = 1
    if task == SEVERAL:
        truth[rng.random(truth.shape) < 0.3] = 1
    centres = rng.random((classes, length)) + np.eye(classes, length)
    # As after a ReLU: no value is negative.
    values = np.abs((truth == 1) @ centres + noise * rng.standard_normal((rows, length)))
    changed = np.sort(rng.choice(rows, wrong, replace=False))
    labels = truth.copy()
    labels[changed] = np.roll(truth[changed], 1, axis=1) if task == SINGLE else truth[changed]
    if task == SEVERAL:
        labels[changed, changed % classes] *= -1
    dataset = DataSet(
        name="manifest",
        task=task,
        classes=tuple(f"class {k}" for k in range(classes)),
        ids=tuple(f"{row:04d}" for row in range(rows)),
        paths=tuple(f"{row:04d}.jpg" for row in range(rows)),
        labels=labels,
        splits={"train": np.arange(rows // 2), "test": np.arange(rows // 2, rows)},
    )
    return make_table(dataset, l2_normalise(values.astype(np.float32))), changed


def make_table(dataset, descriptors, failed=()):
    ok = np.ones(len(dataset), bool)
    ok[list(failed)] = False
    descriptors = np.where(ok[:, None], descriptors, 0).astype(np.float32)
    return DescriptorTable(
        dataset=dataset, descriptors=descriptors, ok=ok, reasons=dict.fromkeys(failed, "truncated: it ends early")
    )


def digests(rows, *same):
    """(rows, 32) digests, of which those of each group in `same` are equal."""
    found = np.random.default_rng(1).integers(0, 256, (rows, 32), dtype=np.uint8)
    for group in same:
        found[list(group)] = found[group[0]]
    return found
