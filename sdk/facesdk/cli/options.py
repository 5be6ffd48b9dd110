"""Command-line options generated from option dataclasses, so that API and CLI cannot drift apart."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable
from typing import Any, TypeVar

Options = TypeVar("Options")


def add_options(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """One option per field of the dataclass `kind`: name, type, default; `metadata["help"]` is its help text."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        names = [f"--{field.name.replace('_', '-')}"]
        text = f"{field.metadata.get('help', '')} (default: {field.default})".lstrip()
        hint = _without_none(hints[field.name])
        if hint is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        elif typing.get_origin(hint) is typing.Literal:
            parser.add_argument(*names, choices=typing.get_args(hint), default=field.default, help=text)
        else:
            reader = hint if hint is hints[field.name] else _or_none(hint)
            parser.add_argument(*names, type=reader, default=field.default, help=text)


def read_options(namespace: argparse.Namespace, kind: type[Options]) -> Options:
    """The dataclass filled with what was given on the command line."""
    return kind(**{field.name: getattr(namespace, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of `kind` that takes the word none as well."""

    def read(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse says "invalid float value"
    return read


def _without_none(hint: Any) -> Any:
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    return members[0] if len(members) == 1 and typing.get_origin(hint) is not typing.Literal else hint
