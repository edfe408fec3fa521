"""The marker of rendered images: a file in their folder, and a word in provenance."""

import os
from pathlib import Path

MARKER = "RENDERED.txt"
"""File in the root of a rendered data set."""
RENDERED = "rendered"
"""What provenance says of its images."""


def is_rendered(root: str | Path) -> bool:
    """Say whether the images in a folder are marked as rendered: in it, or in one of the four folders above it."""
    folder = Path(os.path.abspath(root))
    return any((place / MARKER).is_file() for place in (folder, *folder.parents[:4]))
