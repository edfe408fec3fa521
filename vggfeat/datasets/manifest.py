"""The lines of a CSV file that lists images: path, labels, split, box, id."""

import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vggfeat.datasets.files import check_locale, read_text
from vggfeat.errors import DatasetError
from vggfeat.samples import Box, Label

COLUMNS = ("path", "labels", "split", "box", "id")
"""The columns that a manifest may have; path is required."""

_MOST_BYTES = 2**30
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Row(NamedTuple):
    """One line of a manifest."""

    line: int
    """Where it starts in the file, from 1."""
    id: str
    """The id column, or the path."""
    path: str
    """Relative to the folder of the CSV file."""
    labels: dict[str, int]
    """Class name -> `Label.POSITIVE` or `Label.IGNORED`."""
    splits: list[str]
    """Names of the splits that it belongs to, as they are written."""
    box: Box | None
    """Pixel edges."""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the lines below the header.

    Parameters
    ----------
    path : Path
        A CSV file in UTF-8, at most 1 GiB, with a header of `COLUMNS` in any order.

    Raises
    ------
    DatasetError
        If the header has no path or an unknown column, or a line is malformed; the message names the line.
    """
    reader = csv.reader(io.StringIO(read_text(path, _MOST_BYTES), newline=""), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for fields in reader:
            where = f"{path}, line {line}"
            if not columns:
                columns = _check_header(where, fields)
            elif fields:
                row = _row(where, line, columns, fields)
                check_locale(path, [row.path])
                yield row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(f"{path}, line {line}: expected comma-separated values: {error}") from error
    if not columns:
        raise DatasetError(f"{path}: expected a header of {', '.join(COLUMNS)}, found an empty file")


def _check_header(where: str, fields: list[str]) -> list[str]:
    columns = [field.strip() for field in fields]
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown or "path" not in columns or len(set(columns)) < len(columns):
        raise DatasetError(
            f"{where}: expected a header with path and any of {', '.join(COLUMNS[1:])}, once each and separated "
            f"by commas, found {','.join(fields)[:80]!r}"
        )
    return columns


def _row(where: str, line: int, columns: list[str], fields: list[str]) -> Row:
    if len(fields) != len(columns):
        raise DatasetError(f"{where}: expected {len(columns)} fields, found {len(fields)}; quote fields with commas")
    cell = dict(zip(columns, fields, strict=True))
    path = _relative(where, cell["path"])
    return Row(
        line=line,
        id=cell.get("id", "").strip() or path,
        path=path,
        labels=_labels(where, cell.get("labels", "")),
        splits=_split_names(where, cell.get("split", "")),
        box=_box(where, cell.get("box", "")),
    )


def _relative(where: str, text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\0" in text or not path.name:
        raise DatasetError(
            f"{where}: expected a path below the folder of the CSV file, without '..', found {text[:200]!r}"
        )
    return str(path)


def _labels(where: str, text: str) -> dict[str, int]:
    labels: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(";"))):
        name = item.removeprefix("?").strip()
        label = Label.IGNORED if item.startswith("?") else Label.POSITIVE
        if not name or labels.get(name, label) != label:
            raise DatasetError(f"{where}: expected labels as name or ?name, not both, found {text[:80]!r}")
        labels[name] = label
    return labels


def _split_names(where: str, text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(";") if part.strip()))
    for name in names:
        if not _SPLIT_NAME.fullmatch(name):
            raise DatasetError(f"{where}: expected split names of letters, digits and _ . -, found {name[:40]!r}")
    return names


def _box(where: str, text: str) -> Box | None:
    if not text.strip():
        return None
    try:
        box = Box(*(float(part) for part in re.split(r"\s*[;\s]\s*", text.strip())))
    except (TypeError, ValueError):
        box = Box(math.nan, math.nan, math.nan, math.nan)
    if not (all(map(math.isfinite, box)) and box.left < box.right and box.top < box.bottom):
        raise DatasetError(
            f"{where}: expected a box as 'left top right bottom' with left < right and top < bottom, "
            f"found {text[:80]!r}"
        )
    return box
