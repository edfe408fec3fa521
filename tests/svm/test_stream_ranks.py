"""The streaming solver by several processes: the same bits whatever their number, and none waits for one that died."""

import signal

import pytest

from feature_rows import seen_by
from vggfeat.cli import run


@pytest.fixture(scope="module")
def seen():
    """What `svm_ranks.py` saw."""
    return seen_by("svm_ranks")


@pytest.mark.parametrize("count", [2, 3])
def test_processes_find_the_bits_of_one_and_all_know_them(seen, count):
    _, (one,) = seen["solved by 1"]
    codes, told = seen[f"solved by {count}"]
    assert codes == [0] * count
    assert one["converged"]
    assert told == [one] * count


def test_the_others_end_when_one_is_killed(seen):
    codes, told = seen["killed"]
    assert codes == [1, -signal.SIGKILL, 1]
    for rank in (0, 2):
        assert told[rank].startswith(f"process {rank} of 3: expected all processes of the run, lost touch with one")


def test_the_first_process_writes_and_speaks(seen):
    found = seen["command"]
    assert found["code"] == [0, 0], found["err"]
    assert found["out"][0].startswith("class ")
    assert [found["out"][1], *found["err"]] == ["", "", ""]
    assert {"results.json", "scores.npz", "model.safetensors"} <= set(found["files"])


def test_processes_with_other_features_are_refused(seen):
    found = seen["other features"]
    assert found["code"] == [2, 2]
    for said, name in zip(found["err"], ("vggfeat", "vggfeat, process 1"), strict=True):
        assert said.startswith(f"{name}: features: expected the same in all processes, found others in process 1;")
    assert "results.json" not in found["files"]


@pytest.mark.parametrize("words", [["--solver", "newton"], ["--apply", "x.svm"], ["--descriptors", "x.npy"]])
def test_what_one_process_does_is_not_done_by_several(words, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    files = ["--dataset", "voc2007"] if "--descriptors" in words else ["x.h5"]
    assert run(["svm", *files, *words]) == 2
    assert "expected one process with it, found 2; leave torchrun out" in capsys.readouterr().err
