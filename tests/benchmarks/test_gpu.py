"""The first hour on a GPU, rehearsed on the CPU: every part is measured, kept, and costs no other."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vggfeat.benchmarks import gpu as gpu_bench
from vggfeat.benchmarks.gpu import BATCHINGS, PRECISIONS, TINY, Bench, Extent, count_tests, parts
from vggfeat.cli import run
from vggfeat.runtime.checksums import unsealed, unsealed_line

NONE = {"passed": 0, "failed": 0, "skipped": 0}


def gpu(out, *words):
    return run(["bench", "gpu", "--out", str(out), "--device", "cpu", "--tiny", "--workers", "0", *words])


def rows(out):
    found = unsealed(json.loads((out / "gpu.json").read_text()))
    return {row["name"]: row for row in found["rows"]}, found


@pytest.fixture(autouse=True, scope="module")
def quick_tests():
    """Rehearse with tests that need no PyTorch; those of a GPU would all be skipped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_bench, "TINY", replace(TINY, tests=("tests/formats/test_csv_cells.py",)))
        yield


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory, quick_tests):
    out = tmp_path_factory.mktemp("gpu")
    assert gpu(out) == 0
    return out


def test_every_part_is_measured(rehearsed):
    measured, found = rows(rehearsed)
    assert list(measured) == parts("cpu")
    assert [row["error"] for row in measured.values() if "error" in row] == found["left"] == []
    assert all(row["seconds"] > 0 and row["memory"] > 1e7 for row in measured.values())
    assert {name for name in measured if name.startswith("extract")} == {
        f"extract, {precision}, {batching}" for precision in PRECISIONS["cpu"] for batching in BATCHINGS
    }
    assert {name: measured["tests"][name] for name in ("passed", "failed", "skipped")} == NONE
    assert measured["train"]["settings"]["batch"] == 2
    assert measured["svm"]["worst_gap"] < 1e-5


def test_figures_of_extraction_fit_together(rehearsed):
    measured, _ = rows(rehearsed)
    for precision in PRECISIONS["cpu"]:
        row, product = (measured[name] for name in (f"extract, {precision}, size", f"matrix product, {precision}"))
        assert product["tera_ops"] == pytest.approx(2 * product["multiply_adds"] / 1e12)
        assert row["images"] == 2
        assert row["wait"] == pytest.approx(max(0, 1 / row["rate"] - row["net"] - row["resize"]))
        assert row["share"] > 0
        assert row["least_cosine"] > 0.999
        padded = measured[f"extract, {precision}, padded"]
        assert [(one["passes"], one["shapes"]) for one in (row, padded)] == [(2, 2), (1, 1)]
        assert min(row[stage] for stage in ("decode", "resize", "net", "write")) > 0


def test_the_table_says_what_was_measured(rehearsed):
    table = (rehearsed / "gpu.txt").read_text()
    (train,) = (line.split() for line in table.splitlines() if line.startswith("train"))
    assert "A" not in train  # The name of the net is no time of it.
    for words in (*parts("cpu"), "images/s", "Tflop/s", "of the roofline", "wait ms", "cpu, "):
        assert words in table


def test_a_second_run_goes_on_part_by_part(rehearsed, tmp_path, monkeypatch):
    *kept, last = (rehearsed / "gpu.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "gpu.jsonl").write_bytes(b"".join([*kept, last[: len(last) // 2]]))
    asked = []
    monkeypatch.setattr(
        Bench, "measure", lambda bench, part: asked.append(part) or {"part": part, "error": "", "found": {"name": part}}
    )
    assert gpu(tmp_path) == 0
    assert asked == [unsealed_line(last)["part"]]
    assert gpu(tmp_path) == 0
    assert len(asked) == 1


def test_a_part_that_fails_costs_no_other_and_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vggfeat.benchmarks.gpu.parts", lambda device: ["memory copy", "svm", "matrix product, fp32"])

    def broken(bench):
        raise RuntimeError("CUDA error: an illegal memory access\nmore lines")

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "svm", broken)
        assert gpu(tmp_path) == 0
    assert "1 parts failed; the same command tries them again" in capsys.readouterr().out
    measured, _ = rows(tmp_path)
    assert measured["svm"]["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert measured["matrix product, fp32"]["tera_ops"] > 0
    assert gpu(tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    again, _ = rows(tmp_path)
    assert again["svm"]["worst_gap"] < 1e-5
    assert again["memory copy"] == measured["memory copy"] == found["rows"][0]


def test_a_part_that_ended_the_whole_process_comes_last(tmp_path, monkeypatch):
    monkeypatch.setattr("vggfeat.benchmarks.gpu.parts", lambda device: ["memory copy", "svm", "matrix product, fp32"])
    asked = []

    def deadly(bench, part):
        asked.append(part)
        if asked == ["memory copy"]:
            raise SystemExit(139)
        return {"part": part, "error": "", "found": {"name": part}}

    monkeypatch.setattr(Bench, "measure", deadly)
    with pytest.raises(SystemExit, match="139"):
        gpu(tmp_path)
    assert gpu(tmp_path) == 0
    assert asked == ["memory copy", "svm", "matrix product, fp32", "memory copy"]
    assert [path.name for path in sorted(tmp_path.glob("gpu*"))] == ["gpu.json", "gpu.jsonl", "gpu.txt"]


def test_a_figure_that_is_no_number_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("vggfeat.benchmarks.gpu.parts", lambda device: ["memory copy"])
    monkeypatch.setattr("vggfeat.benchmarks.gpu.copy_rate", lambda *_, **__: float("nan"))
    assert gpu(tmp_path) == 0
    assert rows(tmp_path)[0]["memory copy"]["error"].startswith("ValueError: Out of range float values")


def test_tests_that_fail_are_counted_and_named():
    cases = '<testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><skipped/></testcase>'
    found = count_tests(ElementTree.fromstring(f"<testsuites><testsuite>{cases}</testsuite></testsuites>"))
    assert found == {"passed": 1, "failed": 1, "skipped": 1, "error": "tests: b"}
    assert count_tests(ElementTree.fromstring("<testsuites/>")) == NONE
    assert all((Path(__file__).parents[2] / file).is_file() for file in (*TINY.tests, *Extent().tests))


def test_when_time_is_over_the_rest_is_left_for_the_next_run(tmp_path, capsys):
    assert gpu(tmp_path, "--minutes", "1e-9") == 0
    shown = capsys.readouterr().out
    assert f"left for the next run, by the same command: {', '.join(parts('cpu'))}" in shown


def test_figures_of_another_machine_are_not_mixed(rehearsed, tmp_path, capsys):
    (tmp_path / "gpu.jsonl").write_bytes((rehearsed / "gpu.jsonl").read_bytes())
    assert run(["bench", "gpu", "--out", str(tmp_path), "--device", "cpu", "--workers", "0"]) == 6
    assert "found others of extent; choose another --out, or give --overwrite" in capsys.readouterr().err
    assert run(["bench", "gpu", "--out", str(tmp_path / "new"), "--device", "nothing"]) == 2


def test_a_gpu_is_measured_in_all_precisions_within_the_time_of_the_command():
    assert sum(name.startswith("extract") for name in parts("cuda:1")) == 8
    assert Extent().scales == (256, 384, 512, 640, 768)
