"""ONNX Runtime: the CPU reference of every engine, and CUDA where its wheel and driver are there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime import InferenceSession

from ..engine import NEXT, Array, Arrays, StepCallback, Tensor, closed_error, run_error
from ..errors import EngineUnreadable, ProviderUnavailable

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# EXHAUSTIVE, the default, searches anew at every new shape (ONNX Runtime's documentation of the CUDA provider)
_PROVIDER_OPTIONS = {"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}, "cpu": {}}
_DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}  # fmt: skip


class OnnxRuntime:
    """One InferenceSession.  Sessions are safe to run from several threads."""

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        self.device = device
        self.description = f"ONNX Runtime {ort.__version__} {PROVIDERS[device]}"
        self._session: Any = _open_session(path, device, threads)
        self.inputs = tuple(_tensor(value) for value in self._session.get_inputs())
        self.outputs = tuple(_tensor(value) for value in self._session.get_outputs())
        self._output_names = [tensor.name for tensor in self.outputs]

    def run(self, arrays: Arrays) -> dict[str, Array]:
        session = self._opened()
        with _run_errors(self.description):
            return dict(zip(self._output_names, session.run(self._output_names, arrays), strict=True))

    def scan(self, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Array]:
        session = self._opened()
        binding = session.io_binding()
        held = {name: self._to_device(array) for name, array in constants.items()}
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        front = {name: self._to_device(array.copy()) for name, array in carry.items()}  # a copy: it is written to below
        back = {name: self._empty(array) for name, array in carry.items()}
        steps = len(next(iter(xs.values())))
        for step in range(steps):
            rows = {name: self._to_device(series[step]) for name, series in xs.items()}
            for name, value in {**rows, **front}.items():
                binding.bind_ortvalue_input(name, value)
            for name, value in back.items():
                binding.bind_ortvalue_output(NEXT + name, value)
            with _run_errors(self.description):
                session.run_with_iobinding(binding)
            front, back = back, front
            on_step(step + 1, steps)
        # copies: numpy() is a view that does not keep the memory alive
        return {name: value.numpy().copy() for name, value in front.items()}

    def close(self) -> None:
        self._session = None  # a call that is under way in another thread holds its own reference

    def _opened(self) -> Any:
        session = self._session
        if session is None:
            raise closed_error("the engine")
        return session

    def _to_device(self, array: Array) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), self.device, 0)

    def _empty(self, like: Array) -> Any:
        return ort.OrtValue.ortvalue_from_shape_and_type(like.shape, like.dtype, self.device, 0)


@contextlib.contextmanager
def _run_errors(description: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the binding raises half a dozen unrelated classes, RuntimeError among them
        raise run_error(description, error) from error


def _open_session(path: Path, device: str, threads: int | None) -> InferenceSession:
    provider = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise _unavailable(device, f"this onnxruntime {ort.__version__} was built without it")
    if device == "cuda":
        ort.preload_dlls()
    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = InferenceSession(
            str(path), options, providers=[provider], provider_options=[_PROVIDER_OPTIONS[device]]
        )
    except Exception as error:  # the binding raises half a dozen unrelated classes, RuntimeError among them
        raise EngineUnreadable(
            f"{path.name} cannot be loaded by ONNX Runtime {ort.__version__}",
            cause=str(error).splitlines()[0],
            remedy="verify the file (facesdk models verify), or export it again",
        ) from error
    # ONNX Runtime only warns, and runs on the CPU, when CUDA's libraries are missing
    if session.get_providers()[0] != provider:
        raise _unavailable(device, f"ONNX Runtime fell back to {session.get_providers()[0]}")
    session.disable_fallback()
    return session


def _unavailable(device: str, cause: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        f"device {device!r} cannot be used here",
        cause=cause,
        remedy="with an NVIDIA GPU: pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'; "
        "then check with: facesdk doctor",
    )


def _tensor(value: Any) -> Tensor:
    if value.type not in _DTYPES:
        raise EngineUnreadable(
            f"tensor {value.name} has type {value.type}", remedy="export it with tensors of plain types"
        )
    return Tensor(value.name, tuple(value.shape), np.dtype(_DTYPES[value.type]))
