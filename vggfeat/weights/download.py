"""Fetch a published file: only when asked, from the address where it was published, and only if it is the right one.

While it comes it is NAME.part, with NAME.part.json next to it, which says from where and of which version; a download
that was stopped is resumed where it stopped.
"""

import contextlib
import errno
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from vggfeat.checks import convert_fields
from vggfeat.errors import WeightsError
from vggfeat.runtime import system
from vggfeat.runtime.durable import DISK, Files, atomic_write, disk_errors, write_all
from vggfeat.runtime.locks import flock
from vggfeat.weights.connection import AddressError, Patience, open_url
from vggfeat.weights.sniff import digests
from vggfeat.weights.sources import Published
from vggfeat.wording import counted, quoted

Progress = Callable[[int, int], None]
"""Called with the bytes that are there, and those of the complete file, 0 if that is not known."""

_LONGEST = 120
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """How patient a download is."""

    timeout: float = 30.0
    """Seconds without a byte after which a connection counts as lost."""
    least_rate: float = 1000.0
    """Bytes a second below which a connection counts as lost, after `timeout`."""
    attempts: int = 5
    """Attempts in a row that bring not even `chunk` more, at one address, before it is given up."""
    pause: float = 1.0
    """Seconds before the second attempt, doubled for each further one."""
    chunk: int = 1 << 18
    """Bytes taken from the network at once."""
    most_bytes: int = 2 << 30
    """More than this is no VGG net, whatever the server says: the largest has 575 MB, twice that in float64."""

    def __post_init__(self) -> None:
        convert_fields(self)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a download has left behind."""

    path: Path
    bytes: int
    address: str
    """Address where it came from; empty if it was there."""
    resumed_at: int
    """Bytes that an earlier download had brought."""
    sha256: str


class _TransientError(Exception):
    """A failure that may pass."""


def fetch(
    published: Published,
    folder: Path,
    *,
    settings: FetchSettings | None = None,
    progress: Progress | None = None,
    files: Files = DISK,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Download a published file into a folder, unless it is there.

    Parameters
    ----------
    published : Published
    folder : Path
        Must exist. The file gets its published name, once its checksum is right and its bytes are on the disk; until
        then it is NAME.part.
    settings : FetchSettings, optional
    progress : callable, optional
    files : Files
        Carries out the writes.
    sleep : callable
        Waits so many seconds.

    Raises
    ------
    WeightsError
        If no address gives the file, or its checksum is another. What has come stays, to be resumed, except where the
        checksum is wrong: then nothing stays.
    StoreError
        If it can't be written.
    """
    target = folder / published.file
    if os.path.lexists(target):
        sha256 = _check_present(published, target)
        return Fetched(path=target, bytes=target.stat().st_size, address="", resumed_at=0, sha256=sha256)
    part = target.with_name(f"{target.name}.part")
    with disk_errors(part, "writing what comes", "the same command resumes what has come"), _locked(part) as fd:
        job = _Download(
            part=part, fd=fd, expected=published.bytes, settings=settings or FetchSettings(), files=files,
            progress=progress or (lambda done, total: None), sleep=sleep,
        )  # fmt: skip
        resumed_at = job.have
        address, sha256 = _from_any_address(published, job)
        files.sync(fd)
        system.close_on_windows(fd)
        files.rename(part, target)
        _remove(files, job.note)
        files.sync_folder(folder)
        return Fetched(path=target, bytes=job.have, address=address, resumed_at=resumed_at, sha256=sha256)


@dataclass(kw_only=True, eq=False)
class _Download:
    """A file that is coming. Disk errors are OSErrors; an interrupt leaves what has come."""

    part: Path
    fd: int
    """File descriptor of `part`, open for reading and writing."""
    expected: int | None
    """Bytes of the complete file, where that is known beforehand."""
    settings: FetchSettings
    files: Files
    progress: Progress
    sleep: Callable[[float], None]

    @property
    def have(self) -> int:
        """Bytes that are there."""
        return os.fstat(self.fd).st_size

    @property
    def note(self) -> Path:
        """The file that says what the bytes are of."""
        return self.part.with_name(f"{self.part.name}.json")

    def restart(self) -> None:
        """Throw away what has come."""
        self.files.truncate(self.fd, 0)

    def complete(self, address: str) -> None:
        """Get the rest of the file, in as many connections as it takes.

        Raises AddressError if the address has no such file, or gives nothing more after so many attempts. Raises
        OSError if the disk fails.
        """
        # What came from elsewhere is only given up for an answer from here.
        best, failures = self.have if self._version(address) is not None else 0, 0
        while True:
            try:
                return self._attempt(address)
            except _TransientError as error:
                failures = failures + 1 if self.have < best + self.settings.chunk else 1
                best = max(best, self.have)
                if failures >= self.settings.attempts:
                    raise AddressError(f"{error}, {counted(failures, 'time{s}')} in a row") from None
                self.sleep(self.settings.pause * 2 ** (failures - 1))

    def _attempt(self, address: str) -> None:
        version = self._version(address)
        request = urllib.request.Request(address, headers={"User-Agent": "vggfeat", "Accept-Encoding": "identity"})
        if self.have and version is not None:
            request.add_header("Range", f"bytes={self.have}-")
            if version:
                request.add_header("If-Range", version)
        try:
            patience = Patience(self.settings.timeout, self.settings.least_rate)
            answer = open_url(request, patience)
        except urllib.error.HTTPError as error:
            error.close()
            return self._check_refusal(error)
        except (OSError, http.client.HTTPException) as error:
            raise _TransientError(_reason(error)) from None
        with answer:
            return self._store(address, answer)

    def _check_refusal(self, error: urllib.error.HTTPError) -> None:
        """Return if there is nothing more to come, and raise otherwise."""
        if error.code == 416:
            total = re.fullmatch(r"bytes \*/([0-9]{1,18})", error.headers.get("Content-Range") or "")
            if total and int(total[1]) == self.have:
                return
            self.restart()
            raise _TransientError("a file that is shorter than what was here")
        if error.code in _REDIRECTS:
            raise AddressError(f"the answer {error.code}, to ways on that lead in a circle or nowhere")
        answer = f"the answer {error.code} {_plain(str(error.reason))}"
        raise _TransientError(answer) if error.code in _TRANSIENT else AddressError(answer)

    def _store(self, address: str, answer: Any) -> None:
        begin, total = self._range(answer.status, answer.headers)
        if begin == 0:
            self.restart()
            self._write_note(address, answer.headers)
        free = self.files.free(self.part.parent)
        if free < total - begin:
            raise OSError(errno.ENOSPC, f"{total - begin} bytes are to come, {free} are free")
        self.progress(begin, total)
        most = total or self.settings.most_bytes
        answer.begin_file(most - begin)
        while block := self._read(answer):
            at = self.have
            if at + len(block) > most:
                self.restart()
                raise AddressError(f"more than the {most} bytes that it may have")
            write_all(self.files, self.fd, memoryview(block), at)
            self.progress(at + len(block), total)
        if self.have < total:
            raise _TransientError(f"a connection that ended at byte {self.have} of {total}")

    def _read(self, answer: Any) -> bytes:
        try:
            return bytes(answer.read(self.settings.chunk))
        except (OSError, ValueError, http.client.HTTPException) as error:  # sizes of chunks that are no numbers
            raise _TransientError(_reason(error)) from None

    def _range(self, status: int, headers: Message) -> tuple[int, int]:
        """Return the byte that an answer begins at, and the size of the complete file, 0 if it is not known."""
        if "html" in (headers.get("Content-Type") or ""):
            raise AddressError("a web page")
        if (headers.get("Content-Encoding") or "identity") != "identity":
            raise AddressError(f"a file packed with {quoted(headers['Content-Encoding'])}")
        length = re.fullmatch(r"[0-9]{1,18}", headers.get("Content-Length") or "")
        begin, total = 0, int(length[0]) if length else 0
        if status == 206:
            place = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", headers.get("Content-Range") or "")
            if not place or int(place[1]) != self.have:
                self.restart()
                raise _TransientError("another part of the file than was asked for")
            begin, total = self.have, int(place[2])
        if self.expected and total and total != self.expected:
            raise AddressError(f"{total} bytes instead of {self.expected}")
        if total > self.settings.most_bytes:
            raise AddressError(f"{total} bytes, which no VGG net has")
        return begin, total or self.expected or 0

    def _version(self, address: str) -> str | None:
        """Return the version that is half here, "" if its server names none, None if it is from elsewhere."""
        try:
            note = json.loads(self.note.read_bytes())
            return str(note["version"]) if note["address"] == address else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):  # Any other OSError may pass.
            return None

    def _write_note(self, address: str, headers: Message) -> None:
        tag = headers.get("ETag") or ""
        weak = tag.startswith("W/")  # it may name two versions, so a server may not resume by it (RFC 9110, 13.1.5)
        version = tag if tag and not weak else headers.get("Last-Modified") or ""
        with atomic_write(self.files, self.note) as sink:
            sink.write(json.dumps({"address": address, "version": version}).encode())


def is_note(path: Path) -> bool:
    """Say whether a file says of a download where it comes from; OSError if it can't be read."""
    try:
        return {"address", "version"} <= set(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return False


def is_download(path: Path) -> bool:
    """Say whether a file is a download that was stopped."""
    return not path.stat().st_size or is_note(path.with_name(f"{path.name}.json"))


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    return _plain(str(getattr(error, "strerror", None) or error or type(error).__name__))


def _plain(text: str) -> str:
    """Return what a server or a library says: as it is if it is short and plain, else quoted."""
    return text if len(text) <= _LONGEST and text.isascii() and text.isprintable() else quoted(text, _LONGEST)


def _from_any_address(published: Published, job: _Download) -> tuple[str, str]:
    """Return the address that gave the file, and its SHA-256."""
    reasons = []
    for address in published.addresses:
        try:
            return address, _from_address(published, job, address)
        except AddressError as error:
            reasons.append(f"{address}: {error}")
    kept = f"; {job.have} bytes are kept, and the same command resumes there" if job.have else ""
    if not job.have:
        for path in (job.part, job.note):
            _remove(job.files, path)
    raise WeightsError(f"{published.name}: expected {published.file}, found at {'; at '.join(reasons)}{kept}")


def _from_address(published: Published, job: _Download, address: str) -> str:
    kind, value = published.checksum
    for fresh in (job.have == 0, True):
        job.complete(address)
        found = digests(job.part)
        if found[kind].startswith(value):
            return found["sha256"]
        job.restart()  # What was there before may have been of another version: then once more, from nothing.
        if fresh:
            break
    raise AddressError(f"a file with another checksum, expected {kind} {value}, found {found[kind]}; it is removed")


def _check_present(published: Published, path: Path) -> str:
    found = digests(path)
    kind, value = published.checksum
    if not found[kind].startswith(value):
        raise WeightsError(
            f"{path}: expected {kind} {value}, which {published.name} has, found another file with {found[kind]}; "
            "move it away to fetch the published one"
        )
    return found["sha256"]


@contextmanager
def _locked(part: Path) -> Iterator[int]:
    fd = os.open(part, os.O_RDWR | os.O_CREAT | system.OPENED | system.NO_LINK, 0o666)
    try:
        flock(fd, part)
        # Whoever had the lock a moment ago may have given the finished file its name.
        if not system.has_name(fd, part):
            raise BlockingIOError
        yield fd
    except BlockingIOError:
        raise WeightsError(f"{part}: another process is fetching it; wait for it to end") from None
    finally:
        os.close(fd)


def _remove(files: Files, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        files.remove(path)
