"""What a saved model says of new images: as a table, as CSV, as JSON, and all scores as an npz file.

N = images, K = classes.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.formats.csv_cells import csv_bytes
from vggfeat.metrics import predict_classes
from vggfeat.protocols.apply import Predictions
from vggfeat.results.record import failure_lines, json_bytes, write_run
from vggfeat.results.text import align, printable, shortened
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

    Columns of a single-label model: id, predicted, score, failed. Of a multi-label one: id, the classes, failed.
    `failed` holds the reason where an image failed; its other cells are empty then.
    """
    single = predictions.task == Task.SINGLE_LABEL
    best, rows = predict_classes(predictions.scores), []
    for row, name in enumerate(predictions.dataset.ids):
        scores = predictions.scores[row]
        if best[row] < 0:
            rows.append([name, *[""] * (2 if single else len(scores)), _reason(predictions, row)])
        elif single:
            rows.append([name, predictions.classes[best[row]], f"{scores[best[row]]:.9g}", ""])
        else:
            rows.append([name, *(f"{score:.9g}" for score in scores), ""])
    header = ["id", *(("predicted", "score") if single else predictions.classes), "failed"]
    return csv_bytes(header, rows, spreadsheet_safe=spreadsheet_safe)


def predictions_json(predictions: Predictions, *, model: Path, top: int) -> dict[str, Any]:
    """Return the predictions ready for JSON; `top` images a class are named in `ranking`."""
    ids, best = predictions.dataset.ids, predict_classes(predictions.scores)
    content: dict[str, Any] = {
        "format": "vggfeat-predictions",
        "version": 1,
        "model": {"file": model.name, **predictions.about},
        "task": str(predictions.task),
        "samples": len(ids),
        "failed": [{"id": ids[row], "reason": _reason(predictions, row)} for row in np.flatnonzero(best < 0).tolist()],
        "notes": list(predictions.notes),
        "ranking": {
            name: [
                {"id": ids[row], "score": float(predictions.scores[row, k])} for row in _ranked(predictions, k)[:top]
            ]
            for k, name in enumerate(predictions.classes)
        },
    }
    if predictions.task == Task.SINGLE_LABEL:
        content["predictions"] = [
            {"id": ids[row], "predicted": predictions.classes[k], "score": float(predictions.scores[row, k])}
            for row, k in enumerate(best.tolist())
            if k >= 0
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
        taken, ranked = _taken(predictions, k), _ranked(predictions, k)
        shown = [row for row in ranked.tolist() if taken[row]] if single else ranked.tolist()
        cells = [f"{predictions.dataset.ids[row]} ({predictions.scores[row, k]:.2f})" for row in shown[:top]]
        rows.append([name, str(taken.sum()), ", ".join(cells)])
    # The last column is ragged, so it needs no width of its own.
    aligned = align([row[:2] for row in rows], left=1, width=None if width is None else width // 2)
    ragged = (f"{line}  {printable(row[2])}".rstrip() for line, row in zip(aligned, rows, strict=True))
    lines = [shortened(line, width) for line in ragged]
    failed = np.flatnonzero(np.isneginf(predictions.scores).all(axis=1)).tolist()
    lines += ["", f"{len(predictions.dataset) - len(failed)} images scored, {len(failed)} failed"]
    reasons = {predictions.dataset.ids[row]: _reason(predictions, row) for row in failed}
    lines += failure_lines(reasons, "predictions.csv")
    lines += [f"note: {note}" for note in predictions.notes]
    return "\n".join(printable(line) for line in lines)


def _scores_npz(predictions: Predictions) -> bytes:
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        ids=np.array(predictions.dataset.ids, dtype=np.str_),
        classes=np.array(predictions.classes, dtype=np.str_),
        scores=predictions.scores,
    )
    return packed.getvalue()


def _ranked(predictions: Predictions, k: int) -> NDArray[np.int64]:
    """Rows that have a score, best first; of equal scores the earlier row."""
    order = np.argsort(-predictions.scores[:, k], kind="stable")
    return order[np.isfinite(predictions.scores[order, k])]


def _taken(predictions: Predictions, k: int) -> NDArray[np.bool_]:
    if predictions.task == Task.SINGLE_LABEL:
        return predict_classes(predictions.scores) == k
    return predictions.scores[:, k] > 0


def _reason(predictions: Predictions, row: int) -> str:
    return predictions.reasons.get(predictions.dataset.ids[row], "")
