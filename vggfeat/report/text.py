"""Plain text for terminals: names from anywhere in columns that stand straight."""

import unicodedata
from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Pad columns to equal width on a terminal; the first `left` columns to the left, the others to the right."""
    table = [[printable(text) for text in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        gaps = [" " * (width - _width(text)) for text, width in zip(row, widths, strict=True)]
        cells = [text + gap if k < left else gap + text for k, (text, gap) in enumerate(zip(row, gaps, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def printable(text: str) -> str:
    """Return a text of one line, with control characters and bytes that are no UTF-8 in their escaped form."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _width(text: str) -> int:
    # Columns of a terminal: characters of East Asia take two, accents that combine none.
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
