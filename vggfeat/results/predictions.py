"""What a saved model says of new images, as tables, CSV, JSON and an npz file.

N = images, K = classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import counted
from vggfeat.formats.csv_cells import csv_bytes
from vggfeat.protocols.apply import Predictions
from vggfeat.results.record import json_bytes, npz_bytes, write_run
from vggfeat.results.text import SHOWN_FAILURES, align, failures_by_reason, percent, printable, shortened
from vggfeat.samples import Task


def write_predictions(
    predictions: Predictions, folder: Path, *, model: Path, top: int, spreadsheet_safe: bool = False
) -> list[Path]:
    """Write predictions.csv, predictions.json and scores.npz; files of these names are replaced, all in one step.

    Raises
    ------
    StoreError
        If the folder can't be made or written.
    """
    contents = {
        "predictions.csv": predictions_csv(predictions, spreadsheet_safe=spreadsheet_safe),
        "predictions.json": json_bytes(predictions_json(predictions, model=model, top=top)),
        "scores.npz": _scores_npz(predictions),
    }
    return write_run(folder, contents, last="predictions.json")


def predictions_csv(predictions: Predictions, *, spreadsheet_safe: bool = False) -> bytes:
    """Return a line an image, in the order of the feature file, as UTF-8.

    Columns of a single-label model: id, predicted, score, failed. Of a multi-label one: id, the classes, failed. With
    probabilities: `probability` after `score`, or `probability_CLASS` for each class. `failed` holds the reason where
    an image failed; its other cells are empty then. `predicted` is empty where the model abstains.
    """
    single, rows = predictions.task == Task.SINGLE_LABEL, []
    for row, name in enumerate(predictions.dataset.ids):
        shown = (predictions.best(row, 1) or [0]) if single else range(len(predictions.classes))
        given = [_given(predictions, row)] if single else []
        rows.append([name, *given, *_numbers(predictions, row, shown), _reason(predictions, row)])
    known = predictions.probabilities is not None
    columns = ["predicted", "score", *["probability"] * known] if single else _class_columns(predictions, "")
    return csv_bytes(["id", *columns, "failed"], rows, spreadsheet_safe=spreadsheet_safe)


def scores_csv(predictions: Predictions, *, spreadsheet_safe: bool = False) -> bytes:
    """Return a line an image with all of its scores, as UTF-8.

    Columns: image, predicted (several classes with ";" between them), score (the highest), with probabilities
    `probability` (of the same class), then `score_CLASS` and `probability_CLASS` of each class, and failed.
    """
    rows = []
    for row, name in enumerate(predictions.dataset.ids):
        best = _numbers(predictions, row, predictions.best(row, 1) or [0])
        every = _numbers(predictions, row, range(len(predictions.classes)))
        rows.append([name, _given(predictions, row), *best, *every, _reason(predictions, row)])
    first = ["image", "predicted", "score", *["probability"] * (predictions.probabilities is not None)]
    header = [*first, *_class_columns(predictions, "score_"), "failed"]
    return csv_bytes(header, rows, spreadsheet_safe=spreadsheet_safe)


def predictions_json(predictions: Predictions, *, model: Path, top: int) -> dict[str, Any]:
    """Return the predictions ready for JSON.

    `ranking` names `top` images a class, and `images` the `top` classes of an image.
    """
    ids = predictions.dataset.ids
    scored = np.flatnonzero(~predictions.failed).tolist()
    content: dict[str, Any] = {
        "format": "vggfeat-predictions",
        "version": 1,
        "model": {"file": model.name, **predictions.about},
        "task": str(predictions.task),
        "abstain_below": predictions.settings.abstain_below,
        "samples": len(ids),
        "failed": [
            {"id": ids[row], "reason": _reason(predictions, row)} for row in np.flatnonzero(predictions.failed).tolist()
        ],
        "notes": list(predictions.notes),
        "ranking": {
            name: [{"id": ids[row], **_values(predictions, row, k)} for row in _ranked(predictions, k)[:top].tolist()]
            for k, name in enumerate(predictions.classes)
        },
        "images": [
            {
                "id": ids[row],
                "given": [predictions.classes[k] for k in np.flatnonzero(predictions.given[row]).tolist()],
                "best": [
                    {"class": predictions.classes[k], **_values(predictions, row, k)}
                    for k in predictions.best(row, top)
                ],
            }
            for row in scored
        ],
    }
    if predictions.task == Task.SINGLE_LABEL:
        content["predictions"] = [
            {"id": ids[row], "predicted": _given(predictions, row) or None, **_values(predictions, row, k)}
            for row in scored
            for k in predictions.best(row, 1)
        ]
    return content


def predictions_table(predictions: Predictions, *, top: int, width: int | None = None) -> str:
    """Return a line a class, with its number of images and its `top` best; then failures and notes.

    A single-label model gives an image to one class; a multi-label one to every class whose score is above 0. Lines
    of classes are cut at `width`.
    """
    single = predictions.task == Task.SINGLE_LABEL
    rows = [["class", "images" if single else "above 0", f"best {top}" if top > 1 else "best"]]
    for k, name in enumerate(predictions.classes):
        taken, ranked = predictions.given[:, k], _ranked(predictions, k)
        shown = [row for row in ranked.tolist() if taken[row]] if single else ranked.tolist()
        cells = [f"{predictions.dataset.ids[row]} ({_shown(predictions, row, k)})" for row in shown[:top]]
        rows.append([name, str(taken.sum()), ", ".join(cells)])
    lines = _ragged(rows, 1, width)
    failed = np.flatnonzero(predictions.failed).tolist()
    reasons = [(predictions.dataset.ids[row], _reason(predictions, row)) for row in failed]
    lines += ["", _counts(predictions), *failures_by_reason(reasons, SHOWN_FAILURES, "predictions.csv")]
    lines += [f"note: {note}" for note in predictions.notes]
    return "\n".join(printable(line) for line in lines)


def images_table(predictions: Predictions, *, top: int, width: int | None = None) -> str:
    """Return a line an image: the classes that it is given, and the scores of its `top` best; then notes.

    Of an image that failed the reason. Lines are cut at `width`.
    """
    rows = [["image", "predicted", f"best {top}" if top > 1 else "best"]]
    for row, name in enumerate(predictions.dataset.ids):
        best = (f"{predictions.classes[k]} {_shown(predictions, row, k)}" for k in predictions.best(row, top))
        failed = bool(predictions.failed[row])
        told = f"failed: {_reason(predictions, row)}" if failed else "; ".join(best)
        rows.append([name, "" if failed else _given(predictions, row) or "-", told])
    lines = [*_ragged(rows, 2, width), "", _counts(predictions), *(f"note: {note}" for note in predictions.notes)]
    return "\n".join(printable(line) for line in lines)


def _ragged(rows: Sequence[Sequence[str]], left: int, width: int | None) -> list[str]:
    """Align all columns but the last, which needs no width of its own."""
    aligned = align([row[:2] for row in rows], left=left, width=None if width is None else width // 2)
    lines = (f"{line}  {printable(row[2])}".rstrip() for line, row in zip(aligned, rows, strict=True))
    return [shortened(line, width) for line in lines]


def _counts(predictions: Predictions) -> str:
    failed = int(predictions.failed.sum())
    without = len(predictions.dataset) - failed - int(predictions.given.any(axis=1).sum())
    least = predictions.settings.abstain_below
    positive = "" if predictions.task == Task.SINGLE_LABEL else " of a score above 0"
    reason = f"as none{positive} is as probable as {percent(least)} %"
    abstained = "" if least is None else f", {without} given no class, {reason}"
    return f"{counted(len(predictions.dataset) - failed, 'image{s} scored')}, {failed} failed{abstained}"


def _scores_npz(predictions: Predictions) -> bytes:
    arrays: dict[str, Any] = {
        "ids": np.array(predictions.dataset.ids, dtype=np.str_),
        "classes": np.array(predictions.classes, dtype=np.str_),
        "scores": predictions.scores,
    }
    if predictions.probabilities is not None:
        arrays["probabilities"] = predictions.probabilities
    return npz_bytes(arrays)


def _class_columns(predictions: Predictions, prefix: str) -> list[str]:
    known = [] if predictions.probabilities is None else [f"probability_{name}" for name in predictions.classes]
    return [*(f"{prefix}{name}" for name in predictions.classes), *known]


def _numbers(predictions: Predictions, row: int, classes: Sequence[int]) -> list[str]:
    """Write the scores of some classes, then their probabilities if they were asked for; empty where there are none."""
    tables = (predictions.scores, predictions.probabilities)
    values = (table[row, k] for table in tables if table is not None for k in classes)
    return [f"{value:.9g}" if np.isfinite(value) else "" for value in values]


def _values(predictions: Predictions, row: int, k: int) -> dict[str, float | None]:
    """Return the score of a class, and its probability if that was asked for, for JSON."""
    score = {"score": float(predictions.scores[row, k])}
    if predictions.probabilities is None:
        return {**score}
    probability = float(predictions.probabilities[row, k])
    return {**score, "probability": probability if np.isfinite(probability) else None}


def _shown(predictions: Predictions, row: int, k: int) -> str:
    score = f"{predictions.scores[row, k]:.2f}"
    return score if predictions.probabilities is None else f"{score}, {percent(predictions.probabilities[row, k])} %"


def _given(predictions: Predictions, row: int) -> str:
    return ";".join(predictions.classes[k] for k in np.flatnonzero(predictions.given[row]).tolist())


def _ranked(predictions: Predictions, k: int) -> NDArray[np.int64]:
    """Rows that have a score, best first; of equal scores the earlier row."""
    order = np.argsort(-predictions.scores[:, k], kind="stable")
    return order[np.isfinite(predictions.scores[order, k])]


def _reason(predictions: Predictions, row: int) -> str:
    return predictions.reasons.get(predictions.dataset.ids[row], "")
