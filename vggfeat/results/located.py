"""Guesses for a user's own images, as JSON, as CSV and in short."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vggfeat.localisation.predict import Predicted, shown_path, title
from vggfeat.results.classification import csv_bytes
from vggfeat.results.files import write_files


def write_predictions(
    found: Sequence[Predicted], classes: Sequence[str], words: Mapping[str, str], folder: Path
) -> list[Path]:
    """Write predictions.json and predictions.csv, each replaced in one step.

    Raises
    ------
    StoreError
        If the folder can't be made or written.
    """
    header = ["path", "class", "words", "posterior", "left", "top", "right", "bottom", "failed"]
    told = json.dumps(predictions_json(found, classes, words), indent=2)
    contents = {
        "predictions.json": told.encode() + b"\n",
        "predictions.csv": csv_bytes(header, _csv_rows(found, classes, words)),
    }
    return write_files(folder, contents)


def predictions_json(found: Sequence[Predicted], classes: Sequence[str], words: Mapping[str, str]) -> dict[str, Any]:
    """Return the guesses ready for JSON; boxes are edges in pixels: left, top, right, bottom."""
    return {
        "format": "vggfeat-boxes",
        "version": 1,
        "images": [
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
        ],
    }


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


def _csv_rows(found: Sequence[Predicted], classes: Sequence[str], words: Mapping[str, str]) -> Iterator[Sequence[Any]]:
    for one in found:
        path = shown_path(one.path)
        for guess in one.located.ranked():
            name, edges = classes[guess.label], [f"{edge:.2f}" for edge in guess.box]
            yield [path, name, words.get(name, ""), f"{guess.posterior:.6f}", *edges, ""]
        if one.located.reason:
            yield [path, *[""] * 7, one.located.reason]
