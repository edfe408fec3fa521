"""One file from one address over HTTP, resumed where it stopped: what has come, and of which version it is.

While it comes it is NAME.part, with NAME.part.json beside it, which says from where and of which version. Whether
the bytes are the right ones is for the caller to judge.
"""

import errno
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from vggfeat.runtime.durable import Files, write_all

Progress = Callable[[int, int], None]
"""Called with the bytes that are there, and those of the whole file, 0 if that is not known."""

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """How patient a download is."""

    timeout: float = 30.0
    """Seconds without a byte after which a connection counts as lost."""
    attempts: int = 5
    """In a row that bring no further, at one address, before it is given up."""
    pause: float = 1.0
    """Seconds before the second attempt, doubled for each further one."""
    chunk: int = 1 << 18
    """Bytes taken from the network at once."""
    most_bytes: int = 2 << 30
    """More than this is no VGG net, whatever the server says: the largest has 575 MB, twice that in float64."""


class UselessError(Exception):
    """A failure that the same address will repeat."""


class _PassingError(Exception):
    """A failure that may pass."""


@dataclass(kw_only=True, eq=False)
class Download:
    """A file that is coming.

    Every method but `come` leaves the network alone. Disk errors are OSErrors; an interrupt leaves what has come.
    """

    part: Path
    fd: int
    """Of `part`, open for reading and writing."""
    expected: int | None
    """Bytes of the whole file, where that is known beforehand."""
    settings: FetchSettings
    files: Files
    progress: Progress
    sleep: Callable[[float], None] = time.sleep

    @property
    def have(self) -> int:
        """Bytes that are there."""
        return os.fstat(self.fd).st_size

    @property
    def note(self) -> Path:
        """Where it is written what the bytes are of."""
        return self.part.with_name(f"{self.part.name}.json")

    def restart(self) -> None:
        """Throw away what has come."""
        self.files.truncate(self.fd, 0)

    def come(self, address: str) -> None:
        """Get the rest of the file, in as many connections as it takes.

        Raises
        ------
        UselessError
            If the address has no such file, or gives nothing more after so many attempts.
        OSError
            If the disk fails.
        """
        opener = _opener()
        # What came from elsewhere is only given up for an answer from here.
        best, failures = self.have if self._noted(address) is not None else 0, 0
        while True:
            try:
                return self._attempt(opener, address)
            except _PassingError as error:
                failures = failures + 1 if self.have <= best else 1
                best = max(best, self.have)
                if failures >= self.settings.attempts:
                    raise UselessError(f"{error}, {failures} times in a row") from None
                self.sleep(self.settings.pause * 2 ** (failures - 1))

    def _attempt(self, opener: urllib.request.OpenerDirector, address: str) -> None:
        version = self._noted(address)
        request = urllib.request.Request(address, headers={"User-Agent": "vggfeat", "Accept-Encoding": "identity"})
        if self.have and version is not None:
            request.add_header("Range", f"bytes={self.have}-")
            if version:
                request.add_header("If-Range", version)
        try:
            answer = opener.open(request, timeout=self.settings.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            return self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            raise _PassingError(_words(error)) from None
        with answer:
            return self._store(address, answer)

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416:
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
            if total and int(total[1]) == self.have:
                return  # there is no more
            self.restart()
            raise _PassingError("a file that is shorter than what was here")
        said = f"the answer {error.code} {error.reason}"
        raise _PassingError(said) if error.code in _PASSING else UselessError(said)

    def _store(self, address: str, answer: Any) -> None:
        begin, total = self._place(answer.status, answer.headers)
        if begin == 0:
            self.restart()
            self._write_note(address, answer.headers)
        self._check_room(total - begin)
        self.progress(begin, total)
        most = total or self.settings.most_bytes
        while block := self._read(answer):
            at = self.have
            if at + len(block) > most:
                self.restart()
                raise UselessError(f"more than the {most} bytes that it may have")
            write_all(self.files, self.fd, memoryview(block), at)
            self.progress(at + len(block), total)
        if self.have < total:
            raise _PassingError(f"a connection that ended at byte {self.have} of {total}")

    def _read(self, answer: Any) -> bytes:
        try:
            return bytes(answer.read(self.settings.chunk))
        except (OSError, http.client.HTTPException) as error:
            raise _PassingError(_words(error)) from None

    def _place(self, status: int, headers: Message) -> tuple[int, int]:
        """Return the byte that an answer begins at, and the size of the whole file, 0 if it is not known."""
        if "html" in (headers.get("Content-Type") or ""):
            raise UselessError("a web page")
        if (headers.get("Content-Encoding") or "identity") != "identity":
            raise UselessError(f"a file packed with {headers['Content-Encoding']}")
        begin, total = 0, int(headers["Content-Length"]) if (headers.get("Content-Length") or "").isdigit() else 0
        if status == 206:
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range") or "")
            if not place or int(place[1]) != self.have:
                self.restart()
                raise _PassingError("another part of the file than was asked for")
            begin, total = self.have, int(place[2])
        if self.expected and total and total != self.expected:
            raise UselessError(f"{total} bytes instead of {self.expected}")
        if total > self.settings.most_bytes:
            raise UselessError(f"{total} bytes, which no VGG net has")
        return begin, total or self.expected or 0

    def _check_room(self, to_come: int) -> None:
        free = self.files.free(self.part.parent)
        if free < to_come:
            raise OSError(errno.ENOSPC, f"{to_come} bytes are to come, {free} are free")

    def _noted(self, address: str) -> str | None:
        """Return the version that is half here, "" if its server names none, None if it is from elsewhere."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return str(note["version"]) if note["address"] == address else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write_note(self, address: str, headers: Message) -> None:
        tag = headers.get("ETag") or ""
        weak = tag.startswith("W/")  # it may name two versions, so a server may not resume by it (RFC 9110, 13.1.5)
        version = tag if tag and not weak else headers.get("Last-Modified") or ""
        self.note.write_text(json.dumps({"address": address, "version": version}), encoding="utf-8")


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a server elsewhere, but not from https to anything less."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request to make instead."""
        if req.type == "https" and not newurl.startswith("https:"):
            raise UselessError(f"a way on to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opener() -> urllib.request.OpenerDirector:
    # Not urlopen: that would follow a server to ftp as well, and use whatever a program has installed globally.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(), Redirects(),
        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


def _words(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
