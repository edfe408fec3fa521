"""The folder of unfinished work itself: its lock, what it began with, and how it goes.

    LOCK            held while a run is alive, by all its processes
    inputs.jsonl    id and path of every row, as they were at the beginning
    manifest.json   key, shape, rows per shard, fingerprint of the data set; there means: begun
    s00000.h5 ...   finished shards (`vggfeat.store.shards`)
    retrying        there if what had failed is tried again, once it is known which shards that are
    *.tmp, *.bad    what a killed run was writing; shards that did not fit their checksum, or are made again

The manifest comes last and goes first: a folder without one has nothing worth keeping.
"""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vggfeat.errors import StoreError
from vggfeat.runtime.durable import Files, atomic_write, open_bounded
from vggfeat.runtime.locks import Lock, holder
from vggfeat.samples import DataSet

_OURS = re.compile(r"s\d+\.h5(\.bad)?|inputs\.jsonl|manifest\.json|retrying|[a-z0-9.]+\.tmp")
_LARGEST_MANIFEST = 1 << 20
_ROWS_AT_A_TIME = 4096


class PartsFolder:
    """OUT.parts/, which one run at a time may change.

    Parameters
    ----------
    out : Path
        The feature file that it belongs to.
    files : Files
        Carries out all that changes the disk.
    """

    def __init__(self, out: Path, files: Files) -> None:
        self.out, self.path = out, out.with_name(f"{out.name}.parts")
        self._files = files
        self._manifest = self.path / "manifest.json"
        self._lock: Lock | None = None

    def take(self) -> None:
        """Make the folder if it is missing, and lock it.

        Raises
        ------
        StoreError
            If another process has it, or its name is taken by something else.
        """
        while self._lock is None:
            with contextlib.suppress(FileExistsError):
                self._files.make_folder(self.path)
            # Either may be gone again if another run has just finished; then the folder is made anew.
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(self.path).st_mode):
                    raise StoreError(f"{self.path}: expected a folder for parts, found something else; move it away")
                self._lock = self._locked()

    def _locked(self) -> Lock:
        with self._alone():
            return Lock(self.path / "LOCK")

    def share(self) -> None:
        """Let other processes of this run join.

        Raises
        ------
        StoreError
            If another run has come first.
        """
        if self._lock is not None:
            with self._alone():
                self._lock.share()

    def join(self) -> None:
        """Lock the folder beside the process of this run that shares it.

        Raises
        ------
        StoreError
            If that process has gone, and another run has come.
        """
        with self._alone():
            self._lock = Lock(self.path / "LOCK", joining=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            who = holder(self.path / "LOCK")
            raise StoreError(
                f"{self.out}: expected to be its only writer, found {who} at it; wait for it, or stop it"
            ) from None

    def release(self) -> None:
        """Unlock it, if it is locked."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def manifest(self) -> Any:
        """Read what the run in this folder began with; None if none began.

        Raises
        ------
        StoreError
            If it is damaged, or no regular file.
        """
        try:
            with open_bounded(self._manifest) as file:
                raw = file.read(_LARGEST_MANIFEST + 1)
            if len(raw) > _LARGEST_MANIFEST:
                raise StoreError(f"{self._manifest}: expected at most 1 MiB, found more; delete {self.path}")
            return json.loads(raw)
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"{self._manifest}: expected the JSON that the run began with, found damage ({error}); "
                f"delete {self.path}"
            ) from None

    def check_space(self, needed: int) -> None:
        """Check before a long work that its disk has room for so many bytes.

        Raises
        ------
        StoreError
            If it has not.
        """
        free = self._files.free(self.path)
        if free < needed:
            raise StoreError(
                f"{self.out}: expected {_size(needed)} free on its disk, found {_size(free)}; make room (finished "
                "shards are kept) or choose another output"
            )

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return os.path.exists(self._manifest)

    @property
    def retrying(self) -> bool:
        """Whether `note_retry` was called."""
        return os.path.lexists(self.path / "retrying")

    def note_retry(self) -> None:
        """Note that all that failed before is pending now."""
        with atomic_write(self._files, self.path / "retrying") as sink:
            sink.write(b"\n")

    @property
    def inputs(self) -> Path:
        """The frozen list of ids and paths."""
        return self.path / "inputs.jsonl"

    def begin(self, dataset: DataSet, manifest: dict[str, Any]) -> None:
        """Throw away what was there, and write down what the run begins with.

        Raises
        ------
        StoreError
            If that would be too large to be read again.
        """
        raw = json.dumps(manifest, indent=1, sort_keys=True).encode()
        if len(raw) > _LARGEST_MANIFEST:
            raise StoreError(f"{self.out}: expected a key of less than 1 MiB as JSON, found more; shorten it")
        self._empty()
        with atomic_write(self._files, self.inputs) as sink:
            for start in range(0, len(dataset), _ROWS_AT_A_TIME):
                stop = start + _ROWS_AT_A_TIME
                pairs = zip(dataset.ids[start:stop], dataset.paths[start:stop], strict=True)
                sink.write("".join(f"{json.dumps(pair)}\n" for pair in pairs).encode())
                sink.raise_first_error()
        with atomic_write(self._files, self._manifest) as sink:
            sink.write(raw)
        self._files.sync_folder(self.path.parent)

    def sweep(self) -> None:
        """Remove what a killed run was writing."""
        for path in sorted(self.path.glob("*.tmp")):
            self._files.remove(path)

    def remove(self) -> None:
        """Remove everything of ours and the folder, and unlock it. What others put there stays."""
        self._empty()
        self._files.remove(self.path / "LOCK")
        self.release()
        try:
            self._files.remove_folder(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _empty(self) -> None:
        with os.scandir(self.path) as entries:
            files = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
        names = [name for name in sorted(files) if _OURS.fullmatch(name)]
        if self._manifest.name in names:
            names.remove(self._manifest.name)
            self._files.remove(self._manifest)
            self._files.sync_folder(self.path)
        for name in names:
            self._files.remove(self.path / name)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
