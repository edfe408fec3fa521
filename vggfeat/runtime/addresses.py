"""Files elsewhere, by address: s3://, https://, hf:// and the like. The one door to fsspec, and one set of rules.

A request has a time limit, and is made again a few times, each time after a longer wait, if its failure may pass. What
a message says of an address is its name alone: users, passwords, signatures and tokens stay out of it.
"""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vggfeat.errors import ConfigError, StoreError, VggfeatError
from vggfeat.runtime.http_client import LEAST_RATE, PrivateAddressError, client_maker, read_http
from vggfeat.runtime.storage import MissingFileError, StorageSettings, with_small_schemes
from vggfeat.wording import counted, install_extra

Value = TypeVar("Value")
Pause = Callable[[float], object]
"""Waits so many seconds; may raise to give up."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z][A-Za-z0-9+.-]+)*://")
_USER = re.compile(r"(?<=://)[^/]*@")
_IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*://\S+")
_HTTP = ("http", "https")
_LONGEST_WAIT = 30.0
_PASSING = (408, 409, 425, 429)
"""Statuses below 500 after which the same request may succeed."""
_LIBRARIES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_LIBRARIES |= {"hf": "huggingface-hub", "http": "aiohttp", "https": "aiohttp"}
# Decided as soon as they are met: what is asked for is not there, not allowed, or not possible.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError,
          PrivateAddressError, NotImplementedError, ImportError, TypeError, ValueError)  # fmt: skip


class UnreachableError(StoreError):
    """A store or server that failed as often as it was asked."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What reads an address, or one below it."""

    system: Any
    """A file system of fsspec."""
    path: str
    """What that calls the file."""
    protocol: str
    name: str
    """What messages call it."""
    settings: StorageSettings
    pause: Pause = time.sleep

    def ask(self, request: Callable[[], Value], doing: str = "reading") -> Value:
        """Make a request; see `attempt`."""
        return attempt(self.name, request, self.settings, doing=doing, pause=self.pause)

    def limit(self, size: int = 0) -> dict[str, float]:
        """Return the argument that limits a call, of so many bytes; none for systems that work in this thread."""
        seconds = self.settings.timeout + size / LEAST_RATE
        return {"timeout": seconds} if getattr(self.system, "async_impl", False) else {}

    def size(self) -> int:
        """Return the bytes of a file. Raises as `read_address`."""
        found = self.ask(lambda: self.system.info(self.path, **self.limit()))
        if found.get("type") == "directory":
            raise MissingFileError(f"{self.name}: expected a file, found a folder")
        if found.get("size") is None:
            raise StoreError(f"{self.name}: expected a server that tells sizes and reads parts, found another")
        return int(found["size"])

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """Read the file, or a part of it, as `read_address` does."""
        if length == 0:
            return b""
        if self.protocol in _HTTP:
            from fsspec.asyn import sync

            timeout = self.settings.timeout
            return self.ask(lambda: sync(self.system.loop, read_http, self.system, self.path, start, length, timeout))
        if length is None or length > 8 * LEAST_RATE:  # Else the time that it may take says nothing.
            left = max(0, self.size() - start)
            length = left if length is None else min(left, length)
        return self.ask(lambda: self._read_range(start, length)) if length else b""

    def _read_range(self, start: int, length: int) -> bytes:
        named: dict[str, Any] = self.limit(length)
        if self.protocol == "hf":
            named["cache_type"] = "none"  # Else it reads megabytes ahead of every image.
        try:
            data: bytes = self.system.cat_file(self.path, start=start, end=start + length, **named)
        except OSError as error:
            if _code(error) in ("InvalidRange", "416"):
                return b""  # It ends before the first byte that was asked for.
            raise
        return data


def is_address(text: str) -> bool:
    """Say whether a text is an address, possibly of a file in a file: zip://a.png::https://host/b.zip."""
    return _ADDRESS.match(text) is not None


def address_name(address: str) -> str:
    """Return an address without what is no part of a name: users, passwords, signatures and tokens."""
    return _USER.sub("", re.split("[?#]", address, maxsplit=1)[0])


def without_secrets(error: BaseException, address: str = "") -> str:
    """Return what an error says, with names for addresses."""
    text = str(error).replace(address, address_name(address)) if address else str(error)
    return _IN_TEXT.sub(lambda found: address_name(found[0]), text)  # as a library has written it anew


def open_address(address: str, settings: StorageSettings, pause: Pause = time.sleep) -> Opened:
    """Find what reads an address; ConfigError if nothing does: a library is missing, or it is no address."""
    name = address_name(address)
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ConfigError(
            f"{name}: an address is read through the package fsspec, which is missing; {install_extra('remote')}"
        ) from None
    address = with_small_schemes(address)
    protocol = address.partition("://")[0].partition("::")[0]
    try:
        system, path = url_to_fs(address, **_options(address, protocol, settings))
    except (ImportError, ValueError) as error:
        missing = isinstance(error, ImportError) and _LIBRARIES.get(protocol)
        remedy = f"; pip install {missing}" if missing else ""
        text = without_secrets(error, address)
        raise ConfigError(f"{name}: expected an address that fsspec can read, found: {text}{remedy}") from None
    if protocol in ("s3", "s3a"):
        system.retries = 1  # Tries are counted here.
    if protocol == "hf":  # It makes attempts of its own, and can't be told how many.
        settings = replace(settings, attempts=1)
    return Opened(system=system, path=path, protocol=protocol, name=name, settings=settings, pause=pause)


def _options(address: str, protocol: str, settings: StorageSettings) -> dict[str, Any]:
    """Return what file systems are made with: the rule on private addresses, wherever http is in a chain."""
    maker = client_maker(settings.allow_private, settings.timeout)
    options: dict[str, Any] = {part: {"get_client": maker} for part in _HTTP if re.search(rf"(^|::){part}://", address)}
    if protocol in ("s3", "s3a"):
        from fsspec.config import conf

        own = conf.get("s3", {}).get("config_kwargs", {})
        limits = {"connect_timeout": settings.timeout, "read_timeout": settings.timeout}
        options["config_kwargs"] = limits | own | {"retries": {"total_max_attempts": 1}}
        options["use_listings_cache"] = False
    return options


def read_address(
    address: str, settings: StorageSettings, start: int = 0, length: int | None = None, *, pause: Pause = time.sleep
) -> bytes:
    """Read a file by its address, or `length` bytes of it from `start` on, fewer at its end.

    MissingFileError if there is none; UnreachableError if every attempt failed; StoreError if it is refused, or is at a
    private address; ConfigError if nothing reads such an address.
    """
    # To open one of a chain, as zip://a.png::https://host/b.zip, reads already.
    opened = attempt(address_name(address), lambda: open_address(address, settings, pause), settings, pause=pause)
    return opened.read(start, length)


def attempt(
    name: str, ask: Callable[[], Value], settings: StorageSettings, *, doing: str = "reading",
    pause: Pause = time.sleep,
) -> Value:  # fmt: skip
    """Make a request until it succeeds or is refused, as often as the settings say, with longer and longer waits.

    Ends with MissingFileError, FileExistsError, UnreachableError or StoreError else.
    """
    for number in range(settings.attempts):
        if number:
            # Not all at once: what many processes ask of one store fails for all at the same moment.
            pause(min(settings.wait * 2 ** (number - 1), _LONGEST_WAIT) * random.uniform(0.5, 1))
        try:
            return ask()
        except (FileExistsError, VggfeatError):
            raise
        except Exception as error:  # a server, and a library for it, may raise anything
            last = _cause(error)
            if _status(last) == 412:  # of a request to make what is not there
                raise FileExistsError(name) from None
            if isinstance(last, FileNotFoundError) or _status(last) in (404, 410):
                raise MissingFileError(f"{name}: expected a file at this address, found none") from None
            if _is_final(last):
                break
    late = isinstance(last, TimeoutError)
    found = "no answer in time" if late else " ".join(f"{type(last).__name__}: {without_secrets(last)}".split())[:300]
    if isinstance(last, PrivateAddressError) or "private address" in found:
        raise StoreError(
            f"{name}: expected a public address, found a private one ({found}); give --allow-private (in Python "
            "allow_private=True) if you trust whoever named it"
        )
    if _is_final(last):
        raise StoreError(f"{name}: {doing} was refused: {found}")
    raise UnreachableError(f"{name}: {doing} failed {counted(settings.attempts, 'time{s}')}, the last: {found}")


def _cause(error: BaseException) -> BaseException:
    # fsspec says of no connection too that there is no file.
    while isinstance(error, FileNotFoundError) and error.__cause__ and not _code(error):
        error = error.__cause__
    return error


def _is_final(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in _PASSING
    # Known by their names, as their libraries may be missing: a way on to no address of http(s), and no keys.
    named = type(error).__name__.endswith(("RedirectClientError", "CredentialsError"))
    return named or isinstance(error, _FINAL) or "private address" in str(error)


def _status(error: BaseException) -> int | None:
    """Return the status of HTTP that an error of some library is about."""
    for holder in (error, getattr(error, "response", None), getattr(error.__cause__, "response", None)):
        if isinstance(holder, dict):  # of botocore
            found = holder.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # of aiohttp, httpx and gcsfs
            found = next(
                (getattr(holder, name) for name in ("status", "status_code", "code") if hasattr(holder, name)), None
            )
        if isinstance(found, int) and 100 <= found < 600:
            return found
    return None


def _code(error: BaseException) -> str:
    """Return what the S3 interface calls an error."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
