"""Reading FlatBuffers without generated code: tables, vectors, strings and scalars, every access checked.

The layout is the public one of https://flatbuffers.dev/internals: little endian, a table starts with the signed
distance back to its vtable, which lists for each field where in the table it lies (0: absent).
"""

from __future__ import annotations

import struct
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from facesdk.errors import ConversionError

Scalar = Literal["bool", "i8", "u8", "u16", "i32", "u32", "u64"]

_FORMATS: dict[str, str] = {"bool": "<?", "i8": "<b", "u8": "<B", "u16": "<H", "i32": "<i", "u32": "<I", "u64": "<Q"}
_SPARE = 1 << 16  # a file may be read this often and a bit more before it counts as referring to itself


class Buffer:
    """The bytes of one file and its name for messages; raises ConversionError for whatever lies outside.

    All vectors together may not be much longer than the file: offsets that point at the same bytes again and
    again would otherwise make a small file unfold without end.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self.data, self.source = memoryview(data), source
        self._allowance = 8 * len(data) + _SPARE

    def broken(self, what: str) -> ConversionError:
        """The error for a malformed file, ready to be raised."""
        remedy = "get the file again: it is truncated or damaged"
        return ConversionError(f"{self.source} is not a readable TFLite file", cause=what, remedy=remedy)

    def scalar(self, kind: Scalar, position: int) -> int:
        """The number at a byte position."""
        form = _FORMATS[kind]
        if not 0 <= position <= len(self.data) - struct.calcsize(form):
            raise self.broken(f"byte {position} is needed, the file has {len(self.data)}")
        return int(struct.unpack_from(form, self.data, position)[0])

    def vector(self, position: int, item_size: int) -> tuple[int, int]:
        """(start, count) of the vector whose length stands at `position`."""
        count, start = self.scalar("u32", position), position + 4
        size = count * item_size
        if start + size > len(self.data):
            raise self.broken(f"a vector of {size} bytes at byte {start} ends after the file")
        self._allowance -= size
        if self._allowance < 0:
            raise self.broken("its vectors overlap each other many times")
        return start, count

    def root(self) -> Table:
        """The table that the file starts with."""
        return Table(self, self.scalar("u32", 0))


class Table:
    """One table; its fields are addressed by their number in the schema."""

    __slots__ = ("_position", "_slots", "_vtable", "buffer")

    def __init__(self, buffer: Buffer, position: int) -> None:
        self.buffer, self._position = buffer, position
        self._vtable = position - buffer.scalar("i32", position)
        self._slots = (buffer.scalar("u16", self._vtable) - 4) // 2

    def _field(self, field: int) -> int:
        if field >= self._slots:
            return 0
        offset = self.buffer.scalar("u16", self._vtable + 4 + 2 * field)
        return self._position + offset if offset else 0

    def _target(self, position: int) -> int:
        return position + self.buffer.scalar("u32", position)

    def scalar(self, field: int, kind: Scalar, default: int = 0) -> int:
        """A number (booleans as 0 and 1), or `default` where the field is absent."""
        position = self._field(field)
        return self.buffer.scalar(kind, position) if position else default

    def table(self, field: int) -> Table | None:
        """A nested table, or None where the field is absent."""
        position = self._field(field)
        return Table(self.buffer, self._target(position)) if position else None

    def tables(self, field: int) -> list[Table]:
        """A vector of tables; empty where the field is absent."""
        position = self._field(field)
        if not position:
            return []
        start, count = self.buffer.vector(self._target(position), 4)
        return [Table(self.buffer, self._target(start + 4 * i)) for i in range(count)]

    def array(self, field: int, dtype: str) -> npt.NDArray[Any]:
        """A vector of numbers, as a view of the file; empty where the field is absent."""
        position = self._field(field)
        if not position:
            return np.zeros(0, dtype)
        start, count = self.buffer.vector(self._target(position), np.dtype(dtype).itemsize)
        return np.frombuffer(self.buffer.data, dtype, count, start) if count else np.zeros(0, dtype)

    def integers(self, field: int) -> tuple[int, ...]:
        """A vector of 32-bit integers."""
        return tuple(self.array(field, "<i4").tolist())

    def string(self, field: int) -> str:
        """A string; bytes that are not UTF-8 are replaced."""
        return self.array(field, "u1").tobytes().decode("utf-8", "replace")
