"""A page takes its name in one step."""

import os
from pathlib import Path

from vggfeat.store.durable import DISK, disk_errors, replacing


def write_page(path: Path, content: bytes) -> None:
    """Write a page; a file of its name is replaced.

    Raises
    ------
    StoreError
        If it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with (
        disk_errors(path, "writing the page", "mend it, or choose another --out"),
        replacing(DISK, path, temp=temporary) as file,
    ):
        file.write(content)
