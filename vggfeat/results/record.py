"""What a command found, as one record, and the one renderer of it: JSON, text for files and terminals, and CSV.

Text has names from anywhere, in straight columns.
"""

import io
import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vggfeat.formats.csv_cells import csv_bytes
from vggfeat.runtime.checksums import replace_run
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors
from vggfeat.wording import with_bytes

DASH = "\N{EN DASH}"
SHOWN_FAILURES = 10
"""Reasons of failures that are printed."""
_BYTE = re.compile(r"(?<!\\)\\udc([89a-f][0-9a-f])")
"""As a message quotes a byte that is no UTF-8."""
SHORTEST = 8
"""Columns of a terminal that a name keeps, however narrow the terminal is."""
_ENCODING = ContextVar("encoding", default="utf-8")


@contextmanager
def shown_in(encoding: str) -> Iterator[None]:
    """Let `align` leave room, in a block, for the escapes of characters that the encoding of the output lacks."""
    token = _ENCODING.set(encoding)
    try:
        yield
    finally:
        _ENCODING.reset(token)


def align(rows: Sequence[Sequence[str]], left: int, width: int | None = None) -> list[str]:
    """Pad columns to equal width on a terminal; the first `left` columns to the left, the others to the right.

    Where the lines would be longer than `width`, the longest of the `left` columns gives way, down to a few letters.
    """
    table = [[_encodable(printable(text)) for text in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    over = sum(widths) + 2 * (len(widths) - 1) - (width or sys.maxsize)
    if over > 0 and left:
        longest = max(range(left), key=lambda k: widths[k])
        widths[longest] = max(min(widths[longest], SHORTEST), widths[longest] - over)
        for row in table:
            row[longest] = shortened(row[longest], widths[longest])
    lines = []
    for row in table:
        gaps = [" " * (room - _width(text)) for text, room in zip(row, widths, strict=True)]
        cells = [text + gap if k < left else gap + text for k, (text, gap) in enumerate(zip(row, gaps, strict=True))]
        lines.append(shortened("  ".join(cells).rstrip(), width))
    return lines


def shortened(text: str, width: int | None) -> str:
    """Cut a text to so many columns of a terminal, with a mark where something is missing; None for no limit."""
    if width is None or _width(text) <= width:
        return text
    kept = ""
    for char in text:
        if _width(kept + char) > width - 1:
            break
        kept += char
    mark = "\N{HORIZONTAL ELLIPSIS}"
    return f"{kept}{mark if _encodable(mark) == mark else '~'}"


def printable(text: str) -> str:
    """Return a text of one line, with control characters and bytes that are no UTF-8 in their escaped form."""
    if "\\udc" in text:
        text = _BYTE.sub(r"\\x\1", text)
    if text.isprintable():  # Images in a page are long texts.
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in with_bytes(text))


def _encodable(text: str) -> str:
    return text.encode(_ENCODING.get(), "backslashreplace").decode(_ENCODING.get())


def percent(value: float | None, missing: str = "-") -> str:
    """Write a proportion in per cent."""
    return missing if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def failures_by_reason(failures: Iterable[tuple[str, str]], most: int, place: str) -> list[str]:
    """Say why images failed, a line for each of the first `most` reasons, and where all images are named.

    `failures`: pairs of image and reason. `place`: what holds all of them.
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in failures:
        reasons.setdefault(reason, []).append(name)
    lines = []
    for reason, names in list(reasons.items())[:most]:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"failed: {names[0]}{others}: {reason}")
    left = sum(map(len, list(reasons.values())[most:]))
    return [*lines, f"failed: {f'{left} more; ' if left else ''}all of them: {place}"] if lines else []


def _width(text: str) -> int:
    # Columns of a terminal: characters of East Asia take two, accents that combine none.
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


SHOWN_CONFUSIONS = 10
LONGEST_WORDS = 40
STAGES = {"choice": "the choice of C", "fit": "the fit"}
"""Where SVMs are solved, as `Result.convergence` calls it -> in words."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a command found."""

    content: Mapping[str, Any]
    """results.json: plain values, no NaN. The page is made from it."""
    columns: Mapping[str, str]
    """Key in `classes` -> heading of the text table; below a heading that ends in "%" are proportions in per cent."""
    classes: Sequence[Mapping[str, Any]]
    """A row a class."""
    worst_by: str = ""
    """Key of the error by which a shortened table is sorted, the highest first."""
    confusions: Sequence[tuple[str, str, int]] = ()
    """True class, what it was taken for, number of images; the commonest first."""
    remarks: Sequence[str] = ()
    """Lines below the table of classes."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Image -> reason."""
    notes: Sequence[str] = ()
    headline: Sequence[str]
    """Lines to quote: each names its measure."""
    paper: Sequence[str] = ()
    """Lines with the VGG paper's numbers."""
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = field(default_factory=dict)
    """Name of a CSV file -> headings, rows."""

    def text(self, *, most: int | None = None, width: int | None = None) -> str:
        """Render as plain text, a line each, never wrapped.

        `most`: with more classes than so many, only those of the highest error are listed. `width`: columns of the
        terminal that the tables are cut to.
        """
        lines = [*self._class_lines(most, width), "", *self._confusion_lines(width), *self.remarks]
        lines += failures_by_reason(self.failed.items(), SHOWN_FAILURES, "results.json")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(printable(line) for line in [*lines, *self.headline, *self.paper])

    def files(self, *, spreadsheet_safe: bool = False) -> dict[str, bytes]:
        """Render results.json, table.txt and the CSV files."""
        tables = {
            name: csv_bytes(headings, rows, spreadsheet_safe=spreadsheet_safe)
            for name, (headings, rows) in self.tables.items()
        }
        with shown_in("utf-8"):
            text = self.text().encode() + b"\n"
        return {"results.json": json_bytes(self.content), "table.txt": text, **tables}

    def write(
        self,
        folder: Path,
        more: Mapping[str, bytes] | None = None,
        *,
        own: Sequence[str] = (),
        spreadsheet_safe: bool = False,
    ) -> list[Path]:
        """Write all files, and `more`, in one step; see `write_run`."""
        contents = self.files(spreadsheet_safe=spreadsheet_safe) | dict(more or {})
        return write_run(folder, contents, last="results.json", own=own)

    def _class_lines(self, most: int | None, width: int | None) -> list[str]:
        rows, more = self.classes, []
        if most is not None and len(rows) > most:
            errors = [-1.0 if row[self.worst_by] is None else row[self.worst_by] for row in rows]
            worst = sorted(range(len(rows)), key=lambda k: -errors[k])[:most]
            rows = [rows[k] for k in worst]
            more = [f"the {most} classes of the highest error; table.txt has all {len(self.classes)}"]
        cells = [[_cell(row[key], heading) for key, heading in self.columns.items()] for row in rows]
        left = 2 if "words" in self.columns else 1
        return [*align([list(self.columns.values()), *cells], left=left, width=width), *more]

    def _confusion_lines(self, width: int | None) -> list[str]:
        if not self.confusions:
            return []
        cells = [[true, f"-> {guess}", str(count)] for true, guess, count in self.confusions[:SHOWN_CONFUSIONS]]
        indented = align(cells, left=2, width=None if width is None else width - 2)
        return ["most often taken for another:", *(f"  {line}" for line in indented), ""]


def _cell(value: Any, heading: str) -> str:
    if heading.endswith("%"):
        return percent(value)
    return "" if value is None else shortened(str(value), LONGEST_WORDS if heading == "words" else None)


def unsolved(convergence: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Count the SVMs that were given up, stage by stage, where there are some."""
    return [
        f"{found['problems'] - found['converged']} of {found['problems']} SVMs of {STAGES.get(stage, stage)}"
        for stage, found in convergence.items()
        if found["converged"] < found["problems"]
    ]


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Write JSON as it is in files."""
    return json.dumps(content, indent=2, allow_nan=False).encode() + b"\n"


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Write arrays as a compressed npz file, without pickle."""
    import numpy as np  # --help does not wait for it

    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    return packed.getvalue()


def write_run(folder: Path, contents: Mapping[str, bytes], *, last: str, own: Sequence[str] = ()) -> list[Path]:
    """Write the files of a run into a folder, which is made if needed; they become current together.

    `folder`, `contents`, `last` and `own`: as of `vggfeat.runtime.checksums.replace_run`. The paths of all files are
    returned. Raises StoreError if the folder can't be made or written.
    """
    with _writing(folder, "writing the results"):
        folder.mkdir(parents=True, exist_ok=True)
        return replace_run(DISK, folder, contents, last=last, own=own)


def write_file(path: Path, content: bytes) -> None:
    """Write one file into a folder, which is made if needed, in one step.

    Raises StoreError, which names the file, if it can't be written.
    """
    with _writing(path, "writing"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(DISK, path) as file:
            file.write(content)


def _writing(place: Path, doing: str) -> AbstractContextManager[None]:
    return disk_errors(place, doing, "fix it, or choose another folder")
