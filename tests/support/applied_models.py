"""Feature files of images whose classes can be seen, and the command that trains SVMs on them and applies them."""

import numpy as np

from vggfeat.cli import run
from vggfeat.samples import DataSet, Task
from vggfeat.store.layout import Block, Shape, Status
from vggfeat.store.writer import FeatureWriter

NET = {
    "net": "D", "width": 1.0, "weights_sha256": "ab" * 32, "pool_rounding": "floor", "channel_order": "RGB",
    "mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0], "layer": "fc7", "interpolation": "bilinear", "sides": [256, 384],
    "precision": "fp32",
}  # fmt: skip
CLASSES = ("cat", "dog, small", "id")


def data_set(count=60, *, single=True, splits=True):
    rng = np.random.default_rng(1)
    numbers = np.arange(count) % 3
    one_hot = np.where(np.eye(3)[numbers] == 1, 1, -1)
    several = np.where(rng.random((count, 3)) < 0.4, 1, -1)
    ids = tuple(f"images/{row:02d}.jpg" for row in range(count))
    halves = {"train": np.arange(count // 2), "test": np.arange(count // 2, count)}
    return DataSet(
        name="folder",
        task=Task.SINGLE_LABEL if single else Task.MULTI_LABEL,
        classes=CLASSES,
        ids=ids,
        paths=ids,
        labels=(one_hot if single else several).astype(np.int8),
        splits=halves if splits else {},
    )


def new_images(count=4):
    ids = ("new, 1.jpg", "é\udcff.jpg", "c.jpg", "d.jpg")[:count]
    return DataSet(
        name="folder", task=Task.UNLABELLED, classes=(), ids=ids, paths=ids, labels=np.zeros((count, 0), np.int8)
    )


def write_file(path, dataset, *, failed=(), seed=0, scales=(256, 384), regions=("image", "box"), **changes):
    """A feature file of images whose classes can be seen, with some error."""
    made_by = NET | changes
    rng = np.random.default_rng(seed)
    shape = Shape(scales=scales, regions=regions, channels=6)
    signal = np.zeros((len(dataset), 6))
    if dataset.classes:
        signal[:, :3] = dataset.labels == 1
    features = np.abs(signal[:, None, None] + 0.4 * rng.standard_normal((len(dataset), *shape.dims)))
    gone = np.isin(np.arange(len(dataset)), failed)
    features[gone] = np.nan
    block = Block(
        features=features.astype(np.float32),
        status=np.where(gone, Status.FAILED, Status.DONE).astype(np.uint8),
        reasons=tuple("truncated: it ends early" if row else "" for row in gone),
        sizes=np.ones((len(dataset), 2), np.int32),
        sha256=np.arange(len(dataset), dtype=np.uint8)[:, None] * np.ones(32, np.uint8),
    )
    with FeatureWriter.open(path, dataset, made_by, shape, shard_rows=len(dataset)) as parts:
        parts.append(0, block)
        parts.finish(made_by)
    return path


def svm(*words):
    return run(["svm", *(str(word) for word in words), "--quiet"])
