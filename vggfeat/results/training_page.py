"""Training runs as curves: loss, errors, learning rate, speed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vggfeat.results.charts import COLOURS, Chart, Curve, chart, linear_axis, log_axis, thinned
from vggfeat.results.reading import TrainingRun

_TITLES = {"loss": "loss", "lr": "learning rate", "images_per_s": "images per second"}
_COUNTS = frozenset({"step", "epoch", "images", "waiting"})


@dataclass(frozen=True, kw_only=True)
class TrainingPart:
    """What the page says of one training run."""

    name: str
    headline: tuple[tuple[str, str, str], ...]
    """What the last validation found: name, value, and the lowest of all validations for errors."""
    step: int
    """The last that the log knows."""
    charts: tuple[Chart, ...]
    notes: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    settings: Mapping[str, Any]


def training_part(run: TrainingRun) -> TrainingPart:
    """Draw one run."""
    train, validation = (_of_kind(run, kind) for kind in ("train", "validation"))
    last = validation[-1] if validation else {}
    return TrainingPart(
        name=run.name,
        headline=tuple((_name(key), _value(key, last[key]), _lowest(key, validation)) for key in _keys(validation)),
        step=max((line["step"] for line in run.log), default=0),
        charts=tuple(_charts(train, validation)),
        notes=tuple(str(line.get("text")) for line in run.log if line.get("kind") == "note"),
        unreadable=run.unreadable,
        settings=run.settings,
    )


def side_by_side(runs: Sequence[TrainingRun]) -> tuple[Chart, ...]:
    """Draw the loss of several runs in one chart, and each figure of their validations in another."""
    if len(runs) < 2:
        return ()
    measured = dict.fromkeys(key for run in runs for key in _keys(_of_kind(run, "validation")))
    charts = []
    for kind, key in [("train", "loss"), *(("validation", key) for key in measured if key != "loss")]:
        curves = [_line(run.name, _of_kind(run, kind), key, f"c{k % COLOURS}") for k, run in enumerate(runs)]
        there = [line for line in curves if np.size(line.x)]
        if len(there) > 1:
            charts.append(_chart(key, there))
    return tuple(charts)


def _charts(train: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> list[Chart]:
    errors = [key for key in _keys(validation) if key.endswith("error")]
    others = [key for key in _keys(validation) if key not in errors and key != "loss"]
    loss = [_line("training", train, "loss", "c0"), _line("validation", validation, "loss", "c1")]
    wrong = [_line(f"{_name(key)}, training", train, key, "grey") for key in errors]
    wrong += [_line(f"{_name(key)}, validation", validation, key, f"c{k}") for k, key in enumerate(errors)]
    plots = [("loss", loss), ("error", wrong)]
    plots += [(key, [_line("validation", validation, key, "c0")]) for key in others]
    plots += [(key, [_line("", train, key, "c0")]) for key in ("lr", "images_per_s")]
    shown = [(key, [line for line in lines if np.size(line.x)]) for key, lines in plots]
    return [_chart(key, lines) for key, lines in shown if lines]


def _chart(key: str, lines: Sequence[Curve]) -> Chart:
    steps = linear_axis("step", np.concatenate([np.asarray(line.x, dtype=np.float64) for line in lines]), low=0)
    values = np.concatenate([np.asarray(line.y, dtype=np.float64) for line in lines])
    name = f"{_name(key)}, %" if key.endswith("error") else _name(key)
    axis = log_axis(name, values) if key == "lr" and (values > 0).any() else linear_axis(name, values, low=0)
    return chart(f"{_name(key)} over steps", steps, axis, lines)


def _line(name: str, lines: Sequence[Mapping[str, Any]], key: str, style: str) -> Curve:
    there = [line for line in lines if isinstance(line.get(key), int | float)]
    kept = [there[place] for place in thinned(len(there), 400)] if there else []
    factor = 100 if key.endswith("error") else 1
    return Curve(name=name, x=[line["step"] for line in kept], y=[factor * line[key] for line in kept], style=style)


def _of_kind(run: TrainingRun, kind: str) -> list[Mapping[str, Any]]:
    return [line for line in run.log if line.get("kind") == kind]


def _keys(validation: Sequence[Mapping[str, Any]]) -> list[str]:
    last = validation[-1] if validation else {}
    return [key for key, value in last.items() if isinstance(value, int | float) and key not in _COUNTS]


def _name(key: str) -> str:
    return _TITLES.get(key, key.replace("top1", "top-1").replace("top5", "top-5").replace("_", " "))


def _lowest(key: str, validation: Sequence[Mapping[str, Any]]) -> str:
    found = [line for line in validation if isinstance(line.get(key), int | float)]
    if not key.endswith("error") or len(found) < 2:
        return ""
    best = min(found, key=lambda line: line[key])
    return f"lowest: {_value(key, best[key])} at step {best['step']}"


def _value(key: str, value: float) -> str:
    return f"{100 * value:.1f} %" if key.endswith("error") else f"{value:.4g}"
