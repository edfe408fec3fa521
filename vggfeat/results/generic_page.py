"""Results of other commands (`classify`, `localise evaluate`): figures, lists as tables, and all the rest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vggfeat.results.reading import OtherRun
from vggfeat.results.svm_page import DASH, Cell, SortableTable, percent

MOST_ROWS = 2000
"""Of one table."""
MOST_COLUMNS = 50
"""Of one table: rows of results have the same few names."""
MOST_OPEN = 60
"""Rows of a table that is seen without a click."""
FIRST = ("classes", "confusions", "failed")
"""Tables that come before others."""


@dataclass(frozen=True, kw_only=True)
class OtherPart:
    """What the page says of one folder."""

    name: str
    headline: str
    """Empty if there is none."""
    figures: tuple[tuple[str, str], ...]
    """Name, value."""
    notes: tuple[str, ...]
    tables: tuple[tuple[str, int, SortableTable, bool], ...]
    """Name, number of all rows, the first of them, and whether they are seen without a click; see `FIRST`."""
    text: str
    """table.txt, where results.json has no table."""
    rest: Mapping[str, Any]


def other_part(run: OtherRun) -> OtherPart:
    """Sort out what is in results.json."""
    results = dict(run.results)
    headline, notes = results.pop("headline", ""), results.pop("notes", ())
    figures = _figures(results)
    tables = {name: value for name, value in results.items() if _is_table(value)}
    names = sorted(tables, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    words = _words(tables.get("classes", ()))
    return OtherPart(
        name=run.name,
        headline=str(headline),
        figures=tuple((_title(name), _shown(name, value)) for name, value in figures.items()),
        notes=tuple(map(str, notes)) if isinstance(notes, list | tuple) else (str(notes),),
        tables=tuple(_shown_table(name, tables[name], words) for name in names),
        text="" if tables else run.table,
        rest={name: value for name, value in results.items() if name not in tables and name not in figures},
    )


def summary(parts: Sequence[OtherPart]) -> SortableTable | None:
    """Put the figures of several folders into one table."""
    names = list(dict.fromkeys(name for part in parts for name, _ in part.figures))
    if len(parts) < 2 or not names:
        return None
    rows = [(Cell(part.name), *(_figure(dict(part.figures).get(name)) for name in names)) for part in parts]
    return SortableTable(header=("run", *names), rows=tuple(rows))


def _figure(shown: str | None) -> Cell:
    digits = (shown or DASH).removesuffix(" %")
    return Cell(shown or DASH, float("nan") if digits == DASH else float(digits))


def _figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Errors, at the top or under "errors"; the names of the latter get the word, where they measure nothing else."""
    own = results.get("errors")
    nested = dict(own.items()) if isinstance(own, Mapping) else {}
    nested = {name if name.endswith(("error", "overlap")) else f"{name}_error": value for name, value in nested.items()}
    found = [*results.items(), *nested.items()]
    return {name: value for name, value in found if _is_number(value) and (name.endswith("error") or name in nested)}


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, Mapping) for row in value)


def _words(classes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Read what the classes are called in words, where their names are mere numbers, as those of ILSVRC are."""
    pairs = [(row.get("name"), row.get("words")) for row in classes]
    return {name: words for name, words in pairs if isinstance(name, str) and isinstance(words, str) and words}


def _shown_table(
    name: str, rows: Sequence[Mapping[str, Any]], words: Mapping[str, str]
) -> tuple[str, int, SortableTable, bool]:
    table = _table(rows[:MOST_ROWS], {} if name == "classes" else words)
    return _title(name), len(rows), table, name in FIRST and len(rows) <= MOST_OPEN


def _table(rows: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> SortableTable:
    names = list(islice(dict.fromkeys(str(name) for row in rows for name in row), MOST_COLUMNS))
    kinds = [(name, any(_is_number(row.get(name)) for row in rows)) for name in names]  # Whether it holds numbers.
    return SortableTable(
        header=tuple(f"{_title(name)}{' %' if name.endswith('error') else ''}" for name in names),
        rows=tuple(tuple(_cell(name, row.get(name), numbers, words) for name, numbers in kinds) for row in rows),
    )


def _cell(name: str, value: Any, numbers: bool, words: Mapping[str, str]) -> Cell:
    if numbers:
        known = _is_number(value)
        return Cell(_shown(name, value).removesuffix(" %") if known else DASH, float(value) if known else float("nan"))
    if isinstance(value, str):
        return Cell(f"{value} ({words[value]})" if value in words else value)
    if isinstance(value, list) and all(isinstance(one, str | int) for one in value):
        return Cell(", ".join(map(str, value)))
    return Cell(DASH if value is None else json.dumps(value, ensure_ascii=False))


def _shown(name: str, value: float) -> str:
    if isinstance(value, int):
        return f"{value}"
    return f"{value:.3g}" if name.endswith(("overlap", "second", "seconds", "percent")) else f"{percent(value)} %"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _title(name: str) -> str:
    return name.replace("top1", "top-1").replace("top5", "top-5").replace("_", " ")
