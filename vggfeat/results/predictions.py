"""What a saved model says of new images, as tables, CSV, JSON and npz; and where in an image a score comes from.

N = images, K = classes, H, W = sides of an image.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import convert_fields
from vggfeat.errors import ImageError
from vggfeat.formats.csv_cells import csv_bytes
from vggfeat.results.record import (
    SHOWN_FAILURES,
    align,
    failures_by_reason,
    json_bytes,
    npz_bytes,
    percent,
    printable,
    shortened,
    write_run,
)
from vggfeat.samples import Task
from vggfeat.wording import counted

if TYPE_CHECKING:
    from vggfeat.explain import Evidence, Explainer
    from vggfeat.protocols.apply import Predictions
    from vggfeat.results.svm_page import ClassPart
    from vggfeat.results.thumbnails import Example


def write_predictions(
    predictions: "Predictions", folder: Path, *, model: Path, top: int, spreadsheet_safe: bool = False
) -> list[Path]:
    """Write predictions.csv, predictions.json and scores.npz; files of these names are replaced, all in one step.

    Raises StoreError if the folder can't be made or written.
    """
    contents = {
        "predictions.csv": predictions_csv(predictions, spreadsheet_safe=spreadsheet_safe),
        "predictions.json": json_bytes(predictions_json(predictions, model=model, top=top)),
        "scores.npz": _scores_npz(predictions),
    }
    return write_run(folder, contents, last="predictions.json")


def predictions_csv(predictions: "Predictions", *, spreadsheet_safe: bool = False) -> bytes:
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


def scores_csv(predictions: "Predictions", *, spreadsheet_safe: bool = False) -> bytes:
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


def predictions_json(predictions: "Predictions", *, model: Path, top: int) -> dict[str, Any]:
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


def predictions_table(predictions: "Predictions", *, top: int, width: int | None = None) -> str:
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


def images_table(predictions: "Predictions", *, top: int, width: int | None = None) -> str:
    """Return a line an image: the classes that it is given, and the scores of its `top` best; then notes.

    Of an image that failed the reason. Lines are cut at `width`.
    """
    rows = [["image", "predicted", f"best {top}" if top > 1 else "best"]]
    for row, name in enumerate(predictions.dataset.ids):
        best = (f"{predictions.classes[k]} {_shown(predictions, row, k)}" for k in predictions.best(row, top))
        failed = bool(predictions.failed[row])
        verdict = f"failed: {_reason(predictions, row)}" if failed else "; ".join(best)
        rows.append([name, "" if failed else _given(predictions, row) or "-", verdict])
    lines = [*_ragged(rows, 2, width), "", _counts(predictions), *(f"note: {note}" for note in predictions.notes)]
    return "\n".join(printable(line) for line in lines)


def _ragged(rows: Sequence[Sequence[str]], left: int, width: int | None) -> list[str]:
    """Align all columns but the last, which needs no width of its own."""
    aligned = align([row[:2] for row in rows], left=left, width=None if width is None else width // 2)
    lines = (f"{line}  {printable(row[2])}".rstrip() for line, row in zip(aligned, rows, strict=True))
    return [shortened(line, width) for line in lines]


def _counts(predictions: "Predictions") -> str:
    failed = int(predictions.failed.sum())
    without = len(predictions.dataset) - failed - int(predictions.given.any(axis=1).sum())
    least = predictions.settings.abstain_below
    positive = "" if predictions.task == Task.SINGLE_LABEL else " of a score above 0"
    reason = f"as none{positive} is as probable as {percent(least)} %"
    abstained = "" if least is None else f", {without} given no class, {reason}"
    return f"{counted(len(predictions.dataset) - failed, 'image{s} scored')}, {failed} failed{abstained}"


def _scores_npz(predictions: "Predictions") -> bytes:
    arrays: dict[str, Any] = {
        "ids": np.array(predictions.dataset.ids, dtype=np.str_),
        "classes": np.array(predictions.classes, dtype=np.str_),
        "scores": predictions.scores,
    }
    if predictions.probabilities is not None:
        arrays["probabilities"] = predictions.probabilities
    return npz_bytes(arrays)


def _class_columns(predictions: "Predictions", prefix: str) -> list[str]:
    known = [] if predictions.probabilities is None else [f"probability_{name}" for name in predictions.classes]
    return [*(f"{prefix}{name}" for name in predictions.classes), *known]


def _numbers(predictions: "Predictions", row: int, classes: Sequence[int]) -> list[str]:
    """Write the scores of some classes, then their probabilities if they were asked for; empty where there are none."""
    tables = (predictions.scores, predictions.probabilities)
    values = (table[row, k] for table in tables if table is not None for k in classes)
    return [f"{value:.9g}" if np.isfinite(value) else "" for value in values]


def _values(predictions: "Predictions", row: int, k: int) -> dict[str, float | None]:
    """Return the score of a class, and its probability if that was asked for, for JSON."""
    score = {"score": float(predictions.scores[row, k])}
    if predictions.probabilities is None:
        return {**score}
    probability = float(predictions.probabilities[row, k])
    return {**score, "probability": probability if np.isfinite(probability) else None}


def _shown(predictions: "Predictions", row: int, k: int) -> str:
    score = f"{predictions.scores[row, k]:.2f}"
    return score if predictions.probabilities is None else f"{score}, {percent(predictions.probabilities[row, k])} %"


def _given(predictions: "Predictions", row: int) -> str:
    return ";".join(predictions.classes[k] for k in np.flatnonzero(predictions.given[row]).tolist())


def _ranked(predictions: "Predictions", k: int) -> NDArray[np.int64]:
    """Rows that have a score, best first; of equal scores the earlier row."""
    order = np.argsort(-predictions.scores[:, k], kind="stable")
    return order[np.isfinite(predictions.scores[order, k])]


def _reason(predictions: "Predictions", row: int) -> str:
    return predictions.reasons.get(predictions.dataset.ids[row], "")


FOR, AGAINST = (230, 85, 0), (0, 92, 230)
"""Colours, told apart by people who do not see all colours."""
STRONGEST = 0.75
"""Share of the colour where the evidence is strongest."""
LEAST_SIDE = 256
"""Pixels of the longer side of a drawing: of smaller images each pixel is drawn as a square of some."""
MOST_MISTAKES = 8
"""Of a run."""
SIDES = (256, 192)
"""Pixels that a drawing may have across and down."""


def evidence_json(evidence: "Evidence", image: str, model: str) -> dict[str, Any]:
    """Return the score and its parts, ready for JSON; `image` and `model` are what was given."""
    return {
        "format": "vggfeat-evidence",
        "version": 1,
        "image": image,
        "model": model,
        "class": evidence.classes[evidence.number],
        "score": float(evidence.scores[evidence.number]),
        "intercept": evidence.bias,
        "sum": evidence.total,
        "scales": [
            {
                "net": scale.net,
                "scale": scale.scale,
                "sum": float(sum(part.sum() for part in scale.maps)),
                "classes": dict(zip(evidence.classes, scale.sums.tolist(), strict=True)),
            }
            for scale in evidence.scales
        ],
        "scores": dict(zip(evidence.classes, evidence.scores.tolist(), strict=True)),
    }


def evidence_text(content: dict[str, Any], top: int = 5) -> str:
    """Return the class, the parts of its score, and the highest other scores as a text."""
    others = sorted(content["scores"].items(), key=lambda one: -one[1])
    rows = [[f"sum at Q = {one['scale']}", one["net"], f"{one['sum']:+.4f}"] for one in content["scales"]]
    rows += [["intercept", "", f"{content['intercept']:+.4f}"], ["score", "", f"{content['sum']:+.4f}"]]
    ranked = [[name, f"{score:+.4f}"] for name, score in others[:top]]
    return "\n".join([*align([["class", content["class"]]], left=2), *align(rows, left=2), "", "highest scores:",
                      *align(ranked, left=1)])  # fmt: skip


def overlay(evidence: "Evidence") -> bytes:
    """Return `overlay_pixels` as a PNG, small ones enlarged."""
    from PIL import Image

    pixels, file = overlay_pixels(evidence), io.BytesIO()
    times = -(-LEAST_SIDE // max(pixels.shape))
    Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1)).save(file, "PNG")
    return file.getvalue()


def overlay_pixels(evidence: "Evidence") -> NDArray[np.uint8]:
    """Return the image (H, W, 3): grey, orange where it speaks for the class, blue where against it."""
    heat = evidence.heat
    strength = np.abs(heat) / max(float(np.abs(heat).max()), np.finfo(float).tiny) * STRONGEST  # (H, W)
    colour = np.where((heat > 0)[..., None], np.array(FOR), np.array(AGAINST))
    grey = _grey(evidence.image)[..., None]
    return np.rint(grey * (1 - strength[..., None]) + colour * strength[..., None]).astype(np.uint8)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return image @ np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """How the worst mistakes are explained."""

    weights: tuple[str, ...] = ()
    """As for `vggfeat.predict.nets_of`."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        convert_fields(self)


class ExplainedMistake(NamedTuple):
    """A mistake, and what speaks for and against the class."""

    name: str
    """Name of the class whose score is drawn."""
    example: "Example"
    drawing: str
    """Its address ("data:image/jpeg;base64,..."), or the reason why there is none."""
    score: float | None
    """Score by the model that explains it; in a cross-validation another than the one that was tested on the image."""


def worst_mistakes(classes: "Sequence[ClassPart]", number: int) -> "list[tuple[str, Example]]":
    """Choose the worst mistake of each class, worst classes first, of the run of that number.

    It is what was taken for the class most surely, else the positive that was missed most clearly. Only whole images:
    those of boxes have no evidence of their own.
    """
    chosen = []
    for part in classes:
        found = part.examples[number]
        ranked = () if found is None else (*found.highest, *found.alarms, *found.missed)
        wrong = [one for one in ranked if one.verdict in ("wrong", "missed") and one.key.box is None]
        chosen += [(part.name, one) for one in wrong[:1]]
    return chosen[:MOST_MISTAKES]


def explain_mistakes(
    mistakes: "Sequence[tuple[str, Example]]", explainer: "Explainer", root: Path, progress: Callable[[int, int], None]
) -> tuple[ExplainedMistake, ...]:
    """Draw mistakes, whose paths are relative to `root`; `progress` is called with those done and all."""
    found = []
    for done, (name, example) in enumerate(mistakes, start=1):
        found.append(_explain(name, example, explainer, root))
        progress(done, len(mistakes))
    return tuple(found)


def _explain(name: str, example: "Example", explainer: "Explainer", root: Path) -> ExplainedMistake:
    from vggfeat.results.thumbnails import OUTSIDE, address_of, image_below

    image = image_below(root, example.key.path)
    if image is None:
        return ExplainedMistake(name, example, OUTSIDE, None)
    try:
        evidence = explainer.explain(image, name)
    except ImageError as error:
        return ExplainedMistake(name, example, error.reason, None)
    pixels = overlay_pixels(evidence)
    drawing = address_of(pixels, pixels.shape[:2], sides=SIDES)
    return ExplainedMistake(name, example, drawing, float(evidence.scores[evidence.number]))
