"""Progress on a terminal as a bar, elsewhere as a line now and then, always on standard error."""

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from vggfeat.cli.output import say
from vggfeat.results.text import printable

SECONDS_BETWEEN_LINES = 30.0
STALLED = 30.0
"""Seconds without progress after which no time left is foretold."""


class Progress:
    """Shows done and total, rate, and the time left. Use as a context manager.

    Parameters
    ----------
    title : str
        What is being done.
    unit : str
        What is counted, in the plural.
    quiet : bool
        Show nothing.
    clock : callable
        Seconds, for the rate.
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

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
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
