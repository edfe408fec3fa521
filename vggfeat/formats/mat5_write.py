"""MATLAB 5 files, written so that MATLAB, Octave and SciPy read the same texts.

Texts are UTF-16 with the number of its units, which is what MATLAB counts: in UTF-8, as SciPy writes them, Octave reads
as many bytes as there are characters, and cuts the rest. Characters of two units are written as \\U0001f600, because
SciPy counts them as one, and then reads nothing of the file.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_INT8, _INT32, _UINT32, _MATRIX, _UTF16 = 1, 5, 6, 14, 17
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBERS = {"<f8": (6, 9), "<f4": (7, 7), "|i1": (8, 1)}
"""Type of numpy -> class of the matrix, type of its data."""
_NAME = 64
_ROWS_AT_A_TIME = 1 << 24

Value = NDArray[Any] | Sequence[str] | Mapping[str, NDArray[Any]]


class Sink(Protocol):
    """What is written to."""

    def write(self, data: Any) -> Any:
        """Write bytes."""


def write_mat5(sink: Sink, variables: Mapping[str, Value]) -> None:
    """Write variables: numbers (n, m) of float64, float32 or int8; columns of texts, as cells; structs of numbers."""
    sink.write(b"MATLAB 5.0 MAT-file, written by vggfeat".ljust(116) + bytes(8) + b"\x00\x01IM")
    for name, value in variables.items():
        if isinstance(value, np.ndarray):
            _write_numbers(sink, name, value)
        else:
            sink.write(_struct(name, value) if isinstance(value, Mapping) else _cells(name, value))


def _write_numbers(sink: Sink, name: str, values: NDArray[Any]) -> None:
    kind, data = _NUMBERS[values.dtype.str]
    head, size = _head(name, kind, values.shape), values.nbytes
    sink.write(struct.pack("<II", _MATRIX, len(head) + 8 + size + -size % 8) + head + struct.pack("<II", data, size))
    step = max(1, _ROWS_AT_A_TIME // max(1, len(values) * values.itemsize))
    for start in range(0, values.shape[1], step):  # by columns, as they are stored
        sink.write(values[:, start : start + step].tobytes(order="F"))
    sink.write(bytes(-size % 8))


def _numbers(values: NDArray[Any]) -> bytes:
    kind, data = _NUMBERS[values.dtype.str]
    return _matrix("", kind, values.shape, _element(data, values.tobytes(order="F")))


def _cells(name: str, texts: Sequence[str]) -> bytes:
    return _matrix(name, _CELL, (len(texts), 1), b"".join(map(_text, texts)))


def _text(text: str) -> bytes:
    narrow = "".join(char if ord(char) < 0x10000 else f"\\U{ord(char):08x}" for char in text)
    units = narrow.encode("utf-16-le", "backslashreplace")
    return _matrix("", _CHAR, (1, len(units) // 2) if units else (0, 0), _element(_UTF16, units))


def _struct(name: str, fields: Mapping[str, NDArray[Any]]) -> bytes:
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
