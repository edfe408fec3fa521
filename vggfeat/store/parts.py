"""The folder OUT.parts/ next to an unfinished feature file.

    LOCK            held while a run is alive, by all its processes
    inputs.jsonl    id and path of every row, as they were at the beginning
    manifest.json   key, shape, rows per shard, fingerprint of the data set; the run has begun if it exists
    s00000.h5 ...   finished shards: a block of rows each
    retrying        exists if failed images are tried again, once it is known which shards have some
    *.tmp, *.bad    what a killed run was writing; shards that did not fit their checksum, or are computed again

The manifest is written last and removed first: a folder without one has nothing worth keeping. A shard is an HDF5 file
behind 512 bytes of its own (an HDF5 user block), which hold the SHA-256 of the rest. So damage is found before HDF5
sees any of it.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vggfeat.errors import StoreError
from vggfeat.formats.hdf5 import (
    UntrustedHDF5,
    canonical_json,
    encoded,
    hdf5_errors,
    new_data_set,
    new_file,
    read_values,
    text_width,
    write_text_attribute,
)
from vggfeat.runtime.durable import Files, atomic_write, read_bounded
from vggfeat.runtime.locks import Lock, sole_writer
from vggfeat.samples import DataSet
from vggfeat.store.layout import BLOCK_COLUMNS, Block, Shape, checked, dims_of

HEAD = 512
"""Bytes before the HDF5 file of a shard."""
_SHARD_FORMAT = "vggfeat-shard 1"
_OURS = re.compile(r"s\d+\.h5(\.bad)?|inputs\.jsonl|manifest\.json|retrying|[a-z0-9.]+\.tmp")
_LARGEST_MANIFEST = 1 << 20
_ROWS_AT_A_TIME = 4096


class PartsFolder:
    """The folder of the unfinished feature file `out`, which one run at a time may change.

    `manifest` is what decides the run, as `vggfeat.store.identity.describe` makes it, `shape` what one row holds;
    `files` carries out all that changes the disk.
    """

    def __init__(self, out: Path, manifest: dict[str, Any], shape: Shape, files: Files) -> None:
        self.out, self.path = out, out.with_name(f"{out.name}.parts")
        self.inputs = self.path / "inputs.jsonl"
        self.shards = range(-(-manifest["rows"] // manifest["shard_rows"]))
        self._manifest, self._shape, self._files = manifest, shape, files
        self._manifest_path, self._retrying = self.path / "manifest.json", self.path / "retrying"
        self._token = hashlib.sha256(canonical_json(manifest, "key").encode()).hexdigest()
        self._lock: Lock | None = None

    def take(self) -> None:
        """Make the folder if it is missing, and lock it; StoreError if another process has it, or it is no folder."""
        while self._lock is None:
            with contextlib.suppress(FileExistsError):
                self._files.make_folder(self.path)
            # It may be gone again, if another run has just finished; then it is made once more.
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(self.path).st_mode):
                    raise StoreError(f"{self.path}: expected a folder for parts, found something else; move it away")
                with sole_writer(self.out, self.path / "LOCK"):
                    self._lock = Lock(self.path / "LOCK")

    def share(self) -> None:
        """Let other processes of this run join; StoreError if another run has come first."""
        if self._lock is not None:
            with sole_writer(self.out, self.path / "LOCK"):
                self._lock.share()

    def join(self) -> None:
        """Lock the folder together with the process that shares it; StoreError if that has gone, and another come."""
        with sole_writer(self.out, self.path / "LOCK"):
            self._lock = Lock(self.path / "LOCK", joining=True)

    def release(self) -> None:
        """Unlock it, if it is locked."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def begun(self) -> bool:
        """Whether there is a run to resume."""
        return self._manifest_path.exists()

    @property
    def retrying(self) -> bool:
        """Whether `note_retry` was called."""
        return os.path.lexists(self._retrying)

    def note_retry(self) -> None:
        """Note that all that failed before is pending now."""
        with atomic_write(self._files, self._retrying) as sink:
            sink.write(b"\n")

    def read_manifest(self) -> Any:
        """Read what the run in this folder began with; None if none began. StoreError if it is damaged."""
        where = self._manifest_path
        try:
            return json.loads(read_bounded(where, _LARGEST_MANIFEST))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"{where}: expected the JSON that the run began with, found damage ({error}); delete {self.path}"
            ) from None

    def begin(self, dataset: DataSet) -> None:
        """Remove what was there, and write down what the run begins with; StoreError if its key is too large."""
        raw = json.dumps(self._manifest, indent=1, sort_keys=True).encode()
        if len(raw) > _LARGEST_MANIFEST:
            raise StoreError(f"{self.out}: expected a key of less than 1 MiB as JSON, found more; shorten it")
        self._empty()
        with atomic_write(self._files, self.inputs) as sink:
            for start in range(0, len(dataset), _ROWS_AT_A_TIME):
                stop = start + _ROWS_AT_A_TIME
                pairs = zip(dataset.ids[start:stop], dataset.paths[start:stop], strict=True)
                sink.write("".join(f"{json.dumps(pair)}\n" for pair in pairs).encode())
                sink.raise_first_error()
        with atomic_write(self._files, self._manifest_path) as sink:
            sink.write(raw)
        self._files.sync_folder(self.path.parent)

    def check_space(self, needed: int) -> None:
        """Check before a long work that the disk has room for so many bytes; StoreError if it has not."""
        free = self._files.free(self.path)
        if free < needed:
            raise StoreError(
                f"{self.out}: expected {_size(needed)} free on its disk, found {_size(free)}; make room (finished "
                "shards are kept) or choose another output"
            )

    def rows(self, shard: int) -> range:
        """Rows of a shard."""
        step = self._manifest["shard_rows"]
        return range(shard * step, min((shard + 1) * step, self._manifest["rows"]))

    def present(self) -> set[int]:
        """Shards that have their name, which they get when they are on the disk."""
        names = set(os.listdir(self.path))
        return {shard for shard in self.shards if self._path(shard).name in names}

    def write(self, shard: int, block: Block) -> Block:
        """Keep the rows of a shard for good, and return them as they are kept; StoreError if they do not fit it."""
        path = self._path(shard)
        block = checked(block, len(self.rows(shard)), self._shape, str(path))
        raw = _encode(block, index=shard, token=self._token)
        with atomic_write(self._files, path) as sink:
            sink.write(raw)
        return block

    def read(self, shard: int) -> Block:
        """Read the rows of a finished shard; StoreError if it was damaged since."""
        path, rows = self._path(shard), len(self.rows(shard))
        raw = read_bounded(path, 2 * rows * (self._shape.row_bytes + (1 << 16)) + (1 << 20))
        return _decode(raw, rows=rows, shape=self._shape, index=shard, token=self._token, where=str(path))

    def read_finished(self, shard: int) -> Block:
        """Read like `read`; the error says what to do."""
        try:
            return self.read(shard)
        except StoreError as error:
            raise StoreError(f"{error}; run the same again and it is computed again") from None

    def set_aside(self, shard: int) -> None:
        """Give a shard that is computed again another name."""
        path = self._path(shard)
        self._files.rename(path, path.with_name(f"{path.name}.bad"))

    def sweep(self) -> None:
        """Remove what a killed run was writing."""
        for path in sorted(self.path.glob("*.tmp")):
            self._files.remove(path)

    def remove(self) -> None:
        """Remove everything of ours and the folder, and unlock it. What others put there stays."""
        self._empty()
        if self._lock is not None:
            self._lock.remove(self._files)
        self.release()
        try:
            self._files.remove_folder(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _path(self, shard: int) -> Path:
        return self.path / f"s{shard:05d}.h5"

    def _empty(self) -> None:
        with os.scandir(self.path) as entries:
            files = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
        names = [name for name in sorted(files) if _OURS.fullmatch(name)]
        if self._manifest_path.name in names:
            names.remove(self._manifest_path.name)
            self._files.remove(self._manifest_path)
            self._files.sync_folder(self.path)
        for name in names:
            self._files.remove(self.path / name)


def _encode(block: Block, *, index: int, token: str) -> bytes:
    """Turn a block, as `checked` returns it, into the bytes of a shard file; equal blocks give equal bytes."""
    # Not HDF5's own file in memory: in HDF5 1.14 the image that it gives out has a wrong checksum.
    memory = io.BytesIO()
    with new_file(memory) as file:
        write_text_attribute(file, "format", _SHARD_FORMAT)
        write_text_attribute(file, "manifest", token)
        file.attrs["index"] = np.int64(index)
        width = text_width(block.reasons, "reasons")
        for column in BLOCK_COLUMNS:
            values = encoded(getattr(block, column.name), column.dtype, width)
            new_data_set(file, column.name, values.shape, values.dtype)[...] = values
    image = memory.getvalue()
    return _head(image) + image


def _decode(raw: bytes, *, rows: int, shape: Shape, index: int, token: str, where: str) -> Block:
    """Turn the bytes of a shard file into its block.

    StoreError if a byte is damaged, it is the shard of other rows or of another manifest, or `checked` refuses it.
    """
    image = memoryview(raw)[HEAD:]
    if raw[:HEAD] != _head(image):
        raise StoreError(f"{where}: expected bytes that fit their checksum, found damage")
    lengths = shape.lengths(rows)
    with hdf5_errors(where), h5py.File(io.BytesIO(image), "r") as file:
        source = UntrustedHDF5(file, where, len(image))
        source.members(file, frozenset(column.name for column in BLOCK_COLUMNS))
        for name, expected in (("format", _SHARD_FORMAT), ("manifest", token)):
            if source.text(name) != expected:
                raise source.refuse(name, expected, source.text(name))
        if source.number("index") != index:
            raise source.refuse("index", str(index), source.number("index"))
        values: dict[str, Any] = {}
        for column in BLOCK_COLUMNS:
            data = source.column(file, column.name, dims_of(column, lengths), column.dtype)
            values[column.name] = read_values(data)
        return checked(Block(**values), rows, shape, where)


def _head(image: bytes | memoryview) -> bytes:
    line = f"vggfeat shard; the rest is HDF5 with SHA-256 {hashlib.sha256(image).hexdigest()}\n"
    return line.encode().ljust(HEAD - 1) + b"\n"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
