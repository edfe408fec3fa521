"""What all benchmarks share: turns, rates, and a report whose text and JSON say the same."""

import json

import pytest
import torch

from vggfeat.benchmarks.measure import Column, Report, in_turns, machine, rate, with_threads

CPU = torch.device("cpu")


def some_report(rows, **more):
    columns = {"name": Column(""), "rate": Column("G/s", ".2f", 1e9), "ratio": Column("ratio", ".1f")}
    return Report(
        name="test", settings={"batch_size": 4, "scales": [256, 384]}, machine=machine(CPU), columns=columns, rows=rows,
        **more,
    )  # fmt: skip


def test_a_table_has_a_row_for_each_subject_and_a_dash_for_what_it_has_not():
    rows = [{"name": "ours", "rate": 3e9, "ratio": 2.0, "seen": 1}, {"name": "peer", "rate": 1.5e9}]
    shown = some_report(rows, notes=["ratio: of rates"]).text().splitlines()
    assert shown[0] == "batch size 4; scales 256, 384"
    assert shown[1] == machine(CPU)["device"]
    assert shown[3:] == ["       G/s  ratio", "ours  3.00    2.0", "peer  1.50      -", "", "ratio: of rates"]


def test_a_column_that_no_row_has_is_left_out():
    assert "ratio" not in some_report([{"name": "ours", "rate": 3e9}]).text()


def test_the_json_names_format_settings_machine_and_rows():
    rows = [{"name": "ours", "rate": 3e9, "rounds": [2e9, 3e9]}]
    found = json.loads(json.dumps(some_report(rows, figures={"total": 7}).content()))
    assert list(found) == ["format", "version", "settings", "machine", "total", "rows"]
    assert found["format"] == "vggfeat-bench-test"
    assert (found["rows"], found["total"]) == (rows, 7)
    assert found["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_subjects_take_turns():
    order, said = [], []
    subjects = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    assert in_turns(subjects, 2, said.append) == {"a": [1, 3], "b": [2, 4]}
    assert order == list("abab")
    assert said[-1] == "round 2 of 2: b"


def test_a_rate_is_of_what_was_done_after_the_warm_up(monkeypatch):
    moments = iter(range(100))
    monkeypatch.setattr("vggfeat.benchmarks.measure.time.perf_counter", lambda: next(moments))
    done = iter([1000, 6, 2, 4, 5])
    # From 0 the clock is asked after every act, and a last time: two acts in three seconds.
    assert rate(lambda: next(done), CPU, 2.0, warm_up=1) == pytest.approx((6 + 2) / 3)
    assert rate(lambda: 5, CPU, 0.0) > 0


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with with_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_gpu_is_named_and_waited_for_before_and_after(monkeypatch):
    order = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"name of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    assert machine(torch.device("cuda:1"))["device"] == machine("cuda:1", 4)["device"] == "name of cuda:1"
    assert rate(lambda: order.append("act") or 1, torch.device("cuda:1"), 0.0, warm_up=2) > 0
    assert order == ["act", "act", "wait", "act", "wait"]


def test_a_cpu_is_named_with_its_threads():
    assert [machine("cpu", count)["device"] for count in (1, 3)] == ["cpu, 1 thread", "cpu, 3 threads"]
