"""The nearest images: exact whatever the settings, from any query, and refused where a cosine would mean nothing."""

import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from vggfeat import similar as search
from vggfeat.cli import run
from vggfeat.errors import ConfigError, StoreError, WeightsError
from vggfeat.forward import rerun
from vggfeat.forward.rerun import find_net
from vggfeat.samples import DataSet, Task
from vggfeat.similar import DescriptorSettings, extract_query, nearest, query_of_row, row_of_image
from vggfeat.store.layout import Block, Shape, Status
from vggfeat.store.reader import FeatureFile
from vggfeat.store.writer import FeatureWriter
from vggfeat.table import load_features
from vggfeat.weights import load_backbone, save_weights

ROWS, FAILED = 57, (5, 30)
SHAPE = Shape(scales=(256, 384), regions=("image", "box"), channels=7)


def write_file(path, features, failed=FAILED):
    rows = len(features)
    dataset = DataSet(
        name="manifest",
        task=Task.MULTI_LABEL,
        classes=("cat", "dog"),
        ids=tuple(f"id {row}" for row in range(rows)),
        paths=tuple(f"{row}.jpg" for row in range(rows)),
        labels=np.where(np.arange(rows)[:, None] % 3 == np.arange(2), 1, -1).astype(np.int8),
        boxes=np.tile([1.0, 2, 3, 4], (rows, 1)),
    )
    status = np.array([Status.FAILED if row in failed else Status.DONE for row in range(rows)], np.uint8)
    block = Block(
        features=np.where(np.isin(np.arange(rows), failed)[:, None, None, None], np.nan, features).astype(np.float32),
        status=status,
        reasons=tuple("truncated" if row in failed else "" for row in range(rows)),
        sizes=np.ones((rows, 2), np.int32),
        sha256=np.stack([np.frombuffer(hashlib.sha256(f"{row}".encode()).digest(), np.uint8) for row in range(rows)]),
    )
    shape = Shape(scales=SHAPE.scales, regions=SHAPE.regions, channels=features.shape[3])
    with FeatureWriter.open(path, dataset, {"net": "D"}, shape, shard_rows=rows) as parts:
        parts.append(0, block)
        parts.finish({"net": "D", "weights": "D.safetensors", "weights_sha256": "ab" * 32})
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    rng = np.random.default_rng(0)
    features = np.maximum(0, rng.standard_normal((ROWS, *SHAPE.dims)))
    features[40] = features[41] = features[12]  # Three images alike.
    features[8] = 0
    features[9] = features[3]  # But for one region, of which there is nothing.
    features[9, :, 1] = 0
    return write_file(tmp_path_factory.mktemp("similar") / "x.h5", features)


SETTINGS = [
    DescriptorSettings(join=join, normalisation=normalisation, regions=regions)
    for join in ("mean", "max", "stack")
    for normalisation in ("blocks", "whole", "none")
    for regions in (None, ("box",), ("box", "image"))
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: f"{one.join}-{one.normalisation}-{one.regions}")
def test_the_ranking_is_that_of_all_descriptors(stored, settings, monkeypatch):
    loaded = load_features(
        stored, settings.join, normalisation=settings.normalisation, regions=settings.regions, failed="drop"
    )
    descriptors, rows = loaded.descriptors.astype(np.float64), [row for row in range(ROWS) if row not in FAILED]
    lengths = np.linalg.norm(descriptors, axis=1)
    own = rows.index(3)
    cosines = descriptors @ descriptors[own] / np.maximum(lengths, 1e-30) / lengths[own]
    order = [place for place in np.argsort(-cosines, kind="stable") if place != own]
    monkeypatch.setattr(search, "SPARE", 3)
    for block in (1, 1000, search.BLOCK_BYTES):
        monkeypatch.setattr(search, "BLOCK_BYTES", block)
        with FeatureFile(stored) as file:
            row, query = query_of_row(file, "id 3", settings)
            found = nearest(file, query, settings, top=9, without=(row,))
        assert [one.row for one in found.nearest] == [rows[place] for place in order[:9]]
        np.testing.assert_allclose([one.cosine for one in found.nearest], cosines[order[:9]], atol=1e-6)
        assert (found.rows, found.failed) == (ROWS - len(FAILED) - 1, len(FAILED))


def test_equal_images_come_in_the_order_of_their_rows(stored):
    with FeatureFile(stored) as file:
        _, query = query_of_row(file, "id 12", DescriptorSettings())
        found = nearest(file, query, top=3)
    assert [one.row for one in found.nearest] == [12, 40, 41]
    assert all(one.cosine == pytest.approx(1, abs=1e-6) and one.cosine <= 1 for one in found.nearest)
    assert [one.id for one in found.nearest] == ["id 12", "id 40", "id 41"]
    assert found.nearest[0].path == "12.jpg"
    assert found.nearest[0].box == (1, 2, 3, 4)


def test_more_than_there_are_gives_all_and_no_failed_one(stored):
    with FeatureFile(stored) as file:
        row, query = query_of_row(file, "id 3", DescriptorSettings())
        found = nearest(file, query, top=1000, without=(row,))
    assert sorted(one.row for one in found.nearest) == sorted(set(range(ROWS)) - {*FAILED, 3})
    assert next(one for one in found.nearest if one.row == 8).cosine == 0, "an image without any feature is like none"


def test_only_a_block_of_rows_is_in_memory_at_a_time(stored, monkeypatch):
    taken, read = [], FeatureFile.read

    def spy(file, rows=None):
        taken.append(len(rows))
        return read(file, rows)

    monkeypatch.setattr(FeatureFile, "read", spy)
    monkeypatch.setattr(search, "BLOCK_BYTES", 10 * SHAPE.row_bytes)
    monkeypatch.setattr(search, "SPARE", 2)
    with FeatureFile(stored) as file:
        _, query = query_of_row(file, "id 3", DescriptorSettings())
        nearest(file, query, top=4)
    assert max(taken) == 10
    assert taken[-1] == 6, "those kept for the exact ranking"


def test_what_is_refused(stored, tmp_path):
    with FeatureFile(stored) as file:
        with pytest.raises(StoreError, match="expected a sample 'id 99', found none of this name, nor an image file"):
            query_of_row(file, "id 99", DescriptorSettings())
        with pytest.raises(StoreError, match="expected features of 'id 5', found none, because: truncated"):
            query_of_row(file, "id 5", DescriptorSettings())
        with pytest.raises(ConfigError, match="regions: expected some of image, box"):
            query_of_row(file, "id 3", DescriptorSettings(regions=("face",)))
        for query in (np.zeros(14, np.float32), np.full(14, np.nan, np.float32)):
            with pytest.raises(ConfigError, match="it has no direction"):
                nearest(file, query)
        with pytest.raises(ConfigError, match="expected a descriptor of 14 values"):
            nearest(file, np.ones(15, np.float32))
        with pytest.raises(ConfigError, match="top: expected a whole number from 1, found 0"):
            nearest(file, np.ones(14, np.float32), top=0)


def test_a_damaged_file_gives_no_answer(stored, tmp_path):
    data = bytearray(stored.read_bytes())
    with FeatureFile(stored) as file:
        place = file.features.id.get_offset() + 4 * 10
    data[place] ^= 1
    (tmp_path / "x.h5").write_bytes(data)
    with FeatureFile(tmp_path / "x.h5") as file, pytest.raises(StoreError, match="expected a sound feature file"):
        nearest(file, np.ones(14, np.float32))


# --- from images to pages, with a net


NET = "random:A:0:0.03125"


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """Eight images in two folders, their features, and one of them once more as a PNG."""
    root = tmp_path_factory.mktemp("extracted")
    rng = np.random.default_rng(2)
    for row in range(8):
        target = root / "p" / ("<b>cat" if row % 2 else "dog") / f"{row}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((240, 230), Image.Resampling.NEAREST).save(target)
    words = ["extract", "--dataset", "folder", "--root", str(root / "p"), "--weights", NET, "--scales", "224"]
    assert run([*words, "--out", str(root / "x.h5"), "--device", "cpu", "--workers", "0", "--quiet"]) == 0
    Image.open(root / "p" / "dog" / "2.png").save(root / "again.bmp")
    return root


def told(capsys, words):
    assert run(words) == 0
    return json.loads(capsys.readouterr().out)


def test_an_image_finds_itself_by_its_name_its_bytes_and_its_pixels(extracted, capsys):
    file, again = str(extracted / "x.h5"), extracted / "again.bmp"
    by_id = told(capsys, ["similar", file, "--query", "dog/2.png", "--json"])
    by_bytes = told(capsys, ["similar", file, "--query", str(extracted / "p" / "dog" / "2.png"), "--json"])
    assert by_bytes["query_id"] == by_id["query_id"] == "dog/2.png"
    assert by_bytes["nearest"] == by_id["nearest"]
    assert "dog/2.png" not in [one["id"] for one in by_id["nearest"]]
    assert (by_id["rows"], len(by_id["nearest"])) == (7, 7)
    by_pixels = told(capsys, ["similar", file, "--query", str(again), "--weights", NET, "--top", "3", "--json"])
    assert by_pixels["query_id"] is None
    assert by_pixels["nearest"][0]["id"] == "dog/2.png"
    assert by_pixels["nearest"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert [one["id"] for one in by_pixels["nearest"][1:]] == [one["id"] for one in by_id["nearest"][:2]]
    assert list(by_id) == [
        "file", "query", "query_id", "measure", "join", "normalisation", "regions", "rows", "failed", "nearest",
    ]  # fmt: skip
    assert list(by_id["nearest"][0]) == ["rank", "id", "path", "cosine", "classes", "box"]


def test_the_list_is_plain(extracted, capsys):
    assert run(["similar", str(extracted / "x.h5"), "--query", "dog/2.png", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "cosine", "id", "classes"]
    assert len(lines) == 1 + 2 + 1
    assert lines[3] == "7 images compared"


def test_the_page_shows_them_and_escapes_their_names(extracted, tmp_path, capsys):
    from page_runs import Parsed

    page = tmp_path / "new" / "like.html"
    words = ["similar", str(extracted / "x.h5"), "--query", str(extracted / "again.bmp"), "--out", str(page)]
    assert run([*words, "--root", str(extracted / "p"), "--weights", NET, "--device", "cpu"]) == 0
    parsed = Parsed(page.read_bytes())
    assert len(parsed.attributes("img", "src")) == 1 + 8
    assert "b" not in parsed.tags()
    assert [text for text in parsed.texts("span") if "<b>cat/" in text]
    assert capsys.readouterr().out.endswith(f"{page}\n")
    assert run([*words[:4], "--root", str(extracted / "p")]) == 2


def test_the_net_is_found_by_its_digest_or_refused(extracted, tmp_path, monkeypatch):
    monkeypatch.setenv("VGGFEAT_WEIGHTS", str(tmp_path))
    with FeatureFile(extracted / "x.h5") as file:
        assert find_net(str(file.path), file.provenance, NET).sha256 == file.provenance["weights_sha256"]
        other = (
            r"^random:A:1:0.03125: expected the weights that .*x\.h5 was made with, random:A:0:0.03125 \(net A\), fo"
        )
        with pytest.raises(WeightsError, match=other) as raised:
            find_net(str(file.path), file.provenance, "random:A:1:0.03125")
        assert file.provenance["weights_sha256"][:8] not in str(raised.value), "names say more than digits"
    model = load_backbone(NET).model
    save_weights(tmp_path / "other-name.safetensors", model, mean=(1, 2, 3))
    save_weights(tmp_path / "another.safetensors", model, mean=(1, 2, 4))
    sha = hashlib.sha256((tmp_path / "other-name.safetensors").read_bytes()).hexdigest()
    with FeatureFile(extracted / "x.h5") as file:
        file.provenance = file.provenance | {"weights": "gone.safetensors", "weights_sha256": sha}
        assert find_net(str(file.path), file.provenance).mean == (1, 2, 3)
        file.provenance = file.provenance | {"weights_sha256": "00" * 32}
        with pytest.raises(WeightsError, match="found no file of these bytes; give them with --weights"):
            find_net(str(file.path), file.provenance)
        file.provenance = file.provenance | {"weights_sha256": load_backbone("small").sha256, "weights": "small"}
        assert find_net(str(file.path), file.provenance).source == "small"


@pytest.mark.parametrize("named", ["random:A:0:0.03125", "random:E:0:3", "/dev/zero", "{tmp}/x.safetensors", "../x",
                                   "{tmp}/pipe", "pipe", "x\0", "", ".", "small\x1b[31m"])  # fmt: skip
def test_no_net_that_a_file_names_is_built_or_opened_before_its_bytes_are_known(
    extracted, tmp_path, monkeypatch, named
):
    from vggfeat.weights import load

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VGGFEAT_WEIGHTS", raising=False)
    for name in ("random_backbone", "load_file"):
        monkeypatch.setattr(load, name, lambda *_: pytest.fail("loaded"))
    hashed, hash_file = [], rerun.hash_file
    monkeypatch.setattr(rerun, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    with FeatureFile(extracted / "x.h5") as file:
        file.provenance = file.provenance | {"weights": named.format(tmp=tmp_path)}
        with pytest.raises(WeightsError, match="give them with --weights"):
            find_net(str(file.path), file.provenance)
    assert [path.name for path in hashed] == ["small.safetensors"], "the net of the package alone was looked at"


def test_a_file_in_a_precision_that_the_device_has_not_is_asked_in_float32(extracted):
    image, backbone = extracted / "again.bmp", load_backbone(NET)
    with FeatureFile(extracted / "x.h5") as file:
        expected = extract_query(file, image, backbone, device="cpu")
        file.provenance = file.provenance | {"precision": "tf32"}
        np.testing.assert_array_equal(extract_query(file, image, backbone, device="cpu"), expected)


def test_an_image_alone_has_no_box(stored, extracted):
    with FeatureFile(stored) as file, pytest.raises(ConfigError, match="an image alone has no box"):
        extract_query(file, extracted / "again.bmp", load_backbone(NET))


def test_what_is_no_image_or_not_to_be_read_is_refused(stored, extracted, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    with FeatureFile(extracted / "x.h5") as file:
        with pytest.raises(StoreError, match=r"x\.jpg: expected an image to look for, found: unrecognised: expected"):
            extract_query(file, tmp_path / "x.jpg", load_backbone(NET))
        with pytest.raises(StoreError, match="expected an image, found: Is a directory"):
            row_of_image(file, tmp_path)
    with FeatureFile(stored) as file, pytest.raises(StoreError, match="one that doesn't \\('layer'\\)"):
        extract_query(file, extracted / "again.bmp", load_backbone(NET), regions=("image",))
