"""The card of an engine: what the graph is, kept inside the ONNX file as metadata properties."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from . import protobuf
from .graph import parse_file

PREFIX = "facesdk."
_METADATA_PROPS = 14  # field of onnx.ModelProto


@dataclasses.dataclass(frozen=True)
class Card:
    """What a graph is and where it comes from; every field has a stated "unknown".

    inputs, outputs  tensor name -> meaning, unit and range in one line.
    example_shapes   input name -> a typical shape, for benchmarks and for choosing a backend.
    deviation        output name -> largest difference from the source network (fp16: from the fp32 engine), in its std.
    """

    system: str = ""
    engine: str = ""
    about: str = ""
    source: str = ""
    source_sha256: str = ""
    licence: str = ""
    precision: str = "fp32"
    recipe: str = ""
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    example_shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    deviation: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_properties(self) -> dict[str, str]:
        """The card as ONNX `metadata_props`: one property a field, tables as JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {PREFIX + name: v if isinstance(v, str) else json.dumps(v) for name, v in values.items() if v}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Card:
        """The card in a graph's metadata; absent fields keep their defaults.  Raises ValueError if damaged."""
        values: dict[str, object] = {}
        for field in dataclasses.fields(cls):
            text = properties.get(PREFIX + field.name)
            if text is not None:
                values[field.name] = text if field.type == "str" else _table(field.name, text)
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: str | Path) -> Card:
        """The card of an ONNX file of any size: the graph itself is skipped, not parsed.

        Raises ModelNotFound, or EngineUnreadable where the file is not ONNX.
        """
        return parse_file(path, lambda model: cls.from_properties(_metadata(model)))


def _table(name: str, text: str) -> dict[str, object]:
    try:
        table = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"property {PREFIX}{name} is nested too deeply") from error
    if not isinstance(table, dict):
        raise ValueError(f"property {PREFIX}{name} is not a table")
    return {key: _shape(name, value) for key, value in table.items()} if name == "example_shapes" else table


def _shape(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        raise ValueError(f"property {PREFIX}{name} holds {value!r}, which is no shape")
    return tuple(value)


def _metadata(model: memoryview) -> dict[str, str]:
    properties = {}
    for number, value in protobuf.fields(model):
        if number == _METADATA_PROPS and isinstance(value, memoryview):
            entry = {key: bytes(text).decode() for key, text in protobuf.fields(value) if isinstance(text, memoryview)}
            properties[entry.get(1, "")] = entry.get(2, "")
    return properties
