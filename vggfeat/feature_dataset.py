"""Features as PyTorch's loaders take data: descriptors and labels, row by row, read when they are asked for.

D = length of a descriptor, K = classes.
"""

import os
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vggfeat.checks import check_choice
from vggfeat.descriptor_stream import paper_join, region_numbers, take_regions
from vggfeat.descriptors import Join, Normalisation, join_features
from vggfeat.errors import StoreError
from vggfeat.runtime.storage import is_remote, root_text
from vggfeat.samples import Task
from vggfeat.store.layout import Status
from vggfeat.store.plan import digest_of_plan
from vggfeat.store.reader import FeatureFile, Features
from vggfeat.store.sharded import ShardedFeatures, check_scales, open_features
from vggfeat.table import Failed, class_numbers, rows_of, rows_with_descriptors

Pair = tuple[Tensor, Any]


class FeatureDataset(Dataset[Pair]):
    """A PyTorch data set of the descriptors in a feature file or a run in shards, for `torch.utils.data.DataLoader`.

    An entry is a descriptor (D,), float32, and its label: of a single-label set the number of the class, an int, -1
    where none is known; of others (K,) int8 as `vggfeat.load_features` gives them. Features stay where they are; every
    worker process opens them for itself. Of a run one shard is in memory at a time, in each worker: let a loader that
    shuffles take `shuffled` as its sampler.

    Parameters
    ----------
    path : path
        Of a feature file; every byte of it is compared with its checksum now, and not again. Or the folder or address
        of a run in shards, which is read to its end now; a shard is compared with its SHA-256 whenever it is read.
    split : str or sequence of str, optional
        As for `vggfeat.load_features`; all rows by default.
    join : "mean", "max" or "stack", optional
        Over scales; as the paper joins them for the data set in the file by default, see `vggfeat.read_descriptors`.
    normalisation : "blocks", "whole" or "none"
        See `vggfeat.descriptors`.
    regions : sequence of str, optional
        Which of the stored regions to stack, in this order; all by default.
    failed : "raise" or "drop"
        What to do where an image could not be read.

    Attributes
    ----------
    classes : tuple of str
        K names.
    ids : list of str
        Names of the samples, an entry each.

    Raises
    ------
    StoreError
        If the file or a shard is missing or damaged, or an image failed and `failed` is "raise". Also when an entry is
        read, if other features have taken the place of these in the meantime.
    ConfigError
        If a split or region is not in the file, a setting is not allowed, or the run keeps too little for `join`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str | Sequence[str] | None = None,
        *,
        join: Join | None = None,
        normalisation: Normalisation = "blocks",
        regions: Sequence[str] | None = None,
        failed: Failed = "raise",
    ) -> None:
        check_choice("failed", failed, get_args(Failed))
        self.path = root_text(path) if is_remote(path) else os.path.abspath(root_text(path))
        self.normalisation = normalisation
        self._opened: tuple[int, Features] | None = None
        with open_features(self.path) as file:
            self.join: Join = join or paper_join(file)
            check_scales(file, self.join)
            self._regions = region_numbers(file, regions)
            join_features(np.zeros((0, *file.shape.dims), np.float32), self.join, normalisation)
            file.check()
            data, ok, self._made_of = file.dataset, file.status == Status.DONE, _identity(file)
        self._rows = rows_with_descriptors(self.path, data, rows_of(data, split), ok, failed)
        labels = data.labels[self._rows]
        self._labels: list[Any] = (
            class_numbers(labels).tolist() if data.task == Task.SINGLE_LABEL else list(torch.from_numpy(labels))
        )
        self.classes, self.ids = data.classes, [data.ids[row] for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        """Return the entries of a batch, which are read together."""
        features = take_regions(self._file().read(self._rows[list(indices)]), self._regions)
        descriptors = torch.from_numpy(join_features(features, self.join, self.normalisation))
        return [(one, self._labels[index]) for one, index in zip(descriptors, indices, strict=True)]

    def shuffled(self, seed: int) -> list[int]:
        """Draw an order of all entries, each once, as the `sampler` of a loader; with another seed in each epoch.

        Those of a shard follow one another; of a file it is any order.
        """
        rng = np.random.default_rng(seed)
        features = self._file()
        shards = features.plan.shards_of(self._rows) if isinstance(features, ShardedFeatures) else np.zeros(len(self))
        order = rng.permutation(len(self))
        _, numbers = np.unique(shards, return_inverse=True)
        places = rng.permutation(numbers.max(initial=0) + 1)
        drawn: list[int] = order[np.argsort(places[numbers[order]], kind="stable")].tolist()
        return drawn

    def _file(self) -> Features:
        # A handle that came through a fork is the parent's.
        if self._opened is None or self._opened[0] != os.getpid():
            features = open_features(self.path)
            if _identity(features) != self._made_of:
                features.close()
                raise StoreError(
                    f"{self.path}: expected the features that this data set was made of, found that others have taken "
                    "their place; make it again"
                )
            self._opened = os.getpid(), features
        return self._opened[1]

    def close(self) -> None:
        """Close what is open; it is opened again when it is needed."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].close()
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None}

    def __repr__(self) -> str:
        return f"FeatureDataset({self.path!r}, {len(self)} descriptors, {len(self.classes)} classes)"


def _identity(features: Features) -> str:
    """Say by a digest which features, of which samples, these are."""
    if isinstance(features, FeatureFile):
        return features.fingerprint + features.features_sha256
    return digest_of_plan(features.plan.to_json())  # type: ignore[attr-defined]
