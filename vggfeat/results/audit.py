"""What an audit found, as JSON, as text, and as a page with images."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vggfeat.audit import Audit
from vggfeat.audit.checks import labels_differ
from vggfeat.results.page import render
from vggfeat.results.record import align, printable
from vggfeat.results.thumbnails import Key, first_copies
from vggfeat.samples import DataSet
from vggfeat.table import DescriptorTable
from vggfeat.wording import counted

FORMAT, VERSION = "vggfeat-audit", 1
SHOWN = 60
"""Entries of a list that a page shows."""
LISTS = {
    "copies": "Copies: files of the same bytes",
    "near_duplicates": "Near duplicates",
    "suspect_labels": "Labels that other images contradict",
    "outliers": "Outliers: images that are like no other",
    "small_classes": "Classes with few images",
    "failed": "Images without a descriptor",
}
"""List of the JSON -> its title."""


def audit_json(audit: Audit, table: DescriptorTable, file: str) -> dict[str, Any]:
    """Return all that was found, ready for JSON; `file` is what the table was read from."""
    data, near, training = table.dataset, audit.near, audit.training
    image = _describer(data)
    pairs = zip(near.rows.tolist(), near.cosine.tolist(), near.across.tolist(), strict=True)

    def entry(rows: Sequence[int], **facts: Any) -> dict[str, Any]:
        return {"images": [image(row) for row in rows], **facts}

    lists = {
        "copies": [entry(one.rows, across_splits=one.across, labels_differ=one.labels_differ) for one in audit.copies],
        "near_duplicates": [
            entry(pair, cosine=cosine, across_splits=across, labels_differ=labels_differ(data, pair))
            for pair, cosine, across in pairs
        ],
        "suspect_labels": [
            entry([one.row], label=one.label, claim=one.claim, margin=one.margin, confident=one.confident)
            for one in audit.suspects
        ],
        "outliers": [entry([one.row], distance=one.distance) for one in audit.outliers],
        "small_classes": [{"class": name, "count": count} for name, count in audit.few],
        "failed": [entry([row], reason=table.reasons.get(row, "")) for row in audit.failed],
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "file": file,
        "dataset": data.name,
        "rows": len(data),
        "classes": len(data.classes),
        "problems": _problems(audit),
        **lists,
        "near_duplicates_total": near.total,
        "near_duplicates_across_splits": near.total_across,
        "suspect_labels_total": audit.contradicted,
        "suspect_labels_confident": audit.confident,
        "copies_known": audit.copies_known,
        "outlier_distance": audit.far if math.isfinite(audit.far) else None,
        "training": None
        if training is None
        else {"svms": training.problems, "folds": training.folds, "C": training.C, "labelled": len(training.rows)},
        "settings": asdict(audit.settings),
        "seconds": audit.seconds,
    }


def _describer(data: DataSet) -> Callable[[int], dict[str, Any]]:
    """Return what says of a row how its image is called, and what the data set says of it."""
    members = {name: frozenset(rows.tolist()) for name, rows in data.splits.items()}

    def describe(row: int) -> dict[str, Any]:
        sample = data[row]
        return {
            "id": sample.id,
            "path": sample.path,
            "classes": data.classes_of(row),
            "splits": [name for name, rows in members.items() if row in rows],
            "box": sample.box,
        }

    return describe


def _problems(audit: Audit) -> list[str]:
    """Say in a sentence each what should be looked at, what makes figures wrong first."""
    copies, near = audit.copies, audit.near
    across, contrary = sum(one.across for one in copies), sum(one.labels_differ for one in copies)
    others = f", {less} more with less" if (less := audit.contradicted - audit.confident) else ""
    found = [
        (across, "group{s} of copies {are} in different splits: figures of a test are too good"),
        (near.total_across, "pair{s} of near duplicates {are} in different splits: look at {them}"),
        (contrary, "group{s} of copies {have} different labels: one of them is wrong"),
        (audit.confident, f"label{{s}} {{are}} contradicted by other images with confidence{others}"),
        (len(copies) - across, "group{s} of copies {are} in one split: they count more than once"),
        (near.total - near.total_across, "pair{s} of near duplicates {are} not parted by splits"),
        (len(audit.few), f"class{{es}} {{have}} fewer than {counted(audit.settings.fewest, 'image{s}')}"),
        (len(audit.outliers), "image{s} {are} like no other"),
        (len(audit.failed), "image{s} {have} no descriptor"),
    ]
    return [counted(count, words) for count, words in found if count]


def audit_text(content: Mapping[str, Any], *, top: int = 10, width: int | None = None) -> str:
    """Return what was found as a text: the verdict, then the first `top` entries of every list."""
    problems = content["problems"]
    kinds = counted(len(problems), "kind{s} of problem{s}:")
    lines = [kinds if problems else "nothing was found that is wrong"]
    lines += [f"  {one}" for one in problems]
    for name, title in LISTS.items():
        entries = content[name]
        if entries:
            lines += ["", f"{title}: {_total(content, name)}"]
            lines += align([_cells(name, one) for one in entries[:top]], left=3, width=width)
            if len(entries) > top:
                lines.append(f"... {_total(content, name) - top} more")
    return "\n".join([*lines, "", *map(printable, basis(content))])


def _total(content: Mapping[str, Any], name: str) -> int:
    return int(content.get(f"{name}_total", len(content[name])))


def _cells(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Return what a list says of an entry, then whose it is: 3 cells, as `words` and the names of the images."""
    if name == "small_classes":
        return [str(entry["count"]), entry["class"], ""]
    images = [one["id"] + (f" ({', '.join(one['splits'])})" if one["splits"] else "") for one in entry["images"]]
    return [words(name, entry), images[0], "  ".join(images[1:])]


def words(name: str, entry: Mapping[str, Any]) -> str:
    """Say what is wrong with an entry of a list."""
    if name in ("copies", "near_duplicates"):
        alike = "same bytes" if name == "copies" else f"{entry['cosine']:.4f}"
        return alike + ", across splits" * entry["across_splits"] + ", other labels" * entry["labels_differ"]
    if name == "suspect_labels":
        return f"{entry['margin']:.2f}{'' if entry['confident'] else '?'} {entry['label']} -> {entry['claim']}"
    return f"{entry['distance']:.3f}" if name == "outliers" else str(entry["reason"])


def basis(content: Mapping[str, Any]) -> list[str]:
    """Say in a sentence each what was compared, and with what effort."""
    settings, training = content["settings"], content["training"]
    far = content["outlier_distance"]
    outliers = "" if far is None else f", outliers from a distance of {far:.3f} on"
    lines = [
        f"{counted(content['rows'], 'image{s}')} of {content['dataset']} compared with each other; "
        f"near duplicates from a cosine of {settings['near']:g} on{outliers}"
    ]
    if not content["copies_known"]:
        lines.append("copies were not looked for: the bytes of the images are not known")
    if training is None:
        lines.append("labels were not doubted" + ": there are too few to train on" * settings["labels"])
    else:
        lines.append(
            f"{counted(training['labelled'], 'labelled image{s} scored by SVMs that did not see {them}')}: "
            f"{training['svms']} SVMs ({training['folds']} folds, C = {training['C']:g} of "
            f"{len(settings['grid'])}); a ? marks a contradiction of less confidence"
        )
    return lines


def audit_page(content: Mapping[str, Any], root: Path | None = None, *, workers: int = 1) -> bytes:
    """Render what was found, the first `SHOWN` entries of every list.

    `content`: of `audit_json`. `root`: of the data set, for small copies of the images; without it the page has names
    only. `workers`: processes that decode images. Raises ConfigError if the images are not there.
    """
    parts = [
        {
            "name": name,
            "title": title,
            "total": _total(content, name),
            "entries": [
                (words(name, one), [(Key.of(image["path"], image["box"]), image) for image in one["images"]])
                for one in content[name][:SHOWN]
            ],
        }
        for name, title in LISTS.items()
        if name != "small_classes"
    ]
    keys = (key for part in parts for _, images in part["entries"] for key, _ in images)  # type: ignore[attr-defined]
    copies = first_copies(root, content["dataset"], keys, workers=workers)
    return render("audit.html", content=content, parts=parts, copies=copies, basis=basis(content))
