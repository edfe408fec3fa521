"""How far a headline would move: its interval, and what smaller parts of the training images give."""

import json
from dataclasses import replace

import numpy as np
import pytest

from small_tables import data_set, multi_label, one_hot, table_of
from vggfeat.metrics import mean_class_recall
from vggfeat.metrics.bootstrap import BootstrapSettings, TestScores, bootstrap_interval
from vggfeat.protocols import ProtocolSettings, run_protocol
from vggfeat.protocols import spread as spreading
from vggfeat.protocols.folds import hold_out
from vggfeat.results.record import json_bytes
from vggfeat.results.svm import svm_record, write_results
from vggfeat.samples import Task
from vggfeat.svm import SvmProblemSet

FAST = ProtocolSettings(grid=(1.0,), folds=3)
SPLITS = {"train": range(40), "test": range(40, 60)}


def single_label(count=60, splits=SPLITS, **columns):
    return data_set(one_hot(np.arange(count) % 3), splits, task=Task.SINGLE_LABEL, **columns)


def test_the_headline_has_the_interval_of_its_tested_images():
    result = run_protocol(table_of(single_label(), noise=2.0), replace(FAST, seed=3))
    (run,) = result.runs
    test = TestScores(images=[f"{row}" for row in run.rows], labels=run.truth, scores=run.scores)
    expected = bootstrap_interval([test], "recall", BootstrapSettings(seed=3))
    found = result.to_json()["interval"]
    assert found == {
        "low": expected.low, "high": expected.high, "level": 0.95, "resamples": 1000, "seed": 3, "of": "images",
        "drawn": 20,
    }  # fmt: skip
    assert result.interval.mean == pytest.approx(result.headline, abs=1e-6)
    assert found["low"] < result.headline < found["high"]
    ends = f"{100 * found['low']:.1f} to {100 * found['high']:.1f} %"
    assert f"  95 % interval: {ends} (1000 resamples of 20 images)" in svm_record(result).text()


def test_groups_are_drawn_where_there_are_some_and_reach_the_comparison_of_runs(tmp_path):
    groups = tuple(f"g{row // 4}" for row in range(60))
    table = table_of(single_label(groups=groups), noise=2.0)
    result = run_protocol(table, FAST)
    assert (result.to_json()["interval"]["of"], result.interval.images) == ("groups", 5)
    assert result.to_json()["dataset"]["groups"] == 15
    write_results(result, table.dataset, tmp_path, plots=False)
    from vggfeat.results.reading import read_runs

    (run,) = read_runs([tmp_path])
    assert run.tests[0].images == tuple(f"group:{groups[row]}" for row in range(40, 60))


def test_groups_that_share_an_image_are_drawn_together_in_every_run():
    """Rows 0 and 20 are of one image, only one of which each run tests."""
    paths = tuple(f"{row % 20 if row in (0, 20) else row}.jpg" for row in range(60))
    groups = tuple("a" if row < 10 else "b" if 20 <= row < 30 else f"g{row}" for row in range(60))
    splits = {"train-1": range(30, 60), "test-1": range(15), "train-2": range(30, 60), "test-2": range(15, 30)}
    result = run_protocol(table_of(single_label(splits=splits, paths=paths, groups=groups)), FAST)
    assert result.interval.images == 1 + 10, "a and b are one, and ten have a group of their own"


def test_of_very_many_scores_there_are_fewer_resamples(monkeypatch):
    monkeypatch.setattr(spreading, "MOST_WORK", 60 * 300)
    assert run_protocol(table_of(single_label()), FAST).interval.settings.resamples == 300
    monkeypatch.setattr(spreading, "MOST_WORK", 1)
    assert run_protocol(table_of(single_label()), FAST).interval.settings.resamples == 200


def test_every_point_of_the_learning_curve_is_a_fit_on_a_part_of_the_training_rows():
    table = table_of(single_label(), noise=2.0)
    result = run_protocol(table, replace(FAST, learning_curve=True))
    rows = result.to_json()["learning_curve"]
    assert [row["share"] for row in rows] == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    assert [len(row["values"]) for row in rows] == [5, 5, 5, 5, 1]
    assert rows[-1]["values"] == [result.headline]
    assert rows[-1]["deviation"] is None
    assert rows[-1]["samples"] == 40
    labels, test, problems = table.dataset.labels, np.arange(40, 60), SvmProblemSet(table.descriptors)
    for row in rows[:-1]:
        counts = []
        for draw, value in enumerate(row["values"]):
            paths, positive = table.dataset.paths[:40], labels[:40] == 1
            kept = np.flatnonzero(~hold_out(paths, positive, 1 - row["share"], seed=draw))
            assert (labels[kept] == 1).any(axis=0).all()
            scores = problems.fit(kept, labels[kept], 1.0).scores(table.descriptors[test])
            assert value == pytest.approx(mean_class_recall(labels[test].argmax(1), scores.argmax(1), 3))
            counts.append(len(kept))
        assert row["samples"] == np.mean(counts)
        assert row["mean"] == pytest.approx(np.mean(row["values"]))
        assert row["deviation"] == pytest.approx(np.std(row["values"], ddof=1))
        assert (row["low"], row["high"]) == (min(row["values"]), max(row["values"]))
    assert [row["samples"] for row in rows] == [3, 6, 9, 20, 40] or rows[3]["samples"] in (19, 20, 21)


def test_over_folds_each_is_drawn_from_and_groups_stay_whole(monkeypatch):
    groups = tuple(f"g{row // 4}" for row in range(60))
    table = table_of(single_label(splits=None, groups=groups))
    fitted = []

    class Watched(SvmProblemSet):
        def fit(self, rows, labels, costs, **options):
            fitted.append(rows.tolist())
            return super().fit(rows, labels, costs, **options)

    monkeypatch.setattr("vggfeat.protocols.experiment.SvmProblemSet", Watched)
    result = run_protocol(table, replace(FAST, learning_curve=True))
    assert [len(values) for values in result.learning_curve.values] == [6, 6, 6, 6, 3]
    assert len(fitted) == 3 + 24
    for rows in fitted:
        taken = {groups[row] for row in rows}
        assert sorted(rows) == [row for row in range(60) if groups[row] in taken]


def test_the_curve_is_told_drawn_and_kept(tmp_path):
    table = table_of(single_label(), noise=2.0)
    result = run_protocol(table, replace(FAST, learning_curve=True))
    written = write_results(result, table.dataset, tmp_path)
    assert "learning-curve.png" in [path.name for path in written]
    assert (tmp_path / "learning-curve.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "table.txt").read_text().splitlines()
    start = lines.index("learning curve, mean class recall, C as on all images:")
    assert lines[start + 1].split("  ")[0] == "training images"
    assert [line.split()[0] for line in lines[start + 2 : start + 7]] == ["1/16", "1/8", "1/4", "1/2", "all"]
    rows = json.loads((tmp_path / "results.json").read_text())["learning_curve"]
    gain = 100 * (rows[-1]["mean"] - rows[-2]["mean"])
    assert lines[start + 7] == f"from half of the training images to all of them: {gain:+.1f} points"
    write_results(run_protocol(table, FAST), table.dataset, tmp_path)
    assert not (tmp_path / "learning-curve.png").exists(), "it belongs to another run"


def test_a_part_without_a_class_has_no_value():
    labels = multi_label(60)
    labels[:, 2] = -1
    labels[[0, 1, 50], 2] = 1
    table = table_of(data_set(labels, SPLITS), failed=[0])
    result = run_protocol(table, replace(FAST, learning_curve=True))
    values = np.concatenate(result.learning_curve.values[:-1])
    assert np.isnan(values).any()
    assert np.isfinite(values).any()
    assert json_bytes(svm_record(result).content)
