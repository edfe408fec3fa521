"""What is in a tar file and where, by its headers alone: nothing is unpacked, and no name of it is ever a path here."""

import re
import tarfile
from collections import deque
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np

from vggfeat.errors import DatasetError
from vggfeat.runtime.storage import RangeFile, Storage, joined
from vggfeat.wording import quoted

_WINDOW = 1 << 16
"""Bytes of one read: a header with what is small around it."""
_LONG_WINDOW, _DENSE = 1 << 20, 16
"""The same where the window before had so many headers."""
_LONGEST_HEADER = 1 << 20
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "ZIP"}
_CHECKSUM = slice(148, 156)
_FILE, _ENDS, _ENDS_OF_SUM = b"0\0", b"\0 ", (b"\0 ", b" \0", b"\0\0")
_OCTAL = re.compile(rb"[0-7]+")
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link; write the tar again with --dereference",
    tarfile.LNKTYPE: "a hard link; write the tar again with --hard-dereference",
    tarfile.GNUTYPE_SPARSE: "a sparse file; write the tar again without --sparse",
}


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    """Name with forward slashes, without "./" before it."""
    start: int
    """Its first byte in the tar."""
    size: int


class _Windows:
    """Reads of a file a window at a time, as a file object for Python's library; the last two windows are kept.

    Two, because the label of a sample may be in the window before the one that has the next header.
    """

    def __init__(self, raw: RangeFile) -> None:
        self.raw, self._at = raw, 0
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=2)

    def window(self, at: int, size: int = tarfile.BLOCKSIZE, length: int = _WINDOW) -> tuple[int, bytes]:
        """Return where a window begins, at a whole block, and its bytes: `size` from `at` on are in it, or the last.

        One that has to be read has this length.
        """
        for start, data in self._kept:
            if start <= at and min(at + size, self.raw.size) <= start + len(data):
                return start, data
        start = at - at % tarfile.BLOCKSIZE
        self.raw.seek(start)
        self._kept.append((start, self.raw.read(max(length, at + size - start))))
        return self._kept[-1]

    def read_at(self, at: int, size: int) -> bytes:
        """Read some bytes, fewer at the end."""
        start, data = self.window(at, size)
        return data[at - start : at - start + size]

    def read(self, size: int) -> bytes:
        """Read from the position; a header that says that it is huge is no header."""
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self.read_at(self._at, size)
        self._at += len(data)
        return data

    def seek(self, at: int) -> None:
        """Move to a byte."""
        self._at = at

    def tell(self) -> int:
        """Return the position."""
        return self._at


class TarIndex:
    """The members of a tar file below a root; StoreError if it can't be read."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.where = joined(storage.root, path)
        self._raw = RangeFile(storage, path)
        self._windows = _Windows(self._raw)

    def members(self) -> Iterator[Member]:
        """Yield the files of the tar, in their order.

        DatasetError if it is no tar, or packed, cut off or damaged; or if a member is a link, a device or a sparse
        file, or has a name that is absolute, leads upwards or is not UTF-8; StoreError if it can't be read.
        """
        head = self.read(0, 8)
        packed = next((name for mark, name in _PACKED.items() if head.startswith(mark)), None)
        if packed:
            raise DatasetError(f"{self.where}: expected a tar that is not packed, found {packed}; unpack it to .tar")
        if not self._raw.size:
            return
        try:
            yield from self._members()
        except tarfile.TarError as error:
            raise DatasetError(f"{self.where}: expected a whole tar file, found: {error}; copy it again") from None

    def _members(self) -> Iterator[Member]:
        if not any(self.read(0, tarfile.BLOCKSIZE)):
            return  # Without members, which Python takes for no tar.
        with tarfile.open(fileobj=self._windows, mode="r:") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                tar.members = []  # Else it keeps them all.
                if not info.isdir():
                    yield self._member(info)
                if not tar.pax_headers:  # which would count for all members
                    tar.offset = yield from self._plain(tar.offset)
            at = tar.offset
        # Python ends in silence at a header that is none.
        if any(self.read(at, tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"no header at byte {at}")

    def _plain(self, at: int) -> Generator[Member, None, int]:
        """Yield the members from a byte on whose headers say all in the usual way, and return where these end.

        Python's library takes ten times as long for one; what is in any way odd is left to it.
        """
        length = _WINDOW
        while True:
            start, data = self._windows.window(at, length=length)
            found, sums = [], []
            place, more = at - start, True
            while place + tarfile.BLOCKSIZE <= len(data) and (header := _plain_header(data, place)) is not None:
                name, size, checksum = header
                found.append(Member(name, start + place + tarfile.BLOCKSIZE, size))
                sums.append(checksum)
                place += tarfile.BLOCKSIZE * (1 - -size // tarfile.BLOCKSIZE)
            else:
                more = place + tarfile.BLOCKSIZE > len(data)
            fitting = self._count_fitting(start, data, found, sums)
            yield from found[:fitting]
            if fitting < len(found):
                return found[fitting].start - tarfile.BLOCKSIZE
            at = start + place
            if not more or not found:
                return at
            length = _LONG_WINDOW if len(found) >= _DENSE else _WINDOW

    def _count_fitting(self, start: int, data: bytes, found: list[Member], sums: list[int]) -> int:
        """Return how many of some members, from the first on, have their checksum and end before the tar does."""
        blocks = np.frombuffer(data, np.uint8, len(data) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE)
        places = [(member.start - start) // tarfile.BLOCKSIZE - 1 for member in found]
        headers = blocks.reshape(-1, tarfile.BLOCKSIZE)[places]
        # The checksum counts as blanks.
        counted = headers.sum(axis=1, dtype=np.int64) - headers[:, _CHECKSUM].sum(axis=1, dtype=np.int64) + 8 * ord(" ")
        fit = counted == np.array(sums, dtype=np.int64)
        fit &= np.array([member.start + member.size <= self._raw.size for member in found], dtype=bool)
        return len(fit) if fit.all() else int(fit.argmin())

    def _member(self, info: tarfile.TarInfo) -> Member:
        where = f"{self.where}, member {quoted(info.name)}"
        if info.issparse() or not info.isreg():
            found = _KINDS.get(
                tarfile.GNUTYPE_SPARSE if info.issparse() else info.type, "a device or pipe; leave it out"
            )
            raise DatasetError(f"{where}: expected files alone, found {found}")
        name = re.sub(r"^(\./+)+", "", info.name)
        if name.startswith("/") or ".." in name.split("/"):
            raise DatasetError(
                f"{where}: expected a name below the folder of the tar, found one that leads out of it; write the tar "
                "again without -P and '..'"
            )
        if not name.isprintable():
            raise DatasetError(f"{where}: expected a printable name in UTF-8, found another; rename it")
        if info.offset_data + info.size > self._raw.size:
            raise tarfile.ReadError("unexpected end of data")
        return Member(name, info.offset_data, info.size)

    def read(self, start: int, size: int) -> bytes:
        """Read some bytes of the tar, mostly without a further request."""
        return self._windows.read_at(start, size)


def _plain_header(data: bytes, at: int) -> tuple[str, int, int] | None:
    """Return name, size and checksum of a header of a file; None if anything in it is not as in most tars."""
    name = data[at : at + 100].partition(b"\0")[0].decode("latin-1")
    size, checksum = data[at + 124 : at + 135], data[at + 148 : at + 154]
    plain = (
        data[at + 257 : at + 262] == b"ustar"
        and data[at + 156] in _FILE
        and data[at + 135] in _ENDS
        and data[at + 154 : at + 156] in _ENDS_OF_SUM
        and data[at + 345] == 0  # a name that goes on there
        and name.isascii()
        and name.isprintable()
        and not name.startswith((".", "/"))
        and not name.endswith("/")
        and ".." not in name
        and _OCTAL.fullmatch(size)
        and _OCTAL.fullmatch(checksum)
    )
    return (name, int(size, 8), int(checksum, 8)) if plain and name else None
