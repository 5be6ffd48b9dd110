"""Reading the few protobuf messages that FaceSDK needs, without generated code: ONNX cards, MediaPipe geometry."""

from __future__ import annotations

from collections.abc import Iterator

Buffer = bytes | memoryview


def fields(message: Buffer) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) pairs of one message: int for varints, bytes for everything else.

    Raises ValueError where the bytes are no protobuf message.
    """
    view, position = memoryview(message), 0
    while position < len(view):
        key, position = _varint(view, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(view, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(view, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown protobuf wire type {wire}")
        if number == 0 or position + size > len(view):
            raise ValueError("truncated protobuf message")
        yield number, view[position : position + size]
        position += size


def varints(packed: Buffer) -> Iterator[int]:
    """The values of a packed repeated integer field."""
    view, position = memoryview(packed), 0
    while position < len(view):
        value, position = _varint(view, position)
        yield value


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(view) or shift > 63:
            raise ValueError("truncated protobuf varint")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
