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
from vggfeat.wording import install_extra

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_MOST_BYTES = 2**30
_MOST_ROWS = 2**20
"""Of a sheet: Excel has no more. A few bytes may say that there are a billion, empty or equal."""
_MOST_CELLS = 2**26
_LARGE = 1 << 20
"""Characters from which on pyarrow reads a CSV file, in a tenth of the time."""
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_WORKBOOKS = (".xlsx", ".xlsm")
_OTHER_TABLES = (".xls", ".xlsb", ".ods", ".numbers")
_NOT_TEXT = {
    b"PK\3\4": "a workbook or ZIP file; name it .xlsx if it is one",
    b"PAR1": "a Parquet file; name it .parquet",
    b"\x1f\x8b": "a file that is packed by gzip; unpack it",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save it as .xlsx",
}
_FORMULA = re.compile(rb"<(?:\w+:)?f[ >/]")


class Cells(NamedTuple):
    """A table of texts."""

    path: Path
    headings: list[str]
    columns: list[Sequence[str]]
    """For each heading the cells below it."""
    lines: Sequence[int]
    """Where each row starts in the file, from 1."""
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    """Headings of columns of lists or bytes, which are left out."""

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path}, line {self.lines[row]}"


def read_cells(path: Path, wanted: Iterable[str], *, encoding: str | None = None, sheet: str | None = None) -> Cells:
    """Read a table; the ending of its name says its kind: .xlsx, .xlsm, .parquet, and CSV for any other.

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
    if sheet is not None and kind not in _WORKBOOKS:
        raise ConfigError(f"--sheet: expected it with a list in .xlsx, found {path.name}; leave it out")
    if encoding is not None and kind in (*_WORKBOOKS, ".parquet"):
        raise ConfigError(f"--encoding: expected it with a list in CSV, found {path.name}; leave it out")
    content = read_bytes(path, _MOST_BYTES)
    if kind in _WORKBOOKS:
        return _read_workbook(path, content, sheet)
    if kind == ".parquet":
        return _read_parquet(path, content)
    return _read_csv(path, decode(path, content, encoding), frozenset(wanted))


def plain(heading: str) -> str:
    """Return a heading without capitals, blanks and `_ -`: File name, file_name and FILENAME are one."""
    return "".join(heading.casefold().split()).replace("_", "").replace("-", "")


def decode(path: Path, content: bytes, encoding: str | None = None) -> str:
    """Turn bytes into text: by their mark, in the encoding that is given, or in UTF-8.

    Raises DatasetError if a byte does not fit; the message names the line and the option. Raises ConfigError if there
    is no such encoding.
    """
    other = next((words for mark, words in _NOT_TEXT.items() if content.startswith(mark)), None)
    if other:
        raise DatasetError(f"{path}: expected text, found {other}")
    marked = next((code for mark, code in _MARKS.items() if content.startswith(mark)), None)
    if b"\0" in content[:2] and not (marked or encoding):
        code = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
        raise DatasetError(f"{path}: expected text in UTF-8, found zero bytes; give --encoding {code} if it is that")
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
    hint = re.match("sep=([^\r\n])(\r\n|\r|\n)", text, re.IGNORECASE)  # Excel writes and reads such a line.
    text = text[hint.end() if hint else 0 :].rstrip("\r\n")
    head = _first_line(re.sub(r"\A\s*[\r\n]", "", text))
    if "\0" in head:
        raise DatasetError(
            f"{path}: expected text, found zero bytes in its first line; give --encoding utf-16-le if it is that"
        )
    separator = hint[1] if hint else _separator(path, head, wanted)
    first = 2 if hint else 1
    blank = re.search(r"(\A|\n|\r(?!\n))[^\S\r\n]*(\r|\n)", text) is not None
    quick = len(text) > _LARGE and '"' not in text and not blank
    return (quick and _read_plain(path, text, separator, first)) or _read_strictly(path, text, separator, first)


def _first_line(text: str) -> str:
    return re.split("[\r\n]", text, maxsplit=1)[0]


def _separator(path: Path, head: str, wanted: frozenset[str]) -> str:
    """Return what separates the headings so that one of them is known; where none is, what there is most of."""
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
    return several[0] if several else max(SEPARATORS, key=head.count)  # a comma where there is none of them


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
            if len(fields) == 1 and fields[0].isspace():
                fields = []  # A line of blanks has no content, as an empty one; "" is an empty cell.
            if fields:
                lines.append(line)
                rows.append(fields)
            if fields and len(fields) != len(rows[0]):
                raise DatasetError(
                    f"{path}, line {line}: expected {len(rows[0])} fields, found {len(fields)}; quote fields with "
                    f"{SEPARATORS.get(separator, repr(separator))}"
                )
            line = first + reader.line_num
    except csv.Error as error:
        kind = SEPARATORS.get(separator, repr(separator))
        raise DatasetError(f"{path}, line {line}: expected fields separated by {kind}: {error}") from error
    return _table(path, rows, lines)


def _table(path: Path, rows: list[list[str]], lines: Sequence[int]) -> Cells:
    if not rows:
        raise DatasetError(f"{path}: expected a line of headings, found an empty list")
    headings = [heading.strip() for heading in rows[0]]
    columns: list[Sequence[str]] = [*zip(*rows[1:], strict=True)] or [()] * len(headings)
    return Cells(path, headings, columns, lines[1:])


def _read_workbook(path: Path, content: bytes, sheet: str | None) -> Cells:
    try:
        import openpyxl
    except ImportError:
        raise ConfigError(
            f"{path}: expected openpyxl to read it, found none; {install_extra('excel')}, or save the list as CSV"
        ) from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            if sum(part.file_size for part in parts.infolist()) > _MOST_BYTES:
                raise DatasetError(f"{path}: expected at most {_MOST_BYTES} bytes unpacked, found more")
            names = [name for name in parts.namelist() if name.startswith("xl/worksheets/")]
            formulas = any(_FORMULA.search(parts.read(name)) for name in names)
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheets = {one.title: _sheet_rows(path, one) for one in book.worksheets}
        if formulas:
            _check_formulas(path, book, openpyxl.load_workbook(io.BytesIO(content), read_only=True))
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


def _sheet_rows(path: Path, sheet: Any) -> dict[int, list[str]]:
    """Row number -> cells, of the rows that are not empty."""
    rows, width = dict[int, list[str]](), 0
    sheet.reset_dimensions()  # Sheets say of themselves that they have a million rows.
    for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
        texts = [_text(value) for value in values]
        while texts and not texts[-1]:
            texts.pop()
        if texts:
            rows[number], width = texts, max(width, len(texts))
        if number > _MOST_ROWS or width * len(rows) > _MOST_CELLS:
            raise DatasetError(
                f"{path}: expected at most {_MOST_ROWS} rows and {_MOST_CELLS} cells in a sheet, found more in "
                f"{sheet.title}"
            )
    return rows


def _check_formulas(path: Path, book: Any, formulas: Any) -> None:
    """Refuse a formula that no program has computed yet: its cell would count as empty."""
    for sheet, formula_sheet in zip(book.worksheets, formulas.worksheets, strict=True):
        formula_sheet.reset_dimensions()
        for number, row in enumerate(zip(sheet.iter_rows(), formula_sheet.iter_rows(), strict=True), start=1):
            for cell, formula in zip(*row, strict=True):
                # A formula that gave an empty text is of the type "str".
                if formula.data_type == "f" and cell.value is None and cell.data_type != "str":
                    raise DatasetError(
                        f"{path}, line {number}: expected a value, found the formula {formula.coordinate} of the sheet "
                        f"{sheet.title} without one; open the list in Excel or LibreOffice, and save it"
                    )


def _text(value: object) -> str:
    """Return what a cell says, the same from a workbook and from Parquet: whole numbers without a point."""
    if value is None or value != value:  # NaN is how tables of numbers say that there is none.
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
        if file.metadata.num_rows * len(fields) > _MOST_CELLS:
            raise DatasetError(f"{path}: expected at most {_MOST_CELLS} cells, found {file.metadata.num_rows} rows")
        # By one name all columns of that name are read.
        table = file.read(columns=list(dict.fromkeys(field.name for field in fields)))
        columns: list[Sequence[str]] = [_column(column) for column in table.columns]
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DatasetError(f"{path}: expected a Parquet file, found one that can't be read: {reason}") from error
    others = tuple(name for name in file.schema_arrow.names if name not in {field.name for field in fields})
    notes = (f"Columns of lists or bytes, and ignored: {listed(others)}.",) if others else ()
    headings = [name.strip() for name in table.column_names]
    return Cells(path, headings, columns, range(2, 2 + table.num_rows), notes, others)


def _column(column: Any) -> list[str]:
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):  # Python's dates know no nanoseconds.
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    if pa.types.is_float32(column.type):  # 0.1 and not 0.10000000149011612
        return [_text(float(str(value))) for value in column.to_numpy()]
    return list(map(_text, column.to_pylist()))


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
