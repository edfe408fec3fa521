"""Writing a feature file: OUT.parts/ keeps every finished shard, so that a killed run is resumed where it was.

A shard counts once it has its name, and OUT takes its name once it was read back; only then the parts are removed. At
every moment there is a folder to resume, or a complete OUT whose left-over folder is removed the next time.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import text_width
from vggfeat.runtime.durable import DISK, Files, atomic_write, disk_errors
from vggfeat.runtime.output_paths import check_target
from vggfeat.samples import DataSet
from vggfeat.store import identity
from vggfeat.store.failures import failures_of, failures_path, is_failures_list, write_failures
from vggfeat.store.identity import FinishedRun, ReplaceableError, RunTicket
from vggfeat.store.kept import Kept
from vggfeat.store.layout import Block, Shape, file_bytes, storable, write_feature_file
from vggfeat.store.parts import PartsFolder
from vggfeat.store.reader import FeatureFile, validate


class FeatureWriter(contextlib.AbstractContextManager["FeatureWriter"]):
    """The shards of one feature file, held by one run; a context manager that `FeatureWriter.open` makes.

    Of several processes the first opens them and makes the file, and all append. The bytes of a shard don't depend on
    who made it, so that the file is the same whatever their number.
    """

    def __init__(
        self, out: Path, dataset: DataSet, shape: Shape, manifest: dict[str, Any], files: Files, *,
        overwrite: bool, retry_failed: bool, extend: bool,
    ) -> None:  # fmt: skip
        self.out = out
        """The feature file."""
        self.shape = shape
        """What one row holds."""
        self.total_rows = len(dataset)
        """N."""
        self.complete = False
        """Whether `out` is finished."""
        self.kept: Kept | None = None
        """The finished file that is replaced, if the run may keep rows of it: see `append_kept`."""
        self.failures: dict[int, str] = {}
        """Row -> reason, of the rows that failed so far."""
        self.made: dict[int, tuple[str, ...]] = {}
        """Shard -> reasons of its rows, of those appended here; for `merge_ranks` in another process."""
        self.rows_by_others = 0
        """Rows of shards that `poll` has found and `merge_ranks` does not know yet."""
        self._dataset, self._manifest, self._files = dataset, manifest, files
        self._overwrite, self._retry_failed, self._extend = overwrite, retry_failed, extend
        self._parts = PartsFolder(out, manifest, shape, files)
        self._read_through = False  # whether `open` has compared a complete file with its checksums
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
        retry_failed: bool = False,
        extend: bool = False,
        ticket: RunTicket | None = None,
        files: Files = DISK,
    ) -> "FeatureWriter":
        """Begin a feature file, or resume one that was begun with exactly these arguments.

        If `out` is already complete with them, `complete` is True and nothing is pending.

        Parameters
        ----------
        out : path
            The feature file. Unfinished work is in a folder of that name and ".parts".
        dataset : DataSet
            N samples, frozen from now on.
        key : dict
            All that decides the features, as JSON.
        shape : Shape
            What one row holds.
        shard_rows : int
            Rows that are finished together.
        overwrite : bool
            Replace, at the end and in one step, a feature file that is damaged or of another key, and remove parts
            of another.
        retry_failed, extend : bool
            Take shards as pending in which a row has failed, or in which rows are new, of a finished file too, which is
            replaced in the end: see `kept`, and `note_retry`, by which the one happens once.
        ticket : RunTicket, optional
            What `share` returned in another process of this run, which has opened the file: take part in its work.
        files : Files
            Carries out all that changes the disk.

        Raises
        ------
        StoreError
            If there is something of another key (every difference is named), or no feature file at all; another run
            is writing it; the data set has a name that can't be stored; the disk is too small or fails; or, with
            `ticket`, the arguments are not those of that process.
        """
        target, dataset = identity.resolved(Path(out)), storable(dataset)
        check_target(failures_path(target), ours=is_failures_list, called="a list of failures")
        if shard_rows < 1:
            raise StoreError(f"shard_rows: expected at least 1, found {shard_rows}")
        manifest = identity.describe(dataset, key, shape, shard_rows)
        writer = cls(
            target, dataset, shape, manifest, files, overwrite=overwrite, retry_failed=retry_failed, extend=extend
        )
        if ticket is None:
            finished = writer._finished()  # Before anything is made, so that a refusal leaves nothing behind.
            if finished and not (overwrite or writer._to_renew(finished) or os.path.lexists(writer.folder)):
                writer._take_over(finished)  # Nothing is written, so that the disk may refuse.
                return writer
        try:
            with writer._disk_errors("opening"):
                if ticket is not None:
                    writer._join(ticket)
                else:
                    writer._parts.take()
                    writer._begin()
        except BaseException:
            writer.close()
            raise
        return writer

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. What was appended stays."""
        if self.kept is not None:
            self.kept.close()
        self._parts.release()

    @property
    def folder(self) -> Path:
        """Folder of the unfinished work."""
        return self._parts.path

    @property
    def pending(self) -> list[int]:
        """Shards still to be done, ascending."""
        return list(self._pending)

    @property
    def done_rows(self) -> int:
        """Rows in finished shards, those that failed included."""
        return self._done + self.rows_by_others

    def rows(self, shard: int) -> range:
        """Rows of a shard."""
        return self._parts.rows(shard)

    def append(self, shard: int, block: Block) -> None:
        """Keep a shard for good, given all its rows or those that were `left`; it is on the disk when this returns.

        StoreError if the shard is not pending, the block does not fit it or claims as done what is not finite, or the
        disk fails. Then the shard stays pending.
        """
        self._check_pending(shard)
        whole = block if self.kept is None else self.kept.joined(self.rows(shard), block)
        with self._disk_errors("writing a shard"):
            reasons = self._parts.write(shard, whole).reasons
        self._count(shard, reasons)
        self.made[shard] = reasons

    def features(self, row: int) -> NDArray[np.float32]:
        """Read a row of a finished shard, (S, R, C); NaN if it failed. StoreError if the shard was damaged since."""
        shard = row // len(self.rows(0))
        return self._parts.read_finished(shard).features[row - self.rows(shard).start]

    def share(self) -> RunTicket:
        """Let other processes take part, and return what they must know; StoreError if another run came first."""
        with self._disk_errors("opening"):
            self._parts.share()
        kept = [] if self.kept is None else self.kept.rows.tolist()
        return RunTicket(self._manifest, self.pending, self._done, self.complete, kept)

    def poll(self, shards: Sequence[int]) -> None:
        """Count which of these shards, which other processes make, are on the disk by now, as `rows_by_others`."""
        if shards:
            with self._disk_errors("looking for shards"):
                self.rows_by_others = sum(len(self.rows(shard)) for shard in self._parts.present().intersection(shards))

    def merge_ranks(self, made: Mapping[int, Sequence[str]]) -> None:
        """Count shards that another process of this run has appended, its `made`; StoreError if one is not pending."""
        for shard, reasons in made.items():
            self._check_pending(shard)
            self._count(shard, reasons)
        self.rows_by_others = 0

    def append_kept(self) -> None:
        """Append the pending shards of which `kept` has all rows; StoreError as `append`."""
        for shard in self.pending:
            if self.kept is not None and not self.left(shard):
                self.append(shard, self.kept.joined(self.rows(shard)))

    def left(self, shard: int) -> list[int]:
        """Rows of a pending shard that are to be computed."""
        return list(self.rows(shard)) if self.kept is None else self.kept.left(self.rows(shard))

    def note_retry(self) -> None:
        """Note that all that failed before is pending, so that what fails from now on is not tried once more."""
        with self._disk_errors("noting the retry"):
            self._parts.note_retry()

    def finish(self, provenance: dict[str, Any]) -> Path:
        """Make the feature file of all shards, read it back, give it its name, and remove the parts.

        The list of failures next to it goes with it. A new file has its list before its name, so that a run that is
        killed in between is given again; a file that is replaced keeps its own list until then. `provenance` is what a
        reader may want to know besides the key, as JSON; no times.

        StoreError if shards are pending or one was damaged since, the disk is too small or fails, or the file read back
        differs. The shards stay.
        """
        if self._pending:
            raise StoreError(f"{self.folder}: expected all shards done, found {len(self._pending)} pending")
        if self.kept is not None:
            self.kept.close()
        width = text_width(self.failures.values(), "reasons")
        failures_temp = self.folder / "failures.tmp"  # In the folder, so that the next run sweeps it.
        if not self.out.exists():
            self._write_failures(failures_temp)
        final_temp = self.folder / "final.tmp"
        with self._disk_errors("writing the feature file"):
            self._parts.check_space(file_bytes(self._dataset, self.shape, width))
            with atomic_write(self._files, self.out, temp=final_temp) as sink:
                write_feature_file(
                    sink,
                    self._dataset,
                    self.shape,
                    map(self._parts.read_finished, self._parts.shards),
                    key=self._manifest["key"],
                    provenance=provenance,
                    reason_width=width,
                )
                sink.raise_first_error()
                problems = validate(final_temp).problems
                if problems:
                    raise StoreError(
                        f"{final_temp}: expected to read what was written, found {problems[0]}; look at the disk"
                    )
                self._finished()  # Something may have taken the name during a run of hours.
        self._write_failures(failures_temp)
        self.complete = True
        with disk_errors(self.out, "removing its parts", f"the file itself is complete; delete {self.folder}"):
            self._parts.remove()
        return self.out

    def verify(self) -> None:
        """Compare the complete file with its checksums, if `open` has not, and write its list of failures anew.

        StoreError if the file is damaged, or the disk fails.
        """
        try:
            if not self._read_through:
                with FeatureFile(self.out) as file:
                    file.check()
        except StoreError as error:
            raise StoreError(f"{error}; make it again with --overwrite, or delete it") from None
        # Read once more, because another run may have replaced the file meanwhile, and its list.
        self.failures = failures_of(self.out)
        self._write_failures()

    def _begin(self) -> None:
        found = self._parts.read_manifest()
        try:
            self._read_through = self._overwrite or self._retry_failed or self._extend
            finished = self._finished(sound=self._read_through)
        except StoreError:
            if found is None:
                self._parts.remove()
            raise
        different = [] if found is None else identity.differences(found, self._manifest)
        retrying = found is not None and not different and self._parts.retrying
        if finished and not (retrying or self._to_renew(finished)):
            # Parts of another run are some overwriting run's; those of this one have become the file.
            if all(line.startswith("shard_rows:") for line in different):
                self._parts.remove()
            self._take_over(finished)
            return
        if different and not self._overwrite:
            raise identity.other_run(self.folder, self._parts.inputs, different, self._dataset)
        if different or found is None:
            self._parts.begin(self._dataset)
        self._parts.sweep()
        self._count_shards(retry_failed=self._retry_failed and not retrying)
        if finished and (finished.other_rows or not retrying):
            self.kept = Kept(self.out, self.total_rows)
        left = self.total_rows - self._done
        still = left * self.shape.row_bytes + len(self._pending) * 8192
        self._parts.check_space(file_bytes(self._dataset, self.shape) + still)

    def _join(self, ticket: RunTicket) -> None:
        different = identity.differences(self._manifest, ticket.manifest)
        if different:
            raise identity.other_process(self.out, different)
        self._pending, self._done, self.complete = dict.fromkeys(ticket.pending), ticket.done, ticket.complete
        if not self.complete:
            self._parts.join()
            if ticket.kept:
                self.kept = Kept(self.out, self.total_rows, ticket.kept)

    def _take_over(self, finished: FinishedRun) -> None:
        self.complete = True
        if finished.report.failed:
            self.failures = failures_of(self.out)
        self.close()

    def _finished(self, *, sound: bool = False) -> FinishedRun | None:
        try:
            return identity.matching(
                self.out, self._manifest, sound=sound, retry_failed=self._retry_failed, extend=self._extend
            )
        except ReplaceableError:
            if not self._overwrite:
                raise
        return None

    def _to_renew(self, finished: FinishedRun) -> bool:
        return finished.other_rows or finished.other_images or (self._retry_failed and finished.report.failed > 0)

    def _count_shards(self, *, retry_failed: bool) -> None:
        """Find the shards that are finished; those with failures are not, with `retry_failed`."""
        self._pending, self._done = dict.fromkeys(self._parts.shards), 0
        for shard in sorted(self._parts.present()):
            with contextlib.suppress(StoreError):
                reasons = self._parts.read(shard).reasons
                if not (retry_failed and any(reasons)):
                    self._count(shard, reasons)
                    continue
            self._parts.set_aside(shard)

    def _check_pending(self, shard: int) -> None:
        if shard not in self._pending:
            raise StoreError(f"{self.folder}: expected one of the pending shards, found {shard}")

    def _count(self, shard: int, reasons: Sequence[str]) -> None:
        first = self.rows(shard).start
        self.failures |= {first + row: reason for row, reason in enumerate(reasons) if reason}
        self._done += len(reasons)
        del self._pending[shard]

    def _write_failures(self, temp: Path | None = None) -> None:
        with self._disk_errors("writing the list of failures"):
            write_failures(self.out, self._dataset, self.failures, temp=temp, files=self._files)

    def _disk_errors(self, doing: str) -> contextlib.AbstractContextManager[None]:
        kept = f"finished shards are kept in {self.folder.name}; " if self._parts.begun else ""
        return disk_errors(self.out, doing, f"{kept}fix it and run the same again")
