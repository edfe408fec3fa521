"""Extraction by several processes: the same bytes whatever their number, through deaths, refusals and signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feature_rows import ALONE, seen_by
from tests.proofs.common import draw
from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.devices import default_workers
from vggfeat.runtime.distributed import open_world

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen():
    """What `rank_runs.py` saw; the parent of its processes has loaded everything, so that each is a fork away."""
    return seen_by("rank_runs")


def ended_well(run, count):
    assert run["codes"] == [0] * count, run["err"]
    assert run["equal"]
    assert run["left"] == ["x.h5"]
    assert not [line for said in run["err"] for line in said.splitlines() if "is an untrained net" not in line]
    assert not any(run["err"][1:])


@pytest.mark.parametrize("count", [2, 3])
def test_processes_make_the_file_of_one_to_the_byte_and_the_first_speaks(seen, count):
    run = seen[f"together {count}"]
    ended_well(run, count)
    assert run["out"][1:] == [""] * (count - 1)
    told = json.loads(run["out"][0])
    assert (told["total"], told["resumed"], told["failures"]) == (7, 0, [])


def test_a_killed_process_loses_its_shard_alone_and_another_number_goes_on(seen):
    first = seen["killed"]["first"]
    assert first["codes"] == [6, -signal.SIGKILL, 6]
    # 0, 3, 6 are the first's, 1, 4 the killed one's, 2, 5 the third's.
    assert first["shards"] == [f"s{shard:05d}.h5" for shard in (0, 1, 2, 3, 5, 6)]
    for rank, name in ((0, "vggfeat"), (2, "vggfeat, process 2")):
        assert re.search(
            rf"^{name}: process {rank} of 3: .* lost touch with one; .*$", first["err"][rank], re.MULTILINE
        )
        assert "Traceback" not in first["err"][rank]
    # The first has made 3, and may have lost touch before the third had made its last.
    assert re.search(
        "(3 of 7 images done, 4|4 of 7 images done, 3|5 of 7 images done, 2|6 of 7 images done, 1) left",
        first["err"][0],
    )
    ended_well(seen["killed"]["again"], 2)
    assert json.loads(seen["killed"]["again"]["out"][0])["resumed"] == 6


def test_another_run_is_refused_while_one_of_the_processes_lives(seen):
    found = seen["refused"]
    numbers = ", ".join(map(str, found["pids"]))
    for name, count in (("alone", 1), ("two", 2), ("orphan", 1)):
        assert found[name]["codes"] == [6] * count
        assert all(f"expected to be its only writer, found process {numbers}" in said for said in found[name]["err"])
    assert found["ended"]["codes"] == [-signal.SIGKILL, 6]
    ended_well(found["again"], 3)


def test_a_signal_ends_the_wait_for_the_others(seen):
    found = seen["stopped"]
    assert found["codes"] == [143, 6]
    assert found["seconds"] < 5
    assert "stopped by SIGTERM" in found["err"][0]
    ended_well(found["again"], 2)
    assert json.loads(found["again"]["out"][0])["resumed"] == 7


def test_processes_of_different_settings_are_refused_before_anything_is_computed(seen):
    found = seen["others"]["other"]
    assert found["codes"] == [6, 6]
    assert "vggfeat, process 1: " in found["err"][1]
    assert 'layer: found "fc6", expected "fc7"' in found["err"][1]
    assert "lost touch with one" in found["err"][0]
    assert found["shards"] == []


def test_a_full_disk_of_one_is_told_by_that_one(seen):
    found = seen["others"]["full"]
    assert found["codes"] == [6, 6]
    assert re.search(r"^vggfeat, process 1: .* the disk is full", found["err"][1], re.MULTILINE)
    assert found["shards"] == [f"s{shard:05d}.h5" for shard in (0, 2, 4, 6)]


def test_posteriors_of_two_processes_are_those_of_one(seen):
    found = seen["classify"]
    assert found["codes"] == [0, 0, 0], found["err"]
    one, two = found["digests"]
    assert one == two
    assert len(one) == 2
    assert found["out"][1] == ""
    assert "top-1" in found["out"][0]


def test_a_process_may_belong_to_one_world_after_another(seen):
    assert seen["worlds"] == [0, 0]


def test_processes_started_by_hand_make_the_same_file(seen):
    run = seen["by_hand"]["together"]
    ended_well(run | {"err": run["err"][::-1]}, 2)


def test_who_waits_for_others_names_them_once_and_heeds_signals(seen):
    # The others never come: that a process ended at all was the signal's doing.
    (code, said), second = seen["by_hand"]["first"]
    assert code == 130
    (note,) = re.findall("^note: waiting .*", said, re.MULTILINE)
    assert re.fullmatch("note: waiting for processes 1,( 2,)? 3 of 4", note)  # The second may have been late.
    assert second[0] in (143, 6)
    [(code, said)] = seen["by_hand"]["other"]
    assert code == 130
    told = re.findall("^note: .*", said, re.MULTILINE)
    assert len(told) == 1
    assert re.fullmatch(r"note: process 1: waiting for process 0 of 4 at 127\.0\.0\.1, port [0-9]+", told[0])


TWO = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("change", "words"), [
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected 1 to 65536, found 'two'; let torchrun start the command"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected 1 to 65536, found '0'"),
    ({"WORLD_SIZE": "9" * 9}, "WORLD_SIZE: expected 1 to 65536, found '999999999'"),
    ({"RANK": None}, "RANK: expected 0 to 1, found none"),
    ({"RANK": "2"}, "RANK: expected 0 to 1, found '2'"),
    ({"RANK": "-1"}, "RANK: expected 0 to 1, found '-1'"),
    ({"LOCAL_RANK": "2"}, "LOCAL_RANK: expected 0 to 1, found '2'"),
    ({"MASTER_PORT": None}, "MASTER_PORT: expected 1 to 65535, found none"),
    ({"MASTER_PORT": "0"}, "MASTER_PORT: expected 1 to 65535, found '0'"),
    ({"MASTER_ADDR": ""}, "MASTER_ADDR: expected the machine of process 0, found none"),
])  # fmt: skip
def test_a_place_among_the_processes_that_is_none_is_refused_in_one_line(change, words):
    environ = {name: text for name, text in (TWO | change).items() if text is not None}
    with pytest.raises(ConfigError) as caught, open_world("cpu", environ, lost=StoreError):
        pass
    assert words in str(caught.value)


def test_processes_share_the_cores_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    for beside, workers in ((None, 12), ("1", 12), ("4", 3), ("100", 1)):
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if beside:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
        assert default_workers() == workers
    for beside, found in (("two", "'two'"), ("0", "'0'"), ("", "none")):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
        with pytest.raises(ConfigError, match=f"LOCAL_WORLD_SIZE: expected 1 to 65536, found {found}; let torchrun"):
            default_workers()


def test_a_port_that_is_taken_is_told_by_the_first():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": str(taken.getsockname()[1])}
        with pytest.raises(ConfigError) as caught, open_world("cpu", TWO | place, lost=StoreError):
            pass
    assert f"free port of it, found localhost, {place['MASTER_PORT']}: " in str(caught.value)


def test_no_message_is_a_pickle():
    # PyTorch's collectives of objects unpickle in one process what another has sent.
    for path in sorted((ROOT / "vggfeat").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search("(gather|broadcast|scatter|send|recv)_object", text), path


def test_what_processes_send_comes_back_as_json_and_errors_as_their_class(seen):
    first, second = seen["messages"]
    assert first == second
    told, stopped, refused = first
    assert told == [[{"rank": 0, "x": None}, {"rank": 1, "x": [1.5, "\udc80"]}], {"1": [2, 3]}]
    assert stopped == ["Stopped", "enough"]
    assert "process 0: expected a message of 1 to 1000 bytes, found 2002; what is finished is kept" in refused


@pytest.mark.long
def test_torchrun_starts_all_again_when_one_is_killed(tmp_path):
    for number in range(40):
        draw(tmp_path / "in" / "ab"[number % 2] / f"{number}.png", number)
    words = ["extract", "--dataset", "folder", "--root", tmp_path / "in", "--weights", "random:A:0:0.125"]
    words += ["--scales", "256", "--device", "cpu", "--workers", "1", "--shard-rows", "2", "--quiet", "--out"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "--max-restarts", "1"]
    out = tmp_path / "x.h5"

    def start(*command):
        return subprocess.Popen([sys.executable, *map(str, command)], env=os.environ | ALONE)

    assert start("-m", "vggfeat", *words, tmp_path / "whole.h5").wait(120) == 0
    running = start(*launch, "-m", "vggfeat", *words, out)
    parts, deadline = tmp_path / "x.h5.parts", time.monotonic() + 120
    while len(list(parts.glob("s*.h5"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int((parts / "LOCK").read_text().splitlines()[-1].split()[0]), signal.SIGKILL)
    assert not out.exists()
    try:
        assert running.wait(120) == 0
    finally:
        running.kill()
        running.wait()
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not parts.exists()
