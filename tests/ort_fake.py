"""A strict stand-in of `onnxruntime` with a GPU, which computes with the real one on the processor.

    fake = FakeOrt().install(monkeypatch)
    OnnxRuntime(path, "cuda", None)             # sessions, bindings and OrtValues on "cuda"

Memory   "cuda" is the only device that arrays may be bound to; what is put there is a copy, as on a GPU.  With
         `cuda=FakeCuda()` outputs lie in its device memory, and `data_ptr()` may be copied from by its streams.
Graphs   a session opened with enable_cuda_graph wants `gpu_graph_id` in every run: -1 runs as ever; another number is
         captured by its first run and replayed by later ones, which must have the same arrays at the same addresses.
         `capture_error` makes captures fail, and every later run of that session with them; `graph_refused` makes
         opening fail.  One without it wants none.
Places   inputs named in `on_processor` are read by operators there: binding one copies the value that it has then.
Facts    `fake.opened` options of every session, `fake.captured`, `fake.replayed` numbers, `fake.uploads` how many
         arrays were put on the device, `fake.registered` libraries.
"""

from __future__ import annotations

import threading
import types
import weakref
from typing import Any

import numpy as np
import onnxruntime as real
import pytest

_MODULES = (
    "onnxruntime", "onnxruntime_binding", "onnxruntime_cuda", "onnxruntime_loop", "onnxruntime_open",
    "onnxruntime_session", "rtx_provider",
)  # fmt: skip
CUDA, RTX, CPU = "CUDAExecutionProvider", "NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"


class FakeOrt:
    """`providers`: those the wheel has.  `falls_back`: sessions land on the processor.  `devices`: of the plugin."""

    def __init__(
        self,
        *,
        providers: tuple[str, ...] = (CUDA, CPU),
        falls_back: bool = False,
        graph_refused: str = "",
        capture_error: str = "",
        open_error: str = "",
        on_processor: tuple[str, ...] = (),
        devices: int = 1,
        register_error: str = "",
        prints: str = "",
        cuda: Any = None,
    ) -> None:
        self.providers, self.falls_back, self.prints, self.cuda = providers, falls_back, prints, cuda
        self.graph_refused, self.capture_error = graph_refused, capture_error
        self.open_error, self.on_processor = open_error, on_processor
        self.register_error, self._devices = register_error, devices
        self.opened: list[dict[str, str]] = []
        self.captured: list[int] = []
        self.replayed: list[int] = []
        self.registered: list[str] = []
        self.uploads = 0
        self._lock = threading.Lock()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
        """The same, now behind the names by which the backends know onnxruntime."""
        module = types.SimpleNamespace(
            __version__=real.__version__,
            __file__=real.__file__,
            RunOptions=real.RunOptions,
            SessionOptions=lambda: _SessionOptions(),
            InferenceSession=self._open,
            OrtValue=types.SimpleNamespace(
                ortvalue_from_numpy=self._from_numpy, ortvalue_from_shape_and_type=self._from_shape
            ),
            get_available_providers=lambda: list(self.providers),
            preload_dlls=lambda: print(self.prints) if self.prints else None,
            get_ep_devices=lambda: [
                types.SimpleNamespace(ep_name=name)
                for name in (CPU, *(self._devices * (RTX,) if self.registered else ()))
            ],
            register_execution_provider_library=self._register,
        )
        for name in _MODULES:
            monkeypatch.setattr(f"facesdk.backends.{name}.ort", module)
        return self

    def _open(self, path: str, options: Any, *, enable_fallback: int, **chosen: Any) -> _Session:
        assert enable_fallback == 0, "ONNX Runtime would print, and take the processor"
        (provider,) = chosen.get("providers", [options.provider])
        (settings,) = chosen.get("provider_options", [options.settings])
        if provider == CPU:
            return real.InferenceSession(path, options.real, providers=[CPU])
        assert all(isinstance(value, str) for value in settings.values())
        self.opened.append(settings)
        if self.open_error:
            raise RuntimeError(self.open_error)
        graphs = settings.get("enable_cuda_graph") == "1"
        if graphs and self.graph_refused:
            raise RuntimeError(self.graph_refused)
        session = real.InferenceSession(path, options.real, providers=[CPU])
        return _Session(self, session, CPU if self.falls_back else provider, graphs and provider == CUDA)

    def _from_numpy(self, array: Any, device: str, number: int) -> Any:
        assert (device, number) == ("cuda", 0)
        assert array.flags.c_contiguous
        with self._lock:
            self.uploads += 1
        return real.OrtValue.ortvalue_from_numpy(array.copy(), "cpu", 0)

    def _from_shape(self, shape: Any, dtype: Any, device: str, number: int) -> Any:
        assert (device, number) == ("cuda", 0)
        value = real.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cpu", 0)
        value.numpy()[...] = np.array(-1).astype(dtype)  # what was never written shows
        return value

    def _register(self, name: str, library: str) -> None:
        if name in self.registered:
            raise RuntimeError(f"library {name} is already registered")
        if self.register_error:
            raise RuntimeError(f"Failed to load library {library} with error: {self.register_error}")
        self.registered.append(name)


class _SessionOptions:
    """SessionOptions that take a device of a plugin; all else goes to the real ones."""

    def __init__(self) -> None:
        self.real, self.provider, self.settings = real.SessionOptions(), "", dict[str, str]()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("real", "provider", "settings"):
            super().__setattr__(name, value)
        else:
            setattr(self.real, name, value)

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.real.add_session_config_entry(key, value)

    def add_provider_for_devices(self, devices: Any, settings: dict[str, str]) -> None:
        (device,) = devices
        self.provider, self.settings = device.ep_name, settings


class _Session:
    def __init__(self, fake: FakeOrt, session: Any, provider: str, graphs: bool) -> None:
        self.fake, self.real, self.provider, self.graphs = fake, session, provider, graphs
        self._captured: dict[tuple[int, int], Any] = {}
        self._broken = False

    def __getattr__(self, name: str) -> Any:
        if name in ("get_inputs", "get_outputs", "get_session_options"):
            return getattr(self.real, name)
        raise AttributeError(name)  # run() among them: arrays are bound

    def get_providers(self) -> list[str]:
        return list(dict.fromkeys((self.provider, CPU)))

    def io_binding(self) -> _Binding:
        return _Binding(self)

    def run_with_iobinding(self, binding: _Binding, options: Any = None) -> None:
        assert not self._broken, "CUDA failure 901: the capture was invalidated"
        number = _graph_id(options)
        assert (number is not None) == self.graphs, f"gpu_graph_id is {number}"
        if number is None or number == -1:
            self.real.run_with_iobinding(binding.real)
            return
        key = number, threading.get_ident()  # graphs belong to a thread
        if key in self._captured:
            assert self._captured[key] == binding.addresses(), "a replay would not read and write these arrays"
            self.fake.replayed.append(number)
        elif self.fake.capture_error:
            self._broken = True
            raise RuntimeError(self.fake.capture_error)
        self.real.run_with_iobinding(binding.real)
        if key not in self._captured:
            self._captured[key] = binding.addresses()
            self.fake.captured.append(number)


class _Binding:
    def __init__(self, session: _Session) -> None:
        self.real, self._fake, self._where = session.real.io_binding(), session.fake, dict[str, int]()
        self._values: list[Any] = []  # a real binding keeps its OrtValues alive

    def addresses(self) -> dict[str, int]:
        return {**self._where, **{f"output {i}": v.data_ptr() for i, v in enumerate(self.real.get_outputs())}}

    def bind_cpu_input(self, name: str, array: Any) -> None:
        assert array.flags.c_contiguous
        copy = array.copy()
        self.real.bind_cpu_input(name, copy)
        self._where[name] = copy.ctypes.data

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: Any, pointer: int) -> None:
        assert (device, number) == ("cuda", 0)
        assert pointer % 256 == 0 or self._fake.cuda is None, "a GPU wants rows aligned"
        self.real.bind_input(name, "cpu", 0, dtype, shape, pointer)
        self._where[name] = pointer

    def bind_output(self, name: str, device: str, number: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.real.bind_output(name, "cpu", 0)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        if name in self._fake.on_processor:
            value = real.OrtValue.ortvalue_from_numpy(value.numpy().copy(), "cpu", 0)
        self.real.bind_ortvalue_input(name, value)
        self._values.append(value)
        self._where[name] = value.data_ptr()

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.real.bind_ortvalue_output(name, value)
        self._values.append(value)

    def copy_outputs_to_cpu(self) -> list[Any]:
        return self.real.copy_outputs_to_cpu()

    def get_outputs(self) -> list[Any]:
        return [_DeviceValue(self._fake.cuda, value.numpy()) for value in self.real.get_outputs()]


class _DeviceValue:
    """What an OrtValue in the fake GPU's memory answers; the memory is freed with it."""

    def __init__(self, cuda: Any, array: Any) -> None:
        _, pointer = cuda.cudaMalloc(array.nbytes)
        if array.size:
            cuda.array(pointer, array.shape, array.dtype)[...] = array
        self._pointer, self._shape = int(pointer), list(array.shape)
        weakref.finalize(self, cuda.cudaFree, int(pointer))

    def data_ptr(self) -> int:
        return self._pointer

    def shape(self) -> list[int]:
        return self._shape


def _graph_id(options: Any) -> int | None:
    if options is None:
        return None
    try:
        return int(options.get_run_config_entry("gpu_graph_id"))
    except RuntimeError:
        return None
