"""MATLAB's files of level 5 (`save -v6` and `save -v7`), read without trusting any size that they declare, and written.

A file is a row of elements, each a type, a number of bytes, and these; an array is an element of elements, and may
be compressed. Source: "MAT-File Format", The MathWorks.
"""

import itertools
import math
import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import WeightsError
from vggfeat.runtime.durable import LatchedFile

MOST_ARRAYS = 100_000
"""In one file; a MatConvNet net has some thousands. It bounds the time and the memory that a file can take."""
MOST_DEPTH = 16
"""Of arrays in arrays; 6 in a net."""
MOST_INFLATED = 4
"""Times its compressed size: the weights of a trained net hardly shrink at all."""
_ALLOWANCE = 16 << 20
"""Bytes that may come out of any file, for class names and a mean image, which do shrink."""
_CHUNK = 1 << 20
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_DTYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_CELL, _STRUCT, _CHAR, _OPAQUE = 1, 2, 4, 17
_NUMBERS = {
    6: "double", 7: "single", 8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32",
    14: "int64", 15: "uint64",
}  # fmt: skip
_OTHERS = {3: "object", 5: "sparse", 16: "function handle", 17: "object"}
_MOST_AXES = 32
_LONGEST_NAME, _MOST_NAMES = 64, 1000
"""Of the fields of a struct; a layer has some ten."""


@dataclass(frozen=True)
class Numbers:
    """An array of real numbers, as its bytes in the file."""

    kind: str
    """MATLAB's class: double, single, int8, ..."""
    shape: tuple[int, ...]
    """Shape as in MATLAB: at least two axes, and none of length 1 behind them."""
    dtype: str
    """Type of the bytes. MATLAB stores whole numbers in as few bytes as they need."""
    content: bytearray

    def array(self) -> NDArray[Any]:
        """Return the numbers with the axes in the reverse order: MATLAB's first axis is the fastest."""
        return np.frombuffer(self.content, self.dtype).reshape(self.shape[::-1])


@dataclass(frozen=True)
class Other:
    """An array that is neither read nor needed."""

    kind: str


def read_mat(path: Path, wanted: Collection[str]) -> dict[str, Any]:
    """Read the wanted variables of a file; all others are passed over.

    Cells become lists, structs dictionaries, arrays of structs lists of them, texts str, numbers `Numbers`, and all
    else `Other`. WeightsError if it is damaged, of another version, inflates to far more than its size, or can't be
    read.
    """
    try:
        with path.open("rb") as file:
            _check_header(path, file.read(_HEADER))
            return _variables(path, file, path.stat().st_size, wanted)
    except OSError as error:
        raise WeightsError(f"{path}: can't read: {error.strerror or error}") from error


def _check_header(path: Path, header: bytes) -> None:
    if header.startswith(b"MATLAB 7.3"):
        raise WeightsError(
            f"{path}: expected a MATLAB file of version 5 to 7, found version 7.3 (HDF5); "
            "load it in MATLAB and save it with save('-v7', ...)"
        )
    if len(header) < _HEADER or header[124:128] != b"\x00\x01IM":
        raise WeightsError(f"{path}: expected a MATLAB file of version 5 to 7, found another or a damaged one")


def _variables(path: Path, file: BinaryIO, size: int, wanted: Collection[str]) -> dict[str, Any]:
    found, count = {}, itertools.count()
    while file.tell() < size:
        stream, inflated = _Stream(path, file.read, size - file.tell(), count), None
        stream.count_array()
        kind, length, _ = stream.tag()
        end = file.tell() + length
        if end > size:
            raise stream.damaged(f"an array of {length} bytes, where {stream.left} are left")
        if kind == _COMPRESSED:
            inflated = _Inflated(path, file, length)
            stream = _Stream(path, inflated.read, MOST_INFLATED * length + _ALLOWANCE, count)
            kind, length, _ = stream.tag()
        if kind == _MATRIX and length:
            head = _Head(stream)
            if head.name in found:  # each may inflate to far more than it takes in the file
                raise stream.damaged(f"two variables {head.name}")
            if head.name in wanted:
                found[head.name] = _value(stream, head, 1)
                if inflated and not inflated.ends():
                    raise stream.damaged(f"more than the {length} bytes of {head.name}, or no checksum")
        file.seek(end)
    return found


class _Inflated:
    """The bytes behind compressed ones of a file."""

    def __init__(self, path: Path, file: BinaryIO, length: int) -> None:
        self._path, self._file, self._left = path, file, length
        self._zlib = zlib.decompressobj()

    def read(self, length: int) -> bytes:
        """Return at most `length` bytes, and none only at the end."""
        found, waiting = b"", self._zlib.unconsumed_tail
        while not found and not self._zlib.eof:
            if not waiting:
                waiting = self._file.read(min(_CHUNK, self._left))
                self._left -= len(waiting)
                if not waiting:
                    break
            try:
                found = self._zlib.decompress(waiting, length)
            except zlib.error as error:
                raise WeightsError(f"{self._path}: expected compressed arrays, found damaged ones: {error}") from None
            waiting = self._zlib.unconsumed_tail
        return found

    def ends(self) -> bool:
        """Tell whether all was read; zlib checks the checksum, which is behind the last byte."""
        return not self.read(1) and self._zlib.eof


class _Stream:
    """Bytes one after the other, how many there can be at most, and the arrays of the file so far."""

    def __init__(self, path: Path, read: Callable[[int], bytes], left: int, count: Iterator[int]) -> None:
        self._path, self._read, self.left, self._count = path, read, left, count

    def count_array(self) -> None:
        """Count one more array, or raise WeightsError if there are too many."""
        if next(self._count) >= MOST_ARRAYS:
            raise self.damaged(f"more than {MOST_ARRAYS} arrays")

    def take(self, length: int) -> bytearray:
        """Read that many bytes; memory is only taken as they come."""
        if length > self.left:
            raise self.damaged(f"{length} bytes, where at most {self.left} can be left")
        found = bytearray()
        while len(found) < length:
            chunk = self._read(min(_CHUNK, length - len(found)))
            if not chunk:
                raise self.damaged("the end of the data")
            found += chunk
        self.left -= length
        return found

    def tag(self) -> tuple[int, int, bytearray | None]:
        """Read the type and the length of an element, with the bytes themselves where they are up to 4."""
        first, second = struct.unpack("<II", start := self.take(8))
        if first >> 16:
            return first & 0xFFFF, min(first >> 16, 4), start[4 : 4 + (first >> 16)]
        return first, second, None

    def element(self) -> tuple[int, bytearray]:
        """Read an element that is no array: its type and its bytes."""
        kind, length, content = self.tag()
        if content is None:
            content = self.take(length)
            self.skip(-length % 8)
        return kind, content

    def skip(self, length: int) -> None:
        """Pass over some bytes."""
        while length > 0:
            length -= len(self.take(min(length, _CHUNK)))

    def damaged(self, found: str) -> WeightsError:
        """Return the error that says what was found."""
        return WeightsError(f"{self._path}: expected a MATLAB file, found {found}; it is damaged")


class _Head:
    """What comes before the content of an array: its class, shape and name."""

    def __init__(self, stream: _Stream) -> None:
        flags = stream.element()[1]
        if len(flags) != 8:
            raise stream.damaged(f"{len(flags)} bytes of flags")
        self.kind, self.complex = flags[0], bool(flags[1] & 0x08)
        # An object of a class defined in MATLAB has a name here, and no shape.
        sides = stream.element()[1] if self.kind != _OPAQUE else bytearray(8)
        if len(sides) % 4 or not 2 <= len(sides) // 4 <= _MOST_AXES:
            raise stream.damaged(f"an array with {len(sides) / 4:g} axes")
        self.shape = struct.unpack(f"<{len(sides) // 4}I", sides)
        self.name = stream.element()[1].decode("latin-1")


def _array(stream: _Stream, depth: int) -> Any:
    stream.count_array()
    kind, length, _ = stream.tag()
    if kind != _MATRIX or length > stream.left:
        raise stream.damaged(f"an element of type {kind} with {length} bytes in the place of an array")
    end = stream.left - length
    value = _value(stream, _Head(stream), depth) if length else Numbers("double", (0, 0), "u1", bytearray())
    if stream.left < end:
        raise stream.damaged(f"an array longer than its {length} bytes")
    stream.skip(stream.left - end)
    return value


def _value(stream: _Stream, head: _Head, depth: int) -> Any:
    if depth > MOST_DEPTH:
        raise stream.damaged(f"arrays in arrays, more than {MOST_DEPTH} deep")
    total = math.prod(head.shape)
    if head.kind == _CELL:
        return [_array(stream, depth + 1) for _ in range(total)]
    if head.kind == _STRUCT:
        return _struct(stream, total, depth)
    if head.kind == _CHAR:
        kind, content = stream.element()
        return content.decode(_TEXTS.get(kind, "latin-1"), "replace")
    if head.complex or head.kind not in _NUMBERS:
        return Other("complex numbers" if head.complex else _OTHERS.get(head.kind, f"class {head.kind}"))
    kind, content = stream.element()
    if kind not in _DTYPES or len(content) != total * np.dtype(_DTYPES[kind]).itemsize:
        raise stream.damaged(f"{len(content)} bytes of type {kind} for an array of shape {head.shape}")
    return Numbers(_NUMBERS[head.kind], head.shape, _DTYPES[kind], content)


def _struct(stream: _Stream, total: int, depth: int) -> Any:
    longest = int.from_bytes(stream.element()[1][:8], "little")
    names = stream.element()[1]
    if not 0 < longest <= _LONGEST_NAME or len(names) % longest or len(names) > longest * _MOST_NAMES:
        raise stream.damaged(f"{len(names)} bytes of names of fields of {longest} bytes each")
    fields = [names[at : at + longest].split(b"\0")[0].decode("latin-1") for at in range(0, len(names), longest)]
    if not fields:
        return []
    structs = [{field: _array(stream, depth + 1) for field in fields} for _ in range(total)]
    return structs[0] if total == 1 else structs


_INT8, _INT32, _UINT32, _UTF16 = 1, 5, 6, 17
_WRITTEN = {"<f8": (6, 9), "<f4": (7, 7), "|i1": (8, 1)}
"""Type of numpy -> class of the matrix, type of its data."""
_NAME = 64
_ROWS_AT_A_TIME = 1 << 24

Value = NDArray[Any] | Sequence[str] | Mapping[str, NDArray[Any]]


def write_mat5(sink: LatchedFile, variables: Mapping[str, Value]) -> None:
    """Write variables: numbers (n, m) of float64, float32 or int8; columns of texts, as cells; structs of numbers.

    Texts are UTF-16 with the number of its units, which is what MATLAB counts: in UTF-8, as SciPy writes them, Octave
    reads as many bytes as there are characters, and cuts the rest. Characters of two units are written as
    \\U0001f600, because SciPy counts them as one, and then reads nothing of the file.
    """
    sink.write(b"MATLAB 5.0 MAT-file, written by vggfeat".ljust(116) + bytes(8) + b"\x00\x01IM")
    for name, value in variables.items():
        if isinstance(value, np.ndarray):
            _write_numbers(sink, name, value)
        else:
            sink.write(_struct_of(name, value) if isinstance(value, Mapping) else _cells(name, value))


def _write_numbers(sink: LatchedFile, name: str, values: NDArray[Any]) -> None:
    kind, data = _WRITTEN[values.dtype.str]
    head, size = _head(name, kind, values.shape), values.nbytes
    sink.write(struct.pack("<II", _MATRIX, len(head) + 8 + size + -size % 8) + head + struct.pack("<II", data, size))
    step = max(1, _ROWS_AT_A_TIME // max(1, len(values) * values.itemsize))
    for start in range(0, values.shape[1], step):  # by columns, as they are stored
        sink.write(values[:, start : start + step].tobytes(order="F"))
    sink.write(bytes(-size % 8))


def _numbers(values: NDArray[Any]) -> bytes:
    kind, data = _WRITTEN[values.dtype.str]
    return _matrix("", kind, values.shape, _element(data, values.tobytes(order="F")))


def _cells(name: str, texts: Sequence[str]) -> bytes:
    return _matrix(name, _CELL, (len(texts), 1), b"".join(map(_text, texts)))


def _text(text: str) -> bytes:
    narrow = "".join(char if ord(char) < 0x10000 else f"\\U{ord(char):08x}" for char in text)
    units = narrow.encode("utf-16-le", "backslashreplace")
    return _matrix("", _CHAR, (1, len(units) // 2) if units else (0, 0), _element(_UTF16, units))


def _struct_of(name: str, fields: Mapping[str, NDArray[Any]]) -> bytes:
    names = b"".join(field.encode("ascii").ljust(_NAME, b"\0") for field in fields)
    length = struct.pack("<HHi", _INT32, 4, _NAME)  # A small element: its size is next to its type.
    content = length + _element(_INT8, names) + b"".join(map(_numbers, fields.values()))
    return _matrix(name, _STRUCT, (1, 1), content)


def _matrix(name: str, kind: int, dims: tuple[int, ...], content: bytes) -> bytes:
    return _element(_MATRIX, _head(name, kind, dims) + content)


def _head(name: str, kind: int, dims: tuple[int, ...]) -> bytes:
    flags, sizes = struct.pack("<II", kind, 0), np.array(dims, "<i4").tobytes()
    return _element(_UINT32, flags) + _element(_INT32, sizes) + _element(_INT8, name.encode("ascii"))


def _element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)
