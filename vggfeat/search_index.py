"""An index over descriptors: which rows may be near a query, without reading all of them. The library is faiss.

Descriptors of length 1 are turned to their 256 main directions and kept with 8 bits a value; a query is compared with
all of them. The answer is a list of candidates, whose cosines are then computed from their features. n = some rows, D =
length of a descriptor.

An index file is a line of JSON, with the SHA-256 of what follows, and the index as faiss writes it.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError, StoreError
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors
from vggfeat.wording import install_extra

FORMAT, VERSION = "vggfeat-search", 1
DIRECTIONS = 256
"""Values of a row in the index; fewer if descriptors are shorter, or rows fewer."""
_LONGEST_HEAD = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchIndex:
    """Rows, ready to be searched."""

    about: dict[str, Any]
    """What the rows are of, by which an index of others is known."""
    failed: int
    """Rows without features, which are not in it."""
    raw: Any
    """The index of faiss."""

    def __len__(self) -> int:
        return int(self.raw.ntotal)

    def candidates(self, unit: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Return the ascending rows, up to `count`, that seem nearest to a descriptor (D,) of length 1."""
        _, rows = self.raw.search(unit[None], min(count, len(self)))
        return np.sort(rows[0][rows[0] >= 0])

    def save(self, path: Path) -> None:
        """Write the index to a file in one step; StoreError if the disk refuses."""
        content = _faiss().serialize_index(self.raw).tobytes()
        head = {"format": FORMAT, "version": VERSION, "sha256": hashlib.sha256(content).hexdigest(),
                "failed": self.failed, "about": self.about}  # fmt: skip
        guard = disk_errors(path, "writing the index", "fix it and give the same command again")
        with guard, atomic_write(DISK, path) as sink:
            sink.write(json.dumps(head, sort_keys=True).encode() + b"\n")
            sink.write(content)


def make_index(
    sample: NDArray[np.float32],
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    about: dict[str, Any],
    total: int,
) -> SearchIndex:
    """Make an index.

    Parameters
    ----------
    sample : (n, D) float32
        Descriptors of length 1, from which the directions are taken.
    blocks : iterable of ((n,) int64, (n, D) float32)
        Numbers and descriptors, of length 1, of all rows with features.
    about : dict
        What they are of, as JSON.
    total : int
        Rows, those without features included.

    Raises
    ------
    ConfigError
        If faiss is not installed.
    StoreError
        If no row has features.
    """
    faiss = _faiss()
    if not len(sample):
        raise StoreError("expected rows with features to make an index of, found none")
    directions = min(DIRECTIONS, sample.shape[1], len(sample))
    inner = faiss.index_factory(sample.shape[1], f"PCA{directions},SQ8", faiss.METRIC_L2)
    inner.train(sample)
    index = faiss.IndexIDMap2(inner)
    for rows, descriptors in blocks:
        index.add_with_ids(descriptors, rows)
    return SearchIndex(about=about, failed=total - index.ntotal, raw=index)


def load_index(path: Path, about: dict[str, Any]) -> SearchIndex:
    """Read an index.

    Raises StoreError if it is damaged, no index, or of other rows or settings than `about`; ConfigError if faiss is not
    installed.
    """
    again = "delete it, and it is made again, or choose another name"
    with disk_errors(path, "reading the index", "fix it and give the same command again"), path.open("rb") as file:
        try:
            head = json.loads(file.readline(_LONGEST_HEAD))
            known = head["format"] == FORMAT and head["version"] == VERSION
            digest, failed, found = head["sha256"], int(head["failed"]), head["about"]
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            raise StoreError(f"{path}: expected an index of vggfeat similar, found another file; choose another name")
        if found != about:
            names = sorted(name for name in about if not isinstance(found, dict) or found.get(name) != about[name])
            raise StoreError(
                f"{path}: expected an index of these features and settings, found another {', '.join(names)}; {again}"
            )
        content = file.read()
    if hashlib.sha256(content).hexdigest() != digest:
        raise StoreError(f"{path}: expected bytes that fit their SHA-256, found damage; {again}")
    raw = _faiss().deserialize_index(np.frombuffer(content, np.uint8))
    return SearchIndex(about=about, failed=failed, raw=raw)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            f"--index: expected the library faiss, found none; {install_extra('search')}, or leave the option out"
        ) from None
    return faiss
