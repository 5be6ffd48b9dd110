"""`device="auto"`: CUDA where it is really there; on processors the faster backend, measured once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..card import Card
from ..engine import Array, Arrays, Backend, Tensor
from ..errors import ProviderUnavailable
from ..files import write_text
from ..home import home
from . import Source, open_named

_SECONDS = 0.15  # timing each candidate; one call where a call is longer


def choose(source: Source, card: Card) -> tuple[Backend, str]:
    """The backend for `auto`, and why."""
    try:
        return open_named(source, "cuda"), "auto: CUDA is here"
    except ProviderUnavailable:
        pass
    if importlib.util.find_spec("openvino") is None:
        return open_named(source, "cpu"), "auto: the only backend here; openvino is not installed"
    timings = _recorded(source) or _measure(source, card)
    if not timings:
        return open_named(source, "cpu"), "auto: the card names no shapes to time OpenVINO with"
    device = min(timings, key=lambda name: timings[name])
    figures = " against ".join(f"{name} {timings[name]:.2f} ms" for name in sorted(timings, key=timings.__getitem__))
    return open_named(source, device), f"auto: faster here, {figures}"


def example_inputs(inputs: tuple[Tensor, ...], card: Card) -> dict[str, Array] | None:
    """Seeded arrays for a signature, free axes sized by the card's example shapes; None where the card has none."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for tensor in inputs:
        stated = card.example_shapes.get(tensor.name, tensor.shape)
        shape = [size for size in stated if isinstance(size, int)]
        if len(shape) != len(stated):
            return None
        scale = 255 if tensor.dtype == np.uint8 else 1
        arrays[tensor.name] = (rng.random(shape) * scale).astype(tensor.dtype)
    return arrays


def _measure(source: Source, card: Card) -> dict[str, float]:
    timings = {}
    for device in ("cpu", "openvino"):
        backend = open_named(source, device)
        try:
            arrays = example_inputs(backend.inputs, card)
            if arrays is None:
                return {}
            timings[device] = _median_ms(backend, arrays)
        finally:
            backend.close()
    records = {**_read_records(), _key(source): timings}
    write_text(_records_path(), json.dumps(records, indent=1))
    return timings


def _median_ms(backend: Backend, arrays: Arrays) -> float:
    backend.run(arrays)  # the first call allocates
    durations: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not durations or time.perf_counter() < end:
        start = time.perf_counter()
        backend.run(arrays)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations) * 1e3


def _recorded(source: Source) -> dict[str, float] | None:
    return _read_records().get(_key(source))


def _read_records() -> dict[str, dict[str, float]]:
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
    return hashlib.sha256(repr((files, machine, version("onnxruntime"), version("openvino"))).encode()).hexdigest()[:16]
