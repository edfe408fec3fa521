"""Protocol buffer messages in a file: their fields are found by their lengths, and only those asked for are read.

A message is a row of fields, each with a number and a value: an integer, 4 bytes, 8 bytes, or a length and as many
bytes, which may be a text, a message, or a row of numbers (packed).
Source: the encoding guide of Protocol Buffers, "Message Structure".
"""

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vggfeat.errors import WeightsError

MOST_FIELDS = 1 << 17
"""A file of a VGG net has some thousands. It bounds the time and the memory that a file can take."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


class Span(NamedTuple):
    """Some bytes of the file, not read yet."""

    start: int
    end: int


class ProtobufFile:
    """An open file that is one message: a binary file, buffered, and its path for error messages."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._left = MOST_FIELDS

    def message(self) -> "Message":
        """Return the message that is the complete file."""
        return Message(self, Span(0, os.fstat(self._file.fileno()).st_size))

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """Read the integer at a place: its value, below 2^64, and the place behind it."""
        self._left -= 1
        if self._left < 0:
            raise self.damaged(at, f"more than {MOST_FIELDS} fields")
        # Seven bits a byte, the lowest first; the highest bit says that more follow: at most 10 bytes.
        self._file.seek(at)
        value = 0
        for index, byte in enumerate(self._file.read(min(10, end - at))):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + index + 1
        raise self.damaged(at, "an integer without an end")

    def read_into(self, span: Span, into: memoryview) -> None:
        """Copy the bytes of a span."""
        self._file.seek(span.start)
        if self._file.readinto(into) != len(into):  # type: ignore[attr-defined]
            raise self.damaged(span.start, "the end of the file")

    def damaged(self, at: int, found: str) -> WeightsError:
        """Return the error that says what was found at byte `at`."""
        return WeightsError(f"{self._path}: expected a Caffe model, found {found} at byte {at}; it is damaged")


class Message:
    """The fields of one message, by number: the integer of each, or the place of its bytes.

    WeightsError if it is damaged, cut off, or has far too many fields.
    """

    def __init__(self, file: ProtobufFile, span: Span) -> None:
        self._file, self._span = file, span
        self._fields: dict[int, list[int | Span]] = {}
        at, end = span
        while at < end:
            tag, at = file.varint(at, end)
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                value, at = file.varint(at, end)
                self._fields.setdefault(number, []).append(value)
                continue
            length = {_FOUR: 4, _EIGHT: 8}.get(kind, -1)
            if kind == _BYTES:
                length, at = file.varint(at, end)
            if length < 0 or number == 0:
                raise file.damaged(at, f"a field {number} of type {kind}")
            if length > end - at:
                raise file.damaged(at, f"field {number} of {length} bytes, where {end - at} are left")
            self._fields.setdefault(number, []).append(Span(at, at + length))
            at += length

    def messages(self, number: int, most: int = 1000) -> list["Message"]:
        """Return the messages in a field, at most `most`; protocol buffers don't tell them from other bytes."""
        spans = self._spans(number)
        if len(spans) > most:
            raise self._file.damaged(self._span.start, f"{len(spans)} messages in field {number}")
        return [Message(self._file, span) for span in spans]

    def last(self, number: int) -> "Message":
        """Return the message in a field; one without fields if there is none."""
        return Message(self._file, self._spans(number)[-1] if self._spans(number) else Span(0, 0))

    def integers(self, *numbers: int) -> tuple[int, ...]:
        """Return all the integers of some fields, those packed into one included."""
        found: list[int] = []
        for value in (value for number in numbers for value in self._fields.get(number, ())):
            if isinstance(value, int):
                found.append(value)
                continue
            at, end = value
            while at < end:
                integer, at = self._file.varint(at, end)
                found.append(integer)
        return tuple(found)

    def text(self, number: int, most: int = 1000) -> str:
        """Return a text of at most `most` bytes; empty if there is none."""
        start, end = self._spans(number)[-1] if self._spans(number) else (0, 0)
        if end - start > most:
            raise self._file.damaged(start, f"a name of {end - start} bytes")
        content = bytearray(end - start)
        self._file.read_into(Span(start, end), memoryview(content))
        return content.decode("utf-8", "replace")

    def bytes_of(self, number: int) -> int:
        """Count the bytes of a field's numbers, packed or each on its own."""
        return sum(end - start for start, end in self._spans(number))

    def floats(self, number: int, dtype: str = "<f4") -> NDArray[np.floating]:
        """Read the numbers of a field as `dtype`, "<f4" or "<f8"; memory is only taken for bytes that exist."""
        size = np.dtype(dtype).itemsize
        content, at = bytearray(self.bytes_of(number) // size * size), 0
        for start, end in self._spans(number):
            length = min(end - start, len(content) - at)
            self._file.read_into(Span(start, start + length), memoryview(content)[at : at + length])
            at += length
        return np.frombuffer(content, dtype)

    def _spans(self, number: int) -> list[Span]:
        return [value for value in self._fields.get(number, ()) if isinstance(value, Span)]
