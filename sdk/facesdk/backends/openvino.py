"""OpenVINO: a second backend for processors, the one with bf16 (optional extra)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import NEXT, Array, Arrays, Precision, StepCallback, Tensor, closed_error, prepared, run_error
from ..errors import EngineError, EngineUnreadable, ProviderUnavailable
from ..graph import Graph, Value

# input -> shape, in order; empty: of any shape
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]

_DTYPES = ("float32", "float64", "float16", "uint8", "int8", "int16", "int32", "int64", "bool")


class OpenVino:
    """A graph, compiled when it is first run, with a pool of requests: one for each thread that is inside at a time.

    A scan compiles the graph for its own shapes, which pays over many steps; single runs share one form for all shapes.
    """

    device = "openvino"

    def __init__(self, path: Path, precision: Precision, threads: int | None) -> None:
        ov = _import()
        core = ov.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ProviderUnavailable(
                "this processor has no bf16", cause="neither AVX512-BF16 nor AMX", remedy='use precision="fp32"'
            )
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision]}
        if threads is not None:
            hints["INFERENCE_NUM_THREADS"] = str(threads)
        self._core, self._path, self._hints = core, path, hints
        self._model: Any = _read(core, path)
        self._compiled: dict[_Shapes, Any] = {}
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._tensor_type = ov.Tensor
        self.description = f"OpenVINO {ov.__version__.split('-')[0]} CPU {precision}"
        graph = Graph.read(path)  # OpenVINO drops the names of free axes
        self.inputs = tuple(map(_tensor, self._model.inputs, graph.inputs))
        self.outputs = tuple(map(_tensor, self._model.outputs, graph.outputs))

    def run(self, arrays: Arrays) -> dict[str, Array]:
        request = self._take()
        try:
            results = request.infer({name: np.asarray(a, order="C") for name, a in arrays.items()}, share_inputs=True)
            return {tensor.name: results[index] for index, tensor in enumerate(self.outputs)}
        except RuntimeError as error:
            raise run_error(self.description, error) from error
        finally:
            self._idle.append(request)

    def prepare(self, arrays: Arrays) -> Callable[[], None]:
        return prepared(self.run, arrays)

    def scan(self, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Array]:
        shapes = {name: array.shape for name, array in {**carry, **constants}.items()}
        shapes |= {name: series.shape[1:] for name, series in xs.items()}
        request = self._request(tuple(shapes.items()))
        held = {name: _shareable(array) for name, array in constants.items()}
        for name, array in held.items():
            request.set_tensor(name, self._tensor_type(array, shared_memory=True))
        front = {name: array.copy() for name, array in carry.items()}
        back = {name: np.empty_like(array, order="C") for name, array in carry.items()}
        steps = len(next(iter(xs.values())))
        for step in range(steps):
            rows = {name: _shareable(series[step, ...]) for name, series in xs.items()}
            self._step(request, {**rows, **front}, {NEXT + name: array for name, array in back.items()})
            front, back = back, front
            on_step(step + 1, steps)
        return front

    def _step(self, request: Any, inputs: Arrays, outputs: Arrays) -> None:
        try:
            for name, array in {**inputs, **outputs}.items():
                request.set_tensor(name, self._tensor_type(array, shared_memory=True))
            request.infer(share_inputs=True)
        except RuntimeError as error:
            raise run_error(self.description, error) from error
        for name, array in outputs.items():
            # a smaller result is written into the larger array without complaint
            if tuple(request.get_tensor(name).shape) != array.shape:
                raise EngineError(
                    f"output {name} has shape {tuple(request.get_tensor(name).shape)}, its input {array.shape}",
                    remedy="export the engine so that both have one shape",
                )

    def close(self) -> None:
        with self._lock:
            self._idle.clear()
            self._compiled.clear()
            self._model = None

    def _take(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._request()

    def _request(self, shapes: _Shapes = ()) -> Any:
        """A request of the graph for all shapes, or for these, of which those used last are kept."""
        with self._lock:
            if self._model is None:
                raise closed_error("the engine")
            if shapes not in self._compiled:
                if shapes:
                    self._compiled = {kept: model for kept, model in self._compiled.items() if not kept}
                self._compiled[shapes] = self._compile(shapes)
            return self._compiled[shapes].create_infer_request()

    def _compile(self, shapes: _Shapes) -> Any:
        model = _read(self._core, self._path) if shapes else self._model
        with _unreadable(self._path):
            if shapes:
                model.reshape(dict(shapes))
            return self._core.compile_model(model, "CPU", self._hints)


def _shareable(array: Array) -> Array:
    return np.require(array, requirements=("C", "W"))  # shared tensors must be writable, though nothing is written


def _import() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ProviderUnavailable(
            "device 'openvino' cannot be used here", cause=str(error), remedy="pip install openvino"
        ) from error
    return openvino


@contextlib.contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise EngineUnreadable(
            f"{path.name} cannot be loaded by OpenVINO",
            cause=str(error).strip().splitlines()[-1],
            remedy='use device="cpu"',
        ) from error


def _read(core: Any, path: Path) -> Any:
    with _unreadable(path):
        return core.read_model(str(path))


def _tensor(port: Any, declared: Value) -> Tensor:
    if declared.type not in _DTYPES:
        raise EngineUnreadable(
            f"tensor {declared.name} has type {declared.type}", remedy="export it with tensors of plain types"
        )
    known = port.get_partial_shape()
    names = declared.shape if len(declared.shape) == len(known) else (None,) * len(known)
    shape = tuple(axis.get_length() if axis.is_static else name for axis, name in zip(known, names, strict=True))
    return Tensor(declared.name, shape, np.dtype(declared.type))
