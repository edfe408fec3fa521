"""The cells of a list as people have it: CSV of any program, an Excel workbook, or Parquet; all of them become text."""

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from vggfeat.datasets.files import listed, read_bytes
from vggfeat.errors import ConfigError, DatasetError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_MOST_BYTES = 2**30
_LARGE = 1 << 20
"""Characters from which on pyarrow reads a CSV file, in a tenth of the time."""
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_OTHER_TABLES = (".xls", ".xlsb", ".ods", ".numbers")


class Cells(NamedTuple):
    """A table of texts."""

    path: Path
    headings: list[str]
    columns: list[Sequence[str]]
    """For each heading the cells below it."""
    lines: Sequence[int]
    """Where each row starts in the file, from 1."""
    notes: tuple[str, ...] = ()

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path}, line {self.lines[row]}"


def read_cells(path: Path, wanted: Iterable[str], *, encoding: str | None = None, sheet: str | None = None) -> Cells:
    """Read a table; its kind is told by the ending of its name, .xlsx, .parquet, and CSV for any other.

    Parameters
    ----------
    path : Path
        At most 1 GiB. CSV has a heading and commas, semicolons or tabs, in UTF-8, or in UTF-16 with its mark.
    wanted : iterable of str
        Headings in small letters without blanks and `_ -`, one of which tells the separator of a CSV file.
    encoding : str, optional
        What a CSV file is written in, a name that Python knows.
    sheet : str, optional
        Of a workbook; needed if several have content.

    Raises
    ------
    DatasetError
        If it is missing, too large, or can't be read as what it is called; the message names the line.
    ConfigError
        If there is no such encoding or sheet, or a library is missing.
    """
    kind = path.suffix.lower()
    if kind in _OTHER_TABLES:
        raise DatasetError(f"{path}: expected CSV, .xlsx or .parquet, found {kind}; save it as one of these")
    if sheet is not None and kind != ".xlsx":
        raise ConfigError(f"--sheet: expected it with a list in .xlsx, found {path.name}; leave it out")
    if encoding is not None and kind in (".xlsx", ".parquet"):
        raise ConfigError(f"--encoding: expected it with a list in CSV, found {path.name}; leave it out")
    content = read_bytes(path, _MOST_BYTES)
    if kind == ".xlsx":
        return _read_workbook(path, content, sheet)
    if kind == ".parquet":
        return _read_parquet(path, content)
    return _read_csv(path, decode(path, content, encoding), frozenset(wanted))


def plain(heading: str) -> str:
    """Return a heading without capitals, blanks and `_ -`: File name, file_name and FILENAME are one."""
    return "".join(heading.casefold().split()).replace("_", "").replace("-", "")


def decode(path: Path, content: bytes, encoding: str | None = None) -> str:
    """Turn bytes into text: by their mark, in the encoding that is told, or in UTF-8.

    Raises
    ------
    DatasetError
        If a byte does not fit; the message names the line and the option.
    ConfigError
        If there is no such encoding.
    """
    marked = next((code for mark, code in _MARKS.items() if content.startswith(mark)), None)
    code = marked or encoding or "utf-8"
    try:
        return content.decode(code)
    except LookupError:
        raise ConfigError(f"--encoding: expected utf-8, cp1252, latin-1 or the like, found {encoding!r}") from None
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = content.count(b"\n", 0, start) + 1
        raise DatasetError(
            f"{path}, line {line}: expected text in {code.upper()}, found the byte 0x{content[start]:02x}; if it is in "
            "another code, give it: --encoding cp1252 (Excel in western Europe), latin-1, shift_jis or the like"
        ) from None


def _read_csv(path: Path, text: str, wanted: frozenset[str]) -> Cells:
    told = re.match("sep=([^\r\n])(\r\n|\r|\n)", text, re.IGNORECASE)  # Excel writes and reads such a line.
    text = text[told.end() if told else 0 :].rstrip("\r\n")
    head = _first_line(text.lstrip("\r\n"))
    if "\0" in head:
        raise DatasetError(
            f"{path}: expected text, found zero bytes in its first line; give --encoding utf-16-le if it is that"
        )
    separator = told[1] if told else _separator(path, head, wanted)
    first = 2 if told else 1
    blank = text[:1] in ("\r", "\n") or any(pair in text for pair in ("\n\n", "\n\r", "\r\r"))
    quick = len(text) > _LARGE and '"' not in text and not blank
    return (quick and _read_plain(path, text, separator, first)) or _read_strictly(path, text, separator, first)


def _first_line(text: str) -> str:
    return re.split("[\r\n]", text, maxsplit=1)[0]


def _separator(path: Path, head: str, wanted: frozenset[str]) -> str:
    """Return what separates the headings so that one of them is known; a comma where none is."""
    fits = {}
    for separator in SEPARATORS:
        names = next(csv.reader([head], delimiter=separator), [])
        if wanted & set(map(plain, names)):
            fits[separator] = len(names)
    several = [separator for separator, count in fits.items() if count > 1]
    if len(several) > 1:
        readings = " and ".join(f"{fits[one]} columns with {SEPARATORS[one]}" for one in several)
        raise DatasetError(
            f"{path}, line 1: expected one way to read the headings, found {readings}: {head[:80]!r}; put a line "
            f"sep={several[0]} or sep={several[1]} above them"
        )
    return several[0] if several else ","


def _read_plain(path: Path, text: str, separator: str, first: int) -> Cells | None:
    """Read CSV without quotes and empty lines; None if its lines have unequal numbers of fields."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    raw = text.encode()
    names = list(map(str, range(1 + _first_line(text).count(separator))))
    try:
        table = arrow.read_csv(
            pa.BufferReader(raw),
            read_options=arrow.ReadOptions(column_names=names, block_size=len(raw), use_threads=False),
            parse_options=arrow.ParseOptions(delimiter=separator, quote_char=False),
            convert_options=arrow.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowInvalid:
        return None
    columns = [column.to_pylist() for column in table.columns]
    headings = [column[0].strip() for column in columns]
    return Cells(path, headings, [column[1:] for column in columns], range(first + 1, first + len(table)))


def _read_strictly(path: Path, text: str, separator: str, first: int) -> Cells:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    line, lines, rows = first, list[int](), list[list[str]]()
    try:
        for fields in reader:
            if fields:
                lines.append(line)
                rows.append(fields)
            if len(fields) not in (0, len(rows[0])):
                raise DatasetError(
                    f"{path}, line {line}: expected {len(rows[0])} fields, found {len(fields)}; quote fields with "
                    f"{SEPARATORS.get(separator, repr(separator))}"
                )
            line = first + reader.line_num
    except csv.Error as error:
        kind = SEPARATORS.get(separator, repr(separator))
        raise DatasetError(f"{path}, line {line}: expected fields separated by {kind}: {error}") from error
    return _table(path, rows, lines)


def _table(path: Path, rows: list[list[str]], lines: Sequence[int], notes: tuple[str, ...] = ()) -> Cells:
    if not rows:
        raise DatasetError(f"{path}: expected a line of headings, found an empty list")
    headings = [heading.strip() for heading in rows[0]]
    columns: list[Sequence[str]] = [*zip(*rows[1:], strict=True)] or [()] * len(headings)
    return Cells(path, headings, columns, lines[1:], notes)


def _read_workbook(path: Path, content: bytes, sheet: str | None) -> Cells:
    try:
        import openpyxl
    except ImportError:
        raise ConfigError(
            f"{path}: expected openpyxl to read it, found none; install vggfeat[excel], or save the list as CSV"
        ) from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            if sum(part.file_size for part in parts.infolist()) > _MOST_BYTES:
                raise DatasetError(f"{path}: expected at most {_MOST_BYTES} bytes unpacked, found more")
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheets = {one.title: _sheet_rows(one) for one in book.worksheets}
    except DatasetError:
        raise
    except Exception as error:  # openpyxl lets out whatever a damaged file makes of its insides
        raise DatasetError(f"{path}: expected an Excel workbook, found one that can't be read: {error}") from error
    filled = [name for name, rows in sheets.items() if rows]
    if sheet is not None and sheet not in sheets:
        raise ConfigError(f"--sheet: expected one of {listed(list(sheets))} ({path.name}), found {sheet!r}")
    if sheet is None and len(filled) > 1:
        raise DatasetError(f"{path}: expected one sheet with content, found {listed(filled)}; say which with --sheet")
    rows = sheets[sheet] if sheet is not None else sheets[filled[0]] if filled else {}
    width = max(map(len, rows.values()), default=0)
    return _table(path, [[*row, *[""] * (width - len(row))] for row in rows.values()], list(rows))


def _sheet_rows(sheet: Any) -> dict[int, list[str]]:
    """Row number -> cells, of the rows that are not empty."""
    rows = {}
    sheet.reset_dimensions()  # Sheets say of themselves that they have a million rows.
    for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
        texts = [_text(value) for value in values]
        while texts and not texts[-1]:
            texts.pop()
        if texts:
            rows[number] = texts
    return rows


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime) and value == datetime(value.year, value.month, value.day):
        return value.date().isoformat()
    return value.isoformat() if isinstance(value, date) else str(value)


def _read_parquet(path: Path, content: bytes) -> Cells:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        fields = [field for field in file.schema_arrow if not (pa.types.is_nested(field.type) or _is_bytes(field.type))]
        # By one name all columns of that name are read.
        table = file.read(columns=list(dict.fromkeys(field.name for field in fields)))
        columns = [column.cast(pa.string()).fill_null("").to_pylist() for column in table.columns]
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path}: expected a Parquet file, found one that can't be read: {reason}") from error
    others = [name for name in file.schema_arrow.names if name not in {field.name for field in fields}]
    notes = (f"Columns of lists or bytes, and ignored: {listed(others)}.",) if others else ()
    headings = [name.strip() for name in table.column_names]
    return Cells(path, headings, columns, range(2, 2 + table.num_rows), notes)


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
