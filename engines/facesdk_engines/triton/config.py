"""`config.pbtxt`: a model's configuration in protobuf's text format, without the protobuf package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: field -> number, text, truth value, `Word`, list of these, message, or list of messages (a repeated field)
Message = Mapping[str, Any]

#: facesdk.graph's names of types -> Triton's
TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32", "int8": "TYPE_INT8",
    "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "float16": "TYPE_FP16",
    "float32": "TYPE_FP32", "float64": "TYPE_FP64", "bfloat16": "TYPE_BF16", "string": "TYPE_STRING",
}  # fmt: skip


class Word(str):
    """The name of an enum's value, which stands without quotes."""

    __slots__ = ()


def text(message: Message, indent: str = "") -> str:
    """The message in text format, a field a line."""
    lines = []
    for name, value in message.items():
        several = isinstance(value, list) and all(isinstance(each, Mapping) for each in value)
        lines += [_field(name, each, indent) for each in (value if several and value else [value])]
    return "".join(f"{line}\n" for line in lines)


def strings(table: Mapping[str, str]) -> list[Message]:
    """A map of texts, as `cc_model_filenames` is."""
    return [{"key": key, "value": value} for key, value in table.items()]


def parameters(table: Mapping[str, str]) -> list[Message]:
    """A model's `parameters`."""
    return [{"key": key, "value": {"string_value": value}} for key, value in table.items()]


def _field(name: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{text(value, indent + '  ')}{indent}}}"
    return f"{indent}{name}: {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Word):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
