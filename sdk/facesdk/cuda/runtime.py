"""The CUDA runtime behind cuda-python: where it is, what its error codes mean here, how much memory is free."""

from __future__ import annotations

import functools
from typing import Any

from ..errors import EngineError, MissingDependency, OutOfMemory, ProviderUnavailable

# cudaError_t -> why no device can be used
_NO_DEVICE = {
    3: "the driver could not be initialised; it cannot be in a process forked from one that used it",
    34: "the library is a stub, without a driver behind it",
    35: "there is no NVIDIA driver, or it is older than this cuda-python needs",
    36: "the driver is older than this call needs",
    46: "every GPU is busy, or kept for another process",
    100: "the driver sees no GPU",
    802: "the system is not ready; on machines with NVSwitch its fabric manager must run",
    803: "driver and kernel module are of different versions",
    804: "this GPU does not support CUDA's compatibility mode",
}
# failed kernels and broken hardware, after which no call of the process succeeds any more
_STICKY = {214, 220, 700, 702, 709, 710, *range(714, 720)}
_NOT_HERE = "there is no CUDA device that can be used here"
_REMEDY = "look at: nvidia-smi; without it, install NVIDIA's driver"
# cuda-python 13 needs a driver of CUDA 13, which JetPack 6 does not have
_OLDER = "; where it names CUDA 12: pip install 'cuda-python<13'"
_ALLOCATION, _INSUFFICIENT_DRIVER = 2, 35
_MB = 1e6


def bindings() -> Any:
    """The module cuda.bindings.runtime.  Raises MissingDependency, or ProviderUnavailable without a driver."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependency(
            "memory on the GPU needs cuda-python", cause=str(error), remedy="pip install cuda-python"
        ) from error
    return _with_driver(runtime)


@functools.lru_cache(maxsize=1)
def _with_driver(module: Any) -> Any:
    """The module, once it has looked for a driver: where there is none, 12.8 raises, and 13.5 answers with a code."""
    try:
        module.cudaGetDeviceCount()
    except RuntimeError as error:
        raise ProviderUnavailable(_NOT_HERE, cause=str(error), remedy=_REMEDY) from error
    return module


def called(answer: tuple[Any, ...]) -> Any:
    """What a call of cuda-python answers after its error code: None, the value, or a tuple of several.

    Raises ProviderUnavailable where no device can be used, OutOfMemory, or EngineError.
    """
    code, *values = answer
    if int(code) in _NO_DEVICE:
        remedy = _REMEDY + _OLDER if int(code) == _INSUFFICIENT_DRIVER else _REMEDY
        raise ProviderUnavailable(_NOT_HERE, cause=f"{code.name}: {_NO_DEVICE[int(code)]}", remedy=remedy)
    if int(code) == _ALLOCATION:
        raise out_of_memory()
    if int(code):
        again = "start the program again; where that does not help, " if int(code) in _STICKY else ""
        raise EngineError("a call of the CUDA runtime failed", cause=code.name, remedy=f"{again}look at: nvidia-smi")
    return tuple(values) if len(values) > 1 else values[0] if values else None


def require() -> None:
    """Raise MissingDependency or ProviderUnavailable where no CUDA device can be used; takes well under a second."""
    if not called(bindings().cudaGetDeviceCount()):
        raise ProviderUnavailable(_NOT_HERE, cause="the driver counts none", remedy=_REMEDY)


def memory_mb() -> tuple[float, float]:
    """Free and total memory of the current device, MB (1e6 bytes)."""
    free, total = called(bindings().cudaMemGetInfo())
    return free / _MB, total / _MB


def out_of_memory(nbytes: int | None = None) -> OutOfMemory:
    """The error for an allocation of `nbytes` that the GPU has no room for; None where the size is not known."""
    code, *values = bindings().cudaMemGetInfo()
    free = f"{values[0] / _MB:.1f} of {values[1] / _MB:.1f} MB are free" if not int(code) else ""
    return OutOfMemory(
        f"the GPU has no room for {'what was asked' if nbytes is None else f'{nbytes / _MB:.1f} MB'}",
        cause=free,
        remedy="close other programs that use the GPU, or take a smaller batch",
    )
