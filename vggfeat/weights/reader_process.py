"""Files of other libraries, read in a process of its own with limits of time and memory: both ends of it.

A pickle of 400 bytes can keep the unpickler busy for ever, in C, where no signal is heard; HDF5 and inflated arrays can
swell or crash. The reader process imports the readers once, waits, and forks for each file; the fork reads and dies.
Nothing comes back but JSON of limited length and the bytes of float32 numbers, and both are checked here.

PyTorch is imported late: meanwhile the reader process imports it too.
"""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vggfeat.errors import ResourceError, VggfeatError, WeightsError
from vggfeat.runtime.sandbox import Connection, limit_memory, lower_limit, silence_libraries, start_process
from vggfeat.runtime.system import HAS_GUARDED_PROCESSES, note_unguarded, resource
from vggfeat.weights.sniff import FORMATS

if TYPE_CHECKING:
    from torch import Tensor

    from vggfeat.weights.importing import ParsedNet, StateDict

LONGEST_ERROR = 2000
_START_LIMIT = 120.0
"""Seconds, for the imports of a machine that is busy."""
_LAST_MOMENT = 1.0


class Limits(NamedTuple):
    """What reading a file may take."""

    seconds: float
    """Seconds of processor time; three times that on the clock."""
    memory: int
    """Bytes, beyond those of the libraries."""

    @classmethod
    def of(cls, size: int) -> "Limits":
        """Return those of a file of so many bytes: three copies in float32 of what may be float16."""
        return cls(seconds=10 + size / 5e6, memory=(1 << 30) + 6 * size)


@contextmanager
def opened(kind: str, path: Path) -> Iterator["ParsedNet | StateDict"]:
    """Let the reader process read a file; its tensors come when they are asked for.

    Where the system has no processes with limits, this one reads it, and that is logged.

    Raises WeightsError if it is damaged or of another kind, or takes more than the limits. Raises ResourceError if
    the reader process can't be started.
    """
    try:
        limits = Limits.of(path.stat().st_size)
    except OSError as error:
        raise WeightsError(f"{path}: can't read: {error.strerror or error}") from error
    if not HAS_GUARDED_PROCESSES:
        note_unguarded("files of other libraries are read")
        with _damage(path, limits), opened_here(kind, path) as found:
            yield replace(found, read=partial(_tensor, found, path))
        return
    end = _READER.connect()
    remote = _Remote(path, Connection(end, 3 * limits.seconds), limits)
    try:
        with end:
            yield remote.open(kind)
    except VggfeatError:
        raise
    except BaseException:  # an interrupt, or what came back made no sense: who knows what it is doing
        _READER.kill()
        raise


def start() -> None:
    """Start the reader process without waiting for it, so that it gets ready while this one imports PyTorch."""
    if HAS_GUARDED_PROCESSES:
        _READER.start()


class _Remote:
    """A file that a fork of the reader process has open."""

    def __init__(self, path: Path, connection: Connection, limits: Limits) -> None:
        self._path, self._connection, self._limits = path, connection, limits
        self._shapes: dict[str, tuple[int, ...]] = {}

    def open(self, kind: str) -> "ParsedNet | StateDict":
        """Return what the file holds."""
        request = {"kind": kind, "path": str(self._path), "folder": _current_folder(), "limits": self._limits}
        return self._rebuild(self._ask(request))

    def _rebuild(self, head: dict[str, Any]) -> "ParsedNet | StateDict":
        from vggfeat.weights.importing import ParsedNet, StateDict, empty_model

        self._shapes = {str(name): tuple(map(int, shape)) for name, shape in head.pop("shapes").items()}
        if "net" not in head:
            return StateDict(shapes=self._shapes, read=self._read, notes=head["notes"])
        model = empty_model(self._path, head.pop("net"))
        lists = {name: tuple(head.pop(name)) for name in ("mean", "std", "classes")}
        return ParsedNet(model=model, shapes=self._shapes, read=self._read, **lists, **head)  # type: ignore[arg-type]

    def _read(self, name: str) -> "Tensor":
        import torch

        from vggfeat.weights.tensor_files import tensor_bytes

        self._ask({"name": name})
        tensor = torch.empty(self._shapes[name], dtype=torch.float32)
        self._attempt(lambda: self._connection.fill(tensor_bytes(tensor)))
        return tensor

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            self._connection.send(request)
            return self._connection.receive()

        answer = self._attempt(ask)
        if "error" in answer:
            raise WeightsError(str(answer["error"])[:LONGEST_ERROR])
        if "defect" in answer:
            raise RuntimeError(f"reading {self._path}: {answer['defect']}")
        return answer

    def _attempt(self, step: Any) -> Any:
        seconds, memory = self._limits
        try:
            return step()
        except TimeoutError:
            _READER.kill()
            found = f"one that takes more than {3 * seconds:.0f} s"
        except (EOFError, OSError):
            found = (
                f"one that ended the process which reads it, within {seconds:.0f} s and {memory >> 20} MiB of memory"
            )
        raise WeightsError(
            f"{self._path}: expected a file that can be read, found {found}; it is damaged, or made to do harm"
        )


class _ReaderProcess:
    """The process that waits for files. It and its forks end when this process does."""

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> socket.socket:
        """Start it, unless it runs; return the socket at which it waits."""
        with self._lock:
            if self._control is None or self._process is None or (self._is_ours() and self._process.poll() is not None):
                self._begin()
            assert self._control is not None
            return self._control

    def _is_ours(self) -> bool:
        # A process that was forked from the one that started it may use it, but can't wait for it and shall not end it.
        return self._owner == os.getpid()

    def _begin(self) -> None:
        try:
            self._process, near = start_process(__name__, "serve", more={}, own_group=True)
        except OSError as error:
            raise _no_start(str(error.strerror or error)) from None
        self._owner = os.getpid()
        if self._control is not None:
            self._control.close()
        self._control = near

    def connect(self) -> socket.socket:
        """Return a connection to a fork of it, which will read one file.

        Raises ResourceError if it can't start, or can't fork.
        """
        for _ in range(2):  # it may have ended a moment ago
            try:
                near, far = socket.socketpair()
            except OSError as error:
                raise _no_start(str(error.strerror or error)) from None
            try:
                with far, contextlib.suppress(OSError):
                    socket.send_fds(self.start(), [b"!"], [far.fileno()])
                answer = Connection(near, _START_LIMIT).receive()
            except BaseException as error:
                near.close()
                if not isinstance(error, OSError | EOFError):
                    raise
                self.kill()
                continue
            if "failed" in answer:
                near.close()
                raise _no_start(answer["failed"])
            return near
        code = self._process.returncode if self._process else None
        raise _no_start(f"that it ended with exit code {code}")

    def kill(self) -> None:
        """End it and all its forks at once; the next file starts another."""
        with self._lock:
            if self._process is not None and not self._is_ours():
                self._process = None
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                _wait_for_group(self._process.pid)

    def close(self) -> None:
        """Let it end."""
        if self._control is not None:
            self._control.close()
        self.kill()


def _wait_for_group(number: int) -> None:
    """Wait, for a moment, until the forks of a reader that was killed have ended too: they are no children of ours."""
    end = time.monotonic() + _LAST_MOMENT
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < end:
            os.killpg(number, 0)
            time.sleep(0.01)


def _no_start(found: str) -> ResourceError:
    return ResourceError(
        f"process that reads files of weights: expected {sys.executable or 'Python'} to start, found {found}; give it "
        "what it lacks (interpreter, processes, memory, open files), and try again"
    )


_READER = _ReaderProcess()
atexit.register(_READER.close)


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def opened_here(kind: str, path: Path) -> AbstractContextManager["ParsedNet | StateDict"]:
    """Read a file in this process, without limits: what the reader process does, and what tests of damage do."""
    module, _, function = FORMATS[kind].reader.partition(".")
    context: AbstractContextManager[Any] = getattr(import_module(f"vggfeat.weights.{module}"), function)(path)
    return context


def serve(descriptor: int) -> None:
    """Be the reader process, until the other end of the socket is closed."""
    # It writes no files; but libraries look for a place as they are imported, and on a full disk there is none.
    tempfile.tempdir = os.devnull
    import torch

    control = socket.socket(fileno=descriptor)
    for form in FORMATS.values():
        import_module(f"vggfeat.weights.{form.reader.partition('.')[0]}")
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are not waited for
    silence_libraries()
    while True:
        asked, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not asked:
            os.killpg(0, signal.SIGKILL)  # forks that are stuck too
        with socket.socket(fileno=descriptors[0]) as end:
            connection = Connection(end)
            try:
                fork = os.fork()
            except OSError as error:
                connection.send({"failed": str(error.strerror or error)})
                continue
            if fork == 0:
                control.close()
                with contextlib.suppress(BaseException):
                    _read_file(connection)
                os._exit(0)


def _read_file(connection: Connection) -> None:
    from vggfeat.weights.tensor_files import tensor_bytes

    connection.send({})
    request = connection.receive()
    path, limits = Path(request["path"]), Limits(*request["limits"])
    try:
        if request["folder"] is not None:
            os.chdir(request["folder"])
        lower_limit(resource.RLIMIT_FSIZE, 0)
        lower_limit(resource.RLIMIT_CPU, int(limits.seconds))
        limit_memory(limits.memory)
        with _damage(path, limits), opened_here(request["kind"], path) as found:
            connection.send(_described(found))
            while True:
                connection.send({}, tensor_bytes(_tensor(found, path, connection.receive()["name"])))
    except VggfeatError as error:
        connection.send({"error": str(error)[:LONGEST_ERROR]})
    except EOFError:
        return
    except Exception:
        connection.send({"defect": traceback.format_exc()[-LONGEST_ERROR:]})


@contextmanager
def _damage(path: Path, limits: Limits) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RecursionError) as error:
        what = (
            "too many levels" if isinstance(error, RecursionError) else f"more than {limits.memory >> 20} MiB of memory"
        )
        raise WeightsError(
            f"{path}: expected a file that can be read, found one that takes {what}; it is damaged"
        ) from None


def _tensor(found: "ParsedNet | StateDict", path: Path, name: str) -> "Tensor":
    tensor = found.read(name)
    if tuple(tensor.shape) != found.shapes[name]:
        raise WeightsError(f"{path}: {name}: expected shape {found.shapes[name]}, found {tensor.shape}")
    return tensor.detach().float().contiguous()


def _described(found: "ParsedNet | StateDict") -> dict[str, Any]:
    from vggfeat.weights.importing import StateDict

    if isinstance(found, StateDict):
        return {"shapes": dict(found.shapes), "notes": dict(found.notes)}
    names = {one.name for one in fields(found)} - {"model", "shapes", "read", "notes"}
    net = {name: getattr(found.model, name) for name in ("config", "num_classes", "width", "pool", "last")}
    about = {name: getattr(found, name) for name in names}
    return about | {"net": net, "shapes": dict(found.shapes), "notes": dict(found.notes)}
