"""The images below a folder, found once for all who read folders."""

import os
from collections import deque
from pathlib import Path
from typing import NamedTuple

from vggfeat.datasets.files import is_utf8, list_entries
from vggfeat.errors import DatasetError

UNREAD_SUFFIXES = (
    ".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".hif", ".j2k", ".jp2", ".jxl", ".nef", ".orf", ".pef", ".raf",
    ".rw2", ".svg",
)  # fmt: skip
"""Images in formats that are not read: each fails by name, with the way out, rather than being passed over."""
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp", *UNREAD_SUFFIXES,
)  # fmt: skip
"""Files with one of these endings, in any case, count as images."""


class Found(NamedTuple):
    """What a walk met; paths relative to its root, with forward slashes."""

    images: list[str]
    """Sorted by code point."""
    folders: list[str]
    others: list[str]
    repeated: list[str]
    unnameable: list[str]


def walk(root: Path) -> Found:
    """List what is below a folder.

    Links to folders are followed, but no folder is read twice; hidden names and __MACOSX are passed over. The kind of
    an entry comes with its name: a million files, and no stat.

    Raises
    ------
    DatasetError
        If a folder can't be read.
    """
    found = Found([], [], [], [], [])
    seen: set[tuple[int, int]] = set()
    # Links wait until all real folders are read, so that a folder keeps its own name and not that of a link.
    folders, links = deque([""]), deque[str]()
    while folders or links:
        folder = (folders or links).popleft()
        status = _stat(root, folder)
        if (status.st_dev, status.st_ino) in seen:
            found.repeated.append(folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        found.folders.append(folder)
        for entry in list_entries(root / folder):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            link = entry.is_symlink()
            if not is_utf8(entry.name):
                found.unnameable.append(path)
            elif not (link and is_image(path)) and _is_folder(entry):
                (links if link else folders).append(path)
            else:
                (found.images if is_image(path) else found.others).append(path)
    found.images.sort()
    return found


def is_image(path: str) -> bool:
    """Whether a name ends like that of an image."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that leads in a circle, or to where this user may not look.
        return False


def _stat(root: Path, folder: str) -> os.stat_result:
    try:
        return os.stat(root / folder)
    except OSError as error:
        raise DatasetError(f"{root / folder}: expected a folder of images: {error.strerror}") from error
