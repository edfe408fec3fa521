"""A page takes its name in one step."""

import os
from pathlib import Path

from vggfeat.errors import StoreError
from vggfeat.runtime.durable import DISK, atomic_write, disk_errors, open_bounded

MARK = b'<meta name="generator" content="vggfeat">'
"""In the first bytes of every page of ours."""


def check_page_place(path: Path) -> None:
    """Check, before the work for a page, that nothing but another page would be replaced by it.

    Raises
    ------
    StoreError
        If something else has that name.
    """
    if not os.path.exists(path):
        return
    try:
        with open_bounded(Path(os.path.realpath(path))) as file:
            ours = MARK in file.read(1024)
    except OSError as error:
        raise StoreError(f"{path}: expected a page of vggfeat or no file, found: {error.strerror or error}") from None
    if not ours:
        raise StoreError(f"{path}: expected a page of vggfeat or no file, found another file; choose another --out")


def write_page(path: Path, content: bytes) -> None:
    """Write a page; a file of its name is replaced, see `check_page_place`.

    Raises
    ------
    StoreError
        If it can't be written.
    """
    path = Path(os.path.realpath(path))
    with (
        disk_errors(path, "writing the page", "mend it, or choose another --out"),
        atomic_write(DISK, path) as file,
    ):
        file.write(content)
