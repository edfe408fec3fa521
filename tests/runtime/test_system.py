"""The package without what Windows and macOS lack gives the same there; and turns of threads, whatever forks."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import masked
from vggfeat.cli import run
from vggfeat.runtime.system import ForkSafeLock
from vggfeat.store.reader import FeatureFile


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    words = [sys.executable, "-W", "error", masked.__file__, folder]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_macos_imports_everything_and_syncs_to_the_disk_itself(elsewhere):
    folder, seen, _ = elsewhere
    assert seen["macos"] == {"synced": [["written"], [folder.name]], "cores": os.cpu_count(), "guarded": True}


def test_windows_runs_the_main_job(elsewhere):
    _, seen, _ = elsewhere
    assert len(seen["windows"]) > 8
    assert set(seen["windows"].values()) == {0}
    assert (seen["names"], seen["left"]) == ([], [])


def test_windows_says_once_what_is_lost(elsewhere):
    _, _, notes = elsewhere
    for what in ("images are decoded", "files of other libraries are read"):
        assert notes.count(f"note: {what} in this process, because this system has no processes with limits") == 1


def test_features_are_those_of_other_systems_to_the_bit(elsewhere, tmp_path):
    folder, _, _ = elsewhere
    words = ["extract", "--dataset", "folder", "--root", folder / "photos", "--weights", masked.NET, "--scales", "64"]
    assert run([*map(str, words), "--workers", "1", "--quiet", "--out", str(tmp_path / "here.h5")]) == 0
    with FeatureFile(folder / "photos.h5") as there, FeatureFile(tmp_path / "here.h5") as here:
        assert np.array_equal(there.read(), here.read())


def in_thread(turns):
    """Begin a turn in another thread; returns what ends it, and the thread."""
    begun, end = threading.Event(), threading.Event()

    def hold():
        with turns.held():
            begun.set()
            end.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(20)
    return end, thread


def taken_in_child(turns):
    """Fork, and say whether the child gets a turn."""
    pid = os.fork()
    if pid == 0:
        got = threading.Event()

        def take():
            with turns.held():
                got.set()

        threading.Thread(target=take, daemon=True).start()
        os._exit(0 if got.wait(10) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_thread_waits_for_the_turn_of_another_and_not_for_its_own():
    turns, entered = ForkSafeLock(), threading.Event()

    def enter():
        with turns.held(), turns.held():
            entered.set()

    end, thread = in_thread(turns)
    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(0.1)
    end.set()
    assert entered.wait(20)
    thread.join()
    waiting.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("long", [False, True])
def test_the_child_of_a_fork_gets_its_turn(long):
    turns = ForkSafeLock(long=long)
    end, thread = in_thread(turns)
    if not long:
        threading.Timer(0.2, end.set).start()
    assert taken_in_child(turns)
    assert end.is_set() is not long  # Only for the end of a short one it waits.
    end.set()
    thread.join()
    assert taken_in_child(turns)
