"""What a command gives out: text, one line at a time, with nothing in it that a terminal would obey; and folders.

File names, class names and messages of libraries come from strangers. A control character in one could clear the
screen, a mark of direction could turn a name round, and a line break could forge a line of ours. So every command
prints through this module, which escapes them; only JSON, which escapes them itself, goes out as it is.
"""

import contextlib
import json
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from vggfeat.cli.signals import is_main
from vggfeat.errors import StoreError
from vggfeat.results.text import printable
from vggfeat.runtime.targets import check_folder, claim, unclaim

if TYPE_CHECKING:
    from vggfeat.results.record import Record

LONGEST_TABLE = 40
"""Classes of ILSVRC that are printed."""
SHOWN_LEFT_OUT = 10
TRY_AGAIN = "failed: to try them again, give the same command with --retry-failed"


def say(line: str = "", *, err: bool = False) -> None:
    """Print one line; what a terminal would obey, and what its encoding lacks, is shown as an escape."""
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    click.echo(printable(line).encode(encoding, "backslashreplace").decode(encoding), err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print a text of several lines, whose names have been escaped where the lines were made."""
    for line in text.split("\n"):
        say(line, err=err)


def say_note(text: str) -> None:
    """Print a note on standard error, where it does not disturb a program that reads standard output.

    Of the processes that torchrun starts, only the first does.
    """
    if is_main():
        say(f"note: {text}", err=True)


def say_left_out(images: Sequence[tuple[str, str]], listed: Path) -> None:
    """Print path and reason of the first images that were left out, and where all are listed."""
    for path, reason in images[:SHOWN_LEFT_OUT]:
        say(f"left out: {path}: {reason}")
    if len(images) > SHOWN_LEFT_OUT:
        say(f"left out: {len(images) - SHOWN_LEFT_OUT} more; all of them: {listed}")


def say_json(content: Any) -> None:
    """Print what a program can read."""
    click.echo(json.dumps(content, indent=2, default=str))


def say_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that no command expects; serves as `sys.excepthook`."""
    for entry in traceback.format_exception(kind, error, trace):
        for line in entry.rstrip("\n").split("\n"):
            say(line, err=True)
    say("vggfeat: this is a defect of vggfeat; please report it with the lines above", err=True)


def terminal_width() -> int | None:
    """Return the columns of the terminal that is written to; None where the output goes to a file or a program."""
    return shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else None


def show_results(
    record: "Record", out: Path, written: Sequence[Path], *, failed: bool, as_json: bool, runs: Sequence[str] = ()
) -> None:
    """Print what was found on ILSVRC, a line for each of its `runs`, how to try failed images again, and the files."""
    if as_json:
        say_json(record.content)
        return
    say_lines(record.text(most=LONGEST_TABLE, width=terminal_width()))
    for line in (*runs, *([TRY_AGAIN] if failed else [])):
        say(line)
    say(f"{out}: {', '.join(path.name for path in written)}")
    say(f"as a page: vggfeat report {shlex.quote(str(out))}")


def claim_folder(folder: Path, names: Sequence[str], *kinds: str, inputs: Iterable[str | Path] = (),
                 overwrite: bool | None = None) -> None:  # fmt: skip
    """Check before any work that a command may write its files into a folder, make it, and note that it is at work.

    Parameters
    ----------
    folder : Path
    names : sequence of str
        Patterns of the names of what it writes.
    kinds : str
        What the "format" of its JSON files begins with: by them a folder of an earlier run is known.
    inputs : iterable of str or Path
        What it reads.
    overwrite : bool, optional
        Whether files of others may be replaced; None where the command has no such option.

    Raises
    ------
    ConfigError
        If an input would be replaced.
    StoreError
        If a file of another would be, or the folder can't be made.
    """
    check_folder(folder, names, kinds=kinds, inputs=inputs, overwrite=overwrite)
    make_folder(folder)
    if not is_main():
        return
    try:
        claim(folder, kinds)
    except OSError as error:
        raise StoreError(
            f"{folder}: can't be written to: {error.strerror or error}; mend it, or choose another"
        ) from None
    context = click.get_current_context(silent=True)
    if context is not None:
        context.call_on_close(partial(unclaim, folder, names, kinds))


def make_folder(folder: Path) -> None:
    """Make the folder of a result, before the work whose result it is; an empty one is removed at the end.

    Raises
    ------
    StoreError
        If that can't be.
    """
    context = click.get_current_context(silent=True)
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    if context is not None and missing:
        context.call_on_close(partial(_remove_empty, missing))
    from vggfeat.runtime.durable import DISK, make_folders

    try:
        make_folders(DISK, folder)
    except OSError as error:
        raise StoreError(f"{folder}: expected a folder to write into, found: {error.strerror or error}") from None


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
