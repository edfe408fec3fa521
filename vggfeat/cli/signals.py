"""Ctrl-C, SIGTERM and SIGHUP as exceptions, so that locks and files are let go in order; asked twice, the end at once.

The end at once is safe, because all that is kept is safe from a kill. To raise a second exception is not: in the midst
of cleaning up it would leave threads behind that the interpreter waits for, or be printed and lost.
"""

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

NAMES: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
_LATER = 0.01
"""Seconds."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP.

    Parameters
    ----------
    number : int
        Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def listen(last_line: Callable[[int], str]) -> None:
    """From now on raise KeyboardInterrupt or Terminated for a signal, and end the process if it comes again.

    A signal that is ignored stays so: nohup and the background jobs of a shell rely on it.

    Parameters
    ----------
    last_line : callable
        Given the number of the first signal, returns what is printed when it comes again.
    """
    ear = _Ear(last_line)
    sys.unraisablehook = ear.again
    for number in NAMES:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, ear)


def stop_listening() -> None:
    """Ignore signals from now on, if they were listened to: nothing is left to be broken off."""
    for number in NAMES:
        if isinstance(signal.getsignal(number), _Ear):
            signal.signal(number, signal.SIG_IGN)


class _Ear:
    def __init__(self, last_line: Callable[[int], str]) -> None:
        self.last_line = last_line
        self.heard: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number in self.heard:
            _end(self.heard[0], self.last_line(self.heard[0]))
        self.heard.append(number)
        _leave_terminal()
        # Under torchrun a Ctrl-C brings SIGTERM as well: another signal is no second request.
        if len(self.heard) == 1:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    def again(self, lost: "sys.UnraisableHookArgs") -> None:
        """Send a signal again whose exception was raised in a callback of the garbage collector, which swallows it."""
        if not self.heard or not issubclass(lost.exc_type, KeyboardInterrupt | Terminated):
            sys.__unraisablehook__(lost)
            return
        # Not at once: the exception would be raised in here, and swallowed as well.
        later = threading.Timer(_LATER, os.kill, (os.getpid(), self.heard[0]))
        later.daemon = True
        self.heard.clear()
        later.start()


def _end(number: int, line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, line.encode(errors="backslashreplace"))
    # They would end by themselves, but one that is just starting takes its time. Linux lists them by thread.
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGTERM)
    os._exit(128 + number)


def _leave_terminal() -> None:
    """Print nowhere from now on if the terminal has gone: what is said on the way out would else raise an error."""
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(fd).st_mode) and not os.isatty(fd):
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
