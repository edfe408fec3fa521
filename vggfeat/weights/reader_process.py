"""The far end of `vggfeat.weights.isolated`: the process that imports the readers once, and forks for each file."""

import contextlib
import os
import resource
import signal
import socket
import traceback
from contextlib import AbstractContextManager
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vggfeat.errors import VggfeatError, WeightsError
from vggfeat.runtime.lines import Line, limit_memory, lower_limit, silence_libraries
from vggfeat.weights.sniff import FORMATS

if TYPE_CHECKING:
    from torch import Tensor

    from vggfeat.weights.importing import ParsedNet, StateDict

LONGEST_ERROR = 2000


class Limits(NamedTuple):
    """What reading a file may take."""

    seconds: float
    """Of a processor; three times that on the clock."""
    memory: int
    """Bytes, beyond those of the libraries."""

    @classmethod
    def of(cls, size: int) -> "Limits":
        """Return those of a file of so many bytes: three copies in float32 of what may be float16."""
        return cls(seconds=10 + size / 5e6, memory=(1 << 30) + 6 * size)


def tensor_bytes(tensor: "Tensor") -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    return tensor.numpy().reshape(-1).view("u1").data


def opened_here(kind: str, path: Path) -> AbstractContextManager["ParsedNet | StateDict"]:
    """Read a file in this process, without limits: what the reader process does, and what tests of damage do."""
    module, _, function = FORMATS[kind].reader.partition(".")
    context: AbstractContextManager[Any] = getattr(import_module(f"vggfeat.weights.{module}"), function)(path)
    return context


def serve(descriptor: int) -> None:
    """Be the reader process, until the other end of the socket is closed."""
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
            line = Line(end)
            try:
                fork = os.fork()
            except OSError as error:
                line.send({"failed": str(error.strerror or error)})
                continue
            if fork == 0:
                control.close()
                with contextlib.suppress(BaseException):
                    _read_file(line)
                os._exit(0)


def _read_file(line: Line) -> None:
    line.send({})
    request = line.receive()
    path, limits = Path(request["path"]), Limits(*request["limits"])
    try:
        if request["folder"] is not None:
            os.chdir(request["folder"])
        lower_limit(resource.RLIMIT_FSIZE, 0)
        lower_limit(resource.RLIMIT_CPU, int(limits.seconds))
        limit_memory(limits.memory)
        with opened_here(request["kind"], path) as found:
            line.send(_described(found))
            while True:
                name = line.receive()["name"]
                tensor = found.read(name)
                if tuple(tensor.shape) != found.shapes[name]:
                    raise WeightsError(f"{path}: {name}: expected shape {found.shapes[name]}, found {tensor.shape}")
                line.send({}, tensor_bytes(tensor.detach().float().contiguous()))
    except VggfeatError as error:
        line.send({"error": str(error)[:LONGEST_ERROR]})
    except (MemoryError, RecursionError) as error:
        what = (
            "too many levels" if isinstance(error, RecursionError) else f"more than {limits.memory >> 20} MiB of memory"
        )
        line.send({"error": f"{path}: expected a file that can be read, found one that takes {what}; it is damaged"})
    except EOFError:
        return
    except Exception:
        line.send({"defect": traceback.format_exc()[-LONGEST_ERROR:]})


def _described(found: "ParsedNet | StateDict") -> dict[str, Any]:
    from vggfeat.weights.importing import StateDict

    if isinstance(found, StateDict):
        return {"shapes": dict(found.shapes), "notes": dict(found.notes)}
    names = {one.name for one in fields(found)} - {"model", "shapes", "read", "notes"}
    net = {name: getattr(found.model, name) for name in ("config", "num_classes", "width", "pool", "last")}
    about = {name: getattr(found, name) for name in names}
    return about | {"net": net, "shapes": dict(found.shapes), "notes": dict(found.notes)}
