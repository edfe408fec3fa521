"""An index: the nearest images of the exact search, from a few rows read, and refused where it is of others."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from feature_files import data_set, write_file
from sharded_files import make_run
from vggfeat import similar as search
from vggfeat.cli import run
from vggfeat.errors import ConfigError, StoreError
from vggfeat.similar import DescriptorSettings, nearest, nearest_by_index, open_index, query_of_row
from vggfeat.store import sharded
from vggfeat.store.reader import FeatureFile
from vggfeat.store.sharded import open_features

pytest.importorskip("faiss")

ROWS, FAILED = 1500, (5, 30)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Features of 300 values that lie near 40 directions, as those of nets do."""
    rng = np.random.default_rng(0)
    places = rng.standard_normal((ROWS, 2, 2, 40)) @ rng.standard_normal((40, 300))
    features = np.maximum(0, places + rng.standard_normal(places.shape))
    labels = np.where(np.arange(ROWS)[:, None] % 3 == np.arange(2), 1, -1).astype(np.int8)
    data = data_set(tuple(f"id {row}" for row in range(ROWS)), labels, splits={})
    return write_file(
        tmp_path_factory.mktemp("indexed") / "x.h5", features, data, failed=[f"id {row}" for row in FAILED]
    )


@pytest.mark.parametrize("settings", [
    DescriptorSettings(), DescriptorSettings(join="stack", normalisation="none"), DescriptorSettings(regions=("box",)),
])  # fmt: skip
def test_the_nearest_are_those_of_the_exact_search_with_the_same_cosines(stored, settings, tmp_path, monkeypatch):
    read, taken = FeatureFile.read, []
    with FeatureFile(stored) as file:
        open_index(file, tmp_path / "i", settings)
        index = open_index(file, tmp_path / "i", settings)  # As it was saved.
        for row in range(100, 115):
            number, query = query_of_row(file, f"id {row}", settings)
            exact = nearest(file, query, settings, top=20, without=(number,))
            with monkeypatch.context() as patch:
                patch.setattr(FeatureFile, "read", lambda file, rows=None: taken.append(len(rows)) or read(file, rows))
                found = nearest_by_index(file, query, index, settings, top=20, without=(number,))
            assert [(one.row, one.id) for one in found.nearest] == [(one.row, one.id) for one in exact.nearest]
            np.testing.assert_allclose(
                [one.cosine for one in found.nearest], [one.cosine for one in exact.nearest], atol=1e-6
            )
            assert (found.rows, found.failed) == (exact.rows, exact.failed) == (ROWS - 3, 2)
    assert max(taken) <= 20 + search.SPARE + 1


def test_a_row_that_failed_is_never_found(stored, tmp_path):
    with FeatureFile(stored) as file:
        index = open_index(file, tmp_path / "i", DescriptorSettings())
        _, query = query_of_row(file, "id 3", DescriptorSettings())
        found = nearest_by_index(file, query, index, top=ROWS)
    assert sorted(one.row for one in found.nearest) == sorted(set(range(ROWS)) - set(FAILED))


def test_of_a_run_only_the_shards_of_candidates_are_read(tmp_path, monkeypatch):
    folder, opened = make_run(tmp_path / "run"), []
    monkeypatch.setattr(search, "SPARE", 1)
    with open_features(folder) as features:
        open_index(features, tmp_path / "i", DescriptorSettings())
    real = sharded.open_shard
    monkeypatch.setattr(sharded, "open_shard", lambda plan, shard: opened.append(shard) or real(plan, shard))
    monkeypatch.setattr(sharded, "read_shard", lambda *_: pytest.fail("all shards are read"))
    with open_features(folder) as features:
        index = open_index(features, tmp_path / "i", DescriptorSettings())
        _, query = query_of_row(features, "002.png", DescriptorSettings())
        found = nearest_by_index(features, query, index, top=2)
    assert found.nearest[0].id == "002.png"
    assert (found.rows, found.failed) == (22, 1)
    assert len(set(opened)) <= 3


def test_an_index_of_others_a_damaged_one_and_another_file_are_refused(stored, tmp_path):
    place = tmp_path / "i"
    with FeatureFile(stored) as file, FeatureFile(write_file(tmp_path / "y.h5")) as other:
        open_index(file, place, DescriptorSettings())
        with pytest.raises(StoreError, match="found another join; delete it"):
            open_index(file, place, DescriptorSettings(join="max"))
        with pytest.raises(StoreError, match="found another features, regions, rows; delete it"):
            open_index(other, place, DescriptorSettings())
        good = place.read_bytes()
        for at in (len(good) // 2, len(good) - 1):
            place.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(StoreError, match="fit their SHA-256, found damage; delete it"):
                open_index(file, place, DescriptorSettings())
        for content in (b"", b"[]\n", b"{}\n", b"\xff\n", good[5:], b'{"format": "vggfeat-search", "version": 1}\n'):
            place.write_bytes(content)
            with pytest.raises(StoreError, match="expected an index of vggfeat similar, found another file"):
                open_index(file, place, DescriptorSettings())


def test_the_command_makes_the_index_once_and_says_what_the_exact_search_says(stored, tmp_path, capsys):
    words = ["similar", str(stored), "--query", "id 77", "--json"]
    indexed = [*words, "--index", str(tmp_path / "i")]
    assert run(words) == 0
    exact = json.loads(capsys.readouterr().out)
    assert run(indexed) == 0
    made = (tmp_path / "i").stat().st_mtime_ns
    assert json.loads(capsys.readouterr().out) == exact
    assert run(indexed) == 0
    assert json.loads(capsys.readouterr().out) == exact
    assert (tmp_path / "i").stat().st_mtime_ns == made
    before = stored.read_bytes()
    assert run([*words, "--index", str(stored)]) == 2
    assert stored.read_bytes() == before


def test_the_command_checks_the_place_of_an_index_before_it_reads_the_features(stored, tmp_path, capsys):
    """The page took the place of the index that had just been made; without its folder, all was read for nothing."""
    words = ["similar", str(stored), "--query", "id 77", "--index"]
    both = str(tmp_path / "both")
    assert run([*words, both, "--out", both]) == 2
    assert f"--index: expected another file than --out, found {both} for both" in capsys.readouterr().err
    assert not Path(both).exists()
    assert run([*words, str(tmp_path)]) == 6
    assert "choose another --index" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run([*words, str(tmp_path / "file" / "i")]) == 6
    assert f"{tmp_path / 'file'}: expected a folder to write into" in capsys.readouterr().err
    assert run([*words, str(tmp_path / "new" / "i")]) == 0
    assert (tmp_path / "new" / "i").exists()


def test_without_its_library_an_index_is_refused_with_what_to_install(stored, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with FeatureFile(stored) as file, pytest.raises(ConfigError, match=r"install .PATH_OF_CLONE\[search\]"):
        open_index(file, tmp_path / "i", DescriptorSettings())
    assert not (tmp_path / "i").exists()
