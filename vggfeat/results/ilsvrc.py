"""Errors of ILSVRC classification and localisation, next to the paper's, and boxes for a user's own images.

G = guesses of an image.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vggfeat.classification.evaluate import ClassificationErrors, Fused, FusedPart
from vggfeat.formats.csv_cells import csv_bytes
from vggfeat.results.paper import PaperBoxError, is_official_fusion, paper_errors, tested_nets
from vggfeat.results.record import LONGEST_WORDS, Record, json_bytes, percent, shortened, write_run
from vggfeat.runtime.rendered import RENDERED
from vggfeat.samples import ClassificationSet
from vggfeat.store.reader import count_reasons
from vggfeat.wording import counted

if TYPE_CHECKING:
    from vggfeat.localisation.evaluate import LocalisationErrors
    from vggfeat.localisation.predict import Predicted
    from vggfeat.localisation.submission import ClassIds

MOST_CONFUSIONS = 100
"""Confusions that results.json has; confusions.csv has all."""
COLUMNS = {"name": "class", "words": "words", "images": "images", "failed": "failed", "top1_error": "top-1 error %",
           "top5_error": "top-5 error %"}  # fmt: skip
_PROVENANCE = ("net", "width", "weights", "weights_sha256", "trained", "trained_scale", "mode", "softmax", "averaged",
               "class_order", "precision", "interpolation")  # fmt: skip


class Pace(NamedTuple):
    """How fast a net went through images."""

    file: str
    images: int
    """Images of this run; those of earlier runs don't count."""
    seconds: float
    resumed: int = 0
    """Images that earlier runs had finished."""

    def to_json(self) -> dict[str, Any]:
        """Return it with images per second."""
        pace = self.images / self.seconds if self.images else None
        about = {"file": self.file, "images": self.images, "seconds": self.seconds}
        return {**about, "images_per_second": pace, "resumed": self.resumed}


def classification_record(
    fused: Fused, found: ClassificationErrors, *, paces: Sequence[Pace] = (), notes: Sequence[str] = ()
) -> Record:
    """Gather errors, confusions, failures, notes and the paper's rows; `notes` are added to `result_notes`."""
    chance = chance_errors(len(fused.classes))
    headline = _headline(fused, found, chance)
    all_notes = [*result_notes(fused), *notes]
    classes = [
        {
            "name": row.name, "words": fused.words.get(row.name), "images": row.images, "failed": row.failed,
            **{error: _number(getattr(row, error)) for error in chance},
        }
        for row in found.classes
    ]  # fmt: skip
    pairs, paper = found.pairs(), paper_errors(fused)
    counts = {"images": len(fused.ids), "classes": len(fused.classes)}
    content = {
        "format": "vggfeat-classification",
        "version": 1,
        "headline": headline,
        "top1_error": found.top1_error,
        "top5_error": found.top5_error if "top5_error" in chance else None,
        "chance": chance,
        "dataset": {**fused.dataset, **counts, "official": is_official_fusion(fused)},
        "posteriors": [_part_json(part) for part in fused.parts],
        "throughput": [pace.to_json() for pace in paces],
        "classes": classes,
        "confusions": [
            {"class": fused.classes[true], "taken_for": fused.classes[guess], "images": count}
            for true, guess, count in pairs[:MOST_CONFUSIONS]
        ],
        "failed": [{"id": name, "reason": reason} for name, reason in fused.failed.items()],
        "failed_by_reason": count_reasons(fused.failed.values()),
        "notes": all_notes,
        "paper": [row.to_json() for row in paper],
    }
    return Record(
        content=content,
        columns={key: title for key, title in COLUMNS.items() if key in classes[0]},
        classes=classes,
        worst_by="top1_error",
        confusions=[(_called(fused, true), _called(fused, guess), count) for true, guess, count in pairs],
        failed=fused.failed,
        notes=all_notes,
        headline=[headline],
        paper=[f"  {row}" for row in paper],
        tables=_tables(fused, classes, pairs),
    )


def _tables(
    fused: Fused, classes: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[int, int, int]]
) -> dict[str, Any]:
    """Return classes.csv and confusions.csv.

    The one has a line a class: name, words, images, failed, errors from 0 to 1, and what it is most often taken for;
    the other a line a confusion that occurs, the commonest first.
    """
    names = fused.classes
    commonest: dict[int, tuple[str, int]] = {}
    for true, guess, count in pairs:
        commonest.setdefault(true, (names[guess], count))
    heading = ["class", *list(classes[0])[1:], "most_taken_for", "images_taken"]
    return {
        "classes.csv": (heading, [[*row.values(), *commonest.get(k, ("", 0))] for k, row in enumerate(classes)]),
        "confusions.csv": (
            ["class", "taken_for", "images"],
            [[names[true], names[guess], count] for true, guess, count in pairs],
        ),
    }


def _headline(fused: Fused, found: ClassificationErrors, chance: Mapping[str, float]) -> str:
    nets = " + ".join(map(str, tested_nets(fused)))
    by_chance = " and ".join(f"{100 * error:.1f} %" for error in chance.values())
    errors = f"top-1 error {100 * found.top1_error:.1f} %"
    if "top5_error" in chance:
        errors += f", top-5 error {100 * found.top5_error:.1f} %"
    return (
        f"{fused.dataset['name']}: {errors} on {counted(len(fused.ids), 'image{s}')} of "
        f"{counted(len(fused.classes), 'class{es}')}: {nets} (chance {by_chance})"
    )


def chance_errors(classes: int) -> dict[str, float]:
    """Errors of guesses at random, from 0 to 1; top-5 only where five guesses can be wrong."""
    return {f"top{k}_error": 1 - k / classes for k in (1, 5) if k == 1 or k < classes}


def result_notes(fused: Fused) -> list[str]:
    """Say what a reader of the errors should know of nets and images, a sentence each."""
    notes = []
    for part in fused.parts:
        if part.provenance.get("images") == RENDERED:
            notes.append(f"{part.file}: the images are rendered, not photographed")
        if not part.provenance.get("trained", True):
            notes.append(f"{part.file}: the net is untrained: good for trials, not for results")
        if part.provenance.get("class_order") == "by number":
            notes.append(
                f"{part.file}: the weights name no classes; channel 0 was taken for {fused.classes[0]}, and so on in "
                "the order of the sorted names"
            )
    for name in ("softmax", "precision", "interpolation"):
        values = {str(part.provenance[name]) for part in fused.parts if name in part.provenance}
        if len(values) > 1:
            notes.append(f"files of different {name} were averaged: {', '.join(sorted(values))}")
    if fused.failed:
        reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(fused.failed.values()).items())
        lost = counted(len(fused.failed), "image{s} could not be read or evaluated, and count{v} as wrong")
        notes.append(f"{lost} ({reasons})")
    return notes


def _part_json(part: FusedPart) -> dict[str, Any]:
    own = {"file": part.file, "scales": list(part.scales), "share": part.share, "failed": part.failed}
    return own | {name: part.provenance.get(name) for name in _PROVENANCE}


def _called(fused: Fused, k: int) -> str:
    name = fused.classes[k]
    return f"{name} {shortened(fused.words[name], LONGEST_WORDS)}" if name in fused.words else name


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def localisation_record(
    data: ClassificationSet,
    found: "LocalisationErrors",
    protocol: str,
    *,
    settings: Mapping[str, Any],
    numbering: "ClassIds",
    paper: Sequence[PaperBoxError],
) -> Record:
    """Gather the errors of one evaluation.

    `protocol`: dense or gt. `settings`: what decided the results, as `vggfeat.localisation.evaluate.describe_run` has
    it. `numbering`: of the labels in a submission. `paper`: empty where the data are not those of the paper.
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
        headline=_box_headline(found, errors),
        paper=list(map(str, paper)),
        tables={"classes.csv": (list(classes[0]), [list(row.values()) for row in classes])},
    )


def write_localisation(
    record: Record,
    data: ClassificationSet,
    found: "LocalisationErrors",
    folder: Path,
    *,
    spreadsheet_safe: bool = False,
) -> list[Path]:
    """Write results.json, table.txt and classes.csv, and for protocol dense submission.txt; all in one step.

    Raises StoreError if the folder can't be made or written.
    """
    from vggfeat.localisation.submission import submission_text

    more = {}
    if record.content["protocol"] == "dense":
        order, numbers = file_order(data.val.paths), record.content["numbers"]["of_classes"]
        more["submission.txt"] = submission_text(found.labels[order], found.boxes[order], numbers).encode()
    return record.write(folder, more, own=("submission.txt",), spreadsheet_safe=spreadsheet_safe)


def file_order(paths: Sequence[str]) -> list[int]:
    """Return row numbers in the order of the file names, as the lines of a submission are; folders come second."""
    return sorted(range(len(paths)), key=lambda row: (paths[row].rpartition("/")[2], paths[row]))


def _class_rows(data: ClassificationSet, found: "LocalisationErrors") -> list[dict[str, Any]]:
    """Return the errors class by class, from 0 to 1; None where no image counts."""
    missed = (found.labels != found.targets[:, None]).all(axis=1)
    rows = []
    for k, name in enumerate(data.classes):
        own = found.targets == k
        counted = own & found.guessed.counted
        rows.append({
            "name": name, "words": data.words.get(name, ""), "images": int(own.sum()), "counted": int(counted.sum()),
            "localisation": _share(found.guessed.wrong[counted].all(axis=1)),
            "true_class": _share(found.true_class.wrong[counted].all(axis=1)),
            "classification": _share(missed[own]),
        })  # fmt: skip
    return rows


def _errors(found: "LocalisationErrors", protocol: str) -> dict[str, Any]:
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


def _box_headline(found: "LocalisationErrors", errors: Mapping[str, Any]) -> list[str]:
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
    found: "Sequence[Predicted]",
    classes: Sequence[str],
    words: Mapping[str, str],
    folder: Path,
    *,
    spreadsheet_safe: bool = False,
) -> dict[str, Any]:
    """Write predictions.json and predictions.csv, both replaced in one step; return the content of the former.

    Boxes are edges in pixels: left, top, right, bottom.

    Raises StoreError if the folder can't be made or written.
    """
    from vggfeat.localisation.predict import shown_path

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


def summary_lines(found: "Sequence[Predicted]", classes: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Return a line an image: its best guess, or why there is none."""
    from vggfeat.localisation.predict import shown_path, title

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
