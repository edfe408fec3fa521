"""Durable files and locks: whole or not at all, and free as soon as the holder is gone."""

import errno
import fcntl
import functools
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from vggfeat.errors import StoreError
from vggfeat.runtime import durable
from vggfeat.runtime.durable import (
    DISK,
    Files,
    LatchedFile,
    append,
    atomic_write,
    disk_errors,
    is_temporary,
    make_folders,
    open_bounded,
    sweep,
    temporary_path,
    write_all,
)
from vggfeat.runtime.locks import Lock, holder
from vggfeat.runtime.output_paths import check_name


class Recording(Files):
    """Notes the calls and what they were given; one fails, or writes so many bytes at a time."""

    def __init__(self, fail=None, most=None):
        self.calls, self.given = [], []
        for name in ("create", "write", "sync", "make_folder", "sync_folder", "rename", "remove"):
            setattr(self, name, functools.partial(self._call, name, fail, most))

    def _call(self, name, fail, most, first, *more):
        self.calls.append(name)
        self.given.append(first)
        if name == fail:
            raise OSError(errno.EIO, "broken")
        if name == "write":
            more = (more[0][:most], more[1])
        return getattr(DISK, name)(first, *more)


def test_file_gets_its_name_after_its_bytes_are_synced_and_the_folder_last(tmp_path):
    files = Recording()
    with atomic_write(files, tmp_path / "a") as sink:
        sink.write(b"bytes")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"bytes"
    assert files.calls == ["create", "write", "sync", "rename", "sync_folder"]


@pytest.mark.parametrize("call", ["write", "sync", "rename"])
def test_failed_call_leaves_the_old_file_and_no_other(tmp_path, call):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="broken"), atomic_write(Recording(fail=call), tmp_path / "a") as sink:
        sink.write(b"new")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def put_in_the_way(path, kind, other):
    """Put something at `path` that is no file; a link leads to another's, to nothing next to it, or to itself."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link": other, "broken link": path.with_name("none"), "loop": path}[kind])


@pytest.mark.parametrize("kind", ["link", "broken link", "loop", "pipe", "folder"])
def test_what_is_no_file_of_ours_is_refused_by_name_and_not_waited_for(tmp_path, kind):
    path, other = tmp_path / "a", tmp_path / "b"
    other.write_bytes(b"another's")
    put_in_the_way(path, kind, other)
    with pytest.raises(StoreError, match=rf"{path}: expected a regular file, found a link, folder, pipe or device"):
        open_bounded(path)


def test_own_file_is_read_and_a_missing_one_is_missing(tmp_path):
    (tmp_path / "a").write_bytes(b"bytes")
    with open_bounded(tmp_path / "a") as file:
        assert file.read() == b"bytes"
    with pytest.raises(FileNotFoundError):
        open_bounded(tmp_path / "b")


def test_file_that_its_writer_refuses_never_gets_its_name(tmp_path):
    def refuse():
        with atomic_write(DISK, tmp_path / "a", temp=tmp_path / "b") as sink:
            sink.write(b"new")
            assert (tmp_path / "b").read_bytes() == b"new"
            raise StoreError("no")

    with pytest.raises(StoreError):
        refuse()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("given", [True, False])
def test_temporary_file_never_goes_through_a_link(tmp_path, monkeypatch, given):
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    temp = tmp_path / "a.tmp" if given else tmp_path / f".a.{durable._machine()}.00000000.tmp"
    temp.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError), atomic_write(DISK, tmp_path / "a", temp=temp if given else None):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_never_replaced(tmp_path, kind):
    put_in_the_way(tmp_path / "a", kind, None)
    with pytest.raises(StoreError, match="a: expected a file to replace, or none"), atomic_write(DISK, tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == ["a"]
    assert not (tmp_path / "a").is_file()


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    (tmp_path / "a").write_bytes(b"private")
    (tmp_path / "a").chmod(0o600)
    with atomic_write(DISK, tmp_path / "a") as sink:
        assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600, 0o600], "while it is written too"
        sink.write(b"new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


WRITER = """
import pathlib, sys, time
from vggfeat.runtime.durable import DISK, atomic_write
with atomic_write(DISK, pathlib.Path(sys.argv[1])) as sink:
    sink.write(b"half")
    print(flush=True)
    time.sleep(60)
"""


def writer_of(path):
    """Start a process that is writing a file, and wait until it is at it."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_what_killed_writers_left_is_swept_and_a_living_one_is_not_disturbed(tmp_path):
    """Their process number is no help: in every container it is 1."""
    for _ in range(2):
        killed = writer_of(tmp_path / "a")
        killed.kill()
        killed.communicate()
    (left,) = tmp_path.iterdir()
    living = writer_of(tmp_path / "a")
    (at_work,) = tmp_path.iterdir()
    assert at_work != left
    others = [tmp_path / ".ab.00000000.00000000.tmp", tmp_path / ".a.notes.tmp", tmp_path / "a.tmp"]
    for path in others:
        path.write_bytes(b"another's")
    with atomic_write(DISK, tmp_path / "a") as sink:
        sink.write(b"whole")
    assert set(tmp_path.iterdir()) == {tmp_path / "a", at_work, *others}
    assert (tmp_path / "a").read_bytes() == b"whole"
    living.kill()
    living.communicate()


def test_a_name_of_an_unfinished_file_is_known(tmp_path):
    for name in ("a", "a.tar", "x\ny"):
        assert is_temporary(temporary_path(tmp_path / name).name)
    for name in ("a", ".a.tmp", ".a.0123abcd.tmp", "a.0123abcd.4567abcd.tmp", ".a.0123abcd.4567abcd.tmp.h5"):
        assert not is_temporary(name)


@pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
def test_of_another_machine_only_what_is_old_is_swept(tmp_path, hours, stays):
    """Its locks may not reach us: not every network file system carries them."""
    left = tmp_path / ".a.0123abcd.4567abcd.tmp"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 3600 * hours,) * 2)
    sweep(DISK, tmp_path / "a")
    assert left.exists() is stays


def test_a_file_system_without_locks_is_written_to_and_nothing_is_swept(tmp_path, monkeypatch):
    def refuse(fd, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    left = tmp_path / f".a.{durable._machine()}.4567abcd.tmp"
    left.write_bytes(b"half")
    with atomic_write(DISK, tmp_path / "a") as sink:
        sink.write(b"whole")
    assert set(tmp_path.iterdir()) == {tmp_path / "a", left}


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    real, seen = fcntl.flock, []

    def swept(fd, operation):
        if not seen:
            seen.extend(tmp_path.iterdir())
            seen[0].unlink()
        real(fd, operation)

    monkeypatch.setattr("fcntl.flock", swept)
    with atomic_write(DISK, tmp_path / "a") as sink:
        sink.write(b"whole")
    assert seen
    assert (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_short_writes_go_on_where_they_stopped(tmp_path, most):
    files = Recording(most=most)
    with atomic_write(files, tmp_path / "a") as sink:
        sink.write(b"0123456")
    assert (tmp_path / "a").read_bytes() == b"0123456"
    assert files.calls.count("write") == -(-7 // most)


def test_disk_that_takes_nothing_is_an_error_and_no_endless_loop():
    class Full(Files):
        def write(self, fd, data, offset):
            return 0

    with pytest.raises(OSError, match="took no bytes"):
        write_all(Full(), -1, memoryview(b"abc"), 0)


def test_latched_file_pretends_after_the_first_error_and_tells_it_later(tmp_path):
    files = Recording(fail="write")
    fd = files.create(tmp_path / "a")
    sink = LatchedFile(files, fd)
    assert sink.write(b"abc") == 3
    assert sink.write(b"def") == 3
    assert (sink.tell(), sink.seek(0, io.SEEK_END)) == (6, 6)
    assert sink.truncate(4) == 4
    assert files.calls == ["create", "write"]
    with pytest.raises(OSError, match="broken"):
        sink.raise_first_error()
    os.close(fd)


def test_latched_file_holds_back_an_interrupt_too(tmp_path):
    class Interrupted(Files):
        def write(self, fd, data, offset):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic_write(Interrupted(), tmp_path / "a") as sink:
        assert sink.write(b"abc") == 3
    assert os.listdir(tmp_path) == []


def test_latched_file_is_a_file_to_hdf5(tmp_path):
    values = np.arange(1000.0)
    with atomic_write(DISK, tmp_path / "a.h5") as sink, h5py.File(sink, "w") as file:
        file["x"] = values
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file["x"][...] == values).all()


def test_latched_file_reads_back_what_it_wrote(tmp_path):
    with atomic_write(DISK, tmp_path / "a") as sink:
        sink.write(b"0123456789")
        sink.seek(3)
        assert sink.read(4) == b"3456"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EIO, "strange")],
)
def test_disk_errors_become_one_line_with_place_cause_and_advice(tmp_path, number, words):
    with pytest.raises(StoreError) as caught, disk_errors(tmp_path / "x.h5", "writing", "fix it"):
        raise OSError(number, "strange")
    message = str(caught.value)
    assert str(tmp_path / "x.h5") in message
    assert words in message
    assert message.endswith("fix it")
    assert "\n" not in message


def test_folder_sync_is_not_asked_of_disks_that_know_none(tmp_path, monkeypatch):
    def refuse(fd):
        raise OSError(errno.EINVAL, "unknown")

    monkeypatch.setattr(os, "fsync", refuse)
    DISK.sync_folder(tmp_path)

    def fail(fd):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken"):
        DISK.sync_folder(tmp_path)


def test_lock_is_held_by_one_and_names_its_process(tmp_path):
    lock = Lock(tmp_path / "LOCK")
    with pytest.raises(BlockingIOError):
        Lock(tmp_path / "LOCK")
    assert holder(tmp_path / "LOCK") == f"process {os.getpid()}"
    assert (tmp_path / "LOCK").read_text().split()[0] == str(os.getpid())
    lock.release()
    lock.release()
    Lock(tmp_path / "LOCK").release()


def test_lock_on_a_removed_file_is_no_lock(tmp_path, monkeypatch):
    """The last holder removes the file between our opening and locking it: we must lock the next one."""
    real, removed = fcntl.flock, []

    def flock(fd, operation):
        if not removed:
            removed.append(os.unlink(tmp_path / "LOCK"))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = Lock(tmp_path / "LOCK")
    assert (tmp_path / "LOCK").exists()
    with pytest.raises(BlockingIOError):
        Lock(tmp_path / "LOCK")
    lock.release()


@pytest.mark.parametrize(("content", "named"), [
    (b"12\n13\n", "process 12, 13"),  # as they were written before they named the machine
    (b"12 node3\n", "process 12 on node3"),
    (b"12 {here}\n4711 node3\n13 {here}\n4712 node3\n", "process 12, 13 and process 4711, 4712 on node3"),
    (b"12 {here}\n4711 no", "process 12"),
])  # fmt: skip
def test_processes_of_another_machine_are_named_with_it(tmp_path, content, named):
    (tmp_path / "LOCK").write_bytes(content.replace(b"{here}", os.uname().nodename.encode()))
    assert holder(tmp_path / "LOCK") == named


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_refuses_locks_is_told_from_one_that_refuses_files(tmp_path, monkeypatch, number):
    sharing = Lock(tmp_path / "shared")

    def refuse(fd, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    expected = rf"LOCK: expected a file system that can lock a file, .* \({os.strerror(number)}\); choose an output on"
    for joining in (False, True):
        with pytest.raises(StoreError, match=expected):
            Lock(tmp_path / "LOCK", joining=joining)
    with pytest.raises(StoreError, match=expected.replace("LOCK", "shared")):
        sharing.share()
    sharing.release()


def test_machine_of_an_odd_name_is_written_so_that_it_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("vggfeat.runtime.system.machine_name", lambda: "node\n3 \x1b é" + "x" * 100)
    lock = Lock(tmp_path / "LOCK")
    assert holder(tmp_path / "LOCK") == f"process {os.getpid()}"
    monkeypatch.undo()
    assert holder(tmp_path / "LOCK").startswith(f"process {os.getpid()} on node-3----x")
    lock.release()


def test_of_a_lock_file_as_large_as_a_disk_only_the_beginning_is_read(tmp_path):
    with open(tmp_path / "LOCK", "wb") as file:
        file.write(b"12\n")
        file.truncate(1 << 36)
    begun = time.monotonic()
    assert holder(tmp_path / "LOCK") == "process 12"
    assert time.monotonic() - begun < 5
    lock = Lock(tmp_path / "LOCK")
    assert (tmp_path / "LOCK").stat().st_size < 100
    lock.release()


@pytest.mark.parametrize("joining", [False, True])
@pytest.mark.parametrize("kind", ["link", "broken link", "pipe", "folder"])
def test_lock_that_is_no_file_is_refused_by_name_and_not_waited_for(tmp_path, kind, joining):
    path, other = tmp_path / "LOCK", tmp_path / "b"
    other.write_bytes(b"another's")
    put_in_the_way(path, kind, other)
    for ask in (holder, lambda where: Lock(where, joining=joining)):
        with pytest.raises(StoreError, match=rf"{path}: expected a regular file, found a link, .*; move it away"):
            ask(path)
    assert other.read_bytes() == b"another's"
    assert not (tmp_path / "none").exists()


def test_own_file_that_becomes_a_pipe_as_it_is_opened_is_refused(tmp_path, monkeypatch):
    real = os.open
    (tmp_path / "a").write_bytes(b"bytes")

    def swapped(path, *arguments):
        os.unlink(path)
        os.mkfifo(path)
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(StoreError, match="expected a regular file"):
        open_bounded(tmp_path / "a")


@pytest.mark.parametrize(
    "content", [None, b"", b"no number", b"\xff\xfe", b"12", b"12\nno number\n", b"12 \x1b[2J\n", b"9" * 30 + b"\n"]
)
def test_holder_of_an_unreadable_lock_is_another_process(tmp_path, content):
    if content is not None:
        (tmp_path / "LOCK").write_bytes(content)
    assert holder(tmp_path / "LOCK") == "another process"


def test_folders_are_made_from_the_top_and_synced_in_the_folder_that_holds_them(tmp_path):
    files = Recording()
    make_folders(files, tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert files.calls == ["make_folder", "sync_folder", "make_folder", "sync_folder"]
    assert files.given == [tmp_path / "a", tmp_path, tmp_path / "a" / "b", tmp_path / "a"]
    make_folders(files, tmp_path / "a" / "b")
    assert len(files.calls) == 4
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "c"):
        with pytest.raises(FileExistsError, match="File exists"):
            make_folders(files, place)


class Torn(Files):
    """Writes half, then fails at a call."""

    def __init__(self, fails):
        self.fails, self.writes = fails, 0

    def write(self, fd, data, offset):
        self.writes += 1
        if self.fails == "write" and self.writes == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(fd, data[: len(data) // 2 + 1], offset)

    def sync(self, fd):
        if self.fails == "sync":
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)


def test_what_is_added_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_bytes(b"first\n")
    append(Torn(""), path, b"second line\n")
    whole = path.read_bytes()
    assert whole == b"first\nsecond line\n"
    close = os.close

    def refuse(fd):
        close(fd)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "close", refuse)
    for fails, number in (("write", errno.ENOSPC), ("sync", errno.EIO)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            append(Torn(fails), path, b"third line\n")
        assert caught.value.errno == number
        assert path.read_bytes() == whole


def test_a_name_must_leave_room_for_those_of_the_files_next_to_it(tmp_path):
    for name in ("x" * 180, "é" * 90):
        check_name(tmp_path / name)
        check_name(Path(name))
    (tmp_path / "short").symlink_to("y" * 200)
    for name in ("x" * 181, "é" * 91, "x" * 245, "short"):
        with pytest.raises(StoreError, match=r"expected a name of at most 180 bytes, .*choose a shorter --out"):
            check_name(tmp_path / name)
