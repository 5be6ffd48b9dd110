"""`Engine`: one graph, opened on one device.  Two verbs, call and `scan`, are all that the SDK knows of a backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, overload

import numpy as np

from .card import Card
from .errors import EngineClosed, EngineError, UsageError, one_of
from .signature import NEXT, Array, Arrays, Signature, Tensor

if TYPE_CHECKING:
    from .cuda.memory import DeviceArray

__all__ = [
    "GPUS", "NEXT", "Array", "Arrays", "Backend", "Device", "Engine", "Precision", "StepCallback", "Tensor",
    "closed_error", "prepared", "run_error",
]  # fmt: skip

Device = Literal["auto", "cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx"]
#: devices whose arrays lie in a GPU's memory
GPUS = ("cuda", "tensorrt", "tensorrt-rtx")
Precision = Literal["fp32", "bf16", "fp16"]
StepCallback = Callable[[int, int], None]

log = logging.getLogger("facesdk")


class Backend(Protocol):
    """What runs a graph.  All arrays were checked against `inputs`; those on a GPU come as they were given.

    prepare  a call that runs the graph once on copies of the arrays that stay where it runs, and returns when it is
             done.
    """

    device: str
    description: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def run(self, arrays: Mapping[str, Any]) -> dict[str, Any]: ...
    def prepare(self, arrays: Mapping[str, Any]) -> Callable[[], None]: ...
    def scan(self, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Array]: ...
    def close(self) -> None: ...


def prepared(run: Callable[[Arrays], object], arrays: Arrays) -> Callable[[], None]:
    """`Backend.prepare` of a graph that runs where NumPy's arrays lie."""
    copies = {name: np.array(array, order="C") for name, array in arrays.items()}

    def once() -> None:
        run(copies)

    return once


def run_error(description: str, error: Exception) -> EngineError:
    """The error for a graph that was opened, but cannot run on what it was given."""
    return EngineError(
        f"{description} failed to run the graph",
        cause=str(error).strip().splitlines()[-1],
        remedy="give other shapes on the free axes, or export the engine again",
    )


def check_place(device: str, precision: str) -> None:
    """Raise UsageError for a device or a precision that there is not."""
    for what, value, kind in (("device", device, Device), ("precision", precision, Precision)):
        if value not in get_args(kind):
            raise one_of(what, value, get_args(kind))


def closed_error(what: str) -> EngineClosed:
    """The error for using an engine after `close()`."""
    return EngineClosed(f"{what} was closed", remedy="open it again: Engine.open(...)")


class Engine:
    """A graph on a device.  Safe to call from several threads at once; a context manager that frees it."""

    def __init__(self, backend: Backend, card: Card, path: Path, reason: str) -> None:
        self.card, self.path, self.reason = card, path, reason
        self.device, self.description = backend.device, backend.description
        self.inputs, self.outputs = backend.inputs, backend.outputs
        self._signature = Signature(path.name, self.device, self.inputs, self.outputs)
        self._backend: Backend | None = backend

    @classmethod
    def open(
        cls,
        path: str | Path,
        device: Device = "auto",
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
        forms: Mapping[str, Path] | None = None,
        openvino: bool = True,
        plans: Path | None = None,
    ) -> Engine:
        """An engine for an ONNX file.

        device     a name is used or an error says why not; "auto" takes the fastest that is here (see `reason`), of
                   the tensorrt ones where their plan lies there, and with openvino=False never that.
        precision  "bf16" needs device="openvino" and a processor that has it; its error is yours to measure.
                   "fp16" takes forms["fp16"], on GPUs or cpu; a processor simulates it and gains nothing.
        threads    processor threads; None leaves the choice to the backend.
        forms      device, "<device>-<precision>", which goes first, or "fp16" -> file of the same graph, written for
                   that; used there in place of `path`.
        plans      folder of TensorRT plans, that of the file by default; a plan is verified on a GPU when first opened.
        Raises ModelNotFound (also for a plan), EngineUnreadable, EngineStale, ToleranceExceeded, OutOfMemory,
        MissingDependency, ProviderUnavailable, UsageError.
        """
        from . import backends

        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}", remedy="give 1 or more, or leave it out")
        source = backends.Source(Path(path), forms or {}, threads, precision, openvino=openvino, plans=plans)
        source = source.in_precision()
        card = Card.read(source.path)
        backend, reason = backends.open_backend(source, card, device)
        log.info("%s runs on %s (%s)", source.path.name, backend.description, reason)
        return cls(backend, card, source.path, reason)

    @overload
    def __call__(self, **arrays: Array) -> dict[str, Array]: ...
    @overload
    def __call__(self, **arrays: Any) -> dict[str, DeviceArray]: ...

    def __call__(self, **arrays: Any) -> Any:
        """All outputs by name.

        Arrays have the dtypes and shapes of `inputs`; float inputs are finite.  On a device of GPUS they may be arrays
        on the GPU, of any package with DLPack or __cuda_array_interface__, packed; then all outputs are DeviceArrays.
        Raises EngineInputError, EngineClosed, or EngineError where the graph itself fails.
        """
        backend = self._open_backend()
        self._signature.check(arrays, on_gpu=self.device in GPUS)
        return backend.run(arrays)

    def prepare(self, **arrays: Any) -> Callable[[], None]:
        """A call that runs the graph once on copies of these arrays, with nothing moved to or from the device.

        It returns when the graph is done; it is for measuring.  Arrays and errors as in a call of the engine.
        """
        backend = self._open_backend()
        self._signature.check(arrays, on_gpu=self.device in GPUS)
        return backend.prepare(arrays)

    def scan(
        self,
        carry: Arrays,
        xs: Arrays,
        constants: Arrays | None = None,
        on_step: StepCallback = lambda step, steps: None,
    ) -> dict[str, Array]:
        """The carry after running the graph once per row of `xs`, everything resident on the device (`jax.lax.scan`).

        carry      input name -> first value; output `next_<name>` feeds it in the following step, same shape and dtype.
        xs         input name -> (steps, ...): row i goes into step i.   constants  input name -> value of every step.
        on_step    called as (steps done, steps); an exception raised there ends the scan.
        Raises EngineInputError, EngineClosed, or EngineError where the graph itself fails.
        """
        backend, constants = self._open_backend(), constants or {}
        self._signature.check_scan(carry, xs, constants)
        return backend.scan(carry, xs, constants, on_step)

    def at_most(self, wanted: int, name: str, axis: int = 0) -> int:
        """`wanted`, or where that is less, the largest size that an axis of an input can have."""
        tensor = next(each for each in self.inputs if each.name == name)
        size = tensor.largest[axis] if tensor.largest else tensor.shape[axis]
        return min(wanted, size) if isinstance(size, int) else wanted

    def close(self) -> None:
        """Free the graph and its memory; later calls raise EngineClosed."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        signature = ", ".join(map(str, self.inputs)), ", ".join(map(str, self.outputs))
        return f"Engine({self.path.name} on {self.device}: {signature[0]} -> {signature[1]})"

    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise closed_error(self.path.name)
        return self._backend
