"""TensorRT for RTX without a plan: ONNX Runtime's plugin provider builds it when the file is opened."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..errors import EngineError, MissingDependency, ProviderUnavailable
from ..home import home
from ..machine import versions
from ..plans import library
from ..plans.gpu import first_gpu
from .onnxruntime_open import open_session, session_options, warn_of_processor
from .onnxruntime_session import SessionBackend

PROVIDER = "NvTensorRTRTXExecutionProvider"
# option names and their meaning: tensorrt_rtx_provider_options.h of version 0.5.0, in the wheel
_SIZES = ("nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes")
_registering = threading.Lock()

log = logging.getLogger("facesdk")

#: input with free axes -> smallest, best and largest shape
Profile = Mapping[str, Sequence[Sequence[int]]]


class RtxProvider(SessionBackend):
    """An ONNX file on an RTX GPU.  Raises MissingDependency, ProviderUnavailable, EngineUnreadable, OutOfMemory.

    profile  of every input with free axes; without one the provider allows all sizes, and is slower.
    graph    let TensorRT for RTX capture its work as CUDA graphs by itself.
    """

    def __init__(self, path: Path, profile: Profile, threads: int | None, *, graph: bool = True) -> None:
        device = _device(_plugin())
        options = {**profile_options(profile), **_cache_options(path)}
        session = _open(path, threads, device, options, graph)
        version = versions([library.PLUGIN])[library.PLUGIN] or "of unknown version"
        super().__init__(session, "tensorrt-rtx", f"ONNX Runtime {ort.__version__} {PROVIDER} {version}", memory="cuda")
        largest = {name: tuple(shapes[-1]) for name, shapes in profile.items()}
        self.inputs = tuple(dataclasses.replace(each, largest=largest.get(each.name)) for each in self.inputs)


def profile_options(profile: Profile) -> dict[str, str]:
    """The provider's options for a profile: "input:1x3x64x64,other:1x8" for each of smallest, best and largest.

    The header says that semicolons part the inputs; the parser in the wheel knows only commas.
    """
    if not profile:
        return {}
    return {
        option: ",".join(f"{name}:{'x'.join(map(str, shapes[index]))}" for name, shapes in profile.items())
        for index, option in enumerate(_SIZES)
    }


def _plugin() -> Any:
    """The plugin's Python module."""
    if not hasattr(ort, "get_ep_devices"):
        raise _unavailable(
            f"ONNX Runtime {ort.__version__} takes no plugins", "pip install --upgrade 'onnxruntime>=1.24'"
        )
    try:
        return importlib.import_module(library.PLUGIN_MODULE)
    except ImportError as error:
        raise MissingDependency(
            f"device 'tensorrt-rtx' without a plan needs the Python package {library.PLUGIN_MODULE}",
            cause=str(error),
            remedy=library.PLUGIN_INSTALL,
        ) from error


def _device(plugin: Any) -> Any:
    """The first GPU that the provider takes; its library is registered once in a process."""
    with _registering:
        found = _offered()
        if not found:
            _register(plugin)
            found = _offered()
    if not found:
        # the compute capabilities that the header's IsComputeCapabilitySupported accepts
        cause = f"TensorRT for RTX runs on compute capability 8.6, 8.9 and from 12.0 on; here is {_gpu()}"
        raise _unavailable(cause, 'ask for device="cuda" or "tensorrt"')
    return found[0]


def _offered() -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]


def _register(plugin: Any) -> None:
    try:
        ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    except Exception as error:  # the binding raises half a dozen unrelated classes, RuntimeError among them
        message = str(error).partition(" with error: ")[2] or str(error)
        if "already registered" in message:
            return
        driver = any(part in message for part in ("libcuda.so", "libnvidia-ml.so", "nvcuda.dll", "nvml.dll"))
        remedy = (
            "install the driver of the GPU"
            if driver
            else library.PLUGIN_INSTALL.replace("install", "install --force-reinstall")
        )
        raise _unavailable(message.strip(), remedy) from error


def _gpu() -> str:
    try:
        gpu = first_gpu()
    except ProviderUnavailable as error:
        return f"none: {error.cause}"
    return f"{gpu.name} ({gpu.capability})"


def _open(path: Path, threads: int | None, device: Any, options: dict[str, str], graph: bool) -> Any:
    """The session, without CUDA graphs where it cannot be opened with them."""
    attempt = functools.partial(_open_once, path, threads, device)
    if not graph:
        return attempt(options)
    try:
        return attempt({**options, "enable_cuda_graph": "1"})
    except EngineError as error:
        session = attempt(options)
        log.info("plain launches: TensorRT for RTX allows no CUDA graph: %s", error.cause or error.fact)
        return session


def _open_once(path: Path, threads: int | None, device: Any, options: dict[str, str]) -> Any:
    wanted = session_options(threads, noted=True)
    wanted.add_provider_for_devices([device], options)
    session = open_session(path, wanted)
    if session.get_providers()[0] != PROVIDER:
        raise _unavailable(
            f"ONNX Runtime fell back to {session.get_providers()[0]}; the reason is in its own warning",
            library.PLUGIN_INSTALL,
        )
    warn_of_processor(path, session)
    return session


def _cache_options(path: Path) -> dict[str, str]:
    """Where compiled kernels are kept from one start to the next: a folder for each ONNX file."""
    file = path.stat()
    key = hashlib.sha256(repr((str(path.resolve()), file.st_size, file.st_mtime_ns)).encode()).hexdigest()[:16]
    folder = home() / "rtx-cache" / f"{path.stem}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("kernels are compiled again at every start: %s cannot be made, %s", folder, error.strerror)
        return {}
    return {"nv_runtime_cache_path": str(folder)}


def _unavailable(cause: str, remedy: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        "device 'tensorrt-rtx' cannot be used here", cause=cause, remedy=f"{remedy}; then check with: facesdk doctor"
    )
