"""A strict stand-in of Triton: it checks a repository as the server does when it loads it, and serves it.

The ONNX files run on ONNX Runtime; `model.py` runs here, with a `triton_python_backend_utils` that has what Triton's
own has and no more.  A plan of these tests is the ONNX file that it was "built" of.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

CPU, GPU = 0, 2  # TRITONSERVER_MEMORY_CPU, TRITONSERVER_MEMORY_GPU
DTYPES = {
    "TYPE_BOOL": np.bool_, "TYPE_UINT8": np.uint8, "TYPE_INT32": np.int32, "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_FP64": np.float64, "TYPE_STRING": np.object_,
}  # fmt: skip


def read_config(path: Path) -> Any:
    """The file as Triton's own ModelConfig; unknown fields and wrong types do not parse."""
    pb = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())


def type_name(io: Any) -> str:
    return str(io.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[io.data_type].name)


def check_config(config: Any, folder: Path) -> None:
    """What ValidateModelConfig, ValidateIOShape and GenerateWarmupData of Triton's core refuse."""
    assert config.name == folder.name
    assert config.HasField("version_policy")
    assert config.backend in ("onnxruntime", "tensorrt", "python")
    assert config.input
    assert config.output
    for io in (*config.input, *config.output):
        assert io.name
        assert type_name(io) in DTYPES
        assert len(io.dims)
        assert all(size == -1 or size >= 1 for size in io.dims)
        if io.HasField("reshape"):
            assert config.max_batch_size or len(io.reshape.shape)
            assert math.prod(io.dims) == math.prod(io.reshape.shape)
        if getattr(io, "optional", False):
            assert not config.max_batch_size
    for size in config.dynamic_batching.preferred_batch_size:
        assert 1 <= size <= config.max_batch_size
    for group in config.instance_group:
        assert group.count >= 1
        kind = group.DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number[group.kind].name
        assert kind == "KIND_GPU" or (kind == "KIND_CPU" and config.backend != "tensorrt")
    for sample in config.model_warmup:
        assert sample.batch_size >= 1, "a sample of batch size 0 is skipped"
        assert sample.inputs.keys() == {io.name for io in config.input}
        for io in config.input:
            given = sample.inputs[io.name]
            assert given.data_type == io.data_type
            assert given.zero_data
            assert fits(io.dims, given.dims)
            assert all(size >= 1 for size in given.dims)


def fits(dims: Sequence[int], shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(want in (-1, got) for want, got in zip(dims, shape, strict=True))


class Server:
    """A server on a repository.  `requests`: (model, where its outputs were wanted, tensors that came from a GPU)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capability: str = "9.0") -> None:
        self.configs = {path.parent.name: read_config(path) for path in sorted(folder.glob("*/config.pbtxt"))}
        for name, config in self.configs.items():
            check_config(config, folder / name)
        self.folder, self.capability, self.executing = folder, capability, False
        self.requests: list[tuple[str, int, list[str]]] = []
        self.failing: dict[str, str] = {}
        self.cancel_after = math.inf
        self.pb_utils = _module(self)
        self._sessions: dict[str, Any] = {}
        self._pipelines: dict[str, Any] = {}
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", self.pb_utils)
        for name, config in self.configs.items():
            if config.backend == "python":
                self._pipelines[name] = self._load(name, config)
            else:
                self._sessions[name] = self._open(name, config)
                self._check_signature(name, config)
                self._warm_up(name, config)

    def ask(self, pipeline: str, **arrays: Any) -> dict[str, np.ndarray]:
        """The outputs of a pipeline; RuntimeError with its words where it answers with an error."""
        config = self.configs[pipeline]
        tensors = [self.pb_utils.Tensor(name, _as_triton(value)) for name, value in arrays.items()]
        self._check_inputs(config, tensors)
        request = self.pb_utils.InferenceRequest(
            model_name=pipeline, inputs=tensors, requested_output_names=[io.name for io in config.output]
        )
        self.executing = True
        try:
            (response,) = self._pipelines[pipeline].execute([request])
        finally:
            self.executing = False
        if response.has_error():
            raise RuntimeError(f"{response.error().code()}: {response.error().message()}")
        made = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        assert made.keys() == {io.name for io in config.output}
        for io in config.output:
            assert made[io.name].dtype == DTYPES[type_name(io)], io.name
            assert fits(io.dims, made[io.name].shape), (io.name, made[io.name].shape)
        return made

    def close(self) -> None:
        for model in self._pipelines.values():
            model.finalize()

    def serve(self, request: Any) -> Any:
        """Triton's answer to a request for an engine."""
        name, config = request.model_name, self.configs[request.model_name]
        assert config.backend != "python", "a pipeline that asks a pipeline may wait for itself"
        from_gpu = [tensor.name() for tensor in request.given if not tensor.is_cpu()]
        self.requests.append((name, request.memory.type, from_gpu))
        if name in self.failing:
            return self.pb_utils.InferenceResponse(error=self.pb_utils.TritonError(self.failing[name]))
        try:
            self._check_inputs(config, request.given)
        except AssertionError as error:
            words = f"unexpected input of {name}: {error}"
            return self.pb_utils.InferenceResponse(error=self.pb_utils.TritonError(words))
        made = self._run(name, config, {tensor.name(): tensor.held for tensor in request.given}, request.wanted)
        tensors = [self.pb_utils.Tensor(key, value, memory=request.memory.type) for key, value in made.items()]
        return self.pb_utils.InferenceResponse(output_tensors=tensors)

    def _run(self, name: str, config: Any, arrays: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
        session = self._sessions[name]
        ranks = {value.name: len(value.shape) for value in session.get_inputs()}
        feeds = {key: value.reshape(value.shape[: ranks[key]]) for key, value in arrays.items()}
        outputs = {io.name: io for io in config.output}
        assert set(wanted) <= outputs.keys()
        made = dict(zip(wanted, session.run(list(wanted), feeds), strict=True))
        lead = 1 if config.max_batch_size else 0
        return {key: np.ascontiguousarray(v).reshape(*v.shape, 1) if v.ndim == lead else v for key, v in made.items()}

    def _check_inputs(self, config: Any, tensors: Sequence[Any]) -> None:
        given = {tensor.name(): tensor for tensor in tensors}
        assert len(given) == len(tensors), "an input is given twice"
        known = {io.name: io for io in config.input}
        assert given.keys() <= known.keys(), f"unknown: {given.keys() - known.keys()}"
        needed = {name for name, io in known.items() if not io.optional}
        assert needed <= given.keys(), f"missing: {needed - given.keys()}"
        rows = set()
        for name, tensor in given.items():
            io, shape = known[name], tuple(tensor.shape())
            assert tensor.dtype == DTYPES[type_name(io)], f"{name} is {tensor.dtype}"
            if config.max_batch_size:
                rows.add(shape[0])
                shape = shape[1:]
            assert fits(io.dims, shape), f"{name} is {tensor.shape()}, {list(io.dims)} is wanted"
        assert len(rows) <= 1
        assert not rows or max(rows) <= config.max_batch_size, f"{max(rows)} rows of {config.max_batch_size}"

    def _open(self, name: str, config: Any) -> Any:
        place = self.folder / name / "1"
        file = "model.onnx"
        if config.backend == "tensorrt":
            file = config.cc_model_filenames.get(self.capability, config.default_model_filename or "model.plan")
        path = place / file
        path = path / file if path.is_dir() else path
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def _check_signature(self, name: str, config: Any) -> None:
        """ValidateInputs of the ONNX Runtime backend, CompareDimsSupported of both."""
        session = self._sessions[name]
        for declared, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert [io.name for io in declared] == [value.name for value in real]
            for io, value in zip(declared, real, strict=True):
                dims = list(io.reshape.shape if io.HasField("reshape") else io.dims)
                shape = [size if isinstance(size, int) else -1 for size in value.shape]
                if not shape:
                    assert config.backend == "onnxruntime", "TensorRT's backend compares the number of axes"
                    assert dims == [1]
                    continue
                assert ([-1, *dims] if config.max_batch_size else dims) == shape, (name, io.name)

    def _warm_up(self, name: str, config: Any) -> None:
        for sample in config.model_warmup:
            rows = (sample.batch_size,) if config.max_batch_size else ()
            arrays = {
                key: np.zeros((*rows, *value.dims), DTYPES[type_name(value)]) for key, value in sample.inputs.items()
            }
            self._run(name, config, arrays, [io.name for io in config.output])

    def _load(self, name: str, config: Any) -> Any:
        spec = importlib.util.spec_from_file_location(f"{name}.model", self.folder / name / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        group = config.instance_group[0]
        kind = group.DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number[group.kind].name
        device = "GPU" if kind == "KIND_GPU" else "CPU"
        model.initialize({"model_name": name, "model_instance_kind": device, "model_instance_device_id": "0"})
        return model


def _as_triton(value: Any) -> np.ndarray:
    """Numbers and texts as a client sends them."""
    if isinstance(value, str):
        return np.array([value.encode()], np.object_)
    if isinstance(value, np.ndarray):
        return value
    dtype = {bool: np.bool_, int: np.int64, float: np.float64}[type(value)]
    return np.array([value], dtype)


def _module(server: Server) -> ModuleType:
    """triton_python_backend_utils, as far as Triton 23.10 and later have it."""

    class Tensor:
        def __init__(self, name: str, array: np.ndarray, *, memory: int = CPU) -> None:
            assert name
            assert isinstance(array, np.ndarray)
            assert array.ndim, "Triton knows no tensor without axes"
            assert array.dtype in map(np.dtype, DTYPES.values())
            self._name, self.held, self._memory, self.dtype = name, np.ascontiguousarray(array), memory, array.dtype

        def name(self) -> str:
            return self._name

        def shape(self) -> list[int]:
            return list(self.held.shape)

        def is_cpu(self) -> bool:
            return self._memory == CPU

        def as_numpy(self) -> np.ndarray:
            if not self.is_cpu():
                raise RuntimeError("Tensor is stored in GPU and cannot be converted to NumPy.")
            return self.held

        def to_dlpack(self) -> Capsule:
            return Capsule(self.held, self._memory)

        @staticmethod
        def from_dlpack(name: str, value: Any) -> Tensor:
            if isinstance(value, Capsule):
                return Tensor(name, value.take(), memory=value.memory)
            kind, _ = value.__dlpack_device__()
            assert kind == 2, "kDLCUDA"
            return Tensor(name, value.numpy(), memory=GPU)

    class InferenceRequest:
        _numbers = itertools.count()

        def __init__(
            self, *, model_name: str, requested_output_names: list[str], inputs: list[Tensor],
            preferred_memory: Any = None,
        ) -> None:  # fmt: skip
            assert all(isinstance(tensor, Tensor) for tensor in inputs)
            self.model_name, self.wanted, self.given = model_name, requested_output_names, inputs
            self.memory = preferred_memory or PreferredMemory(CPU, 0)

        def inputs(self) -> list[Tensor]:
            return self.given

        def is_cancelled(self) -> bool:
            return len(server.requests) >= server.cancel_after

        def exec(self) -> Any:
            assert server.executing, "requests are for `execute`, not for `initialize` and `finalize`"
            return server.serve(self)

    class InferenceResponse:
        def __init__(self, output_tensors: Sequence[Tensor] = (), error: Any = None) -> None:
            self._tensors, self._error = list(output_tensors), error

        def has_error(self) -> bool:
            return self._error is not None

        def error(self) -> Any:
            return self._error

        def output_tensors(self) -> list[Tensor]:
            return self._tensors

    module = ModuleType("triton_python_backend_utils")
    vars(module).update(
        Tensor=Tensor, InferenceRequest=InferenceRequest, InferenceResponse=InferenceResponse, TritonError=TritonError,
        PreferredMemory=PreferredMemory, TRITONSERVER_MEMORY_CPU=CPU, TRITONSERVER_MEMORY_GPU=GPU,
    )  # fmt: skip
    return module


class Capsule:
    """A DLPack capsule: it can be taken once."""

    def __init__(self, array: np.ndarray, memory: int) -> None:
        self._array, self.memory = array, memory

    def take(self) -> np.ndarray:
        array, self._array = self._array, None  # type: ignore[assignment]
        assert array is not None, "the capsule was used"
        return array


class PreferredMemory:
    def __init__(self, preferred_memory_type: int, preferred_device_id: int) -> None:
        self.type, self.device = preferred_memory_type, preferred_device_id


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, CANCELLED = (
        "UNKNOWN",
        "INTERNAL",
        "NOT_FOUND",
        "INVALID_ARG",
        "CANCELLED",
    )

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code
