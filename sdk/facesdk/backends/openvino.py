"""OpenVINO: a second backend for processors, the one with bf16 (optional extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..engine import NEXT, Array, Arrays, Precision, StepCallback, Tensor
from ..errors import EngineClosed, EngineUnreadable, ProviderUnavailable


class OpenVino:
    """One compiled model with a pool of inference requests, one for each thread that is inside at a time."""

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
        self._compiled: Any = _compile(core, path, hints)
        self._idle: list[Any] = []
        self._tensor_type = ov.Tensor
        self.description = f"OpenVINO {ov.__version__.split('-')[0]} CPU {precision}"
        self.inputs = tuple(_tensor(port) for port in self._compiled.inputs)
        self.outputs = tuple(_tensor(port) for port in self._compiled.outputs)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        request = self._take()
        try:
            results = request.infer({name: np.ascontiguousarray(a) for name, a in arrays.items()}, share_inputs=True)
            return {port.get_any_name(): value for port, value in results.items()}
        finally:
            self._idle.append(request)

    def scan(self, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Array]:
        request = self._compiled.create_infer_request()
        held = {name: np.ascontiguousarray(array) for name, array in constants.items()}
        for name, array in held.items():
            request.set_tensor(name, self._tensor_type(array, shared_memory=True))
        front = {name: array.copy() for name, array in carry.items()}
        back = {name: np.empty_like(array, order="C") for name, array in carry.items()}
        steps = len(next(iter(xs.values())))
        for step in range(steps):
            rows = {name: np.ascontiguousarray(series[step]) for name, series in xs.items()}
            for name, array in {**rows, **front, **{NEXT + name: array for name, array in back.items()}}.items():
                request.set_tensor(name, self._tensor_type(array, shared_memory=True))
            request.infer(share_inputs=True)
            front, back = back, front
            on_step(step + 1, steps)
        return front

    def close(self) -> None:
        self._idle.clear()
        self._compiled = None

    def _take(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            if self._compiled is None:
                raise EngineClosed("the engine was closed", remedy="open it again: Engine.open(...)") from None
            return self._compiled.create_infer_request()


def _import() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ProviderUnavailable(
            "device 'openvino' cannot be used here", cause=str(error), remedy='pip install "facesdk[openvino]"'
        ) from error
    return openvino


def _compile(core: Any, path: Path, hints: dict[str, str]) -> Any:
    try:
        return core.compile_model(str(path), "CPU", hints)
    except RuntimeError as error:
        raise EngineUnreadable(
            f"{path.name} cannot be loaded by OpenVINO",
            cause=str(error).strip().splitlines()[-1],
            remedy='use device="cpu"',
        ) from error


def _tensor(port: Any) -> Tensor:
    shape = tuple(d.get_length() if d.is_static else d.get_symbol_name() if hasattr(d, "get_symbol_name") else None
                  for d in port.get_partial_shape())  # fmt: skip
    return Tensor(port.get_any_name(), shape, np.dtype(port.get_element_type().to_dtype()))
