"""The bytes of images that are not files of this machine, fetched some ahead of the decoders, which have no network.

Neighbours in a file, as in a tar, come by one request. What can't be had is a failure of its image alone.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from vggfeat.checks import convert_fields
from vggfeat.errors import ConfigError, DatasetError, ImageError, StoreError
from vggfeat.formats.parquet import CellAddress, ImageCells, cell_address
from vggfeat.images.decode import Request, failure
from vggfeat.images.image_bytes import check_length
from vggfeat.runtime.addresses import UnreachableError, address_name, is_address, read_address, without_secrets
from vggfeat.runtime.storage import MissingFileError, StorageSettings, open_storage

Fetched = Request | ImageError
_GAP = 1 << 16
"""Bytes between two images that are read and thrown away rather than asked around."""
_TOGETHER = 1 << 22
"""Bytes of one request for several images."""
_MOST_TOGETHER = 256
_OPEN_FILES = 4


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """How images are fetched that are not files of this machine.

    Raises ConfigError if there is no thread, or no byte is allowed.
    """

    storage: StorageSettings = field(default_factory=StorageSettings)
    threads: int = 16
    """Requests at a time."""
    max_bytes: int = 1 << 29
    """Size of an image file."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.threads < 1 or self.max_bytes < 1:
            found = f"threads {self.threads}, max_bytes {self.max_bytes}"
            raise ConfigError(f"fetching: expected at least one thread and one byte, found {found}")


def fetched(requests: Iterable[Request], settings: FetchSettings) -> Iterator[Fetched]:
    """Fill in the bytes of images that are at an address or in a cell of a Parquet file.

    Parameters
    ----------
    requests : iterable of Request
        `path` is a path of this machine or an address, or either with the address of a cell behind it
        (`vggfeat.formats.parquet`). Files of this machine are passed on as they are.
    settings : FetchSettings

    Yields
    ------
    Request or ImageError
        One for each request, in their order. Reasons: missing; unreadable (refused, or at a private address);
        unreachable; too-large or empty; truncated (the file ends before the image); damaged (a Parquet file that is).

    Raises
    ------
    ConfigError
        While iterating, if a library is missing that such an address needs.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(settings.threads, "vggfeat-fetch") as threads, ThreadPoolExecutor(1) as cells:
        fetcher = _Fetcher(settings, stopped)
        waiting: deque[Future[list[Fetched]]] = deque()
        try:
            for bundle in _bundles(requests):
                # A column is read forwards, so its images are asked for in their order.
                pool = cells if _cell(bundle[0]) else threads
                waiting.append(pool.submit(fetcher.fetch, bundle))
                while len(waiting) >= settings.threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            stopped.set()
            for future in waiting:
                future.cancel()


def _bundles(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Yield requests in their order, those that one reading serves together."""
    bundle: list[Request] = []
    for request in requests:
        if bundle and not _joins(bundle, request):
            yield bundle
            bundle = []
        bundle.append(request)
        if request.span is None:  # It has no neighbours to wait for.
            yield bundle
            bundle = []
    if bundle:
        yield bundle


def _joins(bundle: Sequence[Request], request: Request) -> bool:
    first, last = bundle[0], bundle[-1]
    if len(bundle) >= _MOST_TOGETHER or first.path != request.path or not is_address(request.path):
        return False
    if first.span is None or last.span is None or request.span is None:
        return False
    gap = request.span[0] - sum(last.span[:2])
    return 0 <= gap <= _GAP and sum(request.span[:2]) - first.span[0] <= _TOGETHER


def _cell(request: Request) -> CellAddress | None:
    return cell_address(request.path) if request.span is None else None


class _Fetcher:
    """What the threads do."""

    def __init__(self, settings: FetchSettings, stopped: threading.Event) -> None:
        self._settings, self._stopped = settings, stopped
        self._open: dict[tuple[str, str], ImageCells] = {}

    def fetch(self, bundle: list[Request]) -> list[Fetched]:
        """Return what came of requests that one reading serves."""
        if bundle[0].data is not None:
            return [*bundle]
        cell = _cell(bundle[0])
        if cell is None and not is_address(bundle[0].path):
            return [*bundle]
        try:
            if cell is not None:
                return [self._of_cell(bundle[0], cell)]
            return self._of_file(bundle)
        except (StoreError, DatasetError, ImageError) as error:
            return [_failed(request, error) for request in bundle]

    def _of_cell(self, request: Request, cell: CellAddress) -> Fetched:
        data = self._cells(cell).read(cell.row)
        if data is None:
            raise ImageError("missing", f"expected an image in the column {cell.column!a}, found an empty cell")
        if not isinstance(data, bytes):
            raise ImageError("unsupported", f"expected bytes, found {type(data).__name__}")
        check_length(len(data), self._settings.max_bytes)
        return request._replace(data=data)

    def _cells(self, cell: CellAddress) -> ImageCells:
        key = (cell.file, cell.column)
        if key not in self._open:
            while len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open)))
            folder, _, name = cell.file.rpartition("/")
            self._open[key] = ImageCells(open_storage(folder or "/", self._settings.storage), name, cell.column)
        return self._open[key]

    def _of_file(self, bundle: list[Request]) -> list[Fetched]:
        most = self._settings.max_bytes
        first, last = bundle[0].span, bundle[-1].span
        start = first[0] if first else 0
        length = sum(last[:2]) - start if last else most + 1
        if len(bundle) == 1 and first is not None:
            check_length(length, most)
        data = memoryview(self._read(bundle[0].path, start, length))
        found: list[Fetched] = []
        for request in bundle:
            begin, size = (request.span[0] - start, request.span[1]) if request.span else (0, len(data))
            part = bytes(data[begin : begin + size])
            try:
                check_length(size, most)
                if len(part) < size:
                    raise ImageError("truncated", f"expected {size} bytes, found {len(part)}")
                found.append(request._replace(data=part))
            except ImageError as error:
                found.append(_failed(request, error))
        return found

    def _read(self, path: str, start: int, length: int) -> bytes:
        def pause(seconds: float) -> None:
            if self._stopped.wait(seconds):
                raise UnreachableError("nobody waits for it any more")

        return read_address(path, self._settings.storage, start, length, pause=pause)


def _failed(request: Request, error: StoreError | DatasetError | ImageError) -> ImageError:
    reason = "damaged" if isinstance(error, DatasetError) else "unreadable"
    if isinstance(error, ImageError):
        reason = error.reason
    elif isinstance(error, MissingFileError):
        reason = "missing"
    elif isinstance(error, UnreachableError):
        reason = "unreachable"
    cell = _cell(request)
    place = address_name(cell.file if cell else request.path) if is_address(request.path) else request.path
    name = cell._replace(file=place).text if cell and is_address(request.path) else request._replace(path=place).name
    return failure(name, reason, without_secrets(error).removeprefix(f"{place}: "))
