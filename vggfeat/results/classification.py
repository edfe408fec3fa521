"""Errors of ILSVRC classification as a person reads them and as a program reads them, with the paper's beside them.

K = classes.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vggfeat.classification.evaluate import ClassificationErrors, Fused, FusedPart
from vggfeat.results.files import write_files
from vggfeat.results.paper_errors import PaperErrors, is_official, paper_errors, tested_nets
from vggfeat.results.text import align, printable, shortened
from vggfeat.store.failures import count_reasons

MOST_PAIRS = 100
"""Confusions that results.json has; confusions.csv has all."""
SHOWN_PAIRS, SHOWN_FAILURES = 10, 10
"""What the printed table has."""
LONGEST_WORDS = 40


class Pace(NamedTuple):
    """How fast a net went through images."""

    file: str
    images: int
    """Of this run; those of earlier runs don't count."""
    seconds: float
    resumed: int = 0
    """Images that earlier runs had finished."""


def headline(fused: Fused, found: ClassificationErrors) -> str:
    """Return the line to quote: both errors, nets, modes and scales, images, chance level."""
    nets = " + ".join(map(str, tested_nets(fused)))
    chance = " and ".join(f"{100 * error:.1f} %" for error in chance_errors(len(fused.classes)))
    return (
        f"{fused.dataset['name']}: top-1 error {100 * found.top1_error:.1f} %, top-5 error "
        f"{100 * found.top5_error:.1f} % on {len(fused.ids)} images of {len(fused.classes)} classes: {nets} "
        f"(chance {chance})"
    )


def chance_errors(classes: int) -> tuple[float, float]:
    """Top-1 and top-5 error of guesses at random, from 0 to 1."""
    return 1 - 1 / classes, max(0.0, 1 - 5 / classes)


def result_notes(fused: Fused) -> list[str]:
    """Say what a reader of the errors should know of nets and images, a sentence each."""
    notes = []
    for part in fused.parts:
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
        counts = count_reasons(fused.failed.values())
        told = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        notes.append(f"{len(fused.failed)} images could not be read or evaluated ({told}); they count as wrong")
    return notes


def text_table(
    fused: Fused,
    found: ClassificationErrors,
    *,
    notes: Sequence[str] = (),
    most: int | None = None,
    width: int | None = None,
) -> str:
    """Return classes, commonest confusions, failures, notes, headline and the paper's rows as plain text.

    Parameters
    ----------
    fused : Fused
    found : ClassificationErrors
    notes : sequence of str
        In addition to `result_notes`.
    most : int, optional
        With more classes than so many, only those of the highest top-1 error are listed.
    width : int, optional
        Columns of the terminal that the tables are cut to.
    """
    lines = [*_class_lines(fused, found, most, width), "", *_pair_lines(fused, found, width)]
    failed = list(fused.failed.items())
    lines += [f"failed: {name}: {reason}" for name, reason in failed[:SHOWN_FAILURES]]
    if len(failed) > SHOWN_FAILURES:
        lines.append(f"failed: {len(failed) - SHOWN_FAILURES} more; all of them are in results.json")
    lines += [f"note: {note}" for note in (*result_notes(fused), *notes)]
    lines.append(headline(fused, found))
    lines += [f"  {_paper_line(row)}" for row in paper_errors(fused)]
    return "\n".join(printable(line) for line in lines)


def _class_lines(fused: Fused, found: ClassificationErrors, most: int | None, width: int | None) -> list[str]:
    rows = list(found.classes)
    cut = most is not None and len(rows) > most
    if cut:
        rows = sorted(rows, key=lambda row: -np.nan_to_num(row.top1_error, nan=-1.0))[:most]
    header = ["class", "words", "images", "failed", "top-1 error %", "top-5 error %"]
    cells = [
        [row.name, shortened(fused.words.get(row.name, ""), LONGEST_WORDS), str(row.images), str(row.failed),
         percent(row.top1_error), percent(row.top5_error)]
        for row in rows
    ]  # fmt: skip
    more = [f"the {most} classes of the highest top-1 error; table.txt has all {len(found.classes)}"] if cut else []
    return [*align([header, *cells], left=2, width=width), *more]


def _pair_lines(fused: Fused, found: ClassificationErrors, width: int | None) -> list[str]:
    pairs = found.pairs()
    if not pairs:
        return []
    shown = pairs[:SHOWN_PAIRS]
    cells = [[_called(fused, true), f"-> {_called(fused, guess)}", str(count)] for true, guess, count in shown]
    indented = None if width is None else width - 2
    return ["most often taken for another:", *(f"  {line}" for line in align(cells, left=2, width=indented)), ""]


def _paper_line(row: PaperErrors) -> str:
    nets = ", ".join(f"{net.net} (S = {net.scale}) at Q = {', '.join(map(str, net.sides))}" for net in row.nets)
    return f"VGG paper, Table {row.table}, {row.mode}, {nets}: top-1 error {row.top1} %, top-5 error {row.top5} %"


def results_json(
    fused: Fused, found: ClassificationErrors, *, paces: Sequence[Pace] = (), notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return everything but the posteriors, ready for JSON."""
    chance = chance_errors(len(fused.classes))
    return {
        "format": "vggfeat-classification",
        "version": 1,
        "headline": headline(fused, found),
        "top1_error": found.top1_error,
        "top5_error": found.top5_error,
        "chance": {"top1_error": chance[0], "top5_error": chance[1]},
        "dataset": {
            **fused.dataset,
            "images": len(fused.ids),
            "classes": len(fused.classes),
            "official": is_official(fused),
        },
        "posteriors": [_part_json(part) for part in fused.parts],
        "throughput": [
            {
                "file": pace.file,
                "images": pace.images,
                "seconds": pace.seconds,
                "images_per_second": pace.images / pace.seconds if pace.images else None,
                "resumed": pace.resumed,
            }
            for pace in paces
        ],
        "classes": [
            {
                "name": row.name,
                "words": fused.words.get(row.name),
                "images": row.images,
                "failed": row.failed,
                "top1_error": _number(row.top1_error),
                "top5_error": _number(row.top5_error),
            }
            for row in found.classes
        ],
        "confusions": [
            {"class": fused.classes[true], "taken_for": fused.classes[guess], "images": count}
            for true, guess, count in found.pairs()[:MOST_PAIRS]
        ],
        "failed": [{"id": name, "reason": reason} for name, reason in fused.failed.items()],
        "failed_by_reason": count_reasons(fused.failed.values()),
        "notes": [*result_notes(fused), *notes],
        "paper": [
            {
                "table": row.table,
                "mode": row.mode,
                "nets": [net._asdict() for net in row.nets],
                "top1_percent": row.top1,
                "top5_percent": row.top5,
            }
            for row in paper_errors(fused)
        ],
    }


def _part_json(part: FusedPart) -> dict[str, Any]:
    names = ("net", "width", "weights", "weights_sha256", "trained", "trained_scale", "mode", "softmax", "averaged",
             "class_order", "precision", "interpolation")  # fmt: skip
    told: Mapping[str, Any] = part.provenance
    own = {"file": part.file, "scales": list(part.scales), "share": part.share, "failed": part.failed}
    return own | {name: told.get(name) for name in names}


def classes_csv(fused: Fused, found: ClassificationErrors) -> bytes:
    """Return a line a class: name, words, images, failed, errors from 0 to 1, and what it is most often taken for."""
    commonest: dict[int, tuple[str, int]] = {}
    for true, guess, count in found.pairs():
        commonest.setdefault(true, (fused.classes[guess], count))
    header = ["class", "words", "images", "failed", "top1_error", "top5_error", "most_taken_for", "images_taken"]
    return csv_bytes(
        header,
        (
            [row.name, fused.words.get(row.name, ""), row.images, row.failed, _number(row.top1_error),
             _number(row.top5_error), *commonest.get(k, ("", 0))]
            for k, row in enumerate(found.classes)
        ),
    )  # fmt: skip


def confusions_csv(fused: Fused, found: ClassificationErrors) -> bytes:
    """Return a line a confusion that occurs: class, taken_for, images; the commonest first."""
    names = fused.classes
    return csv_bytes(
        ["class", "taken_for", "images"],
        ([names[true], names[guess], count] for true, guess, count in found.pairs()),
    )


def write_classification(
    fused: Fused, found: ClassificationErrors, folder: Path, *, paces: Sequence[Pace] = (), notes: Sequence[str] = ()
) -> list[Path]:
    """Write results.json, table.txt, classes.csv and confusions.csv, each replaced in one step.

    Raises
    ------
    StoreError
        If the folder can't be made or written.
    """
    told = results_json(fused, found, paces=paces, notes=notes)
    contents = {
        "results.json": json.dumps(told, indent=2, allow_nan=False).encode() + b"\n",
        "table.txt": text_table(fused, found, notes=notes).encode() + b"\n",
        "classes.csv": classes_csv(fused, found),
        "confusions.csv": confusions_csv(fused, found),
    }
    return write_files(folder, contents)


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Return a header and lines as CSV."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(header)
    lines.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _called(fused: Fused, k: int) -> str:
    name = fused.classes[k]
    return f"{name} {shortened(fused.words[name], LONGEST_WORDS)}" if name in fused.words else name


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def percent(value: float) -> str:
    """Return a proportion in per cent, "-" where there is none."""
    return f"{100 * value:.1f}" if np.isfinite(value) else "-"
