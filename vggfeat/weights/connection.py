"""HTTP connections that end, whatever the server does: within a time for the answer to begin, and at a least rate.

Python's client bounds the time between two bytes, the length of a header line and their number, but neither the time
of all of them, nor how often "100 Continue" comes, nor what a redirection or the end of a chunked body brings along.
"""

import http.client
import io
import time
import urllib.parse
import urllib.request
from functools import partial
from typing import IO, Any

from vggfeat.wording import quoted

MOST_BEFORE = 1 << 18
"""Bytes of one answer before the file begins: status, headers, and the text that a redirection has."""


class AddressError(Exception):
    """A failure that the same address will repeat."""


class Patience:
    """How long one request, with all its redirections, may take.

    `timeout`: seconds for one byte, and half of those until the file begins. `least_rate`: bytes a second that the file
    must come with, after that time.
    """

    def __init__(self, timeout: float, least_rate: float) -> None:
        self.timeout, self._least_rate = timeout, least_rate
        self._end = time.monotonic() + 2 * timeout

    def begin_file(self) -> None:
        """Say that the answer has begun, and that from now on the rate counts."""
        self._end = time.monotonic() + self.timeout

    def left(self) -> float:
        """Return the seconds in which the next byte must come; TimeoutError if the time is over."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"an answer that drips (fewer than {self._least_rate:g} bytes a second)")
        return min(left, self.timeout)

    def came(self, count: int) -> None:
        """Give more time for bytes of the file."""
        self._end += count / self._least_rate


class _Stream(io.RawIOBase):
    """The bytes of a connection, as many as are allowed, in time."""

    def __init__(self, raw: io.RawIOBase, sock: Any, patience: Patience) -> None:
        self._raw, self._sock, self._patience = raw, sock, patience
        self._allowed, self._counts = MOST_BEFORE, False

    def allow(self, count: int) -> None:
        self._allowed, self._counts = count, True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._patience.left())
        view = memoryview(buffer)[: max(0, self._allowed)]
        if not len(view):
            raise OSError("more bytes than the file has")
        try:
            count = self._raw.readinto(view) or 0
        except TimeoutError:
            self._patience.left()  # says it, if the time for all is over
            raise
        self._allowed -= count
        if self._counts:
            self._patience.came(count)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """An answer whose bytes come through a `_Stream`."""

    def __init__(self, sock: Any, *args: Any, patience: Patience, **named: Any) -> None:
        super().__init__(sock, *args, **named)
        self._patience, self._stream = patience, _Stream(self.fp.detach(), sock, patience)
        self.fp = io.BufferedReader(self._stream)

    def begin_file(self, most: int) -> None:
        """Allow so many bytes of the file; twice as many may come, for a server may frame each byte."""
        self._patience.begin_file()
        self._stream.allow(2 * most + MOST_BEFORE)


class _Handler(urllib.request.AbstractHTTPHandler):
    """Connections whose answers are of class `Answer`."""

    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self._answer = partial(Answer, patience=patience)

    def http_open(self, request: urllib.request.Request) -> Any:
        def connect(host: str, **settings: Any) -> http.client.HTTPConnection:
            secure = request.type == "https"
            made = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(host, **settings)
            made.response_class = self._answer  # type: ignore[assignment]
            return made

        return self.do_open(connect, request)

    https_open = http_open
    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a server elsewhere, a few times, but not from https to anything less."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request to make instead."""
        if req.type == "https" and not newurl.startswith("https:"):
            raise AddressError(f"a way on to {quoted(newurl)}, which is not https")
        _ = urllib.parse.urlsplit(newurl).port  # A ValueError if it is none: not all Pythons see that in connecting.
        fp.close()  # urllib would read its text, of any length that the server says, at once
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(request: urllib.request.Request, patience: Patience) -> Answer:
    """Ask a server, and return its answer once all headers of it have come.

    Raises urllib.error.HTTPError if it refuses. Raises AddressError if it leads to what is no address. Raises OSError
    and http.client.HTTPException if there is no connection, no answer in time, or one that is none.
    """
    # Not urlopen: that would follow a server to ftp as well, and use whatever a program has installed globally.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), _Handler(patience), Redirects(), urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    try:
        answer: Answer = opener.open(request, timeout=patience.timeout)
    except (http.client.InvalidURL, ValueError, OverflowError) as error:  # UnicodeError; ports of many digits
        raise AddressError(f"a way on to what is no address ({quoted(str(error))})") from None
    return answer
