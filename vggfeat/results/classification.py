"""Errors of ILSVRC classification, next to the paper's."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vggfeat.classification.evaluate import ClassificationErrors, Fused, FusedPart
from vggfeat.errors import counted
from vggfeat.results.paper import is_official_fusion, paper_errors, tested_nets
from vggfeat.results.record import LONGEST_WORDS, Record
from vggfeat.results.text import shortened
from vggfeat.samples import RENDERED
from vggfeat.store.reader import count_reasons

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
    """Of this run; those of earlier runs don't count."""
    seconds: float
    resumed: int = 0
    """Images that earlier runs had finished."""


def classification_record(
    fused: Fused, found: ClassificationErrors, *, paces: Sequence[Pace] = (), notes: Sequence[str] = ()
) -> Record:
    """Gather errors, confusions, failures, notes and the paper's rows; `notes` are added to `result_notes`."""
    chance = chance_errors(len(fused.classes))
    headline = _headline(fused, found, chance)
    all_notes = [*result_notes(fused), *notes]
    classes = [
        {
            "name": row.name,
            "words": fused.words.get(row.name),
            "images": row.images,
            "failed": row.failed,
            "top1_error": _number(row.top1_error),
            **({"top5_error": _number(row.top5_error)} if "top5_error" in chance else {}),
        }
        for row in found.classes
    ]
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
        "classes": classes,
        "confusions": [
            {"class": fused.classes[true], "taken_for": fused.classes[guess], "images": count}
            for true, guess, count in pairs[:MOST_CONFUSIONS]
        ],
        "failed": [{"id": name, "reason": reason} for name, reason in fused.failed.items()],
        "failed_by_reason": count_reasons(fused.failed.values()),
        "notes": all_notes,
        "paper": [
            {
                "table": row.table,
                "mode": row.mode,
                "nets": [net._asdict() for net in row.nets],
                "top1_percent": row.top1,
                "top5_percent": row.top5,
            }
            for row in paper
        ],
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
