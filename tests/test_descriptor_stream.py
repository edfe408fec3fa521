"""Descriptors read block by block are those of the table, and a protocol on them comes to the same."""

import json
from dataclasses import replace

import numpy as np
import pytest

from feature_files import data_set, write_file
from vggfeat import descriptor_stream
from vggfeat.cli import run
from vggfeat.descriptor_stream import score, stream_descriptors, table_bytes
from vggfeat.errors import ConfigError, StoreError
from vggfeat.protocols import ProtocolSettings, run_protocol, spread
from vggfeat.samples import Task
from vggfeat.store.reader import FeatureFile
from vggfeat.svm import SvmSettings, arrays, blocks
from vggfeat.table import read_descriptors

N, K = 120, 3


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two feature files of the same samples in different order, each with an image that failed."""
    monkeypatch.setattr(blocks, "MOST_ROWS", 20)
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((N, K)) < 0.4, 1, -1)
    labels[5, 1] = 0
    ids = tuple(f"image-{row:03}" for row in range(N))
    split = rng.permutation(N)
    splits = {
        name: np.sort(part) for name, part in zip(("train", "val", "test"), np.split(split, [50, 85]), strict=True)
    }
    signal = (labels > 0) @ rng.standard_normal((K, 40))
    features = np.maximum(signal + rng.standard_normal((N, 40)), 0).reshape(N, 2, 2, 10)
    first = data_set(ids, labels, tuple("abc"), splits)
    order = rng.permutation(N)
    moved = {name: np.sort(np.argsort(order)[rows]) for name, rows in splits.items()}
    other = data_set(tuple(ids[row] for row in order), labels[order], tuple("abc"), moved)
    return [
        write_file(tmp_path / "d.h5", features, first, failed={ids[3]}),
        write_file(tmp_path / "e.h5", features[order] ** 2, other, failed={ids[7], ids[60]}, net="E"),
    ]


def whole(stream):
    return np.concatenate([stream.descriptors.read(number) for number in range(len(stream.descriptors.ends))])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("join", "normalisation", "regions"), [("mean", "blocks", None), ("stack", "whole", ["box"])])
def test_blocks_are_the_rows_of_the_table(files, count, join, normalisation, regions):
    options = {"join": join, "normalisation": normalisation, "regions": regions}
    table = read_descriptors(files[:count], **options)
    with stream_descriptors(files[:count], **options) as stream:
        np.testing.assert_array_equal(whole(stream), table.descriptors)
        assert len(stream.descriptors.ends) > 5
        assert stream.ok.tolist() == table.ok.tolist()
        assert (stream.settings, stream.reasons) == (table.settings, table.reasons)
        assert stream.dataset.groups == table.dataset.groups
    assert table_bytes(files[:count], join=join, regions=regions) == table.descriptors.nbytes


def exact(solver):
    svm = SvmSettings(solver=solver, tolerance=1e-10, jobs=1)
    return ProtocolSettings(grid=(0.1, 1.0, 10.0), svm=svm, fit_all=True, learning_curve=True)


@pytest.mark.parametrize("protocol", ["given-splits", "k-fold"])
def test_a_protocol_comes_to_the_same_as_in_memory(files, protocol, monkeypatch):
    monkeypatch.setattr(spread, "SHARES", (1 / 2,))  # Each share is five fits and more.
    expected = run_protocol(read_descriptors(files), replace(exact("newton"), protocol=protocol))
    with stream_descriptors(files) as stream:
        found = run_protocol(stream, replace(exact("stream"), protocol=protocol))
    assert found.headline == pytest.approx(expected.headline, abs=1e-9)
    assert found.notes == expected.notes
    for mine, theirs in zip(found.runs, expected.runs, strict=True):
        np.testing.assert_array_equal(mine.choice.C, theirs.choice.C)
        np.testing.assert_allclose(mine.choice.curve, theirs.choice.curve, atol=1e-9)
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-3)
        assert mine.model.converged.all()
    assert found.learning_curve.samples == expected.learning_curve.samples
    np.testing.assert_allclose(found.learning_curve.values[0], expected.learning_curve.values[0], atol=1e-9)
    np.testing.assert_allclose(found.final.model.coef, expected.final.model.coef, atol=1e-3)


def test_scores_of_rows_that_failed_are_below_all_others(files):
    table = read_descriptors(files)
    model = run_protocol(table, ProtocolSettings(grid=(1.0,))).runs[0].model
    rows = np.arange(2, 100, 3)
    with stream_descriptors(files) as stream:
        found = score(stream, rows, model, jobs=2)
    np.testing.assert_allclose(found, score(table, rows, model), rtol=1e-12)
    assert np.isneginf(found[(rows == 60)]).all()


def test_a_table_solver_refuses_a_stream(files):
    with stream_descriptors(files) as stream, pytest.raises(ConfigError, match="expected stream"):
        run_protocol(stream)


def test_a_damaged_file_is_refused_before_it_is_streamed(files):
    content = files[0].read_bytes()
    at = content.index(np.float32(read_first(files[0])).tobytes())
    files[0].write_bytes(content[:at] + b"\x01\x02\x03\x04" + content[at + 4 :])
    with pytest.raises(StoreError, match="SHA-256"), stream_descriptors(files):
        pass


def read_first(path):
    with FeatureFile(path) as file:
        values = file.read(slice(0, 1)).ravel()
    return values[values > 0][0]


# --- the command


def results(out):
    return json.loads((out / "results.json").read_text())


def test_the_command_streams_where_it_is_told_to(files, tmp_path, capsys):
    words = ["svm", *map(str, files), "--grid", "0.1,1,10", "--quiet"]
    for solver in ("newton", "stream"):
        assert run([*words, "--solver", solver, "--out", str(tmp_path / solver)]) == 0
    assert run([*words, "--solver", "stream", "--jobs", "2", "--out", str(tmp_path / "jobs")]) == 0
    capsys.readouterr()
    newton, stream, jobs = (results(tmp_path / name) for name in ("newton", "stream", "jobs"))
    assert stream["settings"]["protocol"]["svm"]["solver"] == "stream"
    assert [row["C"] for row in stream["classes"]] == [row["C"] for row in newton["classes"]]
    assert stream["headline"] == pytest.approx(newton["headline"], abs=1e-3)
    assert stream["classes"] == jobs["classes"]
    assert {path.name for path in (tmp_path / "stream").iterdir()} == {
        path.name for path in (tmp_path / "newton").iterdir()
    }


def test_the_command_streams_where_the_table_would_not_fit_and_says_so(files, tmp_path, capsys, monkeypatch):
    words = ["svm", *map(str, files), "--grid", "1", "--quiet", "--out"]
    monkeypatch.setattr(descriptor_stream, "table_bytes", lambda *_, **__: 2**40)
    for free, solver in ((2**41, "newton"), (2**41 - 1, "stream"), (None, "newton")):
        monkeypatch.setattr(arrays, "free_memory", lambda free=free: free)
        assert run([*words, str(tmp_path / "out")]) == 0
        assert ("read again and again by the solver stream" in capsys.readouterr().err) == (solver == "stream")
        assert results(tmp_path / "out")["settings"]["protocol"]["svm"]["solver"] == solver


def test_single_label_sets_stream_too(tmp_path):
    rng, numbers = np.random.default_rng(0), np.arange(60) % 3
    labels = np.where(np.eye(3)[numbers] == 1, 1, -1)
    dataset = data_set(tuple(f"i{row}" for row in range(60)), labels, tuple("abc"), {}, task=Task.SINGLE_LABEL)
    features = np.eye(3)[numbers][:, None, None] + 0.5 * rng.random((60, 1, 1, 3))
    path = write_file(tmp_path / "f.h5", features, dataset)
    with stream_descriptors(path) as stream:
        found = run_protocol(stream, exact("stream"))
    assert found.metric == "recall"
    assert found.headline == run_protocol(read_descriptors(path), exact("newton")).headline
