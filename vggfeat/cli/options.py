"""Kinds of option values that click does not know."""

import contextlib
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import click

from vggfeat.errors import StoreError

LONGEST_TABLE = 40
"""Classes of ILSVRC that are printed."""


class Numbers(click.ParamType):
    """Numbers separated by commas."""

    name = "N,N,..."

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | tuple[float, ...]:
        """Split at commas."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"expected numbers separated by commas, found {value!r}", param, ctx)


class Scale(click.ParamType):
    """A side in pixels, or a range of sides."""

    name = "S|LOWEST:HIGHEST"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Give a single side as a range of one."""
        if isinstance(value, tuple):
            return value
        lowest, _, highest = str(value).partition(":")
        try:
            return int(lowest), int(highest or lowest)
        except ValueError:
            self.fail(f"expected a side in pixels, or lowest:highest, found {value!r}", param, ctx)


class Sides(click.ParamType):
    """Height and width of an image."""

    name = "HEIGHTxWIDTH"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Split at the x."""
        if isinstance(value, tuple):
            return value
        height, _, width = str(value).partition("x")
        try:
            return int(height), int(width)
        except ValueError:
            self.fail(f"expected HEIGHTxWIDTH in pixels, found {value!r}", param, ctx)


TRY_AGAIN = "failed: to try them again, give the same command with --retry-failed"
PATH = click.Path(path_type=Path, readable=False)
"""Whether a file is there and can be read is said by what reads it."""


class Words(click.ParamType):
    """Words separated by commas."""

    name = "WORD,WORD,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split at commas."""
        return value if isinstance(value, tuple) else tuple(part.strip() for part in str(value).split(","))


def terminal_width() -> int | None:
    """Return the columns of the terminal that is written to; None where the output goes to a file or a program."""
    return shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else None


def make_folder(folder: Path) -> None:
    """Make the folder of a result, before the work whose result it is; if nothing comes into it, it goes at the end.

    Raises
    ------
    StoreError
        If that can't be.
    """
    context = click.get_current_context(silent=True)
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    if context is not None and missing:
        context.call_on_close(partial(_remove_empty, missing))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: expected a folder to write into, found: {error.strerror or error}") from None


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
