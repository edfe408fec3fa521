"""Protocols on small tables: who trains, who chooses, who is tested, and what is reported of it."""

import json
import statistics
from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from small_tables import data_set, multi_label, one_hot, table_of
from vggfeat.errors import ConfigError, FitError
from vggfeat.metrics import average_precision
from vggfeat.protocols import experiment
from vggfeat.protocols import rules as protocols
from vggfeat.protocols.results import METRICS
from vggfeat.protocols.rules import ProtocolSettings, run_protocol
from vggfeat.protocols.settings import Evaluation
from vggfeat.samples import Task
from vggfeat.svm import LinearModel, SvmProblemSet, SvmSettings, Sweep
from vggfeat.svm.settings import C_GRID

ALONE = SvmSettings(jobs=1)
FAST = ProtocolSettings(svm=ALONE, grid=(0.25, 1.0, 4.0))


def voc_like(name="voc2007", labels=None, test=True, **options):
    labels = multi_label() if labels is None else labels
    splits = {"train": range(30), "val": range(30, 60), "test": range(60, 90)}
    if not test:
        del splits["test"]
    return data_set(labels, splits, name=name, **options)


def caltech_like(splits=3, per_class=10, num_classes=3, name="caltech101", held=True):
    rng = np.random.default_rng(5)
    parts = {}
    for number in range(1, splits + 1):
        train, held_out, test = [], [], []
        for k in range(num_classes):
            rows = rng.permutation(per_class) + k * per_class
            train += list(rows[:5])
            held_out += list(rows[:1])
            test += list(rows[5:8])
        parts |= {f"train-{number}": train, f"test-{number}": test}
        if held:
            parts[f"held-out-{number}"] = held_out
    labels = one_hot(np.repeat(np.arange(num_classes), per_class))
    return data_set(labels, parts, name=name, task=Task.SINGLE_LABEL)


class Spy:
    """Stands before the solver and writes down which rows go to it, and how often it is asked."""

    def __init__(self, monkeypatch):
        self.choices, self.fits, self.labels, self.costs, self.settings, self.solves = [], [], [], [], [], 0
        spy = self

        class Watched(SvmProblemSet):
            def __init__(self, descriptors, settings):
                spy.settings.append(settings)
                super().__init__(descriptors, settings)

            def sweep(self, parts, grid, **options):
                spy.solves += 1
                spy.choices += [(part.rows.tolist(), part.held_out.tolist()) for part in parts]
                return super().sweep(parts, grid, **options)

            def fit(self, rows, labels, costs, **options):
                spy.fits.append(rows.tolist())
                spy.labels.append(np.asarray(labels))
                spy.costs.append(np.asarray(costs).tolist())
                return super().fit(rows, labels, costs, **options)

        monkeypatch.setattr(experiment, "SvmProblemSet", Watched)


# --- VOC2007


def kit_area_or_points(labels, scores, points):
    """Average precision with loops, without ties, labels 1 and -1."""
    order = sorted(range(len(labels)), key=lambda row: -scores[row])
    found, curve = 0, []
    for rank, row in enumerate(order, start=1):
        found += labels[row] == 1
        curve.append((found / sum(label == 1 for label in labels), found / rank))
    best = lambda recall: max((p for r, p in curve if r >= recall), default=0.0)  # noqa: E731
    if points:
        return sum(best(t * 0.1) for t in range(11)) / 11
    recalls = sorted({r for r, _ in curve} | {0.0})
    return sum((high - low) * best(high) for low, high in pairwise(recalls))


@pytest.mark.parametrize("solver", ["newton", "liblinear"])
@pytest.mark.parametrize(("name", "points"), [("voc2007", True), ("voc2012-action", False)])
def test_voc_like_runs_equal_a_plain_loop_over_linear_svc(name, points, solver):
    table = table_of(voc_like(name), noise=1.5)
    grid = (0.003, 0.01, 0.03, 0.1)
    exact = {"tolerance": 1e-10, "liblinear_tolerance": 1e-10, "max_iterations": 100_000}
    svm = SvmSettings(jobs=1, solver=solver, **exact)
    result = run_protocol(table, ProtocolSettings(svm=svm, grid=grid, folds=3))
    x, y = table.descriptors.astype(float), table.dataset.labels
    train, val, test = (table.dataset.splits[split] for split in ("train", "val", "test"))

    def scores(rows, others, k, cost):
        reference = LinearSVC(C=cost, dual=True, random_state=0, tol=1e-10, max_iter=100_000)
        return reference.fit(x[rows], y[rows, k]).decision_function(x[others])

    expected = []
    for k in range(3):
        if points:
            pairs, fitted, tested = [(train, val)], np.concatenate([train, val]), test
        else:
            fold = protocols._fold_of(table.dataset, train, ProtocolSettings(folds=3))
            pairs, fitted, tested = [(train[fold != f], train[fold == f]) for f in range(3)], train, val
        curve = [
            sum(kit_area_or_points(y[b, k], scores(a, b, k, cost), points) for a, b in pairs) / len(pairs)
            for cost in grid
        ]
        np.testing.assert_allclose(result.runs[0].choice.curve[:, k], curve, atol=1e-12)
        cost = grid[max(range(4), key=lambda g: (round(curve[g], 12), -g))]
        assert result.runs[0].choice.C[k] == cost
        final = scores(fitted, tested, k, cost)
        np.testing.assert_allclose(result.runs[0].scores[:, k], final, atol=1e-5)
        expected.append(kit_area_or_points(y[tested, k], final, points))
    assert result.headline == pytest.approx(np.mean(expected), abs=1e-12)
    assert result.metric == ("ap-11-point" if points else "ap-area")


def test_voc2007_chooses_on_val_trains_on_trainval_tests_on_test(monkeypatch):
    spy = Spy(monkeypatch)
    result = run_protocol(table_of(voc_like()), FAST)
    assert spy.choices == [(list(range(30)), list(range(30, 60)))]
    assert spy.fits == [list(range(60))]
    assert result.protocol == "voc"
    assert result.runs[0].rows.tolist() == list(range(60, 90))
    assert result.metric_name == "mean average precision, 11-point"
    assert set(result.secondary) == {"ap-area"}
    assert result.submission is None


def test_labels_of_the_test_dont_reach_the_choice_or_the_fit():
    labels = multi_label()
    other = labels.copy()
    other[60:] = np.random.default_rng(3).permutation(other[60:])
    descriptors = table_of(voc_like(labels=labels)).descriptors
    first, second = (run_protocol(table_of(voc_like(labels=y), descriptors), FAST) for y in (labels, other))
    np.testing.assert_array_equal(first.runs[0].choice.curve, second.runs[0].choice.curve)
    np.testing.assert_array_equal(first.runs[0].scores, second.runs[0].scores)
    assert first.headline != second.headline


def test_on_separable_classes_every_c_is_best_and_the_smallest_is_taken():
    labels = one_hot([0, 1] * 45)
    result = run_protocol(table_of(voc_like(labels=labels), descriptors=labels.astype(float)), FAST)
    np.testing.assert_array_equal(result.runs[0].choice.curve, np.ones((3, 2)))
    np.testing.assert_array_equal(result.runs[0].choice.C, [0.25, 0.25])
    assert result.headline == 1
    assert not any("wider grid" in note for note in result.notes)


def prepare_sweep(monkeypatch, best, columns=(0, 1, 2)):
    """A solver whose scores rank the held-out rows of class k perfectly at value best[k], worst elsewhere."""

    def sweep(shared, parts, grid, **options):
        found = []
        for part in parts:
            truth = multi_label()[part.held_out].T.astype(float)
            scores = np.stack([[truth[k] * (1 if g == best[k] else -1) for k in columns] for g in range(len(grid))])
            found.append(Sweep(scores, np.ones(scores.shape[:2], dtype=bool), np.zeros(scores.shape[:2])))
        return found

    monkeypatch.setattr(SvmProblemSet, "sweep", sweep)


def test_each_class_gets_the_c_that_is_best_for_it(monkeypatch):
    prepare_sweep(monkeypatch, [2, 0, 1])
    spy = Spy(monkeypatch)
    result = run_protocol(table_of(voc_like()), FAST)
    assert spy.costs == [[4.0, 0.25, 1.0]]
    np.testing.assert_array_equal(result.runs[0].choice.C, [4.0, 0.25, 1.0])
    np.testing.assert_array_equal(result.runs[0].model.C, [4.0, 0.25, 1.0])
    assert any("for 2 of 3 classes: a wider grid" in note for note in result.notes)


def test_the_rule_can_be_set_and_both_are_reported():
    points, area = (
        run_protocol(table_of(voc_like(), noise=2), ProtocolSettings(svm=ALONE, grid=(1.0,), rule=rule))
        for rule in ("11-point", "area")
    )
    assert points.headline == area.secondary["ap-11-point"]
    assert area.headline == points.secondary["ap-area"]
    assert points.headline != area.headline


def test_chance_is_the_average_precision_of_random_orders_of_the_samples_that_count():
    labels = multi_label()
    labels[60:, 0] = [1] * 6 + [-1] * 14 + [0] * 10
    labels[60:, 1] = [1] * 3 + [-1] * 27
    labels[60:, 2] = [1] * 15 + [-1] * 15
    result = run_protocol(table_of(voc_like(labels=labels)), FAST)
    rng = np.random.default_rng(99)
    by_chance = [
        np.mean([average_precision(rng.permutation([1] * p + [-1] * n), np.zeros(p + n)) for _ in range(1000)])
        for p, n in ((6, 14), (3, 27), (15, 15))
    ]
    assert result.chance == pytest.approx(np.mean(by_chance), abs=0.02)
    assert result.chance > (6 / 20 + 3 / 30 + 15 / 30) / 3 + 0.03  # the share of positives is no chance level
    assert [row.test_positives for row in result.class_rows()] == [(6,), (3,), (15,)]
    assert [row.test_negatives for row in result.class_rows()] == [(14,), (27,), (15,)]


# --- difficult, unlisted, withheld, failed


@pytest.mark.parametrize(("meaning", "sign"), [("ignore", 0), ("negative", -1), ("positive", 1)])
def test_difficult_samples_in_training(monkeypatch, meaning, sign):
    labels = multi_label()
    labels[[3, 40], 1] = 0
    spy = Spy(monkeypatch)
    chosen = ProtocolSettings(svm=ALONE, grid=(1.0,), difficult_in_training=meaning)
    result = run_protocol(table_of(voc_like(labels=labels)), chosen)
    assert spy.labels[0][[3, 40], 1].tolist() == [sign, sign]
    assert np.delete(spy.labels[0], [3, 40], axis=0).tolist() == np.delete(labels[:60], [3, 40], axis=0).tolist()
    assert any("trained on as" in note for note in result.notes) == (meaning != "ignore")


@pytest.mark.parametrize("meaning", ["ignore", "negative", "positive"])
def test_difficult_samples_in_scoring(meaning):
    labels = multi_label()
    labels[60:70, 0] = 0
    chosen = ProtocolSettings(svm=ALONE, grid=(1.0,), difficult_in_scoring=meaning)
    result = run_protocol(table_of(voc_like(labels=labels), noise=2), chosen)
    as_counted = {"ignore": labels[70:90, 0].tolist(), "negative": [-1] * 10, "positive": [1] * 10}[meaning]
    truth = as_counted if meaning == "ignore" else as_counted + labels[70:90, 0].tolist()
    scores = result.runs[0].scores[:, 0]
    scores = scores[10:] if meaning == "ignore" else scores
    assert result.runs[0].values["ap-area"][0] == pytest.approx(kit_area_or_points(truth, scores, points=False))
    assert any("not comparable" in note for note in result.notes) == (meaning != "ignore")


def test_samples_that_a_class_doesnt_list_are_out_of_everything_of_that_class(monkeypatch):
    labels = multi_label()
    labels[60:] = 2
    labels[[5, 33, 61, 62], 0] = 3
    spy = Spy(monkeypatch)
    result = run_protocol(table_of(voc_like("voc2012-action", labels)), FAST)
    assert spy.labels[0][5, 0] == 0
    assert result.runs[0].truth[3, 0] == 0
    assert result.runs[0].test_positives[0] + result.runs[0].test_negatives[0] == 29
    expected = np.ones((30, 3), dtype=bool)
    expected[[1, 2], 0] = False
    np.testing.assert_array_equal(result.submission.listed, expected)


def test_failed_images_are_not_trained_on_and_rank_last(monkeypatch):
    spy = Spy(monkeypatch)
    result = run_protocol(table_of(voc_like(), failed=(4, 35, 70)), FAST)
    assert spy.choices == [([r for r in range(30) if r != 4], [r for r in range(30, 60) if r != 35])]
    assert spy.fits == [[r for r in range(60) if r not in (4, 35)]]
    run = result.runs[0]
    assert np.isneginf(run.scores[10]).all()
    assert np.isfinite(np.delete(run.scores, 10, axis=0)).all()
    assert (run.train_positives + run.train_negatives).tolist() == [58] * 3
    assert (run.test_positives + run.test_negatives).tolist() == [30] * 3
    assert any(note.startswith("1 of 30 samples of test have no descriptor") for note in result.notes)
    assert any(note.startswith("2 of 60 samples of train + val have no descriptor") for note in result.notes)


def test_failed_images_count_as_wrong():
    whole = run_protocol(table_of(caltech_like(splits=1), noise=0.01), FAST)
    assert whole.headline == 1
    row = whole.runs[0].rows[0]
    result = run_protocol(table_of(caltech_like(splits=1), noise=0.01, failed=[row]), FAST)
    # One of three test images of one of three classes.
    assert result.headline == pytest.approx(1 - 1 / 9)
    assert result.secondary["accuracy"] == pytest.approx(8 / 9)
    assert result.confusion.sum() == 8
    assert any("count as wrong" in note for note in result.notes)


# --- VOC2012 and actions


def test_voc2012_chooses_inside_train_and_reports_val(monkeypatch):
    spy = Spy(monkeypatch)
    labels = multi_label()
    labels[60:] = 2
    result = run_protocol(table_of(voc_like("voc2012", labels)), FAST)
    assert result.protocol == "voc-server"
    assert result.metric_name == "mean average precision, area"
    assert len(spy.choices) == 5
    assert sorted(row for _, held in spy.choices for row in held) == list(range(30))
    for fitted, held in spy.choices:
        assert sorted(fitted + held) == list(range(30))
    assert spy.fits == [list(range(30)), list(range(60))]
    assert result.runs[0].rows.tolist() == list(range(30, 60))
    submission = result.submission
    assert submission.rows.tolist() == list(range(60, 90))
    assert submission.scores.shape == (30, 3)
    assert submission.listed.all()
    np.testing.assert_array_equal(submission.model.C, result.runs[0].choice.C)


def test_without_a_test_split_there_is_no_submission():
    assert run_protocol(table_of(voc_like("voc2012", test=False)), FAST).submission is None


def test_labels_of_val_dont_reach_the_choice_of_voc2012():
    labels = multi_label()
    other = labels.copy()
    other[30:60] *= -1
    descriptors = table_of(voc_like(labels=labels)).descriptors
    first, second = (
        run_protocol(table_of(voc_like("voc2012", y, test=False), descriptors), FAST) for y in (labels, other)
    )
    np.testing.assert_array_equal(first.runs[0].choice.curve, second.runs[0].choice.curve)
    np.testing.assert_array_equal(first.runs[0].scores, second.runs[0].scores)


def test_failed_images_of_the_servers_test_stand_below_all_others():
    result = run_protocol(table_of(voc_like("voc2012"), failed=[61]), FAST)
    scores = result.submission.scores
    np.testing.assert_allclose(scores[1], np.delete(scores, 1, axis=0).min(axis=0) - 1)


def test_people_of_one_image_stay_in_one_fold(monkeypatch):
    paths = [f"{row // 3}.jpg" for row in range(90)]
    spy = Spy(monkeypatch)
    run_protocol(table_of(voc_like("voc2012-action", paths=paths)), FAST)
    for fitted, held in spy.choices:
        assert held
        assert not {paths[row] for row in fitted} & {paths[row] for row in held}


# --- Caltech


def test_caltech_keeps_held_out_and_test_rows_apart(monkeypatch):
    dataset = caltech_like()
    spy = Spy(monkeypatch)
    result = run_protocol(table_of(dataset, noise=1), FAST)
    assert result.protocol == "caltech"
    for number, (fitted, held) in enumerate(spy.choices, start=1):
        train = set(dataset.splits[f"train-{number}"].tolist())
        assert set(held) == set(dataset.splits[f"held-out-{number}"].tolist())
        assert set(fitted) == train - set(held)
        assert set(spy.fits[number - 1]) == train
        assert not train & set(result.runs[number - 1].rows.tolist())
    assert len(spy.choices) == len(spy.fits) == 3
    for run in result.runs:
        assert len(set(run.choice.C)) == 1
        assert run.choice.curve.shape == (3, 1)


def test_caltech_recall_mean_and_deviation_counted_by_hand():
    result = run_protocol(table_of(caltech_like(), noise=1), FAST)
    recalls = []
    for run in result.runs:
        per_class = []
        for k in range(3):
            rows = [i for i, row in enumerate(run.rows) if row // 10 == k]
            per_class.append(sum(int(np.argmax(run.scores[i])) == k for i in rows) / len(rows))
        assert run.values["recall"].tolist() == per_class
        recalls.append(sum(per_class) / 3)
    assert 1 / 3 < result.headline < 1
    assert result.headline == pytest.approx(sum(recalls) / 3)
    assert result.deviation("recall") == pytest.approx(statistics.stdev(recalls))
    assert result.chance == pytest.approx(1 / 3)
    assert result.metric_name == "mean class recall"
    assert result.confusion.sum(axis=1).tolist() == [9, 9, 9]
    assert np.trace(result.confusion) / 27 == pytest.approx(result.secondary["accuracy"])


def test_one_split_has_no_deviation():
    result = run_protocol(table_of(caltech_like(splits=1)), FAST)
    assert result.deviation("recall") is None
    assert result.to_json()["deviation"] is None


def test_caltech_without_held_out_splits_holds_a_fifth_of_each_class_out(monkeypatch):
    spy = Spy(monkeypatch)
    dataset = caltech_like(splits=1, held=False)
    run_protocol(table_of(dataset), FAST)
    ((fitted, held),) = spy.choices
    assert sorted(row // 10 for row in held) == [0, 1, 2]
    assert set(fitted) | set(held) == set(dataset.splits["train-1"].tolist())


# --- own data


def own(splits, *, single=True):
    labels = one_hot(list(range(3)) * 30) if single else multi_label()
    return data_set(labels, splits, name="folder", task=Task.SINGLE_LABEL if single else Task.MULTI_LABEL)


@pytest.mark.parametrize("single", [True, False])
def test_given_splits_with_val(monkeypatch, single):
    spy = Spy(monkeypatch)
    dataset = own({"train": range(30), "val": range(30, 45), "test": range(60, 90)}, single=single)
    result = run_protocol(table_of(dataset), FAST)
    assert result.protocol == "given-splits"
    assert result.metric == ("recall" if single else "ap-area")
    assert spy.choices == [(list(range(30)), list(range(30, 45)))]
    assert spy.fits == [list(range(45))]
    assert result.runs[0].rows.tolist() == list(range(60, 90))


@pytest.mark.parametrize("tested", ["val", "test"])
def test_given_splits_without_one_of_val_and_test(monkeypatch, tested):
    spy = Spy(monkeypatch)
    result = run_protocol(table_of(own({"train": range(60), tested: range(60, 90)})), FAST)
    ((fitted, held),) = spy.choices
    assert [sum(row % 3 == k for row in held) for k in range(3)] == [4, 4, 4]
    assert sorted(fitted + held) == list(range(60)) == spy.fits[0]
    assert result.runs[0].rows.tolist() == list(range(60, 90))
    assert result.runs[0].name == tested


@pytest.mark.parametrize("single", [True, False])
def test_without_splits_every_row_is_tested_once(monkeypatch, single):
    spy = Spy(monkeypatch)
    result = run_protocol(table_of(own({}, single=single)), FAST)
    assert result.protocol == "k-fold"
    assert sorted(row for run in result.runs for row in run.rows.tolist()) == list(range(90))
    for run, fitted, (rest, held) in zip(result.runs, spy.fits, spy.choices, strict=True):
        tested = set(run.rows.tolist())
        assert tested.isdisjoint(fitted)
        assert sorted(rest + held) == fitted
        if single:
            assert run.test_positives.tolist() == [6, 6, 6]
    assert len(result.runs) == 5
    assert result.deviation(result.metric) > 0


def test_samples_without_labels_are_left_out_of_folds():
    dataset = own({})
    dataset.labels[[2, 9]] = 2
    result = run_protocol(table_of(dataset), FAST)
    tested = sorted(row for run in result.runs for row in run.rows.tolist())
    assert tested == [row for row in range(90) if row not in (2, 9)]
    assert "2 samples without labels took no part" in result.description


def test_results_repeat_to_the_last_digit():
    table = table_of(own({}), noise=1)
    first, second = (run_protocol(table, FAST, clock=lambda: 0.0).to_json() for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


@pytest.mark.parametrize(("dataset", "drawn"), [(voc_like(), None), (caltech_like(), None), (voc_like("voc2012"), 3)])
def test_folds_that_are_given_where_splits_are_fixed_are_no_silent_no_matter(dataset, drawn):
    result = run_protocol(table_of(dataset), replace(FAST, folds=3))
    ignored = [note for note in result.notes if "folds = 3 was given, and decides nothing" in note]
    assert len(ignored) == (drawn is None)
    assert result.settings["protocol"]["folds"] == drawn  # which `--config` gives again: only what was drawn
    assert not any("folds =" in note for note in run_protocol(table_of(dataset), FAST).notes)


def test_another_seed_makes_other_folds():
    table = table_of(own({}), noise=1)
    first, second = (run_protocol(table, ProtocolSettings(svm=ALONE, grid=(1.0,), seed=seed)) for seed in (0, 1))
    assert first.runs[0].rows.tolist() != second.runs[0].rows.tolist()


def test_one_c_is_taken_without_a_choice(monkeypatch):
    spy = Spy(monkeypatch)
    result = run_protocol(table_of(voc_like()), ProtocolSettings(svm=ALONE, grid=(3.0,)))
    assert spy.choices == []
    assert result.runs[0].choice.C.tolist() == [3.0] * 3
    assert "C = 3 was given, not chosen." in result.notes


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (voc_like("voc2007"), "voc"),
        (voc_like("voc2012"), "voc-server"),
        (voc_like("voc2012-action"), "voc-server"),
        (caltech_like(name="caltech256"), "caltech"),
        (caltech_like(name="folder"), "caltech"),
        (own({"train": range(60), "test": range(60, 90)}), "given-splits"),
        (own({}), "k-fold"),
    ],
)
def test_the_protocol_follows_the_data_set(dataset, expected):
    result = run_protocol(table_of(dataset), ProtocolSettings(svm=ALONE, grid=(1.0,)))
    assert result.protocol == expected
    assert result.settings["protocol"]["protocol"] == expected


def test_a_chosen_protocol_wins():
    dataset = voc_like("voc2007")
    result = run_protocol(table_of(dataset), ProtocolSettings(svm=ALONE, grid=(1.0,), protocol="k-fold"))
    assert result.protocol == "k-fold"
    assert any(note.endswith("from all samples: train, val, test.") for note in result.notes)


# --- what is said of weak points


def test_a_class_without_positives_in_the_test_has_no_value_and_that_is_said():
    labels = multi_label()
    labels[60:, 1] = -1
    result = run_protocol(table_of(voc_like(labels=labels)), FAST)
    values = result.runs[0].values["ap-11-point"]
    assert np.isnan(values).tolist() == [False, True, False]
    assert result.headline == pytest.approx((values[0] + values[2]) / 2)
    assert any("no positive of class1" in note and "the other 2 classes" in note for note in result.notes)
    assert result.to_json()["classes"][1]["values"]["ap-11-point"] is None


def test_a_note_that_names_one_class_stands_for_no_other_although_classes_are_called_by_numbers():
    labels = multi_label()
    for k in range(2):  # of five folds, four have a positive
        labels[:, k] = -1
        labels[4 * k : 4 * k + 4, k] = 1
    dataset = replace(voc_like(labels=labels), classes=("1", "2", "3"))
    result = run_protocol(table_of(dataset), ProtocolSettings(svm=ALONE, grid=(1.0,), protocol="k-fold"))
    said = [note for note in result.notes if "there is no positive of" in note]
    assert {note.split(" of ")[1].split(":")[0] for note in said} == {"1", "2"}


@pytest.mark.parametrize("without", [slice(0, 30), slice(30, 60)])
def test_a_class_that_cant_be_chosen_for_takes_the_c_that_is_best_on_average(monkeypatch, without):
    labels = multi_label()
    labels[without, 1] = -1
    prepare_sweep(monkeypatch, [2, 0, 2], columns=[0, 2] if without.start == 0 else [0, 1, 2])
    result = run_protocol(table_of(voc_like(labels=labels)), FAST)
    assert result.runs[0].choice.C.tolist() == [4.0] * 3
    assert any("too few positives or negatives with a descriptor of class1" in note for note in result.notes)


def test_a_fold_without_a_positive_leaves_the_mean_of_the_others():
    labels = np.full((30, 1), -1)
    labels[[3, 8, 15, 22]] = 1
    dataset = data_set(labels, {}, name="folder")
    result = run_protocol(table_of(dataset), ProtocolSettings(svm=ALONE, grid=(1.0, 4.0), folds=5))
    known = [run.means["ap-area"] for run in result.runs if run.test_positives[0]]
    assert len(known) == 4
    assert result.headline == pytest.approx(np.mean(known))
    assert result.interval.mean == pytest.approx(np.mean(known))
    assert result.deviation("ap-area") == pytest.approx(np.std(known, ddof=1))
    assert np.isfinite(result.chance)
    assert any("no positive of any class" in note and "over the other tests" in note for note in result.notes)


def test_a_class_whose_held_out_positives_all_failed_takes_the_c_that_is_best_on_average(monkeypatch):
    prepare_sweep(monkeypatch, [0, 2, 2])
    held = [row for row in range(30, 60) if multi_label()[row, 0] == 1]
    result = run_protocol(table_of(voc_like(), failed=held), FAST)
    assert result.runs[0].choice.C.tolist() == [4.0] * 3
    assert any("too few positives or negatives with a descriptor of class0" in note for note in result.notes)


@pytest.mark.parametrize("failed", [range(60, 90), [row for row in range(60, 90) if multi_label()[row, 1] == 1]])
def test_the_kits_value_of_a_test_that_scores_dont_decide_is_kept_and_that_is_said(failed):
    result = run_protocol(table_of(voc_like(), failed=failed), FAST)
    run = result.runs[0]
    # By VOCevalcls what a results file lacks ranks last, in the order of the list.
    order = np.where(np.isin(np.arange(60, 90), list(failed)), -np.inf, 0.0)
    assert run.values["ap-11-point"][1] == average_precision(run.truth[:, 1], order)
    assert any("no scores of both positives and negatives of class" in note for note in result.notes)


def test_where_no_class_tells_which_c_is_better_the_smallest_is_taken():
    labels = multi_label()
    labels[30:60] = 1
    result = run_protocol(table_of(voc_like(labels=labels)), FAST)
    assert result.runs[0].choice.C.tolist() == [0.25] * 3


@pytest.mark.parametrize("solver", ["newton", "liblinear"])
def test_giving_up_is_said_in_notes_and_table(solver):
    hard = SvmSettings(jobs=1, max_iterations=1, tolerance=1e-30, solver=solver)
    result = run_protocol(table_of(voc_like(), noise=3), ProtocolSettings(svm=hard, grid=(10.0, 100.0)))
    assert any("In the choice of C" in note and "gave up" in note and "6 of 6" in note for note in result.notes)
    assert any("On train + val the solver gave up" in note and "class0" in note for note in result.notes)
    assert [row.converged for row in result.class_rows()] == [(False,)] * 3
    content = result.to_json()
    assert not any(any(line) for line in content["runs"][0]["curve_converged"])
    for stage, count in (("choice", 6), ("fit", 3)):
        assert content["convergence"][stage]["problems"] == count
        assert content["convergence"][stage]["converged"] == 0
        assert content["convergence"][stage]["worst_gap"] > 0


def test_every_solution_has_its_gap():
    settings = ProtocolSettings(svm=ALONE, grid=(0.25, 4.0), folds=2)
    result = run_protocol(table_of(voc_like("voc2012")), settings)
    run, content = result.runs[0], result.to_json()
    assert run.choice.gap.shape == (2, 3)
    assert run.model.gap.shape == result.submission.model.gap.shape == (3,)
    gaps = [run.choice.gap, np.concatenate([run.model.gap, result.submission.model.gap])]
    for (stage, solved), gap in zip(result.convergence().items(), gaps, strict=True):
        assert (solved.problems, solved.converged, solved.worst_gap) == (6, 6, gap.max())
        assert 0 <= solved.worst_gap < 1e-2
        assert content["convergence"][stage] == {"problems": 6, "converged": 6, "worst_gap": gap.max()}
    assert content["runs"][0]["gap"] == run.model.gap.tolist()
    assert content["runs"][0]["curve_gap"] == run.choice.gap.tolist()
    assert content["submission"]["gap"] == result.submission.model.gap.tolist()
    assert [row["gap"] for row in content["classes"]] == [[gap] for gap in run.model.gap.tolist()]


def test_where_nothing_was_solved_there_is_no_gap():
    given = run_protocol(table_of(voc_like()), ProtocolSettings(svm=ALONE, grid=(1.0,)))
    assert given.to_json()["convergence"]["choice"] == {"problems": 0, "converged": 0, "worst_gap": None}
    labels = multi_label()
    labels[:30, 1] = -1
    result = run_protocol(table_of(voc_like(labels=labels)), FAST)
    assert np.isnan(result.runs[0].choice.gap).tolist() == [[False, True, False]] * 3
    assert result.convergence()["choice"].problems == 6


def test_the_worst_of_the_folds_is_said(monkeypatch):
    sweep = SvmProblemSet.sweep

    def stalling(*arguments, **options):
        found = sweep(*arguments, **options)
        assert len(found) == 5
        stalled = np.array([[False], [False], [True]]) & np.ones((3, 3), dtype=bool)
        found[1] = found[1]._replace(converged=~stalled, gap=np.where(stalled, 0.25, 0.0))
        return found

    monkeypatch.setattr(SvmProblemSet, "sweep", stalling)
    result = run_protocol(table_of(voc_like("voc2012", test=False)), FAST)
    np.testing.assert_array_equal(result.runs[0].choice.converged, [[True] * 3, [True] * 3, [False] * 3])
    np.testing.assert_array_equal(result.runs[0].choice.gap[2], [0.25] * 3)
    assert result.runs[0].choice.gap[:2].max() < 0.25
    assert any(
        "gave up before its tolerance for 3 of 9 pairs of class and C: the relative duality gap is up to 2e-01" in note
        for note in result.notes
    )


def test_all_choices_of_a_protocol_are_one_solve(monkeypatch):
    for dataset, parts in ((voc_like(), 1), (voc_like("voc2012"), 5), (caltech_like(), 3), (own({}), 5)):
        with monkeypatch.context() as patch:
            spy = Spy(patch)
            run_protocol(table_of(dataset), FAST)
            assert (spy.solves, len(spy.choices)) == (1, parts)
            assert len(spy.settings) == 1, "the rows are shared by all solves"


def test_json_holds_everything_and_nothing_that_json_lacks():
    result = run_protocol(table_of(caltech_like(), noise=1), FAST)
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["headline"] == result.headline
    assert content["metric"] == {"key": "recall", "name": METRICS["recall"]}
    assert content["deviation"]["values"]["recall"] == result.deviation("recall")
    assert "divisor: their number - 1" in content["deviation"]["kind"]
    assert content["chance"]["formula"].startswith("1 / number of classes")
    assert content["settings"]["protocol"]["svm"]["tolerance"] == FAST.svm.tolerance
    assert content["settings"]["protocol"]["grid"] == [0.25, 1, 4]
    assert content["settings"]["features"] == {"join": "mean"}
    assert content["dataset"]["fingerprint"] == caltech_like().fingerprint()
    assert len(content["runs"]) == 3
    assert content["runs"][0]["plan"]["fitted"] == "train-1"
    assert np.shape(content["runs"][0]["curve"]) == (3, 1)
    assert [row["name"] for row in content["classes"]] == ["class0", "class1", "class2"]
    assert content["classes"][0]["train_positives"] == [5, 5, 5]
    assert np.sum(content["confusion"]) == 27


def test_progress_and_times():
    seen, ticks = [], iter(range(1000))
    result = run_protocol(
        table_of(voc_like()), FAST, progress=lambda *step: seen.append(step), clock=lambda: float(next(ticks))
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["choosing C: trained on train, measured on val", "training on train + val"]
    for stage, total in zip(stages, (9, 3), strict=True):
        done = [step[1:] for step in seen if step[0] == stage]
        assert done == sorted(done)
        assert done[-1] == (total, total)
        assert {of for _, of in done} == {total}
    # Each stage reads the clock at its start and its end; so does the whole, around the three of them.
    assert result.seconds == {"choice": 1, "fit": 1, "test": 1, "total": 7}


# --- refusals


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (voc_like(test=False), "voc2007: expected samples in the split test.*VOCtest_06-Nov-2007.tar"),
        (data_set(multi_label(), {"train": range(50)}, name="voc2007"), "split val.*VOCtrainval_06-Nov-2007.tar"),
        (data_set(multi_label(), {"train": range(9)}, name="voc2012-action"), "split val.*VOCtrainval_11-May-2012"),
        (data_set(multi_label(), {"train": range(9)}), "manifest: expected samples in the split test.*k-fold"),
        (data_set(one_hot([0, 1]), name="caltech101", task=Task.SINGLE_LABEL), "split train-1, found the splits none"),
        (own({"train": range(60), "test": range(59, 90)}), "both in train and in test, found 1, the first is 's059'"),
        (own({"train": range(60), "val": range(59, 70), "test": range(70, 90)}), "the part to choose C on .*'s059'"),
        (
            data_set(np.zeros((4, 0)), name="folder", task=Task.UNLABELLED),
            "folder: expected labels .* a folder a class",
        ),
        (data_set(np.full((4, 2), 2)), "manifest: expected labels"),
        (data_set(np.ones((9, 1)), task=Task.SINGLE_LABEL), "at least 2 classes, found class0"),
        (data_set(np.ones((9, 2)), task=Task.SINGLE_LABEL), r"exactly one class for every sample .*'s\d+'"),
    ],
)
def test_data_that_cant_be_used_is_refused_with_a_remedy(dataset, words):
    with pytest.raises(FitError, match=words):
        run_protocol(table_of(dataset, np.ones((len(dataset), 3))), FAST)


def test_withheld_labels_are_refused_before_anything_is_fitted(monkeypatch):
    spy = Spy(monkeypatch)
    labels = multi_label()
    labels[60:] = 2
    with pytest.raises(FitError, match=r"30 of 30 without, the first is 's060'.*voc-server"):
        run_protocol(table_of(voc_like("voc2007", labels)), FAST)
    assert spy.choices == []


def test_a_class_that_cant_be_trained_is_named_before_anything_is_fitted(monkeypatch):
    spy = Spy(monkeypatch)
    labels = multi_label()
    labels[:60, 2] = -1
    with pytest.raises(FitError, match=r"class sofa: .* in train \+ val to train on, found 0 positive and 60 negative"):
        run_protocol(table_of(voc_like(labels=labels, classes=["car", "cat", "sofa"])), FAST)
    assert spy.choices == []


def test_protocols_must_go_with_the_data_set():
    with pytest.raises(ConfigError, match="caltech measures recall"):
        run_protocol(table_of(voc_like()), ProtocolSettings(protocol="caltech", svm=ALONE))
    with pytest.raises(ConfigError, match="measured by mean class recall, found 'area'"):
        run_protocol(table_of(caltech_like()), ProtocolSettings(rule="area", svm=ALONE))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"protocol": "voc2007"}, "protocol: expected one of auto, voc, .* found 'voc2007'"),
        ({"rule": "ap"}, "rule: expected one of auto, 11-point, area"),
        ({"difficult_in_training": "drop"}, "difficult_in_training: expected one of ignore"),
        ({"difficult_in_scoring": 0}, "difficult_in_scoring: expected one of ignore"),
        ({"grid": ()}, "grid: expected finite numbers above 0"),
        ({"grid": (1.0, -1.0)}, "grid: expected finite numbers above 0"),
        ({"folds": 1}, "folds: expected a whole number from 2, found 1"),
        ({"folds": 2.5}, "folds: expected a whole number, found 2.5"),
        ({"seed": -1}, "seed: expected a whole number from 0, found -1"),
        ({"seed": "a"}, "seed: expected a whole number, found 'a'"),
        ({"held_out": 1.0}, "held_out: expected a fraction"),
    ],
)
def test_settings_are_checked(setting, words):
    with pytest.raises(ConfigError, match=words):
        ProtocolSettings(**setting)


def test_the_grid_is_put_in_order():
    assert ProtocolSettings(grid=(4, 1, 1, 2)).grid == (1.0, 2.0, 4.0)
    assert C_GRID[:7] == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2)
    assert C_GRID[-1] == 1024
    assert len(C_GRID) == 16


def test_the_solver_gets_the_settings(monkeypatch):
    spy = Spy(monkeypatch)
    own_svm = SvmSettings(jobs=1, class_weight="balanced", seed=3)
    run_protocol(table_of(voc_like()), ProtocolSettings(svm=own_svm, grid=(1.0,)))
    assert spy.settings == [own_svm]


def test_models_are_what_the_solver_returns():
    # The protocols score through the model only, so any solver will do.
    ones = np.ones(2)
    model = LinearModel(coef=np.eye(2), intercept=np.array([0, 1.0]), C=ones, converged=ones == 1, gap=0 * ones)
    np.testing.assert_array_equal(model.scores(np.array([[2.0, 3.0]])), [[2, 4]])


# --- chance levels, by hand


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_chance_of_recall_is_one_of_all_classes_however_few_a_fold_holds(folds):
    """12 images of 2 classes in 10 folds: most hold one class, which a guess meets half of the time."""
    dataset = data_set(one_hot([0, 1] * 6), name="folder", task=Task.SINGLE_LABEL)
    result = run_protocol(table_of(dataset), ProtocolSettings(svm=ALONE, grid=(1.0,), folds=folds))
    assert [run.chance for run in result.runs] == [0.5] * folds
    assert result.chance == 0.5
    assert result.to_json()["chance"] == {"value": 0.5, "formula": "1 / number of classes"}


def test_chance_of_recall_where_the_test_lacks_a_class():
    splits = {"train": range(60), "test": [row for row in range(60, 90) if row % 3]}
    assert run_protocol(table_of(own(splits)), FAST).chance == pytest.approx(1 / 3)


def test_chance_of_recall_is_what_random_guesses_reach():
    truth = one_hot([0, 0, 0, 1, 2, 2], 4)  # Class 3 does not occur.
    evaluation = Evaluation(dataset=data_set(truth, task=Task.SINGLE_LABEL), metric="recall")
    rng = np.random.default_rng(0)
    guessed = [evaluation.means(evaluation.values(truth, s), truth, s) for s in rng.random((4000, 6, 4))]
    assert np.mean([one["recall"] for one in guessed]) == pytest.approx(evaluation.chance(truth), abs=0.01)
    assert np.mean([one["accuracy"] for one in guessed]) == pytest.approx(evaluation.chance(truth), abs=0.01)


@pytest.mark.parametrize("metric", ["ap-area", "ap-11-point"])
def test_chance_of_average_precision_is_that_of_all_orders(metric):
    truth = np.array([[1, 1, -1], [-1, 1, -1], [-1, -1, -1], [0, -1, -1]], dtype=np.int8)
    evaluation = Evaluation(dataset=data_set(truth), metric=metric)
    rule = metric.removeprefix("ap-")

    def mean_of_orders(labels):
        return np.mean([average_precision(np.array(one), -np.arange(len(one)), rule) for one in permutations(labels)])

    # A sample that is ignored is in no order; a class without positives has no value.
    by_hand = np.mean([mean_of_orders([1, -1, -1]), mean_of_orders([1, 1, -1, -1])])
    assert mean_of_orders([1, -1, -1]) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert evaluation.chance(truth) == pytest.approx(by_hand, abs=0.05)
    assert np.isnan(evaluation.chance(truth[:, 2:]))


# --- who is at fault


@pytest.mark.parametrize("lonely", [0, 1])
def test_a_class_with_one_image_is_named_and_not_the_other(lonely):
    dataset = data_set(one_hot([1 - lonely] * 9 + [lonely]), name="folder", task=Task.SINGLE_LABEL, classes=["a", "b"])
    with pytest.raises(FitError, match=f"class {'ab'[lonely]}: .*found 0 positive .* the data set has 1 of it: add"):
        run_protocol(table_of(dataset), FAST)


def test_images_that_failed_are_the_reason_where_they_are():
    dataset = own({"train": range(60), "test": range(60, 90)})
    failed = range(1, 60, 3)
    with pytest.raises(FitError, match=r"class class1: .*0 positive and 40 negative, because 20 image"):
        run_protocol(table_of(dataset, failed=failed), FAST)


def test_splits_that_take_no_part_are_named_with_what_is_lost():
    dataset = own({"train": range(30), "test": range(30, 60), "holdout": range(50, 90), "both": range(60)})
    assert "Splits that were not used: holdout (30 samples)." in run_protocol(table_of(dataset), FAST).notes
    dataset = own({"monday": range(45), "tuesday": range(45, 90)})
    (note,) = run_protocol(table_of(dataset), FAST).notes
    assert note == "Splits that were not used, because folds are drawn from all samples: monday, tuesday."


def test_splits_that_caltech_does_not_know_are_named():
    given = caltech_like(splits=1)
    splits = dict(given.splits) | {"val-1": given.splits["test-1"][:3], "test-2": given.splits["test-1"][:2]}
    dataset = data_set(given.labels, splits, task=Task.SINGLE_LABEL)
    assert "Splits that were not used: val-1 (3 samples), test-2 (2 samples)." in run_protocol(table_of(dataset)).notes
    assert not any("not used" in note for note in run_protocol(table_of(given)).notes)


def test_an_image_that_is_trained_on_and_tested_on_as_two_samples_is_named():
    splits = {"train": range(30), "test": range(30, 60)}
    labels = one_hot([row % 3 for row in range(60)])
    paths = [f"{row}.jpg" for row in (*range(30), *range(25, 30), *range(35, 60))]
    dataset = data_set(labels, splits, task=Task.SINGLE_LABEL, paths=paths)
    words = "5 images are in train and, with other samples, in test as well, the first is 25.jpg"
    assert any(note.startswith(words) for note in run_protocol(table_of(dataset), FAST).notes)
