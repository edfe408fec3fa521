"""Ctrl-C and SIGTERM as a flag, so that a step can be finished and saved before they take effect."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vggfeat.errors import TrainingError


class Stopped(TrainingError):  # noqa: N818  it is none
    """Work that can't be saved half-way was broken off because the run is to stop. It never leaves the trainer."""


@contextmanager
def signals_as_flag() -> Iterator[Callable[[], bool]]:
    """Hand out a function that says whether SIGINT or SIGTERM has arrived; raise that signal again at the end.

    The same signal a second time takes effect at once. A signal that the process ignores, as a shell's background jobs
    do with SIGINT, stays ignored. Use it in the main thread only: no other can set handlers.

    Yields
    ------
    callable
        Returns True once a signal has arrived.
    """
    arrived: list[int] = []
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def note(number: int, frame: FrameType | None) -> None:
        # Under torchrun a Ctrl-C brings SIGTERM as well, so another signal is no second request.
        if number in arrived:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        arrived.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])
