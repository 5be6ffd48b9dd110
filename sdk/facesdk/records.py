"""What was found out on this machine and need not be found out again: tables in FaceSDK's home."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from .errors import OutputError
from .files import write_text
from .home import home

log = logging.getLogger("facesdk")


def recall(table: str, key: str) -> Any:
    """What was kept under a key, None where nothing was or the table is damaged."""
    return _read(_path(table)).get(key)


def keep(table: str, key: str, value: Any, lost: str) -> None:
    """Keep a JSON value; where that cannot be written, the log says what is `lost`."""
    path = _path(table)
    try:
        write_text(path, json.dumps({**_read(path), key: value}, indent=1))
    except OutputError as error:
        log.warning("%s: %s", lost, error)


def _path(table: str) -> Path:
    return home() / f"{table}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}
