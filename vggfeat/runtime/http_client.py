"""The client for http and https: which machines it connects to, and how long a file may take.

Names can lead anywhere, and so can redirections: checked is the address that a connection is made to.
"""

import asyncio
import errno
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

LEAST_RATE = 1 << 18
"""Bytes a second that a long request must come with."""
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_CHUNK = 1 << 16


class PrivateAddressError(OSError):
    """An address that is not for everybody: of this machine, of the own network, or of a cloud's own services."""


def is_public(host: str) -> bool:
    """Say whether everybody on the internet has the machine of an IP address in common."""
    found = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


@cache  # fsspec knows equal file systems by equal options, so that this must be the same object each time.
def client_maker(allow_private: bool, timeout: float) -> Callable[..., Awaitable[Any]]:
    """Return what makes the sessions of fsspec's file system for http(s)."""

    def connect(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, place = info
        if not allow_private and not is_public(place[0]):
            raise PrivateAddressError(errno.EACCES, f"private address {place[0]}")
        return socket.socket(family, kind, protocol)

    async def make(**named: Any) -> Any:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, connect=timeout, sock_read=timeout)
        connector = aiohttp.TCPConnector(socket_factory=connect)
        return aiohttp.ClientSession(**{"timeout": limits, **named, "connector": connector})

    return make


async def read_http(system: Any, url: str, start: int, length: int | None, timeout: float) -> bytes:
    """Read a file, or a part of it; the file of a server that knows no parts is read up to the last byte asked for.

    `timeout` is seconds until the first byte; after it each byte buys the time that it takes at the least rate. Lets
    out FileNotFoundError, TimeoutError, OSError and aiohttp.ClientError.
    """
    session = await system.set_session()
    headers = {"Accept-Encoding": "identity"}
    if start or length is not None:
        headers["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
    end = time.monotonic() + timeout
    async with asyncio.timeout(timeout) as limit, session.get(system.encode_url(url), headers=headers) as answer:
        if answer.status == 416:
            return b""
        answer.raise_for_status()
        skip, data = (start if answer.status != 206 else 0), bytearray()
        async for chunk in answer.content.iter_chunked(_CHUNK):
            end += len(chunk) / LEAST_RATE
            limit.reschedule(asyncio.get_running_loop().time() + end - time.monotonic())
            data += chunk[skip:]
            skip = max(0, skip - len(chunk))
            if length is not None and len(data) >= length:
                return bytes(data[:length])
        return bytes(data)
