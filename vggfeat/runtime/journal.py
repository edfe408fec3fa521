"""A file to which a run adds what became of each image, and from which it goes on after it was stopped.

The first line says what decides the results; every other line is one image, in their order.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vggfeat.errors import StoreError
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors, temporary_path
from vggfeat.runtime.locks import Lock, sole_writer

FORMAT = "vggfeat localised images, 1"
ADVICE = "what was finished is kept; mend it and give the same command again"


class Journal:
    """JSON objects, a line each, of which only those that are complete count.

    Parameters
    ----------
    path : Path
        Its folder exists. A lock file of the same name and ".lock" stands beside it while it is open.
    key : dict
        What decides the lines, as JSON; a file of another key is not gone on with.
    total : int
        Lines when it is complete.
    step : int
        Lines that are added together: an unfinished group is dropped, so that the next run cuts its work in the
        same places and gives the same bits.
    overwrite : bool
        Start anew if the file is of another key.

    Raises
    ------
    StoreError
        If the file is of another key, or is no journal; another process has it; or the disk refuses.
    """

    def __init__(self, path: Path, key: dict[str, Any], total: int, step: int, *, overwrite: bool = False) -> None:
        self.path = path
        self._key = json.loads(json.dumps(key))
        with disk_errors(path, "locking", ADVICE), sole_writer(path, self._lock_path):
            self._lock = Lock(self._lock_path)
        self.records: list[dict[str, Any]] = []
        try:
            with disk_errors(path, "opening", ADVICE):
                self._begin(total, step, overwrite)
                self._file = path.open("ab")
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._let_go()

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Keep some lines for good; they are on the disk when this returns."""
        with disk_errors(self.path, "writing", ADVICE):
            self._file.write("".join(f"{json.dumps(record, allow_nan=False)}\n" for record in records).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        self.records.extend(records)

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    def _let_go(self) -> None:
        # Removed while it is held: nobody else can be at work on a file of this name.
        self._lock_path.unlink(missing_ok=True)
        self._lock.release()

    def _begin(self, total: int, step: int, overwrite: bool) -> None:
        kept = [_line({"format": FORMAT, "key": self._key})]
        if self.path.is_file():
            first, *lines = self.path.read_bytes().split(b"\n")[:-1] or [b""]
            if self._same(first, overwrite):
                records = _readable(lines[:total])
                count = len(records) if len(records) == total else len(records) // step * step
                self.records = records[:count]
                kept.extend(line + b"\n" for line in lines[:count])
        temporary = temporary_path(self.path)
        with atomic_write(DISK, self.path, temp=temporary) as file:
            file.write(b"".join(kept))

    def _same(self, first: bytes, overwrite: bool) -> bool:
        head = _parsed(first)
        if overwrite and (head is None or head.get("key") != self._key):
            return False
        if head is None or head.get("format") != FORMAT:
            raise StoreError(f"{self.path}: expected the results of a run like this, found another file; move it away")
        theirs = head.get("key", {})
        other = [name for name in {*theirs, *self._key} if theirs.get(name) != self._key.get(name)]
        if other:
            raise StoreError(
                f"{self.path}: expected results of the same settings, found others of {', '.join(sorted(other))}; "
                "choose another --out, or give --overwrite"
            )
        return True


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _readable(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the lines up to the first that is not the one of its image."""
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        content = _parsed(line)
        if content is None or content.get("row") != number:
            break
        found.append(content)
    return found
