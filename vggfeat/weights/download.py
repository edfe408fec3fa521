"""Fetch a published file: only when asked, from the address where it was published, and only if it is the right one."""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vggfeat.errors import WeightsError
from vggfeat.runtime.durable import DISK, Files, disk_errors
from vggfeat.weights.http import Download, FetchSettings, Progress, UselessError
from vggfeat.weights.published import Published


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a download has left behind."""

    path: Path
    bytes: int
    address: str
    """Where it came from; empty if it was there."""
    resumed_at: int
    """Bytes that an earlier download had brought."""
    sha256: str


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
        If no address gives the file, or its checksum is another. What has come stays, to go on from, except where the
        checksum is wrong: then nothing stays.
    StoreError
        If it can't be written.
    """
    target = folder / published.file
    if os.path.lexists(target):
        sha256 = _check_present(published, target)
        return Fetched(path=target, bytes=target.stat().st_size, address="", resumed_at=0, sha256=sha256)
    part = target.with_name(f"{target.name}.part")
    with disk_errors(part, "writing what comes", "the same command goes on from what has come"), _locked(part) as fd:
        job = Download(
            part=part, fd=fd, expected=published.bytes, settings=settings or FetchSettings(), files=files,
            progress=progress or (lambda done, total: None), sleep=sleep,
        )  # fmt: skip
        resumed_at = job.have
        address, sha256 = _from_anywhere(published, job)
        files.sync(fd)
        files.rename(part, target)
        _remove(files, job.note)
        files.sync_folder(folder)
        return Fetched(path=target, bytes=job.have, address=address, resumed_at=resumed_at, sha256=sha256)


def digests(path: Path) -> dict[str, str]:
    """SHA-256, SHA-1 and MD5 of a file, as hex digits, in one pass.

    Raises
    ------
    WeightsError
        If it can't be read.
    """
    hashes = [hashlib.new(kind, usedforsecurity=False) for kind in ("sha256", "sha1", "md5")]
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                for each in hashes:
                    each.update(block)
    except OSError as error:
        raise WeightsError(f"{path}: can't read: {error.strerror or error}") from error
    return {each.name: each.hexdigest() for each in hashes}


def _from_anywhere(published: Published, job: Download) -> tuple[str, str]:
    reasons = []
    for address in published.addresses:
        try:
            return address, _from_address(published, job, address)
        except UselessError as error:
            reasons.append(f"{address}: {error}")
    kept = f"; {job.have} bytes are kept, and the same command goes on from there" if job.have else ""
    if not job.have:
        for path in (job.part, job.note):
            _remove(job.files, path)
    raise WeightsError(f"{published.name}: expected {published.file}, found at {'; at '.join(reasons)}{kept}")


def _from_address(published: Published, job: Download, address: str) -> str:
    kind, value = published.checksum
    for fresh in (job.have == 0, True):
        job.come(address)
        found = digests(job.part)
        if found[kind].startswith(value):
            return found["sha256"]
        job.restart()  # What was there before may have been of another version: then once more, from nothing.
        if fresh:
            break
    raise UselessError(f"a file with another checksum, expected {kind} {value}, found {found[kind]}; it is removed")


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
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had the lock a moment ago may have given the finished file its name.
        if not part.exists() or not os.path.samestat(os.fstat(fd), part.stat()):
            raise BlockingIOError
        yield fd
    except BlockingIOError:
        raise WeightsError(f"{part}: another process is fetching it; wait for it to end") from None
    finally:
        os.close(fd)


def _remove(files: Files, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        files.remove(path)
