"""Downloads from a server that says what no server should, never stops, or never begins: they end in one line."""

import contextlib
import dataclasses
import hashlib
import socket
import threading
import time

import pytest

from vggfeat.errors import WeightsError
from vggfeat.weights.download import FetchSettings, fetch
from vggfeat.weights.sources import PUBLISHED

BODY = bytes(range(251)) * 100
QUICK = FetchSettings(timeout=0.6, pause=0.0, attempts=2, chunk=1000, least_rate=20_000, most_bytes=1 << 20)
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)


@pytest.fixture
def serve(monkeypatch):
    """Answer every request by what a generator yields, until the client has gone."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    stop, threads, listener = threading.Event(), [], socket.create_server(("127.0.0.1", 0))

    def answer(end, blocks):
        with end, contextlib.suppress(OSError):
            end.recv(65536)
            for block in blocks(stop):
                end.sendall(block)

    def accept(blocks):
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=answer, args=(listener.accept()[0], blocks)))
                threads[-1].start()

    def begin(blocks):
        threads.append(threading.Thread(target=accept, args=(blocks,)))
        threads[-1].start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/file"
        checksum = ("sha256", hashlib.sha256(BODY).hexdigest())
        one = dataclasses.replace(PUBLISHED["vgg16-caffe"], file="net.bin", addresses=(address,), bytes=None)
        return dataclasses.replace(one, checksum=checksum)

    yield begin
    stop.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join()


def forever(block, pause=0.0):
    def blocks(stop):
        while not stop.wait(pause):
            yield block

    return blocks


def once(*blocks):
    return lambda stop: iter(blocks)


def then(first, blocks):
    def both(stop):
        yield first
        yield from blocks(stop)

    return both


def redirect(to):
    return once(b"HTTP/1.1 302 Found\r\nLocation: " + to + b"\r\nContent-Length: 0\r\n\r\n")


HOSTILE = {
    "a length in another script": (once(OK, "Content-Length: ²\r\n\r\n".encode(), BODY), None),
    "a length of 5,000 digits": (once(OK, b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", BODY), None),
    "a length below zero": (once(OK, b"Content-Length: -5\r\n\r\n", BODY), None),
    "the wrong length": (once(OK, b"Content-Length: 7\r\n\r\n", BODY), "another checksum"),
    "a length above any net's": (once(OK, b"Content-Length: " + b"9" * 15 + b"\r\n\r\n"), "which no VGG net has"),
    "a way on to half an IPv6 address": (redirect(b"http://[::1"), "a way on to what is no address"),
    "a way on to a name with an empty part": (redirect(b"http://a..b/"), "a way on to what is no address"),
    "a way on to a port that is none": (redirect(b"http://127.0.0.1:port/"), "a way on to what is no address"),
    "a way on to a port of 30 digits": (redirect(b"http://127.0.0.1:" + b"9" * 30), "a way on to what is no address"),
    "a way on with a text of any length": (
        once(b"HTTP/1.1 302 Found\r\nLocation: /file\r\nContent-Length: " + b"9" * 15 + b"\r\n\r\n" + BODY),
        "the answer 302, to ways on that lead in a circle",
    ),
    "a way on with a chunk of any length": (
        once(b"HTTP/1.1 302 Found\r\nLocation: /file\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n" + BODY),
        "the answer 302, to ways on that lead in a circle",
    ),
    "ways on in a circle": (redirect(b"/file"), "the answer 302, to ways on that lead in a circle"),
    "a way on with a text without an end": (
        then(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", forever(b"x" * 65536)),
        "the answer 302, to ways on that lead in a circle",
    ),
    "a chunk below zero": (once(OK, b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabcde\r\n"), "2 times in a row|another"),
    "a chunk that is no number": (once(OK, b"Transfer-Encoding: chunked\r\n\r\nfive\r\nabcde\r\n"), "2 times in a row"),
    "chunks without an end": (
        then(OK + b"Transfer-Encoding: chunked\r\n\r\n", forever(b"1;" + b"x" * 60000 + b"\r\na\r\n")), "2 times",
    ),
    "a trailer without an end": (
        then(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", forever(b"X: " + b"y" * 60000 + b"\r\n")), "2 times",
    ),
    "100 Continue without an end": (forever(b"HTTP/1.1 100 Continue\r\n\r\n"), "2 times in a row"),
    "headers that drip": (then(OK, forever(b"X: y\r\n", 0.2)), "drips .*2 times in a row"),
    "a status that drips": (forever(b"H", 0.2), "2 times in a row"),
    "a file that drips": (then(OK + LENGTH, forever(b"x", 0.2)), "drips .*2 times in a row"),
    "a header line without an end": (then(OK + b"X: ", forever(b"y" * 65536)), "2 times in a row"),
    "headers without an end": (then(OK, forever(b"X: y\r\n" * 1000)), "2 times in a row"),
    "silence": (lambda stop: iter([b""] if stop.wait(3) else []), "timed out, 2 times in a row"),
    "nothing": (once(b""), "2 times in a row"),
    "what is not HTTP": (once(b"\x1b[2J\x00\xff SSH-2.0\r\n\r\n"), "2 times in a row"),
    "a packed file": (once(OK, b"Content-Encoding: \x1b[31mgzip\r\n" + LENGTH, BODY), r"packed with '\\x1b\[31mgzip'"),
    "a refusal with control characters": (once(b"HTTP/1.1 404 \x1b[2J\x1b]0;x\r\n\r\n"), r"the answer 404 '\\x1b\[2J"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_answer_ends_in_one_line_or_in_the_file(serve, tmp_path, what):
    blocks, expected = HOSTILE[what]
    published, begun = serve(blocks), time.monotonic()
    if expected is None:
        assert fetch(published, tmp_path, settings=QUICK).path.read_bytes() == BODY
        return
    with pytest.raises(WeightsError, match=expected) as caught:
        fetch(published, tmp_path, settings=QUICK)
    assert time.monotonic() - begun < 15
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "net.bin").exists()


def test_a_slow_server_that_keeps_to_the_least_rate_is_waited_for(serve, tmp_path):
    def slowly(stop):
        yield OK + LENGTH
        for at in range(0, len(BODY), 5000):
            stop.wait(0.15)
            yield BODY[at : at + 5000]

    begun = time.monotonic()
    fetch(serve(slowly), tmp_path, settings=dataclasses.replace(QUICK, least_rate=25_000, attempts=1))
    assert time.monotonic() - begun > QUICK.timeout


def test_a_server_that_gives_a_byte_a_connection_is_given_up(serve, tmp_path):
    with pytest.raises(WeightsError, match="2 times in a row; 1 bytes are kept"):
        fetch(serve(once(OK + LENGTH, b"x")), tmp_path, settings=QUICK)
