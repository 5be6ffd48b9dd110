"""A strict stand-in for the Python module `tensorrt` of one version, made of tests/data/tensorrt_surface.json.

What that version does not have is an AttributeError, a wrong argument a TypeError, as in the real one.  Calls are
recorded; what they return is put into `answers` (tests/trt_execution.py: those of the half that runs plans).
"""

from __future__ import annotations

import enum
import importlib.machinery
import inspect
import json
import mmap
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

SURFACE: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "tensorrt_surface.json").read_text())
VERSIONS: tuple[str, ...] = tuple(SURFACE["versions"])
RTX = "1.7.1.116"


class Stub(ModuleType):
    """calls: (class, member, arguments).   answers: (class, member) -> function of the object and the arguments."""

    def __init__(self, version: str, module: str = "tensorrt") -> None:
        super().__init__(module)
        self.__version__ = version
        self.__spec__ = importlib.machinery.ModuleSpec(module, None)
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[tuple[str, str], Callable[..., Any]] = {}
        self.kinds: dict[str, type] = {}
        surface, level = {kind: dict(SURFACE[kind]) for kind in ("enums", "classes")}, version
        if module == "tensorrt_rtx":  # the interface of the last version, and more
            level = VERSIONS[-1]
            for kind, members in surface.items():
                members |= SURFACE["rtx"][kind]
        for name, table in surface["enums"].items():
            self.kinds[name] = _enum(name, table["members"], level)
        for name, table in surface["classes"].items():
            if _lives(table, level):
                self.kinds[name] = _class(self, name, table, level)
        self.kinds["ILogger"].Severity = self.kinds["ILogger.Severity"]  # type: ignore[attr-defined]
        for name, kind in self.kinds.items():
            if "." not in name:
                setattr(self, name, kind)

    def called(self, name: str, member: str) -> list[tuple[Any, ...]]:
        return [arguments for kind, attribute, *arguments in self.calls if (kind, attribute) == (name, member)]


def _number(version: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", version)][:3]


def _lives(member: Mapping[str, Any], version: str) -> bool:
    first, last = member.get("since", "0"), member.get("last_in", "99")
    return _number(first) <= _number(version) <= _number(last)


def _enum(name: str, members: Mapping[str, Any], version: str) -> Any:
    # not IntEnum: a number is no member, as in pybind11
    values = {key: _value(each["value"], version) for key, each in members.items() if _lives(each, version)}
    kind = enum.Enum(name.split(".")[-1], values)  # type: ignore[misc]
    kind.__int__ = lambda self: self.value  # type: ignore[attr-defined]
    return kind


def _value(value: int | Mapping[str, int], version: str) -> int:
    if isinstance(value, int):
        return value
    spans = {tuple(span.split("..")): number for span, number in value.items()}
    return next(n for (a, b), n in spans.items() if _number(a) <= _number(version) <= _number(b))


def _class(stub: Stub, name: str, table: Mapping[str, Any], version: str) -> type:
    methods = {key: each for key, each in table["methods"].items() if _lives(each, version)}
    properties = {key: each for key, each in table["properties"].items() if _lives(each, version)}
    members: dict[str, Any] = {key: _method(stub, name, key, each["parameters"]) for key, each in methods.items()}
    members |= {key: _property(stub, name, key, each["access"]) for key, each in properties.items()}
    members["__init__"] = _constructor(stub, name, table["constructor"])
    members["__setattr__"] = _refuse_unknown(name)
    return type(name, (), members)


def _constructor(stub: Stub, name: str, parameters: list[list[str]]) -> Callable[..., None]:
    def construct(self: Any, *arguments: Any) -> None:
        object.__setattr__(self, "_values", {})
        if type(self).__name__ == name and arguments:
            _check(stub, f"{name}()", parameters, arguments)
        answer = stub.answers.get((name, "__init__"))
        if answer:
            answer(self, *arguments)

    return construct


def _method(stub: Stub, name: str, member: str, parameters: list[list[str]]) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any) -> Any:
        _check(stub, f"{name}.{member}", parameters, arguments)
        stub.calls.append((name, member, *arguments))
        answer = stub.answers.get((name, member))
        return answer(self, *arguments) if answer else None

    return call


def _check(stub: Stub, what: str, parameters: list[list[str]], arguments: tuple[Any, ...]) -> None:
    kinds = inspect.Parameter.POSITIONAL_ONLY
    signature = inspect.Signature([
        inspect.Parameter(name, kinds, default=rest[0] if rest else inspect.Parameter.empty)
        for name, _, *rest in parameters
    ])  # fmt: skip
    signature.bind(*arguments)
    for (parameter, kind, *_), value in zip(parameters, arguments, strict=False):
        if not any(_fits(stub, each, value) for each in kind.split("|")):
            raise TypeError(f"{what}: {parameter} is {value!r}, not {kind}")


def _fits(stub: Stub, kind: str, value: Any) -> bool:
    if kind == "Buffer":
        return isinstance(value, (bytes, bytearray, memoryview, mmap.mmap))
    plain = {"int": int, "bool": bool, "str": str, "tuple": tuple, "list": list}.get(kind)
    if plain:
        return type(value) is plain
    wanted = stub.kinds.get("ILogger.Severity" if kind == "Logger.Severity" else kind)
    return kind not in SURFACE["classes"] if wanted is None else isinstance(value, wanted)


def _property(stub: Stub, name: str, member: str, access: str) -> property:
    def get(self: Any) -> Any:
        answer = stub.answers.get((name, member))
        return answer(self) if answer else self._values.get(member)

    def put(self: Any, value: Any) -> None:
        stub.calls.append((name, member, value))
        self._values[member] = value

    return property(get, put if "w" in access else None)


def _refuse_unknown(name: str) -> Callable[..., None]:
    def put(self: Any, key: str, value: Any) -> None:
        known = isinstance(getattr(type(self), key, None), property)
        if type(self).__name__ == name and not known:
            raise AttributeError(f"{name} has no attribute {key!r}")
        object.__setattr__(self, key, value)

    return put
