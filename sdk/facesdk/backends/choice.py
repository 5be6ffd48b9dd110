"""`device="auto"`: a GPU where it is really there; on processors the faster backend, measured once."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import platform

from ..bench import Limits, example_inputs, example_shapes, time_calls
from ..card import Card
from ..engine import Backend
from ..errors import (
    EngineError,
    FaceSDKError,
    MissingDependency,
    ModelNotFound,
    OutOfMemory,
    ProviderUnavailable,
    UsageError,
)
from ..machine import versions
from ..plans import gpu
from ..records import keep, recall
from . import PLANNED, Source, open_named

_LIMITS = Limits(warmup_ms=0, iterations=1, duration=0.15)
_TABLE = "backend-timings"

log = logging.getLogger("facesdk")


def choose(source: Source, card: Card) -> tuple[Backend, str]:
    """The backend for `auto`, and why: what was taken, then what better ones lack."""
    try:
        gpu.first_gpu()  # without one, no library for GPUs is so much as looked for
    except ProviderUnavailable as error:
        lacks = [error.fact]
    else:
        backend, why, lacks = _on_gpu(source)
        if backend:
            return backend, "; ".join((f"auto: {why}", *lacks))
    backend, why = _on_processor(source, card)
    return backend, "; ".join((f"auto: {why}", *lacks))


def _on_gpu(source: Source) -> tuple[Backend | None, str, list[str]]:
    """The best backend that a GPU has here, why, and what better ones lack."""
    lacks: list[str] = []
    for device in PLANNED:
        if backend := _with_plan(source, device, lacks):
            return backend, f"a plan for {device} is here", lacks
    try:
        return open_named(source, "cuda"), "CUDA is here", lacks
    except (ProviderUnavailable, OutOfMemory) as error:
        return None, "", [*lacks, error.fact]


def _with_plan(source: Source, device: str, lacks: list[str]) -> Backend | None:
    from .planned import open_plan

    try:
        return open_plan(source, device)
    except FaceSDKError as error:
        # a plan that somebody built and that is not used is worth a line; that there is none is not
        unexpected = not isinstance(error, MissingDependency | ModelNotFound | ProviderUnavailable)
        log.log(logging.WARNING if unexpected else logging.DEBUG, "%s is not used: %s", device, error)
        lacks.append(error.fact)
        return None


def _on_processor(source: Source, card: Card) -> tuple[Backend, str]:
    if source.precision == "fp16":
        return open_named(source, "cpu"), "the processor simulates fp16, without gain"
    if not source.openvino:
        return open_named(source, "cpu"), "OpenVINO is not for this engine"
    if importlib.util.find_spec("openvino") is None:
        return open_named(source, "cpu"), "the only backend here; openvino is not installed"
    try:
        timings = _recorded(source) or _measure(source, card)
        device = min(timings, key=lambda name: timings[name])
        figures = " against ".join(
            f"{name} {timings[name]:.2f} ms" for name in sorted(timings, key=timings.__getitem__)
        )
        return open_named(source, device), f"faster here, {figures}"
    except UsageError as error:
        return open_named(source, "cpu"), f"OpenVINO cannot be timed, {error.fact}"
    except (ProviderUnavailable, EngineError) as error:
        return open_named(source, "cpu"), f"OpenVINO cannot be used, {error.fact}"


def _measure(source: Source, card: Card) -> dict[str, float]:
    timings = {}
    for device in ("cpu", "openvino"):
        backend = open_named(source, device)
        try:
            arrays = example_inputs(backend.inputs, example_shapes(backend.inputs, card.example_shapes))
            timings[device] = time_calls(functools.partial(backend.run, arrays), _LIMITS).median_ms
        finally:
            backend.close()
    keep(_TABLE, _key(source), timings, lost="the choice of backend is measured again at every start")
    return timings


def _recorded(source: Source) -> dict[str, float] | None:
    timings = recall(_TABLE, _key(source))
    if not isinstance(timings, dict) or timings.keys() != {"cpu", "openvino"}:
        return None
    return timings if all(isinstance(value, float) for value in timings.values()) else None


def _key(source: Source) -> str:
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in map(source.path_for, ("cpu", "openvino"))]
    machine = (source.threads, os.cpu_count(), platform.machine(), platform.node())
    return hashlib.sha256(repr((files, machine, versions(("onnxruntime", "openvino")))).encode()).hexdigest()[:16]
