"""One engine measured on one device, in a process of its own so that its memory is its own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Literal, cast

from . import machine
from .bench import Limits, Shape, Statistics, example_inputs, example_shapes, rows, time_calls
from .bundle import Bundle
from .engine import GPUS, Arrays, Device, Engine, Precision
from .errors import EngineError, FaceSDKError
from .measurement_gpu import remarks, used_mb, wait_by_spinning
from .plans.library import MODULES
from .verify import Deviation, compare

Transfers = Literal["", "excluded", "included"]
# device -> packages that it runs on, where that is not ONNX Runtime alone
_LIBRARIES = {"openvino": ("openvino",)} | {device: ("onnxruntime", module) for device, module in MODULES.items()}

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
    """What to measure, under which name: the ONNX file at `path`, or `engine` of the bundle in that folder.

    plans  folder of TensorRT plans, where they do not lie beside the ONNX files.
    """

    name: str
    path: Path
    engine: str | None = None
    device: Device = "auto"
    precision: Precision = "fp32"
    threads: int | None = None
    batch: int | None = None
    shapes: Mapping[str, Shape] = dataclasses.field(default_factory=dict)
    limits: Limits = dataclasses.field(default_factory=Limits)
    plans: Path | None = None

    def open(self, *, device: Device | None = None, precision: Precision | None = None) -> Engine:
        """The engine, as the job says or on another device; raises what Engine.open raises."""
        device, precision = device or self.device, precision or self.precision
        if self.engine:
            bundle = Bundle(self.path, self.plans)
            return bundle.open(self.engine, device, precision=precision, threads=self.threads)
        return Engine.open(self.path, device, precision=precision, threads=self.threads, plans=self.plans)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What came out.

    batch          rows in one call, None where no first axis is free.
    load_ms        opening the engine, the runtime's library already loaded.
    statistics     of engine(**arrays); on a GPU arrays go there and come back in every call.
    resident       of the same on arrays that stay on the GPU; None on processors.
    memory_mb      the process's peak less what it held before opening: weights, buffers, compiled kernels.
    peak_mb        the process's peak, Python and libraries included; None where the system does not tell.
    gpu_memory_mb  what the engine added on the GPU, CUDA's own context not counted.
    spin_wait      whether the process waited for the GPU by spinning.   remarks  of the backend meanwhile.
    deviations     from fp32 on the same inputs, for other precisions; `reference`: the device of that.
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
    reference: str = ""
    resident: Statistics | None = None
    transfers: Transfers = ""
    gpu_memory_mb: float | None = None
    spin_wait: bool | None = None
    remarks: tuple[str, ...] = ()

    @property
    def rows_per_s(self) -> float | None:
        return None if self.batch is None else self.batch * self.statistics.calls_per_s

    def lines(self) -> tuple[Measurement, ...]:
        """One for each of its statistics: on a GPU that without transfers, then that with them."""
        if self.resident is None:
            return (self,)
        line = dataclasses.replace(self, resident=None, transfers="included")
        return dataclasses.replace(line, statistics=self.resident, transfers="excluded"), line


def measure(job: Job) -> Measurement:
    """The measurement, made in this process; raises FaceSDKError where the engine cannot be opened or run."""
    _load_library(job.device)
    gpu_before, before = used_mb(job.device), machine.resident_mb()
    start = time.perf_counter()
    with remarks(logging.WARNING) as warnings, job.open() as engine:
        load_ms = (time.perf_counter() - start) * 1e3
        shapes, arrays = _example(job, engine)
        with remarks(logging.INFO) as said:
            resident = time_calls(engine.prepare(**arrays), job.limits) if engine.device in GPUS else None
            statistics = time_calls(functools.partial(engine, **arrays), job.limits)
        gpu, peak, heard = used_mb(job.device), machine.peak_resident_mb(), tuple(warnings | said)
        reference, deviations = _deviations(job, engine, arrays)
        return Measurement(
            name=job.name, device=engine.device, precision=job.precision, threads=job.threads,
            backend=engine.description, reason=engine.reason, batch=rows(engine.inputs, shapes), shapes=shapes,
            load_ms=load_ms, statistics=statistics, resident=resident, remarks=heard,
            memory_mb=_less(peak, before), peak_mb=peak, gpu_memory_mb=_less(gpu, gpu_before),
            reference=reference, deviations=deviations,
        )  # fmt: skip


def measure_apart(job: Job) -> Measurement:
    """The measurement, made in a process of its own; raises as `measure`, and EngineError where that process dies."""
    if job.device == "auto":
        # choosing may open both backends: that happens here, so that it is not counted there
        with job.open() as engine:
            chosen, reason = cast(Device, engine.device), engine.reason
        return dataclasses.replace(measure_apart(dataclasses.replace(job, device=chosen)), reason=reason)
    if job.device in MODULES:
        _in_child(_run_once, job)  # a plan is verified, and its kernels are compiled, when it first runs on a GPU
    return cast(Measurement, _in_child(measure, job))


def _in_child(work: Callable[[Job], object], job: Job) -> object:
    command = [sys.executable, "-c", _CHILD, *sys.path]
    child = subprocess.run(command, input=pickle.dumps((work, job)), stdout=subprocess.PIPE, check=False)
    if child.returncode or not child.stdout:
        raise EngineError(
            f"the process that measured {job.name} on {job.device} ended with status {child.returncode}",
            cause="killed, perhaps for want of memory" if child.returncode in (-9, 137) else "its messages are above",
            remedy="try a smaller --batch, or another device",
        )
    result: object = pickle.loads(child.stdout)
    if isinstance(result, FaceSDKError):
        raise result
    return result


def serve(question: BinaryIO, answer: BinaryIO) -> None:
    """Answer one question read from a stream: the child's side of `measure_apart`."""
    work, job = pickle.load(question)
    try:
        spins = wait_by_spinning() if job.device in GPUS else None
        result: object = work(job)
        if isinstance(result, Measurement):
            result = dataclasses.replace(result, spin_wait=spins)
    except FaceSDKError as error:
        result = error
    pickle.dump(result, answer)
    answer.close()


def _run_once(job: Job) -> None:
    with job.open() as engine:
        engine.prepare(**_example(job, engine)[1])()


def _example(job: Job, engine: Engine) -> tuple[dict[str, Shape], Arrays]:
    shapes = example_shapes(engine.inputs, engine.card.example_shapes, given=job.shapes, batch=job.batch)
    return shapes, example_inputs(engine.inputs, shapes)


def _deviations(job: Job, engine: Engine, arrays: Arrays) -> tuple[str, tuple[Deviation, ...]]:
    """Device and deviations; of a plan from the graph on the processor, as a plan in fp32 need not be there."""
    if job.precision == "fp32":
        return "", ()
    device: Device = "cpu" if engine.device in MODULES else job.device
    with job.open(device=device, precision="fp32") as reference:
        return reference.device, compare(reference, engine, arrays)


def _load_library(device: str) -> None:
    """Import the runtime's package, whose time and memory are not the engine's; opening reports a missing one."""
    for name in _LIBRARIES.get(device, ("onnxruntime",)):
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(name)


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
