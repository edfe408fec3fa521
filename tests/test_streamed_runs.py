"""From images in an object store to features in an object store, by processes that share nothing, through faults."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("s3fs")
pytest.importorskip("moto")

import s3_server
from vggfeat.cli import run
from vggfeat.runtime.storage import open_storage
from vggfeat.store.sharded import open_features

WEIGHTS = ["--weights", "random:A:0:0.03125"]
NET = [*WEIGHTS, "--scales", "224", "--rows", "4", "--quiet"]
QUICK = [*WEIGHTS, "--workers", "1", "--allow-failed", "1", "--quiet"]
CLASSES = ("cat", "dog")


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
def expected(folder, tmp_path_factory):
    """Id -> features, reason and SHA-256, as a run on a local folder has them."""
    there = tmp_path_factory.mktemp("local") / "run"
    vggfeat("plan", "--dataset", "folder", "--root", folder, "--out", there, *NET)
    vggfeat("extract", "--plan", there, *QUICK)
    return rows_of(there)


def rows_of(run):
    with open_features(run) as found:
        features = found.read(range(len(found)))
        columns = zip(features, found.reasons, found.sha256, strict=True)
        rows = [(row.tobytes(), reason, bytes(digest)) for row, reason, digest in columns]
        return dict(zip(found.dataset.ids, rows, strict=True))


def faulty(method, path, number):
    for every, fault in ((5, "500"), (7, "reset"), (11, "cut"), (13, "lost")):
        if number % every == 0:
            return fault
    return None


def test_a_run_in_a_store_that_fails_has_the_features_of_the_local_folder_bit_by_bit(server, folder, files, expected):
    store = open_storage("s3://bucket/images")
    for name, data in files.items():
        store.write_new(name, data)
    server.fault = faulty
    try:
        there = "s3://bucket/run"
        vggfeat("plan", "--dataset", "folder", "--root", "s3://bucket/images", "--out", there, *NET)
        for process in [extract(there, "--take", f"{number}/2") for number in (1, 2)]:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
        assert rows_of(there) == expected
        vggfeat("inspect", there)
    finally:
        server.fault = lambda *_: None
