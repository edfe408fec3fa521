"""What is below a root in an object store: read by byte ranges, listed side by side, names taken by one request."""

import posixpath
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.addresses import (
    LEAST_RATE,
    address_name,
    attempt,
    open_address,
    patience,
    read_opened,
    size_of,
    time_limit,
)
from vggfeat.runtime.storage import Entry, MissingFileError, StorageSettings, check_below

LISTERS = 16
"""Folders that are listed at a time."""
PAGES = 8
"""Pages, of a thousand files each, that are fetched of a folder before they are asked for."""
_S3 = ("s3", "s3a")
_WRITABLE = (*_S3, "gs", "gcs", "az", "abfs", "abfss", "memory")
"""Stores in which a file appears whole or not at all."""

_WRITER = "vggfeat-writer"
"""What S3 keeps with a file that was to be new: who wrote it."""


class _Page(NamedTuple):
    """Some of what is directly in a folder."""

    members: list[tuple[str, Entry | None]]
    """In order: the path of a file, with what is known of it; or that of a folder, with its slash."""
    rest: dict[str, str] | None
    """How to ask for more; None at the end."""


class RemoteStorage:
    """Files below the address of a folder, for instance s3://bucket/run, which need not exist before they are written.

    ConfigError if nothing reads such an address.
    """

    def __init__(self, root: str, settings: StorageSettings) -> None:
        if "?" in root or "#" in root:
            raise ConfigError(f"{address_name(root)}: expected the address of a folder, found one with ? or #")
        self.root = root.rstrip("/")
        # Some libraries connect at once.
        self._opened = attempt(address_name(root), lambda: open_address(self.root, settings), settings, doing="opening")
        self.settings = patience(self._opened, settings)
        self._base = self._opened.path.rstrip("/")

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a file, or a part of it."""
        opened = self._opened._replace(path=self._place(path))
        return read_opened(opened, self._name(path), self.settings, start, length)

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        return size_of(self._opened._replace(path=self._place(path)), self._name(path), self.settings)

    def exists(self, path: str) -> bool:
        """Say whether there is a file of that name."""
        try:
            self.size(path)
        except MissingFileError:
            return False
        return True

    def write_new(self, path: str, data: bytes) -> bool:
        """Make a file by one request, which the store carries out only if there is none."""
        place, writer = self._writable(path), secrets.token_hex(8)
        named: dict[str, Any] = {"Metadata": {_WRITER: writer}} if self._opened.protocol in _S3 else {}

        def put() -> bool:
            self._pipe(place, data, mode="create", **named)
            return True

        try:
            return attempt(self._name(path), put, self.settings, doing="writing")
        except FileExistsError:
            # The answer to a request that succeeded may be lost: the next, here or in a library, finds our own file.
            if not named:
                return self.read(path) == data
            ask = partial(self._opened.system.metadata, place, refresh=True, **self._limit())
            found: dict[str, str] = attempt(self._name(path), ask, self.settings)
            return found.get(_WRITER) == writer

    def replace(self, path: str, data: bytes) -> None:
        """Make a file, or replace it, by one request."""
        place = self._writable(path)
        attempt(self._name(path), lambda: self._pipe(place, data, mode="overwrite"), self.settings, doing="writing")

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """Yield all files below a folder; its folders are listed ahead of their turn, several at a time.

        At most `LISTERS` * `PAGES` pages are held, whatever the number of files; of a store that lists a folder in
        one piece, the largest of its folders as well.
        """
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        with ThreadPoolExecutor(LISTERS, "vggfeat-list") as threads:
            try:
                yield from self._below(threads, threads.submit(self._listed, prefix, {}), prefix)
            finally:
                threads.shutdown(cancel_futures=True)

    def _below(self, threads: ThreadPoolExecutor, listed: "Future[_Page] | None", prefix: str) -> Iterator[Entry]:
        while listed is not None:
            page = listed.result()
            listed = None if page.rest is None else threads.submit(self._listed, prefix, page.rest)
            folders = (path for path, file in page.members if file is None)
            ahead = _Ahead(threads, self._listed, folders)
            for path, file in page.members:
                if file is None:
                    yield from self._below(threads, ahead.take(), path)
                else:
                    yield file

    def _listed(self, prefix: str, rest: dict[str, str]) -> _Page:
        return self._s3_pages(prefix, rest) if self._opened.protocol in _S3 else self._whole_folder(prefix)

    def _s3_pages(self, prefix: str, rest: dict[str, str]) -> _Page:
        system = self._opened.system
        bucket, _, key = self._base.partition("/")
        above = f"{key}/" if key else ""
        members: list[tuple[str, Entry | None]] = []
        limit = self._limit()
        for _ in range(PAGES):
            ask = partial(
                system.call_s3, "list_objects_v2", Bucket=bucket, Prefix=above + prefix, Delimiter="/", **rest, **limit
            )
            page: dict[str, Any] = attempt(self._name(prefix), ask, self.settings, doing="listing")
            found: list[tuple[str, Entry | None]] = [
                (item["Prefix"][len(above) :], None) for item in page.get("CommonPrefixes", ())
            ]
            found += [_s3_entry(item, above) for item in page.get("Contents", ()) if not item["Key"].endswith("/")]
            members += sorted(found, key=lambda member: member[0])
            if not page.get("IsTruncated"):
                return _Page(members, None)
            rest = {"ContinuationToken": page["NextContinuationToken"]}
        return _Page(members, rest)

    def _whole_folder(self, prefix: str) -> _Page:
        system = self._opened.system
        if self._opened.protocol in ("http", "https"):
            raise StoreError(
                f"{self.root}: expected a store that lists its files, found a server of http(s); "
                "name the files: set-{0000..0009}.tar, or a list in Parquet"
            )
        place = f"{self._base}/{prefix}".rstrip("/")
        ask = partial(system.ls, place, detail=True, **self._limit())
        try:
            found = attempt(self._name(prefix), ask, self.settings, doing="listing")
        except MissingFileError:
            return _Page([], None)
        members: list[tuple[str, Entry | None]] = []
        for item in found:
            path = prefix + posixpath.basename(item["name"].rstrip("/"))
            folder = item["type"] == "directory"
            members.append((f"{path}/", None) if folder else (path, Entry(path, int(item["size"] or 0), _etag(item))))
        return _Page(sorted(members, key=lambda member: member[0]), None)

    def _pipe(self, place: str, data: bytes, **named: Any) -> None:
        self._opened.system.pipe_file(place, data, **named, **self._limit(len(data)))

    def _limit(self, size: int = 0) -> dict[str, float]:
        return time_limit(self._opened.system, self.settings.timeout + size / LEAST_RATE)

    def check_writable(self) -> None:
        """Check that this kind of store can be written to; ConfigError if not."""
        if self._opened.protocol not in _WRITABLE:
            found = self._opened.protocol
            raise ConfigError(f"{self.root}: expected an object store to write to (s3://, gs://), found {found}://")

    def _writable(self, path: str) -> str:
        self.check_writable()
        return self._place(path)

    def _place(self, path: str) -> str:
        check_below(self.root, path)
        return f"{self._base}/{path}"

    def _name(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")


class _Ahead:
    """The listings of folders next to each other, some of them ahead of their turn."""

    def __init__(self, threads: ThreadPoolExecutor, listed: Any, folders: Iterable[str]) -> None:
        self._threads, self._listed, self._folders = threads, listed, iter(folders)
        self._waiting: deque[Future[_Page]] = deque()

    def take(self) -> "Future[_Page]":
        while len(self._waiting) < LISTERS and (folder := next(self._folders, None)) is not None:
            self._waiting.append(self._threads.submit(self._listed, folder, {}))
        return self._waiting.popleft()


def _s3_entry(item: dict[str, Any], above: str) -> tuple[str, Entry | None]:
    path = item["Key"][len(above) :]
    return path, Entry(path, int(item["Size"]), str(item.get("ETag", "")).strip('"'))


def _etag(item: dict[str, Any]) -> str:
    found = next((item[name] for name in ("ETag", "etag", "blob_id", "md5Hash") if item.get(name)), "")
    return str(found).strip('"')
