"""A page takes its name in one step."""

import os
from collections.abc import Iterable
from pathlib import Path

from vggfeat.runtime.durable import DISK, atomic_write, disk_errors, open_bounded
from vggfeat.runtime.targets import check_target

MARK = b'<meta name="generator" content="vggfeat">'
"""In the first bytes of every page of ours."""


def check_page_place(path: Path, inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Check, before the work for a page, that nothing but another page would be replaced by it.

    Raises
    ------
    ConfigError
        If it is one of the inputs.
    StoreError
        If something else has that name.
    """
    check_target(path, inputs=inputs, ours=is_page, called="a page of vggfeat")


def is_page(path: Path) -> bool:
    """Say whether a file is a page of ours."""
    with open_bounded(path) as file:
        return MARK in file.read(1024)


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
