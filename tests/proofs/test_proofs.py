"""The short forms of `python -m tests.proofs`, and that its proofs see what is broken."""

import json
import mmap
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proofs import commands, fuzz, mutants, power
from tests.proofs.__main__ import QUICK
from tests.proofs.common import Ended, Report
from tests.proofs.readers import READERS, Reader
from vggfeat.errors import StoreError

ROOT = Path(__file__).parents[2]


def prove(*words):
    command = [sys.executable, "-W", "error", "-m", "tests.proofs", *words]
    environ = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=environ)
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_promise_is_broken():
    found = {told["family"]: told for told in prove("quick")}
    assert found.keys() == set(QUICK)
    assert found["kills"]["points"] >= 4
    assert found["retries"]["points"] >= 4
    assert found["extensions"]["killed"] >= 2
    assert found["disk"]["faults"] >= 8
    assert found["commands"]["killed"] >= 3
    assert found["fuzz"].keys() >= READERS.keys()


@pytest.mark.long
@pytest.mark.parametrize("name", ["random_kills", "races", "ranks", "images", "training", "soak", "flat"])
def test_no_other_promise_is_broken(name):
    (found,) = prove(name)
    assert found["failures"] == 0


def test_every_command_that_writes_is_among_those_that_are_killed_and_starved():
    assert {case.command for case in commands.CASES} | commands.ELSEWHERE.keys() == set(commands.writing())


# The model of power loss, by hand


def crashes(events, count=300):
    """Return what may stand on the disk: {name: content}, of many crashes."""
    found = set()
    for seed in range(count):
        model = power.Model()
        for name, *given in events:
            model.do(name, *given)
        names = model.crash(random.Random(seed))
        found.add(frozenset((path.name, None if node is None else bytes(node.content)) for path, node in names.items()))
    return found


A, B = Path("/d/a"), Path("/d/b")


def test_a_name_that_was_not_synced_may_be_lost_and_its_bytes_may_be_torn():
    data = b"1" * power.SECTOR + b"2" * power.SECTOR
    states = crashes([("create", A, 3), ("write", 3, data, 0)])
    assert frozenset() in states
    contents = {dict(state)["a"] for state in states if state}
    assert contents == {b"", data, data[: power.SECTOR], bytes(power.SECTOR) + data[power.SECTOR :]}


def test_what_was_synced_is_there():
    made = [("create", A, 3), ("write", 3, b"old", 0), ("sync", 3), ("sync_folder", A.parent)]
    assert crashes(made) == {frozenset({("a", b"old")})}
    assert crashes([*made, ("rename", A, B)]) == {frozenset({("a", b"old")}), frozenset({("b", b"old")})}
    assert crashes([*made, ("rename", A, B), ("sync_folder", A.parent)]) == {frozenset({("b", b"old")})}


def test_a_rename_without_a_sync_before_it_may_show_an_empty_file():
    replaced = [("create", A, 3), ("write", 3, b"new", 0), ("rename", A, B), ("sync_folder", A.parent)]
    assert crashes(replaced) == {frozenset({("b", b"")}), frozenset({("b", b"new")})}


# The fuzz harness


def fail(place):
    raise ValueError("a defect")


def kill(place):
    os.kill(os.getpid(), signal.SIGKILL)


def swell(place):
    # Not by malloc, which may have kept that much from tests before.
    with mmap.mmap(-1, 200 << 20) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        return str(len(block))


def refuse_without_name(place):
    raise StoreError("something is wrong")


def misread(place):
    return "sound" if place.name == "sound" else "other"


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (fail, "ValueError: a defect"),
        (kill, "ended its process"),
        (swell, "took 2"),
        (refuse_without_name, "refused without its name"),
        (misread, "read as something else than was written"),
    ],
)
def test_every_kind_of_failure_is_seen(tmp_path, monkeypatch, read, told):
    first = {"left": True}

    def only_damaged(place):
        return "sound" if place.name == "sound" and first.pop("left", None) else read(place)

    broken = Reader(make=READERS["manifest"].make, read=only_damaged, error=StoreError, exact=True, tree=False)
    monkeypatch.setitem(READERS, "broken", broken)
    report, counts = Report(), dict.fromkeys(("read", "told", "refused", "failed", "slowest_s", "most_mib"), 0)
    fuzz.fuzz("broken", 3, 0, tmp_path, counts, report)
    assert counts["failed"] == 3
    assert told in report.failures[0]


def test_a_case_can_be_had_again(tmp_path):
    found = []
    for name in ("one", "two"):
        READERS["voc"].make(tmp_path / name)
        tree = mutants.read(tmp_path / name)
        fuzz.make("voc", tree, random.Random("0:voc:5"), tmp_path / f"{name}-case")
        found.append(mutants.read(tmp_path / f"{name}-case"))
    assert found[0] == found[1] != tree


@pytest.mark.parametrize(
    ("said", "clean"),
    [("note: x\n\nvggfeat: stopped\n", True), ("a\nb\n", False), ("Traceback (most recent call last):\n", False)],
)
def test_one_line_is_clean_and_a_traceback_is_not(said, clean):
    assert Ended(1, "", said, 0.0).clean == clean
