"""Parquet files that carry the SHA-256 of their own bytes, so that damage is found before anything reads them.

The digest is 64 hex digits in the footer's metadata, over the whole file with zeros in their place. Files are written
uncompressed and without statistics, a row group a page, or compressed where size matters more: equal tables give equal
bytes. Any reader of Parquet reads them.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ABOUT, _DIGEST = "vggfeat", "vggfeat.sha256"
# The key, then of the value: its field (a string), its length, 64.
_PLACE = re.compile(rb"vggfeat\.sha256\x18\x40([0-9a-f]{64})")
_ZEROS = b"0" * 64
_MAGIC = b"PAR1"
_ONE_PAGE = 1 << 30
"""Bytes that a page may have: more than a row group has."""


class Sealed(NamedTuple):
    """A file whose bytes fit their digest."""

    raw: bytes
    file: "pq.ParquetFile"
    about: dict[str, Any]
    """What the file says of itself."""
    sha256: str
    where: str

    def table(self, columns: list[str] | None = None) -> "pa.Table":
        """Read columns, all by default; StoreError if they can't be read."""
        try:
            return self.file.read(columns)
        except Exception as error:  # pyarrow lets out errors of many classes
            raise unreadable(self.where, error) from None

    def vectors(self, name: str, dtype: str) -> NDArray[Any]:
        """Return the values of a column of fixed-size lists: (n, length)."""
        length, parts = self.file.schema_arrow.field(name).type.list_size, list(self.groups(name, dtype))
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, length), dtype), *parts])

    def groups(self, name: str, dtype: str) -> Iterator[NDArray[Any]]:
        """Yield the values of such a column row group by row group, as they lie in the file, without a copy.

        Of plain values that lie in one page, the page ends with them; pyarrow takes a second for 17 million of 16 bits.
        """
        length = self.file.schema_arrow.field(name).type.list_size
        index = self.file.schema_arrow.names.index(name)
        for number in range(self.file.metadata.num_row_groups):
            group = self.file.metadata.row_group(number)
            chunk = group.column(_first_leaf(self.file, index))
            count = group.num_rows * length
            end = chunk.data_page_offset + chunk.total_compressed_size
            start = end - count * np.dtype(dtype).itemsize
            if chunk.compression != "UNCOMPRESSED" or start < chunk.data_page_offset or end > len(self.raw):
                raise unreadable(self.where, f"the column {name} is not stored plainly")
            yield np.frombuffer(self.raw, dtype, count, start).reshape(-1, length)


def seal(table: "pa.Table", about: dict[str, Any], *, compression: str = "none", group_rows: int = 1 << 20) -> bytes:
    """Turn a table into the bytes of a file.

    Parameters
    ----------
    table : pa.Table
    about : dict
        What the file says of itself, as JSON.
    compression : str
        "none" for a file of which `Sealed.vectors` is asked.
    group_rows : int
        Rows of a row group, of less than a gibibyte.
    """
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    writer = pq.ParquetWriter(
        sink, table.schema, compression=compression, use_dictionary=compression != "none", write_statistics=False,
        data_page_size=_ONE_PAGE,
    )  # fmt: skip
    with writer:
        writer.write_table(table, row_group_size=group_rows)
        writer.add_key_value_metadata({_ABOUT: canonical_json(about, _ABOUT), _DIGEST: _ZEROS.decode()})
    with sink.getbuffer() as raw:
        place = _place(raw)
        if place is None:
            raise StoreError(
                "parquet: expected pyarrow to write the metadata it was given, found others; update pyarrow"
            )
        raw[place : place + len(_ZEROS)] = hashlib.sha256(raw).hexdigest().encode()
    return sink.getvalue()  # without a copy


def unseal(raw: bytes, where: str, kind: str) -> Sealed:
    """Check the bytes of a file and open it.

    Parameters
    ----------
    raw : bytes
    where : str
        Its name, for messages.
    kind : str
        The "format" that it must say of itself.

    Raises
    ------
    StoreError
        If a byte is damaged, or it is no file of that kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest = digest_of(raw, where)
    try:
        file = pq.ParquetFile(pa.BufferReader(raw))
        about = json.loads((file.metadata.metadata or {}).get(_ABOUT.encode(), b"null"))
    except Exception as error:  # pyarrow lets out errors of many classes
        raise unreadable(where, error) from None
    if not isinstance(about, dict) or about.get("format") != kind:
        found = about.get("format") if isinstance(about, dict) else None
        raise StoreError(f"{where}: expected a file that says {kind}, found {str(found)[:80]!r}; move it away")
    return Sealed(raw, file, about, digest, where)


def digest_of(raw: bytes, where: str) -> str:
    """Return the digest that a file carries; StoreError if its bytes do not fit it."""
    place = _place(raw)
    if place is not None:
        view, digest = memoryview(raw), hashlib.sha256()
        for part in (view[:place], _ZEROS, view[place + len(_ZEROS) :]):
            digest.update(part)
        if digest.hexdigest().encode() == raw[place : place + len(_ZEROS)]:
            return digest.hexdigest()
    raise StoreError(f"{where}: expected bytes that fit their SHA-256, found damage; move it away, and make it again")


def unreadable(where: str, found: object) -> StoreError:
    """Return the refusal of a file that fits its digest, and still is none of ours."""
    return StoreError(f"{where}: expected a Parquet file of vggfeat, found one that can't be read ({found})")


def merkle_root(digests: list[str]) -> str:
    """Return the root of the hash tree (RFC 6962) over digests in their order, as 64 hex digits.

    It names the set: it changes if one changes, is missing or stands elsewhere.
    """
    level = [hashlib.sha256(b"\0" + bytes.fromhex(digest)).digest() for digest in digests]
    while len(level) > 1:
        # A last one without a neighbour goes up as it is, which is RFC 6962's tree.
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [hashlib.sha256(b"\1" + left + right).digest() for left, right in pairs] + level[len(level) & ~1 :]
    return (level[0] if level else hashlib.sha256(b"").digest()).hex()


def _first_leaf(file: "pq.ParquetFile", column: int) -> int:
    """Return which leaf of the file's schema holds a column whose own leaf is its only one."""
    name = file.schema_arrow.names[column]
    paths = [file.schema.column(leaf).path.partition(".")[0] for leaf in range(len(file.schema))]
    return paths.index(name)


def _place(raw: bytes | memoryview) -> int | None:
    """Return where the digest is in a file, None if it is nowhere or in two places."""
    if len(raw) < 12 or raw[-4:] != _MAGIC:
        return None
    start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    found = list(_PLACE.finditer(raw, max(0, start))) if start >= 0 else []
    return found[0].start(1) if len(found) == 1 else None
