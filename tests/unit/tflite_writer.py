"""Writing small TFLite files: FlatBuffers top down, every field in a slot of four bytes."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from facesdk_engines.tflite.schema import OPERATORS, TYPES

type_code = {np.dtype(name): TYPES.index(name) for name in ("float32", "float16", "int32", "int64", "int8")}

# A field is a number, a string, an array (vector of numbers), a table (fields by number), or a vector of tables.
Field = int | float | str | np.ndarray | Mapping[int, "Field"] | Sequence[Mapping[int, "Field"]]


def flatbuffer(root: Mapping[int, Field]) -> bytes:
    """The file of a root table, with TFLite's identifier."""
    out = bytearray(4) + b"TFL3"
    struct.pack_into("<I", out, 0, _table(out, root))
    return bytes(out)


def _table(out: bytearray, fields: Mapping[int, Field]) -> int:
    slots = max(fields, default=-1) + 1
    vtable, position = len(out), len(out) + 4 + 2 * slots
    places = {field: 4 + 4 * order for order, field in enumerate(fields)}
    out += struct.pack("<HH", 4 + 2 * slots, 4 + 4 * len(fields))
    out += struct.pack(f"<{slots}H", *(places.get(field, 0) for field in range(slots)))
    out += struct.pack("<i", position - vtable) + bytes(4 * len(fields))
    for field, value in fields.items():
        _fill(out, position + places[field], value)
    return position


def _fill(out: bytearray, place: int, value: Field) -> None:
    if isinstance(value, int | float):
        struct.pack_into("<i" if isinstance(value, int) else "<f", out, place, value)
    elif isinstance(value, Mapping):
        struct.pack_into("<I", out, place, _table(out, value) - place)
    elif isinstance(value, str | np.ndarray):
        array = np.frombuffer(value.encode(), np.uint8) if isinstance(value, str) else value.reshape(-1)
        struct.pack_into("<I", out, place, len(out) - place)
        out += struct.pack("<I", len(array)) + array.tobytes()
    else:
        struct.pack_into("<I", out, place, len(out) - place)
        start = len(out) + 4
        out += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for order, item in enumerate(value):
            _fill(out, start + 4 * order, item)


@dataclasses.dataclass
class Graph:
    """A model under construction; tensors are named and referred to by name."""

    tensors: list[dict[int, Field]] = dataclasses.field(default_factory=list)
    buffers: list[dict[int, Field]] = dataclasses.field(default_factory=lambda: [{}])
    operators: list[dict[int, Field]] = dataclasses.field(default_factory=list)
    codes: list[dict[int, Field]] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "float32", **more: Field) -> str:
        """A computed tensor."""
        return self._add(name, shape, np.dtype(dtype), 0, more.get("sparsity"))

    def constant(self, name: str, value: np.ndarray, shape: Sequence[int] | None = None, **more: Field) -> str:
        """A constant; `shape` and `sparsity` for one whose values are stored sparsely."""
        self.buffers.append({0: np.ascontiguousarray(value).reshape(-1).view(np.uint8)})
        return self._add(name, value.shape if shape is None else shape, value.dtype, -1, more.get("sparsity"))

    def _add(self, name: str, shape: Sequence[int], dtype: np.dtype, buffer: int, sparsity: Field | None) -> str:
        number = len(self.buffers) - 1 if buffer else 0
        fields: dict[int, Field] = {0: np.array(shape, np.int32), 1: type_code[dtype], 2: number, 3: name}
        self.tensors.append(fields if sparsity is None else {**fields, 6: sparsity})
        self.names.append(name)
        return name

    def operator(
        self, kind: str, inputs: Sequence[str], output: str, options: Mapping[int, Field] | None = None
    ) -> None:
        """One operator; `kind` is a builtin's name, or anything else for a custom one."""
        builtin = OPERATORS.index(kind if kind in OPERATORS else "CUSTOM")
        self.codes.append({0: builtin, 3: builtin, **({} if kind in OPERATORS else {1: kind})})
        fields: dict[int, Field] = {0: len(self.codes) - 1, 1: self._indices(inputs), 2: self._indices([output])}
        self.operators.append(fields if options is None else {**fields, 4: dict(options)})

    def _indices(self, names: Sequence[str]) -> np.ndarray:
        return np.array([self.names.index(name) if name else -1 for name in names], np.int32)

    def file(self, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
        """The finished `.tflite` file."""
        graph = {0: self.tensors, 1: self._indices(inputs), 2: self._indices(outputs), 3: self.operators}
        return flatbuffer({0: 3, 1: self.codes, 2: [graph], 4: self.buffers})
