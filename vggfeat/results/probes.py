"""What probes are worth, as JSON and as text."""

import math
from collections.abc import Sequence
from typing import Any

from vggfeat.protocols.probes import PROBES, ProbeValue
from vggfeat.protocols.results import METRICS
from vggfeat.results.text import align, percent, printable

FORMAT, VERSION = "vggfeat-probes", 1


def probes_json(measure: str, values: Sequence[ProbeValue], dataset: str) -> dict[str, Any]:
    """Return what was measured, ready for JSON."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "dataset": dataset,
        "measure": measure,
        "values": [
            {
                **one._asdict(),
                "mean": _known(one.mean),
                "values": [_known(value) for value in one.values],
                "setting": PROBES[one.probe].setting,
            }
            for one in values
        ],
    }


def probes_text(content: dict[str, Any], width: int | None = None) -> str:
    """Return a table: a line a probe, a column a number of training images of each class, in per cent."""
    values = content["values"]
    shots = list(dict.fromkeys(one["shots"] for one in values))
    rows = [["probe", "chosen", *("all" if one is None else str(one) for one in shots)]]
    for name in dict.fromkeys(one["probe"] for one in values):
        own = [one for one in values if one["probe"] == name]
        chosen = "/".join(f"{value:g}" for value in dict.fromkeys(own[0]["settings"]))
        rows.append([name, f"{own[0]['setting']} = {chosen}", *map(_cell, own)])
    measure = METRICS[content["measure"]]
    head = f"{content['dataset']}: {measure}, % by images of each class to train on, +- deviation over draws and runs"
    return "\n".join([printable(head), *align(rows, left=2, width=width)])


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _cell(value: dict[str, Any]) -> str:
    deviation = "" if value["deviation"] is None else f" +- {100 * value['deviation']:.1f}"
    return f"{percent(value['mean'])}{deviation}"
