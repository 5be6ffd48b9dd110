"""One engine measured on one device, in a process of its own so that its memory is its own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

from . import machine
from .bench import Limits, Shape, Statistics, example_inputs, example_shapes, rows, time_calls
from .bundle import Bundle
from .engine import Device, Engine, Precision
from .errors import EngineError, FaceSDKError
from .verify import Deviation, compare

# the parent's path, so that nothing in the working folder is imported; the answer goes to a copy of standard
# output, because native libraries print there
_CHILD = """
import sys
sys.path[:] = sys.argv[1:]
import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
answer = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
from facesdk.measurement import serve
serve(sys.stdin.buffer, answer)
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to measure, under which name: the ONNX file at `path`, or `engine` of the bundle in that folder."""

    name: str
    path: Path
    engine: str | None = None
    device: Device = "auto"
    precision: Precision = "fp32"
    threads: int | None = None
    batch: int | None = None
    shapes: Mapping[str, Shape] = dataclasses.field(default_factory=dict)
    limits: Limits = dataclasses.field(default_factory=Limits)

    def open(self, *, device: Device | None = None, precision: Precision | None = None) -> Engine:
        """The engine, as the job says or on another device; raises what Engine.open raises."""
        device, precision = device or self.device, precision or self.precision
        if self.engine:
            return Bundle(self.path).open(self.engine, device, precision=precision, threads=self.threads)
        return Engine.open(self.path, device, precision=precision, threads=self.threads)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What came out.

    batch       rows in one call, None where no first axis is free.
    load_ms     opening the engine, the runtime's library already loaded.
    memory_mb   the process's peak less what it held before opening: weights, buffers, compiled kernels.
    peak_mb     the process's peak, Python and libraries included; None where the system does not tell.
    deviations  from fp32 on the same inputs and device, for other precisions.
    """

    name: str
    device: str
    precision: Precision
    threads: int | None
    backend: str
    reason: str
    batch: int | None
    shapes: Mapping[str, Shape]
    load_ms: float
    statistics: Statistics
    memory_mb: float | None
    peak_mb: float | None
    deviations: tuple[Deviation, ...] = ()

    @property
    def rows_per_s(self) -> float | None:
        return None if self.batch is None else self.batch * self.statistics.calls_per_s


def measure(job: Job) -> Measurement:
    """The measurement, made in this process; raises FaceSDKError where the engine cannot be opened or run."""
    _load_library(job.device)
    before = machine.resident_mb()
    start = time.perf_counter()
    with job.open() as engine:
        load_ms = (time.perf_counter() - start) * 1e3
        shapes = example_shapes(engine.inputs, engine.card.example_shapes, given=job.shapes, batch=job.batch)
        arrays = example_inputs(engine.inputs, shapes)
        statistics = time_calls(functools.partial(engine, **arrays), job.limits)
        peak = machine.peak_resident_mb()
        deviations: tuple[Deviation, ...] = ()
        if job.precision != "fp32":
            with job.open(precision="fp32") as reference:
                deviations = compare(reference, engine, arrays)
        return Measurement(
            name=job.name,
            device=engine.device,
            precision=job.precision,
            threads=job.threads,
            backend=engine.description,
            reason=engine.reason,
            batch=rows(engine.inputs, shapes),
            shapes=shapes,
            load_ms=load_ms,
            statistics=statistics,
            memory_mb=None if before is None or peak is None else peak - before,
            peak_mb=peak,
            deviations=deviations,
        )


def measure_apart(job: Job) -> Measurement:
    """The measurement, made in a process of its own; raises as `measure`, and EngineError where that process dies."""
    if job.device == "auto":
        # choosing may open both backends: that happens here, so that it is not counted there
        with job.open() as engine:
            chosen, reason = cast(Device, engine.device), engine.reason
        return dataclasses.replace(measure_apart(dataclasses.replace(job, device=chosen)), reason=reason)
    command = [sys.executable, "-c", _CHILD, *sys.path]
    child = subprocess.run(command, input=pickle.dumps(job), stdout=subprocess.PIPE, check=False)
    if child.returncode or not child.stdout:
        raise EngineError(
            f"the process that measured {job.name} on {job.device} ended with status {child.returncode}",
            cause="killed, perhaps for want of memory" if child.returncode in (-9, 137) else "its messages are above",
            remedy="try a smaller --batch, or another device",
        )
    result: Measurement | FaceSDKError = pickle.loads(child.stdout)
    if isinstance(result, FaceSDKError):
        raise result
    return result


def serve(question: BinaryIO, answer: BinaryIO) -> None:
    """Answer one job read from a stream: the child's side of `measure_apart`."""
    job: Job = pickle.load(question)
    try:
        result: Measurement | FaceSDKError = measure(job)
    except FaceSDKError as error:
        result = error
    pickle.dump(result, answer)
    answer.close()


def _load_library(device: str) -> None:
    """Import the runtime's package, whose time and memory are not the engine's; opening reports a missing one."""
    with contextlib.suppress(ImportError):
        importlib.import_module("openvino" if device == "openvino" else "onnxruntime")
