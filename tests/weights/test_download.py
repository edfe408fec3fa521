"""Downloads from a server on this machine that breaks off, lies, redirects and forgets."""

import contextlib
import dataclasses
import errno
import hashlib
import http.server
import io
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from dying_disk import FailingFiles
from vggfeat.errors import StoreError, WeightsError
from vggfeat.runtime.durable import Files
from vggfeat.weights import download as fetching
from vggfeat.weights.connection import AddressError, Redirects
from vggfeat.weights.download import FetchSettings, fetch
from vggfeat.weights.sniff import digests
from vggfeat.weights.sources import PUBLISHED

BODY = bytes(range(251)) * 1000
SHA1 = hashlib.sha1(BODY).hexdigest()
QUICK = FetchSettings(timeout=5, pause=0.0, chunk=1000)


@dataclasses.dataclass
class Behaviour:
    """What the server does; each request takes the first of `cuts`, and breaks off after so many bytes."""

    body: bytes = BODY
    ranges: bool = True
    etag: str | None = '"v1"'
    modified: str | None = None
    length: bool = True
    cuts: list = dataclasses.field(default_factory=list)
    codes: list = dataclasses.field(default_factory=list)
    kind: str = "application/octet-stream"
    encoding: str | None = None
    extra: bytes = b""
    shift: int = 0
    seen: list = dataclasses.field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        does = self.server.behaviour
        does.seen.append(dict(self.headers))
        if does.codes:
            code = does.codes.pop(0)
            if code:
                return self.refuse(code)
        if self.path.startswith("/moved"):
            return self.refuse(302, Location=f"http://{self.headers['Host']}/file")
        begin = self.begin(does)
        if begin > len(does.body) - 1 and does.body:
            return self.refuse(416, **{"Content-Range": f"bytes */{len(does.body)}"})
        content = does.body[begin:] + does.extra
        self.send_response(206 if begin else 200)
        self.describe(does, begin, len(content))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content[: does.cuts.pop(0)] if does.cuts else content)
        return None

    def begin(self, does):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        same = condition in (None, does.etag, does.modified)
        return int(asked[1]) if asked and does.ranges and same else 0

    def describe(self, does, begin, length):
        headers = {"Content-Type": does.kind, "ETag": does.etag, "Last-Modified": does.modified}
        headers |= {"Content-Encoding": does.encoding, "Content-Length": str(length) if does.length else None}
        if begin:
            last = len(does.body) - 1
            headers["Content-Range"] = f"bytes {begin + does.shift}-{last}/{len(does.body)}"
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)

    def refuse(self, code, **headers):
        self.send_response(code)
        for name, value in (headers | {"Content-Length": "0"}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.behaviour = Behaviour()
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def published(server, *paths, checksum=("sha1", SHA1), size=None):
    port = server.server_address[1]
    addresses = tuple(f"http://127.0.0.1:{port}/{path}" for path in paths or ("file",))
    one = PUBLISHED["vgg16-caffe"]
    return dataclasses.replace(one, file="net.bin", addresses=addresses, checksum=checksum, bytes=size)


def get(server, folder, settings=QUICK, **options):
    how = {name: options.pop(name) for name in ("checksum", "size") if name in options}
    fetched = fetch(published(server, **how), folder, settings=settings, sleep=lambda seconds: None, **options)
    assert fetched.path.read_bytes() == BODY
    return fetched


def stop_at(server, folder, byte):
    """Let a download come no further than that."""
    server.behaviour.cuts = [byte] + [0] * 5
    with pytest.raises(WeightsError, match=rf"ended at byte {byte} of 251000, 5 times in a row; {byte} bytes are kept"):
        get(server, folder)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def ranges(server):
    return [headers.get("Range") for headers in server.behaviour.seen]


@pytest.mark.parametrize("kind", ["sha256", "sha1", "md5"])
def test_a_file_comes_complete_under_its_name(server, tmp_path, kind):
    value = hashlib.new(kind, BODY).hexdigest()
    shown = []
    fetched = get(server, tmp_path, checksum=(kind, value), progress=lambda done, total: shown.append((done, total)))
    assert names(tmp_path) == ["net.bin"]
    assert fetched.sha256 == hashlib.sha256(BODY).hexdigest()
    assert fetched.address.endswith("/file")
    assert (fetched.bytes, fetched.resumed_at) == (len(BODY), 0)
    assert shown[0] == (0, len(BODY))
    assert shown[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)


def test_the_first_digits_of_sha256_are_enough_and_have_to_be_right(server, tmp_path):
    start = hashlib.sha256(BODY).hexdigest()[:8]
    get(server, tmp_path, checksum=("sha256", start))
    assert names(tmp_path) == ["net.bin"]
    (tmp_path / "net.bin").unlink()
    with pytest.raises(WeightsError, match="another checksum"):
        get(server, tmp_path, checksum=("sha256", f"{int(start, 16) ^ 1:08x}"))


def test_what_is_there_is_checked_and_not_fetched(server, tmp_path):
    get(server, tmp_path)
    assert get(server, tmp_path).address == ""
    assert len(server.behaviour.seen) == 1
    (tmp_path / "net.bin").write_bytes(b"mine")
    with pytest.raises(WeightsError, match=r"net\.bin: expected sha1 .* found another file"):
        get(server, tmp_path)
    assert (tmp_path / "net.bin").read_bytes() == b"mine"


def test_connections_that_break_off_are_resumed_where_they_stopped(server, tmp_path):
    server.behaviour.cuts = [70_000, 1, 100_000]
    get(server, tmp_path)
    assert ranges(server) == [None, "bytes=70000-", "bytes=70001-", "bytes=170001-"]
    assert [headers.get("If-Range") for headers in server.behaviour.seen] == [None, '"v1"', '"v1"', '"v1"']


def test_a_connection_that_breaks_off_again_and_again_gets_there_as_long_as_bytes_come(server, tmp_path):
    server.behaviour.cuts = [20_000] * 12
    get(server, tmp_path)
    assert ranges(server)[-1] == "bytes=240000-"


def test_a_later_run_is_resumed_where_an_earlier_one_stopped(server, tmp_path):
    stop_at(server, tmp_path, 50_000)
    assert names(tmp_path) == ["net.bin.part", "net.bin.part.json"]
    fetched = get(server, tmp_path)
    assert fetched.resumed_at == 50_000
    assert ranges(server)[-1] == "bytes=50000-"


@pytest.mark.parametrize(("etag", "modified", "named"), [
    ('W/"v1"', "Mon, 01 Sep 2014 00:00:00 GMT", "Mon, 01 Sep 2014 00:00:00 GMT"),
    (None, "Mon, 01 Sep 2014 00:00:00 GMT", "Mon, 01 Sep 2014 00:00:00 GMT"),
    (None, None, None),
    ('W/"v1"', None, None),
])  # fmt: skip
def test_a_version_is_named_by_what_may_name_it(server, tmp_path, etag, modified, named):
    server.behaviour.etag, server.behaviour.modified, server.behaviour.cuts = etag, modified, [1000]
    get(server, tmp_path)
    assert server.behaviour.seen[1]["Range"] == "bytes=1000-"
    assert server.behaviour.seen[1].get("If-Range") == named


def test_a_new_version_on_the_server_is_fetched_from_its_beginning(server, tmp_path):
    server.behaviour.body = BODY[::-1]
    stop_at(server, tmp_path, 50_000)
    server.behaviour.body, server.behaviour.etag = BODY, '"v2"'
    get(server, tmp_path)


def test_half_a_file_of_another_version_that_nobody_names_is_found_by_the_checksum(server, tmp_path):
    server.behaviour.etag, server.behaviour.body = None, BODY[::-1]
    stop_at(server, tmp_path, 50_000)
    server.behaviour.body = BODY
    get(server, tmp_path)
    assert ranges(server)[-2:] == ["bytes=50000-", None]


def test_a_server_that_cannot_resume_is_begun_again_and_given_up_if_it_never_finishes(server, tmp_path):
    server.behaviour.ranges, server.behaviour.cuts = False, [10, 20] * 50
    with pytest.raises(WeightsError, match="5 times in a row"):
        get(server, tmp_path)
    assert len(server.behaviour.seen) < 10
    server.behaviour.cuts = [50_000]
    get(server, tmp_path)


def test_the_wrong_part_of_the_file_is_not_taken(server, tmp_path):
    server.behaviour.cuts, server.behaviour.shift = [50_000], 7
    get(server, tmp_path)
    assert ranges(server) == [None, "bytes=50000-", None]


@pytest.mark.parametrize("content", [b"something else", b"x" * len(BODY), BODY + b"more"])
def test_a_part_of_which_nothing_is_known_is_thrown_away(server, tmp_path, content):
    (tmp_path / "net.bin.part").write_bytes(content)
    get(server, tmp_path)
    assert ranges(server) == [None]


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_part_that_is_whole_only_gets_its_name_and_one_that_is_too_long_is_begun_again(server, tmp_path, more):
    stop_at(server, tmp_path, 50_000)
    (tmp_path / "net.bin.part").write_bytes(BODY + more)
    get(server, tmp_path)
    assert (ranges(server)[-1] == f"bytes={len(BODY)}-") == (not more)
    assert names(tmp_path) == ["net.bin"]


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.behaviour.body = BODY[:-1] + b"?"
    with pytest.raises(WeightsError, match=rf"another checksum, expected sha1 {SHA1}, found [0-9a-f]{{40}}; it is rem"):
        get(server, tmp_path)
    assert names(tmp_path) == []
    assert len(server.behaviour.seen) == 1


@pytest.mark.parametrize("length", [True, False])
def test_a_server_that_ends_early_or_sends_more_is_found_out(server, tmp_path, length):
    server.behaviour.length = length
    server.behaviour.extra = b"more"
    with pytest.raises(WeightsError, match="251004 bytes instead of 251000" if length else "more than the 251000"):
        get(server, tmp_path, size=len(BODY))
    server.behaviour.extra, server.behaviour.body = b"", BODY[:-1]
    with pytest.raises(WeightsError, match="250999 bytes instead of 251000" if length else "another checksum"):
        get(server, tmp_path, size=len(BODY))
    assert "net.bin" not in names(tmp_path)


def test_a_server_without_an_end_is_cut_off(server, tmp_path):
    server.behaviour.length = False
    with pytest.raises(WeightsError, match="more than the 100000 bytes that it may have"):
        get(server, tmp_path, settings=dataclasses.replace(QUICK, most_bytes=100_000))
    assert names(tmp_path) == []


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (410, 1), (500, 5), (503, 5), (429, 5)])
def test_answers_that_will_not_change_are_not_asked_for_again(server, tmp_path, code, requests):
    server.behaviour.codes = [code] * 5
    with pytest.raises(WeightsError, match=f"the answer {code}"):
        get(server, tmp_path)
    assert len(server.behaviour.seen) == requests
    assert names(tmp_path) == []


def test_a_busy_server_is_asked_again_after_growing_pauses(server, tmp_path):
    server.behaviour.codes = [503, 503, 503]
    pauses = []
    fetch(published(server), tmp_path, settings=dataclasses.replace(QUICK, pause=2.0), sleep=pauses.append)
    assert pauses == [2, 4, 8]


def test_a_web_page_or_a_packed_file_is_not_taken_for_the_file(server, tmp_path):
    server.behaviour.kind = "text/html; charset=utf-8"
    with pytest.raises(WeightsError, match="a web page"):
        get(server, tmp_path)
    server.behaviour.kind, server.behaviour.encoding = "application/octet-stream", "gzip"
    with pytest.raises(WeightsError, match="a file packed with 'gzip'"):
        get(server, tmp_path)
    assert names(tmp_path) == []


def test_redirections_are_followed_also_when_resuming(server, tmp_path):
    server.behaviour.cuts = [50_000]
    fetch(published(server, "moved"), tmp_path, settings=QUICK, sleep=lambda seconds: None)
    assert (tmp_path / "net.bin").read_bytes() == BODY
    assert ranges(server) == [None, None, "bytes=50000-", "bytes=50000-"]


@pytest.mark.parametrize("other", ["http://127.0.0.1/x", "ftp://127.0.0.1/x"])
def test_no_redirection_leads_out_of_https(other):
    request = urllib.request.Request("https://127.0.0.1/file")
    with pytest.raises(AddressError, match="not https"):
        Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, other)
    led = Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, "https://127.0.0.1/x")
    assert led.full_url.endswith("/x")


def test_the_next_address_is_tried(server, tmp_path):
    server.behaviour.codes = [404, 0]
    fetched = fetch(published(server, "gone", "file"), tmp_path, settings=QUICK)
    assert fetched.address.endswith("/file")
    server.behaviour.codes = [404, 403]
    with pytest.raises(WeightsError, match=r"/gone: the answer 404.*; at .*/file: the answer 403"):
        fetch(dataclasses.replace(published(server, "gone", "file"), file="other.bin"), tmp_path, settings=QUICK)


def test_an_address_that_gives_nothing_leaves_what_another_gave(server, tmp_path):
    server.behaviour.cuts, server.behaviour.codes = [50_000], [0, 503, 503, 503, 503, 404]
    one = published(server, "file", "gone")
    with pytest.raises(WeightsError, match=r"/gone: the answer 404 .*; 50000 bytes are kept"):
        fetch(one, tmp_path, settings=QUICK, sleep=lambda seconds: None)
    assert fetch(one, tmp_path, settings=QUICK).resumed_at == 50_000
    assert ranges(server)[-2:] == [None, "bytes=50000-"]


def test_another_address_that_answers_begins_again(server, tmp_path):
    server.behaviour.cuts, server.behaviour.codes = [50_000, *[1000] * 6], [0, 503, 503, 503, 503]
    fetched = fetch(published(server, "file", "other"), tmp_path, settings=QUICK, sleep=lambda seconds: None)
    assert fetched.address.endswith("/other")
    assert (tmp_path / "net.bin").read_bytes() == BODY
    assert ranges(server)[-2:] == ["bytes=5000-", "bytes=6000-"]


def test_nobody_listening_is_said_in_words(tmp_path, server):
    one = published(server)
    one = dataclasses.replace(one, addresses=("http://127.0.0.1:9/net.bin",))
    with pytest.raises(WeightsError, match="Connection refused, 2 times in a row"):
        fetch(one, tmp_path, settings=dataclasses.replace(QUICK, attempts=2), sleep=lambda seconds: None)


class FullDisk(Files):
    """Takes so many bytes, then no more."""

    def __init__(self, room):
        self.room = room

    def write(self, fd, data, offset):
        if offset + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(fd, data, offset)


def test_a_full_disk_keeps_what_came_and_says_so(server, tmp_path):
    with pytest.raises(
        StoreError, match=r"net\.bin\.part: writing what comes failed: the disk is full .* resumes what has come"
    ):
        get(server, tmp_path, files=FullDisk(60_000))
    assert (tmp_path / "net.bin.part").stat().st_size == 60_000
    get(server, tmp_path)
    assert ranges(server)[-1] == "bytes=60000-"


def test_a_full_disk_leaves_no_half_of_what_is_known_of_a_download(server, tmp_path):
    with pytest.raises(StoreError, match="the disk is full"):
        get(server, tmp_path, files=FullDisk(0))
    assert names(tmp_path) == ["net.bin.part"]


def test_what_came_is_kept_where_it_cannot_be_read_now_of_what_it_is(server, tmp_path, monkeypatch):
    stop_at(server, tmp_path, 50_000)

    def unreadable(path, read=Path.read_bytes):
        if path.suffix == ".json":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", unreadable)
        with pytest.raises(StoreError, match="Permission denied"):
            get(server, tmp_path)
    assert (tmp_path / "net.bin.part").stat().st_size == 50_000
    assert get(server, tmp_path).resumed_at == 50_000


def test_too_little_room_is_said_before_the_first_byte(server, tmp_path):
    class Little(Files):
        def free(self, folder):
            return len(BODY) - 1

    with pytest.raises(StoreError, match="251000 bytes are to come, 250999 are free"):
        get(server, tmp_path, files=Little())
    assert (tmp_path / "net.bin.part").stat().st_size == 0


def test_a_disk_error_at_any_call_leaves_no_wrong_file_and_the_next_run_mends_it(server, tmp_path):
    settings = dataclasses.replace(QUICK, chunk=60_000)
    for fail in range(100):
        folder = tmp_path / str(fail)
        folder.mkdir()
        with contextlib.suppress(StoreError):
            get(server, folder, files=FailingFiles(fail + 1, dead=True), settings=settings)
            break
        if (folder / "net.bin").exists():
            assert (folder / "net.bin").read_bytes() == BODY
        get(server, folder, settings=settings)
        assert (folder / "net.bin").read_bytes() == BODY
    assert fail > 8


def test_two_at_once_is_one_too_many(server, tmp_path):
    part = tmp_path / "net.bin.part"
    with fetching._locked(part), pytest.raises(WeightsError, match="another process is fetching it"):
        get(server, tmp_path)
    get(server, tmp_path)


def test_a_link_in_the_place_of_the_part_is_not_followed(server, tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "net.bin.part").symlink_to(tmp_path / "mine")
    with pytest.raises(StoreError, match="writing what comes failed"):
        get(server, tmp_path)
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_ctrl_c_leaves_a_part_from_which_the_next_run_goes_on(server, tmp_path):
    def interrupt(done, total):
        if done >= 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, progress=interrupt)
    assert names(tmp_path) == ["net.bin.part", "net.bin.part.json"]
    assert get(server, tmp_path).resumed_at == 100_000
    assert ranges(server)[-1] == "bytes=100000-"
    assert names(tmp_path) == ["net.bin"]


def test_so_does_kill_minus_9(server, tmp_path):
    code = f"""
import dataclasses, os, signal
from pathlib import Path
from vggfeat.weights.download import FetchSettings, fetch
from vggfeat.weights.sources import PUBLISHED
one = dataclasses.replace(PUBLISHED["vgg16-caffe"], file="net.bin", checksum=("sha1", {SHA1!r}), bytes=None,
                          addresses={published(server).addresses!r})
def progress(done, total):
    if done >= 100_000:
        os.kill(os.getpid(), signal.SIGKILL)
fetch(one, Path({str(tmp_path)!r}), settings=FetchSettings(chunk=1000), progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert get(server, tmp_path).resumed_at == 100_000
    assert (tmp_path / "net.bin").read_bytes() == BODY


def test_digests_are_those_of_the_standard_tools(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert digests(tmp_path / "x") == {
        "md5": "900150983cd24fb0d6963f7d28e17f72",
        "sha1": "a9993e364706816aba3e25717850c26c9cd0d89d",
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    with pytest.raises(WeightsError, match="can't read"):
        digests(tmp_path / "no")
