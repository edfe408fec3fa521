"""A shard of a run as a Parquet file: a row an image, sealed by its SHA-256; equal rows give equal bytes.

    id, path   text                  as planned
    status     uint8                 1 done, 2 failed
    reason     text                  "reason: message" of a failure, else empty
    size       2 int32               height and width of the image in pixels, 0 where it gave none
    sha256     32 bytes              of the image's bytes
    labels     list of int32         numbers of the classes that the row is positive for
    features   S * R * C float       scale by scale, in it region by region; NaN in rows that failed

n = rows of a shard, S = scales that are kept, R = regions, C = channels.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.descriptors import mean_of_scales
from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import TEXT
from vggfeat.store.checksummed_parquet import Sealed, seal, unreadable, unseal
from vggfeat.store.layout import BLOCK_COLUMNS, Block, Column, Shape, Status, checked
from vggfeat.store.plan import Plan, shard_path

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT, VERSION = "vggfeat-feature-shard", 1
_FIELDS = {"status": "status", "reason": "reasons", "size": "sizes", "sha256": "sha256"}
"""Columns that a net has computed beside the features, in their order here, and the fields of `Block`."""
_GROUP_BYTES = 1 << 21
"""Of features in a row group: while it is written, pyarrow holds thirty bytes for each value."""
_DTYPES = {"float32": "<f4", "float16": "<f2"}
_LARGEST_HALF = float(np.finfo(np.float16).max)


class Shard(NamedTuple):
    """A finished shard, read and checked."""

    number: int
    rows: range
    """Counted through the whole list."""
    ids: list[str]
    paths: list[str]
    labels: "pa.ChunkedArray"
    """n lists of class numbers."""
    block: Block
    """What was computed; features (n, S, R, C) float32, of the mean with S = 1."""
    machine: dict[str, Any]
    """What computed it."""
    sha256: str
    """SHA-256 of the file."""


def write_shard(
    plan: Plan, shard: int, block: Block, machine: Mapping[str, Any], *, retry_failed: bool = False
) -> Block:
    """Keep the rows of a shard for good, and return them as they are kept; of two that write it the first wins.

    Parameters
    ----------
    plan : Plan
    shard : int
    block : Block
        All that the net has given: every scale, float32.
    machine : mapping
        What computed it, ready for JSON.
    retry_failed : bool
        Replace the shard that is there, which has rows that failed.

    Raises
    ------
    StoreError
        If the block does not fit the shard, or the store refuses.
    """
    where = f"{plan.where}/{shard_path(shard)}"
    kept = checked(reduced(block, plan), len(plan.rows_of(shard)), plan.stored_shape, where)
    raw = encode_shard(plan, shard, kept, machine)
    if retry_failed:
        plan.storage.replace(shard_path(shard), raw)
    else:
        plan.storage.write_new(shard_path(shard), raw)
    return kept


def reduced(block: Block, plan: Plan) -> Block:
    """Reduce the features of a block to what a plan keeps; what is larger than float16 holds has failed."""
    features = block.features
    if plan.settings.store == "mean":
        features = mean_of_scales(features)[:, None]  # a copy of one scale too
    if plan.settings.dtype == "float32":
        return replace(block, features=features)
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    over = (block.status == Status.DONE) & ~np.isfinite(half).reshape(len(half), -1).all(axis=1)
    reasons = list(block.reasons)
    for row in np.flatnonzero(over).tolist():
        reasons[row] = (
            f"non-finite: expected values of at most {_LARGEST_HALF:.0f}, the most that float16 holds, found "
            f"{np.abs(features[row]).max():.6g}; plan with --dtype float32"
        )
    status = np.where(over, Status.FAILED, block.status).astype(np.uint8)
    if features is block.features:
        features = half.astype(np.float32)
    else:
        np.copyto(features, half)
    return replace(block, features=features, status=status, reasons=tuple(reasons))


def encode_shard(plan: Plan, shard: int, block: Block, machine: Mapping[str, Any]) -> bytes:
    """Turn a block, as it is kept, into the bytes of a shard."""
    import pyarrow as pa

    rows, schema = plan.table(shard), _schema(plan)
    values = block.features.reshape(-1).astype(_DTYPES[plan.settings.dtype])
    columns = [
        rows["id"],
        rows["file"],
        *(_encoded(getattr(block, field), schema.field(name).type) for name, field in _FIELDS.items()),
        rows["labels"],
        pa.FixedSizeListArray.from_arrays(pa.array(values), type=schema.field("features").type),
    ]
    table = pa.table([_whole(column) for column in columns], schema=schema)
    raw = seal(table, _about(plan, shard, machine), group_rows=max(1, _GROUP_BYTES // plan.stored_shape.row_bytes))
    del table
    pa.default_memory_pool().release_unused()  # Else it would keep what it has written for the next shard's time.
    if not _holds(unseal(raw, shard_path(shard), FORMAT), values):
        raise StoreError("parquet: expected pyarrow to write values plainly, found others; update vggfeat")
    return raw


def _holds(sealed: Sealed, values: NDArray[Any]) -> bool:
    """Say whether a shard has exactly these values as its features."""
    bits, start = f"u{values.itemsize}", 0  # by which NaN is equal to itself
    for stored in sealed.groups("features", values.dtype.str):
        if not np.array_equal(stored.reshape(-1).view(bits), values[start : start + stored.size].view(bits)):
            return False
        start += stored.size
    return start == values.size


def read_shard(plan: Plan, shard: int) -> Shard:
    """Read a finished shard, every byte of it compared with its SHA-256.

    StoreError if it is missing, damaged, or of another plan.
    """
    sealed = open_shard(plan, shard)
    table = sealed.table(["id", "path", *_FIELDS, "labels"])
    facts = {field: _decoded(table[name].combine_chunks()) for name, field in _FIELDS.items()}
    block = Block(features=features_of(sealed, plan), **facts)
    rows = plan.rows_of(shard)
    checked(block, len(rows), plan.stored_shape, sealed.where)
    return Shard(
        number=shard, rows=rows, ids=table["id"].to_pylist(), paths=table["path"].to_pylist(),
        labels=table["labels"], block=block, machine=sealed.about["machine"], sha256=sealed.sha256,
    )  # fmt: skip


class OtherPlanError(StoreError):
    """A shard that is sound, and of another plan."""


def open_shard(plan: Plan, shard: int) -> Sealed:
    """Open a finished shard, every byte of it compared with its SHA-256; raises as `read_shard`."""
    where = f"{plan.where}/{shard_path(shard)}"
    sealed = unseal(plan.storage.read(shard_path(shard)), where, FORMAT)
    about, expected = sealed.about, _about(plan, shard, {})
    for name, value in expected.items():
        if name != "machine" and about.get(name) != value:
            meaning = " (a shard of another plan)" if name == "plan" else ""
            raise OtherPlanError(
                f"{where}: expected {name} {_short(value)}, found {_short(about.get(name))}{meaning}; move it away, "
                "and it is computed again"
            )
    if not isinstance(about.get("machine"), dict) or not sealed.file.schema_arrow.equals(_schema(plan)):
        raise unreadable(where, "other columns")
    if sealed.file.metadata.num_rows != len(plan.rows_of(shard)):
        raise unreadable(where, f"{sealed.file.metadata.num_rows} rows")
    return sealed


def features_of(sealed: Sealed, plan: Plan) -> NDArray[np.float32]:
    """Return the features (n, S, R, C) of a shard that is open; where float32 is kept, not to be written to."""
    found: NDArray[np.float32] = sealed.vectors("features", _DTYPES[plan.settings.dtype]).astype(np.float32, copy=False)
    return found.reshape(-1, *plan.stored_shape.dims)


def _about(plan: Plan, shard: int, machine: Mapping[str, Any]) -> dict[str, Any]:
    shape = plan.shape
    return {
        "format": FORMAT,
        "version": VERSION,
        "plan": plan.token_of(shard),
        "shard": shard,
        "scales": list(shape.scales),
        "regions": list(shape.regions),
        "channels": shape.channels,
        "store": plan.settings.store,
        "machine": dict(machine),
    }


def _schema(plan: Plan) -> "pa.Schema":
    import pyarrow as pa

    shape: Shape = plan.stored_shape
    value = pa.float16() if plan.settings.dtype == "float16" else pa.float32()
    length = shape.row_bytes // 4
    columns = {column.name: column for column in BLOCK_COLUMNS}
    kinds = {
        "id": pa.string(), "path": pa.string(),
        **{name: _kind_of(columns[field]) for name, field in _FIELDS.items()},
        "labels": pa.list_(pa.field("element", pa.int32(), nullable=True)),
        "features": pa.list_(pa.field("element", value, nullable=False), length),
    }  # fmt: skip
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _kind_of(column: Column) -> "pa.DataType":
    """Return the type of a column of the feature file here: texts, numbers, digests, or lists of a fixed length."""
    import pyarrow as pa

    if column.dtype == TEXT:
        return pa.string()
    value = pa.from_numpy_dtype(np.dtype(column.dtype))
    if len(column.dims) == 1:
        return value
    length = int(column.dims[1])
    return pa.binary(length) if value == pa.uint8() else pa.list_(pa.field("element", value, nullable=False), length)


def _encoded(values: Any, kind: "pa.DataType") -> "pa.Array":
    import pyarrow as pa

    if pa.types.is_fixed_size_binary(kind):
        return pa.array([row.tobytes() for row in values], kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
    return pa.array(values, kind)


def _decoded(values: "pa.Array") -> Any:
    import pyarrow as pa

    if pa.types.is_string(values.type):
        return tuple(values.to_pylist())
    if pa.types.is_fixed_size_binary(values.type):
        return np.frombuffer(b"".join(values.to_pylist()), np.uint8).reshape(len(values), -1)
    if pa.types.is_fixed_size_list(values.type):
        return values.flatten().to_numpy().reshape(len(values), -1)
    return values.to_numpy()


def _whole(column: Any) -> Any:
    """Return a column in one piece, whatever slices it came from."""
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def _short(value: object) -> str:
    return str(value)[:12]
