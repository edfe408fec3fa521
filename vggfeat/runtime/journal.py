"""A journal: a file to which a run adds what became of each row, and from which it is resumed after it was stopped.

The first line holds what decides the results; every other line is one row, with its checksum. Rows are added in groups,
which may come in any order; a complete journal has them in the order of the rows. A group with a damaged row is made
again.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from vggfeat.errors import StoreError
from vggfeat.runtime.checksums import sealed_line, unsealed_line
from vggfeat.runtime.durable import DISK, append, atomic_write, disk_errors
from vggfeat.runtime.locks import Lock, sole_writer
from vggfeat.runtime.output_paths import check_name

_ADVICE = "what was finished is kept; fix it and give the same command again"

Retry = Callable[[dict[str, Any], set[str]], bool]
"""Takes a row, and which of the `loose` entries of the key have changed; says if the row is to be made again."""
Loose = Mapping[str, Callable[[Any, Any], bool]]
"""Entry of a key -> whether it may have changed from one value to another."""


class Journal:
    """JSON objects, a line each, of which only those of complete groups count; a context manager.

    The folder of `path` exists. While the journal is open there is a lock file next to it, of that name and ".lock".
    `form` is name and version of what the lines are; `key`, as JSON, what decides them: a file of another key is not
    resumed, unless with `overwrite` it begins again.

    A complete journal has `total` lines, each with its number, from 0, as `row`. `step` lines are added together: an
    unfinished group is dropped, so that the next run cuts its work in the same places and gives the same bits.

    Groups with a row for which `retry` is true are dropped. This happens once: a run that was stopped meanwhile is
    resumed by the same call. `loose` are entries of the key that may have changed where rows are retried, and from
    which value to which.

    StoreError if the file is of another key, or is no journal; another process has it; its name is too long for those
    of the files next to it; or the disk refuses.
    """

    def __init__(
        self,
        path: Path,
        form: str,
        key: dict[str, Any],
        total: int,
        step: int,
        *,
        overwrite: bool = False,
        retry: Retry | None = None,
        loose: Loose = MappingProxyType({}),
    ) -> None:
        self.path = path
        self._groups = [range(start, min(start + step, total)) for start in range(0, total, step)]
        self._rows: dict[int, dict[str, Any]] = {}
        self._head = {"format": form, "key": json.loads(json.dumps(key)), "retrying": False}
        self._lock_path = path.with_name(f"{path.name}.lock")
        check_name(path)
        with disk_errors(path, "locking", _ADVICE), sole_writer(path, self._lock_path):
            self._lock = Lock(self._lock_path)
        try:
            with disk_errors(path, "opening", _ADVICE):
                self._read(overwrite, retry, loose)
                self._write()
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The rows so far, those of earlier runs included, in order."""
        return [self._rows[row] for row in sorted(self._rows)]

    @property
    def done(self) -> int:
        """Number of the rows so far."""
        return len(self._rows)

    @property
    def pending(self) -> list[range]:
        """Rows of the groups that are still to be added."""
        return [group for group in self._groups if group[0] not in self._rows]

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Keep the rows of a group for good; they are on the disk when this returns."""
        with disk_errors(self.path, "writing", _ADVICE):
            append(DISK, self.path, b"".join(map(sealed_line, records)))
            self._rows.update((record["row"], record) for record in records)
            if not self.pending and (self._head["retrying"] or list(self._rows) != sorted(self._rows)):
                self._head["retrying"] = False
                self._write()

    def _read(self, overwrite: bool, retry: Retry | None, loose: Loose) -> None:
        try:
            first, *lines = self.path.read_bytes().split(b"\n")[:-1] or [b""]
        except FileNotFoundError:
            return
        head = unsealed_line(first)
        changed = self._different(head, loose if retry else {}, overwrite)
        if head is None or changed is None:
            return
        self._rows = self._complete_groups(lines)
        self._head["retrying"] = head.get("retrying") is True
        if retry is not None and (changed or not self._head["retrying"]):
            for group in self._groups:
                if group[0] in self._rows and any(retry(self._rows[row], changed) for row in group):
                    for row in group:
                        del self._rows[row]
                    self._head["retrying"] = True

    def _different(self, head: dict[str, Any] | None, loose: Loose, overwrite: bool) -> set[str] | None:
        """Return the loose entries of the file's key that are others; None if the file is to be overwritten."""
        ours, theirs = self._head["key"], {} if head is None else head.get("key", {})
        if overwrite and (head is None or theirs != ours):
            return None
        if head is None or head.get("format") != self._head["format"]:
            raise StoreError(f"{self.path}: expected the results of a run like this, found another file; move it away")
        different = {name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)}
        settled = (name for name in different if name not in loose or not loose[name](theirs.get(name), ours.get(name)))
        if any(settled):
            raise StoreError(
                f"{self.path}: expected results of the same settings, found others of {', '.join(sorted(different))}; "
                "choose another --out, or give --overwrite"
            )
        return different

    def _complete_groups(self, lines: Sequence[bytes]) -> dict[int, dict[str, Any]]:
        """Return the rows of groups that have all of theirs, undamaged, in the order in which the groups came."""
        rows: dict[int, dict[str, Any]] = {}
        for record in filter(None, map(unsealed_line, lines)):
            if type(record.get("row")) is int:
                rows.setdefault(record["row"], record)
        place = {row: number for number, row in enumerate(rows)}
        complete = [group for group in self._groups if all(row in rows for row in group)]
        return {row: rows[row] for group in sorted(complete, key=lambda group: place[group[0]]) for row in group}

    def _write(self) -> None:
        with atomic_write(DISK, self.path) as file:
            file.write(b"".join(map(sealed_line, [self._head, *self.records])))

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            self._lock.remove()
        self._lock.release()
