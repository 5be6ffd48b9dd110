"""The outside of an ONNX graph, inputs, outputs and operator set, read without the onnx package or the weights."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from . import protobuf
from .errors import EngineUnreadable, ModelNotFound

Parsed = TypeVar("Parsed")

# field numbers of onnx.proto
_OPSET_IMPORT, _GRAPH = 8, 7
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12
_INITIALIZER_NAME = 8
# onnx.TensorProto.DataType
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Value:
    """An input or output as the file declares it; a `str` in `shape` is a named free axis, None an unnamed one."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.type}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclasses.dataclass(frozen=True)
class Graph:
    """`opset`: operator-set domain -> version, the standard domain as "ai.onnx"."""

    opset: Mapping[str, int]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @classmethod
    def read(cls, path: str | Path) -> Graph:
        """The graph of an ONNX file of any size; raises ModelNotFound or EngineUnreadable."""
        return parse_file(path, _graph)


def parse_file(path: str | Path, parse: Callable[[memoryview], Parsed]) -> Parsed:
    """What `parse` makes of an ONNX file, which is mapped, not loaded; a ValueError there says why it is unreadable.

    Raises ModelNotFound or EngineUnreadable.
    """
    try:
        with Path(path).open("rb") as file:
            return parse(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except FileNotFoundError as error:
        raise ModelNotFound(f"{path} does not exist", remedy="check the path") from error
    except (ValueError, OSError) as error:
        raise EngineUnreadable(
            f"{path} is not an ONNX file that can be read",
            cause=str(error),
            remedy="open the ONNX file that it was built of: plans are found beside it"
            if Path(path).suffix == ".plan"
            else "check the path, or pull or export the engine again",
        ) from error


def _graph(model: memoryview) -> Graph:
    opset: dict[str, int] = {}
    inputs: list[Value] = []
    outputs: list[Value] = []
    weights: set[str] = set()
    for body in _messages(model, _OPSET_IMPORT):
        opset[_text(body, 1) or "ai.onnx"] = _number(body, 2)
    for graph in _messages(model, _GRAPH):
        for number, value in protobuf.fields(graph):
            if isinstance(value, memoryview) and number in (_INPUT, _OUTPUT):
                (inputs if number == _INPUT else outputs).append(_value(value))
            elif isinstance(value, memoryview) and number == _INITIALIZER:
                weights.add(_text(value, _INITIALIZER_NAME))
    if not outputs:
        raise ValueError("it holds no graph with outputs")
    # before IR version 4 every weight was declared as an input as well
    return Graph(opset, tuple(value for value in inputs if value.name not in weights), tuple(outputs))


def _value(info: memoryview) -> Value:
    types = [tensor for kind in _messages(info, 2) for tensor in _messages(kind, 1)]
    dims = [dim for tensor in types for shape in _messages(tensor, 2) for dim in _messages(shape, 1)]
    code = _number(types[0], 1) if types else 0
    return Value(_text(info, 1), _TYPES.get(code, f"type {code}"), tuple(map(_axis, dims)))


def _axis(dim: memoryview) -> int | str | None:
    for number, value in protobuf.fields(dim):
        if number == 1 and isinstance(value, int):
            return value
        if number == 2 and isinstance(value, memoryview):
            return bytes(value).decode() or None
    return None


def _messages(message: memoryview, wanted: int) -> list[memoryview]:
    return [value for number, value in protobuf.fields(message) if number == wanted and isinstance(value, memoryview)]


def _text(message: memoryview, wanted: int) -> str:
    found = _messages(message, wanted)
    return bytes(found[-1]).decode() if found else ""


def _number(message: memoryview, wanted: int) -> int:
    found = [value for number, value in protobuf.fields(message) if number == wanted and isinstance(value, int)]
    return found[-1] if found else 0
