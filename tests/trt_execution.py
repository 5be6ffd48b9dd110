"""The half of the strict stand-in that runs plans: ONNX Runtime on a processor, at the addresses that were bound.

    half = install(monkeypatch, version)
    plan = write_plan(path, onnx, profile)
    backend = TensorRt(plan, key_of(plan, profile), onnx, "tensorrt")
    ...
    half.check()                            # at the end: no misuse, nothing of TensorRT is alive

A plan holds the ONNX file, unless it is stripped.  A run computes what the addresses hold when the stream gets there,
after filling the memory that it computes in with rubbish.  Misuse is a fault: a run without addresses, shapes or
memory, or with less than its shapes need, on the default stream or on a second stream, of freed memory, a capture
before the first plain run after a change or with TensorRT-RTX, a graph replayed after its context has changed or gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import re
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from facesdk.plans import gpu
from facesdk.plans.gpu import Gpu
from facesdk.plans.key import Key

from .cuda_fake import FakeCuda, LaunchFailure
from .trt_stub import RTX, VERSIONS, Stub

_TYPES = {
    "tensor(float)": ("FLOAT", np.float32), "tensor(float16)": ("HALF", np.float16),
    "tensor(int64)": ("INT64", np.int64), "tensor(int32)": ("INT32", np.int32), "tensor(int8)": ("INT8", np.int8),
    "tensor(uint8)": ("UINT8", np.uint8), "tensor(bool)": ("BOOL", np.bool_), "tensor(bfloat16)": ("BF16", np.uint16),
}  # fmt: skip
SERIALIZATION = "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (the tag is not that of a plan)"
NO_DRIVER = "[cudaError 35: CUDA driver version is insufficient for CUDA runtime version]"
NO_MEMORY = "[allocator.cpp] Error Code 2: OutOfMemory (Requested size was 4096 bytes.)"


def install(monkeypatch: pytest.MonkeyPatch, version: str = VERSIONS[-1], **cuda: Any) -> Execution:
    """The library of one version, and a GPU, put where `import` and FaceSDK look; version RTX: tensorrt_rtx."""
    module = "tensorrt_rtx" if version == RTX else "tensorrt"
    trt = Stub(version, module)
    half = Execution(trt, FakeCuda(**cuda).install(monkeypatch))
    monkeypatch.setitem(sys.modules, module, trt)
    monkeypatch.setattr(gpu, "first_gpu", lambda *advice: Gpu("NVIDIA H200", "9.0", 143_771))
    return half


def key_of(plan: Path, profile: Mapping[str, Any] | None = None, flags: tuple[str, ...] = ()) -> Key:
    """The side-car of a plan, as its build writes it."""
    return Key(
        engine="step", files={}, builder="tensorrt", version="11.4.0", device="tensorrt", precision="fp16",
        hardware="this", capabilities=("9.0",), gpu="NVIDIA H200", profile=profile or {}, flags=flags,
        plan_size=plan.stat().st_size, plan_sha256="", command="facesdk build demo --engine step",
    )  # fmt: skip


def write_plan(
    path: Path, onnx: Path, profile: Mapping[str, Any] | None = None, *, memory: int = 4096, **flags: Any
) -> Path:
    """A plan of an ONNX file.

    memory  bytes that a run computes in at the largest shapes; at smaller ones the same share of it.
    flags   stripped, host_code (version-compatible), host=names of tensors on the processor, unsized=outputs whose
            shape is known after the run alone, whole=it tells no memory but that at the largest shapes.
    """
    facts = {"profile": profile or {}, "memory": memory, **flags}
    path.write_bytes(json.dumps(facts).encode() + b"\n" + onnx.read_bytes())
    return path


class _Model:
    """The graph behind a plan."""

    def __init__(self, onnx: bytes, facts: Mapping[str, Any]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session: Any = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.tensors = {**self.inputs, **self.outputs}
        self.facts, self.weights = facts, not facts.get("stripped")

    def sizes(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.tensors[name].shape)

    def dtype(self, name: str) -> Any:
        return _TYPES[self.tensors[name].type][1]

    def takes(self, name: str, shape: Sequence[int]) -> bool:
        sizes = self.sizes(name) if name in self.inputs else ()
        least, _, most = self.facts["profile"].get(name, (shape, shape, shape))
        fits = len(shape) == len(sizes) and all(size in (-1, n) for size, n in zip(sizes, shape, strict=True))
        return fits and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def memory(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Bytes that a run computes in."""
        most = {name: largest for name, (_, _, largest) in self.facts["profile"].items()}
        whole = sum(map(math.prod, most.values()))
        if self.facts.get("whole") or not whole:
            return self.facts["memory"]  # type: ignore[no-any-return]
        return -(-self.facts["memory"] * sum(math.prod(shapes[name]) for name in most) // whole)  # type: ignore[no-any-return]

    def run(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(self.outputs, self.session.run(list(self.outputs), dict(arrays)), strict=True))


@dataclasses.dataclass
class _State:
    """`version`: counts changes.   `ready`: a plain run has come after the last one.

    needed  bytes to compute in, told after the last change of a shape; without that, those of the largest shapes.
    """

    model: _Model
    managed: bool
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    addresses: dict[str, int] = dataclasses.field(default_factory=dict)
    made: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    memory: tuple[int, int] | None = None
    needed: int | None = None
    cache: Any = None
    graphs: bool = False
    stream: int = 0
    version: int = 0
    ready: bool = False

    @property
    def least(self) -> int:
        return self.model.facts["memory"] if self.needed is None else self.needed

    def changed(self) -> None:
        self.version, self.ready = self.version + 1, False


class Execution:
    """`runs`: of every run, whether it came from a graph.

    no_room    contexts that are refused next, as memory is short.
    no_driver  nothing is loaded, as without a driver.
    broken     words with which loading and running fail, while there are any.
    compiled   shapes that TensorRT-RTX compiled kernels for, one after the other.
    driver     that compiled kernels are for.
    """

    def __init__(self, trt: Stub, cuda: FakeCuda) -> None:
        self.trt, self.cuda = trt, cuda
        self.faults: list[str] = []
        self.runs: list[bool] = []
        self.no_room = 0
        self.no_driver = False
        self.broken = ""
        self.compiled: list[str] = []
        self.driver = "580.65.06"
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        self.engines: weakref.WeakSet[Any] = weakref.WeakSet()
        self._streams: dict[int, int] = {}
        for kind in (
            "Runtime", "ICudaEngine", "IRuntimeConfig", "IRuntimeCache", "IExecutionContext", "Refitter",
            "OnnxParserRefitter",
        ):  # fmt: skip
            for name in vars(type(self)):
                if found := re.fullmatch(f"_{kind}_(\\w+)", name):
                    trt.answers[kind, found[1].replace("init", "__init__")] = self._bound(name)

    def check(self) -> None:
        """AssertionError for misuse, and for what is still alive."""
        gc.collect()
        self.cuda.check()
        assert not self.faults, "\n".join(self.faults)
        assert not self.contexts, f"{len(self.contexts)} execution contexts are alive"
        assert not self.engines, f"{len(self.engines)} engines are alive"

    def _bound(self, name: str) -> Any:
        return lambda this, *arguments: getattr(self, name)(this, *arguments)

    # -- engines --------------------------------------------------------------------------------------------------

    def _Runtime_init(self, this: Any, logger: Any) -> None:  # noqa: N802
        if self.no_driver and self.trt.__name__ == "tensorrt":
            raise TypeError("pybind11::init(): factory function returned nullptr")
        this._values["logger"] = logger
        this._values["engine_host_code_allowed"] = False

    def _Runtime_deserialize_cuda_engine(self, this: Any, plan: Any) -> Any:  # noqa: N802
        head, _, onnx = bytes(plan).partition(b"\n")
        try:
            facts = json.loads(head)
        except ValueError:
            self._say(this, SERIALIZATION)
            return None
        if self.no_driver or self.broken:
            self._say(this, NO_DRIVER if self.no_driver else self.broken)
            return None
        if facts.get("host_code") and not this.engine_host_code_allowed:
            self._say(this, "The plan holds host code, which engine_host_code_allowed forbids")
            return None
        engine = self.trt.ICudaEngine()
        engine._values.update(model=_Model(onnx, facts), runtime=this, logger=this._values["logger"])
        engine._values["error_recorder"] = this.error_recorder
        self.engines.add(engine)
        return engine

    def _ICudaEngine_num_io_tensors(self, this: Any) -> int:  # noqa: N802
        return len(this._values["model"].tensors)

    def _ICudaEngine_get_tensor_name(self, this: Any, index: int) -> str:  # noqa: N802
        names: list[str] = list(this._values["model"].tensors)
        return names[index]

    def _ICudaEngine_get_tensor_mode(self, this: Any, name: str) -> Any:  # noqa: N802
        model, modes = this._values["model"], self.trt.TensorIOMode
        return modes.INPUT if name in model.inputs else modes.OUTPUT if name in model.outputs else modes.NONE

    def _ICudaEngine_get_tensor_dtype(self, this: Any, name: str) -> Any:  # noqa: N802
        return self.trt.DataType[_TYPES[this._values["model"].tensors[name].type][0]]

    def _ICudaEngine_get_tensor_shape(self, this: Any, name: str) -> tuple[int, ...]:  # noqa: N802
        return this._values["model"].sizes(name)  # type: ignore[no-any-return]

    def _ICudaEngine_get_tensor_location(self, this: Any, name: str) -> Any:  # noqa: N802
        places = self.trt.TensorLocation
        return places.HOST if name in this._values["model"].facts.get("host", ()) else places.DEVICE

    def _ICudaEngine_device_memory_size_v2(self, this: Any) -> int:  # noqa: N802
        return this._values["model"].facts["memory"]  # type: ignore[no-any-return]

    def _ICudaEngine_create_runtime_config(self, this: Any) -> Any:  # noqa: N802
        return self.trt.IRuntimeConfig()

    def _IRuntimeConfig_create_runtime_cache(self, this: Any) -> Any:  # noqa: N802
        cache = self.trt.IRuntimeCache()
        cache._values["kernels"] = []
        return cache

    def _IRuntimeConfig_set_runtime_cache(self, this: Any, cache: Any) -> bool:  # noqa: N802
        this._values["cache"] = cache
        return True

    def _IRuntimeCache_serialize(self, this: Any) -> Any:  # noqa: N802
        return memoryview(json.dumps([self.trt.__version__, self.driver, this._values["kernels"]]).encode())

    def _IRuntimeCache_deserialize(self, this: Any, blob: bytes) -> bool:  # noqa: N802
        try:
            *where, kernels = json.loads(blob)
        except ValueError:
            return False
        if where != [self.trt.__version__, self.driver]:
            return False
        this._values["kernels"] = kernels
        return True

    def _IRuntimeConfig_set_execution_context_allocation_strategy(self, this: Any, strategy: Any) -> None:  # noqa: N802
        this._values["strategy"] = strategy

    def _ICudaEngine_create_execution_context(self, this: Any, options: Any = None) -> Any:  # noqa: N802
        with self._alone(this):
            return self._context(this, options)

    @contextlib.contextmanager
    def _alone(self, engine: Any) -> Iterator[None]:
        if engine._values.setdefault("busy", False):
            self.faults.append("two threads are in one engine")
        engine._values["busy"] = True
        time.sleep(1e-3)  # as long as it takes the other thread to come
        yield
        engine._values["busy"] = False

    def _context(self, this: Any, options: Any) -> Any:
        strategies, model = self.trt.ExecutionContextAllocationStrategy, this._values["model"]
        strategy = getattr(options, "_values", {}).get("strategy", options) or strategies.STATIC
        if self.no_room:
            self.no_room -= 1
            self._say(this, NO_MEMORY)
            return None
        context, managed = self.trt.IExecutionContext(), strategy == strategies.USER_MANAGED
        chosen = getattr(options, "_values", {})
        state = _State(model, managed, cache=chosen.get("cache"))
        state.graphs = "WHOLE_GRAPH_CAPTURE" in str(chosen.get("cuda_graph_strategy"))
        if not managed:
            code, pointer = self.cuda.cudaMalloc(model.facts["memory"])
            if int(code):
                self._say(this, NO_MEMORY)
                return None
            state.memory = (pointer, model.facts["memory"])
            weakref.finalize(context, self.cuda.cudaFree, pointer)
        context._values.update(state=state, engine=this, logger=this._values["logger"])
        context._values["error_recorder"] = this.error_recorder
        self.contexts.add(context)
        return context

    # -- contexts -------------------------------------------------------------------------------------------------

    def _IExecutionContext_set_input_shape(self, this: Any, name: str, shape: tuple[int, ...]) -> bool:  # noqa: N802
        state: _State = this._values["state"]
        if not state.model.takes(name, shape):
            return self._say(this, f"setInputShape: {name} {shape} is outside the profile")
        state.shapes[name], state.needed = shape, None
        state.made.clear()
        state.changed()
        return True

    def _IExecutionContext_infer_shapes(self, this: Any) -> list[str]:  # noqa: N802
        state: _State = this._values["state"]
        return [name for name in state.model.inputs if name not in state.shapes]

    def _IExecutionContext_get_tensor_shape(self, this: Any, name: str) -> tuple[int, ...]:  # noqa: N802
        state: _State = this._values["state"]
        if name in state.model.inputs:
            return state.shapes.get(name, state.model.sizes(name))
        if name in state.model.facts.get("unsized", ()):
            return state.model.sizes(name)
        if not state.made:
            zeros = {key: np.zeros(shape, state.model.dtype(key)) for key, shape in state.shapes.items()}
            state.made = {key: array.shape for key, array in state.model.run(zeros).items()}
        return state.made[name]

    def _IExecutionContext_set_tensor_address(self, this: Any, name: str, memory: int) -> bool:  # noqa: N802
        state: _State = this._values["state"]
        if name not in state.model.tensors or not memory or memory % 256:
            return self._say(this, f"setTensorAddress: {name} at {memory:#x}")
        state.addresses[name] = memory
        state.changed()
        return True

    def _IExecutionContext_update_device_memory_size_for_shapes(self, this: Any) -> int:  # noqa: N802
        state: _State = this._values["state"]
        if missing := [name for name in state.model.inputs if name not in state.shapes]:
            self._fault(this, f"update_device_memory_size_for_shapes: no shape of {missing}")
            return 0
        state.needed = state.model.memory(state.shapes)
        state.changed()
        return state.needed

    def _IExecutionContext_set_device_memory(self, this: Any, memory: int, size: int) -> None:  # noqa: N802
        state: _State = this._values["state"]
        if not state.managed or memory % 256 or size < state.least:
            self._fault(this, f"set_device_memory({memory:#x}, {size}) of a context that needs other memory")
        state.memory = (memory, size)
        state.changed()

    def _IExecutionContext_execute_async_v3(self, this: Any, stream: int) -> bool:  # noqa: N802
        state: _State = this._values["state"]
        if self.broken:
            return self._say(this, self.broken)
        if wrong := self._misused(state, stream):
            return self._fault(this, f"execute_async_v3: {wrong}")
        state.stream = stream
        captured = bool(self.cuda.cudaStreamIsCapturing(stream)[1])
        if captured and self.trt.__name__ == "tensorrt_rtx":
            return self._fault(this, "this TRT engine is not stream capturable")
        captured = captured or (state.ready and state.graphs)
        if not state.ready:  # what it puts off until the first run needs memory, which a capture does not allow
            code, pointer = self.cuda.cudaMalloc(256)
            if int(code):
                return self._say(this, f"execute_async_v3: Cuda Runtime ({code.name})")
            self.cuda.cudaFree(pointer)
            state.ready = True
            self._compile(state)
        try:
            self.cuda.enqueue(stream, self._work(this, captured))
        except Exception as error:
            return self._say(this, f"execute_async_v3: Cuda Runtime ({error!r})")
        return True

    def _misused(self, state: _State, stream: int) -> str:
        if stream in (0, 1, 2) or (state.stream and state.stream != stream):
            return f"stream {stream:#x} after {state.stream:#x}"
        if missing := [name for name in state.model.inputs if name not in state.shapes]:
            return f"no shape of {missing}"
        if missing := [name for name in state.model.tensors if name not in state.addresses]:
            return f"no address of {missing}"
        if state.memory is None:
            return "no device memory"
        if state.memory[1] < state.least:
            return f"{state.memory[1]} bytes of memory, its shapes need {state.least}"
        if self._streams.setdefault(state.memory[0], stream) != stream:
            return "its memory is that of another stream"
        return "" if state.model.weights else "no weights"

    def _compile(self, state: _State) -> None:
        """Kernels for these shapes, where there are none yet."""
        shapes = repr(sorted(state.shapes.items()))
        if state.cache is not None and shapes not in state.cache._values["kernels"]:
            state.cache._values["kernels"].append(shapes)
            self.compiled.append(shapes)

    def _work(self, context: Any, captured: bool) -> Any:
        """The run as it is queued: with the addresses and shapes of now, and the values of then."""
        state: _State = context._values["state"]
        alive, version, memory = weakref.ref(context), state.version, state.memory
        addresses, shapes = dict(state.addresses), dict(state.shapes)
        made = {name: self._IExecutionContext_get_tensor_shape(context, name) for name in state.model.outputs}
        assert memory

        def run() -> None:
            if captured and (alive() is None or state.version != version):
                self.faults.append("a graph ran after its context had changed or gone")
                raise LaunchFailure
            self.runs.append(captured)
            scratch = self.cuda.array(memory[0], (memory[1],), np.uint8)
            model = state.model
            inputs = {n: self.cuda.array(addresses[n], shape, model.dtype(n)).copy() for n, shape in shapes.items()}
            scratch[:] = len(self.runs) % 256
            for name, array in model.run(inputs).items():
                self.cuda.array(addresses[name], made[name], model.dtype(name))[...] = array

        return run

    # -- refit ----------------------------------------------------------------------------------------------------

    def _Refitter_init(self, this: Any, engine: Any, logger: Any) -> None:  # noqa: N802
        this._values["engine"] = engine

    def _OnnxParserRefitter_init(self, this: Any, refitter: Any, logger: Any) -> None:  # noqa: N802
        this._values.update(refitter=refitter, logger=logger, num_errors=0)

    def _OnnxParserRefitter_refit_from_file(self, this: Any, path: str) -> bool:  # noqa: N802
        values = this._values["refitter"]._values
        try:
            values["refitted"] = _Model(Path(path).read_bytes(), {})
        except Exception:
            this._values["num_errors"] = 1
            return False
        return True

    def _OnnxParserRefitter_get_error(self, this: Any, index: int) -> Any:  # noqa: N802
        error = self.trt.ParserError()
        self.trt.answers["ParserError", "desc"] = lambda error: "the file holds no model"
        return error

    def _Refitter_get_missing_weights(self, this: Any) -> list[str]:  # noqa: N802
        return [] if self._refits(this) else ["w"]

    def _Refitter_refit_cuda_engine(self, this: Any) -> bool:  # noqa: N802
        if not self._refits(this):
            return False
        model: _Model = this._values["engine"]._values["model"]
        model.session, model.weights = this._values["refitted"].session, True
        return True

    def _refits(self, refitter: Any) -> bool:
        """Whether the file has the plan's tensors."""
        found = refitter._values.get("refitted")
        return found is not None and found.tensors.keys() == refitter._values["engine"]._values["model"].tensors.keys()

    # -- words ----------------------------------------------------------------------------------------------------

    def _say(self, this: Any, words: str) -> bool:
        """False, after telling the recorder, or the logger where there is none."""
        recorder = this.error_recorder
        if recorder is None:
            this._values["logger"].log(self.trt.ILogger.Severity.ERROR, words)
        else:
            recorder.report_error(self.trt.ErrorCodeTRT.UNSPECIFIED_ERROR, words)
            assert recorder.get_num_errors() == recorder.num_errors() > 0
        return False

    def _fault(self, this: Any, words: str) -> bool:
        self.faults.append(words)
        return self._say(this, words)
