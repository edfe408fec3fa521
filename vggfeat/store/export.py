"""Descriptors for other programs. N = samples, K = classes, D = descriptor length.

    npz      arrays ids, paths, classes (text), descriptors (N, D) float32, labels (N, K) int8, split_<name> (M,) rows
             from 0; groups and column_<name> (text) where there are some; no pickle
    parquet  a row per sample: id, path, descriptor (a list of fixed size D, float32), an int8 column label_<class>
             for every class, a boolean column split_<name> for every split; group and column_<name> (text)
    csv      the same columns, but d0 ... d<D-1> for the descriptor, last
    mat      MATLAB 5: the names of npz; cells of text in UTF-16; splits is a struct of row numbers from 1
    h5ad     AnnData: X is descriptors; obs has the columns of parquet but the descriptor, named by id; uns has classes

Labels: 1 positive, -1 negative, 0 ignored, 2 withheld, 3 not listed. Names of files that are no UTF-8 show their
odd bytes as \\xff in every kind but npz; a mat file shows characters beyond 16 bits, such as emoji, as \\U0001f600.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggfeat.checks import check_choice
from vggfeat.errors import ConfigError, StoreError
from vggfeat.formats.csv_cells import spreadsheet_cell
from vggfeat.formats.hdf5 import new_file
from vggfeat.formats.mat5 import write_mat5
from vggfeat.runtime.durable import DISK, Files, LatchedFile, atomic_write, disk_errors
from vggfeat.runtime.output_paths import check_target
from vggfeat.store import KINDS
from vggfeat.wording import install_extra, with_bytes

_MAT_BYTES = 1 << 31
_MAT_NAME = 63
_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Descriptors with all that is known of their rows; StoreError if the columns differ in length."""

    ids: Sequence[str]
    """N unique names."""
    paths: Sequence[str]
    """N paths, relative to the data set's root."""
    descriptors: NDArray[np.float32]
    """(N, D)"""
    labels: NDArray[np.int8]
    """(N, K) values of `vggfeat.samples.Label`."""
    classes: Sequence[str]
    """K names."""
    splits: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Split name -> row numbers from 0."""
    groups: Sequence[str] | None = None
    """N names of what the images are of, if that is known."""
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Further columns of the list that named the images, name -> N texts."""

    def __post_init__(self) -> None:
        n, k = len(self.ids), len(self.classes)
        found = (len(self.paths), self.descriptors.ndim, len(self.descriptors), self.labels.shape)
        if found != (n, 2, n, (n, k)):
            raise StoreError(
                f"export: expected {n} paths, {n} descriptors and labels of shape {(n, k)}, "
                f"found {len(self.paths)}, {self.descriptors.shape} and {self.labels.shape}"
            )
        other = next((name for name, texts in self.texts.items() if len(texts) != n), None)
        if other is not None:
            raise StoreError(f"export: expected {n} values in {other}, found {len(self.texts[other])}")

    @property
    def texts(self) -> dict[str, Sequence[str]]:
        """What is exported as text besides ids and paths, by the name of its column."""
        columns = {f"column_{name}": texts for name, texts in self.columns.items()}
        return columns if self.groups is None else {"group": self.groups, **columns}


def write(
    path: str | os.PathLike[str],
    kind: str,
    table: Table,
    *,
    overwrite: bool = False,
    spreadsheet_safe: bool = False,
    files: Files = DISK,
) -> Path:
    """Write a table in the form of another program; the file appears whole or not at all.

    Parameters
    ----------
    path : path
        The file; its suffix is not looked at.
    kind : str
        One of `vggfeat.store.KINDS`.
    table : Table
        What to write.
    overwrite : bool
        Replace a file that exists.
    spreadsheet_safe : bool
        Put ' before ids, paths, groups and further columns that a spreadsheet would run as formulas.
    files : Files
        Carries out all that changes the disk.

    Raises
    ------
    ConfigError
        If there is no such kind.
    StoreError
        If the file exists, the table does not fit the format, or the disk fails.
    """
    check_choice("export", kind, KINDS)
    target = check_target(path, overwrite=overwrite)
    if spreadsheet_safe:
        # Names of classes and splits come after label_ and split_.
        ids, paths, groups = ([*map(spreadsheet_cell, names or ())] for names in (table.ids, table.paths, table.groups))
        columns = {name: [*map(spreadsheet_cell, texts)] for name, texts in table.columns.items()}
        table = replace(table, ids=ids, paths=paths, columns=columns, groups=groups or None)
    advice = "nothing was left; fix it and run the same again"
    with disk_errors(target, "writing the export", advice), atomic_write(files, target) as sink:
        _WRITE[kind](sink, table)
    return target


def _npz(sink: LatchedFile, table: Table) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.array(table.ids, dtype=np.str_),
        "paths": np.array(table.paths, dtype=np.str_),
        "descriptors": table.descriptors.astype("<f4", copy=False),
        "labels": table.labels.astype(np.int8, copy=False),
        "classes": np.array(table.classes, dtype=np.str_),
    }
    arrays |= {f"split_{name}": np.asarray(rows, "<i8") for name, rows in table.splits.items()}
    arrays |= {name: np.array(texts, dtype=np.str_) for name, texts in _text_arrays(table).items()}
    np.savez(sink, **arrays)  # type: ignore[arg-type]


def _text_arrays(table: Table) -> dict[str, Sequence[str]]:
    return {"groups" if name == "group" else name: texts for name, texts in table.texts.items()}


def _parquet(sink: LatchedFile, table: Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    length = table.descriptors.shape[1]
    kind = pa.list_(pa.float32(), length)
    names, types = _columns(table)
    schema = pa.schema([*zip(names, map(pa.type_for_alias, types), strict=True), ("descriptor", kind)])
    with pq.ParquetWriter(sink, schema) as writer:
        for columns, rows in _slices(table):
            flat = pa.array(np.ascontiguousarray(rows, dtype=np.float32).reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
            writer.write_table(pa.table(columns, schema=schema))
            sink.raise_first_error()


def _csv(sink: LatchedFile, table: Table) -> None:
    import pyarrow as pa
    from pyarrow import csv

    names, types = _columns(table)
    values = [(f"d{index}", pa.float32()) for index in range(table.descriptors.shape[1])]
    schema = pa.schema([*zip(names, map(pa.type_for_alias, types), strict=True), *values])
    with csv.CSVWriter(sink, schema) as writer:
        for columns, rows in _slices(table):
            columns.extend(np.ascontiguousarray(rows.T, dtype=np.float32))
            writer.write_table(pa.table([pa.array(column) for column in columns], schema=schema))
            sink.raise_first_error()


def _h5ad(sink: LatchedFile, table: Table) -> None:
    try:
        import anndata
        import pandas
    except ImportError:
        raise ConfigError(f"h5ad: the package anndata is missing; {install_extra('anndata')}") from None
    names, _ = _columns(table)
    slices = [columns for columns, _ in _slices(table)]
    columns = [np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*slices, strict=True)]
    obs = pandas.DataFrame(dict(zip(names[1:], columns[1:], strict=True)), index=columns[0].astype(object))
    var = pandas.DataFrame(index=[f"d{index}" for index in range(table.descriptors.shape[1])])
    data = anndata.AnnData(
        table.descriptors, obs, var, uns={"classes": np.array([*map(with_bytes, table.classes)], object)}
    )
    memory = io.BytesIO()  # HDF5 reads again what it has written, and a full disk would give it something else.
    with new_file(memory) as file:
        anndata.io.write_elem(file, "/", data)
    sink.write(memory.getvalue())


def _columns(table: Table) -> tuple[list[str], list[str]]:
    names = ["id", "path", *(f"label_{with_bytes(name)}" for name in table.classes)]
    names += [*(f"split_{with_bytes(name)}" for name in table.splits), *map(with_bytes, table.texts)]
    counts = {"string": 2, "int8": len(table.classes), "bool": len(table.splits)}
    types = [kind for kind, count in counts.items() for _ in range(count)]
    return names, [*types, *["string"] * len(table.texts)]


def _slices(table: Table) -> Iterator[tuple[list[Any], NDArray[np.float32]]]:
    masks = [np.zeros(len(table.ids), dtype=bool) for _ in table.splits]
    for mask, rows in zip(masks, table.splits.values(), strict=True):
        mask[rows] = True
    step = max(1, _CHUNK_BYTES // max(1, 4 * table.descriptors.shape[1]))
    for start in range(0, len(table.ids), step):
        part = slice(start, start + step)
        columns: list[Any] = [[with_bytes(name) for name in names[part]] for names in (table.ids, table.paths)]
        columns.extend(np.ascontiguousarray(table.labels[part].T))
        columns += [mask[part] for mask in masks]
        yield [*columns, *([*map(with_bytes, texts[part])] for texts in table.texts.values())], table.descriptors[part]


def _mat(sink: LatchedFile, table: Table) -> None:
    if table.descriptors.nbytes >= _MAT_BYTES:
        size = f"{table.descriptors.nbytes / 2**30:.1f} GiB"
        raise StoreError(f"mat: expected descriptors below 2 GiB, all that MATLAB 5 files hold, found {size}; use npz")
    names = _mat_names(list(table.splits))
    further = {name: [*map(with_bytes, texts)] for name, texts in _text_arrays(table).items()}
    rows = [np.asarray(split, "<f8").reshape(-1, 1) + 1 for split in table.splits.values()]
    write_mat5(
        sink,
        {
            "ids": [with_bytes(text) for text in table.ids],
            "paths": [with_bytes(text) for text in table.paths],
            "descriptors": table.descriptors.astype("<f4", copy=False),
            "labels": table.labels.astype(np.int8, copy=False),
            "classes": [with_bytes(text) for text in table.classes],
            "splits": dict(zip(names, rows, strict=True)),
            **dict(zip(_mat_names(list(further)), further.values(), strict=True)),
        },
    )


def _mat_names(names: Sequence[str]) -> list[str]:
    legal: list[str] = []
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9_]", "_", name)[: _MAT_NAME - 8]
        stem = stem if re.match("[A-Za-z]", stem) else f"s_{stem}"
        choice, count = stem, 1
        while choice in legal:
            count += 1
            choice = f"{stem}_{count}"
        legal.append(choice)
    return legal


_WRITE = {"npz": _npz, "parquet": _parquet, "csv": _csv, "mat": _mat, "h5ad": _h5ad}
"""The sink of each kind, in the order of `KINDS`."""
