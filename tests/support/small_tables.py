"""Small tables of descriptors, made in memory."""

import numpy as np

from vggfeat.samples import DataSet, Task
from vggfeat.table import DescriptorTable


def data_set(labels, splits=None, *, name="manifest", task=Task.MULTI_LABEL, paths=None, classes=None, groups=None):
    labels = np.asarray(labels, dtype=np.int8)
    ids = tuple(f"s{row:03}" for row in range(len(labels)))
    return DataSet(
        name=name,
        task=task,
        classes=tuple(classes or (f"class{k}" for k in range(labels.shape[1]))),
        ids=ids,
        paths=tuple(paths or (f"{name}.jpg" for name in ids)),
        labels=labels,
        groups=groups,
        splits={key: np.array(sorted(rows), dtype=np.int64) for key, rows in (splits or {}).items()},
    )


def table_of(dataset, descriptors=None, *, failed=(), noise=0.6, seed=0, **columns):
    """Descriptors that tell the classes with some error; the first column holds the row's number."""
    rng = np.random.default_rng(seed)
    if descriptors is None:
        signal = (dataset.labels == 1) @ rng.standard_normal((len(dataset.classes), 8)) + noise * rng.standard_normal(
            (len(dataset), 8)
        )
        descriptors = np.concatenate([np.arange(len(dataset))[:, None] / 1024, signal], axis=1)
    descriptors = np.array(descriptors, dtype=np.float32)
    ok = np.ones(len(dataset), dtype=bool)
    ok[list(failed)] = False
    descriptors[~ok] = 0
    return DescriptorTable(dataset=dataset, descriptors=descriptors, ok=ok, settings={"join": "mean"}, **columns)


def multi_label(n=90, num_classes=3, seed=1):
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, num_classes)) < 0.35, 1, -1)


def one_hot(numbers, num_classes=None):
    return np.where(np.eye(num_classes or max(numbers) + 1)[np.asarray(numbers)] == 1, 1, -1)
