"""What a command gives out: text, one line at a time, with nothing in it that a terminal would obey; and folders.

File names, class names and messages of libraries come from strangers. A control character in one could clear the
screen, a mark of direction could turn a name round, and a line break could forge a line of ours. So every command
prints through this module, which escapes them; only JSON, which escapes them itself, goes out as it is. Progress is
a bar on a terminal, elsewhere a line now and then, always on standard error.
"""

import contextlib
import json
import math
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from vggfeat.cli.signals import is_main
from vggfeat.errors import StoreError
from vggfeat.results.record import printable
from vggfeat.runtime.output_paths import check_folder, claim, unclaim

if TYPE_CHECKING:
    from vggfeat.results.record import Record

LONGEST_TABLE = 40
"""Classes of ILSVRC that are printed."""
SHOWN_LEFT_OUT = 10
TRY_AGAIN = "failed: to try them again, give the same command with --retry-failed"


def say(line: str = "", *, err: bool = False) -> None:
    """Print one line; what a terminal would obey, and what its encoding lacks, is shown as an escape."""
    encoding = encoding_of(sys.stderr if err else sys.stdout)
    click.echo(printable(line).encode(encoding, "backslashreplace").decode(encoding), err=err)


def encoding_of(stream: TextIO | None) -> str:
    """Name the encoding of a stream; that of files where it has none, or there is no stream."""
    return getattr(stream, "encoding", None) or "utf-8"


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


def show(as_json: bool, content: Any, lines: Iterable[str]) -> None:
    """Print what a program can read, or else the lines that a person reads."""
    if as_json:
        say_json(content)
        return
    for line in lines:
        say(line)


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
    again = [TRY_AGAIN] if failed else []
    table = record.text(most=LONGEST_TABLE, width=terminal_width()).split("\n")
    show(as_json, record.content, [*table, *runs, *again, *files_and_page(out, written)])


def files_and_page(folder: Path, written: Sequence[Path]) -> list[str]:
    """Say what a run has written, and how it becomes a page."""
    return [
        f"{folder}: {', '.join(path.name for path in written)}",
        f"as a page: vggfeat report {shlex.quote(str(folder))}",
    ]


def claim_folder(folder: Path, names: Sequence[str], *kinds: str, inputs: Iterable[str | Path] = (),
                 overwrite: bool | None = None) -> None:  # fmt: skip
    """Check before any work that a command may write its files into a folder, make it, and note that it is at work.

    `names`: patterns of the names of what it writes. `kinds`: what the "format" of its JSON files begins with: by them
    a folder of an earlier run is known. `inputs`: what it reads. `overwrite`: whether files of others may be replaced;
    None where the command has no such option. Raises ConfigError if an input would be replaced; StoreError if a file of
    another would be, or the folder can't be made.
    """
    check_folder(folder, names, kinds=kinds, inputs=inputs, overwrite=overwrite)
    make_folder(folder)
    if not is_main():
        return
    try:
        claim(folder, kinds)
    except OSError as error:
        raise StoreError(
            f"{folder}: can't be written to: {error.strerror or error}; fix it, or choose another"
        ) from None
    context = click.get_current_context(silent=True)
    if context is not None:
        context.call_on_close(partial(unclaim, folder, names, kinds))


def make_folder(folder: Path) -> None:
    """Make the folder of a result, before the work whose result it is; an empty one is removed at the end.

    Raises StoreError if that can't be.
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


SECONDS_BETWEEN_LINES = 30.0
STALLED = 30.0
"""Seconds without progress after which no time left is foretold."""


class Progress:
    """Shows done and total, rate, and the time left. Use as a context manager.

    `title`: what is being done. `unit`: what is counted, in the plural. `quiet`: show nothing. `clock`: seconds, for
    the rate.
    """

    def __init__(
        self, title: str, unit: str, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.title, self.unit, self.quiet, self.clock = printable(title), unit, quiet, clock
        self.started = self.shown = self.advanced = clock()
        self.first: float | None = None
        self.last, self.note = 0.0, ""
        self.text = ""
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            self.bar = _rich_bar()
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=None, rate="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        self._say(self.clock())

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show how far it is.

        Rates count from the first call, so that resumed work has an honest one; and again where `done` falls back,
        because another stage has begun.
        """
        note, now = printable(note), self.clock()
        if self.first is None or done < self.last:
            self.first, self.started = done, now
        if (done, note) != (self.last, self.note):
            self.last, self.note, self.advanced = done, note, now
        stalled = now - self.advanced if now - self.advanced > STALLED else 0.0
        if stalled:
            note = f"{note}{', ' if note else ''}no progress for {duration(stalled)}"
        if self.bar is not None:
            fresh, seconds = done - self.first, now - self.started
            said = _pace(fresh, self.unit, seconds, note) + _left(done, total, fresh, seconds, foretell=not stalled)
            known = None if math.isnan(total) else total
            self.bar.update(self.task, completed=done, total=known, rate=said.removeprefix(", "))
        elif not self.quiet:
            seconds = now - self.started
            self.text = line(self.title, self.unit, done, total, self.first, seconds, note, foretell=not stalled)
            if now - self.shown >= SECONDS_BETWEEN_LINES:
                self._say(now)

    def update_count(self, done: float) -> None:
        """Show how far it is where nobody knows how far it goes."""
        self.update(done, math.nan)

    def update_failed(self, done: float, total: float, failed: int) -> None:
        """Show how far it is, and how many failed, as jobs over images report it."""
        self.update(done, total, f"{failed} failed" if failed else "")

    def update_stage(self, doing: str, done: float, total: float) -> None:
        """Show how far it is, and with what, as jobs of several stages report it."""
        self.update(done, total, doing)

    def _say(self, now: float) -> None:
        if self.text:
            say(self.text, err=True)
        self.shown, self.text = now, ""


def line(
    title: str, unit: str, done: float, total: float, first: float, seconds: float, note: str, *, foretell: bool = True
) -> str:
    """Say in one line how far it is, how fast, and how long it will take, if that is to be foretold."""
    fresh = done - first
    left = _left(done, total, fresh, seconds, foretell=foretell)
    pace = _pace(fresh, unit, seconds, note)
    of = "" if math.isnan(total) else f" of {total:.0f}"
    return f"{title}: {done:.0f}{of} {unit}{', ' if pace else ''}{pace}{left}"


def _left(done: float, total: float, fresh: float, seconds: float, *, foretell: bool) -> str:
    # The one estimate, for the bar as for the lines: a mean since the run was begun or resumed.
    return (
        ""
        if math.isnan(total) or done >= total or fresh <= 0 or not foretell
        else f", {duration((total - done) * seconds / fresh)} left"
    )


def _pace(fresh: float, unit: str, seconds: float, note: str) -> str:
    # A stage that is reported at its end alone has no rate.
    rate = f"{rate_of(fresh, seconds)} {unit}/s" if fresh > 0 else ""
    return ", ".join(part for part in (note, rate) if part)


def rate_of(count: float, seconds: float) -> str:
    """Return a rate with as many digits as one can read."""
    rate = count / seconds if seconds > 0 else 0.0
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """Return seconds as 42s, 3m10s or 5h02m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
    )
    return RichProgress(*columns, console=Console(stderr=True))
