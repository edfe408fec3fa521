"""The page of `vggfeat similar`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vggfeat.results.templates_env import render
from vggfeat.results.thumbnails import Key, find_root, small_copies


def neighbours_page(
    content: Mapping[str, Any], dataset: str, own: tuple[str, Any] | None, query: Path, images: Path | None
) -> bytes:
    """Render the images most like one.

    Parameters
    ----------
    content : mapping
        As `vggfeat similar --json` prints it.
    dataset : str
        Name of the data set.
    own : (path, box), optional
        Of the query, if it is in the file.
    query : Path
        The image, if it is not.
    images : Path, optional
        Root of the data set; without it the page has names only.

    Raises
    ------
    ConfigError
        If the images are not there.
    """
    keys = [_key(one["path"], one["box"]) for one in content["nearest"]]
    copies: dict[Key, str] = {}
    asked: Key | None = None if own is None else _key(*own)
    if images is not None:
        root = find_root(images, dataset, [key.path for key in keys])
        copies = small_copies(root, [*keys, *([asked] if asked else [])], dataset=dataset)
    if asked is None:
        asked = Key(os.path.abspath(query), None)
        copies |= small_copies(None, [asked])
    found = list(zip(content["nearest"], keys, strict=True))
    return render("similar.html", content=content, found=found, asked=asked, copies=copies)


def _key(path: str, box: Any) -> Key:
    return Key(path, None if box is None else tuple(box))
