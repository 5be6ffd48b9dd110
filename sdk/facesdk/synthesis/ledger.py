"""What a data set remembers of its making, so that it can be taken up again: settings and optimised rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..bundle import MANIFEST
from ..errors import OutputError, UsageError
from ..files import sha256, write_text
from .attributes import AttributeOptions, Reached
from .generate import SynthesisOptions
from .layout import Layout
from .networks import SynthesisNetworks

Json = dict[str, Any]

#: of the two files; a change of their fields raises it
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class RowRecord:
    """One optimised row as it is kept; `image` is None where the row is a whole identity."""

    identity: int
    image: int | None
    steps: int
    values: dict[str, float]
    failed: tuple[str, ...]

    @classmethod
    def of(cls, reached: Reached) -> RowRecord:
        identity, image = (*reached.key, None)[:2]
        return cls(identity, image, reached.steps, reached.values, reached.failed)

    @property
    def key(self) -> tuple[int, ...]:
        return (self.identity,) if self.image is None else (self.identity, self.image)

    def as_dict(self) -> Json:
        return dataclasses.asdict(self)


class Ledger:
    """The files of one slice: `*.settings.json`, written first, and `*.rows.jsonl`, a line for each optimised row.

    A row's line is written before its pictures: a picture without a line was never begun.
    """

    def __init__(self, layout: Layout, identities: range) -> None:
        self._settings = layout.record(identities, "settings.json")
        self._lines = layout.record(identities, "rows.jsonl")
        self.rows: dict[tuple[int, ...], RowRecord] = {}
        self._file: IO[str] | None = None

    @property
    def begun(self) -> bool:
        """Whether an earlier run has left rows here."""
        return self._lines.exists()

    def load(self, settings: Json) -> bool:
        """Whether an earlier run of these settings was here; its rows are then in `rows`.

        Raises UsageError where its settings were others, naming what differs.
        """
        if not self._settings.exists():
            return False
        earlier = _read_json(self._settings)
        differences = list(_differences(earlier, settings))
        if differences:
            raise UsageError(
                f"{self._settings} was made with other settings",
                cause="; ".join(differences[:8]),
                remedy="give the same settings as then, or another --name",
            )
        self.rows = {row.key: row for row in self._read_rows()}
        return True

    def begin(self, settings: Json) -> None:
        """Write the settings, and what is known of rows without a line that was cut short."""
        write_text(self._settings, json.dumps(settings, indent=1, allow_nan=False) + "\n")
        if self.rows:
            self._write_rows()

    def add(self, reached: Reached) -> None:
        """Keep a row, once; raises OutputError."""
        row = RowRecord.of(reached)
        if row.key in self.rows:
            return
        self.rows[row.key] = row
        try:
            self._file = self._file or self._lines.open("a", encoding="utf-8")
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{self._lines} cannot be written",
                cause=error.strerror or str(error),
                remedy="choose a folder that you may write to, with room for the files",
            ) from error

    def close(self) -> None:
        """Free the file; what was written stays."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def finish(self) -> None:
        """Put the rows in order: the file is then the same, however often it was interrupted."""
        self.close()
        if self.rows:
            self._write_rows()

    def _write_rows(self) -> None:
        write_text(self._lines, "".join(_line(self.rows[key]) for key in sorted(self.rows)))

    def _read_rows(self) -> Iterator[RowRecord]:
        try:
            text = self._lines.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):  # the last one may have been cut short
                yield self._row(line)

    def _row(self, line: str) -> RowRecord:
        try:
            fields = json.loads(line)
            return RowRecord(**{**fields, "failed": tuple(fields["failed"])})
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(self._lines, error) from error


def settings_of(
    networks: SynthesisNetworks,
    options: SynthesisOptions,
    attributes: AttributeOptions | None,
    seed: int,
    identities: range,
    digest: str,
    stems: Sequence[str] = (),
) -> Json:
    """All that a data set's bytes depend on, ready for JSON; batch sizes only where the attribute rule is "batch"."""
    chosen = dataclasses.asdict(options)
    del chosen["batch"]
    if attributes is None or attributes.rule == "row":
        del chosen["step_batch"]
    bundle = networks.bundle
    return {
        "format": FORMAT,
        "bundle": {"name": bundle.name, "sha256": sha256(bundle.folder / MANIFEST)},
        "vectors": {"sha256": digest},
        "identities": [identities.start, identities.stop],
        "photos": list(stems),
        "seed": seed,
        "options": chosen,
        "attributes": dataclasses.asdict(attributes) if attributes else None,
    }


def _line(row: RowRecord) -> str:
    return json.dumps(row.as_dict(), allow_nan=False) + "\n"


def _read_json(path: Path) -> Json:
    try:
        found: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return found


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path} cannot be read", cause=str(error), remedy="delete its data set and make it again")


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """Each setting that differs, with both values."""
    for key in sorted(earlier.keys() | now.keys()):
        before, after = earlier.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{name}{key}.")
        elif before != after:
            yield f"{name}{key} was {_short(before)}, is now {_short(after)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 48 else f"{text[:45]}..."
