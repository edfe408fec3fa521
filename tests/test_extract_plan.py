"""Runs of many shards: the features of `vggfeat extract`, whoever computes them, in whatever order, after whatever."""

import json
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vggfeat import extract_plan
from vggfeat.datasets.catalogue import open_dataset
from vggfeat.descriptor_stream import stream_descriptors, table_bytes
from vggfeat.descriptors import join_features
from vggfeat.engines.engine import LocalEngine, ShardTask, Share
from vggfeat.errors import ConfigError, DatasetError, StoreError
from vggfeat.extract import RunSettings, extract_features
from vggfeat.extract_plan import ShardWorker, add_to_plan, make_plan
from vggfeat.forward import settings as conditions
from vggfeat.forward.features import ExtractionSettings, FeatureHead
from vggfeat.forward.runner import BatchRunner
from vggfeat.images.decode import DecodeSettings
from vggfeat.listing import listing_of
from vggfeat.runtime.storage import open_storage
from vggfeat.samples import DataSet, Task
from vggfeat.similar import DescriptorSettings, extract_query, nearest, query_of_row
from vggfeat.store import planning
from vggfeat.store.failures import failures_path
from vggfeat.store.plan import PlanSettings, read_plan, shard_path
from vggfeat.store.reader import FeatureFile
from vggfeat.store.shard_files import read_shard
from vggfeat.store.sharded import ShardedFeatures, examine, merge, open_features
from vggfeat.table import load_features, read_descriptors
from vggfeat.weights import load_backbone, random_backbone, save_weights

NET = "random:A:0:0.03125"
SETTINGS = ExtractionSettings(scales=(224, 256))
ROWS = 4


def draw(path: Path, seed: int, size=(70, 60)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(13):
        draw(folder / ("cat" if number % 2 else "dog") / f"{number}.png", number, (70 + number % 3, 60))
    (folder / "cat" / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def net():
    return random_backbone(NET)


@pytest.fixture(scope="module")
def one_file(root, net, tmp_path_factory):
    """What `vggfeat extract` makes of the same images."""
    out = tmp_path_factory.mktemp("one") / "x.h5"
    extract_features(open_dataset("folder", root), net, out, SETTINGS, run=RunSettings(workers=0, shard_rows=ROWS))
    return out


def planned(root, net, run, **settings):
    settings = PlanSettings(**({"shard_rows": ROWS} | settings))
    return make_plan(listing_of(open_dataset("folder", root)), net, open_storage(run), SETTINGS, plan=settings)


def compute(plan, net, shards=None, **more):
    worker = ShardWorker(plan, net, **({"workers": 0} | more))
    return list(worker.compute(range(plan.shards) if shards is None else shards))


@pytest.fixture(scope="module")
def finished(root, net, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    compute(planned(root, net, run), net)
    return run


def contents(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_features_are_those_of_one_file_bit_for_bit(finished, one_file):
    with FeatureFile(one_file) as one, ShardedFeatures(finished) as run:
        assert run.read().tobytes() == one.read().tobytes()
        assert (run.status == one.status).all()
        assert run.reasons == one.reasons
        assert (run.sizes == one.sizes).all()
        assert (run.sha256 == one.sha256).all()
        assert run.dataset.fingerprint() == one.fingerprint
        assert (run.key, run.provenance) == (one.key, one.provenance)
        rows = np.array([12, 0, 5, 5])
        assert run.read(rows).tobytes() == one.read(rows).tobytes()


def test_a_merged_run_has_the_bytes_of_one_file(finished, one_file, tmp_path):
    with ShardedFeatures(finished) as run:
        merge(run, tmp_path / "m.h5")
        assert (tmp_path / "m.h5").read_bytes() == one_file.read_bytes()
        assert failures_path(tmp_path / "m.h5").read_bytes() == failures_path(one_file).read_bytes()
        merge(run, tmp_path / "m.h5")  # finds it done


def test_another_program_reads_the_shards(finished, one_file):
    with FeatureFile(one_file) as one:
        tables = [pq.read_table(path) for path in sorted((finished / "features").rglob("*.parquet"))]
        assert [name for table in tables for name in table["id"].to_pylist()] == list(one.dataset.ids)
        features = np.array([row for table in tables for row in table["features"].to_pylist()], np.float32)
        np.testing.assert_array_equal(features.reshape(one.read().shape), one.read())
        numbers = [label for table in tables for label in table["labels"].to_pylist()]
        assert numbers == [np.flatnonzero(row == 1).tolist() for row in one.dataset.labels]
        assert b"".join(digest for table in tables for digest in table["sha256"].to_pylist()) == one.sha256.tobytes()


def test_blocks_that_threads_read_at_once_are_those_of_one_file(finished, one_file):
    with stream_descriptors(finished) as run, stream_descriptors(one_file) as file:
        blocks = run.descriptors
        with ThreadPoolExecutor(4) as pool:
            rows = list(pool.map(lambda row: blocks.reader(row, row + 1), [*range(len(blocks))] * 5))
        assert np.concatenate(rows).tobytes() == file.descriptors.read(0).tobytes() * 5
    assert table_bytes(finished) == table_bytes(one_file)


def test_descriptors_are_those_of_one_file(finished, one_file):
    for join in ("mean", "max", "stack"):
        one, run = load_features(one_file, join, failed="drop"), load_features(finished, join, failed="drop")
        np.testing.assert_array_equal(one.descriptors, run.descriptors)
        assert (one.ids, one.classes) == (run.ids, run.classes)
        np.testing.assert_array_equal(one.labels, run.labels)


@pytest.mark.parametrize(("store", "dtype", "tolerance"), [
    ("mean", "float32", 0.0), ("scales", "float16", 2**-11), ("mean", "float16", 2**-11),
])  # fmt: skip
def test_what_is_kept_of_a_descriptor_differs_by_no_more_than_stated(
    root, net, one_file, tmp_path, store, dtype, tolerance
):
    plan = planned(root, net, tmp_path / "run", store=store, dtype=dtype)
    compute(plan, net)
    with FeatureFile(one_file) as one, ShardedFeatures(tmp_path / "run") as run:
        ok = one.status == 1
        expected = one.read()[ok]
        expected = expected.mean(axis=1, keepdims=True) if store == "mean" else expected
        # Half precision rounds to 11 bits; below 2^-14 it is spaced evenly.
        assert (np.abs(run.read()[ok] - expected) <= tolerance * np.maximum(np.abs(expected), 2**-14)).all()
    for normalisation in ("blocks", "none"):
        one_loaded = load_features(one_file, "mean", normalisation=normalisation, failed="drop").descriptors
        loaded = load_features(tmp_path / "run", "mean", normalisation=normalisation, failed="drop").descriptors
        if not tolerance:
            np.testing.assert_array_equal(loaded, one_loaded)
        lengths = np.linalg.norm(one_loaded, axis=1)
        cosines = (loaded * one_loaded).sum(axis=1) / (np.linalg.norm(loaded, axis=1) * lengths)
        assert cosines.min() > 1 - 2**-21 - 1e-6


def test_the_mean_is_joined_by_mean_alone_and_merged_never(root, net, tmp_path):
    compute(planned(root, net, tmp_path / "run", store="mean"), net)
    for read in (lambda: load_features(tmp_path / "run", "stack"), lambda: load_features(tmp_path / "run", "max")):
        with pytest.raises(ConfigError, match=r"join: expected mean, because .* keeps the mean over the scales alone"):
            read()
    with ShardedFeatures(tmp_path / "run") as run, pytest.raises(ConfigError, match="expected features of every scale"):
        merge(run, tmp_path / "m.h5")


def test_values_beyond_float16_fail_by_name(root, net, tmp_path):
    plan = planned(root, net, tmp_path / "run", dtype="float16")
    worker = ShardWorker(plan, net, workers=0)
    head = worker.runner.head
    values = head.values

    class Louder:
        name, channels, copies, pass_range = head.name, head.channels, head.copies, head.pass_range

        def values(self, *given):
            return values(*given) * 1e9

    worker.runner.head = Louder()
    results = list(worker.compute([0]))
    assert results[0].reasons == {"non-finite": ROWS}
    assert "the most that float16 holds, found" in "".join(read_shard(plan, 0).block.reasons)


def test_shares_in_any_order_killed_or_doubled_end_with_the_same_bytes(root, net, finished, tmp_path):
    whole = contents(finished)
    orders = random.Random(3)
    for number in range(4):
        run = tmp_path / str(number)
        plan = planned(root, net, run)
        count = orders.randrange(1, 5)
        shares = [share for share in range(1, count + 1) for _ in range(2)]  # each is given twice
        orders.shuffle(shares)
        for share in shares:
            stream = ShardWorker(plan, net, workers=0).compute(Share(share, count).of(plan.shards))
            if orders.random() < 0.5:
                next(stream, None)  # Stopped after a shard.
                stream.close()
        compute(plan, net)
        assert contents(run) == whole


def test_a_shard_that_two_compute_at_once_is_there_once(root, net, finished, tmp_path):
    plan = planned(root, net, tmp_path / "run")
    workers = [ShardWorker(plan, net, workers=0) for _ in range(2)]
    streams = [worker.compute(range(plan.shards)) for worker in workers]
    for one, other in zip(*streams, strict=False):
        assert one.shard != other.shard  # What is there is left out.
    compute(plan, net)
    assert contents(tmp_path / "run") == contents(finished)


def test_an_engine_yields_what_became_of_each_shard(root, net, finished, tmp_path):
    save_weights(tmp_path / "net.safetensors", net.model, mean=net.mean, std=net.std)
    plan = planned(root, load_backbone(str(tmp_path / "net.safetensors")), tmp_path / "run")
    task = ShardTask(run=str(tmp_path / "run"), weights=str(tmp_path / "net.safetensors"), device="cpu", workers=0)
    results = list(LocalEngine().compute(task, [2, 0]))
    assert [(result.shard, result.rows) for result in results] == [(2, ROWS), (0, ROWS)]
    assert plan.present() == {0, 2}
    assert [result.reasons for result in results] == [{}, {}]


def test_a_plan_is_made_once(root, net, tmp_path):
    planned(root, net, tmp_path / "run")
    before = contents(tmp_path / "run")
    planned(root, net, tmp_path / "run")
    assert contents(tmp_path / "run") == before
    with pytest.raises(StoreError, match=r"expected a plan of the same settings.*shard_rows: found 4, expected 5"):
        planned(root, net, tmp_path / "run", shard_rows=5)
    with pytest.raises(StoreError, match="weights_sha256: found"):
        planned(root, random_backbone("random:A:1:0.03125"), tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_other_nets_and_versions_are_refused(root, net, tmp_path, monkeypatch):
    plan = planned(root, net, tmp_path / "run")
    with pytest.raises(StoreError, match=r"expected the net, settings and versions of the plan.*weights_sha256"):
        ShardWorker(plan, random_backbone("random:A:1:0.03125"))
    monkeypatch.setattr(conditions, "library_version", lambda name: "9")
    with pytest.raises(StoreError, match=r'versions.torch: found "9", expected'):
        ShardWorker(plan, net)


class Wrong(BatchRunner):
    def rows(self, images, progress=None):
        return [row._replace(features=row.features[..., ::-1]) for row in super().rows(images, progress)]


def test_a_machine_of_another_kind_takes_part_only_if_it_may_and_agrees(root, net, tmp_path, monkeypatch):
    plan, kind = planned(root, net, tmp_path / "run"), {"device": "cpu", "name": "other"}
    compute(plan, net, [0])
    monkeypatch.setattr(extract_plan, "describe_machine", lambda device: kind)
    with pytest.raises(StoreError, match=r"machine.json: expected a machine like the first.*give --mixed"):
        compute(plan, net)
    compute(plan, net, mixed=True)
    with ShardedFeatures(tmp_path / "run") as run:
        run.check()
        assert run.key["machine"]["device"] == "mixed"
        assert run.key["machine"]["kinds"][1] == kind
    head = FeatureHead("fc7", net.model.maps["fc7"].channels)
    monkeypatch.setattr(extract_plan, "feature_runner", lambda *given: Wrong(net, SETTINGS, head))
    kind["name"] = "broken"
    with pytest.raises(StoreError, match=r"expected the features that this machine computes, to a cosine of 0.9999"):
        compute(plan, net, mixed=True)


def test_damage_is_named_and_no_value_of_it_is_read(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    path = run / shard_path(1)
    good = path.read_bytes()
    choice = random.Random(5)
    for _ in range(200):
        place = choice.randrange(len(good))
        bad = bytearray(good)
        bad[place] ^= 1 << choice.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(StoreError, match=rf"{path}: expected"):
            load_features(run, failed="drop")
    for length in (0, 3, 100, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(StoreError, match=rf"{path}: expected bytes that fit their SHA-256, found damage"):
            load_features(run, failed="drop")
    found = examine(read_plan(open_storage(run)))
    assert len(found.problems) == 1
    assert found.root is None
    path.write_bytes(good)
    assert examine(read_plan(open_storage(run))).root is not None


def test_a_shard_that_is_missing_or_of_another_plan_is_named(root, net, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / shard_path(2)).unlink()
    with pytest.raises(StoreError, match=r"expected all 4 shards, found 1 missing, the first is .*part-000002"):
        load_features(run)
    assert examine(read_plan(open_storage(run))).missing == [2]
    shutil.copy(run / shard_path(1), run / shard_path(2))
    with pytest.raises(StoreError, match=rf"{run / shard_path(2)}: expected plan .* \(a shard of another plan\)"):
        load_features(run)
    (run / "features" / "000" / "part-000009.parquet").write_bytes(b"")
    problems = examine(read_plan(open_storage(run))).problems
    assert [problem.partition(": expected")[0] for problem in problems] == [
        str(run / shard_path(2)), str(run / "features" / "000" / "part-000009.parquet")
    ]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [
    (lambda text: text.replace('"version": 1', '"version": 2'), "expected a plan of version 1, found 2;"),
    (lambda text: text.replace('"rows": 14', '"rows": 13'), "expected .*, found damage .its SHA-256 does not fit"),
    (lambda text: text[:100], "expected the JSON of a plan, found damage"),
    (lambda text: "[]", "expected a plan of vggfeat, found other JSON"),
])  # fmt: skip
def test_a_plan_that_is_damaged_or_of_another_version_is_refused(root, net, tmp_path, change, message):
    planned(root, net, tmp_path / "run")
    path = tmp_path / "run" / "plan.json"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(StoreError, match=rf"{path}: {message}"):
        read_plan(open_storage(tmp_path / "run"))


def test_a_damaged_part_of_a_plan_is_named(root, net, tmp_path):
    planned(root, net, tmp_path / "run")
    (part,) = (tmp_path / "run" / "plan").iterdir()
    raw = bytearray(part.read_bytes())
    raw[20] ^= 1
    part.write_bytes(raw)
    with pytest.raises(StoreError, match=rf"{part}: expected bytes that fit their SHA-256"):
        compute(read_plan(open_storage(tmp_path / "run")), net)
    assert [said.partition(": ")[0] for said in examine(read_plan(open_storage(tmp_path / "run"))).problems] == [
        str(part)
    ]
    part.unlink()
    with pytest.raises(StoreError, match=rf"{part}: expected a part of the plan, found none; bring it back, or plan"):
        compute(read_plan(open_storage(tmp_path / "run")), net)
    assert [said.partition(": ")[0] for said in examine(read_plan(open_storage(tmp_path / "run"))).problems] == [
        str(part)
    ]


def test_an_image_that_changed_since_it_was_planned_fails_by_name(net, tmp_path):
    for number in range(3):
        draw(tmp_path / "in" / f"{number}.png", number)
    plan = planned(tmp_path / "in", net, tmp_path / "run")
    draw(tmp_path / "in" / "1.png", 7, (90, 60))
    (tmp_path / "in" / "2.png").unlink()
    (result,) = compute(plan, net)
    assert result.reasons == {"changed": 1, "missing": 1}
    planned_size = plan.table(0)["size"][1].as_py()
    with ShardedFeatures(tmp_path / "run") as run:
        assert f"expected {planned_size} bytes, as planned, found " in run.reasons[1]


def test_failed_shards_are_computed_again_when_asked(net, tmp_path):
    for number in range(6):
        draw(tmp_path / "in" / f"{number}.png", number)
    plan = planned(tmp_path / "in", net, tmp_path / "run", shard_rows=2)
    away = (tmp_path / "in" / "3.png").rename(tmp_path / "3.png")
    assert sum(bool(result.reasons) for result in compute(plan, net)) == 1
    kept = contents(tmp_path / "run")
    away.rename(tmp_path / "in" / "3.png")
    assert compute(plan, net) == []
    assert [(result.shard, result.reasons) for result in compute(plan, net, retry_failed=True)] == [(1, {})]
    now = contents(tmp_path / "run")
    assert [name for name in now if now[name] != kept[name]] == [shard_path(1)]


def test_new_images_are_planned_behind_the_old_ones(net, tmp_path):
    for number in range(5):
        draw(tmp_path / "in" / "b" / f"{number}.png", number)
    plan = planned(tmp_path / "in", net, tmp_path / "run")
    compute(plan, net)
    before = contents(tmp_path / "run")
    draw(tmp_path / "in" / "a" / "new.png", 11)
    draw(tmp_path / "in" / "b" / "0-new.png", 12)
    longer = add_to_plan(plan, listing_of(open_dataset("folder", tmp_path / "in")))
    assert (longer.rows, longer.shards, longer.classes) == (7, 3, ("b", "a"))
    results = compute(longer, net)
    assert [result.shard for result in results] == [2]
    after = contents(tmp_path / "run")
    assert {name for name in before if after[name] != before[name]} == {"plan.json"}
    loaded = load_features(tmp_path / "run")
    assert loaded.ids[5:] == ["a/new.png", "b/0-new.png"]
    assert loaded.labels.tolist() == [0] * 5 + [1, 0]
    whole = tmp_path / "whole.h5"
    extract_features(open_dataset("folder", tmp_path / "in"), net, whole, SETTINGS, run=RunSettings(workers=0))
    one = load_features(whole)
    order = [one.ids.index(name) for name in loaded.ids]
    np.testing.assert_allclose(loaded.descriptors, one.descriptors[order], atol=1e-5)
    with pytest.raises(StoreError, match=r"expected nobody else to extend the plan meanwhile.*the same command again"):
        add_to_plan(plan, listing_of(open_dataset("folder", tmp_path / "in")))
    again = add_to_plan(longer, listing_of(open_dataset("folder", tmp_path / "in")))
    assert again.rows == 7
    assert contents(tmp_path / "run") == after


def unlabelled(ids):
    labels = np.zeros((len(ids), 0), np.int8)
    return DataSet(name="folder", task=Task.UNLABELLED, classes=(), ids=ids, paths=ids, labels=labels)


def test_an_id_that_is_there_twice_is_named_across_parts_too(net, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "PART_SHARDS", 1)
    listing = listing_of(unlabelled(tuple(f"{row}.png" for row in range(9))))
    batches = listing.batches

    def doubled():
        (batch,) = batches()
        yield batch
        yield batch.slice(2, 1)

    with pytest.raises(DatasetError, match=r"expected every id once, found '2.png' in the rows 2 and 9"):
        make_plan(
            replace(listing, batches=doubled), net, open_storage(tmp_path / "run"), SETTINGS,
            plan=PlanSettings(shard_rows=3),
        )  # fmt: skip
    assert not (tmp_path / "run" / "plan.json").exists()
    with pytest.raises(DatasetError, match="expected at least one image, found none"):
        make_plan(replace(listing, batches=lambda: iter(())), net, open_storage(tmp_path / "none"), SETTINGS)


def test_regions_that_a_sample_lacks_are_refused(root, net, tmp_path):
    listing = listing_of(open_dataset("folder", root))
    boxes = replace(SETTINGS, regions=("image", "box"))
    with pytest.raises(ConfigError, match=r"expected a box for every sample of folder, found none for cat/1.png"):
        make_plan(listing, net, open_storage(tmp_path / "run"), boxes)


def test_boxes_splits_groups_and_columns_come_back_as_they_were(root, net, tmp_path):
    names = tuple(f"cat/{number}.png" for number in (1, 3, 5, 7, 9))
    boxes = np.array([[1.5, 2, 40, 50]] * 5)
    labels = np.array([[1, 0, -1], [2, 3, 1], [1, 1, 1], [-1, -1, -1], [0, 2, 3]], np.int8)
    dataset = DataSet(
        name="voc2012-action", task=Task.MULTI_LABEL, classes=("a", "b", "c"), ids=tuple(f"{name}/1" for name in names),
        paths=names, labels=labels, boxes=boxes, splits={"train": np.array([0, 2]), "none": np.zeros(0, np.int64)},
        groups=("x", "x", "y", "z", "z"), columns={"site": ("1", "", "3", "4", "é")}, root=str(root),
    )  # fmt: skip
    settings = replace(SETTINGS, regions=("image", "box"))
    plan = make_plan(
        listing_of(dataset), net, open_storage(tmp_path / "run"), settings, plan=PlanSettings(shard_rows=2)
    )
    compute(plan, net)
    extract_features(dataset, net, tmp_path / "one.h5", settings, run=RunSettings(workers=0, shard_rows=2))
    with ShardedFeatures(tmp_path / "run") as run:
        merge(run, tmp_path / "m.h5")
    assert (tmp_path / "m.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()


def test_similar_images_are_found_in_shards(finished, one_file, root, net):
    settings = DescriptorSettings()
    with FeatureFile(one_file) as one, open_features(finished) as run:
        name = one.dataset.ids[3]
        found = [nearest(file, query_of_row(file, name, settings)[1], settings) for file in (one, run)]
        assert found[0] == found[1]
        query = extract_query(run, root / name, net)
        np.testing.assert_allclose(query[0], run.read([3])[0], rtol=1e-4, atol=1e-4)


def test_a_table_of_a_file_and_a_run_is_aligned(finished, one_file):
    table = read_descriptors([one_file, finished])
    half = table.descriptors.shape[1] // 2
    np.testing.assert_array_equal(table.descriptors[:, :half], table.descriptors[:, half:])
    assert join_features(np.zeros((1, 2, 1, half), np.float32)).shape == (1, half)


def test_a_worker_that_is_killed_at_random_moments_loses_its_shard_alone(root, net, finished, tmp_path):
    whole, moments = contents(finished), random.Random(7)
    planned(root, net, tmp_path / "run")
    for _ in range(8):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                compute(read_plan(open_storage(tmp_path / "run")), net)
                code = 0
            finally:
                os._exit(code)
        time.sleep(moments.uniform(0, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = {name: content for name, content in contents(tmp_path / "run").items() if "/." not in name}
        assert left.items() <= whole.items()
    compute(read_plan(open_storage(tmp_path / "run")), net)
    assert {name for name in contents(tmp_path / "run") if "/." not in name} == set(whole)


def test_plan_json_says_what_was_planned(root, net, tmp_path):
    plan = planned(root, net, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert (told["rows"], told["shards"], told["dataset"]["classes"]) == (14, 4, ["cat", "dog"])
    assert told["key"]["weights_sha256"] == net.sha256
    assert DecodeSettings(**told["key"]["decode"]).max_pixels == DecodeSettings().max_pixels
    assert read_plan(open_storage(tmp_path / "run")).to_json() == plan.to_json()
