"""Checkpoints: one safetensors file each, complete or not there, the last two kept.

A file holds tensors by name, and in its metadata a JSON object about them and a SHA-256 over both.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vggfeat.errors import TrainingError
from vggfeat.runtime.durable import Files, atomic_write, disk_errors

KEPT = 2
"""Should the newest be damaged, there is one before it."""
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What a run resumes from."""

    path: Path
    about: dict[str, Any]
    tensors: dict[str, Tensor]
    """On the CPU."""


class Checkpoints:
    """The checkpoints in a folder. One process at a time may change it.

    Parameters
    ----------
    folder : Path
        Made with the first checkpoint.
    files : Files
        Carries out what changes the disk.
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
        metadata = {"about": text, "sha256": _digest(text, tensors)}
        with disk_errors(path, "writing a checkpoint", "make room, then go on with --resume"):
            if not self.folder.is_dir():
                self.files.make_folder(self.folder)
            with atomic_write(self.files, path) as file:
                file.write(_header(tensors, metadata))
                # One by one: in a single piece they would need their memory twice more.
                for name in sorted(tensors):
                    file.write(_bytes(tensors[name]))
            for old in self.paths()[:-KEPT]:
                self.files.remove(old)
        return path

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint that is undamaged, or None if there has never been one.

        Damaged ones get the ending ".bad", and are named in the sentences returned with it.

        Raises
        ------
        TrainingError
            If there are checkpoints and all are damaged.
        """
        self._sweep()
        notes: list[str] = []
        paths = self.paths()
        for path in reversed(paths):
            try:
                return read_checkpoint(path), notes
            except TrainingError as error:
                notes.append(f"{error}; it is now named {path.name}.bad, and the one before it is taken")
            with disk_errors(path, "renaming a damaged checkpoint", "rename or remove it by hand"):
                self.files.rename(path, path.with_name(f"{path.name}.bad"))
        if paths:
            raise TrainingError(
                f"{self.folder}: expected an undamaged checkpoint, found {len(paths)} damaged; "
                "begin again in another folder"
            )
        return None, notes

    def paths(self) -> list[Path]:
        """List the checkpoints, by step."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), key=_step)

    def _sweep(self) -> None:
        # A killed process leaves its unfinished file behind, of no use, and large.
        for path in self.folder.glob(".step-*.tmp"):
            with contextlib.suppress(OSError):
                self.files.remove(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and prove that every byte is what was written.

    Raises
    ------
    TrainingError
        If it can't be read or is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path}: expected a checkpoint, found a damaged file ({error})") from None
    text = metadata.get("about", "")
    if _digest(text, tensors) != metadata.get("sha256"):
        raise TrainingError(f"{path}: expected the SHA-256 that it was written with, found a damaged file")
    return Checkpoint(path, _parsed(path, text), tensors)


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise TrainingError(f"{path}: expected a checkpoint that says of what run it is, found {error}") from None


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return what precedes the tensors in a safetensors file: the length of a JSON object, and the object."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + tensors[name].nbytes
        entries[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])
