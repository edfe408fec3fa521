"""The folder of a run: who may write there, what stands there, and whether it can be gone on with."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vggfeat.errors import TrainingError
from vggfeat.runtime.durable import Files, atomic_write, disk_errors
from vggfeat.runtime.locks import Lock, holder
from vggfeat.training.checkpoints import Checkpoint, Checkpoints

ADVICE = "make room or choose another folder"


class RunFolder:
    """A folder that one run writes to: run.json, log.jsonl, checkpoints/, curves.png, weights.safetensors.

    Parameters
    ----------
    path : Path
    files : Files
        Carries out what changes the disk.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self.path, self.files = path, files
        self.checkpoints = Checkpoints(path / "checkpoints", files)
        self._lock: Lock | None = None

    def begin(self, identity: Mapping[str, Any], resume: bool) -> tuple[Checkpoint | None, list[str]]:
        """Take the folder, and find what to go on from.

        Parameters
        ----------
        identity : mapping
            What must be equal for a run to be gone on with, ready for JSON.
        resume : bool
            Whether a run that stands there is wanted; without one, it begins.

        Returns
        -------
        checkpoint : Checkpoint or None
        notes : list of str
            Sentences about damaged checkpoints.

        Raises
        ------
        TrainingError
            If another process is training there, anything stands there without `resume`, or a run of other settings.
        StoreError
            If the disk refuses.
        """
        with disk_errors(self.path, "making the folder", ADVICE):
            self.path.mkdir(parents=True, exist_ok=True)
        self._take()
        standing = {entry.name for entry in self.path.iterdir()} - {"LOCK"}
        if standing and not resume:
            raise TrainingError(
                f"{self.path}: expected an empty folder, found {min(standing)}; --resume goes on with a run, "
                "another folder begins one"
            )
        if standing and not standing & {"run.json", "run.json.tmp", "checkpoints"}:
            raise TrainingError(f"{self.path}: expected a run to go on with, found other files; give another folder")
        self._sweep()
        self._compare(self.path / "run.json", _read_json(self.path / "run.json"), identity)
        found, notes = self.checkpoints.newest()
        if found is not None:
            self._compare(found.path, found.about.get("run"), identity)
        self.write("run.json", json.dumps(identity, indent=2).encode())
        return found, notes

    def write(self, name: str, content: bytes) -> None:
        """Write a file durably, in the place of any of that name."""
        with disk_errors(self.path / name, "writing", ADVICE), atomic_write(self.files, self.path / name) as file:
            file.write(content)

    def add_unreadable(self, found: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Add (path, reason) of images to those that unreadable.jsonl has, and return all."""
        path = self.path / "unreadable.jsonl"
        known = dict(_read_pairs(path))
        both = {**known, **dict(found)}
        if both != known:
            lines = [json.dumps({"path": name, "reason": reason}) for name, reason in sorted(both.items())]
            self.write(path.name, "".join(f"{line}\n" for line in lines).encode())
        return tuple(sorted(both.items()))

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self.files.remove(self.path / "LOCK")
            self._lock.release()
            self._lock = None

    def _take(self) -> None:
        try:
            with disk_errors(self.path, "locking", ADVICE):
                self._lock = Lock(self.path / "LOCK")
        except Exception as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise TrainingError(
                f"{self.path}: expected no other process to train there, found {holder(self.path / 'LOCK')}; "
                "wait for it, stop it, or give another folder"
            ) from None

    def _sweep(self) -> None:
        # A killed process leaves unfinished files behind, and `replacing` takes no name that exists.
        for path in [*self.path.glob("*.tmp"), *self.path.glob(".*.tmp")]:
            with contextlib.suppress(OSError):
                self.files.remove(path)

    def _compare(self, where: Path, found: Any, expected: Mapping[str, Any]) -> None:
        if found is None:
            return
        told, wanted = dict(_flat(found)), dict(_flat(json.loads(json.dumps(expected))))
        for name in [*wanted, *told]:
            if told.get(name) != wanted.get(name):
                raise TrainingError(
                    f"{where}: {name}: expected {wanted.get(name, 'nothing')}, found {told.get(name, 'nothing')}; "
                    "give the settings and the images of that run, or another folder"
                )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _flat(value[key], f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _read_json(path: Path) -> Any:
    # A damaged run.json is no harm: every checkpoint holds the same.
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    if not path.exists():
        return
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            yield str(found["path"]), str(found["reason"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(
            f"{path}: expected a path and a reason in each line, found {type(error).__name__}: {error}; remove the "
            "file, what can't be read is found again"
        ) from None
