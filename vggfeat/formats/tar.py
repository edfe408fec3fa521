"""What is in a tar file and where, by its headers alone: nothing is unpacked, and no name of it is ever a path here."""

import io
import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from vggfeat.errors import DatasetError, quoted
from vggfeat.runtime.range_file import RangeFile
from vggfeat.runtime.storage import Storage, joined

_WINDOW = 1 << 16
"""Bytes of one read: a header with what is small around it."""
_LONGEST_HEADER = 1 << 20
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "ZIP"}
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link; write the tar again with --dereference",
    tarfile.LNKTYPE: "a hard link; write the tar again with --hard-dereference",
    tarfile.GNUTYPE_SPARSE: "a sparse file; write the tar again without --sparse",
}


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    """With forward slashes, without "./" before it."""
    start: int
    """Its first byte in the tar."""
    size: int


class _Buffer(io.BufferedReader):
    """Reads of headers: a header that says that it is huge is no header."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


class TarIndex:
    """The members of a tar file below a root.

    Parameters
    ----------
    storage : Storage
    path : str

    Raises
    ------
    StoreError
        If it can't be read.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self.where = joined(storage.root, path)
        self._raw = RangeFile(storage, path)
        self._buffer = _Buffer(self._raw, _WINDOW)

    def members(self) -> Iterator[Member]:
        """Yield the files of the tar, in their order.

        Raises
        ------
        DatasetError
            If it is no tar, or packed, cut off or damaged; or if a member is a link, a device or a sparse file, or has
            a name that is absolute, leads upwards or is not UTF-8.
        StoreError
            If it can't be read.
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
        self._buffer.seek(0)
        with tarfile.open(fileobj=self._buffer, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # Else it keeps them all.
                if not info.isdir():
                    yield self._member(info)
            at = tar.offset
        # Python ends in silence at a header that is none.
        if any(self.read(at, tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"no header at byte {at}")

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
        self._buffer.seek(start)
        return self._buffer.read(size)
