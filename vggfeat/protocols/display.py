"""A result as a line, as a table in a notebook, and as a table of pandas."""

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.errors import ConfigError

if TYPE_CHECKING:
    from vggfeat.protocols.results import Result

MOST_ROWS = 40
"""Classes that a notebook shows; the rest is counted."""


def result_line(result: "Result") -> str:
    """Return protocol, data set, headline and chance level in one line."""
    deviation = result.deviation(result.metric)
    spread = "" if deviation is None else f" +- {100 * deviation:.1f}"
    name = str(result.dataset.get("name", "?"))[:40]
    return (
        f"Result({result.protocol} on {name}: {result.metric_name} {100 * result.headline:.1f}{spread} %, chance "
        f"{100 * result.chance:.1f} %, {len(result.classes)} classes, {len(result.runs)} runs)"
    )


def result_html(result: "Result") -> str:
    """Return the headline and the table of classes, with a bar for the headline's measure where classes have one."""
    rows = result.class_rows()
    measures = list(rows[0].values) if rows else []
    head = "".join(f"<th>{escape(text)}</th>" for text in ["class", *(f"{key}, %" for key in measures), "C", ""])
    drawn = result.metric if result.metric in measures else (measures or [""])[0]
    body = "".join(_html_row(row, measures, drawn) for row in rows[:MOST_ROWS])
    more = f"<p>{len(rows) - MOST_ROWS} more classes: to_frame()</p>" if len(rows) > MOST_ROWS else ""
    return f"<p>{escape(result_line(result))}</p><table><tr>{head}</tr>{body}</table>{more}"


def _html_row(row: Any, measures: list[str], drawn: str) -> str:
    costs = sorted(set(row.C))
    cells = [row.name, *(_percent(row.values[key]) for key in measures), ", ".join(f"{cost:g}" for cost in costs)]
    value = row.values.get(drawn, np.nan)
    width = 0 if np.isnan(value) else round(120 * value)
    bar = f'<td><div style="background:#4c78a8;height:0.8em;width:{width}px"></div></td>'
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}{bar}</tr>"


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def result_frame(result: "Result") -> Any:
    """Return a pandas DataFrame; see `Result.to_frame`."""
    try:
        import pandas
    except ImportError:
        raise ConfigError("to_frame: the package pandas is missing; pip install pandas") from None
    return pandas.concat([pandas.DataFrame(_columns(result, run)) for run in result.runs], ignore_index=True)


def _columns(result: "Result", run: Any) -> dict[str, Any]:
    from vggfeat.protocols.results import COUNTS

    fit = {"C": run.choice.C, "converged": run.model.converged, "gap": run.model.gap}
    counts = {name: getattr(run, name) for name in COUNTS}
    return {"run": run.name, "class": list(result.classes), **run.values, **fit, **counts}
