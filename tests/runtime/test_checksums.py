"""The files of a run are current together, whenever the process that writes them dies."""

import errno
import os
import stat
import subprocess

import pytest

from dying_disk import Dying, Killed
from vggfeat.errors import StoreError
from vggfeat.runtime import checksums
from vggfeat.runtime.checksums import SUMS, RunFiles, replace_run
from vggfeat.runtime.durable import Files

OLD = {"results.json": b"old results", "scores.npz": b"old scores", "model-fold-9.safetensors": b"old model"}
NEW = {"results.json": b"new results", "scores.npz": b"new scores", "model.safetensors": b"new model"}
OWN = ("model.safetensors", "model-*.safetensors")


def write(folder, contents, files=None):
    return replace_run(files or Files(), folder, contents, last="results.json", own=OWN)


def read(folder):
    """What a reader of the whole run sees; None if it is refused."""
    files = RunFiles(folder)
    try:
        content = {name: files.read(name, 100) for name in files.sums}
        files.check()
    except (StoreError, FileNotFoundError):
        return None
    return content


@pytest.mark.parametrize("before", [None, OLD], ids=["empty folder", "old run"])
def test_after_a_kill_at_any_step_there_is_the_old_run_the_new_run_or_a_refusal(tmp_path, before):
    seen = []
    for calls in range(100):
        folder = tmp_path / str(calls)
        folder.mkdir()
        if before:
            write(folder, before)
        try:
            write(folder, NEW, Dying(calls))
        except Killed:
            seen.append(read(folder))
        else:
            break
    else:
        raise AssertionError("it never ends")
    assert read(folder) == NEW
    assert [found for found in seen if found not in (before or {}, None, NEW)] == []
    assert seen[0] == (before or {})
    assert seen[-1] == NEW, "only what is stale was to be removed, or the folder synced"
    assert None in seen
    order = [1 if found is None else 2 if found == NEW else 0 for found in seen]
    assert order == sorted(order), "once the new run has begun to come, the old one is never read again"


def test_a_refusal_says_what_to_do(tmp_path):
    write(tmp_path, OLD)
    (tmp_path / "scores.npz").write_bytes(b"of another run")
    with pytest.raises(StoreError) as raised:
        RunFiles(tmp_path).check()
    assert str(raised.value) == (
        f"{tmp_path / 'scores.npz'}: expected the file of the run that run.sha256 lists, found other bytes; a run was "
        "stopped while it replaced the files of this folder, or the file was changed: give the command of the run "
        "again, or, if the file was changed on purpose, remove run.sha256"
    )


def test_what_was_removed_does_no_harm_but_the_last_file_does(tmp_path):
    write(tmp_path, OLD)
    (tmp_path / "scores.npz").unlink()
    RunFiles(tmp_path).check()
    with pytest.raises(StoreError, match=r"scores\.npz: expected the file of the run .*, found none"):
        RunFiles(tmp_path).check("scores.npz")
    (tmp_path / "results.json").unlink()
    with pytest.raises(StoreError, match=r"results\.json: expected the file of the run .*, found none"):
        RunFiles(tmp_path).check()


def test_files_of_an_earlier_run_go_and_those_of_others_stay(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    write(tmp_path, OLD)
    assert [path.name for path in write(tmp_path, NEW)] == [*NEW, SUMS]
    assert sorted(os.listdir(tmp_path)) == sorted([*NEW, SUMS, "mine.txt"])


def test_another_program_can_check_the_sums(tmp_path):
    write(tmp_path, NEW)
    assert subprocess.run(["sha256sum", "--strict", "-c", SUMS], cwd=tmp_path, capture_output=True).returncode == 0


def test_permissions_of_the_files_are_kept(tmp_path):
    write(tmp_path, OLD)
    (tmp_path / "results.json").chmod(0o600)
    write(tmp_path, NEW)
    assert stat.S_IMODE((tmp_path / "results.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", [b"\xff", b"no sums", b"0" * 64 + b"  ../x\n", b"0" * 64 + b"  /x\n", b"0" * 64 + b"  .x\n", b"\n"]
)
def test_sums_that_are_none_are_refused(tmp_path, content):
    (tmp_path / SUMS).write_bytes(content)
    with pytest.raises(StoreError, match=r"run\.sha256: expected .*; move it away"):
        RunFiles(tmp_path)


def test_no_link_is_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "table.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match=r"table\.txt: expected a regular file, found a link"):
        RunFiles(tmp_path / "run").read("table.txt", 100)


def test_checksums_that_cannot_be_read_now_are_not_to_be_moved_away(tmp_path, monkeypatch):
    write(tmp_path, OLD)

    def unreadable(path, most):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checksums, "read_bounded", unreadable)
    with pytest.raises(StoreError, match=r"run\.sha256: reading failed: Input/output error; fix it"):
        RunFiles(tmp_path)
