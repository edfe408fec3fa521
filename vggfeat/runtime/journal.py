"""A journal: a file to which a run adds what became of each row, and from which it is resumed after it was stopped.

The first line holds what decides the results; every other line is one row, in order.
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

_ADVICE = "what was finished is kept; mend it and give the same command again"


class Journal:
    """JSON objects, a line each, of which only those that are complete count; a context manager.

    Parameters
    ----------
    path : Path
        Its folder exists. While the journal is open there is a lock file next to it, of that name and ".lock".
    form : str
        Name and version of what the lines are.
    key : dict
        What decides the lines, as JSON; a file of another key is not resumed.
    total : int
        Lines when it is complete. Each has its number, from 0, as `row`.
    step : int
        Lines that are added together: an unfinished group is dropped, so that the next run cuts its work in the
        same places and gives the same bits.
    overwrite : bool
        Begin again if the file is of another key.

    Raises
    ------
    StoreError
        If the file is of another key, or is no journal; another process has it; or the disk refuses.
    """

    def __init__(
        self, path: Path, form: str, key: dict[str, Any], total: int, step: int, *, overwrite: bool = False
    ) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        """The lines, those of earlier runs included."""
        self._head = {"format": form, "key": json.loads(json.dumps(key))}
        self._lock_path = path.with_name(f"{path.name}.lock")
        with disk_errors(path, "locking", _ADVICE), sole_writer(path, self._lock_path):
            self._lock = Lock(self._lock_path)
        try:
            with disk_errors(path, "opening", _ADVICE):
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
        with disk_errors(self.path, "writing", _ADVICE):
            self._file.write(b"".join(map(_line, records)))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.records.extend(records)

    def _begin(self, total: int, step: int, overwrite: bool) -> None:
        kept = [_line(self._head)]
        if self.path.is_file():
            first, *lines = self.path.read_bytes().split(b"\n")[:-1] or [b""]
            if self._is_same(_parsed(first), overwrite):
                records = _readable(lines[:total])
                count = len(records) if len(records) == total else len(records) // step * step
                self.records = records[:count]
                kept += [line + b"\n" for line in lines[:count]]
        with atomic_write(DISK, self.path, temp=temporary_path(self.path)) as file:
            file.write(b"".join(kept))

    def _is_same(self, head: dict[str, Any] | None, overwrite: bool) -> bool:
        ours, theirs = self._head["key"], {} if head is None else head.get("key", {})
        if overwrite and (head is None or theirs != ours):
            return False
        if head is None or head.get("format") != self._head["format"]:
            raise StoreError(f"{self.path}: expected the results of a run like this, found another file; move it away")
        different = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
        if different:
            raise StoreError(
                f"{self.path}: expected results of the same settings, found others of {', '.join(different)}; "
                "choose another --out, or give --overwrite"
            )
        return True

    def _let_go(self) -> None:
        # Removed while it is held: nobody else can be at work on a file of this name.
        self._lock_path.unlink(missing_ok=True)
        self._lock.release()


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _readable(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the lines up to the first that is not the one of its row."""
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        content = _parsed(line)
        if content is None or content.get("row") != number:
            break
        found.append(content)
    return found
