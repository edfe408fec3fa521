"""Where a command's text goes out: one line at a time, with nothing in it that a terminal would obey.

File names, class names and messages of libraries come from strangers. A control character in one could clear the
screen, a mark of direction could turn a name round, and a line break could forge a line of ours. So every command
prints through this module, which escapes them; only JSON, which escapes them itself, goes out as it is.
"""

import json
import sys
import traceback
from types import TracebackType
from typing import Any

import click

from vggfeat.cli.signals import is_main
from vggfeat.results.text import printable


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


def say_json(content: Any) -> None:
    """Print what a program can read."""
    click.echo(json.dumps(content, indent=2, default=str))


def say_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that no command expects; serves as `sys.excepthook`."""
    for entry in traceback.format_exception(kind, error, trace):
        for line in entry.rstrip("\n").split("\n"):
            say(line, err=True)
    say("vggfeat: this is a defect of vggfeat; please report it with the lines above", err=True)
