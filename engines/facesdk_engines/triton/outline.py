"""An ONNX file without its insides: what it takes and gives, and its card, but no nodes and no weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from facesdk import protobuf
from facesdk.graph import Graph, parse_file

# field numbers of onnx.proto
_IR_VERSION, _OPSET_IMPORT, _GRAPH, _METADATA_PROPS = 1, 8, 7, 14
_GRAPH_NAME, _INPUT, _OUTPUT, _VALUE_NAME = 2, 11, 12, 1


def outline(path: Path) -> bytes:
    """An ONNX file from which Graph.read and Card.read read what they read of `path`; nothing can run it."""
    # before IR version 4 every weight was declared as an input as well
    inputs = {value.name for value in Graph.read(path).inputs}
    return parse_file(path, lambda model: b"".join(_model(model, inputs)))


def _model(model: memoryview, inputs: set[str]) -> Iterator[bytes]:
    for number, value in protobuf.fields(model):
        if number == _GRAPH and isinstance(value, memoryview):
            yield _field(number, b"".join(_graph(value, inputs)))
        elif number in (_IR_VERSION, _OPSET_IMPORT, _METADATA_PROPS):
            yield _field(number, value)


def _graph(graph: memoryview, inputs: set[str]) -> Iterator[bytes]:
    for number, value in protobuf.fields(graph):
        kept = number in (_GRAPH_NAME, _OUTPUT) or (number == _INPUT and _name(value) in inputs)
        if kept:
            yield _field(number, value)


def _name(value: memoryview | int) -> str:
    parts = protobuf.fields(value) if isinstance(value, memoryview) else ()
    return next((bytes(part).decode() for n, part in parts if n == _VALUE_NAME and isinstance(part, memoryview)), "")


def _field(number: int, value: bytes | memoryview | int) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    return _number(number << 3 | 2) + _number(len(value)) + bytes(value)


def _number(value: int) -> bytes:
    """A base-128 varint."""
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _number(high) if high else bytes([low])
