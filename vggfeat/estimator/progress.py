"""How far a long call is: a bar on the terminal, by standard error, or a line in a notebook."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS_BETWEEN_LINES = 0.5

Advance = Callable[[int], None]
"""Takes the number of images that are done."""


@contextmanager
def progress_bar(total: int | None, *, shown: bool) -> Iterator[Advance]:
    """Show progress within; `total` is None where it is not known."""
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with _notebook_line(total) if console.is_jupyter else _terminal_bar(console, total) as advance:
        yield advance


@contextmanager
def _terminal_bar(console: Any, total: int | None) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("images", total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _notebook_line(total: int | None) -> Iterator[Advance]:
    # rich's own bar needs ipywidgets there, and warns without.
    from IPython.display import display

    started, shown = time.monotonic(), 0.0

    def text(done: int) -> dict[str, str]:
        rate = done / max(time.monotonic() - started, 1e-9)
        return {"text/plain": f"{done}{'' if total is None else f'/{total}'} images, {rate:.1f} images/s"}

    handle = display(text(0), raw=True, display_id=True)
    last = 0

    def advance(done: int) -> None:
        nonlocal shown, last
        last = done
        if time.monotonic() - shown > _SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            handle.update(text(done), raw=True)

    try:
        yield advance
    finally:
        handle.update(text(last), raw=True)
