"""Other systems, imitated in this process: what the standard library lacks there is taken away.

    python tests/support/masked.py FOLDER

imports every module of the package as macOS would have it, then runs the main job in FOLDER as on Windows, and prints
what was seen as one JSON line. Libraries are loaded before, because they have ways of their own on each system.
"""

import asyncio  # noqa: F401  loaded before anything is taken away, as are those below
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest import mock

PACKAGE = Path(__file__).parents[2] / "vggfeat"
NET = "random:A:0:0.03125"
NEVER_HERE = frozenset('<>:"|?*\\')
WINDOWS_LACKS = {
    os: (
        "O_CLOEXEC O_NOFOLLOW O_NONBLOCK O_NOCTTY O_DIRECTORY O_SYNC O_DSYNC pread preadv pwrite pwritev fchmod fchown "
        "statvfs fstatvfs uname fork forkpty register_at_fork killpg getpgid setsid geteuid getuid sched_getaffinity "
        "posix_fallocate posix_fadvise mkfifo chown lchown sysconf getloadavg"
    ),
    signal: "SIGHUP SIGKILL SIGCHLD SIGALRM SIGUSR1 SIGUSR2 SIGPIPE SIGSTOP SIGCONT setitimer pthread_sigmask",
    socket: "AF_UNIX send_fds recv_fds",
}
MACOS_LACKS = {os: "sched_getaffinity posix_fallocate posix_fadvise"}
_open_file, _lock_file, _library = os.open, import_module("fcntl"), ctypes.CDLL
_statvfs = os.statvfs


def lacking(lacks):
    """Return a context in which names of modules are missing."""
    stack = contextlib.ExitStack()
    for module, names in lacks.items():
        for name in names.split():
            if hasattr(module, name):
                patch = mock.patch.object(module, name)
                patch.start()
                delattr(module, name)
                stack.callback(patch.stop)
    return stack


def _locking(fd, mode, count):
    """Lock as Windows does: one open file keeps out all others, those of this process too."""
    assert (mode, count) == (2, 1)
    try:
        _lock_file.flock(fd, _lock_file.LOCK_EX | _lock_file.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None


def _open(path, flags, mode=0o777, **more):
    if Path(sys._getframe(1).f_code.co_filename).is_relative_to(PACKAGE) and path != os.devnull:
        assert flags & os.O_BINARY, f"{path}: opened as text, in which line ends are changed"
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))
    return _open_file(path, flags & ~os.O_BINARY, mode, **more)


def _without_open_files(change):
    """Refuse what changes the name of a file that is open, or in use as memory, in this process."""

    def changed(*paths, **more):
        names = {os.path.realpath(path) for path in paths}
        ends = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
        used = {os.readlink(end) for end in ends if os.path.lexists(end)}
        used |= {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
        if names & used:
            raise PermissionError(13, "The process cannot access the file because it is being used", *map(str, names))
        return change(*paths, **more)

    return changed


def _named_library(name, *arguments, **more):
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    return _library(name, *arguments, **more)


@contextlib.contextmanager
def windows():
    """Be on Windows, as far as the standard library goes."""
    locks = ModuleType("msvcrt")
    locks.locking, locks.LK_NBLCK = _locking, 2
    with contextlib.ExitStack() as stack:
        stack.enter_context(lacking(WINDOWS_LACKS))
        absent = dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios"))
        stack.enter_context(mock.patch.dict(sys.modules, absent | {"msvcrt": locks}))
        stack.enter_context(mock.patch.object(signal, "SIGBREAK", 21, create=True))
        stack.enter_context(mock.patch.object(os, "O_BINARY", 1 << 30, create=True))
        stack.enter_context(mock.patch.object(os, "open", _open))
        stack.enter_context(mock.patch.object(ctypes, "CDLL", _named_library))
        stack.enter_context(mock.patch.object(shutil, "disk_usage", _disk_usage))
        for name in ("replace", "rename", "unlink", "remove", "rmdir"):
            stack.enter_context(mock.patch.object(os, name, _without_open_files(getattr(os, name))))
        yield


def _disk_usage(path):
    state = _statvfs(path)
    return shutil._ntuple_diskusage(state.f_blocks * state.f_frsize, 0, state.f_bavail * state.f_frsize)


@contextlib.contextmanager
def macos(synced):
    """Be on macOS, as far as the standard library goes; add files that are synced to the disk itself to a list."""
    import fcntl

    def control(fd, operation, argument=0):
        assert operation == 51
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))

    with lacking(MACOS_LACKS), mock.patch.object(sys, "platform", "darwin"):
        full = mock.patch.object(fcntl, "F_FULLFSYNC", 51, create=True)
        with full, mock.patch.object(fcntl, "fcntl", control):
            yield


def modules():
    """Return the names of all modules of the package, afresh: those that are loaded are forgotten."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "vggfeat"]:
        del sys.modules[name]
    files = sorted(PACKAGE.rglob("*.py"))
    names = (".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files)
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def use_macos(folder):
    """Import everything as on macOS; return the files that one durable write has synced, and the cores."""
    synced = []
    with macos(synced):
        for name in modules():
            import_module(name)
        durable, system = import_module("vggfeat.runtime.durable"), import_module("vggfeat.runtime.system")
        import_module("vggfeat.runtime.devices").keep_freed_memory()
        with durable.atomic_write(durable.DISK, folder / "written") as sink:
            sink.write(b"whole")
        names = [Path(name).name.partition(".tmp")[0].split(".")[1:2] or [Path(name).name] for name in synced]
        return {"synced": names, "cores": system.cores(), "guarded": system.HAS_GUARDED_PROCESSES}


def use_windows(folder):
    """Run the main job as on Windows; return the exit codes of its commands."""
    os.chdir(folder)
    codes = {}
    with windows():
        for name in modules():
            import_module(name)
        run = import_module("vggfeat.cli").run
        system = import_module("vggfeat.runtime.system")
        synthetic = import_module("vggfeat.synthetic")
        few = synthetic.Settings(image_side=48, classes=2, per_class=4)
        synthetic.write("folder", Path("photos"), size=few)
        for words in (
            f"extract --dataset folder --root photos --weights {NET} --scales 64 --workers 2 --out photos.h5",
            "inspect photos.h5",
            "export photos.h5 --to npz",
            "svm photos.h5 --fit-all",
            "report photos.svm --root photos --workers 2",
            f"predict photos --model photos.svm --weights {NET} --workers 2 --out photos.csv",
            f"weights export {NET} --to torchvision --out net.pth",
            "weights show net.pth",
            "train --root photos --net A --width 0.015625 --batch 4 --steps 2 --workers 1 --out net --device cpu",
        ):
            codes[words] = run([*words.split(), *_quiet(words)])
        lock = import_module("vggfeat.runtime.locks").Lock(folder / "LOCK")
        other = os.open(folder / "LOCK", os.O_RDWR | os.O_BINARY)
        with contextlib.suppress(BlockingIOError):
            system.lock(other)
            codes["a second lock"] = 0
        os.close(other)
        lock.remove()
    return codes


def _quiet(words):
    return ["--quiet"] if words.split()[0] in ("data", "extract", "svm", "report", "predict", "train") else []


def main(folder):
    """Do both, and print what was seen."""
    for name in ("torch", "sklearn.svm", "matplotlib.pyplot", "scipy.ndimage", "joblib", "pyarrow",
                 "h5py", "PIL.Image", "rich.progress", "jinja2", "safetensors.torch", "threadpoolctl"):  # fmt: skip
        import_module(name)
    slow = {name: mock.MagicMock() for name in ("torchvision", "torchvision.transforms")}  # Only a benchmark needs it.
    with mock.patch.dict(sys.modules, slow):
        seen = {"macos": use_macos(folder), "windows": use_windows(folder)}
    seen["names"] = [str(path) for path in folder.rglob("*") if NEVER_HERE & set(path.name) or path.name[-1] in " ."]
    seen["left"] = [str(path) for path in folder.rglob("*") if path.suffix in (".tmp", ".lock", ".parts")]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
