"""Ctrl-C, SIGTERM and SIGHUP as exceptions, so that locks and files are let go in order; asked twice, the end at once.

The end at once is safe, because all that is kept is safe from a kill. To raise a second exception is not: in the midst
of cleaning up it would leave threads behind that the interpreter waits for, or be printed and lost. Nor is it while a
module is loaded: libraries in C turn the exception into another one, or abort. So before the command, and while one is
loaded, the first signal ends at once as well. Where the lock of a condition is being taken, it waits until it is.

This module is loaded before anything is listened to, so it imports only what the interpreter has loaded by then.
"""

import _thread
import contextlib
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from vggfeat.wording import with_bytes

NAMES: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"} | {
    getattr(signal, name): name for name in ("SIGHUP", "SIGBREAK") if hasattr(signal, name)
}
"""SIGBREAK is Windows' Ctrl-Break, and comes when a console is closed, as SIGHUP does elsewhere."""
_KEPT = "; what was finished is kept, and the same command resumes from there"
_RESUMED = ("extract", "classify", "demo", "data synth", "data pack", "weights fetch", "localise evaluate",
            "bench gpu", "reproduce")  # fmt: skip
"""All other commands begin again, or say it themselves."""
_LATER = 0.01
"""Seconds."""
_FILE_METHOD = re.compile(r"(Positioned|Disk|Latched)File\.\w+")
"""Of `vggfeat.runtime.durable`."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, SIGHUP or SIGBREAK.

    It is a KeyboardInterrupt because that is what code looks for that must not swallow a signal: Python's own compiler
    drops every other exception that comes while it works.

    `number`: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """Return the signal that an exception is, or that another library has made into it; None if it is none."""
    first = error if isinstance(error, KeyboardInterrupt) else error.__cause__
    return first if isinstance(first, KeyboardInterrupt) else None


def number_of(signalled: KeyboardInterrupt) -> int:
    """Return the number of a signal that was raised."""
    return getattr(signalled, "number", signal.SIGINT)


def stopped(number: int, arguments: Sequence[str] | None) -> str:
    """Say what ended the command with these words, and how to go on."""
    words = sys.argv[1:] if arguments is None else arguments
    kept = any(" ".join(words[:count]) in _RESUMED for count in (1, 2))
    return f"stopped by {NAMES[number]}{_KEPT if kept else ''}"


def rank() -> str:
    """Return the number of this process among those that torchrun has started; "0" if it is alone."""
    return os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"


def is_main() -> bool:
    """Whether this process prints: of those that torchrun started, only the first does."""
    return rank() == "0"


def line(message: str) -> str:
    """Put the name of the program before a message, and which process it is where torchrun has started several."""
    return f"vggfeat: {message}" if rank() == "0" else f"vggfeat, process {rank()}: {message}"


def listen(last_line: Callable[[int], str]) -> None:
    """From now on end the process for a signal, and within `breaking_off` raise KeyboardInterrupt or Terminated first.

    A signal that is ignored stays so: nohup and the background jobs of a shell rely on it.

    `last_line`: given the number of the first signal, returns what is printed when the process ends at once.
    """
    listener = _Listener(last_line)
    sys.unraisablehook = listener.again
    for number in NAMES:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, listener)


def stop_listening() -> None:
    """Ignore signals from now on, if they were listened to: nothing is left to be broken off."""
    for number in NAMES:
        if isinstance(signal.getsignal(number), _Listener):
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def breaking_off() -> Iterator[None]:
    """Within this, if signals are listened to, the first one raises: there is something to let go in order."""
    listeners = [listener for listener in map(signal.getsignal, NAMES) if isinstance(listener, _Listener)]
    if not listeners:
        yield
        return
    before, listeners[0].raises = listeners[0].raises, True
    try:
        yield
    finally:
        listeners[0].raises = before


@contextlib.contextmanager
def signals_as_flag() -> Iterator[Callable[[], bool]]:
    """Hand out a function that says whether SIGINT or SIGTERM has arrived; raise that signal again at the end.

    The same signal a second time takes effect at once. A signal that the process ignores, as a shell's background jobs
    do with SIGINT, stays ignored. Use it in the main thread only: no other can set handlers.

    What is handed out returns True once a signal has arrived.
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


class _Listener:
    def __init__(self, last_line: Callable[[int], str]) -> None:
        self.last_line = last_line
        self.heard: list[int] = []
        self.raises = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number in self.heard:
            self.end()
        self.heard.append(number)
        _leave_terminal()
        # Under torchrun a Ctrl-C brings SIGTERM as well: another signal is no second request.
        if len(self.heard) > 1:
            return
        if not self.raises or _loading(frame):
            self.end()
        if _taking_lock(frame) or _called_by_hdf5(frame):
            self.send_again()
            return
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    def end(self) -> None:
        stop_listening()  # else the next signal would say the line once more
        _end(self.heard[0], f"{self.last_line(self.heard[0])}\n")

    def again(self, lost: "sys.UnraisableHookArgs") -> None:
        """Send a signal again whose exception was raised in a callback of the garbage collector, which swallows it."""
        if not self.heard or not issubclass(lost.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(lost)
            return
        self.send_again()

    def send_again(self) -> None:
        """Send the first signal once more, in a moment."""
        # The classes of threading wait until it runs: too long a time in here.
        _thread.start_new_thread(self.repeat, (self.heard[0],))

    def repeat(self, number: int) -> None:
        time.sleep(_LATER)  # not at once: the exception would be raised where it must not be once more
        self.heard.clear()
        if hasattr(os, "killpg"):
            os.kill(os.getpid(), number)  # Whatever the main thread waits for is interrupted too.
        else:
            signal.raise_signal(number)  # On Windows, os.kill would end the process at once.


def _loading(frame: FrameType | None) -> bool:
    """Say whether a module is being loaded, by this frame or by one that called it."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
        frame = frame.f_back
    return frame is not None


def _taking_lock(frame: FrameType | None) -> bool:
    """Say whether a condition is being entered: its lock may be held by now, and would never be released."""
    return frame is not None and frame.f_code.co_name == "__enter__" and frame.f_globals["__name__"] == "threading"


def _called_by_hdf5(frame: FrameType | None) -> bool:
    """Say whether a method of a file object of ours is being run, through which HDF5 reads and writes.

    An exception that leaves one would unwind through HDF5, which goes on with it; what the method itself calls may be
    broken off, as the error is kept until HDF5 has done.
    """
    return frame is not None and _FILE_METHOD.fullmatch(frame.f_code.co_qualname) is not None


def _end(number: int, said: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, with_bytes(said).encode(errors="backslashreplace"))
    # They would end by themselves, but one that is just starting takes its time. Linux lists them by thread.
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as children:
                for child in children.read().split():
                    os.kill(int(child), signal.SIGTERM)
    os._exit(128 + number)


def _leave_terminal() -> None:
    """Print nowhere from now on if the terminal has gone: what is said on the way out would else raise an error."""
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(fd).st_mode) and not os.isatty(fd):
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
