"""What is in the store: one line per model, one line per file of a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .bundle import MANIFEST, Bundle
from .catalog import Model
from .errors import FaceSDKError
from .files import sha256


@dataclass(frozen=True)
class Entry:
    """A model of the catalog, an installed bundle, or both.

    size     bytes: of the folder where installed, else of the download.
    path     the installed bundle's folder, else None.
    problem  why an installed bundle cannot be opened, else empty.
    """

    name: str
    about: str
    installed: bool
    licence: str
    commercial: str
    size: int
    source: str
    path: Path | None = None
    problem: str = ""


@dataclass(frozen=True)
class FileReport:
    """One file of a bundle; `problem` is empty where its content is the pinned one."""

    bundle: str
    file: str
    problem: str = ""


def of_catalog(model: Model) -> Entry:
    """The entry of a model that is not installed."""
    return Entry(
        model.name, model.about, False, model.licence, model.commercial, model.source.size, str(model.source)
    )  # fmt: skip


def of_folder(name: str, folder: Path, model: Model | None) -> Entry:
    """The entry of an installed bundle; what its manifest leaves out is taken from the catalog."""
    known = {key: getattr(model, key) for key in ("about", "licence", "commercial", "source")} if model else {}
    problem = ""
    try:
        known.update(Bundle(folder).about)
    except FaceSDKError as error:
        problem = f"{error.fact}: {error.cause}" if error.cause else error.fact
    about, licence, commercial, source = (
        str(known.get(key, "unknown")) for key in ("about", "licence", "commercial", "source")
    )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Entry(name, about, True, licence, commercial, size, source, folder, problem)


def check_files(name: str, folder: Path) -> tuple[FileReport, ...]:
    """A report on each pinned file of the bundle, hashed now, or one on a damaged manifest."""
    try:
        pinned = Bundle(folder).files
    except FaceSDKError as error:
        return (FileReport(name, MANIFEST, error.cause or error.fact),)
    return tuple(FileReport(name, file, _problem(folder / file, digest)) for file, digest in pinned.items())


def _problem(path: Path, digest: str) -> str:
    if not path.is_file():
        return "missing"
    actual = sha256(path)
    return "" if actual == digest else f"sha256 expected {digest}, actual {actual}"
