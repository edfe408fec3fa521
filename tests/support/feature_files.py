"""Feature files with few numbers that can be checked by hand."""

import hashlib

import numpy as np

from vggfeat.samples import DataSet, Task
from vggfeat.store.layout import Block, Shape, Status
from vggfeat.store.writer import FeatureWriter

IDS = ("a", "b", "c", "d")
CLASSES = ("cat", "dog")
LABELS = np.array([[1, -1], [-1, 1], [0, 1], [2, 3]], dtype=np.int8)
SPLITS = {"train": np.array([0, 2]), "val": np.array([1]), "test": np.array([1, 3])}
# Four samples, two scales, one region, two channels.
FEATURES = np.array(
    [[[3, 0], [3, 8]], [[0, 2], [0, 4]], [[1, 1], [3, 3]], [[6, 8], [0, 0]]],
    dtype=np.float32,
)[:, :, None]


def data_set(ids=IDS, labels=LABELS, classes=CLASSES, splits=SPLITS, task=Task.MULTI_LABEL, name="manifest"):
    paths = tuple(f"{name}.jpg" for name in ids)
    return DataSet(name=name, task=task, classes=classes, ids=tuple(ids), paths=paths, labels=labels, splits=splits)


def digest(text):
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


def write_file(path, features=FEATURES, dataset=None, *, failed=(), contents=None, net="D"):
    """Write a feature file; `contents` says what the image files held, by default their ids."""
    dataset = data_set() if dataset is None else dataset
    n, scales, regions, channels = features.shape
    shape = Shape(scales=(256, 384, 512)[:scales], regions=("image", "box")[:regions], channels=channels)
    status = np.array([Status.FAILED if name in failed else Status.DONE for name in dataset.ids], np.uint8)
    block = Block(
        features=features.astype(np.float32),
        status=status,
        reasons=tuple("truncated" if name in failed else "" for name in dataset.ids),
        sizes=np.ones((n, 2), np.int32),
        sha256=np.stack([digest(text) for text in contents or dataset.ids]),
    )
    with FeatureWriter.open(path, dataset, {"net": net}, shape, shard_rows=n) as parts:
        parts.append(0, block)
        parts.finish({"net": net})
    return path
