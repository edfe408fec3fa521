"""What is found in features, as JSON, text and pages: a map, images like one, and what probes are worth."""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import ConfigError
from vggfeat.projection import METHODS, Clusters, ProjectionSettings, chosen_rows, cluster, project
from vggfeat.protocols.probes import PROBES, ProbeValue
from vggfeat.protocols.results import METRICS
from vggfeat.results.page import render
from vggfeat.results.reading import SvmRun, read_runs
from vggfeat.results.record import align, percent, printable
from vggfeat.results.thumbnails import BUDGET, Key, first_copies, is_image, small_copies
from vggfeat.samples import Task
from vggfeat.table import DescriptorTable
from vggfeat.wording import counted, quoted

if TYPE_CHECKING:
    from vggfeat.similar import DescriptorSettings, Neighbours
    from vggfeat.store.reader import Features

UNKNOWN = "not known"


def map_json(
    table: DescriptorTable, file: str, settings: ProjectionSettings, predicted: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Place all images in the plane, group them, and return both, ready for JSON.

    `file`: what it was read from. `predicted`: id -> class; images get the colours of these, of their labels otherwise,
    of clusters without labels. Raises ConfigError if there are too few images, none of them has a prediction, or a
    library is not installed.
    """
    data, rows = table.dataset, chosen_rows(table.ok, settings)
    if predicted is not None and not any(data.ids[row] in predicted for row in rows.tolist()):
        raise ConfigError(
            f"--run: expected a run that tested images of {file}, found one of other images, such as "
            f"{quoted(next(iter(predicted), ''))}"
        )
    descriptors = table.descriptors[rows]
    places, clusters = project(descriptors, settings), cluster(descriptors, settings)
    labels = [data.classes_of(row) for row in rows.tolist()]
    kind, groups = _groups(table, rows, labels, clusters, predicted)
    points = [
        {
            "id": data.ids[row],
            "path": data.paths[row],
            "box": data[row].box,
            "x": float(x),
            "y": float(y),
            "group": group,
            "classes": classes,
            "cluster": int(number),
        }
        for row, (x, y), group, classes, number in zip(
            rows.tolist(), places, groups, labels, clusters.number, strict=True
        )
    ]
    sizes = np.bincount(clusters.number)
    return {
        "format": "vggfeat-map",
        "version": 1,
        "file": file,
        "dataset": data.name,
        "images": len(data),
        "method": settings.method,
        "seed": settings.seed,
        "coloured_by": kind,
        "points": points,
        "clusters": [
            {"size": int(size), "central": [points[place]["id"] for place in central]}
            for size, central in zip(sizes, clusters.central, strict=True)
        ],
    }


def _groups(
    table: DescriptorTable,
    rows: NDArray[np.int64],
    labels: Sequence[Sequence[str]],
    clusters: Clusters,
    predicted: Mapping[str, str] | None,
) -> tuple[str, list[str]]:
    """Return what colours stand for, and the name of each point's group."""
    if predicted is not None:
        return "prediction", [predicted.get(table.dataset.ids[row], UNKNOWN) for row in rows.tolist()]
    if any(labels):
        kind = "class" if table.dataset.task == Task.SINGLE_LABEL else "first class"
        return kind, [classes[0] if classes else UNKNOWN for classes in labels]
    return "cluster", [f"cluster {number + 1}" for number in clusters.number.tolist()]


def predictions_of(folder: Path) -> dict[str, str]:
    """Return id -> class with the highest score, of the tested images of a run of `vggfeat svm`.

    Raises ConfigError if the folder is of another command, or has no scores; StoreError if it can't be read.
    """
    (run,) = read_runs([folder])
    if not isinstance(run, SvmRun) or not run.tests:
        raise ConfigError(f"--run: expected a folder of `vggfeat svm` with its scores, found {folder}")
    found: dict[str, str] = {}
    for test in run.tests:
        scored = np.isfinite(test.scores).any(axis=1)
        best = test.scores.argmax(axis=1)
        found |= {test.ids[row]: run.classes[best[row]] for row in np.flatnonzero(scored).tolist()}
    return found


def map_text(content: Mapping[str, Any]) -> str:
    """Return the clusters, with their sizes and central images, as a text."""
    rows = [["cluster", "images", "most central"]]
    rows += [
        [str(number), str(one["size"]), ", ".join(one["central"][:3])]
        for number, one in enumerate(content["clusters"], start=1)
    ]
    points, images = len(content["points"]), content["images"]
    shown = counted(images, "image{s}") if points == images else f"{points} of {images} images"
    last = printable(f"{shown} of {content['dataset']}, {METHODS[content['method']]}")
    return "\n".join([*align(rows, left=3), last])


def map_page(content: Mapping[str, Any], root: Path | None = None, *, workers: int = 1) -> bytes:
    """Render the points; up to `BUDGET` of them have small copies of their images.

    `content`: of `map_json`. `root`: of the data set; without it the page has names only. `workers`: processes that
    decode images. Raises ConfigError if the images are not there.
    """
    points = content["points"]
    keys = [Key.of(one["path"], one["box"]) for one in points]
    by_id = {one["id"]: key for one, key in zip(points, keys, strict=True)}
    central = [by_id[name] for one in content["clusters"] for name in one["central"]]
    # The central images first, then every so many.
    wanted = [*central, *keys[:: max(1, -(-len(keys) // BUDGET))]]
    copies = first_copies(root, content["dataset"], wanted, workers=workers)
    counts = Counter(one["group"] for one in points)
    number = {name: place for place, name in enumerate(sorted(counts))}
    data = {
        "groups": [printable(name) for name in number],
        "points": [
            [round(one["x"], 5), round(one["y"], 5), number[one["group"]], printable(one["id"]),
             printable(", ".join(one["classes"])), _address(copies, key)]
            for one, key in zip(points, keys, strict=True)
        ],
    }  # fmt: skip
    clusters = [(one["size"], [(by_id[name], name) for name in one["central"]]) for one in content["clusters"]]
    groups = [(name, counts[name]) for name in number]
    return render(
        "map.html", script="map.js", content=content, method=METHODS[content["method"]], data=script_json(data),
        groups=groups, clusters=clusters, copies=copies,
    )  # fmt: skip


def _address(copies: Mapping[Key, str], key: Key) -> str:
    found = copies.get(key, "")
    return found if is_image(found) else ""


def script_json(value: Any) -> Any:
    """Return JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    from markupsafe import Markup

    text = json.dumps(value, separators=(",", ":"))  # All that is not ASCII is escaped.
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def similar_json(
    features: "Features", query: str, row: int | None, found: "Neighbours", settings: "DescriptorSettings"
) -> dict[str, Any]:
    """Return what was found, ready for JSON; `row` is that of the query, if it is in the file."""
    data = features.dataset
    return {
        "file": str(features.path),
        "query": query,
        "query_id": None if row is None else data.ids[row],
        "measure": "cosine",
        "join": settings.join,
        "normalisation": settings.normalisation,
        "regions": list(settings.regions or features.regions),
        "rows": found.rows,
        "failed": found.failed,
        "nearest": [
            {
                "rank": rank,
                "id": one.id,
                "path": one.path,
                "cosine": one.cosine,
                "classes": data.classes_of(one.row),
                "box": one.box,
            }
            for rank, one in enumerate(found.nearest, start=1)
        ],
    }


def similar_text(content: Mapping[str, Any], width: int | None = None) -> str:
    """Return a line an image, then how many were compared."""
    rows = [["rank", "cosine", "id", "classes"]]
    rows += [
        [str(one["rank"]), f"{one['cosine']:.4f}", one["id"], ", ".join(one["classes"])] for one in content["nearest"]
    ]
    failed = f", {content['failed']} failed and left out" if content["failed"] else ""
    return "\n".join([*align(rows, left=4, width=width), f"{counted(content['rows'], 'image{s}')} compared{failed}"])


def similar_page(
    content: Mapping[str, Any],
    dataset: str,
    own: tuple[str, Any] | None,
    query: Path,
    images: Path | None,
    *,
    workers: int = 1,
) -> bytes:
    """Render what was found.

    `content`: of `similar_json`. `dataset`: name of the data set. `own` (path, box), optional: of the query, if it is
    in the file. `query`: the image, if it is not. `images`: root of the data set; without it the page has names only.
    `workers`: processes that decode images. Raises ConfigError if the images are not there.
    """
    keys = [Key.of(one["path"], one["box"]) for one in content["nearest"]]
    asked = Key(os.path.abspath(query), None) if own is None else Key.of(*own)
    copies = first_copies(images, dataset, [*([asked] if own else []), *keys], workers=workers)
    if own is None:
        copies |= small_copies(None, [asked], workers=workers)
    found = list(zip(content["nearest"], keys, strict=True))
    return render("similar.html", content=content, found=found, asked=asked, copies=copies)


def probes_json(measure: str, values: Sequence[ProbeValue], dataset: str) -> dict[str, Any]:
    """Return what was measured, ready for JSON."""
    return {
        "format": "vggfeat-probes",
        "version": 1,
        "dataset": dataset,
        "measure": measure,
        "values": [
            {
                **one._asdict(),
                "mean": _known(one.mean),
                "values": [_known(value) for value in one.values],
                "setting": PROBES[one.probe].setting,
            }
            for one in values
        ],
    }


def probes_text(content: dict[str, Any], width: int | None = None) -> str:
    """Return a table: a line a probe, a column a number of training images of each class, in per cent."""
    values = content["values"]
    shots = list(dict.fromkeys(one["shots"] for one in values))
    rows = [["probe", "chosen", *("all" if one is None else str(one) for one in shots)]]
    for name in dict.fromkeys(one["probe"] for one in values):
        own = [one for one in values if one["probe"] == name]
        chosen = "/".join(f"{value:g}" for value in dict.fromkeys(own[0]["settings"]))
        rows.append([name, f"{own[0]['setting']} = {chosen}", *map(_cell, own)])
    measure = METRICS[content["measure"]]
    head = f"{content['dataset']}: {measure}, % by images of each class to train on, +- deviation over draws and runs"
    return "\n".join([printable(head), *align(rows, left=2, width=width)])


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _cell(value: dict[str, Any]) -> str:
    deviation = "" if value["deviation"] is None else f" +- {100 * value['deviation']:.1f}"
    return f"{percent(value['mean'])}{deviation}"
