"""What test workers do in place of decoding. A request's path is an order: verb/argument/number."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from vggfeat.errors import ImageError
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request
from vggfeat.images.pool import Decoder
from vggfeat.runtime.sandbox import Connection


def obey(request, settings):
    verb, argument, number = request.path.rsplit("/", 2)
    DEEDS[verb.split("/")[0]](argument, verb)
    region = np.full((1, 2, 3), int(number) % 256, np.uint8)
    return DecodedImage((region,) * len(request.boxes), (1, 2), bytes(32))


def only_once(signal_number, verb):
    """Die at the first call only; the rest of the verb is the folder of the mark."""
    mark = Path(verb.removeprefix("once")) / "mark"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), int(signal_number))


def half_an_answer(signal_number, verb):
    """Answer with 8 MB, and be stopped or killed half-way."""

    def send(self, message, *blocks):
        message = {**message, "shapes": [[1000, 1000, 8]]}
        Connection_send(self, message)
        self.end.sendall(bytes(4_000_000))
        os.kill(os.getpid(), int(signal_number))

    Connection_send = Connection.send  # noqa: N806
    Connection.send = send


def ignore_signals(number, verb):
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        os.kill(os.getpid(), getattr(signal, name))


def list_modules(argument, verb):
    raise ImageError("missing", " ".join(sorted(sys.modules)))


def list_environment(argument, verb):
    raise ImageError("missing", " ".join(sorted(os.environ)))


def tell_pid(argument, verb):
    raise ImageError("missing", str(os.getpid()))


def swell(megabytes, verb):
    try:
        bytearray(int(megabytes) << 20)
    except MemoryError:
        raise ImageError("out-of-memory", "too much") from None


def defect(argument, verb):
    raise ZeroDivisionError("a fault in the program")


DEEDS = {
    "show": lambda argument, verb: None,
    "sleep": lambda seconds, verb: time.sleep(float(seconds)),
    "signal": lambda number, verb: os.kill(os.getpid(), int(number)),
    "exit": lambda code, verb: os._exit(int(code)),
    "segfault": lambda argument, verb: ctypes.string_at(0),
    "spin": lambda argument, verb: ctypes.CDLL(None).sleep(1000),
    "once": only_once,
    "half": half_an_answer,
    "ignore": ignore_signals,
    "modules": list_modules,
    "environment": list_environment,
    "pid": tell_pid,
    "swell": swell,
    "defect": defect,
}


def orders(*paths):
    return [Request(f"{path}/{number}", (None,)) for number, path in enumerate(paths)]


def crew(workers=1, timeout=20.0, **settings):
    return Decoder(workers, DecodeSettings(timeout=timeout, **settings), decode=obey)


def pid_of(decoder):
    return int(str(next(decoder.stream(orders("pid/-")))))
