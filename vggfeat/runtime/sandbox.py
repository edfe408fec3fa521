"""Child processes that read untrusted files: their limits, and the messages to and from them.

A message is a length, JSON text of that length, then raw bytes. Nothing is pickled: a file that takes over the process
which reads it must not reach further than that process.
"""

import json
import math
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from vggfeat.runtime.system import memory_in_use, resource

LONGEST_MESSAGE = 32 << 20
"""Bytes of JSON; a length beyond it makes no sense, and the other end counts as lost."""
_TICK = 0.5
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from {module} import {function} as run; run(int(sys.argv[2]))"
)
_PASSED = frozenset((
    "PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "LD_LIBRARY_PATH", "LD_PRELOAD",
    "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", "PYTHONUTF8",
    "PYTHONCOERCECLOCALE", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX",
    "PYTHONHASHSEED", "PYTHONMALLOC", "PYTHONFAULTHANDLER", "PYTHONWARNINGS", "__PYVENV_LAUNCHER__",
))  # fmt: skip
"""Of the environment; the rest, keys and tokens above all, is not the business of a process that may be taken over."""
# The arithmetic libraries would else reserve memory for a thread on each core.
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


class Connection:
    """Messages over a socket, within a time that is counted down.

    Time counts in ticks during which this process itself was running: a run that was suspended and goes on must not
    find that all its images are late.
    """

    def __init__(self, end: socket.socket, left: float = math.inf) -> None:
        self.end = end
        self.left = left
        """Seconds that may still pass in waiting."""

    def send(self, message: dict[str, Any], *blocks: memoryview) -> None:
        """Write a message and the raw bytes that belong to it."""
        text = json.dumps(message).encode()
        self.end.settimeout(None if self.left == math.inf else max(self.left, _TICK))
        self.end.sendall(struct.pack(">I", len(text)) + text)
        for block in blocks:
            self.end.sendall(block)

    def receive(self) -> dict[str, Any]:
        """Read a message. Raises EOFError if the other end is closed, TimeoutError if the time is over."""
        head = bytearray(4)
        self.fill(memoryview(head))
        length = struct.unpack(">I", head)[0]
        if length > LONGEST_MESSAGE:
            raise EOFError
        text = bytearray(length)
        self.fill(memoryview(text))
        return dict(json.loads(text))

    def fill(self, view: memoryview) -> None:
        """Read as many bytes as there is room for. Raises as `receive`."""
        while view:
            if self.left <= 0:
                raise TimeoutError
            view = view[self._some(view) :]

    def _some(self, view: memoryview) -> int:
        start = time.monotonic()
        self.end.settimeout(None if self.left == math.inf else min(_TICK, self.left))
        try:
            count = self.end.recv_into(view)
        except TimeoutError:
            return 0
        finally:
            self.left -= min(time.monotonic() - start, 2 * _TICK)
        if not count:
            raise EOFError
        return count


def start_process(
    module: str, function: str, *, more: Mapping[str, str], own_group: bool = False
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a process that runs a function of a module, which is given the number of its end of a socket.

    Parameters
    ----------
    module, function : str
    more : mapping
        Of the environment, besides what `environment` passes on.
    own_group : bool
        Whether it and its forks are a group of processes of their own, which can be ended as one.

    Returns
    -------
    (Popen, socket)
        The process, and this end.

    Raises
    ------
    OSError
        If the system gives no process or no socket, or there is no interpreter to start.
    """
    if not sys.executable:
        raise OSError("no path of the Python interpreter (sys.executable)")
    boot = _BOOT.format(module=module, function=function)
    near, far = socket.socketpair()
    try:
        with far:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", boot, json.dumps(sys.path), str(far.fileno())],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**environment(os.environ), **more},
                start_new_session=own_group,
            )
    except BaseException:
        near.close()
        raise
    return process, near


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return what such a process gets of an environment: paths, language, Python's own settings, and no more."""
    passed = {name: value for name, value in given.items() if name in _PASSED or name.startswith("LC_")}
    return passed | _ONE_THREAD


def lower_limit(kind: int, wanted: int) -> None:
    """Lower a limit of this process for good, unless it is lower already."""
    hard = resource.getrlimit(kind)[1]
    least = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (least, least))


def limit_memory(more: int) -> None:
    """Let this process take so many bytes more than it has (Linux only), and leave no image of itself if it dies."""
    lower_limit(resource.RLIMIT_CORE, 0)
    now = memory_in_use()
    if now is not None:
        lower_limit(resource.RLIMIT_AS, now + more)


def silence_libraries() -> None:
    """Close standard error, to which the C libraries below us write their complaints."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
