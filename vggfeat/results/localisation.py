"""Localisation errors next to the paper's, and boxes for a user's own images.

G = guesses of an image.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vggfeat.errors import counted
from vggfeat.formats.csv_cells import csv_bytes
from vggfeat.localisation.evaluate import LocalisationErrors
from vggfeat.localisation.predict import Predicted, shown_path, title
from vggfeat.localisation.submission import ClassIds, submission_text
from vggfeat.results.paper import PaperBoxError
from vggfeat.results.record import Record, json_bytes, write_run
from vggfeat.results.text import percent
from vggfeat.samples import ClassificationSet


def localisation_record(
    data: ClassificationSet,
    found: LocalisationErrors,
    protocol: str,
    *,
    settings: Mapping[str, Any],
    numbering: ClassIds,
    paper: Sequence[PaperBoxError],
) -> Record:
    """Gather the errors of one evaluation.

    Parameters
    ----------
    data : ClassificationSet
    found : LocalisationErrors
    protocol : str
        dense or gt.
    settings : mapping
        What decided the results, as `vggfeat.localisation.evaluate.describe_run` has it.
    numbering : ClassIds
        Of the labels in a submission.
    paper : sequence of PaperBoxError
        Empty where the data are not those of the paper.
    """
    classes, errors = _class_rows(data, found), _errors(found, protocol)
    content = {
        "format": "vggfeat-localisation",
        "version": 1,
        "protocol": protocol,
        "images": len(found.targets),
        "counted": int(found.guessed.counted.sum()),
        "layout": data.layout,
        "errors": errors,
        "failed": [{"path": path, "reason": reason} for path, reason in found.failed.items()],
        "notes": list(found.notes),
        "classes": classes,
        "numbers": {"source": numbering.source, "of_classes": numbering.ids.tolist()},
        "settings": dict(settings),
        "paper": [row._asdict() for row in paper],
    }
    notes = list(found.notes)
    columns = {"name": "class", "words": "words", "images": "images", "counted": "counted"}
    if protocol == "dense":
        guesses = found.labels.shape[1]
        columns |= {"localisation": "error %", "true_class": "true class %", "classification": f"top-{guesses} class %"}
        notes.append(f"labels of submission.txt are {numbering.source}")
    else:
        columns |= {"true_class": "true class %"}
    if found.failed:
        notes.append(counted(len(found.failed), "image{s} failed; {they} count{v} as wrong"))
    return Record(
        content=content,
        columns=columns,
        classes=classes,
        worst_by="localisation" if protocol == "dense" else "true_class",
        failed=found.failed,
        notes=notes,
        headline=_headline(found, errors),
        paper=list(map(str, paper)),
        tables={"classes.csv": (list(classes[0]), [list(row.values()) for row in classes])},
    )


def write_localisation(
    record: Record,
    data: ClassificationSet,
    found: LocalisationErrors,
    folder: Path,
    *,
    spreadsheet_safe: bool = False,
) -> list[Path]:
    """Write results.json, table.txt and classes.csv, and for protocol dense submission.txt; all in one step.

    Raises
    ------
    StoreError
        If the folder can't be made or written.
    """
    more = {}
    if record.content["protocol"] == "dense":
        order, numbers = file_order(data.val.paths), record.content["numbers"]["of_classes"]
        more["submission.txt"] = submission_text(found.labels[order], found.boxes[order], numbers).encode()
    return record.write(folder, more, own=("submission.txt",), spreadsheet_safe=spreadsheet_safe)


def file_order(paths: Sequence[str]) -> list[int]:
    """Return row numbers in the order of the file names, as the lines of a submission are; folders come second."""
    return sorted(range(len(paths)), key=lambda row: (paths[row].rpartition("/")[2], paths[row]))


def _class_rows(data: ClassificationSet, found: LocalisationErrors) -> list[dict[str, Any]]:
    """Return the errors class by class, from 0 to 1; None where no image counts."""
    missed = (found.labels != found.targets[:, None]).all(axis=1)
    rows = []
    for k, name in enumerate(data.classes):
        own = found.targets == k
        counted = own & found.guessed.counted
        rows.append(
            {
                "name": name,
                "words": data.words.get(name, ""),
                "images": int(own.sum()),
                "counted": int(counted.sum()),
                "localisation": _share(found.guessed.wrong[counted].all(axis=1)),
                "true_class": _share(found.true_class.wrong[counted].all(axis=1)),
                "classification": _share(missed[own]),
            }
        )
    return rows


def _errors(found: LocalisationErrors, protocol: str) -> dict[str, Any]:
    """Return the errors over all images, from 0 to 1; those of the G guesses for protocol dense alone."""
    overlaps = found.true_class.overlaps[found.true_class.counted, 0]
    errors: dict[str, Any] = {
        "true_class_localisation": found.true_class.error,
        "true_class_mean_overlap": float(overlaps.mean()),
    }
    if protocol == "dense":
        guesses = range(1, found.labels.shape[1] + 1)
        errors["localisation"] = found.guessed.error
        errors["localisation_by_guesses"] = [found.guessed.error_at(number) for number in guesses]
        errors["classification_by_guesses"] = [found.classification_error(number) for number in guesses]
    return errors


def _headline(found: LocalisationErrors, errors: Mapping[str, Any]) -> list[str]:
    counted = f"on {found.guessed.counted.sum()} of {len(found.targets)} images"
    true = f"{percent(errors['true_class_localisation'])} % {counted}"
    true += f", mean overlap {errors['true_class_mean_overlap']:.2f}"
    if "localisation" not in errors:
        return [f"localisation error of the true class, from the centre crop: {true}"]
    guesses, by_guesses = found.labels.shape[1], errors["classification_by_guesses"]
    first, last = percent(by_guesses[0]), percent(by_guesses[-1])
    return [
        f"top-{guesses} localisation error: {percent(errors['localisation'])} % {counted}",
        f"localisation error of the true class, its label given: {true}",
        f"classification error of the guesses, top-1 and top-{guesses}: {first} % and {last} % on all images",
    ]


def _share(wrong: Any) -> float | None:
    return float(wrong.mean()) if len(wrong) else None


def write_box_predictions(
    found: Sequence[Predicted],
    classes: Sequence[str],
    words: Mapping[str, str],
    folder: Path,
    *,
    spreadsheet_safe: bool = False,
) -> dict[str, Any]:
    """Write predictions.json and predictions.csv, both replaced in one step; return the content of the former.

    Boxes are edges in pixels: left, top, right, bottom.

    Raises
    ------
    StoreError
        If the folder can't be made or written.
    """
    images = [
        {
            "path": shown_path(one.path),
            "height": one.located.size[0],
            "width": one.located.size[1],
            "failed": one.located.reason,
            "drawn": one.drawn,
            "guesses": [
                {
                    "class": classes[guess.label],
                    "words": words.get(classes[guess.label], ""),
                    "posterior": round(guess.posterior, 6),
                    "box": [round(edge, 2) for edge in guess.box],
                    "windows": guess.windows,
                }
                for guess in one.located.ranked()
            ],
        }
        for one in found
    ]
    content = {"format": "vggfeat-boxes", "version": 1, "images": images}
    header = ["path", "class", "words", "posterior", "left", "top", "right", "bottom", "failed"]
    rows = csv_bytes(header, _guess_rows(images), spreadsheet_safe=spreadsheet_safe)
    write_run(folder, {"predictions.json": json_bytes(content), "predictions.csv": rows}, last="predictions.json")
    return content


def _guess_rows(images: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
    for one in images:
        for guess in one["guesses"]:
            edges = [f"{edge:.2f}" for edge in guess["box"]]
            yield [one["path"], guess["class"], guess["words"], f"{guess['posterior']:.6f}", *edges, ""]
        if one["failed"]:
            yield [one["path"], *[""] * 7, one["failed"]]


def summary_lines(found: Sequence[Predicted], classes: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Return a line an image: its best guess, or why there is none."""
    lines = []
    for one in found:
        if one.located.reason:
            lines.append(f"failed: {shown_path(one.path)}: {one.located.reason}")
            continue
        best = one.located.ranked()[0]
        edges = " ".join(f"{edge:.0f}" for edge in best.box)
        name = title(classes[best.label], words)
        lines.append(f"{shown_path(one.path)}: {name} {100 * best.posterior:.0f} %, box {edges}")
    return lines
