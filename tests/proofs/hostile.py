"""Files made to do harm, for everything that loads files: refused by name, nothing executed, nothing else opened.

Each is loaded in a process of its own, with a limit on memory and time, which Python tells of every program started,
pickle opened, connection made and file opened elsewhere (`sys.addaudithook`); a payload that ran would leave a mark.
Last, an extraction and an SVM are run, which must make no connection.
"""

import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from image_files import draw
from reading import load_here
from vggfeat.cli import run as command
from vggfeat.errors import VggfeatError
from vggfeat.store.reader import FeatureFile

from .common import NET, Options, Report, load_all, load_late, scratch
from .mutants import write
from .readers import READERS, sample

LIMIT = 1 << 30
SECONDS = 20
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect",
             "socket.getaddrinfo", "shutil.rmtree", "os.remove", "os.rename", "ctypes.dlopen")  # fmt: skip


def run(options: Options) -> Report:
    report = Report()
    load_all()
    load_late()
    with scratch() as folder:
        for name, content in {**dict(pickles(folder / "mark")), **dict(bombs(20 if options.full else 1))}.items():
            for loader, place in LOADERS.items():
                if options.full or zlib.crc32(f"{name}{loader}".encode()) % 9 == 0 or loader == name.partition(":")[0]:
                    load(folder, name, loader, place, content, report)
        for name, make in HDF5.items():
            hdf5(folder, name, make, report)
        for name, text in xml_bombs().items():
            xml(folder, name, text, report)
        for name, reader, path, text in joined():
            joining(folder, name, reader, path, text, report)
        silent(folder, report)
    return report


# Payloads


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickles(mark: Path):
    """Pickles that leave a mark if they are opened, in every wrapping that is in use."""
    touch = Runs(os.system, f"touch {mark}")
    for protocol in (0, 2, 4, 5):
        yield f"pickle: protocol {protocol}", pickle.dumps({"a": touch}, protocol)
    yield "pickle: exec", pickle.dumps(Runs(exec, f"open({str(mark)!r}, 'w')"))
    yield "pickle: eval", pickle.dumps(Runs(eval, f"open({str(mark)!r}, 'w')"))
    yield "pickle: touch", pickle.dumps(Runs(Path.touch, mark))
    yield "pickle: getattr", pickle.dumps(Runs(getattr, Runs(__import__, "os"), "system"))
    for modern in (True, False):
        buffer = io.BytesIO()
        torch.save({"features.0.weight": touch}, buffer, _use_new_zipfile_serialization=modern)
        yield f"pickle: torch.save, {'zip' if modern else 'legacy'}", buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.array([touch], dtype=object), allow_pickle=True)
    yield "pickle: npy", buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, names=np.array([touch], dtype=object), targets=np.zeros(1), places=np.zeros((1, 3)))
    yield "pickle: npz", buffer.getvalue()


def bombs(blocks: int):
    """Small files that say they are large, or become so: of many blocks, more than memory allows."""
    zeros = bytes(1 << 26)
    for name in ("x/data.pkl", "names.npy"):
        buffer = io.BytesIO()
        zipped = zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with zipped as archive, archive.open(name, "w") as file:
            for _ in range(blocks):
                file.write(zeros)
        yield f"bomb: zip, {name}", buffer.getvalue()
    for name, size in (("2 TiB", 1 << 39), ("1 GiB", 1 << 28)):
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (size,)})
        archived = io.BytesIO()
        with zipfile.ZipFile(archived, "w") as archive:
            for member in ("names.npy", "targets.npy", "places.npy"):
                archive.writestr(member, buffer.getvalue())
        yield f"bomb: npz, {name}", archived.getvalue()
    head = json.dumps({"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
    yield "bomb: safetensors", struct.pack("<Q", len(head)) + head
    yield "bomb: safetensors header", struct.pack("<Q", 1 << 62) + b'{"a":1}'
    yield "bomb: nested", struct.pack("<Q", 1 << 20) + b'{"a":' + b"[" * (1 << 20)
    squeeze = zlib.compressobj(1)
    squeezed = b"".join([*(squeeze.compress(zeros) for _ in range(blocks)), squeeze.flush()])
    element = struct.pack("<II", 15, len(squeezed)) + squeezed
    yield "bomb: mat", b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + element
    yield "bomb: caffemodel", b"\xa2\x06" + b"\xff\xff\xff\xff\x0f" + b"\0" * 64
    yield "endless name", b"(" * 100_000


LOADERS: dict[str, tuple[str | None, str, Callable[[Path], object]]] = {
    "weights": (None, "net.pth", lambda place: load_here(place / "net.pth")),
    "features": (None, "x.h5", lambda place: FeatureFile(place / "x.h5").close()),
    "model": (None, "m.safetensors", READERS["model"].read),
    "checkpoint": (None, "step-00000003.safetensors", READERS["checkpoint"].read),
    "packed": ("packed", "train.npz", READERS["packed"].read),
    "kit": ("ilsvrc-kit", "ILSVRC2012_devkit_t12/data/meta.mat", READERS["ilsvrc-kit"].read),
    "manifest": (None, "list.csv", READERS["manifest"].read),
}
"""What is loaded -> the reader whose sound sample stands around the file, the name of the file, how to load it."""


def load(folder: Path, name: str, loader: str, how: tuple, content: bytes, report: Report) -> None:
    around, path, action = how
    tree = around_file(folder, around) | {path: content}
    refuse(folder, f"{name}, as {loader}", tree, action, report)


def around_file(folder: Path, reader: str | None, cache: dict = {}) -> dict[str, bytes]:  # noqa: B006  it is one
    if reader is None:
        return {}
    if reader not in cache:
        cache[reader] = sample(READERS[reader], folder / f"sound-{reader}")
    return cache[reader]


def refuse(folder: Path, what: str, tree: dict[str, bytes], action: Callable, report: Report) -> None:
    """Load in a child; it must be refused in one line that names the place, and do nothing else."""
    place, told = folder / "hostile", folder / "told"
    place.mkdir()
    write(place, tree)
    pid = os.fork()
    if pid == 0:
        try:
            attempt(place, action, told)
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found = told.read_text() if told.exists() else f"ended with {code}"
    told.unlink(missing_ok=True)
    report.count("loads")
    report.check(found == "refused", f"{what}: expected to be refused, found: {found}"[:400])
    report.check(not (folder / "mark").exists(), f"{what}: a payload was executed")
    (folder / "mark").unlink(missing_ok=True)
    for path in sorted(place.rglob("*"), reverse=True):
        (path.rmdir if path.is_dir() and not path.is_symlink() else path.unlink)()
    place.rmdir()


def attempt(place: Path, action: Callable, told: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    broken: list[str] = []
    watch(broken)
    try:
        action(place)
        found = "read"
    except VggfeatError as error:
        text = str(error)
        found = "refused" if str(place) in text and len(text.splitlines()) == 1 else f"refused without its name: {text}"
    except BaseException as error:
        found = f"{type(error).__name__}: {error}"
    told.write_text(f"{found}; {broken}" if broken else found)


def watch(broken: list[str]) -> None:
    def hook(event: str, arguments: tuple) -> None:
        if event in FORBIDDEN or (event == "pickle.find_class" and not harmless(arguments)):
            broken.append(f"{event}{arguments!r:.100}")

    sys.addaudithook(hook)


def harmless(found: tuple) -> bool:
    """What a state dict consists of."""
    return (found[0].split(".")[0], found[1]) in {("collections", "OrderedDict")} or found[0].startswith("torch")


# HDF5


def reference(kind: str) -> Callable[[h5py.Group, str, Path], None]:
    def put(group: h5py.Group, name: str, secret: Path) -> None:
        data = group[name]
        shape, dtype = data.shape, data.dtype
        del group[name]
        if kind == "external link":
            group[name] = h5py.ExternalLink(str(secret), "/x")
        elif kind == "external storage":
            group.create_dataset(name, shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(str(secret), "x", shape)
            group.create_virtual_dataset(name, layout)
        elif kind == "loop":
            group[name] = h5py.SoftLink(group.name)
        else:
            group.create_dataset(name, (1 << 40,), "f4", chunks=(1 << 20,))

    return put


HDF5 = {kind: reference(kind) for kind in ("external link", "external storage", "virtual", "loop", "declares 4 TiB")}


def hdf5(folder: Path, name: str, make: Callable, report: Report) -> None:
    """Put a reference into a feature file, and into a Keras file of weights."""
    secret = folder / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros(100_000, "f4")
    for kind, group, data, action in (
        ("features", "/", "features", lambda place: FeatureFile(place / "x.h5").close()),
        ("keras", "block1_conv1/block1_conv1", "kernel:0", lambda place: load_here(place / "x.h5")),
    ):
        content = around_file(folder, "features")["x.h5"] if kind == "features" else keras_file()
        buffer = io.BytesIO(content)
        with h5py.File(buffer, "r+") as file:
            make(file[group], data, secret)
        refuse(folder, f"HDF5, {name}, {kind}", {"x.h5": buffer.getvalue()}, action, report)


def keras_file() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
            for number in range(1, convolutions + 1):
                name = f"block{block}_conv{number}"
                file[f"{name}/{name}/kernel:0"] = np.zeros((3, 3, 3 if name == "block1_conv1" else 1, 1), "f4")
                file[f"{name}/{name}/bias:0"] = np.zeros(1, "f4")
    return buffer.getvalue()


# Text


def xml_bombs() -> dict[str, str]:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 9))
    return {
        "billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{laughs}]><annotation>&l8;</annotation>',
        "quadratic": f'<!DOCTYPE a [<!ENTITY l "{"x" * 50_000}">]><annotation>{"&l;" * 10_000}</annotation>',
        "external entity": '<!DOCTYPE a [<!ENTITY l SYSTEM "file:///etc/passwd">]><annotation>&l;</annotation>',
        "depth": "<annotation>" + "<a>" * 200_000,
        "size": "<annotation>" + " " * 2_000_000 + "</annotation>",
    }


def xml(folder: Path, name: str, text: str, report: Report) -> None:
    tree = around_file(folder, "voc-actions") | {"VOC2012/Annotations/2010_1.xml": text.encode()}
    refuse(folder, f"XML, {name}", tree, READERS["voc-actions"].read, report)


def joined():
    """Names that lead out of a folder, were they joined to it."""
    for evil in ("../../../../etc/passwd", "/etc/passwd"):
        yield f"id {evil}", "voc", "VOC2007/ImageSets/Main/train.txt", f"{evil}\n"
        yield f"path {evil}", "manifest", "list.csv", f"path\n{evil}\n"
        yield f"shard {evil}", "packed", "index.json", evil


def joining(folder: Path, name: str, reader: str, path: str, text: str, report: Report) -> None:
    tree = around_file(folder, reader)
    if reader == "packed":
        index = json.loads(tree[path])
        index["shards"]["train"][0] |= {"file": text, "bytes": os.stat("/etc/passwd").st_size}
        text = json.dumps(index)
    refuse(folder, name, tree | {path: text.encode()}, READERS[reader].read, report)


def silent(folder: Path, report: Report) -> None:
    """Extract and fit in a child that may connect to nothing."""
    for number in range(60):
        draw(folder / "in" / ("train" if number < 40 else "test") / "ab"[number % 2] / f"{number}.png", number)
    pid = os.fork()
    if pid == 0:
        broken: list[str] = []
        torch.set_num_threads(1)
        for fd in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        sys.addaudithook(
            lambda event, _: broken.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None
        )
        out = str(folder / "x.h5")
        words = ["extract", "--dataset", "folder", "--root", str(folder / "in"), "--weights", NET, "--scales", "224"]
        code = command([*words, "--device", "cpu", "--workers", "1", "--out", out, "--quiet"])
        code = code or command(["svm", "--features", out, "--out", str(folder / "svm")])
        os._exit(100 + code if code else len(broken))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    report.check(code == 0, f"extract and svm: expected no connection, found exit code {code}")
    report.figures["connections of extract and svm"] = code
