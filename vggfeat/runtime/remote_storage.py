"""What is below a root in an object store: read by byte ranges, listed side by side, names taken by one request."""

import posixpath
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.addresses import Opened, address_name, attempt, open_address
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
        self._base = self._opened.path.rstrip("/")

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a file, or a part of it."""
        return self._at(path).read(start, length)

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        return self._at(path).size()

    def exists(self, path: str) -> bool:
        """Say whether there is a file of that name."""
        try:
            self.size(path)
        except MissingFileError:
            return False
        return True

    def write_new(self, path: str, data: bytes) -> bool:
        """Make a file by one request, which the store carries out only if there is none."""
        writer = secrets.token_hex(8)
        named: dict[str, Any] = {"Metadata": {_WRITER: writer}} if self._opened.protocol in _S3 else {}
        try:
            self._put(path, data, mode="create", **named)
            return True
        except FileExistsError:
            # The answer to a request that succeeded may be lost: the next, here or in a library, finds our own file.
            if not named:
                return self.read(path) == data
            place = self._at(path)
            found: dict[str, str] = place.ask(partial(place.system.metadata, place.path, refresh=True, **place.limit()))
            return found.get(_WRITER) == writer

    def replace(self, path: str, data: bytes) -> None:
        """Make a file, or replace it, by one request."""
        self._put(path, data, mode="overwrite")

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
        folder = replace(self._opened, name=self._name(prefix))
        bucket, _, key = self._base.partition("/")
        above = f"{key}/" if key else ""
        members: list[tuple[str, Entry | None]] = []
        for _ in range(PAGES):
            asked = {"Bucket": bucket, "Prefix": above + prefix, "Delimiter": "/", **rest, **folder.limit()}
            request = partial(folder.system.call_s3, "list_objects_v2", **asked)
            page: dict[str, Any] = folder.ask(request, "listing")
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
        if self._opened.protocol in ("http", "https"):
            raise StoreError(
                f"{self.root}: expected a store that lists its files, found a server of http(s); "
                "name the files: set-{0000..0009}.tar, or a list in Parquet"
            )
        place = replace(self._opened, path=f"{self._base}/{prefix}".rstrip("/"), name=self._name(prefix))
        try:
            found = place.ask(partial(place.system.ls, place.path, detail=True, **place.limit()), "listing")
        except MissingFileError:
            return _Page([], None)
        members: list[tuple[str, Entry | None]] = []
        for item in found:
            path = prefix + posixpath.basename(item["name"].rstrip("/"))
            folder = item["type"] == "directory"
            members.append((f"{path}/", None) if folder else (path, Entry(path, int(item["size"] or 0), _etag(item))))
        return _Page(sorted(members, key=lambda member: member[0]), None)

    def _put(self, path: str, data: bytes, **named: Any) -> None:
        self.check_writable()
        place = self._at(path)
        place.ask(partial(place.system.pipe_file, place.path, data, **named, **place.limit(len(data))), "writing")

    def check_writable(self) -> None:
        """Check that this kind of store can be written to; ConfigError if not."""
        if self._opened.protocol not in _WRITABLE:
            found = self._opened.protocol
            raise ConfigError(f"{self.root}: expected an object store to write to (s3://, gs://), found {found}://")

    def _at(self, path: str) -> Opened:
        check_below(self.root, path)
        return replace(self._opened, path=f"{self._base}/{path}", name=self._name(path))

    def _name(self, path: str) -> str:
        return address_name(f"{self.root}/{path}".rstrip("/"))


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
