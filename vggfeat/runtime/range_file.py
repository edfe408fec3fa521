"""A file of a storage as a file object that reads what is asked for, and no more."""

import io
import os
from typing import Any

from vggfeat.runtime.storage import Storage


class RangeFile(io.RawIOBase):
    """Every read is one request to the storage; put a buffer before it where reads are small.

    Parameters
    ----------
    storage : Storage
    path : str
        Below the root of the storage.

    Raises
    ------
    StoreError
        Here and in every read, as the storage does.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        super().__init__()
        self._storage, self._path = storage, path
        self.size = storage.size(path)
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence])
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer from the position: all of it, or what the file still has."""
        view = memoryview(buffer).cast("B")
        data = self._storage.read(self._path, self._at, max(0, min(view.nbytes, self.size - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
