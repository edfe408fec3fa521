"""Whether ids are unique, for lists that do not fit into memory: their hashes, in a file without a name.

A hash has 64 bits of Python's own, which differ from process to process; of 100 million ids two share one by chance
once in 3,700 lists, so that ids with a common hash are looked at again.
"""

import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

_IN_MEMORY = 1 << 26
"""Bytes of hashes that are kept in memory; more go to the disk."""
_BUCKET = 1 << 22
"""Hashes that are sorted at a time."""


class IdHashes:
    """Hashes of ids; a context manager."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, prefix="vggfeat-ids-")  # noqa: SIM115  its owner closes it
        self.count = 0

    def __enter__(self) -> "IdHashes":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, ids: Iterable[str]) -> None:
        """Add ids; OSError if the disk refuses."""
        hashes = hashes_of(ids)
        self._file.write(hashes.tobytes())
        self.count += len(hashes)

    def repeated(self) -> NDArray[np.int64]:
        """Return the hashes that there are more than once."""
        found = [bucket[1:][bucket[1:] == bucket[:-1]] for bucket in self._buckets(self._bucket_count())]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def beyond(self, known: "IdHashes") -> NDArray[np.int64]:
        """Return the hashes, ascending, that are not among the known ones."""
        count = max(self._bucket_count(), known._bucket_count())
        pairs = zip(self._buckets(count), known._buckets(count), strict=True)
        return np.sort(np.concatenate([np.empty(0, np.int64), *(np.setdiff1d(mine, other) for mine, other in pairs)]))

    def _bucket_count(self) -> int:
        return -(-self.count // _BUCKET)

    def _buckets(self, count: int) -> Iterator[NDArray[np.int64]]:
        """Yield all hashes in `count` lists, each sorted; equal ones are in one list."""
        for number in range(count):
            self._file.seek(0)
            chosen = [np.empty(0, np.int64)]
            while raw := self._file.read(8 * _BUCKET):
                hashes = np.frombuffer(raw, np.int64)
                chosen.append(hashes[(hashes % count) == number])
            yield np.sort(np.concatenate(chosen))
        self._file.seek(0, 2)


def hashes_of(ids: Iterable[str]) -> NDArray[np.int64]:
    """Return the hash of each id."""
    return np.fromiter(map(hash, ids), dtype=np.int64)
