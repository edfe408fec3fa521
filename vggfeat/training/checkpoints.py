"""Checkpoints: one safetensors file each, complete or not there, the last two kept.

A file holds tensors by name, and in its metadata a JSON object about them and a SHA-256 over both.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vggfeat.errors import TrainingError
from vggfeat.runtime.durable import Files, atomic_write, disk_errors, is_temporary
from vggfeat.weights.tensor_files import hash_tensors, tensor_bytes

KEPT = 2
"""Should the newest be damaged, there is one before it."""
_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_ASIDE = re.compile(r"step-\d{8,}\.safetensors\.bad")
_LONGEST_HEADER, _MOST_SIDES = 1 << 26, 8
READ_ADVICE = "nothing was changed: make it readable, then give the same command again"


@dataclass(frozen=True)
class Checkpoint:
    """What a run resumes from."""

    path: Path
    about: dict[str, Any]
    tensors: dict[str, Tensor]
    """On the CPU."""


class Checkpoints:
    """The checkpoints in a folder. One process at a time may change it.

    `folder`: made with the first checkpoint. `files`: carries out what changes the disk.
    """

    def __init__(self, folder: Path, files: Files) -> None:
        self.folder, self.files = folder, files

    def save(self, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
        """Write a checkpoint durably, then remove all but the last two.

        Parameters
        ----------
        step : int
            Steps done; it is the name of the file.
        tensors : mapping of str to Tensor, float32
            On the CPU, contiguous.
        about : mapping
            Anything that JSON can hold.

        Raises
        ------
        StoreError
            If the disk refuses; the checkpoints before are untouched.
        """
        path = self.folder / f"step-{step:08d}.safetensors"
        text = json.dumps(about, sort_keys=True)
        metadata = {"about": text, "sha256": hash_tensors(text, tensors)}
        with disk_errors(path, "writing a checkpoint", "make room, then go on with --resume"):
            if not self.folder.is_dir():
                self.files.make_folder(self.folder)
                self.files.sync_folder(self.folder.parent)
            with atomic_write(self.files, path) as file:
                file.write(_header(tensors, metadata))
                # One by one: in a single piece they would need their memory twice more.
                for name in sorted(tensors):
                    file.write(tensor_bytes(tensors[name]))
            for old in self.paths()[:-KEPT]:
                self.files.remove(old)
        return path

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint that is undamaged, or None if there has never been one.

        Damaged ones get the ending ".bad" once an undamaged one is found, and are named in the sentences returned with
        it. A file that can't be read is not taken for a damaged one.

        Raises TrainingError if there are checkpoints and all are damaged. Raises StoreError if one can't be read, or
        the folder.
        """
        remove_unfinished(self.files, self.folder)
        damaged: dict[Path, TrainingError] = {}
        for path in reversed(self.paths()):
            try:
                found = read_checkpoint(path)
            except TrainingError as error:
                damaged[path] = error
                continue
            return found, [self._set_aside(*pair) for pair in damaged.items()]
        if damaged or (damaged_before := self._matching(_ASIDE)):
            names = ", ".join(path.name for path in damaged or damaged_before)
            raise TrainingError(
                f"{self.folder}: expected an undamaged checkpoint, found only damaged ones ({names}); put a copy of "
                "one there, or begin again in another folder"
            )
        return None, []

    def paths(self) -> list[Path]:
        """List the checkpoints, by step; StoreError if the folder can't be read."""
        return sorted(self._matching(_NAME), key=lambda path: int(path.stem.removeprefix("step-")))

    def _matching(self, names: re.Pattern[str]) -> list[Path]:
        with disk_errors(self.folder, "listing the checkpoints", READ_ADVICE):
            try:
                return [self.folder / name for name in sorted(os.listdir(self.folder)) if names.fullmatch(name)]
            except FileNotFoundError:
                return []

    def _set_aside(self, path: Path, damage: TrainingError) -> str:
        with disk_errors(path, "renaming a damaged checkpoint", "rename or remove it by hand"):
            self.files.rename(path, path.with_name(f"{path.name}.bad"))
        return f"{damage}; it is now named {path.name}.bad, and the one before it is taken"


def remove_unfinished(files: Files, folder: Path) -> None:
    """Remove what a killed process has left behind half written: of no use, and large."""
    for path in folder.glob(".*.tmp"):
        if is_temporary(path.name):
            with contextlib.suppress(OSError):
                files.remove(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and prove that every byte is what was written.

    Raises TrainingError if its bytes are damaged. Raises StoreError if they can't be read.
    """
    # Not through a memory map, as the library of the format reads: there a failing disk ends the process by SIGBUS.
    with disk_errors(path, "reading a checkpoint", READ_ADVICE), path.open("rb") as file:
        metadata, shapes = _read_header(path, file)
        tensors = {name: _read_tensor(path, file, shape) for name, shape in shapes.items()}
    text = metadata.get("about", "")
    if hash_tensors(text, tensors) != metadata.get("sha256"):
        raise TrainingError(f"{path}: expected the SHA-256 that it was written with, found a damaged file")
    return Checkpoint(path, _parsed(path, text), tensors)


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Return metadata and shapes, by name in the order of the bytes, of a file that is as long as they say."""
    length = int.from_bytes(file.read(8), "little")
    size = os.fstat(file.fileno()).st_size
    try:
        if length > min(size, _LONGEST_HEADER):
            raise ValueError(f"a header of {length} bytes")
        entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__")
        shapes = {name: entry["shape"] for name, entry in sorted(entries.items())}
        expected, end = _entries(shapes)
        if entries != expected or size != 8 + length + end or not all(isinstance(t, str) for t in metadata.values()):
            raise ValueError("a header that does not fit the file")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    return metadata, shapes


def _entries(shapes: Mapping[str, Sequence[int]]) -> tuple[dict[str, Any], int]:
    """Return what a header says of float32 tensors, sorted by name, and how many bytes they have together."""
    entries: dict[str, Any] = {}
    end = 0
    for name in sorted(shapes):
        if len(shapes[name]) > _MOST_SIDES or not all(type(side) is int and side >= 0 for side in shapes[name]):
            raise ValueError(f"a shape of {name!r:.100} that is none")
        start, end = end, end + 4 * math.prod(shapes[name])
        entries[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, end]}
    return entries, end


def _read_tensor(path: Path, file: BinaryIO, shape: Sequence[int]) -> Tensor:
    tensor = torch.empty(math.prod(shape))
    view = tensor_bytes(tensor)
    while view and (count := file.readinto(view)):  # type: ignore[attr-defined]
        view = view[count:]
    if view:
        raise _damaged(path, "it ends too early")
    return tensor.reshape(shape)


def _damaged(path: Path, reason: str) -> TrainingError:
    return TrainingError(f"{path}: expected a checkpoint, found a damaged file ({reason:.200})")


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise TrainingError(f"{path}: expected a checkpoint that says of what run it is, found {error}") from None


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return what precedes the tensors in a safetensors file: the length of a JSON object, and the object."""
    entries, _ = _entries({name: tensor.shape for name, tensor in tensors.items()})
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
