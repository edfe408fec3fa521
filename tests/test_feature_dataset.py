"""Descriptors for PyTorch's loaders, out of a run in shards: those of the one file that it makes."""

import pickle
import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import vggfeat
from feature_files import write_file
from sharded_files import ROWS, SHARD_ROWS, make_run
from vggfeat.errors import ConfigError, StoreError
from vggfeat.store import sharded
from vggfeat.store.plan import shard_path
from vggfeat.store.sharded import merge


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def one_file(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "x.h5"
    with sharded.ShardedFeatures(run) as features:
        merge(features, out)
    return out


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("join", ["mean", "max", "stack"])
def test_a_run_gives_what_its_one_file_gives(run, one_file, join, split):
    ours, theirs = (vggfeat.FeatureDataset(path, split, join=join, failed="drop") for path in (run, one_file))
    expected = vggfeat.load_features(one_file, join=join, split=split, failed="drop")
    assert (ours.ids, ours.classes, len(ours)) == (theirs.ids, theirs.classes, len(theirs))
    assert ours.ids == list(expected.ids)
    for index in range(len(ours)):
        assert ours[index][0].numpy().tobytes() == theirs[index][0].numpy().tobytes()
        assert ours[index][0].numpy().tobytes() == expected.descriptors[index].tobytes()
        assert ours[index][1] == theirs[index][1]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("regions", [["box"], ["box", "image"]])
def test_regions_are_chosen_as_load_features_chooses_them(tmp_path, regions):
    features = np.arange(4 * 2 * 2 * 3, dtype=np.float32).reshape(4, 2, 2, 3)
    path = write_file(tmp_path / "x.h5", features)
    dataset, expected = vggfeat.FeatureDataset(path, regions=regions), vggfeat.load_features(path, regions=regions)
    assert np.stack([row for row, _ in dataset]).tobytes() == expected.descriptors.tobytes()
    with pytest.raises(ConfigError, match="regions: expected some of image, box"):
        vggfeat.FeatureDataset(path, regions=["face"])


# A worker that is spawned loads PyTorch, so that one must do.
@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_give_the_bits_of_none(run, start, workers):
    dataset = vggfeat.FeatureDataset(run, failed="drop")
    dataset[0]  # Open before the workers begin.
    order = dataset.shuffled(3)
    alone = list(DataLoader(dataset, batch_size=5, sampler=order))
    shared = list(DataLoader(dataset, batch_size=5, sampler=order, num_workers=workers, multiprocessing_context=start))
    assert len(alone) == len(shared) == 5
    for (rows, labels), (others, their_labels) in zip(alone, shared, strict=True):
        assert torch.equal(rows, others)
        assert torch.equal(labels, their_labels)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[2][0], dataset[2][0])
    dataset.close()


def test_a_shuffled_order_has_every_entry_once_and_reads_every_shard_once(run, monkeypatch):
    dataset, read = vggfeat.FeatureDataset(run, failed="drop"), Counter()
    opened = sharded.open_shard
    monkeypatch.setattr(sharded, "open_shard", lambda plan, shard: read.update([shard]) or opened(plan, shard))
    orders = [dataset.shuffled(seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(ROWS - 1))
    within = [int(dataset.ids[index][:3]) for index in orders[0]]
    assert within != sorted(within)
    shards = [row // SHARD_ROWS for row in within]
    assert sum(one != other for one, other in pairwise(shards)) == 5
    for _ in DataLoader(dataset, batch_size=3, sampler=orders[0]):
        pass
    assert read == dict.fromkeys(range(6), 1)
    dataset.close()


def test_a_shuffled_order_of_a_file_has_every_entry_once(one_file):
    dataset = vggfeat.FeatureDataset(one_file, failed="drop")
    order = dataset.shuffled(0)
    assert sorted(order) == list(range(ROWS - 1))
    assert order != sorted(order)
    dataset.close()


def test_a_run_of_means_gives_the_means_and_refuses_other_joins(tmp_path):
    whole = vggfeat.load_features(make_run(tmp_path / "half", "mean", "float16"), failed="drop")
    dataset = vggfeat.FeatureDataset(tmp_path / "half", failed="drop")
    np.testing.assert_array_equal(np.stack([rows for rows, _ in dataset]), whole.descriptors)
    with pytest.raises(ConfigError, match="join: expected mean"):
        vggfeat.FeatureDataset(tmp_path / "half", join="max", failed="drop")
    dataset.close()


def test_failed_images_and_damaged_and_missing_shards_are_named(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    with pytest.raises(StoreError, match=r"1 whose image failed at extraction, the first is '009\.png'"):
        vggfeat.FeatureDataset(folder)
    monkeypatch.chdir(tmp_path)
    dataset = vggfeat.FeatureDataset("run", failed="drop")
    monkeypatch.chdir("/")
    shard = folder / shard_path(2)
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    assert len(dataset[0][0]) == 5
    with pytest.raises(StoreError, match=shard.name):
        dataset[8]
    with pytest.raises(StoreError, match=shard.name):
        vggfeat.FeatureDataset(folder, failed="drop")
    shard.unlink()
    with pytest.raises(StoreError, match=r"1 missing, the first is features/.*2"):
        vggfeat.FeatureDataset(folder, failed="drop")
    dataset.close()


@pytest.mark.parametrize("kind", ["run", "file"])
def test_features_that_take_the_place_of_others_are_refused(kind, tmp_path):
    path = make_run(tmp_path / "run")
    if kind == "file":
        with sharded.ShardedFeatures(path) as features:
            path = merge(features, tmp_path / "x.h5")
    dataset = vggfeat.FeatureDataset(path, failed="drop")
    before = dataset[0][0]
    dataset.close()
    np.testing.assert_array_equal(dataset[0][0], before)
    copy = pickle.loads(pickle.dumps(dataset))
    dataset.close()
    if kind == "file":
        path.unlink()
        write_file(path)
    else:
        shutil.rmtree(path)
        make_run(path, "mean")
    for one in (dataset, copy):
        with pytest.raises(StoreError, match="that this data set was made of, found that others have"):
            one[0]
