"""Zip archives that others may have written: what is in them, and a member, within limits."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vggfeat.errors import WeightsError

_MOST_DIRECTORY = 4 << 20
"""Bytes of an archive's directory: 40,000 members at least. It bounds the memory and the time that a list takes."""
MOST_INFLATED = 4
"""Times its compressed size: the weights of a trained net hardly shrink at all."""
_ALLOWANCE = 1 << 20
_DAMAGE = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError)


class _Bounded(io.FileIO):
    def read(self, size: int | None = -1) -> bytes:
        if size is None or size > _MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except _DAMAGE as error:
        raise WeightsError(f"{path}: expected a zip archive, found a damaged one: {error}; take it again") from None


def list_members(path: Path) -> list[zipfile.ZipInfo]:
    """List the members of an archive.

    Raises
    ------
    WeightsError
        If it is damaged, or has too many.
    """
    with _archive(path) as archive:
        return archive.infolist()


def read_member(path: Path, name: str, most: int | None = None) -> bytes:
    """Read a member of an archive.

    Parameters
    ----------
    path : Path
    name : str
    most : int, optional
        Bytes that it may have; by default what the weights of a net of the archive's size could have.

    Raises
    ------
    WeightsError
        If there is none of that name, it is damaged, or it says that it has more bytes.
    """
    most = most or MOST_INFLATED * path.stat().st_size + _ALLOWANCE
    with _archive(path) as archive:
        try:
            member = archive.getinfo(name)
        except KeyError:
            raise WeightsError(f"{path}: expected {name} in the archive, found none; take it again") from None
        if member.file_size > most:
            raise WeightsError(
                f"{path}: {name}: expected at most {most} bytes, found {member.file_size}; it is damaged"
            )
        with archive.open(member) as stream:
            return stream.read(most)
