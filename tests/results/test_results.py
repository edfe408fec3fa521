"""Results in every form they are handed out in: text, JSON, scores, archives for the server, images."""

import errno
import gzip
import io
import json
import os
import re
import tarfile
import time
import unicodedata
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vggfeat.datasets.catalogue import DATASETS
from vggfeat.errors import FitError, StoreError
from vggfeat.protocols.results import METRICS, Choice, Result, Run, Submission
from vggfeat.protocols.rules import ProtocolSettings, run_protocol
from vggfeat.results import record
from vggfeat.results.plots import MOST_BARS, draw
from vggfeat.results.svm import (
    align,
    headline,
    paper_numbers,
    results_json,
    scores_npz,
    server_archive,
    svm_record,
    write_results,
)
from vggfeat.runtime.durable import Files
from vggfeat.samples import DataSet, Task
from vggfeat.svm import LinearModel, SvmSettings, load_model
from vggfeat.table import DescriptorTable

GRID = np.array([0.25, 0.5, 1.0, 2.0])


def text_table(result, width=None):
    return svm_record(result).text(width=width)


def make_run(values, name="test", *, secondary=None, costs=None, converged=True, grid=GRID, curve=None, **changes):
    """One run; `values` are those of the classes, by the headline's key."""
    (key, own), *_ = values.items()
    count = len(own)
    given = {key: np.asarray(own, float) for key, own in values.items()}
    means = {key: float(np.nanmean(own)) if np.isfinite(own).any() else float("nan") for key, own in given.items()}
    columns = 1 if key == "recall" else count
    curve = np.linspace(0.2, 0.9, len(grid))[:, None] * np.ones(columns) if curve is None else curve
    ones = np.ones(count, dtype=np.int64)
    fields = {
        "name": name,
        "plan": {"chosen": "trained on train, measured on val", "fitted": "train + val", "tested": name},
        "choice": Choice(
            C=np.broadcast_to(grid[-1] if costs is None else costs, count).astype(float),
            grid=grid,
            curve=curve,
            converged=np.ones((len(grid), count), dtype=bool),
            gap=np.full((len(grid), count), 2.5e-5),
        ),
        "model": make_model(count, converged),
        "train_positives": 10 * ones,
        "train_negatives": 20 * ones,
        "test_positives": 5 * ones,
        "test_negatives": 6 * ones,
        "values": given,
        "means": means | (secondary or {}),
        "chance": 0.125,
        "rows": np.array([1, 3]),
        "scores": np.zeros((2, count)),
        "truth": np.ones((2, count), np.int8),
    }
    return Run(**(fields | changes))


def make_model(count, converged=True):
    converged = np.broadcast_to(converged, count)
    zeros = np.zeros(count)
    gap = np.where(converged, 1e-6, 0.03)
    return LinearModel(coef=zeros[:, None], intercept=zeros, C=zeros + 1, converged=converged, gap=gap)


def make_result(*runs, classes=None, name="manifest", samples=7, splits=None, files=(), **changes):
    metric, values = next(iter(runs[0].values.items()))
    fields = {
        "protocol": "given-splits",
        "description": "What was done.",
        "metric": metric,
        "dataset": {"name": name, "samples": samples, "splits": splits or {}},
        "classes": tuple(classes or (f"class {k}" for k in range(len(values)))),
        "runs": runs,
        "settings": {"protocol": {"seed": 0}, "features": {"join": "mean", "files": list(files)}},
        "seconds": {"total": 1.5},
    }
    return Result(**(fields | changes))


def some_result(count=3, **changes):
    values = np.linspace(0.9, 0.3, count)
    return make_result(make_run({"ap-area": values, "ap-11-point": values / 2}), **changes)


# --- the table


def test_the_table_line_by_line():
    run = make_run(
        {"ap-11-point": [0.5, 0.98765, np.nan], "ap-area": [0.25, 1.0, np.nan]},
        costs=[0.25, 1, 0.5],
        converged=[True, False, True],
        train_positives=np.array([8, 120, 3]),
    )
    result = make_result(run, classes=("cat", "dining table", "x"), name="voc2007", notes=("Two things.", "Three."))
    expected = """
class         train pos  test pos     C  ap-11-point %  ap-area %
cat                   8         5  0.25           50.0       25.0
dining table        120         5    1!           98.8      100.0
x                     3         5   0.5              -          -

! NOT CONVERGED: 1 of 3 SVMs of the fit; their numbers may not be final
largest relative duality gap: 2.5e-05 in the choice of C, 3.0e-02 in the fit
note: Two things.
note: Three.
voc2007: mean average precision, 11-point: 74.4 % on test (chance 12.5 %)
  mean average precision, area: 62.5 %
"""
    assert text_table(result) == expected.strip("\n")


def test_the_table_of_several_runs():
    runs = [
        make_run({"recall": [0.5, 1.0]}, "split 1", secondary={"accuracy": 0.7}, costs=0.25),
        make_run(
            {"recall": [0.7, 1.0]}, "split 2", secondary={"accuracy": 0.8}, costs=1, test_positives=np.array([9, 4])
        ),
        make_run(
            {"recall": [0.9, np.nan]}, "split 3", secondary={"accuracy": 0.9}, costs=0.25, converged=[True, False]
        ),
    ]
    # Means of the runs: 0.75, 0.85, 0.9; mean 0.8333, sample deviation 0.0764. Accuracy: 0.8, deviation 0.1.
    expected = """
class    train pos  test pos        C  recall %
class 0         10       5-9   0.25/1      70.0
class 1         10       4-5  0.25/1!     100.0

! NOT CONVERGED: 1 of 6 SVMs of the fit; their numbers may not be final
largest relative duality gap: 2.5e-05 in the choice of C, 3.0e-02 in the fit
manifest: mean class recall: 83.3 % +- 7.6 over 3 runs (chance 12.5 %)
  accuracy over all test samples: 80.0 % +- 10.0
"""
    assert text_table(make_result(*runs)) == expected.strip("\n")


@pytest.mark.parametrize("key", ["ap-11-point", "ap-area", "recall"])
def test_the_headline_names_its_measure_and_never_says_map(key):
    result = make_result(make_run({key: [0.5]}))
    assert headline(result) == f"manifest: {METRICS[key]}: 50.0 % on test (chance 12.5 %)"
    assert "mAP" not in text_table(result)


def test_where_there_is_no_value_at_all():
    result = make_result(make_run({"ap-area": [np.nan]}, chance=float("nan")))
    assert headline(result) == "manifest: mean average precision, area: - % on test (chance - %)"


def test_columns_stand_straight_whatever_the_names_and_nothing_wraps():
    names = ("a", "b" * 300, "猫猫", "e\u0301e", "new\nline\x1b[31m", "$x_1$", "raw-\udcff")
    note = "word " * 100
    result = make_result(make_run({"recall": np.linspace(0, 1, 7)}), classes=names, notes=(note, "two\nlines"))
    lines = text_table(result).split("\n")
    assert len(lines) == 1 + 7 + 1 + 1 + 2 + 1
    assert lines[10] == f"note: {note}"
    assert lines[11] == r"note: two\nlines"
    assert lines[5].startswith(r"new\nline\x1b[31m ")
    assert lines[7].startswith(r"raw-\xff ")
    text_table(result).encode()

    def columns(line):
        return sum({"W": 2, "F": 2}.get(unicodedata.east_asian_width(char), 1) for char in line.replace("\u0301", ""))

    assert len({columns(line) for line in lines[:8]}) == 1
    assert columns(lines[0]) == 300 + len("  train pos  test pos  C  recall %")


def test_align():
    assert align([["a", "1", "22"], ["bbb", "333", "4"]], left=1) == ["a      1  22", "bbb  333   4"]
    assert align([["a", "1"], ["bbb", "333"]], left=2) == ["a    1", "bbb  333"]


# --- the paper

PAPER = {name: record.paper for name, record in DATASETS.items() if record.paper}


def test_numbers_are_those_of_tables_11_and_12():
    table_11 = """
        D    89.3  89.0  91.8+-1.0  85.0+-0.2
        E    89.3  89.0  92.3+-0.5  85.1+-0.3
        D&E  89.7  89.3  92.7+-0.5  86.2+-0.3
    """
    table_12 = {("image",): "79.2", ("image", "box"): "84.0"}
    expected = {name: {} for name in ("voc2007", "voc2012", "caltech101", "caltech256")}
    for line in table_11.strip().splitlines():
        nets, *numbers = line.split()
        for name, number in zip(expected, numbers, strict=True):
            expected[name][tuple(nets.split("&")), ("image",)] = number.replace("+-", " +- ")
    expected["voc2012-action"] = {(("D", "E"), regions): number for regions, number in table_12.items()}
    found = {name: {(row.nets, row.regions): row.text for row in paper.rows} for name, paper in PAPER.items()}
    assert found == expected
    assert {name: paper.table for name, paper in PAPER.items()} == dict.fromkeys(PAPER, 11) | {"voc2012-action": 12}
    measured = {
        name: re.match("mean (average precision|class recall) ", paper.measure) for name, paper in PAPER.items()
    }
    assert {name for name, match in measured.items() if match[1] == "class recall"} == {"caltech101", "caltech256"}


OFFICIAL = {
    "voc2007": {"samples": 9963, "splits": {"train": 2501, "val": 2510, "test": 4952}},
    "voc2012": {"samples": 22531, "splits": {"train": 5717, "val": 5823, "test": 10991}},
    "voc2012-action": {"samples": 6278, "splits": {"train": 3134, "val": 3144}},
    "caltech101": {"samples": 9144, "splits": {"train-1": 5}},
    "caltech256": {"samples": 30607, "splits": {}},
}


def feature_file(net="D", regions=("image",), scales=(256, 384, 512, 640, 768), **provenance):
    """What the settings say of a feature file, by default one of the authors' nets, as Appendix B has it for VOC."""
    published = {"D": "vgg16-caffe", "E": "vgg19-keras"}.get(net)
    made = {"net": net, "width": 1.0, "trained": True, "layer": "fc7", "imported": {"published": published}}
    return {"regions": list(regions), "scales": list(scales), "provenance": made | provenance}


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_stands_beside_its_own_data_sets_only(name):
    result = some_result(name=name, **OFFICIAL[name])
    assert tuple(row for row, _ in paper_numbers(result)) == PAPER[name].rows
    assert f"VGG paper, {PAPER[name].title}:\n" in text_table(result)
    for other in (
        some_result(name="manifest", **OFFICIAL[name]),
        some_result(name=name, samples=60, splits={"train": 20, "val": 20, "test": 20}),
        some_result(name=name, samples=OFFICIAL[name]["samples"] + 1, splits={"train": 5717 + 1, "val": 5823}),
    ):
        assert paper_numbers(other) == []
        assert "paper" not in text_table(other)
        assert results_json(other)["paper"] == []


def test_the_official_numbers_are_those_of_the_data_sets():
    for name, sizes in OFFICIAL.items():
        counts = {count.split: count.expected for count in DATASETS[name].counts if count.what == DATASETS[name].unit}
        if "all" in counts:
            assert counts["all"] == sizes["samples"]
        else:
            assert sizes["splits"].items() <= counts.items()


def in_their_way(name, *files, protocol=None, **features):
    """A result on an official data set, made as the paper's unless something else is given."""
    result = some_result(name=name, **OFFICIAL[name], protocol=protocol or DATASETS[name].protocol)
    features = {"join": DATASETS[name].join, "normalisation": "blocks", "files": list(files)} | features
    return replace(result, settings=result.settings | {"features": features})


def marked(*files, name="voc2012-action", **changes):
    result = in_their_way(name, *files, **changes)
    lines = [line for line in text_table(result).split("\n") if "<- these nets and regions" in line]
    same = [row for row in results_json(result)["paper"] if row["same_nets_and_regions"]]
    assert len(lines) == len(same) <= 1
    return lines[0].partition(" %")[0].split()[-1] if lines else None


BOTH = ("image", "box")


@pytest.mark.parametrize(
    ("files", "number"),
    [
        ([feature_file("D"), feature_file("E")], "79.2"),
        ([feature_file("E"), feature_file("D")], "79.2"),
        ([feature_file("D", BOTH), feature_file("E", BOTH)], "84.0"),
        ([feature_file("D", ("box", "image")), feature_file("E", BOTH)], "84.0"),
        ([feature_file("D", BOTH), feature_file("E")], None),
        ([feature_file("D")], None),
        ([feature_file("D"), feature_file("D")], None),
        ([feature_file("D"), feature_file("E"), feature_file("A")], None),
        ([feature_file("D"), feature_file("E"), feature_file("E")], None),
        ([feature_file("D", width=0.25), feature_file("E")], None),
        ([feature_file("D", trained=False), feature_file("E")], None),
        ([feature_file("D", imported={"published": "vgg16-torchvision"}), feature_file("E")], None),
        ([feature_file("D", imported={"published": "vgg16-timm"}), feature_file("E")], None),
        ([feature_file("D", imported={"published": "vgg19-caffe"}), feature_file("E")], None),
        ([feature_file("D", imported={"format": "Caffe"}), feature_file("E")], None),
        ([feature_file("D", imported=None), feature_file("E")], None),
        ([feature_file("D", imported={"published": "vgg16-matconvnet"}), feature_file("E")], "79.2"),
        ([feature_file("D", layer="fc6"), feature_file("E")], None),
        ([feature_file("D", layer="pool5"), feature_file("E", layer="pool5")], None),
        ([feature_file("D", scales=(256, 384, 512)), feature_file("E")], None),
        ([feature_file("D", scales=(256,)), feature_file("E", scales=(256,))], None),
        ([{"regions": ["image"], "scales": [256], "provenance": {}}] * 2, None),
        ([], None),
    ],
)
def test_the_row_of_the_same_nets_and_regions_is_marked(files, number):
    assert marked(*files) == number


def test_a_single_net_is_marked_in_its_own_row():
    theirs = feature_file("E", scales=(256, 384, 512))
    assert marked(theirs, name="caltech101") == "0.5"
    result = in_their_way("caltech101", theirs)
    assert text_table(result).split("\n")[-3:] == [
        "  D, image:      91.8 +- 1.0 %",
        "  E, image:      92.3 +- 0.5 %  <- these nets and regions",
        "  D & E, image:  92.7 +- 0.5 %",
    ]


@pytest.mark.parametrize(
    "changes", [{"join": "max"}, {"join": "stack"}, {"normalisation": "none"}, {"protocol": "k-fold"}], ids=str
)
def test_another_join_normalisation_or_protocol_is_not_the_papers(changes):
    assert marked(feature_file("D"), feature_file("E")) == "79.2"
    assert marked(feature_file("D"), feature_file("E"), **changes) is None


def test_the_papers_join_of_caltech_is_another():
    theirs = feature_file("D", scales=(256, 384, 512))
    assert marked(theirs, name="caltech256") == "0.2"
    assert marked(theirs, name="caltech256", join="mean") is None
    assert marked(feature_file("D"), name="caltech256") is None


# --- JSON


def test_json_has_these_keys_and_nothing_that_json_lacks():
    run = make_run({"ap-area": [0.5, np.nan], "ap-11-point": [np.nan, np.nan]}, scores=np.full((2, 2), -np.inf))
    theirs = feature_file("D", scales=(256, 384, 512), note=float("inf"))
    result = make_result(run, name="caltech256", **OFFICIAL["caltech256"], protocol="caltech")
    made = {"join": "stack", "normalisation": "blocks", "files": [theirs]}
    result = replace(result, settings=result.settings | {"features": made})
    content = json.loads(json.dumps(results_json(result), allow_nan=False))
    assert list(content) == [
        "format", "version", "protocol", "description", "metric", "headline", "deviation", "interval", "secondary",
        "chance",
        "dataset", "classes", "runs", "convergence", "confusion", "submission",
        "learning_curve", "final", "notes", "settings", "seconds",
        "paper",
    ]  # fmt: skip
    assert (content["format"], content["version"]) == ("vggfeat-results", 1)
    assert content["headline"] == 0.5
    assert content["classes"][1]["values"] == {"ap-area": None, "ap-11-point": None}
    assert content["secondary"]["ap-11-point"]["value"] is None
    assert content["paper"][0] == {
        "measure": "Table 11, mean class recall over 3 splits of its own",
        "nets": ["D"],
        "regions": ["image"],
        "percent": 85.0,
        "deviation": 0.2,
        "same_nets_and_regions": True,
    }
    voc = results_json(some_result(name="voc2007", **OFFICIAL["voc2007"]))["paper"]
    assert [(row["nets"], row["percent"], row["deviation"]) for row in voc] == [
        (["D"], 89.3, None),
        (["E"], 89.3, None),
        (["D", "E"], 89.7, None),
    ]


# --- a protocol's outcome, on the disk


def server_set(name="voc2012-action", people=36):
    """Three actions; test has no labels, and its first two people are not in the list of jumping."""
    rng = np.random.default_rng(0)
    classes = ("jumping", "reading", "running")
    labels = np.where(rng.random((people, 3)) < 0.4, 1, -1).astype(np.int8)
    labels[24:] = 2
    labels[24:26, 0] = 3
    ids = [
        f"2010_{row // 2:06}/{row % 2 + 1}" if name.endswith("action") else f"2010_{row:06}" for row in range(people)
    ]
    splits = {"train": np.arange(12), "val": np.arange(12, 24), "test": np.arange(24, people)}
    paths = tuple(f"JPEGImages/{number.partition('/')[0]}.jpg" for number in ids)
    dataset = DataSet(
        name=name, task=Task.MULTI_LABEL, classes=classes, ids=tuple(ids), paths=paths, labels=labels, splits=splits
    )
    descriptors = rng.standard_normal((people, 5)).astype(np.float32)
    descriptors[:, :3] += labels
    ok = np.ones(people, dtype=bool)
    ok[[15, 30]] = False
    return DescriptorTable(dataset=dataset, descriptors=np.where(ok[:, None], descriptors, 0), ok=ok)


@pytest.fixture(scope="module")
def served():
    """The outcome of the server's protocol, with images that failed in val and in test."""
    table = server_set()
    settings = ProtocolSettings(svm=SvmSettings(jobs=1), grid=(0.5, 2.0), folds=2)
    return run_protocol(table, settings), table.dataset


def test_all_files_are_written_and_say_the_same(tmp_path, served):
    result, dataset = served
    folder = tmp_path / "new" / "folder"
    written = write_results(result, dataset, folder)
    names = ["results.json", "table.txt", "scores.npz", "results.png", "model.safetensors"]
    names += ["results-voc2012-action-test.tar.gz", "run.sha256"]
    assert [path.name for path in written] == names
    assert sorted(os.listdir(folder)) == sorted(names)
    assert all(path.parent == folder for path in written)
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results_json(result)))
    assert (folder / "table.txt").read_text(encoding="utf-8") == text_table(result) + "\n"
    assert (folder / "results.png").read_bytes() == draw(results_json(result), headline(result))
    assert (folder / names[-2]).read_bytes() == server_archive(dataset, result.submission)


def test_files_are_replaced_and_others_left_alone(tmp_path, served):
    (tmp_path / "table.txt").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "model-old.safetensors").write_text("mine")
    (tmp_path / "model-fold-3.safetensors").write_text("of an earlier run")
    written = write_results(*served, tmp_path, plots=False)
    assert "results.png" not in [path.name for path in written]
    assert (tmp_path / "table.txt").read_text() == text_table(served[0]) + "\n"
    assert [(tmp_path / name).read_text() for name in ("mine.txt", "model-old.safetensors")] == ["mine", "mine"]
    assert len(os.listdir(tmp_path)) == 8, "the model of an earlier run is removed"


def test_no_archive_without_withheld_labels_or_without_a_server(tmp_path):
    settings = ProtocolSettings(protocol="voc-server", svm=SvmSettings(jobs=1), grid=(1.0,), folds=2)
    table = server_set(name="manifest")
    result = run_protocol(table, settings)
    assert result.submission is not None
    assert len(write_results(result, table.dataset, tmp_path, plots=False)) == 5
    with pytest.raises(FitError, match="manifest: expected one of voc2012, voc2012-action"):
        server_archive(table.dataset, result.submission)


def test_a_disk_that_fails_leaves_the_old_files_whole(tmp_path, served, monkeypatch):
    class Full(Files):
        left = 0

        def write(self, fd, data, offset):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(fd, data, offset)

    sizes = [path.stat().st_size for path in write_results(*served, tmp_path, plots=False)]
    old = {name: b"old " + name.encode() for name in os.listdir(tmp_path)}
    disk = Full()
    monkeypatch.setattr(record, "DISK", disk)
    for room in (0, sizes[0], sum(sizes) - 1):
        for name, content in old.items():
            (tmp_path / name).write_bytes(content)
        disk.left = room
        with pytest.raises(StoreError, match=r"failed: the disk is full \(No space left on device\); fix it"):
            write_results(*served, tmp_path, plots=False)
        assert sorted(os.listdir(tmp_path)) == sorted(old), "nothing half-written stays"
        assert {name: (tmp_path / name).read_bytes() for name in old} == old


def test_a_folder_that_cant_be_made_or_written_is_an_error_of_one_line(tmp_path, served):
    (tmp_path / "file").write_text("mine")
    for folder, cause in (("file", "File exists"), ("file/below", "Not a directory")):
        with pytest.raises(StoreError) as raised:
            write_results(*served, tmp_path / folder, plots=False)
        expected = f"{tmp_path / folder}: writing the results failed: {cause}; fix it, or choose another folder"
        assert str(raised.value) == expected
    with pytest.raises(StoreError, match=f"^{tmp_path}/file/a.png: writing failed: File exists; fix it"):
        record.write_file(tmp_path / "file" / "a.png", b"")
    assert (tmp_path / "file").read_text() == "mine"


def test_no_folder_pipe_or_device_is_replaced_and_nothing_else_before_that_is_known(tmp_path, served):
    for name, make in (("table.txt", os.mkdir), ("results.json", os.mkfifo)):
        (tmp_path / name).mkdir()
        make(tmp_path / name / name)
        with pytest.raises(StoreError, match=rf"{name}: expected a file to replace, or none, found a folder, pipe or"):
            write_results(*served, tmp_path / name, plots=False)
        assert os.listdir(tmp_path / name) == [name]


def test_scores_can_be_read_without_pickle_and_are_aligned(served):
    result, dataset = served
    with np.load(io.BytesIO(scores_npz(result, dataset)), allow_pickle=False) as found:
        assert set(found) == {
            "classes", "ids_1", "paths_1", "scores_1", "labels_1",
            "ids_submission", "scores_submission", "listed_submission",
        }  # fmt: skip
        assert found["classes"].tolist() == ["jumping", "reading", "running"]
        assert found["ids_1"].tolist() == [dataset.ids[row] for row in range(12, 24)]
        assert found["paths_1"].tolist() == [dataset.paths[row] for row in range(12, 24)]
        assert found["labels_1"].tolist() == dataset.labels[12:24].tolist()
        assert found["scores_1"].tolist() == result.runs[0].scores.tolist()
        assert np.isneginf(found["scores_1"]).all(axis=1).tolist() == [row == 15 for row in range(12, 24)]
        assert found["ids_submission"].tolist() == [dataset.ids[row] for row in range(24, 36)]
        assert found["scores_submission"].tolist() == result.submission.scores.tolist()
        assert (~found["listed_submission"]).nonzero()[0].tolist() == [0, 1]


def test_scores_of_several_runs_are_numbered_from_one():
    dataset = server_set().dataset
    rows = ([4, 7], [0, 9])
    runs = [
        make_run({"recall": [0.5]}, f"split {k}", rows=np.array(rows[k]), scores=np.full((2, 1), float(k)))
        for k in (0, 1)
    ]
    with np.load(io.BytesIO(scores_npz(make_result(*runs), dataset)), allow_pickle=False) as found:
        kinds = ("ids", "paths", "scores", "labels")
        assert set(found) == {"classes", *(f"{what}_{k}" for what in kinds for k in (1, 2))}
        for k in (0, 1):
            assert found[f"ids_{k + 1}"].tolist() == [dataset.ids[row] for row in rows[k]]
            assert found[f"scores_{k + 1}"].ravel().tolist() == [k, k]


# --- the models


def test_the_model_of_one_run_is_its_last_fit(tmp_path):
    table = server_set()
    splits = {name: table.dataset.splits[name] for name in ("train", "val")}
    table = replace(table, dataset=replace(table.dataset, splits=splits), settings={"join": "max"})
    result = run_protocol(table, ProtocolSettings(svm=SvmSettings(jobs=1), grid=(0.5, 2.0), folds=2))
    write_results(result, table.dataset, tmp_path, plots=False)
    model, about = load_model(tmp_path / "model.safetensors")
    (run,) = result.runs
    scores = model.scores(table.descriptors[run.rows])
    there = np.isfinite(run.scores)
    np.testing.assert_array_equal(scores[there], run.scores[there])
    assert model.C.tolist() == run.choice.C.tolist()
    assert model.gap.tolist() == run.model.gap.tolist()
    assert about["classes"] == ["jumping", "reading", "running"]
    assert about["plan"] == run.plan
    assert about["features"] == {"join": "max"}
    assert about["dataset"] == {"name": "voc2012-action", "fingerprint": table.dataset.fingerprint()}
    assert (about["task"], about["protocol"], about["metric"]) == ("multi-label", "voc-server", "ap-area")


def test_with_a_test_for_the_server_the_model_is_the_one_behind_the_archive(tmp_path, served):
    result, dataset = served
    write_results(result, dataset, tmp_path, plots=False)
    model, about = load_model(tmp_path / "model.safetensors")
    assert about["plan"]["fitted"] == "train + val"
    descriptors = server_set().descriptors[result.submission.rows]
    rows = np.flatnonzero(result.submission.rows != 30)
    np.testing.assert_array_equal(model.scores(descriptors)[rows], result.submission.scores[rows])


def test_several_runs_have_a_model_each_and_none_is_left_of_another_protocol(tmp_path, served):
    table = server_set(name="manifest")
    labels = table.dataset.labels[np.arange(36) % 24]
    table = replace(table, dataset=replace(table.dataset, labels=labels))
    settings = ProtocolSettings(protocol="k-fold", svm=SvmSettings(jobs=1), grid=(1.0,), folds=3)
    result = run_protocol(table, settings)
    (tmp_path / "model-split-9.safetensors").write_text("of an older run")
    (tmp_path / "my model.safetensors").write_text("mine")
    write_results(*served, tmp_path, plots=False)
    write_results(result, table.dataset, tmp_path, plots=False)
    found = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert found == [*(f"model-fold-{k}.safetensors" for k in (1, 2, 3)), "my model.safetensors"]
    for number, run in enumerate(result.runs, start=1):
        model, about = load_model(tmp_path / f"model-fold-{number}.safetensors")
        assert about["plan"]["fitted"] == f"the folds other than {number}"
        np.testing.assert_array_equal(model.coef, run.model.coef)


# --- the server's archives


def files_of(archive):
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
        members = opened.getmembers()
        assert all(member.isreg() and member.mtime == 0 for member in members)
        return {member.name: opened.extractfile(member).read().decode() for member in members}


def test_archive_of_the_actions(served):
    result, dataset = served
    files = files_of(server_archive(dataset, result.submission))
    folder = "results/VOC2012/Action"
    assert list(files) == [f"{folder}/comp10_action_test_{name}.txt" for name in ("jumping", "reading", "running")]
    for k, (name, text) in enumerate(files.items()):
        lines = text.splitlines()
        assert text == "".join(f"{line}\n" for line in lines)
        # 24 and 25 are the two objects of one image, not in the list of jumping.
        rows = range(26 if "jumping" in name else 24, 36)
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows, strict=True):
            image, number, confidence = line.split(" ")
            assert (image, number) == (f"2010_{row // 2:06}", f"{row % 2 + 1}")
            assert float(confidence) == pytest.approx(result.submission.scores[row - 24, k], abs=1e-12)
    assert "2010_000012" not in files[f"{folder}/comp10_action_test_jumping.txt"]


def test_archive_of_the_classification():
    dataset = server_set(name="voc2012").dataset
    scores = np.array([[0.5, -1.25, 1e-7], [-123.0, 1 / 3, 0.0]])
    submission = Submission(
        rows=np.array([24, 35]), scores=scores, listed=np.ones((2, 3), dtype=bool), model=make_model(3), plan={}
    )
    start = "results/VOC2012/Main/comp2_cls_test_"
    assert files_of(server_archive(dataset, submission)) == {
        f"{start}jumping.txt": "2010_000024 0.500000000000\n2010_000035 -123.000000000000\n",
        f"{start}reading.txt": "2010_000024 -1.250000000000\n2010_000035 0.333333333333\n",
        f"{start}running.txt": "2010_000024 0.000000100000\n2010_000035 0.000000000000\n",
    }


def test_images_that_failed_are_in_the_archive_last(served):
    result, dataset = served
    for text in files_of(server_archive(dataset, result.submission)).values():
        ranked = sorted(text.splitlines(), key=lambda line: float(line.split()[-1]))
        assert ranked[0].startswith("2010_000015 1 "), "row 30, whose image failed"


def test_equal_results_give_equal_bytes_at_any_time(served, monkeypatch):
    result, dataset = served
    first = server_archive(dataset, result.submission)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert server_archive(dataset, result.submission) == first
    assert first[:2] == b"\x1f\x8b"
    assert first[4:8] == bytes(4), "the time in the gzip header"
    assert not first[3] & 8, "no file name in the gzip header"
    assert gzip.decompress(first)[257:262] == b"ustar"


# --- images


def opened(png):
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image


ODD = ("$a$", r"$\frac$", "$", "x_{1}^2", r"\alpha", "猫", "new\nline", "z" * 300, "raw-\udcff", "<b>", "%d")


@pytest.mark.parametrize(
    "result",
    [
        make_result(make_run({"recall": [0.4]})),
        some_result(20),
        some_result(MOST_BARS),
        some_result(MOST_BARS + 1),
        make_result(*(make_run({"recall": np.linspace(1, 0, 257)}, f"split {k}") for k in (1, 2, 3))),
        make_result(*(make_run({"ap-area": np.linspace(1, 0, 30)}, f"fold {k}") for k in range(12))),
        some_result(len(ODD), classes=ODD, name="$x$"),
        make_result(make_run({"ap-area": [np.nan, np.nan]}, chance=float("nan"))),
        make_result(make_run({"ap-area": [np.nan] * 50})),
        make_result(make_run({"ap-area": [*np.linspace(0, 1, 20), *[np.nan] * 30]})),
        make_result(make_run({"ap-area": [0.5, 0.6]}, grid=np.array([1.0]), curve=np.full((1, 2), np.nan))),
        make_result(make_run({"ap-area": [0.5, 0.6]}, curve=np.array([[np.nan, 0.5]] * 4))),
        make_result(make_run({"recall": [0.0, 1.0]}, grid=np.geomspace(1e-6, 1e6, 50))),
    ],
    ids=["1", "20", "most", "more", "257", "12 runs", "odd", "nan", "50 nan", "30 nan", "one C", "no curve", "50 C"],
)
def test_an_image_of_any_result_opens_and_is_no_giant(result):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = opened(draw(results_json(result), headline(result)))
    width, height = image.size
    assert width == 1320
    assert 540 <= height <= 1300
    assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 10, "not a blank sheet"


def test_images_differ_where_results_do_and_only_there():
    first = draw(results_json(some_result(3)), "title")
    assert draw(results_json(some_result(3)), "title") == first
    assert draw(results_json(some_result(4)), "title") != first
    assert draw(results_json(some_result(3)), "other") != first


def test_a_users_matplotlib_settings_dont_matter_and_are_left_alone():
    import matplotlib as mpl

    plain = draw(results_json(some_result(3)), "title")
    with mpl.rc_context({"figure.facecolor": "black", "font.size": 30, "text.usetex": True}):
        assert draw(results_json(some_result(3)), "title") == plain
        assert mpl.rcParams["font.size"] == 30


def drawn_texts(result, monkeypatch):
    """All that is written in the image of a result."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    texts, save = [], Figure.savefig

    def spy(figure, *arguments, **options):
        save(figure, *arguments, **options)
        texts.extend(text.get_text() for text in figure.findobj(Text) if text.get_visible())

    monkeypatch.setattr(Figure, "savefig", spy)
    draw(results_json(result), headline(result))
    return texts


def test_few_classes_are_all_in_the_image_with_their_values(monkeypatch):
    result = make_result(make_run({"ap-area": [0.123, 0.5, np.nan]}), classes=("$a_b$", "dog", "nothing"))
    texts = drawn_texts(result, monkeypatch)
    for text in (
        "$a_b$",
        "12.3",
        "dog",
        "50.0",
        "nothing",
        "no value",
        "mean 31.1 %",
        "chance 12.5 %",
        headline(result),
    ):
        assert text in texts
    assert "average precision, area, %" in texts
    order = [text for text in texts if text in result.classes]
    assert order == ["dog", "$a_b$", "nothing"], "from best to worst"


def test_names_in_letters_that_no_font_has_can_be_read(monkeypatch):
    result = make_result(
        make_run({"ap-area": [0.1, 0.2]}), classes=("\U0001f400\U0001f401", "Größe"), name="\U0001f400"
    )
    texts = drawn_texts(result, monkeypatch)
    assert {r"\U0001f400\U0001f401", "Größe"} <= set(texts)
    assert [text for text in texts if text.startswith(r"\U0001f400: mean average precision")]


def test_of_many_classes_the_best_and_the_worst_are_named(monkeypatch):
    result = some_result(100)
    texts = drawn_texts(result, monkeypatch)
    names = [text for text in texts if text in result.classes]
    assert names == [f"class {k}" for k in (*range(16), *range(84, 100))]
    assert "... 68 between" in texts
    assert "100 of 100 classes" in texts


def test_only_classes_with_a_value_are_among_the_best_and_the_worst(monkeypatch):
    values = np.full(50, np.nan)
    values[10:30] = np.linspace(0.2, 0.8, 20)
    texts = drawn_texts(make_result(make_run({"ap-area": values})), monkeypatch)
    assert [text for text in texts if text.startswith("class ")] == [f"class {k}" for k in range(29, 9, -1)]
    assert "20 of 50 classes" in texts
    assert not [text for text in texts if "between" in text]


def test_what_is_no_number_is_not_drawn(monkeypatch):
    texts = drawn_texts(make_result(make_run({"ap-area": [np.nan]}, chance=float("nan"))), monkeypatch)
    assert "no value" in texts
    assert not [text for text in texts if "nan" in text.lower()]


def test_a_single_c_is_said_to_be_given(monkeypatch):
    run = make_run({"ap-area": [0.5]}, grid=np.array([0.125]), curve=np.full((1, 1), np.nan))
    assert "C = 0.125 was given, not chosen." in drawn_texts(make_result(run), monkeypatch)
