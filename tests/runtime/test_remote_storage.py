"""A root in an object store: the promises of a folder, kept by a server that fails, is slow, and loses its answers."""

import contextlib
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto")

import s3_server
from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime import remote_storage
from vggfeat.runtime.addresses import UnreachableError
from vggfeat.runtime.storage import Entry, MissingFileError, StorageSettings, open_storage

QUICK = StorageSettings(wait=0.005, timeout=1)
FAULTS = ("500", "reset", "cut", "lost", "stuck", "slow")


@pytest.fixture(scope="module")
def server():
    with s3_server.served() as proxy:
        yield proxy


@pytest.fixture
def store(server, request):
    server.fault = lambda *_: None
    server.log.clear()
    yield open_storage(f"s3://bucket/{request.node.name}", QUICK)
    server.fault = lambda *_: None


def fail(server, fault, times):
    """Let the next requests fail."""
    server.log.clear()
    server.fault = lambda method, path, number: fault if number <= times else None


def test_the_first_that_writes_a_name_wins(store):
    assert store.write_new("plan/part-000000.parquet", b"first")
    assert not store.write_new("plan/part-000000.parquet", b"second")
    assert store.read("plan/part-000000.parquet") == b"first"
    store.replace("plan/part-000000.parquet", b"third")
    assert store.read("plan/part-000000.parquet") == b"third"


def test_of_many_that_write_a_name_at_once_one_wins(store):
    with ThreadPoolExecutor(16) as threads:
        for number in range(10):
            won = list(threads.map(lambda k, name=f"{number}": store.write_new(name, bytes([k]) * 1000), range(16)))
            assert sum(won) == 1
            assert store.read(f"{number}") == bytes([won.index(True)]) * 1000


def test_a_part_of_a_file_ends_where_the_file_does(store):
    store.write_new("a", b"0123456789")
    assert [store.read("a", 2, 3), store.read("a", 8, 5), store.read("a", 12, 1), store.read("a", 7)] == [
        b"234", b"89", b"", b"789",
    ]  # fmt: skip
    store.write_new("empty", b"")
    assert store.read("empty") == store.read("empty", 0, 5) == b""
    assert (store.size("a"), store.size("empty")) == (10, 0)


def test_large_files_come_whole(store):
    data = bytes(range(256)) * 20_000
    store.write_new("large", data)
    assert store.read("large") == data
    assert store.read("large", 5, 4_000_000) == data[5:4_000_005]


def test_a_missing_file_is_told_from_one_that_cannot_be_read(store, server):
    with pytest.raises(
        MissingFileError, match=r"^s3://bucket/.*/plan.json: expected a file at this address, found none"
    ):
        store.read("plan.json")
    assert len(server.log) == 2  # its size, for which S3 looks for a folder of that name too
    store.write_new("plan/a", b"")
    assert not store.exists("plan.json")
    assert not store.exists("plan")
    assert store.exists("plan/a")
    with pytest.raises(MissingFileError):
        open_storage("s3://no-such-bucket/run", QUICK).read("a")
    assert list(open_storage("s3://bucket/none", QUICK).entries()) == []


def test_entries_come_in_the_order_of_whole_paths_whatever_the_folders_and_pages(store, monkeypatch):
    monkeypatch.setattr(remote_storage, "PAGES", 1)
    names = ["b/c", "a/b", "a.d/e", "a", "b-c", "b/c.d/e", "B", "b/ä ö+&%20.jpg", "\N{GRINNING FACE}", "\uffee"]
    for name in names:
        store.write_new(name, name.encode())
    assert [entry.path for entry in store.entries()] == sorted(names)
    assert [(entry.path, entry.size) for entry in store.entries("b")] == [
        ("b/c", 3), ("b/c.d/e", 7), ("b/ä ö+&%20.jpg", 16)
    ]  # fmt: skip
    assert list(store.entries("none")) == []
    assert all(store.read(name) == name.encode() for name in names)


def test_a_listing_holds_some_pages_however_many_files_there_are(store, monkeypatch):
    monkeypatch.setattr(remote_storage, "PAGES", 2)
    page = {"IsTruncated": True, "NextContinuationToken": "more"}

    def pages(count):
        asked = iter(range(count))

        def answer(method, **named):
            number = next(asked)
            keys = [f"{named['Prefix']}{number:06d}-{k:03d}.jpg" for k in range(1000)]
            contents = [{"Key": key, "Size": 1, "ETag": f'"{key}"'} for key in keys]
            return page | {"Contents": contents, "IsTruncated": number < count - 1}

        return answer

    def peak(count):
        monkeypatch.setattr(store._opened.system, "call_s3", pages(count), raising=False)
        tracemalloc.start()
        try:
            assert sum(1 for _ in store.entries()) == 1000 * count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(50) < 1.2 * peak(10)


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.long] if fault == "stuck" else []) for fault in FAULTS]
)
def test_whatever_fails_twice_succeeds_in_the_end(store, server, fault):
    store.write_new("a", b"0123456789" * 5)
    fail(server, fault, 2)
    assert store.read("a", 10, 30) == b"0123456789" * 3
    fail(server, fault, 2)
    assert store.write_new("b", b"content")
    fail(server, fault, 2)
    assert [entry.path for entry in store.entries()] == ["a", "b"]
    fail(server, fault, 2)
    store.replace("b", b"changed")
    server.fault = lambda *_: None
    assert store.read("b") == b"changed"
    assert not store.write_new("a", b"other")


def test_a_lost_answer_to_a_put_is_not_taken_for_another_writer(store, server):
    fail(server, "lost", 1)
    assert store.write_new("mine", b"mine")
    assert [method for method, _ in server.log].count("PUT") == 2
    store.write_new("theirs", b"theirs")
    fail(server, "500", 1)
    assert not store.write_new("theirs", b"mine")


def test_attempts_are_counted_and_what_is_refused_is_not_tried_again(store, server):
    fail(server, "500", 1000)
    for call in (lambda: store.read("a", 0, 5), lambda: store.write_new("a", b""), lambda: list(store.entries())):
        server.log.clear()
        with pytest.raises(UnreachableError, match=r"^s3://bucket/.*: \w+ failed 5 times, the last: OSError: "):
            call()
        assert len(server.log) == 5
    server.fault = lambda *_: "403"
    server.log.clear()
    with pytest.raises(StoreError, match="reading was refused: PermissionError: no"):
        store.read("a", 0, 5)
    assert len(server.log) == 1


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a", "a/../../b", "a\0b"])
def test_no_path_leads_out_of_the_root(store, path):
    with pytest.raises(ConfigError, match="expected a path below it"):
        store.write_new(path, b"")


@pytest.mark.parametrize(("address", "said"), [
    ("nonsense://a/b", "nonsense://a/b: expected an address that fsspec can read, found: Protocol not known"),
    ("gs://bucket/run", "found: .*gcsfs.*; pip install gcsfs"),
    ("https://me:SECRET@127.0.0.1/run?key=SECRET", "https://127.0.0.1/run: expected the address of a folder"),
])  # fmt: skip
def test_what_opens_no_store_is_said_in_one_line(address, said):
    with contextlib.suppress(ImportError):
        import gcsfs  # noqa: F401

        if address.startswith("gs"):
            pytest.skip("gcsfs is installed")
    with pytest.raises(ConfigError, match=said) as caught:
        open_storage(address)
    assert "SECRET" not in str(caught.value)


def test_a_store_that_is_connected_to_at_once_and_does_not_answer_is_said_in_one_line():
    with pytest.raises(
        StoreError, match=r"^ftp://127.0.0.1:9/run: opening failed 2 times, the last: ConnectionRefused"
    ):
        open_storage("ftp://127.0.0.1:9/run", StorageSettings(attempts=2, wait=0))


def test_web_servers_are_neither_written_to_nor_listed():
    web = open_storage("https://127.0.0.1:9/images", StorageSettings(attempts=1))
    with pytest.raises(ConfigError, match="expected an object store to write to"):
        web.write_new("a", b"")
    with pytest.raises(ConfigError, match="expected an object store to write to"):
        open_storage("https://127.0.0.1:9/images", writing=True)
    with pytest.raises(
        StoreError, match=r"expected a store that lists its files.*name the files: set-\{0000..0009\}.tar"
    ):
        list(web.entries())


def test_any_store_of_fsspec_is_listed_and_taken_names_in():
    store = open_storage("memory://run", QUICK)
    for name in ("b/c", "a/b", "a.d/e", "b-c"):
        assert store.write_new(name, b"x")
        assert not store.write_new(name, b"y")
    assert list(store.entries()) == [Entry(name, 1) for name in ("a.d/e", "a/b", "b-c", "b/c")]
    assert list(store.entries("none")) == []
