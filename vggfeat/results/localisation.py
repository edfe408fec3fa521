"""Localisation results as a person reads them and as a program reads them, in files.

K = classes, G = guesses of an image.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vggfeat.localisation.evaluate import LocalisationErrors
from vggfeat.localisation.submission import ClassIds, submission_text
from vggfeat.results.classification import LONGEST_WORDS, csv_bytes, percent
from vggfeat.results.files import write_files
from vggfeat.results.paper_boxes import PaperRow
from vggfeat.results.text import align, printable, shortened
from vggfeat.samples import ClassificationSet

SHOWN_FAILURES = 10


class LocalisationReport(NamedTuple):
    """All that is written of one evaluation."""

    data: ClassificationSet
    judged: LocalisationErrors
    protocol: str
    settings: Mapping[str, Any]
    """What decided the results, as `vggfeat.localisation.evaluate.describe_run` has it."""
    numbering: ClassIds
    paper: Sequence[PaperRow]
    """Empty where the data are not those of the paper."""


class ClassRow(NamedTuple):
    """The errors of one class, from 0 to 1; NaN where no image counts."""

    name: str
    words: str
    images: int
    counted: int
    localisation: float
    true_class: float
    classification: float


def class_rows(report: LocalisationReport) -> list[ClassRow]:
    """Return the errors class by class, in the order of the classes."""
    judged, rows = report.judged, []
    missed = (judged.labels != judged.targets[:, None]).all(axis=1)
    for k, name in enumerate(report.data.classes):
        own = judged.targets == k
        counted = own & judged.guessed.counted
        rows.append(
            ClassRow(
                name=name,
                words=report.data.words.get(name, ""),
                images=int(own.sum()),
                counted=int(counted.sum()),
                localisation=_share(judged.guessed.wrong[counted].all(axis=1)),
                true_class=_share(judged.true_class.wrong[counted].all(axis=1)),
                classification=_share(missed[own]),
            )
        )
    return rows


def errors(report: LocalisationReport) -> dict[str, Any]:
    """Return the errors over all images, from 0 to 1, those of guesses for protocol dense alone."""
    judged = report.judged
    overlaps = judged.true_class.overlaps[judged.true_class.counted, 0]
    found: dict[str, Any] = {
        "true_class_localisation": judged.true_class.error,
        "true_class_mean_overlap": float(overlaps.mean()),
    }
    if report.protocol == "dense":
        guesses = judged.labels.shape[1]
        found |= {
            "localisation": judged.guessed.error,
            "localisation_by_guesses": [judged.guessed.error_at(k + 1) for k in range(guesses)],
            "classification_by_guesses": [judged.classification_error(k + 1) for k in range(guesses)],
        }
    return found


def results_json(report: LocalisationReport) -> dict[str, Any]:
    """Return everything but the guesses, ready for JSON, with the paper's numbers beside ours."""
    judged = report.judged
    return {
        "format": "vggfeat-localisation",
        "version": 1,
        "protocol": report.protocol,
        "images": len(judged.targets),
        "counted": int(judged.guessed.counted.sum()),
        "layout": report.data.layout,
        "errors": errors(report),
        "failed": [{"path": path, "reason": reason} for path, reason in judged.failed.items()],
        "notes": list(judged.notes),
        "classes": [{key: _jsonable(value) for key, value in row._asdict().items()} for row in class_rows(report)],
        "numbers": {"source": report.numbering.source, "of_classes": report.numbering.ids.tolist()},
        "settings": dict(report.settings),
        "paper": [row._asdict() for row in report.paper],
    }


def text_table(report: LocalisationReport, *, most: int | None = None, width: int | None = None) -> str:
    """Return classes, notes, failures, headline and the paper's numbers as plain text, a line each.

    Parameters
    ----------
    report : LocalisationReport
    most : int, optional
        With more classes than so many, only those of the highest error are listed.
    width : int, optional
        Columns of the terminal that the table is cut to.
    """
    dense = report.protocol == "dense"
    notes = [*report.judged.notes, *([f"labels of submission.txt are {report.numbering.source}"] if dense else [])]
    lines = [*_class_lines(report, most, width), "", *(f"note: {note}" for note in notes)]
    lines += [*_failures(report), *headline(report), *map(_paper_line, report.paper)]
    return "\n".join(printable(line) for line in lines)


def _class_lines(report: LocalisationReport, most: int | None, width: int | None) -> list[str]:
    dense, rows = report.protocol == "dense", class_rows(report)
    cut = most is not None and len(rows) > most
    if cut:
        error = "localisation" if dense else "true_class"
        rows = sorted(rows, key=lambda row: -np.nan_to_num(getattr(row, error), nan=-1.0))[:most]
    header = ["class", "words", "images", "counted", *(["error %"] if dense else []), "true class %"]
    header += [f"top-{report.judged.labels.shape[1]} class %"] if dense else []
    table = [header]
    for row in rows:
        cells = [row.name, shortened(row.words, LONGEST_WORDS), str(row.images), str(row.counted)]
        cells += [percent(row.localisation)] if dense else []
        cells += [percent(row.true_class)]
        table.append(cells + ([percent(row.classification)] if dense else []))
    total = len(report.data.classes)
    more = [f"the {most} classes of the highest error; table.txt has all {total}"] if cut else []
    return [*align(table, left=2, width=width), *more]


def _paper_line(row: PaperRow) -> str:
    numbers = [f"{value} % on {part}" for part, value in (("val", row.val), ("test", row.test)) if value]
    mark = "  <- in the same way" if row.same else ""
    return f"VGG paper, Table {row.table}: {row.what}: {', '.join(numbers)}{mark}"


def headline(report: LocalisationReport) -> list[str]:
    """Return the lines to quote."""
    judged, found = report.judged, errors(report)
    counted = f"on {judged.guessed.counted.sum()} of {len(judged.targets)} images"
    true = (
        f"{percent(found['true_class_localisation'])} % {counted}, mean overlap {found['true_class_mean_overlap']:.2f}"
    )
    if report.protocol == "gt":
        return [f"localisation error of the true class, from the centre crop: {true}"]
    guesses = judged.labels.shape[1]
    by_class = " and ".join(f"{percent(found['classification_by_guesses'][k])} %" for k in (0, guesses - 1))
    return [
        f"top-{guesses} localisation error: {percent(found['localisation'])} % {counted}",
        f"localisation error of the true class, its label given: {true}",
        f"classification error of the guesses, top-1 and top-{guesses}: {by_class} on all images",
    ]


def write_report(report: LocalisationReport, folder: Path) -> list[Path]:
    """Write results.json, table.txt and classes.csv, and for protocol dense submission.txt; each in one step.

    Raises
    ------
    StoreError
        If the folder can't be made or written.
    """
    contents = {
        "results.json": json.dumps(results_json(report), indent=2, allow_nan=False).encode() + b"\n",
        "table.txt": text_table(report).encode() + b"\n",
        "classes.csv": _classes_csv(report),
    }
    if report.protocol == "dense":
        order = file_order(report.data.val.paths)
        judged = report.judged
        text = submission_text(judged.labels[order], judged.boxes[order], report.numbering.ids)
        contents["submission.txt"] = text.encode()
    return write_files(folder, contents, own=("submission.txt",))


def file_order(paths: Sequence[str]) -> list[int]:
    """Return row numbers in the order of the file names, as the lines of a submission are; folders come second."""
    return sorted(range(len(paths)), key=lambda row: (paths[row].rpartition("/")[2], paths[row]))


def _failures(report: LocalisationReport) -> list[str]:
    failed = list(report.judged.failed.items())
    lines = [f"failed, counted as wrong: {path}: {reason}" for path, reason in failed[:SHOWN_FAILURES]]
    more = len(failed) - SHOWN_FAILURES
    return lines + ([f"failed: {more} more; all of them stand in results.json"] if more > 0 else [])


def _classes_csv(report: LocalisationReport) -> bytes:
    rows = class_rows(report)
    return csv_bytes(ClassRow._fields, ([_jsonable(value) for value in row] for row in rows))


def _jsonable(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


def _share(wrong: Any) -> float:
    return float(wrong.mean()) if len(wrong) else float("nan")
