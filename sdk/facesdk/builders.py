"""Builders: what turns a downloaded or a user's own file into a bundle; they live in other rooms."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from .errors import MissingDependency, UsageError

GROUP = "facesdk.builders"
_log = logging.getLogger(__name__)


class Builder(Protocol):
    """What an entry point of `facesdk.builders` loads.

    names  the bundles that it makes.
    """

    names: tuple[str, ...]

    def recognises(self, path: Path) -> str | None:
        """Name of the bundle that would be made of a user's file or folder, or None; by a glance at it."""

    def build(self, source: Path, folder: Path) -> None:
        """Write `bundle.toml` and its files into the empty `folder`; raises FaceSDKError."""


def installed() -> tuple[Builder, ...]:
    """Every builder that can be loaded; the others are named in the log."""
    return tuple(builder for entry in entry_points(group=GROUP) if (builder := _load(entry)))


def _load(entry: EntryPoint) -> Builder | None:
    try:
        builder: Builder = entry.load()
    except (ImportError, AttributeError) as error:
        _log.warning("builder %s cannot be loaded: %s", entry.value, error)
        return None
    return builder


def for_name(name: str) -> Builder:
    """The builder of the bundle `name`; raises MissingDependency."""
    builder = next((builder for builder in installed() if name in builder.names), None)
    if builder is None:
        raise MissingDependency(
            f"no builder makes the bundle {name!r}",
            cause=f"none of the entry points {GROUP} has this name",
            remedy="the installation is incomplete: install FaceSDK again, in a clone: pip install -e .",
        )
    return builder


def for_file(path: Path) -> tuple[str, Builder]:
    """(Name of the bundle that a user's file or folder becomes, its builder); raises UsageError."""
    builders = installed()
    for builder in builders:
        if name := builder.recognises(path):
            return name, builder
    known = ", ".join(name for builder in builders for name in builder.names) or "none"
    raise UsageError(
        f"{path} is not a file that a bundle can be made of",
        cause=f"no builder recognises it; bundles that can be made: {known}",
        remedy="give an undamaged model file (face_landmarker.task, buffalo_l.zip, ...) or a folder with bundle.toml",
    )
