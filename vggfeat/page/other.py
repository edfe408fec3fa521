"""Results of other commands (`classify`, `localise evaluate`): figures, lists as tables, and all the rest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vggfeat.page.classes import DASH, Cell, Table, percent
from vggfeat.page.folders import OtherRun

MOST_ROWS = 2000
"""Of one table."""


@dataclass(frozen=True, kw_only=True)
class OtherPart:
    """What the page says of one folder."""

    name: str
    headline: str
    """Empty if there is none."""
    figures: tuple[tuple[str, str], ...]
    """Name, value."""
    notes: tuple[str, ...]
    tables: tuple[tuple[str, int, Table], ...]
    """Name, number of all rows, and the first of them; the classes come first."""
    text: str
    """table.txt, where results.json has no table."""
    rest: Mapping[str, Any]


def other_part(run: OtherRun) -> OtherPart:
    """Sort out what stands in results.json."""
    results = dict(run.results)
    headline, notes = results.pop("headline", ""), results.pop("notes", ())
    figures = _figures(results)
    tables = {name: value for name, value in results.items() if _is_table(value)}
    names = sorted(tables, key=lambda name: name != "classes")
    return OtherPart(
        name=run.name,
        headline=str(headline),
        figures=tuple((_title(name), _shown(name, value)) for name, value in figures.items()),
        notes=tuple(map(str, notes)) if isinstance(notes, list | tuple) else (str(notes),),
        tables=tuple((_title(name), len(tables[name]), _table(tables[name][:MOST_ROWS])) for name in names),
        text="" if tables else run.table,
        rest={name: value for name, value in results.items() if name not in tables and name not in figures},
    )


def _figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Errors, at the top or under "errors"; the names of the latter get the word, where they measure nothing else."""
    own = results.get("errors")
    nested = dict(own.items()) if isinstance(own, Mapping) else {}
    nested = {name if name.endswith(("error", "overlap")) else f"{name}_error": value for name, value in nested.items()}
    found = [*results.items(), *nested.items()]
    return {name: value for name, value in found if _is_number(value) and (name.endswith("error") or name in nested)}


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, Mapping) for row in value)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    return Table(
        header=tuple(f"{_title(name)}{' %' if name.endswith('error') else ''}" for name in names),
        rows=tuple(tuple(_cell(name, row.get(name), numbers) for name, numbers in _kinds(names, rows)) for row in rows),
    )


def _kinds(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Say of each column whether it holds numbers."""
    return [(name, any(_is_number(row.get(name)) for row in rows)) for name in names]


def _cell(name: str, value: Any, numbers: bool) -> Cell:
    if numbers:
        known = _is_number(value)
        return Cell(_shown(name, value).removesuffix(" %") if known else DASH, float(value) if known else float("nan"))
    return Cell(value if isinstance(value, str) else DASH if value is None else json.dumps(value, ensure_ascii=False))


def _shown(name: str, value: float) -> str:
    if isinstance(value, int):
        return f"{value}"
    return f"{value:.3g}" if name.endswith(("overlap", "second", "seconds", "percent")) else f"{percent(value)} %"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _title(name: str) -> str:
    return name.replace("top1", "top-1").replace("top5", "top-5").replace("_", " ")
