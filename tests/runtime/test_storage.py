"""A root and what is below it: names taken once, whole or not at all, in the order of their paths."""

import errno
import os
from pathlib import Path

import pytest

from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.durable import Files
from vggfeat.runtime.storage import (
    LocalStorage,
    MissingFileError,
    StorageSettings,
    is_remote,
    open_storage,
    root_text,
    with_small_schemes,
)


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(str(tmp_path / "run"))


def test_the_first_that_writes_a_name_wins(storage):
    assert storage.write_new("plan/part-000000.parquet", b"first")
    assert not storage.write_new("plan/part-000000.parquet", b"second")
    assert storage.read("plan/part-000000.parquet") == b"first"
    storage.replace("plan/part-000000.parquet", b"third")
    assert storage.read("plan/part-000000.parquet") == b"third"


def test_a_part_of_a_file_ends_where_the_file_does(storage):
    storage.write_new("a", b"0123456789")
    assert [storage.read("a", 2, 3), storage.read("a", 8, 5), storage.read("a", 12, 1), storage.read("a", 7)] == [
        b"234", b"89", b"", b"789",
    ]  # fmt: skip


def test_a_missing_file_is_told_from_one_that_cannot_be_read(storage):
    with pytest.raises(MissingFileError, match=r"/run/plan.json: expected a file, found none$"):
        storage.read("plan.json")
    storage.write_new("plan/a", b"")
    with pytest.raises(MissingFileError):
        storage.read("plan/a/b")
    with pytest.raises(StoreError, match="expected a regular file, found a link, folder"):
        storage.read("plan")
    assert not storage.exists("plan") and not storage.exists("plan.json")  # noqa: PT018  both are no file


def test_entries_come_in_the_order_of_whole_paths_whatever_the_folders(storage):
    names = ["b/c", "a/b", "a.d/e", "a", "b-c", "b/c.d/e", "B"]
    names.remove("a")  # of which there is a folder
    for name in names:
        storage.write_new(name, name.encode())
    assert [entry.path for entry in storage.entries()] == sorted(names)
    assert [(entry.path, entry.size) for entry in storage.entries("b")] == [("b/c", 3), ("b/c.d/e", 7)]
    assert list(storage.entries("none")) == []


def test_what_is_not_complete_is_no_entry(storage, tmp_path):
    storage.write_new("a", b"a")
    (tmp_path / "run" / ".b.0123abcd.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / "run" / "away").symlink_to("nowhere")
    assert [entry.path for entry in storage.entries()] == ["a"]


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a", "a/../../b", "a\0b"])
def test_no_path_leads_out_of_the_root(storage, path):
    with pytest.raises(ConfigError, match="expected a path below it"):
        storage.write_new(path, b"")


@pytest.mark.parametrize("call", ["make_folder", "create", "write", "sync", "rename", "sync_folder"])
def test_a_disk_that_refuses_leaves_a_whole_file_or_none(tmp_path, call):
    class Failing(Files):
        pass

    def fail(self, *_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    setattr(Failing, call, fail)
    with pytest.raises(StoreError, match="writing failed: Input/output error; nothing that was finished is lost"):
        LocalStorage(str(tmp_path / "run"), Failing()).write_new("features/a", b"content")
    after = LocalStorage(str(tmp_path / "run"))
    after.write_new("features/a", b"content")
    assert after.read("features/a") == b"content"
    assert os.listdir(tmp_path / "run" / "features") == ["a"]


def test_addresses_of_this_machine_are_folders(tmp_path):
    assert open_storage(f"file://{tmp_path}").root == open_storage(tmp_path).root == str(tmp_path)
    assert [is_remote(root) for root in ("s3://bucket/run", "https://a.b/c", "file:///a", "a/b")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_an_address_that_was_made_a_path_is_one_still(tmp_path, monkeypatch):
    assert is_remote(Path("s3://bucket/run"))
    assert open_storage(Path("memory://bucket/run")).root == "memory://bucket/run"
    assert open_storage(Path(f"file://{tmp_path}")).root == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("s3:/bucket/run").mkdir(parents=True)
    assert not is_remote(Path("s3:/bucket/run"))


def test_schemes_are_the_same_in_any_case(tmp_path, monkeypatch):
    assert open_storage(f"FILE://{tmp_path}").root == open_storage(Path(f"File://{tmp_path}")).root == str(tmp_path)
    assert root_text(Path("S3://Bucket/A::B/Run")) == "s3://Bucket/A::B/Run"
    assert with_small_schemes("ZIP://A.png::HTTPS://Host/B.zip") == "zip://A.png::https://Host/B.zip"
    assert with_small_schemes("SimpleCache::S3://Bucket/A") == "simplecache::s3://Bucket/A"
    assert open_storage("MEMORY://bucket/run").root == "memory://bucket/run"
    for odd in ("A::B", "C:/x", "FILE", "a/B://c"):
        assert root_text(odd) == odd
    monkeypatch.chdir(tmp_path)
    Path("FILE:/x").mkdir(parents=True)
    assert root_text("FILE:/x") == "FILE:/x"  # as it is called on this disk


def test_patience_is_checked():
    with pytest.raises(ConfigError, match="found attempts 0"):
        StorageSettings(attempts=0)


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refused)
    for ask in (LocalStorage(str(tmp_path)).exists, lambda name: LocalStorage(str(tmp_path)).write_new(name, b"")):
        with pytest.raises(StoreError, match=r"plan\.json: reading failed: Permission denied"):
            ask("plan.json")
