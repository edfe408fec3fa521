"""From images in an object store to features in an object store, by processes that share nothing, through faults."""

import io
import os
import subprocess
import sys
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

pytest.importorskip("s3fs")
pytest.importorskip("moto")

import range_server
import s3_server
from vggfeat.cli import run
from vggfeat.datasets.streamed import list_images
from vggfeat.extract_plan import ShardWorker, make_plan
from vggfeat.forward.features import ExtractionSettings
from vggfeat.images.fetch import FetchSettings, fetched
from vggfeat.runtime.addresses import UnreachableError
from vggfeat.runtime.storage import StorageSettings, open_storage
from vggfeat.store.plan import PlanSettings
from vggfeat.store.sharded import open_features
from vggfeat.table import load_features
from vggfeat.weights import load_backbone

WEIGHTS = ["--weights", "random:A:0:0.03125"]
NET = [*WEIGHTS, "--scales", "224", "--shard-rows", "4", "--quiet"]
QUICK = [*WEIGHTS, "--workers", "1", "--allow-failed", "1", "--quiet"]
CLASSES = ("cat", "dog")
ONCE = StorageSettings(attempts=1, timeout=20)


def image(number):
    pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png" if number % 2 else "jpeg")
    return file.getvalue()


@pytest.fixture(scope="module")
def server():
    with s3_server.served() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def files():
    """Path of each image -> its bytes; one is no image."""
    names = [f"train/{CLASSES[number % 2]}/{number:02d}.jpg" for number in range(12)]
    names += [f"test/{CLASSES[number % 2]}/{number:02d}.jpg" for number in range(12, 19)]
    return {name: image(number) for number, name in enumerate(names)} | {"test/cat/99.jpg": b"none"}


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def vggfeat(*arguments, code=0):
    """Run a command in this process."""
    assert run([*map(str, arguments)]) == code


def extract(run, *arguments):
    """Start a process that computes shards."""
    command = [sys.executable, "-m", "vggfeat", "extract", "--plan", run, *QUICK, *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def local(folder, tmp_path_factory):
    """A run on a local folder."""
    there = tmp_path_factory.mktemp("local") / "run"
    vggfeat("plan", "--dataset", "folder", "--root", folder, "--out", there, *NET)
    vggfeat("extract", "--plan", there, *QUICK)
    return there


@pytest.fixture(scope="module")
def expected(local):
    """Id -> features, reason and SHA-256, as a run on a local folder has them."""
    return rows_of(local)


def rows_of(run):
    with open_features(run) as found:
        features = found.read(range(len(found)))
        columns = zip(features, found.reasons, found.sha256, strict=True)
        rows = [(row.tobytes(), reason, bytes(digest)) for row, reason, digest in columns]
        return dict(zip(found.dataset.ids, rows, strict=True))


class Faulty:
    """Lets every 5th, 7th, 11th and 13th request fail in its own way, but of equal ones at most two in a row."""

    def __init__(self):
        self.in_a_row = Counter()

    def __call__(self, method, path, number):
        for every, fault in ((5, "500"), (7, "reset"), (11, "cut"), (13, "lost")):
            if number % every == 0 and self.in_a_row[method, path] < 2:
                self.in_a_row[method, path] += 1
                return fault
        self.in_a_row[method, path] = 0
        return None


def test_a_run_in_a_store_that_fails_has_the_features_of_the_local_folder_bit_by_bit(
    server, folder, files, expected, local
):
    store = open_storage("s3://bucket/images")
    for name, data in files.items():
        store.write_new(name, data)
    server.fault = Faulty()
    try:
        there = "s3://bucket/run"
        vggfeat("plan", "--dataset", "folder", "--root", "s3://bucket/images", "--out", there, *NET)
        other = extract(there, "--take", "1/2")
        vggfeat("extract", "--plan", there, *QUICK, "--take", "2/2")
        _, said = other.communicate(timeout=300)
        assert other.returncode == 0, said
        assert rows_of(there) == expected
        vggfeat("inspect", there)
        near, far = (load_features(place, failed="drop") for place in (local, there))
        np.testing.assert_array_equal(far.descriptors, near.descriptors)
        assert (far.ids, far.classes) == (near.ids, near.classes)
    finally:
        server.fault = lambda *_: None


def plan_rows(listing_kind, root, there):
    vggfeat("plan", "--dataset", listing_kind, "--root", root, "--out", there, "--allow-private", *NET)
    vggfeat("extract", "--plan", there, "--allow-private", *QUICK)
    return rows_of(there)


def test_tars_and_tables_at_an_address_give_the_same_features(server, files, expected, tmp_path):
    store = open_storage("s3://bucket/sets")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    store.write_new("tars/a-0.tar", (tmp_path / "a.tar").read_bytes())
    cells = [{"bytes": data, "path": name} for name, data in files.items()]
    parquet.write_table(pa.table({"image": cells, "id": list(files)}), tmp_path / "a.parquet", row_group_size=7)
    store.write_new("table/a.parquet", (tmp_path / "a.parquet").read_bytes())
    server.fault = Faulty()
    try:
        tars = plan_rows("tar", "s3://bucket/sets/tars/a-{0..0}.tar", tmp_path / "tars")
        assert {name.removeprefix("a-0.tar/"): row for name, row in tars.items()} == {
            name.rpartition(".")[0]: row for name, row in expected.items()
        }
        assert plan_rows("parquet", "s3://bucket/sets/table", tmp_path / "table") == expected
    finally:
        server.fault = lambda *_: None


def test_what_a_store_does_not_give_costs_its_rows_alone(server, files, expected, tmp_path):
    good = [name for name in files if not name.endswith("99.jpg")]
    with range_server.served({name: files[name] for name in good}) as web:
        urls = [f"{web.address}/{good[0]}", f"{web.address}/status/503", f"{web.address}/none.png"]
        columns = {"url": urls, "id": [good[0], "busy", "gone"], "label": ["cat", "dog", "cat"]}
        listed = tmp_path / "list.parquet"
        parquet.write_table(pa.table(columns), listed)
        vggfeat("plan", "--dataset", "parquet", "--root", listed, "--out", tmp_path / "run", *NET)
        few = [*WEIGHTS, "--workers", "1", "--quiet", "--attempts", "2"]
        vggfeat("extract", "--plan", tmp_path / "run", "--allow-private", *few, code=3)
        found = rows_of(tmp_path / "run")
        assert found[good[0]] == expected[good[0]]
        assert [found[name][1].partition(":")[0] for name in ("busy", "gone")] == ["unreachable", "missing"]
        vggfeat("plan", "--dataset", "parquet", "--root", listed, "--out", tmp_path / "careful", *NET)
        vggfeat("extract", "--plan", tmp_path / "careful", *few, code=3)
        assert {row[1].partition(":")[0] for row in rows_of(tmp_path / "careful").values()} == {"unreadable"}


def test_a_list_with_an_id_twice_in_two_files_is_refused(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "list").mkdir(exist_ok=True)
        parquet.write_table(pa.table({"path": ["1.jpg"], "id": ["same"]}), tmp_path / "list" / f"{name}.parquet")
    vggfeat("plan", "--dataset", "parquet", "--root", tmp_path / "list", "--out", tmp_path / "run", *NET, code=4)
    assert "expected every id once, found 'same' in the rows 0 and 1" in capsys.readouterr().err


def test_other_data_sets_and_other_commands_say_what_they_can_read(capsys, tmp_path):
    vggfeat("plan", "--dataset", "voc2007", "--root", "s3://bucket/VOC", "--out", tmp_path / "run", *NET, code=2)
    assert "expected one of folder, tar, parquet at an address, found voc2007" in capsys.readouterr().err
    vggfeat("plan", "--dataset", "tar", "--out", tmp_path / "run", *NET, code=2)
    assert "--root: expected it with --dataset tar" in capsys.readouterr().err
    vggfeat("extract", "--dataset", "folder", "--root", "s3://bucket/images", code=2)
    assert "expected a folder of this machine, found s3://bucket/images; plan a run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def net():
    return load_backbone("random:A:0:0.03125")


def computed(net, images, there, storage):
    """Plan a run and compute it, as the commands do."""
    planned = make_plan(
        list_images("folder", images, storage=storage), net, open_storage(there, storage),
        ExtractionSettings(scales=(224,)), plan=PlanSettings(shard_rows=3),
    )  # fmt: skip
    worker = ShardWorker(planned, net, workers=0, fetch=partial(fetched, settings=FetchSettings(storage=storage)))
    list(worker.compute(range(planned.shards)))


def content(there):
    store = open_storage(there)
    return {entry.path: store.read(entry.path) for entry in store.entries()}


@pytest.fixture(scope="module")
def unbroken(server, net, files):
    """Content of a run of five images that nothing has happened to, and its number of PUTs."""
    store = open_storage("s3://bucket/few")
    for name in list(files)[:5]:
        store.write_new(name, files[name])
    server.log.clear()
    computed(net, "s3://bucket/few", "s3://bucket/unbroken", ONCE)
    puts = [method for method, _ in server.log].count("PUT")
    return content("s3://bucket/unbroken"), puts


@pytest.mark.parametrize("kinds", [1, pytest.param(2, marks=pytest.mark.long)])
def test_whichever_request_is_the_last_that_the_store_carries_out_the_same_run_goes_on_to_the_same_bytes(
    server, net, unbroken, kinds
):
    wanted, puts = unbroken
    assert puts == 5  # a part, the plan, the machine, two shards
    for last in range(1, puts + 1):
        for fault in ("reset", "lost", "reset")[last % 2 :][:kinds]:
            there = f"s3://bucket/dead-{last}-{fault}-{kinds}"
            seen = {"PUT": 0}

            def dies(method, path, number, seen=seen, last=last, fault=fault):
                before = seen["PUT"]
                seen["PUT"] += method == "PUT"
                if seen["PUT"] < last:
                    return None
                return fault if before < last else "reset"

            server.fault = dies
            try:
                with pytest.raises(UnreachableError, match="s3://bucket/"):
                    computed(net, "s3://bucket/few", there, ONCE)
            finally:
                server.fault = lambda *_: None
            computed(net, "s3://bucket/few", there, ONCE)
            assert content(there) == wanted
