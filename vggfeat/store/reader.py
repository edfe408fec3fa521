"""The feature file, read and proved: what `vggfeat.store.layout` lists, for whoever computes with features.

N = rows, S = scales, R = regions, C = channels, K = classes.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import DatasetError, StoreError
from vggfeat.formats.hdf5 import TEXT, UntrustedHDF5, chunks, hdf5_errors, read_texts
from vggfeat.runtime.durable import open_bounded
from vggfeat.samples import DataSet, Task
from vggfeat.store.layout import BLOCK_COLUMNS, FORMAT, Block, Shape, Status, check_layout, open_file


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What a feature file holds, and what is wrong with it."""

    path: Path
    """The file."""
    dataset: str
    """Name of the data set."""
    shape: Shape
    """What one row holds."""
    rows: int
    """N."""
    done: int
    """Rows with features."""
    failed: int
    """Rows without, for a reason."""
    pending: int
    """Rows that nothing was tried on; 0 in a file that `write` made."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Failed rows by reason, the commonest first."""
    problems: tuple[str, ...] = ()
    """What `validate` found, a sentence each; empty if nothing."""


class FeatureFile:
    """A feature file, open for reading; a context manager.

    Opening looks at the structure and reads no features. It follows no link and reads no other file.

    Parameters
    ----------
    path : str or Path
        The file.

    Raises
    ------
    StoreError
        If it is missing, not a whole feature file, or of a version that this program does not know.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file, size = open_file(self.path)
        try:
            with hdf5_errors(str(self.path)):
                self._source = UntrustedHDF5(self._file, str(self.path), size)
                self._columns = check_layout(self._source)
                self._read_head()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "FeatureFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.features)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_head(self) -> None:
        source = self._source
        self.dataset_name, self.fingerprint = source.text("dataset"), source.text("fingerprint")
        self.key, self.provenance = source.json("key"), source.json("provenance")
        scales = tuple(self._columns["scales"][...].tolist())
        self.shape = Shape(scales=scales, regions=self._texts("regions"), channels=self.features.shape[3])

    def _texts(self, name: str) -> tuple[str, ...]:
        return read_texts(self._columns[name])

    def _array(self, name: str, rows: Any = ...) -> NDArray[Any]:
        with hdf5_errors(str(self.path)):
            array: NDArray[Any] = self._columns[name][rows]
        return array

    @property
    def features(self) -> h5py.Dataset:
        """(N, S, R, C) float32, on the disk."""
        return self._columns["features"]

    @property
    def scales(self) -> tuple[int, ...]:
        """S smallest image sides Q, in pixels."""
        return self.shape.scales

    @property
    def regions(self) -> tuple[str, ...]:
        """R region names."""
        return self.shape.regions

    @property
    def channels(self) -> int:
        """C."""
        return self.shape.channels

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """(N,) values of `vggfeat.store.layout.Status`."""
        status = self._array("status")
        if status.size and status.max() > max(Status):
            raise self._source.refuse("status", "0, 1 or 2", status.max())
        return status

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """N reasons, empty where a row did not fail."""
        with hdf5_errors(str(self.path)):
            return self._texts("reasons")

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """(N, 2) height and width of the image in pixels, 0 where it gave none."""
        return self._array("sizes")

    @cached_property
    def sha256(self) -> NDArray[np.uint8]:
        """(N, 32) digest of the image file's bytes."""
        return self._array("sha256")

    @cached_property
    def dataset(self) -> DataSet:
        """The data set that the features are of, without its root and notes."""
        boxes = self._array("boxes")
        splits = {name[7:]: self._array(name) for name in self._columns if name.startswith("splits/")}
        try:
            with hdf5_errors(str(self.path)):
                return DataSet(
                    name=self.dataset_name,
                    task=Task(self._source.text("task")),
                    classes=self._texts("classes"),
                    ids=self._texts("ids"),
                    paths=self._texts("paths"),
                    labels=self._array("labels"),
                    boxes=None if np.isnan(boxes).all() else boxes,
                    splits=splits,
                )
        except DatasetError as error:
            raise StoreError(f"{self.path}: {error}") from None

    def read(self, rows: Any = None) -> NDArray[np.float32]:
        """Read features of some rows into memory.

        Parameters
        ----------
        rows : slice, (n,) int or (N,) bool, optional
            Row numbers in any order, or a mask. By default all.

        Returns
        -------
        (n, S, R, C) float32
            In the order asked for; NaN in rows that are not done.

        Raises
        ------
        IndexError
            If there is no such row.
        """
        wanted = _numbers(len(self), rows)
        out = np.empty((len(wanted), *self.shape.dims), np.float32)
        with hdf5_errors(str(self.path)):
            for start, stop in _runs(wanted):
                first = int(wanted[start])
                self.features.read_direct(out, np.s_[first : first + stop - start], np.s_[start:stop])
        return out

    def block(self, rows: range) -> Block:
        """Read all that a run has computed of consecutive rows."""
        taken = slice(rows.start, rows.stop)
        values: dict[str, Any] = {}
        for column in BLOCK_COLUMNS:
            values[column.name] = self.reasons[taken] if column.dtype == TEXT else self._array(column.name, taken)
        return Block(**values)

    def report(self) -> FileReport:
        """Count rows by status and reason; no features are read."""
        counts = Counter(self.status.tolist())
        reasons = Counter(reason.partition(":")[0] for reason in self.reasons if reason)
        return FileReport(
            path=self.path,
            dataset=self.dataset_name,
            shape=self.shape,
            rows=len(self),
            done=counts[Status.DONE],
            failed=counts[Status.FAILED],
            pending=counts[Status.PENDING],
            reasons=dict(reasons.most_common()),
        )

    def check(self) -> None:
        """Read everything and compare it with its checksums, so that no damaged value is ever computed with.

        Raises
        ------
        StoreError
            At the first problem.
        """
        for problem in self.problems():
            raise StoreError(f"{self.path}: expected a sound feature file, found: {problem}")

    def problems(self) -> Iterator[str]:
        """Read everything and yield, a sentence each, what does not fit what the file says of itself."""
        with hdf5_errors(str(self.path)):
            for name, data in self._columns.items():
                yield from self._problems_of(name, data)
            if self._source.text("features_sha256") != self._source.text("sha256", self.features):
                yield "features_sha256: not that of the features"
            report = self.report()
            counted = (self._source.number("done"), self._source.number("failed"))
            if counted != (report.done, report.failed):
                yield f"done, failed: {counted} by the header, {(report.done, report.failed)} by status"
        if self.dataset.fingerprint() != self.fingerprint:
            yield "fingerprint: not that of the ids, paths, labels, boxes and splits"

    def _problems_of(self, name: str, data: h5py.Dataset) -> Iterator[str]:
        digest, bad = hashlib.sha256(), None
        for start, rows in chunks(data):
            digest.update(rows.data)
            if name == "features" and bad is None:
                finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
                wrong = np.flatnonzero((self.status[start : start + len(rows)] == Status.DONE) & ~finite)
                bad = start + int(wrong[0]) if len(wrong) else None
        if digest.hexdigest() != self._source.text("sha256", data):
            yield f"{name}: the bytes don't fit their SHA-256"
        if bad is not None:
            yield f"{name}: row {bad} is done and has values that are not finite"


def is_damaged(path: Path) -> bool:
    """Say whether what can't be read as a feature file was one, as far as can be seen, or is HDF5 nobody can read."""
    try:
        with open_bounded(path) as file:
            size = os.fstat(file.fileno()).st_size
        if not h5py.is_hdf5(path):
            return not size
        with h5py.File(path, "r") as opened:
            return UntrustedHDF5(opened, str(path), size).text("format") == FORMAT
    except StoreError:
        return False
    except Exception:  # h5py lets out whatever a damaged file makes of its insides
        return True


def validate(path: str | os.PathLike[str]) -> FileReport:
    """Read a whole feature file and report what it holds and every problem found.

    Raises
    ------
    StoreError
        If it can't be opened as a feature file at all.
    """
    with FeatureFile(path) as file:
        return replace(file.report(), problems=tuple(file.problems()))


def _numbers(count: int, rows: Any) -> NDArray[np.int64]:
    index = slice(None) if rows is None else rows
    if not isinstance(index, slice):
        index = np.asarray(index, dtype=None if np.size(index) else np.int64)
    return np.arange(count)[index]


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the stretches of `rows` that count upwards by one."""
    if len(rows):
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        yield from zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True)
