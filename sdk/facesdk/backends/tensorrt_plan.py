"""A TensorRT plan, loaded: its engine, what it takes and gives, and the shapes that it was built for."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..cuda import runtime
from ..engine import Tensor
from ..errors import EngineInputError, EngineUnreadable, ProviderUnavailable
from ..graph import Graph
from ..plans import library, plugin
from ..plans.key import Key
from .tensorrt_kernels import Kernels, kernels_file
from .tensorrt_words import failure, logger, recorder

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# one may fail by what another thread did meanwhile, as cudaDeviceSynchronize; several have a reason that stays
_CAPTURES = 3
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
# trt.DataType -> NumPy; bfloat16 and smaller types have none
_DTYPES = {
    "FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_,
    "UINT8": np.uint8,
}  # fmt: skip


class Plan:
    """One engine of TensorRT, for all threads.

    memory    bytes that a run computes in at the most, whatever its shapes.
    shared    whether that memory is ours to give (TensorRT 10.1), so that engines can compute in the same.
    captures  of runs as CUDA graphs that may still fail; 0: none is tried, as TensorRT-RTX makes graphs by itself.
    Raises MissingDependency, ProviderUnavailable, EngineUnreadable, EngineError, OutOfMemory.
    """

    def __init__(self, path: Path, key: Key, graph: Path, device: str) -> None:
        runtime.require()
        self.path, self.key, self.library = path, key, f"{NAMES[device]} {library.version(device)}"
        self.trt = library.load(device)
        self._log, self._recorder = logger(self.trt), recorder(self.trt)
        self._log.words.clear()
        self._engine = self._deserialized()
        if "STRIP_PLAN" in key.flags:
            self._refit(graph)
        self.inputs, self.outputs = _tensors(self.trt, self._engine, path, Graph.read(graph), key)
        self.shared = hasattr(self.trt.IExecutionContext, "set_device_memory")
        self.memory = int(self._engine.device_memory_size_v2) if self.shared else 0
        self.captures = _CAPTURES
        self._lock = threading.Lock()
        self._kernels: Kernels | None = None
        self._context_options = self._options()

    def context(self) -> Any:
        """A new execution context, without memory to compute in where that is shared."""
        with self._lock:  # an engine is for one thread at a time, its contexts for one each
            context = self._engine.create_execution_context(self._context_options)
        if context is None:
            raise self.failure("has no room to run", "close other engines and programs on the GPU: nvidia-smi")
        return context

    def settled(self) -> None:
        """To be told when a set of shapes runs again, and has compiled whatever it needs."""
        if self._kernels is not None:
            self._kernels.keep()

    def check(self, shapes: Shapes) -> None:
        """Raise EngineInputError for a shape that the plan was not built for."""
        for name, (least, _, most) in self.key.profile.items():
            shape = shapes[name]
            if len(shape) != len(least) or not all(
                low <= size <= high for low, size, high in zip(least, shape, most, strict=False)
            ):
                raise EngineInputError(
                    f"input {name} has shape {list(shape)}, which {self.path.name} was not built for",
                    cause=f"its shapes go from {list(least)} to {list(most)}",
                    remedy=f"build it for others, said in a file ([profiles.{self.key.engine}]): "
                    f"{self.key.command} --profiles FILE",
                )

    def failure(self, fact: str, remedy: str, words: deque[str] | None = None) -> Exception:
        """The error for a call that failed; `words` of its own recorder, else those of the loading."""
        return failure(f"{self.path.name} {fact}", words or self._words, remedy)

    @property
    def _words(self) -> deque[str]:
        """Of the plan's own recorder, else of the logger, which all plans share."""
        found: deque[str] = self._recorder.words or self._log.words
        return found

    # -- loading ------------------------------------------------------------------------------------------

    def _deserialized(self) -> Any:
        try:
            self._runtime = self.trt.Runtime(self._log)
        except TypeError as error:  # a constructor that gives nothing, without a reason
            raise ProviderUnavailable(
                f"{self.library} cannot start", cause="no CUDA driver or GPU that it can use", remedy="nvidia-smi"
            ) from error
        self._runtime.error_recorder = self._recorder
        if "VERSION_COMPATIBLE" in self.key.flags:  # such a plan carries the library's code that runs it
            self._runtime.engine_host_code_allowed = True
        if self.key.kernel:
            plugin.register(self.trt, self._runtime)
        rebuild = f"build it again: {self.key.command} --force"
        try:
            with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                engine = self._runtime.deserialize_cuda_engine(data)
        except (OSError, ValueError) as error:  # a file of no bytes cannot be mapped
            raise EngineUnreadable(f"{self.path} cannot be read", cause=str(error), remedy=rebuild) from error
        if engine is None:
            raise failure(f"{self.library} cannot load {self.path}", self._words, rebuild, EngineUnreadable)
        return engine

    def _refit(self, graph: Path) -> None:
        refitter = self.trt.Refitter(self._engine, self._log)
        parser = self.trt.OnnxParserRefitter(refitter, self._log)
        if parser.refit_from_file(os.fspath(graph)) and refitter.refit_cuda_engine():
            return
        words = self._words
        words.extendleft(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        words.extend(f"no weights for {', '.join(missing)}" for missing in [refitter.get_missing_weights()] if missing)
        remedy = f"build it again: {self.key.command} --force"
        raise failure(f"{self.path.name} cannot take its weights from {graph.name}", words, remedy, EngineUnreadable)

    def _options(self) -> Any:
        """What contexts are made with: TensorRT-RTX compiles kernels here, which all contexts are to have at once."""
        strategies = self.trt.ExecutionContextAllocationStrategy
        strategy = strategies.USER_MANAGED if self.shared else strategies.STATIC
        kinds = getattr(self.trt, "DynamicShapesKernelSpecializationStrategy", None)
        if kinds is None:
            return strategy
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        self._kernels = Kernels(config.create_runtime_cache(), kernels_file(self.path, self.key))
        config.set_runtime_cache(self._kernels.cache)
        weakref.finalize(self, self._kernels.keep)  # at the end of the program too
        # at once: in the background, the kernels would change between a plain run and the graph captured after it
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        # a capture of ours would need a plan that was built for it (BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.captures = 0
        return config


def _tensors(
    trt: ModuleType, engine: Any, path: Path, graph: Graph, key: Key
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of the plan; what it leaves free is named as in the ONNX graph."""
    named = {value.name: value.shape for value in (*graph.inputs, *graph.outputs)}
    found: dict[Any, list[Tensor]] = {trt.TensorIOMode.INPUT: [], trt.TensorIOMode.OUTPUT: []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind, location = engine.get_tensor_dtype(name), engine.get_tensor_location(name)
        if kind.name not in _DTYPES or location != trt.TensorLocation.DEVICE:
            fact = f"is {kind.name}" if kind.name not in _DTYPES else "is read by the processor, as a shape"
            raise EngineUnreadable(
                f"{path.name} cannot run here: its tensor {name} {fact}",
                remedy="export the engine with inputs and outputs of plain types that hold no shapes",
            )
        sizes = tuple(engine.get_tensor_shape(name))
        names = named.get(name, ())
        names = names if len(names) == len(sizes) else (None,) * len(sizes)
        shape = tuple(free if size < 0 else size for size, free in zip(sizes, names, strict=True))
        largest = tuple(key.profile[name][-1]) if name in key.profile else None
        found[engine.get_tensor_mode(name)].append(Tensor(name, shape, np.dtype(_DTYPES[kind.name]), largest))
    inputs, outputs = found.values()
    return tuple(inputs), tuple(outputs)
