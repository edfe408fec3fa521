"""The feature file, read and verified, for whoever computes with features: the columns of `vggfeat.store.layout`.

N = rows, S = scales, R = regions, C = channels, K = classes.
"""

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import DatasetError, Failure, StoreError, without_number
from vggfeat.formats.hdf5 import UntrustedHDF5, hdf5_errors, open_hdf5, read_values
from vggfeat.samples import DataSet, Task
from vggfeat.store.layout import BLOCK_COLUMNS, Block, Shape, Status, check_layout

_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What a feature file holds, and what is wrong with it."""

    path: Path
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
    """Rows that nothing was tried on; 0 in a file that `FeatureWriter` made."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Failed rows by reason, the most frequent first."""
    problems: tuple[str, ...] = ()
    """What `validate` found, a sentence each; empty if nothing."""


class Features(ABC):
    """Features of a data set, open for reading, whether they lie in one file or in many; a context manager."""

    path: Path
    dataset_name: str
    shape: Shape
    """What one row holds."""
    store = "scales"
    """What is kept of each image: the features of all scales, or "mean", theirs."""
    key: dict[str, Any]
    """All that decides the features."""
    provenance: dict[str, Any]
    """How they were made."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _fact(self, name: str) -> Any:
        """Return one of `vggfeat.store.layout.FACTS`, of all rows."""

    @property
    def status(self) -> NDArray[np.uint8]:
        """(N,) values of `vggfeat.store.layout.Status`."""
        return self._fact("status")

    @property
    def reasons(self) -> tuple[str, ...]:
        """N reasons, empty where a row did not fail."""
        return self._fact("reasons")

    @property
    def sizes(self) -> NDArray[np.int32]:
        """(N, 2) height and width of the image in pixels, 0 where it gave none."""
        return self._fact("sizes")

    @property
    def sha256(self) -> NDArray[np.uint8]:
        """(N, 32) digest of the image file's bytes."""
        return self._fact("sha256")

    @property
    @abstractmethod
    def dataset(self) -> DataSet:
        """The data set that the features are of."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""

    @property
    def scales(self) -> tuple[int, ...]:
        """Smallest image sides Q, in pixels."""
        return self.shape.scales

    @property
    def regions(self) -> tuple[str, ...]:
        """R region names."""
        return self.shape.regions

    @property
    def channels(self) -> int:
        """C."""
        return self.shape.channels

    @abstractmethod
    def read(self, rows: Any = None) -> NDArray[np.float32]:
        """Read features of some rows into memory: see `FeatureFile.read`."""

    def _numbers(self, rows: Any) -> NDArray[np.int64]:
        """Return the row numbers that `read` is asked for."""
        if rows is None or isinstance(rows, slice):
            return np.arange(len(self))[rows or slice(None)]
        index = np.asarray(rows, dtype=None if np.size(rows) else np.int64)
        if index.ndim != 1:
            raise IndexError(f"rows: expected a list of row numbers, or a mask, found one of shape {index.shape}")
        return np.arange(len(self))[index]

    @abstractmethod
    def block(self, rows: range) -> Block:
        """Read all that a run has computed of consecutive rows."""

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """Read everything and yield, a sentence each, what does not fit what is said of it."""

    def check(self) -> None:
        """Read everything and compare it with its checksums, so that no damaged value is ever computed with.

        Raises
        ------
        StoreError
            At the first problem.
        """
        for problem in self.problems():
            raise StoreError(f"{self.path}: expected a sound feature file, found: {problem}")

    def report(self) -> FileReport:
        """Count rows by status and reason; no features are read."""
        counts = Counter(self.status.tolist())
        return FileReport(
            path=self.path,
            dataset=self.dataset_name,
            shape=self.shape,
            rows=len(self),
            done=counts[Status.DONE],
            failed=counts[Status.FAILED],
            pending=counts[Status.PENDING],
            reasons=count_reasons(filter(None, self.reasons)),
        )


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Count failures by the first word of their reasons, the most frequent first, equals by name."""
    counts = Counter(Failure.of(reason).reason for reason in reasons)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


class FeatureFile(Features):
    """A feature file, open for reading; a context manager.

    Opening checks the structure and reads no features. It follows no link and reads no other file.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    StoreError
        If it is missing, not a complete feature file, or of a version that this program does not know.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self._facts = Path(path), dict[str, Any]()
        self._file, size = _open_file(self.path)
        try:
            with hdf5_errors(str(self.path)):
                self._source = source = UntrustedHDF5(self._file, str(self.path), size)
                self._columns = check_layout(source)
                self.dataset_name, self.fingerprint = source.text("dataset"), source.text("fingerprint")
                self.key, self.provenance = source.json("key"), source.json("provenance")
                scales, regions = self._values("scales"), self._values("regions")
                self.shape = Shape(scales=tuple(scales.tolist()), regions=regions, channels=self.features.shape[3])
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        if not self._file:
            return f"FeatureFile({str(self.path)!r}, closed)"
        name, scales = self.dataset_name[:40], ", ".join(map(str, self.scales))
        what = f"Q = {scales}, {' and '.join(self.regions)}, {self.channels} channels"
        return f"FeatureFile({str(self.path)!r}, {name!r}: {len(self)} rows, {what})"

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def features(self) -> h5py.Dataset:
        """(N, S, R, C) float32, on the disk."""
        return self._columns["features"]

    @property
    def features_sha256(self) -> str:
        """Digest of all features, 64 hex digits, as the file gives it."""
        with self._errors():
            return self._source.text("features_sha256")

    def _fact(self, name: str) -> Any:
        if name not in self._facts:
            values = self._values(name)
            if name == "status" and values.size and values.max() > max(Status):
                raise self._source.refuse("status", "0, 1 or 2", values.max())
            self._facts[name] = values
        return self._facts[name]

    @cached_property
    def dataset(self) -> DataSet:
        """The data set that the features are of, without its root and notes."""
        boxes = self._values("boxes")
        try:
            with self._errors():
                return DataSet(
                    name=self.dataset_name,
                    task=Task(self._source.text("task")),
                    boxes=None if np.isnan(boxes).all() else boxes,
                    groups=self._values("groups") if "groups" in self._columns else None,
                    splits=self._folder("splits"),
                    columns=self._folder("columns"),
                    **{name: self._values(name) for name in ("classes", "ids", "paths", "labels")},
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
            In the order of `rows`; NaN in rows that are not done.

        Raises
        ------
        IndexError
            If there is no such row, or `rows` is none of these.
        StoreError
            If the file is damaged, or was closed.
        """
        wanted = self._numbers(rows)
        out = np.empty((len(wanted), *self.shape.dims), np.float32)
        # HDF5 reads a stretch of rows that follow one another far faster than a list of rows.
        starts = np.flatnonzero(np.diff(wanted, prepend=-2) != 1)
        with self._errors():
            for start, stop in zip(starts, np.append(starts, len(wanted))[1:], strict=True):
                first = int(wanted[start])
                self.features.read_direct(out, np.s_[first : first + stop - start], np.s_[start:stop])
        return out

    def block(self, rows: range) -> Block:
        """Read all that a run has computed of consecutive rows."""
        taken = slice(rows.start, rows.stop)
        return Block(**{column.name: self._values(column.name, taken) for column in BLOCK_COLUMNS})

    def problems(self) -> Iterator[str]:
        """Read everything and yield, a sentence each, what does not fit what the file says of itself."""
        with self._errors():
            for name, data in self._columns.items():
                yield from self._problems_of(name, data)
            if self._source.text("features_sha256") != self._source.text("sha256", self.features):
                yield "features_sha256: not that of the features"
            report = self.report()
            counted = (self._source.number("done"), self._source.number("failed"))
            if counted != (report.done, report.failed):
                yield f"done, failed: {counted} by the header, {(report.done, report.failed)} by status"
        if self.dataset.fingerprint() != self.fingerprint:
            yield "fingerprint: not that of the ids, paths, labels, boxes, splits, groups and columns"

    def _problems_of(self, name: str, data: h5py.Dataset) -> Iterator[str]:
        digest, bad = hashlib.sha256(), None
        step = max(1, _CHUNK_BYTES // max(1, data.nbytes // max(1, len(data))))
        for start in range(0, len(data), step):
            rows = data[start : start + step]
            digest.update(rows.data)
            if name == "features" and bad is None:
                finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
                wrong = np.flatnonzero((self.status[start : start + len(rows)] == Status.DONE) & ~finite)
                bad = start + int(wrong[0]) if len(wrong) else None
        if digest.hexdigest() != self._source.text("sha256", data):
            yield f"{name}: the bytes don't fit their SHA-256"
        if bad is not None:
            yield f"{name}: row {bad} is done and has values that are not finite"

    def _folder(self, folder: str) -> dict[str, Any]:
        names = [name.partition("/") for name in self._columns]
        return {name: self._values(f"{first}/{name}") for first, _, name in names if name and first == folder}

    def _values(self, name: str, rows: slice = slice(None)) -> Any:
        with self._errors():
            return read_values(self._columns[name], rows)

    def _errors(self) -> AbstractContextManager[None]:
        if not self._file:
            raise StoreError(f"{self.path}: expected an open feature file, found one that was closed; open it again")
        return hdf5_errors(str(self.path))


def _open_file(path: Path) -> tuple[h5py.File, int]:
    """Open an HDF5 file for reading, and return it with its size in bytes.

    StoreError if it is missing, no regular file, or no HDF5.
    """
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:
        unfinished = path.with_name(f"{path.name}.parts")
        hint = f"; {unfinished} is an unfinished one: give the command that began it again" * os.path.isdir(unfinished)
        raise StoreError(f"{path}: expected a feature file, found none ({without_number(error)}){hint}") from None
    if not stat.S_ISREG(state.st_mode):
        found = "a folder without plan.json" if os.path.isdir(path) else "a pipe or device"
        raise StoreError(f"{path}: expected a feature file, or the folder of a run, found {found}; correct its name")
    with hdf5_errors(str(path)):
        return open_hdf5(path), state.st_size


def validate(path: str | os.PathLike[str]) -> FileReport:
    """Read a feature file to its end and report what it holds and every problem found.

    StoreError if it can't be opened as a feature file at all.
    """
    with FeatureFile(path) as file:
        return replace(file.report(), problems=tuple(file.problems()))
