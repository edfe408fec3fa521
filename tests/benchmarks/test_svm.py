"""The benchmark of the SVM stage: its data, its peer, and that both solvers solve the same problems."""

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.svm import SVC, LinearSVC

from vggfeat.benchmarks import svm as bench
from vggfeat.benchmarks.peer import (
    FORMS,
    SIZES,
    PeerForm,
    PrecomputedForm,
    Size,
    SnapForm,
    Trial,
    fastest,
    make_descriptors,
    make_problem,
    objectives,
    other_forms,
    solve,
    try_forms,
)
from vggfeat.cli import run
from vggfeat.errors import ConfigError


@pytest.fixture(scope="module")
def tiny():
    return make_problem("tiny")


@pytest.fixture(scope="module")
def measured(tiny):
    return bench.measure(tiny, threads=1)


# --- the data


def test_descriptors_resemble_real_ones(tiny):
    x = tiny.descriptors
    assert x.dtype == np.float32
    assert x.min() == 0
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)


def test_descriptors_are_correlated():
    size = Size(classes=1, images=900, channels=300, note="")
    rng = np.random.default_rng(0)
    x = make_descriptors(np.where(rng.random((900, 1)) < 0.5, 1, -1), size, rng)

    def share_of_ten(table):
        values = np.linalg.svd(table - table.mean(axis=0), compute_uv=False) ** 2
        return values[:10].sum() / values.sum()

    shuffled = np.stack([rng.permutation(column) for column in x.T], axis=1)
    assert share_of_ten(x) > 1.5 * share_of_ten(shuffled)


def test_equal_seeds_give_equal_problems():
    first, same, other = make_problem("tiny", 3), make_problem("tiny", 3), make_problem("tiny", 4)
    np.testing.assert_array_equal(first.descriptors, same.descriptors)
    np.testing.assert_array_equal(first.labels, same.labels)
    assert (first.descriptors != other.descriptors).any()


@pytest.mark.parametrize(
    ("name", "rows", "length", "classes", "fit", "held_out", "refit"),
    [
        ("voc", 5011, 4096, 20, 2505, 2506, 5011),
        ("caltech101", 6120, 12288, 102, 2448, 612, 3060),
        ("caltech256", 16448, 24576, 257, 12336, 3084, 15420),
        ("caltech256-part", 4096, 24576, 64, 3072, 768, 3840),
    ],
)
def test_sizes_are_those_of_the_tasks(monkeypatch, name, rows, length, classes, fit, held_out, refit):
    monkeypatch.setattr("vggfeat.benchmarks.peer.make_descriptors", lambda labels, size, rng: labels[:, :1])
    problem, size = make_problem(name), SIZES[name]
    assert problem.labels.shape == (rows, classes)
    assert size.blocks * size.channels == length
    assert size.sample == (None if name == "voc" else 24)
    for split in problem.splits:
        assert (len(split.fit), len(split.held_out), len(split.refit)) == (fit, held_out, refit)
        assert not set(split.fit) & set(split.held_out)
        assert set(split.fit) | set(split.held_out) == set(split.refit)
        assert max(split.refit) < rows
        if problem.size.single:
            held = (problem.labels[split.held_out] == 1).sum(axis=0)
            assert set(held.tolist()) == {held_out // classes}


def test_classes_of_voc_are_as_uneven_as_the_real_ones(monkeypatch):
    monkeypatch.setattr("vggfeat.benchmarks.peer.make_descriptors", lambda labels, size, rng: labels[:, :1])
    shares = (make_problem("voc").labels == 1).mean(axis=0)
    assert shares[0] == pytest.approx(0.4, abs=0.03)
    assert np.median(shares) < 0.1
    assert shares.min() > 0.02


def test_an_unknown_size_is_refused():
    with pytest.raises(ConfigError, match=r"size: expected one of tiny, voc, .*, found 'huge'"):
        make_problem("huge")


# --- the peer


def some_problems(n=60, length=8, problems=5):
    rng = np.random.default_rng(0)
    x = rng.random((n, length), dtype=np.float32)
    values = x @ rng.standard_normal((length, problems)) + rng.standard_normal((n, problems))
    signs = np.where(values > np.median(values, axis=0), 1, -1)
    return x, signs.astype(np.int8), np.geomspace(0.05, 2, problems)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [8, 90])
def test_every_form_solves_the_problem_of_linear_svc(form, length):
    x, signs, costs = some_problems(length=length)
    found = solve(x, signs, costs, form, threads=1)
    for p, cost in enumerate(costs):
        svm = LinearSVC(C=cost, tol=1e-10, max_iter=1_000_000).fit(x.astype(float), signs[:, p])
        np.testing.assert_allclose(found.coef[p], svm.coef_[0], atol=0.02)
        np.testing.assert_allclose(found.intercept[p], svm.intercept_[0], atol=0.02)
    assert found.converged.all()
    assert found.solving > 0


@pytest.mark.parametrize("length", [8, 90])
def test_inner_products_solve_the_problem_of_svc(length):
    x, signs, costs = some_problems(length=length)
    found = solve(x, signs, costs, PrecomputedForm(), threads=1)
    for p, cost in enumerate(costs):
        svm = SVC(kernel="linear", C=cost).fit(x.astype(float), signs[:, p])
        np.testing.assert_allclose(found.coef[p], svm.coef_[0], atol=1e-6)
        np.testing.assert_allclose(found.intercept[p], svm.intercept_[0], atol=1e-6)
    assert found.converged.all()


def test_snapml_solves_the_problem_of_linear_svc():
    pytest.importorskip("snapml")
    x, signs, costs = some_problems()
    found = solve(x, signs, costs, SnapForm(), threads=1)
    best = solve(x, signs, costs, PeerForm("float64", True, False), threads=1)
    mine, theirs = (objectives(x, signs, costs, one.coef, one.intercept)[0] for one in (found, best))
    np.testing.assert_allclose(mine, theirs, rtol=1e-3)


def test_workers_give_the_same_and_say_what_they_needed():
    x, signs, costs = some_problems()
    form = PeerForm("float64", True, False)
    one, two = (solve(x, signs, costs, form, threads) for threads in (1, 2))
    np.testing.assert_allclose(one.coef, two.coef, atol=1e-2)
    assert one.memory == 0
    assert two.memory > 1e7


def test_objective_and_gap_as_counted_by_hand():
    # One dimension, points 1 and -1, C = 1: 0.5 w^2 + 2 (1 - w)^2 is least at w = 4/5, where it is 0.4.
    x, signs = np.array([[1.0], [-1.0]], np.float32), np.array([[1], [-1]])
    values, gap = objectives(x, signs, np.ones(1), np.array([[0.8]]), np.zeros(1))
    np.testing.assert_allclose(values, [0.4])
    np.testing.assert_allclose(gap, [0], atol=1e-15)
    # At w = 0 the slacks are 1, so v' = (4, 0), and the gap half of 16 over the objective of 2.
    values, gap = objectives(x, signs, np.ones(1), np.zeros((1, 1)), np.zeros(1))
    np.testing.assert_allclose((values[0], gap[0]), (2, 4))


def test_the_gap_bounds_what_is_above_the_minimum():
    x, signs, costs = some_problems()
    best = solve(x, signs, costs, PeerForm("float64", True, False), threads=1)
    lowest, _ = objectives(x, signs, costs, best.coef, best.intercept)
    for scale in (0.9, 0.99, 1.01):
        values, gap = objectives(x, signs, costs, scale * best.coef, best.intercept)
        assert ((values - lowest) / values <= gap).all()


def test_the_fastest_form_must_find_the_minimum():
    forms = [form for form in FORMS if not form.reduced]
    tried = dict(zip(forms, [Trial(0.1, 10.2), Trial(3, 10), Trial(2, 10.05)], strict=False))  # the first gave up
    assert fastest(tried, reduced=False) == forms[2]
    assert fastest(tried, reduced=True) is None
    assert fastest(tried | {FORMS[-1]: Trial(5, 10)}, reduced=True) == FORMS[-1]
    assert fastest({}, reduced=False) is None


def test_reducing_is_tried_where_it_can_help():
    assert len(set(FORMS)) == 8
    x, signs, _ = some_problems(n=30, length=50)
    assert set(try_forms(x, signs[:, 0])) == set(FORMS)
    x, signs, _ = some_problems(n=60, length=8)
    assert set(try_forms(x, signs[:, 0])) == {form for form in FORMS if not form.reduced}


def test_peak_memory_counts_what_was_held():
    # In a process of its own, because this one may have held more before.
    script = (
        "import numpy as np; from vggfeat.runtime.system import peak_memory; "
        "before = peak_memory(); np.ones(50_000_000); print(peak_memory() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 390e6 < int(done.stdout) < 450e6


def test_the_memory_of_the_solvers_is_measured_without_pytorch():
    script = (
        "import sys; from vggfeat.cli import run; "
        "code = run(['bench', 'svm', '--size', 'tiny', '--threads', '1', '--json']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


# --- both


def test_both_solve_all_problems_to_the_same_objectives(measured):
    own, peer = measured.rows[:2]
    for row in (own, peer):
        assert row["problems"] == row["solved"] == row["converged"] == 12 * 5 + 5
        assert 0 <= row["worst_gap"] < 1e-2
        assert row["seconds"] == row["choice_seconds"] + row["fit_seconds"]
        assert row["memory"] > 1e7
    assert own["worst_gap"] < 1e-5
    assert -1e-3 < peer["lead"] <= peer["excess"] < 1e-2
    assert peer["same_choices"] == 1
    assert peer["ratio"] == peer["seconds"] / own["seconds"]


def test_who_solves_another_problem_is_not_compared(measured):
    others = {row["solver"]: row for row in measured.rows[2:]}
    assert list(others) == [str(form) for form in other_forms()]
    svc = others["SVC, precomputed kernel"]
    assert svc["solves"] == "plain hinge"
    assert svc["solved"] == svc["converged"] == 65
    assert svc["ratio"] > 0
    assert [svc[key] for key in ("worst_gap", "excess", "lead", "same_choices")] == [None] * 4
    assert {row["solves"] for name, row in others.items() if name != str(PrecomputedForm())} <= {"squared hinge"}


def test_a_sample_is_spread_and_its_time_extrapolated(tiny, monkeypatch):
    solved = []

    def watched(x, signs, costs, form, threads):
        found = solve(x, signs, costs, form, threads)
        solved.append(costs.tolist())
        return found._replace(preparing=100.0, solving=10.0 * len(costs))

    monkeypatch.setattr(bench, "solve", watched)
    report = bench.measure(tiny, threads=1, sample=4)
    peer = report.rows[1]
    assert [len(costs) for costs in solved] == [4, 4] * (1 + len(other_forms()))
    assert solved[0][0] == bench.GRID[0]
    assert solved[0][-1] == bench.GRID[-1]
    assert (peer["choice_seconds"], peer["fit_seconds"]) == (100 + 10 * 60, 100 + 10 * 5)
    assert (peer["solved"], peer["problems"], peer["same_choices"]) == (8, 65, None)
    assert f"{peer['solver']}: 8 of 65 problems solved, seconds extrapolated" in report.notes


def test_one_class_an_image_means_one_c_a_split(monkeypatch):
    small = Size(classes=4, images=15, blocks=2, channels=40, splits=2, training=10, strength=1.0, note="small")
    monkeypatch.setitem(SIZES, "tiny", small)
    own, *peers = bench.measure(make_problem("tiny"), threads=1).rows
    peers = [peer for peer in peers if peer["solver"].startswith("LinearSVC")]
    assert own["problems"] == 2 * (12 * 4 + 4)
    assert [peer["solver"].endswith("reduced by QR") for peer in peers] == [False, True]
    assert all(peer["same_choices"] == 1 for peer in peers)


def test_of_equal_curves_the_smallest_c_is_chosen(tiny):
    held_out = tiny.splits[0].held_out
    right = (tiny.labels[held_out].T == 1).astype(float)
    scores = np.stack([-right, *[right] * 11])
    assert bench.choose(tiny, held_out, scores).tolist() == [bench.GRID[1]] * 5


def test_a_stronger_signal_is_easier_to_see():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((400, 1)) < 0.5, 1, -1)
    apart = []
    for strength in (0.0, 2.0):
        size = Size(classes=1, images=400, channels=64, strength=strength, note="")
        x = make_descriptors(labels, size, np.random.default_rng(1))
        apart.append(np.linalg.norm(x[labels[:, 0] == 1].mean(axis=0) - x[labels[:, 0] == -1].mean(axis=0)))
    assert apart[1] > 3 * apart[0]


def test_the_command_prints_a_table_or_json(capsys):
    assert run(["bench", "svm", "--size", "tiny", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "rows 200; length 64; classes 5; values of C 12" in shown
    assert "LinearSVC" in shown
    assert run(["bench", "svm", "--size", "tiny", "--threads", "1", "--sample", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN
    assert found["format"] == "vggfeat-bench-svm"
    assert found["machine"]["device"] == "cpu, 1 thread"
    own, peer = found["rows"][:2]
    assert len(found["trial_seconds"]) == 4
    assert (own["solved"], peer["solved"]) == (65, 6)
    documented = {"solver", "choice_seconds", "fit_seconds", "seconds", "worst_gap", "memory"}
    assert documented <= own.keys()
    assert documented | {"ratio", "excess", "lead"} <= peer.keys()


def test_the_command_can_leave_the_peer_out(capsys):
    assert run(["bench", "svm", "--size", "tiny", "--threads", "1", "--no-peer"]) == 0
    shown = capsys.readouterr().out
    assert "vggfeat, newton, CPU" in shown
    assert "LinearSVC" not in shown
    assert run(["bench", "svm", "--size", "tiny", "--no-peer", "--sample", "3"]) == 2


def test_the_command_says_what_was_extrapolated(capsys):
    assert run(["bench", "svm", "--size", "tiny", "--threads", "1", "--sample", "3"]) == 0
    assert "6 of 65 problems solved, seconds extrapolated" in capsys.readouterr().out


def test_descriptors_in_a_file_are_solved_by_both_solvers(capsys):
    words = ["bench", "svm", "--size", "stored", "--shape", "600x32", "--threads", "1", "--json"]
    assert run(words) == 0
    stream, newton = json.loads(capsys.readouterr().out)["rows"]
    assert (stream["solver"], newton["solver"]) == ("vggfeat, stream", "vggfeat, newton")
    assert stream["converged"] == newton["converged"] == stream["solved"] == 100
    assert max(newton["excess"], -newton["lead"]) < 2e-6
    assert stream["passes"] > 10
    assert run([*words, "--no-peer"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "stored", "--sample", "3"], "--sample: not together"),
        (["--shape", "9x9"], "--shape: expected together"),
    ],
)
def test_options_of_stored_descriptors_are_theirs_alone(words, message, capsys):
    assert run(["bench", "svm", *words]) == 2
    assert message in capsys.readouterr().err
