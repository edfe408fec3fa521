"""Probes against scikit-learn by hand, under the splits of the protocol; few images are as few as said."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from feature_files import data_set, write_file
from planted import SEVERAL, SINGLE, planted_table
from small_tables import data_set as data_set_of
from small_tables import table_of
from vggfeat.cli import run
from vggfeat.errors import ConfigError
from vggfeat.metrics import average_precision, mean_class_recall
from vggfeat.protocols.probes import PROBES, Probe, ProbeSettings, ProbeValue, run_probes
from vggfeat.protocols.rules import ProtocolSettings, plan_protocol, run_protocol
from vggfeat.results.features import probes_json, probes_text


@pytest.fixture(scope="module", params=[SINGLE, SEVERAL])
def table(request):
    return planted_table(request.param, rows=120, noise=0.5)[0]


def test_rows_are_those_of_the_protocol(table):
    for protocol in ("given-splits", "k-fold"):
        settings = ProtocolSettings(protocol=protocol, grid=(1.0,))
        plans = plan_protocol(table.dataset, settings)[2].splits
        result = run_protocol(table, settings)
        assert len(plans) == len(result.runs)
        for plan, one in zip(plans, result.runs, strict=True):
            np.testing.assert_array_equal(plan.test_rows, one.rows)
            positives = (table.dataset.labels[plan.fit_rows] == 1).sum(axis=0)
            np.testing.assert_array_equal(positives, one.train_positives)


def test_the_svm_is_that_of_the_protocol(table):
    (run_,) = run_protocol(table, ProtocolSettings(grid=(4.0,))).runs
    _, (value,) = run_probes(table, ProbeSettings(probes=("svm",), shots=()))
    if value.settings == (4.0,):
        assert value.mean == pytest.approx(run_.means[next(iter(run_.means))], abs=1e-6)
    (plan,) = plan_protocol(table.dataset, ProtocolSettings())[2].splits
    labels = table.dataset.labels
    scores = PROBES["svm"].scores(table.descriptors[plan.fit_rows], labels[plan.fit_rows],
                                  table.descriptors[plan.test_rows], 4.0)  # fmt: skip
    np.testing.assert_allclose(scores, run_.scores, atol=1e-4)


def test_one_neighbour_and_logistic_regression_are_those_of_scikit_learn():
    table, _ = planted_table(rows=120, noise=0.5)
    x, y = table.descriptors.astype(np.float64), table.dataset.labels.argmax(axis=1)
    train, test = table.dataset.splits["train"], table.dataset.splits["test"]
    signs = table.dataset.labels[train]
    nearest = PROBES["knn"].scores(x[train], signs, x[test], 1).argmax(axis=1)
    theirs = KNeighborsClassifier(1, metric="cosine").fit(x[train], y[train]).predict(x[test])
    np.testing.assert_array_equal(nearest, theirs)
    scores = PROBES["logistic"].scores(x[train], signs, x[test], 10.0)
    machine = LogisticRegression(C=10.0, max_iter=1000).fit(x[train], y[train] == 2)
    np.testing.assert_allclose(scores[:, 2], machine.decision_function(x[test]), atol=1e-6)


def test_values_are_of_the_measure_of_the_protocol(table):
    measure, values = run_probes(table, ProbeSettings(probes=("knn",), shots=(2,), repeats=3))
    every, few = values
    assert (every.shots, few.shots) == (None, 2)
    assert every.deviation is None
    assert len(few.values) == 3
    assert few.deviation == pytest.approx(np.std(few.values, ddof=1))
    train, test = table.dataset.splits["train"], table.dataset.splits["test"]
    labels = table.dataset.labels
    scores = PROBES["knn"].scores(table.descriptors[train], labels[train], table.descriptors[test], every.settings[0])
    if measure == "recall":
        wanted = mean_class_recall(labels[test].argmax(axis=1), scores.argmax(axis=1), 4)
    else:
        wanted = np.mean([average_precision(labels[test][:, k], scores[:, k], "area") for k in range(4)])
    assert every.mean == pytest.approx(wanted)


@pytest.fixture
def drawn(monkeypatch):
    """Runs a probe that takes down which rows of a table it is trained on: [[row, ...], ...], all of them first."""

    def run_seeing(table, *shots, repeats=4):
        found = []

        def scores(x, labels, others, setting):
            found.append([int(np.flatnonzero((table.descriptors == one).all(axis=1))[0]) for one in x])
            return np.zeros((len(others), labels.shape[1]))

        monkeypatch.setitem(PROBES, "seen", Probe("none", (1.0,), scores))
        run_probes(table, ProbeSettings(probes=("seen",), shots=shots, repeats=repeats))
        return found[-1 - repeats * len(shots) :]

    return run_seeing


def test_draws_hold_so_many_images_of_each_class_and_differ(drawn):
    table, _ = planted_table(rows=120, wrong=0)
    (plan,) = plan_protocol(table.dataset, ProtocolSettings())[2].splits
    every, *draws = drawn(table, 3)
    assert every == plan.fit_rows.tolist()
    for rows in draws:
        assert (table.dataset.labels[rows] == 1).sum(axis=0).tolist() == [3] * 4
        assert set(rows) <= set(every)
    assert len({tuple(rows) for rows in draws}) == 4
    assert drawn(table, 3) == [every, *draws]
    most = int((table.dataset.labels[every] == 1).sum(axis=0).max())
    assert drawn(table, most, repeats=2) == [every] * 3


def test_rows_that_failed_are_not_drawn_and_rank_last(drawn):
    table, _ = planted_table(rows=120, noise=0.1, wrong=0)
    table.ok[[0, 100]] = False
    assert 0 in plan_protocol(table.dataset, ProtocolSettings())[2].splits[0].fit_rows
    every, few = drawn(table, 15, repeats=1)
    assert 0 not in {*every, *few}
    _, (value,) = run_probes(table, ProbeSettings(probes=("svm",), shots=()))
    assert value.mean == pytest.approx(1 - 1 / 15 / 4), "one of 15 images of a class counts as wrong"


def test_neighbours_whose_label_is_ignored_count_neither_way():
    """Two neighbours at one distance: a negative would halve the share, an ignored one does not."""
    x = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    others = np.array([[1, 0]], np.float32)
    assert PROBES["knn"].scores(x, np.array([[1], [-1], [-1]]), others, 2)[0, 0] == pytest.approx(0.5)
    assert PROBES["knn"].scores(x, np.array([[1], [0], [-1]]), others, 2)[0, 0] == pytest.approx(1.0)
    assert PROBES["knn"].scores(x, np.array([[0], [0], [1]]), others, 2)[0, 0] == 0


def test_classes_that_a_draw_can_not_be_trained_for_have_no_value():
    """All that are drawn are positives of class 0, whose rows come first: their order is no ranking."""
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((40, 2)) < 0.5, 1, -1)
    labels[:30, 0] = 1
    table = table_of(data_set_of(labels, {"train": range(20), "test": range(20, 40)}))
    train, test = np.arange(20), np.arange(20, 40)
    _, (value,) = run_probes(table, ProbeSettings(probes=("knn",), shots=()))
    scores = PROBES["knn"].scores(table.descriptors[train], labels[train], table.descriptors[test], value.settings[0])
    assert value.mean == pytest.approx(average_precision(labels[test, 1], scores[:, 1], "area"))


def test_what_is_named_twice_is_measured_once():
    settings = ProbeSettings(probes=("knn", "knn"), shots=(2, 1, 2))
    assert (settings.probes, settings.shots) == (("knn",), (2, 1))


def test_what_has_no_value_is_none_in_json_and_a_dash_in_the_table():
    values = [ProbeValue("knn", None, np.nan, None, (np.nan,), (1.0,))]
    content = json.loads(json.dumps(probes_json("ap-area", values, "x\nforged"), allow_nan=False))
    assert (content["values"][0]["mean"], content["values"][0]["values"]) == (None, [None])
    lines = probes_text(content).split("\n")
    assert (len(lines), lines[-1].split()[-1]) == (3, "-")


def test_settings_that_mean_nothing_are_refused():
    for wrong in ({"probes": ("x",)}, {"probes": ()}, {"shots": (0,)}, {"repeats": 0}):
        with pytest.raises(ConfigError, match="expected"):
            ProbeSettings(**wrong)


def test_the_command_prints_a_table_and_json(tmp_path, capsys):
    labels = np.where(np.arange(24)[:, None] % 2 == np.arange(2), 1, -1).astype(np.int8)
    features = np.abs(np.random.default_rng(0).standard_normal((24, 1, 1, 8)))
    features[:, 0, 0] += 3 * np.eye(8)[np.arange(24) % 2]
    ids = tuple(f"{row:02d}" for row in range(24))
    splits = {"train": np.arange(12), "test": np.arange(12, 24)}
    write_file(tmp_path / "x.h5", features, data_set(ids=ids, labels=labels, splits=splits))
    words = ["probe", str(tmp_path / "x.h5"), "--probes", "svm,knn", "--shots", "1,4", "--repeats", "2", "--quiet"]
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["probe", "chosen", "all", "1", "4"]
    assert [line.split()[0] for line in lines[2:]] == ["svm", "knn"]
    assert run([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(one["probe"], one["shots"]) for one in content["values"]] == [
        ("svm", None), ("svm", 1), ("svm", 4), ("knn", None), ("knn", 1), ("knn", 4),
    ]  # fmt: skip
    assert all(0 < one["mean"] <= 1 for one in content["values"])
    # Each class has six images to train on: a column for more would be that of all under another name.
    words[words.index("1,4")] = "7,6,50"
    assert run(words) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].split() == ["probe", "chosen", "all", "6"]
    assert shown.err == "note: no class has so many images to train on, so that there is nothing to measure: 7, 50\n"
    assert run([*words, "--shots", "1", "--folds", "3"]) == 0
    assert "note: folds = 3 was given, and decides nothing" in capsys.readouterr().err
    assert run(["probe"]) == 2
