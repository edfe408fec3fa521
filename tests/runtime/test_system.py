"""The package without what Windows and macOS lack: it is imported, and the main job gives the same there."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import masked
from vggfeat.cli import run
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
