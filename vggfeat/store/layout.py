"""What stands in a feature file, and the look that it gets before anything in it is read.

N = rows, S = scales, R = regions, C = channels, K = classes.

    features (N, S, R, C) float32, NaN in failed rows      status (N,) uint8: 0 pending, 1 done, 2 failed
    ids, paths, reasons (N,) text                          sizes (N, 2) int32: height, width of the image
    labels (N, K) int8                                     sha256 (N, 32) uint8: of the image file's bytes
    boxes (N, 4) float64, NaN = none                       scales (S,) int64, regions (R,) and classes (K,) text
    splits/<name> (M,) int64, ascending rows

Every data set has its own SHA-256 as an attribute. The root's attributes: format, version, dataset, task,
fingerprint, key and provenance (JSON), features_sha256, done, failed.
"""

import os
import stat
from pathlib import Path

import h5py

from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import TEXT, UntrustedHDF5, hdf5_errors

POSTERIORS = "posteriors"
"""Layer in the key of a file that holds class posteriors instead of features."""
FORMAT, VERSION = "vggfeat-features", 1
PER_ROW = {"status": ((), "|u1"), "sizes": ((2,), "<i4"), "sha256": ((32,), "|u1")}
"""What is said of each row beside features and reason: further dimensions and type."""
_LISTS = ("ids", "paths", "classes", "regions", "reasons", "labels", "boxes", "scales")
_MEMBERS = frozenset({"features", "splits", *PER_ROW, *_LISTS})


def open_file(path: Path) -> tuple[h5py.File, int]:
    """Open an HDF5 file for reading and say how many bytes it has.

    Raises
    ------
    StoreError
        If it is missing, no regular file, or no HDF5.
    """
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:
        unfinished = path.with_name(f"{path.name}.parts")
        hint = (
            f"; {unfinished} is an unfinished one: give the command that began it again" if unfinished.is_dir() else ""
        )
        raise StoreError(f"{path}: expected a feature file, found none ({error}){hint}") from None
    if not stat.S_ISREG(state.st_mode):
        raise StoreError(f"{path}: expected a feature file, found a folder, pipe or device")
    with hdf5_errors(str(path)):
        # The file never changes under its name, so a lock would only fail on disks that can't lock.
        return h5py.File(path, "r", locking=False), state.st_size


def look(source: UntrustedHDF5) -> dict[str, h5py.Dataset]:
    """Check that a file holds exactly what the layout says, and hand out its data sets by name.

    Raises
    ------
    StoreError
        At the first thing that is missing, unexpected, of another type or shape, or larger than the file.
    """
    if source.text("format") != FORMAT:
        raise source.refuse("format", FORMAT, ascii(source.text("format")))
    if source.number("version") != VERSION:
        raise source.refuse("version", f"{VERSION}", f"{source.number('version')}; update vggfeat")
    source.members(source.file, _MEMBERS)
    columns = _fixed_columns(source) | _splits(source)
    declared = sum(data.nbytes for data in columns.values())
    if declared > source.size:
        raise source.refuse("data sets", f"at most {source.size} bytes", f"{declared}")
    return columns


def _fixed_columns(source: UntrustedHDF5) -> dict[str, h5py.Dataset]:
    def column(name: str, dims: tuple[int | None, ...], kind: str) -> h5py.Dataset:
        columns[name] = source.column(source.file, name, dims, kind)
        return columns[name]

    columns: dict[str, h5py.Dataset] = {}
    n, s, r, _ = column("features", (None, None, None, None), "<f4").shape
    (k,) = column("classes", (None,), TEXT).shape
    for name, (dims, kind) in PER_ROW.items():
        column(name, (n, *dims), kind)
    for name in ("ids", "paths", "reasons"):
        column(name, (n,), TEXT)
    column("labels", (n, k), "|i1")
    column("boxes", (n, 4), "<f8")
    column("scales", (s,), "<i8")
    column("regions", (r,), TEXT)
    return columns


def _splits(source: UntrustedHDF5) -> dict[str, h5py.Dataset]:
    splits = source.file.get("splits")
    if not isinstance(splits, h5py.Group):
        raise source.refuse("splits", "a group", type(splits).__name__)
    return {f"splits/{name}": source.column(splits, name, (None,), "<i8") for name in source.members(splits)}
