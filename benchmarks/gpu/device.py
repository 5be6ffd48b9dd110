"""The GPU as memory, a stream, events and graphs: through torch, cuda-bindings, or libcudart itself."""

from __future__ import annotations

import gc
import importlib
import math
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from facesdk.cuda.views import View

from .cudart import Cudart, find_cudart

Array = np.ndarray[Any, Any]
Work = Callable[[], Any]


class Device(Protocol):
    """What the checks and timings need of a GPU; work is queued on `stream`.

    record  makes one piece of work of many launches: ("graph", its replay), or ("calls", all of them in turn).
    """

    kind: str
    name: str
    capability: tuple[int, int]
    stream: int

    def upload(self, data: Array) -> int: ...
    def download(self, pointer: int, nbytes: int) -> Array: ...
    def free(self) -> None: ...
    def synchronize(self) -> None: ...
    def record(self, launches: Sequence[Work]) -> tuple[str, Work]: ...
    def milliseconds(self, work: Work) -> float: ...


def open_device(kinds: str = "torch,bindings,cudart") -> Device:
    """The first of these ways to the GPU that there is."""
    problems: list[str] = []
    for kind in kinds.split(","):
        device = _open(kind, problems)
        if device is not None:
            return device
    raise SystemExit("no CUDA device that can be used here\n  " + "\n  ".join(problems))


def _open(kind: str, problems: list[str]) -> Device | None:
    try:
        return WAYS[kind]()
    except (ImportError, OSError, RuntimeError) as error:
        problems.append(f"{kind}: {error}")
        return None


def in_turn(launches: Sequence[Work]) -> Work:
    """All of them as one piece of work; where they are short, its time is the host's."""

    def work() -> None:
        for launch in launches:
            launch()

    return work


class TorchDevice:
    """Through torch; `record` makes a CUDA graph."""

    kind = "torch"

    def __init__(self) -> None:
        torch = self.torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        self.name, self.capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        self._stream = torch.cuda.Stream()  # graphs cannot be captured on the default stream
        torch.cuda.set_stream(self._stream)
        self.stream = int(self._stream.cuda_stream)
        self.memory: dict[int, Any] = {}
        gc.freeze()  # capturing a graph collects garbage: not among all that torch imported, each time

    def upload(self, data: Array) -> int:
        memory = self.torch.from_numpy(np.ascontiguousarray(data).view(np.uint8).reshape(-1)).to("cuda")
        self.memory[memory.data_ptr()] = memory
        return int(memory.data_ptr())

    def download(self, pointer: int, nbytes: int) -> Array:
        array: Array = self.memory[pointer][:nbytes].cpu().numpy()
        return array

    def tensor(self, view: View) -> Any:
        """A view into memory that was uploaded at `view.owner`, as a tensor; packed views only."""
        start, dtype = view.pointer - view.owner, {"fp16": self.torch.float16, "bf16": self.torch.bfloat16}
        data = self.memory[view.owner][start : start + 2 * math.prod(view.shape)]
        return data.view(dtype[view.element]).view(view.shape)

    def free(self) -> None:
        self.synchronize()
        self.memory.clear()

    def synchronize(self) -> None:
        self.torch.cuda.synchronize()

    def record(self, launches: Sequence[Work]) -> tuple[str, Work]:
        """A graph of the launches; they run once before, so that modules are loaded and plans are made."""
        work = in_turn(launches)
        work()
        self.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        try:
            with self.torch.cuda.graph(graph, stream=self._stream):
                work()
        except RuntimeError as error:
            print(f"no graph, so the host's share is in the times: {str(error).partition(chr(10))[0]}")
            return "calls", work
        return "graph", graph.replay

    def milliseconds(self, work: Work) -> float:
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


class RuntimeDevice:
    """Through the CUDA runtime, in the form of cuda.bindings.runtime: each call answers (error, values...)."""

    def __init__(self, runtime: Any, kind: str) -> None:
        self.kind, self._cuda, self._memory = kind, runtime, list[int]()
        if not self._call("GetDeviceCount"):
            raise RuntimeError("the CUDA runtime sees no device")
        self._call("SetDevice", 0)
        attributes = runtime.cudaDeviceAttr
        major, minor = attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor
        self.capability = self._call("DeviceGetAttribute", major, 0), self._call("DeviceGetAttribute", minor, 0)
        self.name = _smi_name() or f"sm_{self.capability[0]}{self.capability[1]}"
        self.stream = int(self._call("StreamCreate"))

    def upload(self, data: Array) -> int:
        data = np.ascontiguousarray(data)
        pointer = int(self._call("Malloc", data.nbytes))
        self._memory.append(pointer)
        self._call("Memcpy", pointer, data.ctypes.data, data.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)
        return pointer

    def download(self, pointer: int, nbytes: int) -> Array:
        self.synchronize()
        data = np.empty(nbytes, np.uint8)
        self._call("Memcpy", data.ctypes.data, pointer, nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        return data

    def free(self) -> None:
        self.synchronize()
        while self._memory:
            self._call("Free", self._memory.pop())

    def synchronize(self) -> None:
        self._call("DeviceSynchronize")

    def record(self, launches: Sequence[Work]) -> tuple[str, Work]:
        return "calls", in_turn(launches)

    def milliseconds(self, work: Work) -> float:
        start, end = self._call("EventCreate"), self._call("EventCreate")
        self._call("EventRecord", start, self.stream)
        work()
        self._call("EventRecord", end, self.stream)
        self._call("EventSynchronize", end)
        taken = float(self._call("EventElapsedTime", start, end))
        for event in (start, end):
            self._call("EventDestroy", event)
        return taken

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._cuda, f"cuda{name}")(*arguments)
        if int(error):
            raise RuntimeError(f"cuda{name} failed with error {int(error)}")
        return values[0] if values else None


def _smi_name() -> str:
    """The GPU's name by nvidia-smi, empty where that is not there."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def _bindings() -> Device:
    return RuntimeDevice(importlib.import_module("cuda.bindings.runtime"), "bindings")


def _cudart() -> Device:
    return RuntimeDevice(Cudart(find_cudart()), "cudart")


WAYS: dict[str, Callable[[], Device]] = {"torch": TorchDevice, "bindings": _bindings, "cudart": _cudart}
