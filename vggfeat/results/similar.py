"""The images most like one, as JSON, as text, and as a page with images."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vggfeat.errors import counted
from vggfeat.results.page import render
from vggfeat.results.text import align
from vggfeat.results.thumbnails import Key, first_copies, small_copies
from vggfeat.similar import DescriptorSettings, Neighbours
from vggfeat.store.reader import Features


def similar_json(
    features: Features, query: str, row: int | None, found: Neighbours, settings: DescriptorSettings
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

    Parameters
    ----------
    content : mapping
        Of `similar_json`.
    dataset : str
        Name of the data set.
    own : (path, box), optional
        Of the query, if it is in the file.
    query : Path
        The image, if it is not.
    images : Path, optional
        Root of the data set; without it the page has names only.
    workers : int
        Processes that decode images.

    Raises
    ------
    ConfigError
        If the images are not there.
    """
    keys = [Key.of(one["path"], one["box"]) for one in content["nearest"]]
    asked = Key(os.path.abspath(query), None) if own is None else Key.of(*own)
    copies = first_copies(images, dataset, [*([asked] if own else []), *keys], workers=workers)
    if own is None:
        copies |= small_copies(None, [asked], workers=workers)
    found = list(zip(content["nearest"], keys, strict=True))
    return render("similar.html", content=content, found=found, asked=asked, copies=copies)
