"""Parts of a page for other runs than those of SVMs: trainings as curves, figures and lists as tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from vggfeat.results.charts import COLOURS, Chart, Curve, chart, linear_axis, log_axis, thinned
from vggfeat.results.reading import OtherRun, TrainingRun
from vggfeat.results.record import DASH, percent
from vggfeat.results.svm_page import Cell, SortableTable

MOST_ROWS = 2000
"""Of one table."""
MOST_COLUMNS = 50
"""Of one table: rows of results have the same few names."""
MOST_OPEN = 60
"""Rows of a table that is seen without a click."""
FIRST = ("classes", "confusions", "failed")
"""Tables that come before others."""
_TITLES = {"lr": "learning rate", "images_per_s": "images per second"}
_COUNTS = frozenset({"step", "epoch", "images", "waiting"})

Log = Sequence[Mapping[str, Any]]


def training_part(run: TrainingRun) -> dict[str, Any]:
    """Gather what the page says of one training run: figures of the last validation, charts, notes, what was left out.

    A figure is its name, its value, and for errors the lowest of all validations.
    """
    train, validation = (_of_kind(run, kind) for kind in ("train", "validation"))
    last = validation[-1] if validation else {}
    return {
        "run": run,
        "headline": [(_title(key), _figure(key, last[key]), _lowest(key, validation)) for key in _keys(validation)],
        "step": max((line["step"] for line in run.log), default=0),
        "charts": list(_charts(train, validation)),
        "notes": [str(line.get("text")) for line in run.log if line.get("kind") == "note"],
    }


def side_by_side(runs: Sequence[TrainingRun]) -> list[Chart]:
    """Draw the loss of several runs in one chart, and each figure of their validations in another."""
    if len(runs) < 2:
        return []
    measured = dict.fromkeys(key for run in runs for key in _keys(_of_kind(run, "validation")))
    plots = [("train", "loss"), *(("validation", key) for key in measured if key != "loss")]
    drawn = [
        (key, [_line(run.name, _of_kind(run, kind), key, f"c{k % COLOURS}") for k, run in enumerate(runs)])
        for kind, key in plots
    ]
    there = [(key, [line for line in lines if np.size(line.x)]) for key, lines in drawn]
    return [_chart(key, lines) for key, lines in there if len(lines) > 1]


def _charts(train: Log, validation: Log) -> Iterator[Chart]:
    keys = _keys(validation)
    errors = [key for key in keys if key.endswith("error")]
    plots = {
        "loss": [_line("training", train, "loss", "c0"), _line("validation", validation, "loss", "c1")],
        "error": [
            *(_line(f"{_title(key)}, training", train, key, "grey") for key in errors),
            *(_line(f"{_title(key)}, validation", validation, key, f"c{k}") for k, key in enumerate(errors)),
        ],
        **{key: [_line("validation", validation, key, "c0")] for key in keys if key not in (*errors, "loss")},
        **{key: [_line("", train, key, "c0")] for key in _TITLES},
    }
    for key, lines in plots.items():
        there = [line for line in lines if np.size(line.x)]
        if there:
            yield _chart(key, there)


def _chart(key: str, lines: Sequence[Curve]) -> Chart:
    steps, values = (np.concatenate([np.asarray(getattr(line, axis), float) for line in lines]) for axis in "xy")
    name = f"{_title(key)}, %" if key.endswith("error") else _title(key)
    axis = log_axis(name, values) if key == "lr" and (values > 0).any() else linear_axis(name, values, low=0)
    return chart(f"{_title(key)} over steps", linear_axis("step", steps, low=0), axis, lines)


def _line(name: str, lines: Log, key: str, style: str) -> Curve:
    there = [line for line in lines if isinstance(line.get(key), int | float)]
    kept = [there[place] for place in thinned(len(there), 400)] if there else []
    factor = 100 if key.endswith("error") else 1
    return Curve(name=name, x=[line["step"] for line in kept], y=[factor * line[key] for line in kept], style=style)


def _of_kind(run: TrainingRun, kind: str) -> Log:
    return [line for line in run.log if line.get("kind") == kind]


def _keys(validation: Log) -> list[str]:
    last = validation[-1] if validation else {}
    return [key for key, value in last.items() if isinstance(value, int | float) and key not in _COUNTS]


def _lowest(key: str, validation: Log) -> str:
    found = [line for line in validation if isinstance(line.get(key), int | float)]
    if not key.endswith("error") or len(found) < 2:
        return ""
    best = min(found, key=lambda line: line[key])
    return f"lowest: {_figure(key, best[key])} at step {best['step']}"


def _figure(key: str, value: float) -> str:
    return f"{100 * value:.1f} %" if key.endswith("error") else f"{value:.4g}"


def other_part(run: OtherRun) -> dict[str, Any]:
    """Sort out what is in results.json: headline, figures, notes, tables, and the rest.

    A table is its name, the number of all its rows, the first of them, and whether they are seen without a click, see
    `FIRST`. table.txt is shown where results.json has none.
    """
    results = dict(run.results)
    headline, notes = results.pop("headline", ""), results.pop("notes", ())
    figures = _figures(results)
    tables = {name: value for name, value in results.items() if _is_table(value)}
    names = sorted(tables, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    words = _words(tables.get("classes", ()))
    return {
        "name": run.name,
        "headline": str(headline),
        "figures": {_title(name): _shown(name, value) for name, value in figures.items()},
        "notes": list(map(str, notes)) if isinstance(notes, list | tuple) else [str(notes)],
        "tables": [_shown_table(name, tables[name], words) for name in names],
        "text": "" if tables else run.table,
        "rest": {name: value for name, value in results.items() if name not in tables and name not in figures},
    }


def summary(parts: Sequence[Mapping[str, Any]]) -> SortableTable | None:
    """Put the figures of several folders into one table."""
    names = list(dict.fromkeys(name for part in parts for name in part["figures"]))
    if len(parts) < 2 or not names:
        return None
    rows = [(Cell(part["name"]), *(_figure_cell(part["figures"].get(name, DASH)) for name in names)) for part in parts]
    return SortableTable(header=("run", *names), rows=tuple(rows))


def _figure_cell(shown: str) -> Cell:
    digits = shown.removesuffix(" %")
    return Cell(shown, float("nan") if digits == DASH else float(digits))


def _figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Errors, at the top or under "errors"; the names of the latter get the word, where they measure nothing else."""
    own = results.get("errors")
    nested = dict(own.items()) if isinstance(own, Mapping) else {}
    nested = {name if name.endswith(("error", "overlap")) else f"{name}_error": value for name, value in nested.items()}
    found = [*results.items(), *nested.items()]
    return {name: value for name, value in found if _is_number(value) and (name.endswith("error") or name in nested)}


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, Mapping) for row in value)


def _words(classes: Log) -> dict[str, str]:
    """Read what the classes are called in words, where their names are mere numbers, as those of ILSVRC are."""
    pairs = [(row.get("name"), row.get("words")) for row in classes]
    return {name: words for name, words in pairs if isinstance(name, str) and isinstance(words, str) and words}


def _shown_table(name: str, rows: Log, words: Mapping[str, str]) -> tuple[str, int, SortableTable, bool]:
    table = _table(rows[:MOST_ROWS], {} if name == "classes" else words)
    return _title(name), len(rows), table, name in FIRST and len(rows) <= MOST_OPEN


def _table(rows: Log, words: Mapping[str, str]) -> SortableTable:
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
    unit = name.endswith(("overlap", "second", "seconds", "percent"))
    return f"{value:.3g}" if unit else f"{percent(value, DASH)} %"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("top1", "top-1").replace("top5", "top-5").replace("_", " "))
