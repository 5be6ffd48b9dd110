"""Licences: shown, accepted where they restrict, and recorded in `licences.json`."""

from __future__ import annotations

import dataclasses
import json
import logging
from datetime import datetime, timezone
from pathlib import Path

from . import files
from .bundle import Bundle
from .catalog import Model
from .errors import LicenseNotAccepted

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Record:
    """What was installed under which licence; `sha256` is the source file's, `date` is in UTC (ISO 8601)."""

    licence: str
    licence_url: str
    commercial: str
    source: str
    sha256: str
    accepted: bool = False
    date: str = ""


def of_model(model: Model, *, accepted: bool = False) -> Record:
    """The record of a model of the catalog."""
    return Record(
        model.licence, model.licence_url, model.commercial, str(model.source), model.source.sha256, accepted
    )  # fmt: skip


def of_bundle(bundle: Bundle, *, source: str, sha256: str) -> Record:
    """The record of a bundle that came from a user's file or folder."""
    licence, url, commercial = (str(bundle.about.get(key, "")) for key in ("licence", "licence_url", "commercial"))
    return Record(licence, url, commercial or "unknown", source, sha256)


def line(name: str, record: Record) -> str:
    """The licence in one line for people."""
    where = f" ({record.licence_url})" if record.licence_url else ""
    return f"{name}: licence {record.licence}{where}, commercial use: {record.commercial}"


def check(book: Path, model: Model, accept: bool) -> None:
    """Raise LicenseNotAccepted unless the model is free to use, or its licence is or was accepted."""
    if not model.restricted or accept:
        return
    before = read(book).get(model.name)
    if before and before.accepted and (before.licence, before.licence_url) == (model.licence, model.licence_url):
        return
    raise LicenseNotAccepted(
        line(model.name, of_model(model)),
        cause="this licence has to be accepted before the model is used",
        remedy=f"read {model.licence_url}, then: facesdk models pull {model.name} --accept-license",
    )


def read(book: Path) -> dict[str, Record]:
    """Every record by bundle name; a damaged book reads as empty, and the log says so."""
    try:
        return {name: Record(**fields) for name, fields in json.loads(book.read_bytes()).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        _log.warning("%s cannot be read: %s", book, error)
        return {}


def record(book: Path, name: str, entry: Record) -> None:
    """Write the entry, dated now; a damaged book is kept as `<book>.damaged`.  The caller holds the book's lock."""
    records = read(book)
    if book.exists() and not records:
        book.replace(book.with_suffix(".json.damaged"))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    records[name] = dataclasses.replace(entry, date=now)
    table = {name: dataclasses.asdict(entry) for name, entry in records.items()}
    files.write_text(book, json.dumps(table, indent=2) + "\n")
