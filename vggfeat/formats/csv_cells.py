"""CSV of names and numbers: as they are, or harmless in a spreadsheet."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_RUN = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell begins with that a spreadsheet takes for a formula and may run; the last four are full-width = + - @."""


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]], *, spreadsheet_safe: bool = False) -> bytes:
    """Write a header and rows as CSV in UTF-8; None becomes an empty cell.

    With `spreadsheet_safe`, texts are written as `spreadsheet_cell` gives them.
    """
    cell = spreadsheet_cell if spreadsheet_safe else lambda value: value
    text = io.StringIO(newline="")
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=rule) for rule in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in (header, *rows):
        cells = [cell(value) for value in row]
        # Python leaves a carriage return bare where lines do not end with one; readers then see two rows.
        bare = any(isinstance(value, str) and "\r" in value for value in cells)
        (quoted if bare else plain).writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")


def spreadsheet_cell(value: Any) -> Any:
    """Return a text with ' before it where a spreadsheet would run it as a formula; numbers stay numbers."""
    if not (isinstance(value, str) and value.startswith(_RUN)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
