"""Recognition of a file by its content and never by its name; plain words for what people take for weights.

Only the first bytes, the last eight, and the directory of a zip archive are read.
"""

import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vggfeat.errors import WeightsError
from vggfeat.formats.archive import list_members
from vggfeat.runtime.system import NO_WAIT, OPENED
from vggfeat.wording import quoted


class Format(NamedTuple):
    """A file format that can be read."""

    words: str
    reader: str
    """Module of this folder and its function, which is called in `vggfeat.weights.reader_process`, but for our own."""


FORMATS = {
    "vggfeat": Format("safetensors of vggfeat", "tensor_files.load_own"),
    "timm": Format("safetensors of another library", "tensor_files.open_safetensors"),
    "pytorch": Format("PyTorch state dict", "tensor_files.open_pickled"),
    "keras": Format("Keras HDF5", "keras.open_keras"),
    "keras-archive": Format("Keras archive (.keras)", "keras.open_keras_archive"),
    "matconvnet": Format("MatConvNet .mat", "matconvnet.open_matconvnet"),
    "caffe": Format("Caffe .caffemodel", "caffe.open_caffe"),
}

_START = 4096
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LONGEST_HEADER = 100 << 20
"""Of safetensors, by their library."""
_MOST_HEADER = 8 << 20
"""Of a net: it has some thousand bytes, and its classes."""
_TABLE = struct.pack("<Q", 0xDB4775248B80FB57)
"""The last bytes of the index of a TensorFlow checkpoint."""
_SVM = b'{"__metadata__":{"vggfeat-svm":'
_CHECKPOINT = b'{"__metadata__": {"about": "{\\"run\\"'
"""How the header of what `vggfeat.training.checkpoints` writes begins."""
_NAME = "name a file of weights"
_OTHER_FORMAT = "take the net in one of the formats that can be read"
_NET = "save the net alone, for instance as PyTorch state dict or Keras HDF5"
_UNPACK = "unpack it and name the file in it"
_AGAIN = "the download failed: take the file again, for instance with vggfeat weights fetch"

_MISTAKEN = (
    (rb"version https://git-lfs\.github\.com/", "a pointer of Git LFS to the file, not the file", "run git lfs pull"),
    (rb"\x1f\x8b", "a gzip archive", _UNPACK),
    (rb"BZh", "a bzip2 archive", _UNPACK),
    (rb"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"Rar!", "a RAR archive", _UNPACK),
    (rb"(?s:.{257})ustar", "a tar archive", _UNPACK),
    (rb"\x93NUMPY", "a NumPy array", _OTHER_FORMAT),
    (rb"\x12\x01\x00{6}", "parameters of MXNet", "take the Caffe file that they were made from"),
    (rb"\x04\x00{3}\x01\x00{3}", "a file of Torch7 (.t7)", "take the Caffe file that it was made from"),
    (rb"GGUF", "a GGUF file", _OTHER_FORMAT),
    (rb"(?s:.{4})TFL3", "a model of TensorFlow Lite", _NET),
    (rb"\xff\xd8\xff", "a JPEG image", _NAME),
    (rb"\x89PNG", "a PNG image", _NAME),
    (rb"%PDF", "a PDF document", _NAME),
    (rb"(?i)[\xef\xbb\xbf \t\r\n]*<(!doctype html|html|head|body|\?xml|!--)", "a web page", _AGAIN),
)
"""What the first bytes match, what it is, what to do."""
_GRAPHS = (
    # Protobuf has no magic. ONNX begins with its version (field 1, a number from 2 up), then names its maker;
    # TensorFlow's graphs with a node, whose first field is its name; its SavedModel with version 1.
    (rb"\x08\x01", "a SavedModel of TensorFlow or a Core ML model", _NET),
    (rb"\x08[\x02-\x40][\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX model", "take the file that it was exported from"),
    (rb"\n[\x01-\x7f]\n|\n[\x80-\xff]{1,4}[\x00-\x7f]\n", "a graph of TensorFlow", _NET),
)
"""The same for what is no text."""


def recognise(path: Path) -> str:
    """Say which format a file is in.

    Returns a key of `FORMATS`. That the file can be loaded is not said yet.
    Raises WeightsError if it is none of them; the message says what it is, if that can be seen, and what to do.
    """
    start, end, size = _read_ends(path)
    if not size:
        raise _other(path, "an empty file", _AGAIN)
    if start[8:9] == b"{" and 2 <= (header := int.from_bytes(start[:8], "little")) < _LONGEST_HEADER:
        _refuse_ours(path, start)
        if header > _MOST_HEADER:
            found = f"safetensors with a header of {header} bytes, where that of a net has at most {_MOST_HEADER}"
            raise _other(path, found, _NAME)
        return "vggfeat" if _has_our_metadata(path, start) else "timm"
    if start.startswith(b"PK\x03\x04"):
        return _recognise_zip(path)
    if re.match(rb"\x80[\x02-\x05]", start):
        return "pytorch"
    if start.startswith(b"MATLAB "):
        return "matconvnet"
    if any(start[at : at + 8] == _HDF5 for at in (0, 512, 1024, 2048)):
        return "keras"
    _refuse(path, start, _MISTAKEN)
    if end == _TABLE:
        raise _other(path, "a TensorFlow checkpoint", _NET)
    _refuse_text(path, start)
    _refuse(path, start, _GRAPHS)
    if _starts_like_caffe(start):
        return "caffe"
    if re.search(r"\.data-\d{5}-of-\d{5}$", path.name):
        raise _other(path, "the data of a TensorFlow checkpoint", _NET)
    raise _other(path, f"none of these: it begins with {start[:8].hex(' ')}", _NAME)


def digests(path: Path, kinds: Iterable[str] = ("sha256", "sha1", "md5")) -> dict[str, str]:
    """Checksums of a file, as hex digits, in one pass.

    Raises WeightsError if it can't be read.
    """
    hashes = [hashlib.new(kind, usedforsecurity=False) for kind in kinds]
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                for each in hashes:
                    each.update(block)
    except OSError as error:
        raise WeightsError(f"{path}: can't read: {error.strerror or error}") from error
    return {each.name: each.hexdigest() for each in hashes}


def _read_ends(path: Path) -> tuple[bytes, bytes, int]:
    try:
        # Never wait for a writer of a named pipe.
        fd = os.open(path, os.O_RDONLY | NO_WAIT | OPENED)
        with open(fd, "rb") as file:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode):
                raise _other(path, "something that is no file", _NAME)
            start = file.read(_START)
            file.seek(max(0, state.st_size - 8))
            return start, file.read(8), state.st_size
    except IsADirectoryError:
        saved = (path / "saved_model.pb").exists()
        raise _other(path, "a SavedModel of TensorFlow" if saved else "a folder", "name the file of weights") from None
    except OSError as error:
        raise WeightsError(f"{path}: can't read: {error.strerror or error}") from error


def _other(path: Path, found: str, remedy: str) -> WeightsError:
    known = ", ".join(form.words for form in FORMATS.values())
    return WeightsError(f"{path}: expected weights ({known}), found {found}; {remedy}")


def _has_our_metadata(path: Path, start: bytes) -> bool:
    # The header may be long; safetensors puts the metadata first, and so do all who follow it.
    if b'"__metadata__"' in start:
        return b'"vggfeat"' in start
    with path.open("rb") as file:
        header = file.read(8 + int.from_bytes(start[:8], "little"))
    return b'"__metadata__"' in header and b'"vggfeat"' in header


def _refuse_ours(path: Path, start: bytes) -> None:
    if start[8:].startswith(_CHECKPOINT):
        run = path.parent.parent if path.parent.name == "checkpoints" else Path("RUN")
        net = f"name {run / 'weights.safetensors'}, which is there when all steps are done (--resume does the rest)"
        raise _other(path, "a checkpoint of a training run, which only that run can use", net)
    if start[8:].replace(b" ", b"").startswith(_SVM):
        raise _other(path, "trained SVMs", "give them to `vggfeat svm --apply`")


def _recognise_zip(path: Path) -> str:
    try:
        names = [member.filename for member in list_members(path)]
    except WeightsError:
        return "pytorch"  # its reader says what is wrong
    if any(re.search(r"(^|/)code/|(^|/)constants\.pkl$", name) for name in names):
        raise _other(path, "a TorchScript archive", "save the net's state_dict() with torch.save")
    if any(re.search(r"(^|/)data\.pkl$", name) for name in names):
        return "pytorch"
    if "model.weights.h5" in names:
        return "keras-archive"
    if names and all(name.endswith(".npy") for name in names):
        raise _other(path, "NumPy arrays (.npz)", "take the file that they were made from")
    raise _other(path, f"a zip archive of {', '.join(map(quoted, names[:3])) or 'nothing'}", _UNPACK)


def _refuse(path: Path, start: bytes, patterns: tuple[tuple[bytes, str, str], ...]) -> None:
    for pattern, found, remedy in patterns:
        if re.match(pattern, start):
            raise _other(path, found, remedy)


def _refuse_text(path: Path, start: bytes) -> None:
    if not re.fullmatch(rb"[\t\n\r\x20-\x7e\x80-\xff]*", start):
        return
    if re.search(rb"(^|\n)\s*(name|input|layers?)\s*[:{]", start):
        raise _other(path, "a prototxt, the drawing of a net without its weights", "name the .caffemodel")
    words = start[:40].decode("utf-8", "replace").split("\n")[0]
    raise _other(path, f"a text file that begins with {quoted(words)}", _NAME)


def _starts_like_caffe(start: bytes) -> bool:
    """Tell whether it may be Caffe's NetParameter: maybe a name, then the tag of inputs, sides or layers."""
    if start[:1] == b"\n" and len(start) > 2 and start[1] < 0x80:
        start = start[2 + start[1] :]
    return start.startswith((b"\x12", b"\x1a", b"\x20", b"\x22", b"\x28", b"\x42", b"\xa2\x06"))
