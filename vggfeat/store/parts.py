"""Unfinished feature files: OUT.parts/ keeps every finished shard, so that a killed run goes on where it was.

A shard counts once it has its name, and OUT takes its name once it was read back; only then the parts go. At every
point there is a folder to go on with, or a whole OUT whose left-over folder goes the next time.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import canonical_json, text_width
from vggfeat.runtime.durable import DISK, Files, atomic_write, disk_errors, read_bounded
from vggfeat.samples import DataSet
from vggfeat.store import identity, shards
from vggfeat.store import reader as store
from vggfeat.store import writer as storing
from vggfeat.store.failures import failures_of
from vggfeat.store.identity import FinishedRun, ReplaceableError, RunTicket, resolved
from vggfeat.store.partsfolder import PartsFolder
from vggfeat.store.shards import Block, Shape


class FeatureWriter:
    """The shards of one feature file, held by one run; a context manager that `FeatureWriter.open` makes.

    Of several processes the first opens them and consolidates, and all commit. The bytes of a shard don't depend on who
    made it, so that the file is the same whatever their number.
    """

    def __init__(
        self, out: Path, dataset: DataSet, shape: Shape, manifest: dict[str, Any], files: Files, *,
        overwrite: bool, retry: bool,
    ) -> None:  # fmt: skip
        self.out = out
        """The feature file."""
        self.shape = shape
        """What one row holds."""
        self.complete = False
        """Whether `out` is finished."""
        self.earlier: FinishedRun | None = None
        """What `out` holds, if a retry has begun that can take rows from it."""
        self.failures: dict[int, str] = {}
        """Row -> reason, of the rows that failed so far."""
        self.made: dict[int, tuple[str, ...]] = {}
        """Shard -> reasons of its rows, of those committed here; for `merge_ranks` in another process."""
        self.rows_by_others = 0
        """Rows of shards that `poll` has found and `merge_ranks` has not been told of."""
        self._dataset, self._manifest, self._files = dataset, manifest, files
        self._overwrite, self._retry = overwrite, retry
        self._folder = PartsFolder(out, files)
        self._token = hashlib.sha256(canonical_json(manifest, "key").encode()).hexdigest()
        self._step: int = manifest["shard_rows"]
        self._pending: dict[int, None] = {}
        self._done = len(dataset)

    @classmethod
    def open(
        cls,
        out: str | os.PathLike[str],
        dataset: DataSet,
        key: dict[str, Any],
        shape: Shape,
        *,
        shard_rows: int,
        overwrite: bool = False,
        retry: bool = False,
        begun: RunTicket | None = None,
        files: Files = DISK,
    ) -> "FeatureWriter":
        """Begin a feature file, or go on with one that was begun with exactly these arguments.

        If `out` is already complete with them, `complete` is True and nothing is pending.

        Parameters
        ----------
        out : path
            The feature file. Unfinished work stands in a folder of that name and ".parts".
        dataset : DataSet
            N samples, frozen from now on.
        key : dict
            All that decides the features, as JSON.
        shape : Shape
            What one row holds.
        shard_rows : int
            Rows that are finished together.
        overwrite : bool
            Replace, at the end and in one step, a feature file that is damaged or of another key, and throw away parts
            of another.
        retry : bool
            Take shards as pending in which a row has failed, of a finished file too, which is replaced in the end; see
            `vggfeat.store.retrying`. That they are tried again is noted in the folder, so that it happens once.
        begun : RunTicket, optional
            What `share` returned in another process of this run, which holds the parts open: take part in its work.
        files : Files
            Carries out all that changes the disk.

        Raises
        ------
        StoreError
            If something of another key stands there (every difference is named), or no feature file at all;
            another run is writing it; the data set has a name that can't be stored; the disk is too small or
            fails; or, with `begun`, the arguments are not those of that process.
        """
        target, dataset = resolved(Path(out)), storing.plain(dataset)
        if shard_rows < 1:
            raise StoreError(f"shard_rows: expected at least 1, found {shard_rows}")
        manifest = identity.describe(dataset, key, shape, shard_rows)
        parts = cls(target, dataset, shape, manifest, files, overwrite=overwrite, retry=retry)
        if begun is None:
            finished = parts._finished()  # Before anything is made, so that a refusal leaves nothing behind.
            if finished and not (overwrite or parts._again(finished) or os.path.lexists(parts.folder)):
                parts._take_over(finished)  # Nothing is written, so that the disk may refuse.
                return parts
        try:
            with parts._disk("opening"):
                if begun is not None:
                    parts._join(begun)
                else:
                    parts._folder.take()
                    parts._begin()
        except BaseException:
            parts.close()
            raise
        return parts

    def share(self) -> RunTicket:
        """Let other processes take part, and return what they must be told.

        Raises
        ------
        StoreError
            If another run came first, in the moment in which the lock changes.
        """
        with self._disk("opening"):
            self._folder.share()
        return RunTicket(self._manifest, self.pending, self._done, self.complete)

    def merge_ranks(self, made: Mapping[int, Sequence[str]]) -> None:
        """Count shards that another process of this run has committed, by what `made` says there.

        Raises
        ------
        StoreError
            If one is not pending.
        """
        for shard, reasons in made.items():
            self._check_pending(shard)
            self._count(shard, reasons)
        self.rows_by_others = 0

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock. What was committed stays."""
        self._folder.release()

    @property
    def folder(self) -> Path:
        """Where unfinished work stands."""
        return self._folder.path

    @property
    def pending(self) -> list[int]:
        """Shards still to be done, ascending."""
        return list(self._pending)

    @property
    def total_rows(self) -> int:
        """N."""
        return len(self._dataset)

    @property
    def done_rows(self) -> int:
        """Rows in finished shards, those that failed included."""
        return self._done + self.rows_by_others

    @property
    def failed_rows(self) -> int:
        """Rows in finished shards that failed."""
        return len(self.failures)

    def rows(self, shard: int) -> range:
        """Rows of a shard."""
        return range(shard * self._step, min((shard + 1) * self._step, self.total_rows))

    def poll(self, shards: Sequence[int]) -> None:
        """Count which of these shards, which other processes make, are on the disk by now, as `rows_by_others`."""
        if shards:
            with self._disk("looking for shards"):
                present = set(os.listdir(self.folder))
            self.rows_by_others = sum(len(self.rows(shard)) for shard in shards if self._path(shard).name in present)

    def append(self, shard: int, block: Block) -> None:
        """Keep the rows of a shard for good; it is on the disk when this returns.

        Raises
        ------
        StoreError
            If the shard is not pending, the block does not fit it or claims as done what is not finite, or the
            disk fails. Then the shard stays pending.
        """
        self._check_pending(shard)
        path = self._path(shard)
        block = shards.checked(block, len(self.rows(shard)), self.shape, str(path))
        raw = shards.encode(block, index=shard, token=self._token)
        with self._disk("writing a shard"), atomic_write(self._files, path) as sink:
            sink.write(raw)
        self._count(shard, block.reasons)
        self.made[shard] = block.reasons

    def note_retry(self) -> None:
        """Note that all that failed before is pending, so that what fails from now on is not tried once more."""
        with self._disk("noting the retry"):
            self._folder.note_retry()

    def features(self, row: int) -> NDArray[np.float32]:
        """Read a row of a finished shard, (S, R, C); NaN if it failed.

        Raises
        ------
        StoreError
            If the shard was damaged since.
        """
        shard = row // self._step
        return self._finished_block(shard).features[row - self.rows(shard).start]

    def finish(self, provenance: dict[str, Any], named: Callable[[], None] = lambda: None) -> Path:
        """Make the feature file of all shards, read it back, give it its name, and remove the parts.

        Parameters
        ----------
        provenance : dict
            What a reader may want to know beside the key, as JSON; no times.
        named : callable
            Called when the file has its name and the parts are still there.

        Raises
        ------
        StoreError
            If shards are pending or one was damaged since, the disk is too small or fails, or the file read back
            differs. The shards stay.
        """
        if self._pending:
            raise StoreError(f"{self.folder}: expected all shards done, found {len(self._pending)} pending")
        width = text_width(self.failures.values(), "reasons")
        temp = self.folder / "final.tmp"  # In the folder, so that the next run sweeps it.
        with self._disk("writing the feature file"):
            self._folder.check_space(storing.size_of(self._dataset, self.shape, width))
            with atomic_write(self._files, self.out, temp=temp, check=self._check_before_naming) as sink:
                storing.write(
                    sink,
                    self._dataset,
                    self.shape,
                    self._blocks(),
                    key=self._manifest["key"],
                    provenance=provenance,
                    reason_width=width,
                )
        named()
        self.complete = True
        with disk_errors(self.out, "removing its parts", f"the file itself is complete; delete {self.folder}"):
            self._folder.remove()
        return self.out

    def _path(self, shard: int) -> Path:
        return self.folder / f"s{shard:05d}.h5"

    def _disk(self, doing: str) -> contextlib.AbstractContextManager[None]:
        kept = f"finished shards are kept in {self.folder.name}; " if self._folder.begun else ""
        return disk_errors(self.out, doing, f"{kept}mend it and run the same again")

    def _finished(self, *, sound: bool = False) -> FinishedRun | None:
        try:
            return identity.matching(self.out, self._manifest, sound=sound, other_images=self._retry)
        except ReplaceableError:
            if not self._overwrite:
                raise
        return None

    def _again(self, finished: FinishedRun) -> bool:
        return self._retry and (finished.other_images or finished.report.failed > 0)

    def _check_before_naming(self, temp: Path) -> None:
        problems = store.validate(temp).problems
        if problems:
            raise StoreError(f"{temp}: expected to read what was written, found {problems[0]}; look at the disk")
        self._finished()  # Something may have taken the name during a run of hours.

    def _begin(self) -> None:
        found = self._folder.manifest()
        try:
            finished = self._finished(sound=self._overwrite or self._retry)
        except StoreError:
            if found is None:
                self._folder.remove()
            raise
        different = [] if found is None else identity.differences(found, self._manifest)
        trying = found is not None and not different and self._folder.retrying
        if finished and not (trying or self._again(finished)):
            # FeatureWriter of another run are some overwriting run's; those of this one have become the file.
            if all(line.startswith("shard_rows:") for line in different):
                self._folder.remove()
            self._take_over(finished)
            return
        if different and not self._overwrite:
            raise identity.other_run(self.folder, self._folder.inputs, different, self._dataset)
        if different or found is None:
            self._folder.begin(self._dataset, self._manifest)
        self._folder.sweep()
        self._look_at_shards(again=self._retry and not trying)
        self.earlier = None if trying else finished
        left = self.total_rows - self._done
        still = left * self.shape.row_bytes + len(self._pending) * 8192
        self._folder.check_space(storing.size_of(self._dataset, self.shape) + still)

    def _join(self, begun: RunTicket) -> None:
        different = identity.differences(self._manifest, begun.manifest)
        if different:
            raise identity.other_process(self.out, different)
        self._pending, self._done, self.complete = dict.fromkeys(begun.pending), begun.done, begun.complete
        if not self.complete:
            self._folder.join()

    def _take_over(self, finished: FinishedRun) -> None:
        self.complete = True
        if finished.report.failed:
            self.failures = failures_of(self.out)
        self.close()

    def _look_at_shards(self, *, again: bool) -> None:
        shard_count = -(-self.total_rows // self._step)
        self._pending, self._done = dict.fromkeys(range(shard_count)), 0
        present = set(os.listdir(self.folder))
        for shard in range(shard_count):
            path = self._path(shard)
            if path.name in present:
                with contextlib.suppress(StoreError):
                    reasons = self._load(shard).reasons
                    if not (again and any(reasons)):
                        self._count(shard, reasons)
                        continue
                self._files.rename(path, path.with_name(f"{path.name}.bad"))

    def _load(self, shard: int) -> Block:
        path, rows = self._path(shard), len(self.rows(shard))
        raw = read_bounded(path, 2 * rows * (self.shape.row_bytes + (1 << 16)) + (1 << 20))
        return shards.decode(raw, rows=rows, shape=self.shape, index=shard, token=self._token, where=str(path))

    def _blocks(self) -> Iterator[Block]:
        for shard in range(-(-self.total_rows // self._step)):
            yield self._finished_block(shard)

    def _finished_block(self, shard: int) -> Block:
        try:
            return self._load(shard)
        except StoreError as error:
            raise StoreError(f"{error}; run the same again and it is computed anew") from None

    def _check_pending(self, shard: int) -> None:
        if shard not in self._pending:
            raise StoreError(f"{self.folder}: expected one of the pending shards, found {shard}")

    def _count(self, shard: int, reasons: Sequence[str]) -> None:
        first = self.rows(shard).start
        self.failures |= {first + row: reason for row, reason in enumerate(reasons) if reason}
        self._done += len(reasons)
        del self._pending[shard]
