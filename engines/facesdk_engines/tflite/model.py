"""A `.tflite` file as plain Python objects (the public TFLite schema, version 3)."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facesdk.errors import ConversionError, ModelNotFound

from . import sparsity
from .flatbuffers import Buffer, Scalar, Table
from .schema import OPERATORS, TYPES

IDENTIFIER = b"TFL3"

_READABLE = {"float32", "float16", "int32", "int64"}  # constants of any other type have no use here
_LARGEST = 1 << 27  # elements of one tensor: far above any face network, far below the memory of a machine


@dataclasses.dataclass(frozen=True)
class Tensor:
    """`data` is None for what is computed at run time, and for constants of a type that is never translated."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: npt.NDArray[Any] | None


@dataclasses.dataclass(frozen=True)
class Operator:
    """`kind` is the builtin's name, or `CUSTOM <name>`; tensors are given by index, -1 for one that is left out."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Table | None

    def option(self, field: int, kind: Scalar = "i32", default: int = 0) -> int:
        """One field of the operator's options table."""
        return default if self.options is None else self.options.scalar(field, kind, default)


@dataclasses.dataclass(frozen=True)
class Model:
    """One subgraph; `source` names the file in messages."""

    source: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def load(source: str | Path | bytes) -> Model:
    """The parsed model of a file or of its bytes; constants are views of the bytes, sparse ones are expanded.

    Raises ModelNotFound, or ConversionError naming the file and what is wrong with it.
    """
    buffer = _read(source)
    if bytes(buffer.data[4:8]) != IDENTIFIER:
        raise buffer.broken(f"the identifier {IDENTIFIER.decode()} is missing at byte 4")
    root = buffer.root()
    graphs = root.tables(2)
    if len(graphs) != 1:
        raise ConversionError(
            f"{buffer.source} has {len(graphs)} subgraphs",
            cause="control flow and several signatures are not translated",
            remedy="export the one function that you need as a model of its own",
        )
    data = [table.array(0, "u1") for table in root.tables(4)]
    codes = [_kind(code) for code in root.tables(1)]
    tensors = tuple(_tensor(table, data) for table in graphs[0].tables(0))
    operators = tuple(_operator(table, codes, len(tensors)) for table in graphs[0].tables(3))
    inputs, outputs = (_indices(graphs[0], field, 0, len(tensors)) for field in (1, 2))
    return Model(buffer.source, tensors, operators, inputs, outputs)


def _read(source: str | Path | bytes) -> Buffer:
    if isinstance(source, bytes):
        return Buffer(source, "the model")
    try:
        return Buffer(Path(source).read_bytes(), str(source))
    except FileNotFoundError as error:
        raise ModelNotFound(f"{source} does not exist", remedy="check the path") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConversionError(f"{source} cannot be read", cause=reason, remedy="check the file") from error


def _kind(code: Table) -> str:
    number = max(code.scalar(0, "i8"), code.scalar(3, "i32"))  # the first holds codes below 127 only
    name = OPERATORS[number] if 0 <= number < len(OPERATORS) else f"BUILTIN_{number}"
    return f"CUSTOM {code.string(1)}" if name == "CUSTOM" else name


def _tensor(table: Table, buffers: list[npt.NDArray[Any]]) -> Tensor:
    name, shape, number = table.string(3), table.integers(0), table.scalar(2, "u32")
    code = table.scalar(1, "i8")
    dtype = TYPES[code] if 0 <= code < len(TYPES) else f"type {code}"
    if any(extent < 1 for extent in shape) or math.prod(shape) > _LARGEST:
        raise table.buffer.broken(f"tensor {name!r} has the shape {shape}")
    if number >= len(buffers):
        raise table.buffer.broken(f"tensor {name!r} refers to buffer {number} of {len(buffers)}")
    if not buffers[number].size or dtype not in _READABLE:
        return Tensor(name, shape, dtype, None)
    return Tensor(name, shape, dtype, _constant(table, name, shape, np.dtype(dtype), buffers[number]))


def _constant(
    table: Table, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], raw: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    sparse = table.table(6)
    if raw.size % dtype.itemsize or (sparse is None and raw.size != math.prod(shape) * dtype.itemsize):
        raise table.buffer.broken(f"tensor {name!r} of shape {shape} and type {dtype} has {raw.size} bytes")
    values = raw.view(dtype.newbyteorder("<"))
    return values.reshape(shape) if sparse is None else sparsity.expand(values, shape, sparse)


def _operator(table: Table, codes: list[str], tensors: int) -> Operator:
    number = table.scalar(0, "u32")
    if number >= len(codes):
        raise table.buffer.broken(f"an operator has the code {number} of {len(codes)}")
    inputs, outputs = _indices(table, 1, -1, tensors), _indices(table, 2, 0, tensors)
    return Operator(codes[number], inputs, outputs, table.table(4))


def _indices(table: Table, field: int, lowest: int, tensors: int) -> tuple[int, ...]:
    indices = table.integers(field)
    if any(not lowest <= index < tensors for index in indices):
        raise table.buffer.broken(f"tensors {indices} are referred to, {tensors} exist")
    return indices
