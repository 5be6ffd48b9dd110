"""`device="auto"`: CUDA where it is really there; on processors the faster backend, measured once."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

from ..bench import Limits, example_inputs, example_shapes, time_calls
from ..card import Card
from ..engine import Backend
from ..errors import EngineError, OutputError, ProviderUnavailable, UsageError
from ..files import write_text
from ..home import home
from ..machine import versions
from . import Source, open_named

_LIMITS = Limits(warmup_ms=0, iterations=1, duration=0.15)

log = logging.getLogger("facesdk")


def choose(source: Source, card: Card) -> tuple[Backend, str]:
    """The backend for `auto`, and why."""
    try:
        return open_named(source, "cuda"), "auto: CUDA is here"
    except ProviderUnavailable:
        pass
    if source.precision == "fp16":
        return open_named(source, "cpu"), "auto: no CUDA here; the processor simulates fp16, without gain"
    if importlib.util.find_spec("openvino") is None:
        return open_named(source, "cpu"), "auto: the only backend here; openvino is not installed"
    try:
        timings = _recorded(source) or _measure(source, card)
        device = min(timings, key=lambda name: timings[name])
        figures = " against ".join(
            f"{name} {timings[name]:.2f} ms" for name in sorted(timings, key=timings.__getitem__)
        )
        return open_named(source, device), f"auto: faster here, {figures}"
    except UsageError as error:
        return open_named(source, "cpu"), f"auto: OpenVINO cannot be timed, {error.fact}"
    except (ProviderUnavailable, EngineError) as error:
        return open_named(source, "cpu"), f"auto: OpenVINO cannot be used, {error.fact}"


def _measure(source: Source, card: Card) -> dict[str, float]:
    timings = {}
    for device in ("cpu", "openvino"):
        backend = open_named(source, device)
        try:
            arrays = example_inputs(backend.inputs, example_shapes(backend.inputs, card.example_shapes))
            timings[device] = time_calls(functools.partial(backend.run, arrays), _LIMITS).median_ms
        finally:
            backend.close()
    records = {**_read_records(), _key(source): timings}
    try:
        write_text(_records_path(), json.dumps(records, indent=1))
    except OutputError as error:
        log.warning("the choice of backend is measured again at every start: %s", error)
    return timings


def _recorded(source: Source) -> dict[str, float] | None:
    timings = _read_records().get(_key(source))
    if not isinstance(timings, dict) or timings.keys() != {"cpu", "openvino"}:
        return None
    return timings if all(isinstance(value, float) for value in timings.values()) else None


def _read_records() -> dict[str, Any]:
    try:
        records = json.loads(_records_path().read_text())
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}


def _records_path() -> Path:
    return home() / "backend-timings.json"


def _key(source: Source) -> str:
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in map(source.path_for, ("cpu", "openvino"))]
    machine = (source.threads, os.cpu_count(), platform.machine(), platform.node())
    return hashlib.sha256(repr((files, machine, versions(("onnxruntime", "openvino")))).encode()).hexdigest()[:16]
