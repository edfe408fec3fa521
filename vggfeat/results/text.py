"""Plain text for terminals: names from anywhere, in straight columns."""

import math
import sys
import unicodedata
from collections.abc import Iterable, Sequence

DASH = "\N{EN DASH}"
SHOWN_FAILURES = 10
"""Reasons of failures that are printed."""
SHORTEST = 8
"""Columns of a terminal that a name keeps, however narrow the terminal is."""


def align(rows: Sequence[Sequence[str]], left: int, width: int | None = None) -> list[str]:
    """Pad columns to equal width on a terminal; the first `left` columns to the left, the others to the right.

    Where the lines would be longer than `width`, the longest of the `left` columns gives way, down to a few letters.
    """
    table = [[printable(text) for text in row] for row in rows]
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
    return f"{kept}\N{HORIZONTAL ELLIPSIS}"


def printable(text: str) -> str:
    """Return a text of one line, with control characters and bytes that are no UTF-8 in their escaped form."""
    if text.isprintable():  # Images in a page are long texts.
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def percent(value: float | None, missing: str = "-") -> str:
    """Write a proportion in per cent."""
    return missing if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def failures_by_reason(failures: Iterable[tuple[str, str]], most: int, place: str) -> list[str]:
    """Say why images failed, a line for each of the first `most` reasons, and where all images are named.

    Parameters
    ----------
    failures : iterable of (str, str)
        Image and reason.
    most : int
    place : str
        What holds all of them.
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
