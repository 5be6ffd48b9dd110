"""The NVIDIA driver and every GPU that it counts, asked of the driver itself: no package is needed, nothing stays."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import sys
from typing import Any

# CUDA's own library and the management library (NVML); both come with the driver
_CUDA, _NVML = ("nvcuda.dll", "nvml.dll") if sys.platform == "win32" else ("libcuda.so.1", "libnvidia-ml.so.1")
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, cuda.h
_TEXT_BYTES = 256


@dataclasses.dataclass(frozen=True)
class Gpu:
    """`capability`: compute capability, as "8.6".  `memory_mb`: all of it, MB (1e6 bytes)."""

    name: str
    capability: str
    memory_mb: float


@dataclasses.dataclass(frozen=True)
class Driver:
    """What the driver says.

    version  as "580.65.06", empty where it does not tell.   cuda  the newest CUDA that it serves, as "13.0".
    gpus     in CUDA's order; none where `error`, a code of CUDA's, says that none can be used.
    """

    version: str
    cuda: str
    gpus: tuple[Gpu, ...]
    error: int = 0

    def __str__(self) -> str:
        return ", ".join(part for part in (self.version, f"CUDA {self.cuda}") if part)


def driver() -> Driver | None:
    """The installed driver, None where there is none."""
    try:
        cuda = ctypes.CDLL(_CUDA)
    except OSError:
        return None
    number, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    error = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = () if error else tuple(_gpu(cuda, index) for index in range(count.value))
    # as cuda.h has it: 1000 * major + 10 * minor
    return Driver(_version(_NVML), f"{number.value // 1000}.{number.value % 1000 // 10}", gpus, error)


def _gpu(cuda: Any, index: int) -> Gpu:
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(_TEXT_BYTES), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    capability = f"{_attribute(cuda, _MAJOR, device)}.{_attribute(cuda, _MINOR, device)}"
    return Gpu(name.value.decode(errors="replace"), capability, size.value / 1e6)


def _attribute(cuda: Any, attribute: int, device: ctypes.c_int) -> int:
    number = ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    return number.value


@functools.cache  # to start and end the library again and again takes long where the driver is not persistent
def _version(library: str) -> str:
    """The driver's own version; CUDA does not tell it."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return ""
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    if nvml.nvmlInit_v2():
        return ""
    nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlShutdown()
    return text.value.decode(errors="replace")
