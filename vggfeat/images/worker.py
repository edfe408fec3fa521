"""A decoding process, and the messages to and from it: both ends. After an answer come the bytes of the regions."""

import errno
import importlib
import os
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np

from vggfeat.errors import ImageError, ResourceError, StoreError
from vggfeat.images.decode import DecodedImage, DecodeSettings, Request
from vggfeat.runtime.sandbox import Connection, limit_memory, silence_libraries, start_process
from vggfeat.runtime.system import end_with_parent
from vggfeat.samples import Box

Decode = Callable[[Request, DecodeSettings], DecodedImage]
_START_LIMIT = 60.0
# Else the C library gives the pixels' memory back after each image, and a third of the time goes into page faults.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(1 << 26), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
_REMEDIES = {
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close files of other programs",
    errno.EAGAIN: "raise the limit on processes (ulimit -u, or pids of the container)",
    errno.ENOMEM: "free memory",
}


class Worker:
    """The near end: a process that decodes one image at a time.

    It must be started by a thread that lives as long as the process is needed, because Linux ends it with that thread.

    `decode`: a function at the top of a module that can be imported, or `functools.partial` of one with named arguments
    that JSON can hold.
    Raises ResourceError if the system gives no process.
    """

    def __init__(self, decode: Decode, settings: DecodeSettings) -> None:
        function, named = (decode.func, decode.keywords) if isinstance(decode, partial) else (decode, {})
        try:
            self._process, near = start_process(__name__, "work", more=_MALLOC)
        except OSError as error:
            raise not_started(error) from None
        self.timeout = settings.timeout
        self._connection = Connection(near)
        self._setup = {
            "decode": [function.__module__, function.__name__, named],
            "settings": asdict(settings),
            "parent": os.getpid(),
        }

    def wait_until_ready(self) -> None:
        """Wait until the process is ready.

        Raises ResourceError if it ends before, or is not ready within a minute.
        """
        self._connection.left = _START_LIMIT
        try:
            self._connection.send(self._setup)
            found = self._connection.receive().get("failed", "")
        except TimeoutError:
            self.end()
            found = f"none within {_START_LIMIT:g} s"
        except (EOFError, OSError, ValueError):
            found = f"that it ended with {self.end()}"
        if found:
            raise not_started(found)

    def alive(self) -> bool:
        """Say whether the process has not ended."""
        return self._process.poll() is None

    def decode(self, request: Request) -> DecodedImage:
        """Hand a request over and wait for the pixels.

        Raises ImageError as the worker's function raised it. Raises TimeoutError if the time of the settings is over.
        Raises EOFError and OSError if the process ended. Raises ResourceError if the system refused the worker
        something that is no fault of the image. Raises StoreError if the worker can't read a file of packed images.
        Raises RuntimeError if the worker's function failed in another such way.
        """
        self._connection.left = self.timeout
        boxes = [None if box is None else [float(edge) for edge in box] for box in request.boxes]
        blocks = () if request.data is None else (memoryview(request.data),)
        asked = request._asdict() | {"boxes": boxes, "data": None if request.data is None else len(request.data)}
        self._connection.send(asked, *blocks)
        answer = self._connection.receive()
        if "reason" in answer:
            raise ImageError(answer["reason"], answer["message"])
        if "refused" in answer:
            raise (StoreError if answer["shard"] else ResourceError)(answer["refused"])
        if "defect" in answer:
            raise RuntimeError(f"decoding {request.name}: {answer['defect']}")
        regions = tuple(np.empty(shape, np.uint8) for shape in answer["shapes"])
        for region in regions:
            self._connection.fill(region.data.cast("B"))
        height, width = answer["size"]
        return DecodedImage(regions, (height, width), bytes.fromhex(answer["sha256"]), answer["orientation"])

    def kill(self) -> None:
        """End the process without waiting; any thread may call it."""
        self._process.kill()

    def end(self) -> str:
        """End the process, wait for that, and say how it ended; for the thread that uses it."""
        self._process.kill()
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel, on a dead network drive for instance: nothing more can be done about it.
            return "no exit code"
        finally:
            self._connection.end.close()
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def not_started(cause: OSError | str) -> ResourceError:
    """Make the error for a worker that did not come to work, which is no fault of the image that waits for it."""
    found, remedy = cause, "fix that"
    if isinstance(cause, OSError):
        found = f"{type(cause).__name__}: {cause.strerror or cause}" if cause.errno else f"{cause}"
        remedy = _REMEDIES.get(cause.errno or 0, remedy)
    expected = "decoding process: expected the system to start it"
    return ResourceError(f"{expected}, found {found}; {remedy}, or decode with fewer workers (--workers), or with 0")


def work(descriptor: int) -> None:
    """Run the far end, the body of a worker process, until the connection is closed.

    `descriptor`: of the socket that is the connection.
    """
    connection = Connection(socket.socket(fileno=descriptor))
    try:
        setup = connection.receive()
        settings = DecodeSettings(**setup["settings"])
        _settle(setup["parent"])
        module, name, named = setup["decode"]
        decode: Decode = partial(getattr(importlib.import_module(module), name), **named)
        limit_memory(settings.memory)
        silence_libraries()
    except Exception as error:
        connection.send({"failed": f"{type(error).__name__}: {error}"})
        return
    try:
        connection.send({})
        while True:
            _serve(connection, decode, settings)
    except (EOFError, OSError):
        return


def _serve(connection: Connection, decode: Decode, settings: DecodeSettings) -> None:
    asked = connection.receive()
    boxes = tuple(None if box is None else Box(*box) for box in asked.pop("boxes"))
    length = asked.pop("data")
    data = None if length is None else bytearray(length)
    if data is not None:
        connection.fill(memoryview(data))
    request = Request(boxes=boxes, data=None if data is None else bytes(data), **asked)
    try:
        image = decode(request, settings)
        regions = [np.ascontiguousarray(region, dtype=np.uint8) for region in image.regions]
    except ImageError as error:
        connection.send({"reason": error.reason, "message": str(error)})
    except (ResourceError, StoreError) as error:
        connection.send({"refused": str(error), "shard": isinstance(error, StoreError)})
    except Exception:
        connection.send({"defect": traceback.format_exc()})
    else:
        head = {
            "shapes": [region.shape for region in regions],
            "size": image.size,
            "sha256": image.sha256.hex(),
            "orientation": image.orientation,
        }
        connection.send(head, *(region.data.cast("B") for region in regions))


def _settle(parent: int) -> None:
    # Ctrl-C and a shutdown reach the whole group; it is for the parent to finish its work and to end this one.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    if os.getppid() != parent:
        raise ProcessLookupError("the parent process ended")
