"""A block of rows as one small file: built in memory, with a checksum over every byte.

A shard is an HDF5 file behind 512 bytes of its own (an HDF5 user block), which hold the SHA-256 of the rest. So
damage is found before HDF5 sees any of it. n = rows of the block, S = scales, R = regions, C = channels.
"""

import hashlib
import io
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import (
    TEXT,
    UntrustedHDF5,
    encode_texts,
    hdf5_errors,
    new_data_set,
    new_file,
    read_texts,
    text_width,
    write_text_attribute,
)

HEAD = 512
_MEMBERS = frozenset({"features", "status", "reasons", "sizes", "sha256"})


class Status(IntEnum):
    """What became of a row."""

    PENDING = 0
    DONE = 1
    FAILED = 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one row of features holds.

    Raises
    ------
    StoreError
        If a list is empty or repeats itself, or a number is below 1.
    """

    scales: tuple[int, ...]
    """S smallest image sides Q, in pixels."""
    regions: tuple[str, ...]
    """R names of what was looked at: image, box."""
    channels: int
    """C values per scale and region."""

    def __post_init__(self) -> None:
        for name in ("scales", "regions"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise StoreError(f"{name}: expected one or more, each once, found {values}")
        if min(*self.scales, self.channels) < 1:
            raise StoreError(f"expected scales and channels of at least 1, found {self.scales}, {self.channels}")

    @property
    def dims(self) -> tuple[int, int, int]:
        """(S, R, C)."""
        return len(self.scales), len(self.regions), self.channels

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of features."""
        return 4 * len(self.scales) * len(self.regions) * self.channels


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Some consecutive rows, each done or failed."""

    features: NDArray[np.float32]
    """(n, S, R, C); finite where the row is done, NaN in the store where it failed."""
    status: NDArray[np.uint8]
    """(n,) values of `Status`, never pending."""
    reasons: tuple[str, ...]
    """n reasons, empty where the row is done."""
    sizes: NDArray[np.int32]
    """(n, 2) height and width of the image in pixels, 0 where it gave none."""
    sha256: NDArray[np.uint8]
    """(n, 32) digest of the image file's bytes."""

    def __len__(self) -> int:
        return len(self.status)


def checked(block: Block, rows: int, shape: Shape, where: str) -> Block:
    """Check a block before it counts as done, and put NaN in its failed rows.

    Zeros there would pass for features; NaN stops whoever forgets the status.

    Raises
    ------
    StoreError
        If shapes or types differ, a row is neither done nor failed, a reason is missing, out of place or can't be
        stored, or a row that is done has a value that is not finite.
    """
    wanted = {
        "features": ((rows, *shape.dims), np.float32),
        "status": ((rows,), np.uint8),
        "sizes": ((rows, 2), np.int32),
        "sha256": ((rows, 32), np.uint8),
    }
    for name, (dims, dtype) in wanted.items():
        array = getattr(block, name)
        if array.shape != dims or array.dtype != dtype:
            expected = f"{np.dtype(dtype)} {dims}"
            raise StoreError(f"{where}: {name}: expected {expected}, found {array.dtype} {array.shape}")
    done = block.status == Status.DONE
    if not (done | (block.status == Status.FAILED)).all():
        raise StoreError(f"{where}: expected every row done or failed, found others")
    if len(block.reasons) != rows or [not reason for reason in block.reasons] != done.tolist():
        raise StoreError(f"{where}: expected a reason for every failed row and for no other")
    text_width(block.reasons, f"{where}: reasons")
    return _finite(block, done, where)


def _finite(block: Block, done: NDArray[np.bool_], where: str) -> Block:
    finite = np.isfinite(block.features).reshape(len(done), -1).all(axis=1)
    bad = np.flatnonzero(done & ~finite)
    if len(bad):
        raise StoreError(f"{where}: expected finite features in rows that are done, found others in row {bad[0]}")
    if done.all():
        return block
    features = block.features.copy()
    features[~done] = np.nan
    return replace(block, features=features)


def encode(block: Block, *, index: int, token: str) -> bytes:
    """Turn a checked block into the bytes of a shard file; equal blocks give equal bytes.

    Parameters
    ----------
    block : Block
        As `checked` returns it.
    index : int
        Number of the shard.
    token : str
        Digest of the manifest that it belongs to.
    """
    # Not HDF5's own file in memory: in HDF5 1.14 the image that it gives out has a wrong checksum.
    memory = io.BytesIO()
    with new_file(memory) as file:
        write_text_attribute(file, "format", "vggfeat-shard 1")
        write_text_attribute(file, "manifest", token)
        file.attrs["index"] = np.int64(index)
        reasons = encode_texts(block.reasons, text_width(block.reasons, "reasons"))
        arrays = {name: getattr(block, name) for name in ("features", "status", "sizes", "sha256")}
        for name, array in (arrays | {"reasons": reasons}).items():
            new_data_set(file, name, array.shape, array.dtype)[...] = array
    image = memory.getvalue()
    return _head(image) + image


def decode(raw: bytes, *, rows: int, shape: Shape, index: int, token: str, where: str) -> Block:
    """Turn the bytes of a shard file into its block.

    Raises
    ------
    StoreError
        If a byte is damaged, it is the shard of other rows or of another manifest, or `checked` refuses it.
    """
    image = memoryview(raw)[HEAD:]
    if raw[:HEAD] != _head(image):
        raise StoreError(f"{where}: expected bytes that fit their checksum, found damage")
    with hdf5_errors(where), h5py.File(io.BytesIO(image), "r") as file:
        source = UntrustedHDF5(file, where, len(image))
        source.members(file, _MEMBERS)
        for name, expected in (("format", "vggfeat-shard 1"), ("manifest", token)):
            if source.text(name) != expected:
                raise source.refuse(name, expected, source.text(name))
        if source.number("index") != index:
            raise source.refuse("index", str(index), source.number("index"))
        return checked(_block(source, rows, shape), rows, shape, where)


def _block(source: UntrustedHDF5, rows: int, shape: Shape) -> Block:
    def read(name: str, dims: tuple[int, ...], dtype: str) -> NDArray[Any]:
        array: NDArray[Any] = source.column(source.file, name, dims, dtype)[...]
        return array

    return Block(
        features=read("features", (rows, *shape.dims), "<f4"),
        status=read("status", (rows,), "|u1"),
        reasons=read_texts(source.column(source.file, "reasons", (rows,), TEXT)),
        sizes=read("sizes", (rows, 2), "<i4"),
        sha256=read("sha256", (rows, 32), "|u1"),
    )


def _head(image: bytes | memoryview) -> bytes:
    line = f"vggfeat shard; the rest is HDF5 with SHA-256 {hashlib.sha256(image).hexdigest()}\n"
    return line.encode().ljust(HEAD - 1) + b"\n"
